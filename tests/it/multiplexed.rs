//! HTTP/2 upstreams that allow few requests at once. Further requests wait, can be given up as
//! unsent, and are never sent later.

use crate::harness::frame_origin::{INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS};
use crate::harness::frames::{SETTINGS, WINDOW_UPDATE, frame};
use crate::harness::{Answer, Authority, FrameOrigin, Gateway, Origin, Request, Upstream, until};

const HERE: &str = "127.0.0.1";

/// Starts an upstream with settings, and a gateway with more keys under [upstream].
type Start = fn(&[(u16, u32)], &str) -> (Authority, FrameOrigin, Gateway);

/// Starts both without TLS; the gateway is configured for HTTP/2 with prior knowledge.
fn plain_origin(settings: &[(u16, u32)], upstream: &str) -> (Authority, FrameOrigin, Gateway) {
    let origin = FrameOrigin::plain(settings);
    let settings = format!("[upstream]\nhttp2 = \"prior-knowledge\"\n{upstream}");
    let gateway = Gateway::to(&format!("http://{HERE}:{}", origin.port), &settings);
    (Authority::new(), origin, gateway)
}

/// Starts an upstream with these settings on each connection, and a gateway in front of it.
fn origin(settings: &[(u16, u32)], upstream: &str) -> (Authority, FrameOrigin, Gateway) {
    let authority = Authority::new();
    let origin = FrameOrigin::start(authority.server(HERE, &["h2"]), settings);
    let ca_file = authority.ca_file().display();
    let settings = format!("[upstream]\nca_file = \"{ca_file}\"\n{upstream}");
    let gateway = Gateway::to(&format!("https://{HERE}:{}", origin.port), &settings);
    (authority, origin, gateway)
}

/// A payment with a body, or without one: then its header block is the whole request.
fn pay(key: &str, with_body: bool) -> Request {
    if with_body {
        Request::pay(key, "{}")
    } else {
        Request::new("POST", "/v1/payments").field("Idempotency-Key", key)
    }
}

#[track_caller]
fn is_unreachable(answer: &Answer) {
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (502, "upstream-unreachable"),
        "{answer:?}"
    );
    assert_eq!(answer.get("x-should-retry"), Some("true"));
}

#[track_caller]
fn runs_once_more(gateway: &Gateway, origin: &FrameOrigin, pay: &Request) {
    let before = origin.executed();
    let first = pay.send(gateway.port);
    assert!(first.status == 200 && !first.replayed(), "{first:?}");
    let second = pay.send(gateway.port);
    assert!(second.replayed() && second.body == first.body, "{second:?}");
    assert_eq!(origin.executed(), before + 1);
}

#[test]
fn trailers_of_a_request_are_dropped_on_the_way_to_an_http_2_upstream() {
    let authority = Authority::new();
    let origin = Origin::start(authority.server(HERE, &["h2"]));
    let settings = format!("[upstream]\nca_file = \"{}\"\n", authority.ca_file().display());
    let gateway = Gateway::to(&format!("https://{HERE}:{}", origin.port), &settings);
    let chunked = |request: Request| {
        let body = "3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n";
        request.field("Transfer-Encoding", "chunked").body(body).send(gateway.port)
    };
    // One request that is buffered, and one that streams.
    for request in [Request::pay("k", ""), Request::new("POST", "/others")] {
        assert_eq!(chunked(request).status, 201);
        let seen = origin.seen().pop().unwrap();
        assert_eq!(seen.body, b"abcde");
        let names: Vec<_> = seen.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert!(!names.iter().any(|name| name.contains("trailer")), "{names:?}");
    }
    assert_eq!(origin.executed(), 2);
}

#[test]
fn requests_beyond_the_limit_of_a_connection_get_others_and_run_once_each() {
    for (limit, with_body, origin) in [
        (1, true, origin as Start),
        (1, false, plain_origin),
        (2, true, plain_origin),
        (2, false, origin),
    ] {
        let (_authority, origin, gateway) = origin(&[(MAX_CONCURRENT_STREAMS, limit)], "");
        origin.hold();
        let all: Vec<_> = (0..7).map(|n| pay(&format!("k{n}"), with_body)).collect();
        let answers: Vec<_> = all.iter().map(|pay| pay.send_aside(gateway.port)).collect();
        origin.reached(7);
        assert!(origin.most_open() <= limit as usize, "limit {limit}, with body: {with_body}");
        origin.release();
        for (pay, first) in all.iter().zip(answers) {
            let (first, second) = (first.join().unwrap(), pay.send(gateway.port));
            assert!(
                first.status == 200 && second.replayed() && second.body == first.body,
                "{first:?} {second:?}"
            );
        }
        assert_eq!(origin.arrivals().len(), 7);
        let connections = origin.connections();
        runs_once_more(&gateway, &origin, &pay("next", with_body));
        assert!(origin.arrivals().pop().unwrap().connection < connections, "what stands is used");
    }
}

#[test]
fn a_request_that_finds_no_free_stream_is_given_up_unsent_and_its_retry_runs_once() {
    for (limit, with_body, origin) in [
        (1, true, origin as Start),
        (1, false, origin),
        (2, false, origin),
        (1, true, plain_origin),
        (1, false, plain_origin),
    ] {
        let (_authority, origin, gateway) =
            origin(&[(MAX_CONCURRENT_STREAMS, limit)], "connect_timeout = \"1s\"");
        origin.hold();
        let mut held = vec![];
        for n in 1..=limit as usize {
            held.push(pay(&format!("held{n}"), with_body).send_aside(gateway.port));
            origin.reached(n);
        }
        assert_eq!((origin.connections(), origin.most_open()), (1, limit as usize));
        origin.take_connections(false);
        let beyond = pay("beyond", with_body);
        is_unreachable(&beyond.send(gateway.port));
        origin.release();
        assert!(held.into_iter().all(|answer| answer.join().unwrap().status == 200));
        assert_eq!(
            origin.arrivals().len(),
            limit as usize,
            "it does not leave when a stream is free"
        );
        origin.take_connections(true);
        runs_once_more(&gateway, &origin, &beyond);
        assert_eq!(origin.arrivals().len(), limit as usize + 1);
    }
}

#[test]
fn a_connection_without_settings_or_with_a_limit_of_zero_takes_nothing() {
    for (silent, with_body, origin) in [
        (true, true, origin as Start),
        (true, false, origin),
        (false, true, origin),
        (false, false, origin),
        (true, true, plain_origin),
        (false, false, plain_origin),
    ] {
        let (_authority, origin, gateway) =
            origin(&[(MAX_CONCURRENT_STREAMS, 0)], "connect_timeout = \"400ms\"");
        origin.stay_silent(silent);
        let early = pay("early", with_body);
        is_unreachable(&early.send(gateway.port));
        until("the connection to be given up", || origin.ended() == origin.connections());
        origin.stay_silent(false);
        origin.write_to_all(&frame(SETTINGS, 0, 0, &[]));
        assert_eq!(origin.arrivals().len(), 0);
        origin.begin_with(&[]);
        runs_once_more(&gateway, &origin, &early);
        assert_eq!(origin.arrivals().len(), 1);
    }
}

#[test]
fn settings_that_come_late_are_waited_for() {
    let (_authority, origin, gateway) = origin(&[], "connect_timeout = \"20s\"");
    origin.stay_silent(true);
    let first = pay("k", false).send_aside(gateway.port);
    until("a connection", || origin.connections() == 1);
    assert_eq!(origin.arrivals().len(), 0);
    origin.announce(&[(MAX_CONCURRENT_STREAMS, 1)]);
    assert_eq!(first.join().unwrap().status, 200);
    assert_eq!((origin.executed(), origin.connections()), (1, 1));
}

#[test]
fn a_limit_that_is_lowered_counts_from_then_on() {
    let (_authority, origin, gateway) = origin(&[(MAX_CONCURRENT_STREAMS, 3)], "");
    origin.hold();
    let first = pay("first", false).send_aside(gateway.port);
    origin.reached(1);
    origin.announce(&[(MAX_CONCURRENT_STREAMS, 1)]);
    let second = pay("second", false).send_aside(gateway.port);
    origin.reached(2);
    assert_eq!((origin.connections(), origin.most_open()), (2, 1));
    origin.announce(&[(MAX_CONCURRENT_STREAMS, 0)]);
    origin.release();
    assert!(first.join().unwrap().status == 200 && second.join().unwrap().status == 200);
    origin.begin_with(&[(MAX_CONCURRENT_STREAMS, 1)]);
    runs_once_more(&gateway, &origin, &pay("third", false));
    let last = origin.arrivals().pop().unwrap();
    assert_eq!(last.connection, 2, "neither of the two takes one more");
}

#[test]
fn the_rest_of_a_body_never_leaves_after_the_attempt_was_given_up() {
    // The peer opens no window, or it reads nothing from a socket with buffers smaller than the
    // body.
    for (window, origin) in
        [(true, origin as Start), (false, origin), (true, plain_origin), (false, plain_origin)]
    {
        let settings: &[(u16, u32)] =
            if window { &[(INITIAL_WINDOW_SIZE, 5)] } else { &[(INITIAL_WINDOW_SIZE, 1 << 30)] };
        let more = "response_timeout = \"1s\"\n[limits]\nrequest_body = \"32MiB\"";
        let (_authority, origin, gateway) = origin(settings, more);
        runs_once_more(&gateway, &origin, &pay("first", false));
        origin.write_to_all(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes()));
        origin.read(window);
        let body = format!("\"{}\"", "x".repeat(if window { 100 } else { 24 << 20 }));
        let lost = Request::pay("k", &body).send(gateway.port);
        assert_eq!((lost.status, lost.problem().as_str()), (504, "outcome-uncertain"));
        origin.read(true);
        let wide = (1u32 << 20).to_be_bytes();
        origin.write_to_all(
            &[frame(WINDOW_UPDATE, 0, 3, &wide), frame(WINDOW_UPDATE, 0, 0, &wide)].concat(),
        );
        until("it to be broken off", || {
            origin.arrivals().iter().any(|arrival| arrival.reset) || origin.ended() == 1
        });
        assert_eq!(
            origin.executed(),
            1,
            "{:?}",
            origin.arrivals().iter().map(|arrival| arrival.body.len()).collect::<Vec<_>>()
        );
        assert_eq!(Request::pay("k", &body).send(gateway.port).status, 409);
    }
}

#[test]
fn prior_knowledge_of_http_2_needs_no_tls_and_an_upstream_that_does_not_speak_it_gets_no_request() {
    let (_authority, origin, gateway) = plain_origin(&[], "");
    runs_once_more(&gateway, &origin, &pay("k", true));
    // Unprotected requests use another connection, because their clients could make the upstream
    // end it.
    assert_eq!(Request::new("GET", "/others").send(gateway.port).text(), "answer 1");
    assert_eq!(Request::new("GET", "/others").send(gateway.port).status, 200);
    runs_once_more(&gateway, &origin, &pay("other", true));
    let connections: Vec<_> = origin.arrivals().iter().map(|arrival| arrival.connection).collect();
    assert_eq!(connections, [0, 1, 1, 0]);

    let old = Upstream::start();
    let gateway = Gateway::to(
        &format!("http://{HERE}:{}", old.port),
        "[upstream]\nhttp2 = \"prior-knowledge\"",
    );
    is_unreachable(&pay("k", true).send(gateway.port));
}

#[test]
fn a_connection_that_is_too_old_finishes_its_requests_and_takes_no_other() {
    for origin in [origin as Start, plain_origin] {
        let (_authority, origin, gateway) = origin(&[], "max_connection_age = \"1s\"");
        origin.hold();
        let held = pay("held", true).send_aside(gateway.port);
        origin.reached(1);
        let mut others = vec![];
        until("a new connection", || {
            others.push(pay(&format!("k{}", others.len()), true).send_aside(gateway.port));
            origin.reached(1 + others.len());
            origin.connections() == 2
        });
        let last = origin.arrivals().pop().unwrap();
        assert_eq!(last.connection, 1);
        assert_eq!(origin.ended(), 0, "the old one is in use");
        origin.release();
        assert_eq!(held.join().unwrap().status, 200);
        assert!(others.into_iter().all(|answer| answer.join().unwrap().status == 200));
        until("the old one to end", || origin.ended() >= 1);
    }
}

#[test]
fn a_connection_that_is_idle_for_too_long_ends_and_takes_no_request_any_more() {
    for origin in [origin as Start, plain_origin] {
        let (_authority, origin, gateway) = origin(&[], "idle_timeout = \"200ms\"");
        runs_once_more(&gateway, &origin, &pay("a", true));
        until("the idle connection to end", || origin.ended() == 1);
        runs_once_more(&gateway, &origin, &pay("b", true));
        assert_eq!(origin.connections(), 2);
    }
}
