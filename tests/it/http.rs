//! HTTP edge cases: framing, fields, limits and paths.

use std::time::Duration;

use crate::harness::{Connection, Gateway, Request, Streams, Upstream, until};

#[test]
fn fields_of_one_connection_are_neither_forwarded_nor_stored() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = Request::pay("k", "{}")
        .field("Connection", "keep-alive, Idempotency-Key, X-Private, X-Forwarded-For")
        .field("X-Private", "1")
        .field("Keep-Alive", "timeout=5")
        .field("Proxy-Authorization", "secret")
        .field("TE", "gzip;q=0.5, trailers")
        .field("X-Forwarded-For", "6.6.6.6")
        .field("Forwarded", "for=6.6.6.6")
        .field("X-Real-IP", "6.6.6.6")
        .act(
            "field Connection=X-Gone, field X-Gone=1, field Keep-Alive=timeout=9, field X-Stays=1",
        );
    let first = pay.send(gateway.port);
    let second = pay.send(gateway.port);
    assert!(second.replayed(), "naming the field takes no protection away");
    for answer in [&first, &second] {
        assert_eq!(
            (answer.get("x-gone"), answer.get("keep-alive"), answer.get("x-stays")),
            (None, None, Some("1"))
        );
    }
    let seen = upstream.seen().pop().unwrap();
    for name in ["x-private", "keep-alive", "proxy-authorization", "forwarded", "x-real-ip"] {
        assert_eq!(seen.get(name), None, "{name}");
    }
    // Of the hop-by-hop fields, only the client's support for trailers is passed on.
    assert_eq!((seen.get("te"), seen.get("connection")), (Some("trailers"), Some("te")));
    assert_eq!(seen.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.get("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.get("x-forwarded-host"), Some("pay.example"));
    assert_eq!(seen.get("host"), Some(format!("127.0.0.1:{}", upstream.port).as_str()));
    assert_eq!(seen.get("via"), Some("1.1 onceward"));
    assert_eq!(seen.get("traceparent").map(str::len), Some(55));
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_trace_is_continued() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    Request::pay("k", "{}").field("traceparent", trace).send(gateway.port);
    assert_eq!(upstream.seen()[0].get("traceparent"), Some(trace));
    until("its id to be the request id in the log", || {
        gateway.logs().contains("4bf92f3577b34da6a3ce929d0e0e4736")
    });
}

#[test]
fn the_hosts_name_can_be_kept() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::with(upstream.port, "[upstream]\nhost = \"preserve\"", crate::harness::ROUTES);
    Request::pay("k", "{}").send(gateway.port);
    assert_eq!(upstream.seen()[0].get("host"), Some("pay.example"));
}

#[test]
fn framing_is_recomputed() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let chunked = Request::pay("k", "")
        .field("Transfer-Encoding", "chunked")
        .body("3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n");
    assert_eq!(chunked.send(gateway.port).status, 201);
    let seen = upstream.seen().pop().unwrap();
    assert_eq!((seen.get("content-length"), seen.get("transfer-encoding")), (Some("5"), None));
    assert_eq!(seen.body, b"abcde");
}

#[test]
fn answers_without_a_body_are_replayed_without_one() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\nmethods = [\"POST\", \"HEAD\", \"DELETE\"]",
    );
    let mut connection = Connection::open(gateway.port);
    for (method, status) in [("DELETE", 204), ("POST", 304), ("HEAD", 200)] {
        let request = Request::new(method, "/v1/payments")
            .field("Idempotency-Key", &format!("{method}{status}"))
            .act(&format!("status {status}"));
        let first = connection.exchange(&request);
        let second = connection.exchange(&request);
        assert_eq!((first.status, second.status), (status, status));
        assert!(second.replayed() && second.body.is_empty());
        assert_eq!(first.get("content-length"), second.get("content-length"), "{method}");
    }
    assert_eq!(upstream.executed(), 3);
}

#[test]
fn a_body_over_the_limit_is_refused_and_nothing_is_forwarded() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::with(upstream.port, "[limits]\nrequest_body = \"1KiB\"", crate::harness::ROUTES);
    let mut connection = Connection::open(gateway.port);
    let large = connection.exchange(&Request::pay("k", &"x".repeat(100_000)));
    assert_eq!((large.status, large.problem().as_str()), (413, "body-too-large"));
    assert_eq!(
        connection.exchange(&Request::pay("k", "{}")).status,
        201,
        "the connection is still usable"
    );
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 5000, "y".repeat(5000));
    let unannounced = Request::pay("k2", "").field("Transfer-Encoding", "chunked").body(chunk);
    assert_eq!(connection.exchange(&unannounced).status, 413);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_replay_leaves_the_connection_in_step() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Connection::open(gateway.port);
    let smuggled = "POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: smuggled\r\n\r\n";
    let pay = Request::pay("k", smuggled);
    assert_eq!(connection.exchange(&pay).status, 201);
    for _ in 0..3 {
        assert!(connection.exchange(&pay).replayed(), "a body is never taken for the next request");
    }
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_header_block_over_the_limit_gets_431() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::with(upstream.port, "[limits]\nheader_bytes = \"8KiB\"", crate::harness::ROUTES);
    let large = Request::pay("k", "{}").field("X-Large", &"x".repeat(20_000)).send(gateway.port);
    assert_eq!((large.status, large.problem().as_str()), (431, "header-too-large"));
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn malformed_requests_get_400_and_reach_nobody() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for raw in [
        "POST /v1/payments HTTP/1.1\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/payments HTTP/1.1\r\nHost: a\r\nHost: b\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/payments HTTP/1.1\r\nHost: a b\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/../v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/x/%2e%2E/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "POST //v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: x\r\n\r\n",
        "NONSENSE\r\n\r\n",
    ] {
        let mut connection = Connection::open(gateway.port);
        connection.write(raw.as_bytes());
        assert_eq!(connection.read().status, 400, "{raw}");
    }
    for method in ["TRACE", "CONNECT"] {
        let mut connection = Connection::open(gateway.port);
        let target = if method == "CONNECT" { "a:1" } else { "/" };
        connection.write(format!("{method} {target} HTTP/1.1\r\nHost: a:1\r\n\r\n").as_bytes());
        assert_eq!(connection.read().status, 405, "{method}");
    }
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn an_encoded_path_is_protected_like_the_plain_one() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = |target: &str| Request::new("POST", target).field("Idempotency-Key", "k").json("{}");
    assert!(!pay("/v1/p%61yments").send(gateway.port).replayed());
    assert!(pay("/v1/p%61yments").send(gateway.port).replayed());
    assert_eq!(pay("/v1/payments/").send(gateway.port).problem(), "key-reused", "the same route");
    // Compared as received: another spelling of the path under the same key is another request.
    assert_eq!(pay("/v1/payments").send(gateway.port).problem(), "key-reused");
    assert_eq!(upstream.seen()[0].line, "POST /v1/p%61yments HTTP/1.1", "forwarded as received");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn expect_100_continue_works() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Connection::open(gateway.port);
    connection.write(
        b"POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    );
    std::thread::sleep(Duration::from_millis(100));
    connection.write(b"{}");
    assert_eq!(connection.read().status, 201);
}

#[test]
fn an_expectation_that_was_answered_here_is_not_sent_on() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for path in ["/v1/payments", "/elsewhere"] {
        let ask = |expect: &str| {
            let pay = Request::new("POST", path)
                .field("Idempotency-Key", expect)
                .field("Expect", expect)
                .json("{}");
            assert_eq!(pay.send(gateway.port).status, 201);
            upstream.seen().pop().unwrap().get("expect").map(str::to_owned)
        };
        assert_eq!(ask("100-Continue"), None, "{path}");
        assert_eq!(
            ask("something-else"),
            Some("something-else".into()),
            "{path}: nobody here can meet it"
        );
    }
}

#[test]
fn an_expectation_that_the_upstream_can_not_meet_leaves_the_key_free() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    assert_eq!(Request::pay("k", "{}").act("status 417").send(gateway.port).status, 417);
    let second = Request::pay("k", "{}").send(gateway.port);
    assert!(second.status == 201 && !second.replayed());
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn names_that_some_servers_read_as_those_of_the_gateway_reach_nobody() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/payments\"\nscope = { header = \"X-Tenant-Id\" }\n\
        [[routes]]\npath = \"/watched\"\nmode = \"shadow\"\nkey = { header = \"Cko-Idempotency-Key\" }\n\
        [[routes]]\npath = \"/off\"\nmode = \"off\"";
    let gateway = Gateway::with(upstream.port, "trusted_proxies = [\"127.0.0.1\"]", routes);
    let alike = [
        "x_forwarded_for",
        "x-forwarded_proto",
        "x_forwarded_host",
        "x_real_ip",
        "idempotency_key",
        "x_api_key",
        "x-tenant_id",
        "cko_idempotency_key",
        "content_type",
    ];
    let client = Streams::open(gateway.port);
    for path in ["/v1/payments", "/watched", "/off", "/elsewhere"] {
        let own = [("x-tenant-id", "alice"), ("x_other", "stays")];
        let all = || own.into_iter().chain(alike.map(|name| (name, "6.6.6.6")));
        let ask =
            all().fold(Request::new("POST", path), |ask, (name, value)| ask.field(name, value));
        let ask = ask.field("Idempotency-Key", &format!("1{path}")).json("{}");
        assert_eq!(ask.send(gateway.port).status, 201);
        let mut ask = Streams::pay(&format!("2{path}"), "{}", &all().collect::<Vec<_>>());
        *ask.uri_mut() = format!("http://pay.example{path}").parse().unwrap();
        assert_eq!(client.send(ask).status, 201);
        for seen in &upstream.seen()[upstream.executed() - 2..] {
            let found: Vec<_> = alike.iter().filter(|name| seen.get(name).is_some()).collect();
            assert!(found.is_empty(), "{path}: {found:?}");
            assert_eq!(
                (seen.get("x-tenant-id"), seen.get("x_other")),
                (Some("alice"), Some("stays")),
                "{path}"
            );
            assert_eq!(seen.get("x-forwarded-for"), Some("127.0.0.1"), "{path}");
        }
    }
    let unscoped = Request::pay("k", "{}").field("X_Tenant_Id", "alice").send(gateway.port);
    assert_eq!(unscoped.problem(), "scope-missing", "another spelling is not read");
}

#[test]
fn options_about_the_server_as_a_whole_are_sent_on_as_such() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Connection::open(gateway.port);
    let targets = ["http://a", "http://a/", "HTTPS://a:80", "*", "http://a?b", "http://a"];
    let hosts = ["a", "a", "a:80", "a", "a", "a"];
    let requests = targets
        .iter()
        .zip(hosts)
        .map(|(target, host)| format!("OPTIONS {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    connection.write(requests.collect::<String>().as_bytes());
    for _ in targets {
        assert_eq!(connection.read_for("OPTIONS").status, 201);
    }
    let lines: Vec<_> = upstream.seen().into_iter().map(|seen| seen.line).collect();
    let forwarded =
        ["*", "/", "*", "*", "/?b", "*"].map(|target| format!("OPTIONS {target} HTTP/1.1"));
    assert_eq!(lines, forwarded);
}

#[test]
fn max_forwards_is_counted_down_and_zero_is_answered_here() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let ask = |method: &str, count: &str| {
        Request::new(method, "/v1/payments").field("Max-Forwards", count)
    };
    let here = ask("OPTIONS", "0").send(gateway.port);
    assert_eq!((here.status, here.body.len()), (200, 0));
    assert!(here.get("allow").unwrap().contains("POST"));
    assert_eq!(ask("OPTIONS", "many").send(gateway.port).problem(), "request-malformed");
    assert_eq!(upstream.executed(), 0);
    assert_eq!(ask("OPTIONS", "2").send(gateway.port).status, 201);
    assert_eq!(upstream.seen()[0].get("max-forwards"), Some("1"));
    assert_eq!(
        ask("GET", "0").send(gateway.port).status,
        201,
        "it means nothing for other methods"
    );
}

#[test]
fn via_names_the_version_of_each_hop() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let http_10 = b"POST /v1/payments HTTP/1.0\r\nVia: 1.1 edge\r\nIdempotency-Key: a\r\nContent-Length: 0\r\n\r\n";
    let mut connection = Connection::open(gateway.port);
    connection.write(http_10);
    assert_eq!(connection.read().get("via"), Some("1.1 onceward"), "how the upstream answered");
    assert_eq!(Request::pay("b", "{}").send(gateway.port).status, 201);
    let client = Streams::open(gateway.port);
    let first = client.send(Streams::pay("c", "{}", &[]));
    let replay = client.send(Streams::pay("c", "{}", &[]));
    assert_eq!((first.get("via"), replay.get("via")), (Some("1.1 onceward"), Some("1.1 onceward")));
    let entries = |seen: &crate::harness::ReceivedRequest| {
        seen.fields
            .iter()
            .filter(|(name, _)| name == "via")
            .map(|(_, value)| value.clone())
            .collect::<Vec<_>>()
    };
    let seen: Vec<_> = upstream.seen().iter().map(entries).collect();
    assert_eq!(
        seen,
        [vec!["1.1 edge", "1.0 onceward"], vec!["1.1 onceward"], vec!["2.0 onceward"]]
    );
}

#[test]
fn silent_connections_are_closed_and_others_are_not_kept_waiting() {
    let upstream = Upstream::start();
    let settings =
        "[limits]\nheader_timeout = \"500ms\"\nbody_timeout = \"500ms\"\nidle_timeout = \"700ms\"";
    let gateway = Gateway::with(upstream.port, settings, crate::harness::ROUTES);
    let mut silent: Vec<_> = (0..100).map(|_| Connection::open(gateway.port)).collect();
    let mut slow_header = Connection::open(gateway.port);
    slow_header.write(b"POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempo");
    let mut slow_body = Connection::open(gateway.port);
    slow_body.write(b"POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 10\r\n\r\n{}");
    let mut idle = Connection::open(gateway.port);
    assert_eq!(
        idle.exchange(&Request::pay("healthy", "{}").act("wait 1500")).status,
        201,
        "a slow upstream is no silence"
    );
    let late = slow_body.read();
    assert_eq!((late.status, late.problem().as_str()), (408, "body-incomplete"));
    assert!(slow_header.is_closed() && idle.is_closed());
    assert!(silent.iter_mut().all(Connection::is_closed));
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn admin_connections_are_bounded_and_the_one_that_waits_for_longest_makes_room() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let alive = Request::new("GET", "/healthz").host("127.0.0.1");
    let mut open: Vec<Connection> = (0..160).map(|_| Connection::open(gateway.admin)).collect();
    for connection in &mut open {
        assert_eq!(connection.exchange(&alive).status, 200);
    }
    let mut more = Connection::open(gateway.admin);
    assert_eq!(more.exchange(&alive).status, 200);
    assert!(open[0].is_closed(), "it has been without a request for longest");
    assert_eq!(open[159].exchange(&alive).status, 200);
}

#[test]
fn connections_per_peer_are_bounded() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::with(upstream.port, "[limits]\nconnections_per_peer = 3", crate::harness::ROUTES);
    let mut kept: Vec<_> = (0..3).map(|_| Connection::open(gateway.port)).collect();
    for connection in &mut kept {
        assert_eq!(connection.exchange(&Request::new("GET", "/")).status, 201);
    }
    assert!(Connection::open(gateway.port).is_closed());
    kept.pop();
    until("a place to be free", || {
        let mut connection = Connection::open(gateway.port);
        connection.try_write(&Request::new("GET", "/").bytes())
            && connection.try_read("GET").is_some()
    });
}

#[test]
fn too_many_requests_at_once_are_refused_immediately() {
    let upstream = Upstream::start();
    let settings = "trusted_proxies = [\"127.0.0.1\"]\n[limits]\nin_flight = 2";
    let gateway = Gateway::with(upstream.port, settings, crate::harness::ROUTES);
    let running: Vec<_> = (0..2)
        .map(|n| Request::pay(&format!("k{n}"), "{}").act("hold").send_aside(gateway.port))
        .collect();
    upstream.reached(2);
    let answer = Request::pay("k3", "{}").send(gateway.port);
    assert_eq!((answer.status, answer.problem().as_str()), (503, "overloaded"));
    assert!(answer.get("retry-after").is_some());
    upstream.release();
    assert!(running.into_iter().all(|answer| answer.join().unwrap().status == 201));
}

#[test]
fn buffers_are_bounded_together() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "[limits]\nrequest_body = \"64KiB\"\nresponse_body = \"30KiB\"\nbuffered_bytes = \"100KiB\"",
        crate::harness::ROUTES,
    );
    let body = "x".repeat(60_000);
    let first = Request::pay("a", &body).act("hold").send_aside(gateway.port);
    upstream.reached(1);
    assert_eq!(Request::pay("b", &body).send(gateway.port).problem(), "overloaded");
    upstream.release();
    assert_eq!(first.join().unwrap().status, 201);
    until("the room to be free", || gateway.metric("onceward_buffered_bytes") == 0.0);
    assert_eq!(Request::pay("b", &body).send(gateway.port).status, 201);
}

#[test]
fn a_trusted_proxy_is_believed_about_its_client_and_others_are_not() {
    let upstream = Upstream::start();
    for (trusted, chain, scheme, host) in [
        ("127.0.0.0/8", "9.9.9.9, 8.8.8.8, 127.0.0.1", "https", "shop.example"),
        ("10.1.2.3", "127.0.0.1", "http", "pay.example"),
    ] {
        let gateway =
            Gateway::with(upstream.port, &format!("trusted_proxies = [\"{trusted}\"]"), "");
        let pay = Request::pay(trusted, "{}")
            .field("X-Forwarded-For", "9.9.9.9")
            .field("X-Forwarded-For", "8.8.8.8");
        let pay = pay
            .field("X-Forwarded-Proto", "https")
            .field("X-Forwarded-Host", "shop.example")
            .field("X-Real-IP", "9.9.9.9");
        assert_eq!(pay.send(gateway.port).status, 201);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.get("x-forwarded-for"), Some(chain), "{trusted}");
        assert_eq!(
            (seen.get("x-forwarded-proto"), seen.get("x-forwarded-host")),
            (Some(scheme), Some(host)),
            "{trusted}"
        );
        assert_eq!(seen.get("x-real-ip"), None, "{trusted}");
    }
}
