//! The PROXY protocol: proxies that pass bytes on announce their clients, and only trusted proxies
//! may do so.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::harness::{Answer, Authority, Connection, Gateway, PATIENCE, Request, Upstream, until};

const TRUSTING: &str = "proxy_protocol = true\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n";

const ROUTE: &str = "[[routes]]\npath = \"/v1/payments\"\n";

/// Returns the client address that the upstream got with the last request.
fn forwarded_for(upstream: &Upstream) -> Option<String> {
    upstream.seen().pop()?.get("x-forwarded-for").map(str::to_owned)
}

fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, rest].concat()
}

/// Sends an announcement and a request from one of this machine's addresses.
fn behind(gateway: &Gateway, from: &str, announcement: &[u8], request: &Request) -> Option<Answer> {
    let mut connection = Connection::from(from, gateway.port);
    connection.write(announcement);
    connection.try_write(&request.bytes());
    connection.try_read("POST")
}

#[test]
fn the_announced_address_is_the_client() {
    let upstream = Upstream::start();
    let settings = format!("{TRUSTING}[access_log]\nformat = \"combined\"\npath = \"LOG\"\n");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let gateway =
        Gateway::with(upstream.port, &settings.replace("LOG", file.to_str().unwrap()), ROUTE);
    let client = [203, 0, 113, 8, 127, 0, 0, 1, 0xd4, 0x31, 0, 80];
    let with_tlv = [&client[..], &[0x04, 0, 3, 1, 2, 3]].concat();
    let proxys_client = [10, 1, 2, 3, 127, 0, 0, 1, 0xd4, 0x31, 0, 80];
    for (n, (announcement, chain)) in [
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 54321 80\r\n".to_vec(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 54321 80\r\n".to_vec(), "2001:db8::7"),
        (version_2(0x21, 0x11, &client), "203.0.113.8"),
        (version_2(0x21, 0x11, &with_tlv), "203.0.113.8"),
        // An announced trusted proxy is believed like a connected one.
        (version_2(0x21, 0x11, &proxys_client), "9.9.9.9, 10.1.2.3"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "9.9.9.9, 127.0.0.1"),
        (version_2(0x20, 0x00, &[]), "9.9.9.9, 127.0.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let pay = Request::pay(&format!("k{n}"), "{}").field("X-Forwarded-For", "9.9.9.9");
        assert_eq!(
            behind(&gateway, "127.0.0.1", &announcement, &pay).map(|answer| answer.status),
            Some(201),
            "{chain}"
        );
        assert_eq!(forwarded_for(&upstream).as_deref(), Some(chain));
    }
    let logged = || std::fs::read_to_string(&file).unwrap_or_default();
    until("the client in the access log", || {
        logged().contains("203.0.113.7 ") && logged().contains("2001:db8::7 ")
    });
}

#[test]
fn a_trusted_proxy_that_announces_nothing_is_cut_off_and_logged() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TRUSTING, ROUTE);
    let pay = Request::pay("k", "{}");
    for bytes in
        [&b""[..], b"PROXY TCP4 nobody 127.0.0.1 1 2\r\n", b"PROXY TCP4 1.2.3.4 127.0.0.1 1\r\n"]
    {
        assert!(
            behind(&gateway, "127.0.0.1", bytes, &pay).is_none(),
            "{}",
            String::from_utf8_lossy(bytes)
        );
    }
    gateway.logged("does not begin with a PROXY header");
    gateway.logged("the PROXY header is malformed");
    assert_eq!(upstream.executed(), 0);
    assert!(gateway.is_ready(), "the admin port needs none");
}

#[test]
fn an_announcement_from_anybody_else_is_malformed_http() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TRUSTING, ROUTE);
    let pay = Request::pay("k", "{}");
    for announcement in
        [b"PROXY TCP4 203.0.113.7 127.0.0.1 54321 80\r\n".to_vec(), version_2(0x20, 0x00, &[])]
    {
        let refused = behind(&gateway, "127.0.0.2", &announcement, &pay).expect("an answer");
        assert_eq!((refused.status, refused.problem().as_str()), (400, "request-malformed"));
    }
    assert_eq!(
        behind(&gateway, "127.0.0.2", b"", &pay).map(|answer| answer.status),
        Some(201),
        "plain HTTP is served"
    );
    assert_eq!(forwarded_for(&upstream).as_deref(), Some("127.0.0.2"));
    let plain = Gateway::with(upstream.port, "trusted_proxies = [\"127.0.0.1\"]\n", ROUTE);
    let refused = behind(&plain, "127.0.0.1", b"PROXY UNKNOWN\r\n", &pay).expect("an answer");
    assert_eq!(refused.status, 400, "nor where the protocol is off");
}

#[test]
fn the_limit_of_connections_is_for_each_announced_client() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        &format!("{TRUSTING}[limits]\nconnections_per_peer = 1\n"),
        ROUTE,
    );
    let open = |client: &str, key: &str| {
        let mut connection = Connection::from("127.0.0.1", gateway.port);
        connection.write(format!("PROXY TCP4 {client} 127.0.0.1 1 2\r\n").as_bytes());
        connection.try_write(&Request::pay(key, "{}").bytes());
        let served = connection.try_read("POST").is_some();
        (connection, served)
    };
    let (first, served) = open("203.0.113.7", "a");
    assert!(served);
    assert!(!open("203.0.113.7", "b").1, "its second connection");
    assert!(open("203.0.113.8", "c").1, "another client");
    drop(first);
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn the_check_requires_trusted_proxies_for_announcements() {
    let check = |settings: &str| -> Output {
        let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::fs::write(
            file.path(),
            format!("{settings}\n[upstream]\nurl = \"http://127.0.0.1:9\"\n"),
        )
        .unwrap();
        Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(["check", "--config"])
            .arg(file.path())
            .output()
            .unwrap()
    };
    let refused = check("proxy_protocol = true");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    assert!(
        !refused.status.success()
            && text.contains("proxy_protocol")
            && text.contains("trusted_proxies"),
        "{text}"
    );
    assert!(check(TRUSTING).status.success());
}

#[test]
fn the_announcement_comes_before_tls() {
    let (authority, upstream, dir) =
        (Authority::new(), Upstream::start(), tempfile::tempdir().unwrap());
    authority.write("127.0.0.1", dir.path());
    let tls = format!(
        "[tls]\ncert = {:?}\nkey = {:?}\n",
        dir.path().join("cert.pem"),
        dir.path().join("key.pem")
    );
    let gateway = Gateway::with(upstream.port, &format!("{TRUSTING}{tls}"), ROUTE);
    let exchange = |announcement: &str| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(announcement.as_bytes())?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = StreamOwned::new(
            ClientConnection::new(authority.client(&[], None), name).unwrap(),
            stream,
        );
        stream.write_all(&Request::pay("k", "{}").field("Connection", "close").bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    let answer = exchange("PROXY TCP4 203.0.113.7 127.0.0.1 1 443\r\n").unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        (seen.get("x-forwarded-for"), seen.get("x-forwarded-proto")),
        (Some("203.0.113.7"), Some("https"))
    );
    assert!(exchange("").is_err(), "a handshake alone is no announcement");
}
