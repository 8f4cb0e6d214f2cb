//! Clients that use HTTP/2 with prior knowledge, with many requests on one connection.

use crate::harness::{Gateway, Pending, Request, Streams, Upstream, until};

#[test]
fn over_http_2_a_request_runs_once_and_is_replayed_or_refused() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let client = Streams::open(gateway.port);
    let first = client.send(Streams::pay("k", r#"{"amount":1}"#, &[]));
    assert!(first.status == 201 && !first.replayed(), "{first:?}");
    let second = client.send(Streams::pay("k", r#"{ "amount": 1 }"#, &[]));
    assert!(
        second.replayed() && second.body == first.body && second.get("date") == first.get("date"),
        "{second:?}"
    );
    let other = client.send(Streams::pay("k", r#"{"amount":2}"#, &[]));
    assert_eq!((other.status, other.problem().as_str()), (422, "key-reused"));
    let plain = Request::pay("k", r#"{"amount":1}"#).send(gateway.port);
    assert!(
        plain.replayed() && plain.body == first.body,
        "the protocol makes no other request: {plain:?}"
    );
    assert_eq!(upstream.executed(), 1);
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        (seen.line.as_str(), seen.get("x-forwarded-host")),
        ("POST /v1/payments HTTP/1.1", Some("pay.example"))
    );
    assert_eq!(seen.fields.iter().filter(|(name, _)| name == "host").count(), 1);
}

#[test]
fn streams_of_one_connection_run_at_once_and_know_each_others_keys() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let client = Streams::open(gateway.port);
    let pay = |n: usize| Streams::pay(&format!("k{n}"), "{}", &[("x-act", "hold")]);
    let held: Vec<_> = (0..20).map(|n| client.begin(pay(n))).collect();
    upstream.reached(20);
    let duplicates: Vec<_> = (0..20).map(|n| client.begin(pay(n))).collect();
    for duplicate in duplicates {
        let answer = duplicate.wait();
        assert_eq!((answer.status, answer.problem().as_str()), (409, "in-flight"));
    }
    assert_eq!(gateway.metric("onceward_connections"), 1.0);
    upstream.release();
    for (n, first) in held.into_iter().map(Pending::wait).enumerate() {
        let again = client.send(pay(n));
        assert!(first.status == 201 && again.replayed() && again.body == first.body, "{first:?}");
    }
    assert_eq!(upstream.executed(), 20);
}

#[test]
fn cookies_that_are_split_over_lines_are_one_caller() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let client = Streams::open(gateway.port);
    let first =
        client.send(Streams::pay("k", "{}", &[("cookie", "session=1"), ("cookie", "theme=dark")]));
    assert_eq!(first.status, 201);
    let seen = upstream.seen().pop().unwrap();
    let cookies: Vec<_> = seen
        .fields
        .iter()
        .filter(|(name, _)| name == "cookie")
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(cookies, ["session=1; theme=dark"]);
    let whole = Request::pay("k", "{}").field("Cookie", "session=1; theme=dark").send(gateway.port);
    assert!(whole.replayed() && whole.body == first.body, "{whole:?}");
    let part = client.send(Streams::pay("k", "{}", &[("cookie", "session=1")]));
    assert_eq!(part.problem(), "key-reused", "half of them are another caller");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_stream_that_is_reset_cancels_nothing() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let client = Streams::open(gateway.port);
    let leaving = client.begin(Streams::pay("k", "{}", &[("x-act", "hold")]));
    upstream.reached(1);
    leaving.reset();
    upstream.release();
    until("the answer to be stored", || client.send(Streams::pay("k", "{}", &[])).replayed());
    assert_eq!(upstream.executed(), 1);
}
