//! Hostile HTTP/1.1, written byte by byte, in front of two origins: nginx, and one that counts.
//! Each request that an origin parses must be one that the gateway parsed too.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;

use crate::harness::{Connection, Gateway, Nginx, ROUTES, Request, Upstream, until};

/// Targets of an attack: a request that is buffered under a key, and one that streams.
const TARGETS: [&str; 2] = ["/v1/payments", "/elsewhere"];

/// Request lines; `~` is the target.
const LINES: &[&str] = &[
    "POST  ~ HTTP/1.1\r\n",
    "POST ~  HTTP/1.1\r\n",
    "POST ~ HTTP/1.1 \r\n",
    "POST\t~ HTTP/1.1\r\n",
    "POST ~\tHTTP/1.1\r\n",
    "POST\x0b~ HTTP/1.1\r\n",
    " POST ~ HTTP/1.1\r\n",
    "post ~ HTTP/1.1\r\n",
    "PO(ST ~ HTTP/1.1\r\n",
    "PO\0ST ~ HTTP/1.1\r\n",
    "POST ~ HTTP/1.1\n",
    "POST ~ HTTP/1.1\r",
    "POST ~ HTTP/1.1\r\r\n",
    "\nPOST ~ HTTP/1.1\r\n",
    "\r\n\r\nPOST ~ HTTP/1.1\r\n",
    "POST ~ HTTP/1.2\r\n",
    "POST ~ HTTP/2.0\r\n",
    "POST ~ HTTP/1.10\r\n",
    "POST ~ http/1.1\r\n",
    "POST ~ HTTPS/1.1\r\n",
    "POST ~\r\n",
    "POST ~ x HTTP/1.1\r\n",
    "POST ~#fragment HTTP/1.1\r\n",
    "POST ~\\..\\x HTTP/1.1\r\n",
    "POST ~\0 HTTP/1.1\r\n",
    "POST ~\x7f HTTP/1.1\r\n",
    "POST a~ HTTP/1.1\r\n",
    "POST * HTTP/1.1\r\n",
    "POST a:80 HTTP/1.1\r\n",
    "POST ftp://a~ HTTP/1.1\r\n",
    "POST http://u:p@a~ HTTP/1.1\r\n",
    "POST http://a:port~ HTTP/1.1\r\n",
    "TRACE ~ HTTP/1.1\r\n",
    "CONNECT a:80 HTTP/1.1\r\n",
];

/// Fields after valid ones; the body that follows is an empty chunk.
const FIELDS: &[&str] = &[
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "Content-Length: 5\r\nContent-Length: 5\r\n",
    "Content-Length: 5\r\nContent-Length: 0\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: -5\r\n",
    "Content-Length: 0x5\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: 5,0\r\n",
    "Content-Length: 5 0\r\n",
    "Content-Length: 05\r\n",
    "Content-Length: 5.0\r\n",
    "Content-Length: 5;\r\n",
    "Content-Length: \"5\"\r\n",
    "Content-Length:\r\n",
    "Content-Length: 18446744073709551621\r\n",
    "Content-Length : 5\r\n",
    "Content_Length: 5\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunked;q=1\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: ,chunked\r\n",
    "Transfer-Encoding: \x0bchunked\r\n",
    "Transfer-Encoding: chunked\x0c\r\n",
    "Transfer-Encoding: chu\0nked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding\t: chunked\r\n",
    "Transfer-Encoding\0: chunked\r\n",
    "Transfer-Encoding\x0b: chunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    " Transfer-Encoding: chunked\r\n",
    "X: y\r\n\tTransfer-Encoding: chunked\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n",
    "X: y\n\r\n",
    "X: y\r\r\n",
    "X: \x01\r\n",
    "X: \x7f\r\n",
    "X\r\n",
    "X y: z\r\n",
    ": y\r\n",
    "\n",
    "\r\r\n",
];

/// Bodies after `Transfer-Encoding: chunked`.
const BODIES: &[&str] = &[
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\rhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello!\r\n0\r\n\r\n",
    "5\r\nhell\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;a\0b\r\nhello\r\n0\r\n\r\n",
    "000000005\r\nhello\r\n0\r\n\r\n",
    "100000005\r\nhello\r\n0\r\n\r\n",
    "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    ";a\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "5\r\nhello\r\n0\r\nHost: b\r\n\r\n",
    "5\r\nhello\r\n0\r\nAuthorization: b\r\n\r\n",
    "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\nZ: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
];

/// Replacements of one valid Host field.
const HOSTS: &[&str] = &[
    "",
    "Host: a\r\nHost: a\r\n",
    "Host: a\r\nHost: b\r\n",
    "Host: a b\r\n",
    "Host: a/b\r\n",
    "Host: a, b\r\n",
    "Host: u@a\r\n",
    "Host: a:b\r\n",
    "Host: :80\r\n",
    "Host:\r\n",
];

struct Attack {
    bytes: Vec<u8>,
    /// The refusal is about the body: the head was valid, and the request may have been active.
    in_body: bool,
    /// The framing is certain, so the connection may continue.
    may_go_on: bool,
}

/// Returns every attack on every target. Each has a number, and is followed by a request that
/// nobody must parse as a request.
fn attacks() -> Vec<Attack> {
    let mut attacks = Vec::new();
    let mut add = |line: &str, host: &str, rest: &str, in_body: bool| {
        for target in TARGETS {
            let number = attacks.len();
            let line = line.replace('~', &format!("{target}?n={number}"));
            let fields = format!("{host}X-Number: {number}\r\nIdempotency-Key: k{number}\r\n");
            let hidden =
                format!("POST /hidden?n={number} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            let may_go_on = host != "Host: a\r\n";
            let behind = if may_go_on { "" } else { &hidden };
            attacks.push(Attack {
                bytes: format!("{line}{fields}{rest}{behind}").into_bytes(),
                in_body,
                may_go_on,
            });
        }
    };
    const GOOD: (&str, &str) = ("POST ~ HTTP/1.1\r\n", "Host: a\r\n");
    for line in LINES {
        add(line, GOOD.1, "Content-Length: 0\r\n\r\n", false);
    }
    for fields in FIELDS {
        add(GOOD.0, GOOD.1, &format!("{fields}\r\n0\r\n\r\n"), false);
    }
    for body in BODIES {
        add(GOOD.0, GOOD.1, &format!("Transfer-Encoding: chunked\r\n\r\n{body}"), true);
    }
    for host in HOSTS {
        add(GOOD.0, host, "Content-Length: 0\r\n\r\n", false);
    }
    add("POST ~ HTTP/1.0\r\n", GOOD.1, "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false);
    add("POST http://b~ HTTP/1.1\r\n", "Host: c\r\n", "Content-Length: 0\r\n\r\n", false);
    attacks
}

/// Sends every attack, in one piece and cut in two, and returns the number sent.
fn attack(gateway: &Gateway) -> usize {
    let mut sent = 0;
    for Attack { bytes, in_body, may_go_on } in attacks() {
        for cut in [bytes.len(), bytes.len() / 2] {
            let shown = bytes.escape_ascii().to_string();
            let mut connection = Connection::open(gateway.port);
            connection.write(&bytes[..cut]);
            // The connection may be closed before the later bytes: that is right too.
            connection.try_write(&bytes[cut..]);
            let answer = connection.read();
            sent += 1;
            let streamed = in_body && !shown.contains("/v1/payments");
            // A streamed request may have its answer before its malformed rest is detected.
            assert!(
                matches!(answer.status, 400 | 405) || streamed && answer.status == 201,
                "{shown}: {answer:?}"
            );
            if answer.status != 201 {
                assert!(
                    ["request-malformed", "method-not-allowed", "host-invalid"]
                        .contains(&answer.problem().as_str()),
                    "{shown}"
                );
            }
            assert!(may_go_on || connection.is_closed(), "{shown}: the connection goes on");
        }
    }
    sent
}

/// Settings that keep the story short when a connection stays open.
const IMPATIENT: &str = "[limits]\nheader_timeout = \"2s\"\nbody_timeout = \"2s\"";

/// Asserts that the gateway forwarded every request that an origin parsed, once.
fn all_were_forwarded(gateway: &Gateway, seen: &[(String, String)]) {
    let mut traces = HashSet::new();
    for (trace, line) in seen {
        assert!(
            !line.contains("/hidden"),
            "the origin saw a request that was hidden in another: {line}"
        );
        let id = trace.get(3..35).unwrap_or_else(|| panic!("nobody forwarded {line}"));
        assert!(traces.insert(id.to_owned()), "{line} came twice");
        until("the gateway to tell of it", || {
            gateway.logs().contains(&format!("request_id=\"{id}\""))
        });
    }
}

#[test]
fn no_origin_sees_a_request_that_the_gateway_did_not_see_as_one() {
    let (nginx, upstream) = (Nginx::start(), Upstream::start());
    for origin in [nginx.port, upstream.port] {
        let gateway = Gateway::with(origin, IMPATIENT, ROUTES);
        let sent = attack(&gateway);
        assert!(sent >= 150, "only {sent} malformed requests");
        // The last one is valid: when the origin has logged it, all others are logged too.
        assert_eq!(Request::new("GET", "/last").send(gateway.port).status, 201);
        let seen = || {
            if origin == nginx.port {
                return nginx.seen();
            }
            let trace = |seen: &crate::harness::ReceivedRequest| {
                seen.get("traceparent").unwrap_or("-").to_owned()
            };
            upstream.seen().iter().map(|seen| (trace(seen), seen.line.clone())).collect()
        };
        let last = |seen: Vec<(String, String)>| {
            seen.iter().any(|(_, line)| line.starts_with("GET /last"))
        };
        until("the last request to be logged", || last(seen()));
        let seen: Vec<_> =
            seen().into_iter().filter(|(_, line)| !line.starts_with("GET /ready")).collect();
        all_were_forwarded(&gateway, &seen);
        // Streamed bodies are refused while they are forwarded. Nothing else got through, and no
        // payment at all.
        assert!(seen.iter().all(|(_, line)| !line.contains("/v1/payments")), "{seen:?}");
        if origin == upstream.port {
            assert_eq!(
                upstream.executed(),
                1,
                "the counting origin counts only whole requests: {seen:?}"
            );
        }
    }
}

#[test]
fn good_requests_around_a_bad_one_get_their_answers_in_order() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Connection::open(gateway.port);
    let pay = Request::pay("k", "{}");
    let bad = b"POST /v1/payments HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection
        .write(&[&pay.bytes()[..], &Request::pay("l", "{}").bytes(), bad, &pay.bytes()].concat());
    let answers = [connection.read(), connection.read(), connection.read()];
    assert_eq!(answers.each_ref().map(|answer| answer.status), [201, 201, 400]);
    let (refused, document) = (&answers[2], answers[2].json());
    assert_eq!(
        (refused.problem().as_str(), refused.get("connection")),
        ("request-malformed", Some("close"))
    );
    assert_eq!(document["retryable"], false);
    assert!(
        document["detail"].as_str().unwrap().contains("Content-Length and a Transfer-Encoding"),
        "{document}"
    );
    assert!(connection.is_closed());
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn what_looks_odd_and_is_not_passes() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for (number, good) in [
        "\r\nPOST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: @\r\nContent-Length: 0\r\n\r\n",
        "POST http://a/v1/payments HTTP/1.1\r\nHost: A\r\nIdempotency-Key: @\r\nContent-Length:\t0 \r\n\r\n",
        "POST /v1/payments HTTP/1.0\r\nIdempotency-Key: @\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/payments HTTP/1.1\r\nHost: [::1]:80\r\nIdempotency-Key: @\r\nX-Text: caf\u{e9}\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: @\r\ntransfer-encoding:CHUNKED\r\n\r\n00a;n=\"v\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let good = good.replace('@', &format!("k{number}"));
        // Byte by byte too: refusals don't depend on packets.
        let mut connection = Connection::open(gateway.port);
        for byte in good.as_bytes() {
            connection.write(&[*byte]);
        }
        assert_eq!(connection.read().status, 201, "{good:?}");
        let mut connection = Connection::open(gateway.port);
        connection.write(good.as_bytes());
        assert!(connection.read().replayed(), "{good:?}");
    }
    assert_eq!(upstream.executed(), 5);
}

#[test]
fn bytes_behind_a_request_to_upgrade_are_requests_until_the_upgrade_is_granted() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Connection::open(gateway.port);
    // The origin doesn't upgrade: the rest is an ordinary request, and must pass the gateway's
    // checks.
    let upgrade =
        Request::new("GET", "/socket").field("Connection", "upgrade").field("Upgrade", "websocket");
    let pay = Request::pay("k", "{}");
    assert!(pay.send(gateway.port).status == 201);
    connection.write(&[upgrade.bytes(), pay.bytes()].concat());
    assert_eq!(connection.read_for("GET").status, 201);
    assert!(connection.read().replayed(), "the request behind it did not slip through");
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_caller_who_is_named_in_connection_is_still_who_asks() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = |who: &str| {
        Request::pay("k", "{}").field("Connection", "Authorization").field("Authorization", who)
    };
    assert_eq!(pay("alice").send(gateway.port).status, 201);
    assert_eq!(pay("mallory").send(gateway.port).problem(), "key-reused");
    assert!(pay("alice").send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn keys_in_field_and_body_that_differ_are_no_key() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/payments\"\nkey = { header = \"Idempotency-Key\", body = \"/key\" }";
    let gateway = Gateway::with(upstream.port, "", routes);
    assert_eq!(Request::pay("a", r#"{"key":"b"}"#).send(gateway.port).problem(), "key-invalid");
    assert_eq!(Request::pay("a", r#"{"key":"a"}"#).send(gateway.port).status, 201);
    assert_eq!(upstream.executed(), 1);
}

/// Starts an origin that answers everything with these bytes, then with the others for as long as
/// somebody reads.
fn canned(first: &'static [u8], endless: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(first);
                while !endless.is_empty() && stream.write_all(endless).is_ok() {}
            });
        }
    });
    port
}

#[test]
fn an_origin_that_frames_its_answer_in_two_ways_is_not_believed() {
    let both = canned(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"");
    let gateway = Gateway::start(both);
    for replayed in [false, true] {
        let answer = Request::pay("k", "{}").send(gateway.port);
        assert_eq!((answer.replayed(), answer.text().as_str()), (replayed, "hello"));
        assert_eq!(
            (answer.get("content-length"), answer.get("transfer-encoding")),
            (Some("5"), None),
            "framed anew"
        );
    }
    for bad in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 3\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    ] {
        let gateway = Gateway::start(canned(bad, b""));
        let answer = Request::pay("k", "{}").send(gateway.port);
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (502, "outcome-uncertain"),
            "{}",
            bad.escape_ascii()
        );
        assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 409, "and it is held");
    }
}

#[test]
fn an_origin_that_never_stops_to_say_continue_is_left() {
    let flood = canned(b"", b"HTTP/1.1 100 Continue\r\n\r\n");
    let gateway = Gateway::with(
        flood,
        "[upstream]\nresponse_timeout = \"500ms\"",
        "[[routes]]\npath = \"/v1/payments\"",
    );
    let answer = Request::pay("k", "{}").send(gateway.port);
    assert_eq!((answer.status, answer.problem().as_str()), (504, "outcome-uncertain"));
    assert_eq!(gateway.ask("GET", "/healthz").status, 200, "the gateway is well");
}

#[test]
fn a_client_that_does_not_read_is_let_go() {
    let upstream = Upstream::start();
    let settings = "[limits]\nidle_timeout = \"700ms\"\nheader_timeout = \"300ms\"";
    let gateway = Gateway::with(upstream.port, settings, ROUTES);
    let mut connection = Connection::open(gateway.port);
    connection.write(&Request::new("GET", "/large").act("large 50000000").bytes());
    upstream.reached(1);
    until("the connection to be given up", || gateway.metric("onceward_connections") == 0.0);
}

#[test]
fn many_slow_clients_leave_others_untouched() {
    let upstream = Upstream::start();
    let settings = "[limits]\nheader_timeout = \"30s\"\nbody_timeout = \"30s\"";
    let gateway = Gateway::with(upstream.port, settings, ROUTES);
    // Fewer than the default limit of file descriptors of a process.
    let mut slow: Vec<_> = (0..400).map(|_| Connection::open(gateway.port)).collect();
    for (number, connection) in slow.iter_mut().enumerate() {
        let whole = Request::pay(&format!("slow{number}"), "{}").bytes();
        // Some are slow to send their head, others their body.
        connection.write(&whole[..if number % 2 == 0 { 40 } else { whole.len() - 1 }]);
    }
    let mut healthy = Connection::open(gateway.port);
    for number in 0..100 {
        assert_eq!(healthy.exchange(&Request::pay(&format!("k{number}"), "{}")).status, 201);
    }
    assert_eq!(upstream.executed(), 100, "half requests reach nobody");
}
