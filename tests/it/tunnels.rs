//! Tunnels: connections that were upgraded to another protocol. Limits count them, and they can
//! end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::{Connection, Gateway, ROUTES, Request, until};

/// Starts an origin that switches protocols and echoes bytes. `/talk` also sends unprompted;
/// `/slow` answers late and does not switch.
fn origin() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

fn serve(mut stream: TcpStream) {
    let mut head = vec![0; 4096];
    let Ok(length) = stream.read(&mut head) else { return };
    let talks = head[..length].starts_with(b"GET /talk");
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    if head[..length].starts_with(b"GET /slow") {
        std::thread::sleep(Duration::from_millis(1500));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let _ = stream.write_all(switch.as_bytes());
    while talks && stream.write_all(b".").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        let _ = stream.write_all(&bytes[..length]);
    }
}

fn upgrade(path: &str) -> Request {
    Request::new("GET", path).field("Connection", "upgrade").field("Upgrade", "websocket")
}

/// Opens a tunnel and sends some bytes through it.
fn tunnel(gateway: &Gateway) -> Connection {
    let mut connection = Connection::open(gateway.port);
    assert_eq!(connection.exchange(&upgrade("/echo")).status, 101);
    connection.write(b"HTTP/1.1 200 echo\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(connection.read().status, 200);
    connection
}

#[test]
fn tunnels_count_among_the_connections_of_their_address() {
    let gateway = Gateway::with(origin(), "[limits]\nconnections_per_peer = 5", ROUTES);
    let mut tunnels: Vec<_> = (0..5).map(|_| tunnel(&gateway)).collect();
    assert_eq!(gateway.metric("onceward_connections"), 5.0);
    assert!(Connection::open(gateway.port).is_closed());
    tunnels.pop();
    until("the place to be free", || gateway.metric("onceward_connections") == 4.0);
    tunnels.push(tunnel(&gateway));
    assert!(Connection::open(gateway.port).is_closed());
}

#[test]
fn tunnels_count_among_the_requests_in_flight() {
    let settings = "trusted_proxies = [\"127.0.0.1\"]\n[limits]\nin_flight = 4";
    let gateway = Gateway::with(origin(), settings, ROUTES);
    let mut tunnels: Vec<_> = (0..3).map(|_| tunnel(&gateway)).collect();
    assert_eq!(gateway.metric("onceward_in_flight"), 3.0);
    assert_eq!(upgrade("/echo").send(gateway.port).problem(), "overloaded");
    tunnels.pop();
    until("the place to be free", || gateway.metric("onceward_in_flight") == 2.0);
    tunnels.push(tunnel(&gateway));
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends_and_one_that_is_used_does_not() {
    let settings = "[limits]\nidle_timeout = \"700ms\"\nheader_timeout = \"300ms\"";
    let gateway = Gateway::with(origin(), settings, ROUTES);
    let mut silent = tunnel(&gateway);
    let mut talking = Connection::open(gateway.port);
    assert_eq!(talking.exchange(&upgrade("/talk")).status, 101);
    #[allow(clippy::disallowed_methods, reason = "a test measures real time")]
    let began = Instant::now();
    assert!(silent.is_closed());
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    // Here only the origin's bytes keep the tunnel open.
    while began.elapsed() < Duration::from_millis(2100) {
        assert!(!talking.is_closed());
    }
    until("only that one to be left", || gateway.metric("onceward_connections") == 1.0);
}

#[test]
fn a_drain_ends_tunnels_and_does_not_wait_for_them() {
    let mut gateway = Gateway::with(origin(), "drain_timeout = \"60s\"", ROUTES);
    let mut open = tunnel(&gateway);
    let slow = Request::new("GET", "/slow").send_aside(gateway.port);
    until("the request to be under way", || gateway.metric("onceward_in_flight") == 2.0);
    gateway.signal("TERM");
    assert!(open.is_closed());
    assert!(gateway.has_ended().is_none(), "a request is still under way");
    assert_eq!(slow.join().unwrap().status, 200);
    assert!(gateway.wait().success());
}
