//! Limits on the permits and file descriptors that one client, or many, can take.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::frames::{END_STREAM, HEADERS, RST_STREAM, request};
use crate::harness::{Answer, Connection, Frames, Gateway, ROUTES, Request, Upstream, dial, until};

/// Starts a gateway with this many permits for requests in flight; its clients are trusted proxies
/// if `trusted`.
fn with_places(upstream: &Upstream, places: usize, trusted: bool) -> Gateway {
    let proxies = if trusted { "trusted_proxies = [\"127.0.0.0/8\"]\n" } else { "" };
    Gateway::with(upstream.port, &format!("{proxies}[limits]\nin_flight = {places}"), ROUTES)
}

/// Begins a request from an address that the upstream keeps waiting.
fn slow(address: &str, gateway: &Gateway) -> Connection {
    let mut connection = Connection::from(address, gateway.port);
    connection.write(&Request::new("GET", "/slow").act("hold").bytes());
    connection
}

#[track_caller]
fn assert_overloaded(answer: &Answer) {
    assert_eq!((answer.status, answer.problem().as_str()), (503, "overloaded"));
    assert!(answer.get("retry-after").is_some());
}

#[test]
fn requests_that_pass_through_leave_a_quarter_of_the_places_for_payments() {
    let upstream = Upstream::start();
    let gateway = with_places(&upstream, 8, true);
    let mut waiting: Vec<_> = (0..6).map(|_| slow("127.0.0.1", &gateway)).collect();
    upstream.reached(6);
    assert_eq!(gateway.metric("onceward_in_flight"), 6.0);
    assert_overloaded(&Request::new("GET", "/").send(gateway.port));
    // The same with a body, on a connection that continues.
    let mut refused = Connection::open(gateway.port);
    assert_overloaded(
        &refused.exchange(&Request::new("POST", "/elsewhere").body("x".repeat(1000))),
    );
    assert_eq!(refused.exchange(&Request::pay("k", "{}")).status, 201);
    assert_eq!(Request::pay("l", "{}").send(gateway.port).status, 201);
    upstream.release();
    assert!(waiting.iter_mut().all(|connection| connection.read_for("GET").status == 201));
    assert_eq!(Request::new("GET", "/").send(gateway.port).status, 201);
    until("all places to be given back", || gateway.metric("onceward_in_flight") == 0.0);
}

#[test]
fn one_address_takes_at_most_half_of_the_places() {
    let upstream = Upstream::start();
    let gateway = with_places(&upstream, 8, false);
    let mut connection = Frames::over(dial("127.0.0.1", gateway.port), &[]);
    for stream in 0..3 {
        connection.headers(
            2 * stream + 1,
            END_STREAM,
            &request("GET", "/slow", &[("x-act", "hold")]),
        );
    }
    let _slow = slow("127.0.0.1", &gateway);
    upstream.reached(4);
    // With either version of HTTP, and with a key too.
    connection.headers(7, END_STREAM, &request("GET", "/", &[]));
    connection.until(&[HEADERS]).expect("an answer while the others wait");
    assert_eq!(upstream.executed(), 4, "which is not the upstream's");
    assert_overloaded(&Request::pay("k", "{}").send(gateway.port));
    let mut other = Connection::from("127.0.0.2", gateway.port);
    assert_eq!(other.exchange(&Request::pay("k", "{}")).status, 201);
    // A client that leaves returns its permits.
    connection.write(&crate::harness::frames::frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]));
    until("a place to be free", || Request::pay("k", "{}").send(gateway.port).replayed());
}

#[test]
fn an_answer_that_streams_holds_its_place_until_the_client_has_it_or_leaves() {
    let upstream = Upstream::start();
    let gateway = with_places(&upstream, 4, true);
    let ask = Request::new("GET", "/large").act("large 50000000");
    let mut readers: Vec<_> = (0..3).map(|_| Connection::open(gateway.port)).collect();
    for reader in &mut readers {
        reader.write(&ask.bytes());
    }
    upstream.reached(3);
    assert_overloaded(&Request::new("GET", "/").send(gateway.port));
    assert_eq!(readers[0].read_for("GET").body.len(), 50_000_000);
    until("the first place to be free", || {
        Request::new("GET", "/").send(gateway.port).status == 201
    });
    drop(readers);
    until("all places to be free", || gateway.metric("onceward_in_flight") == 0.0);
}

/// Starts a gateway that may open this many files.
fn with_descriptors(upstream: &Upstream, files: usize) -> Gateway {
    let to = format!("http://127.0.0.1:{}", upstream.port);
    let gateway = Gateway::launch(&to, "memory:", "", ROUTES, |command| {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]);
        limited.arg(command.get_program()).args(command.get_args());
        limited
            .env("ONCEWARD_LOG", "onceward=info")
            .env("ADMIN_TOKEN", "letmein")
            .env("READ_TOKEN", "letmesee");
        limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        *command = limited;
    });
    until("the gateway to be ready", || gateway.is_ready());
    gateway
}

#[test]
fn slow_requests_of_many_addresses_leave_descriptors_for_the_admin_port_and_places_for_payments() {
    let upstream = Upstream::start();
    let gateway = with_descriptors(&upstream, 556);
    // 256 are reserved; the other 300 are divided between connections and requests in the ratio
    // 10,000 to 5,000.
    let logs = gateway.logs();
    let warned =
        logs.lines().find(|line| line.contains("too few file descriptors")).expect("a warning");
    for figure in ["allowed=556", "needed=15256", "connections=200", "in_flight=100"] {
        assert!(warned.contains(figure), "{figure}: {warned}");
    }
    let mut connections = Vec::new();
    for address in 1..=10 {
        let mut connection = Frames::over(dial(&format!("127.0.0.{address}"), gateway.port), &[]);
        for stream in 0..100 {
            connection.headers(
                2 * stream + 1,
                END_STREAM,
                &request("GET", "/slow", &[("x-act", "hold")]),
            );
        }
        connections.push(connection);
    }
    upstream.reached(75);
    let mut other = Connection::from("127.0.1.1", gateway.port);
    assert_eq!(other.exchange(&Request::pay("k", "{}")).status, 201);
    // The rest of the connections too; more of them wait to be accepted.
    let idle: Vec<_> =
        (0..400).map(|n| dial(&format!("127.0.2.{}", 1 + n % 200), gateway.port)).collect();
    until("all places for connections to be taken", || {
        gateway.metric("onceward_connections") >= 199.0
    });
    for path in ["/healthz", "/readyz"] {
        assert_eq!(gateway.ask("GET", path).status, 200, "{path}");
    }
    assert_eq!(other.exchange(&Request::pay("l", "{}")).status, 201);
    assert!(!gateway.logs().contains("no connection could be accepted"));
    drop(idle);
}

#[test]
fn where_descriptors_are_scarce_one_address_gets_half_of_the_connections() {
    let upstream = Upstream::start();
    // 200 of the 10,000 connections are left, and each address may have 1000.
    let gateway = with_descriptors(&upstream, 556);
    let serves = |connection: &mut Connection| {
        connection.try_write(&Request::new("GET", "/").bytes())
            && connection.try_read("GET").is_some()
    };
    let mut kept: Vec<_> = (0..100).map(|_| Connection::from("127.0.0.1", gateway.port)).collect();
    assert!(kept.iter_mut().all(serves));
    assert!(
        !serves(&mut Connection::from("127.0.0.1", gateway.port)),
        "one more of the same address"
    );
    assert!(serves(&mut Connection::from("127.0.0.2", gateway.port)));
    kept.pop();
    until("a place to be free", || serves(&mut Connection::from("127.0.0.1", gateway.port)));
}

#[test]
fn a_thousand_connections_wait_to_be_accepted() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "[limits]\nconnections = 1", ROUTES);
    let mut served = Connection::open(gateway.port);
    assert_eq!(served.exchange(&Request::pay("k", "{}")).status, 201);
    // The system drops connections beyond its queue, and a client retries only after a second.
    let address = ([127, 0, 0, 1], gateway.port).into();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(900));
    let waiting: Vec<_> = (0..900).map(|_| connect()).collect();
    assert!(
        waiting.iter().all(Result::is_ok),
        "{} of them could connect",
        waiting.iter().flatten().count()
    );
}
