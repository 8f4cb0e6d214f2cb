//! Refusals that name where a request differs from the first one, and only to its caller.

use crate::harness::{Answer, Gateway, ROUTES, RedisServer, Request, Upstream};

/// The usual route, and one that does not explain.
fn routes() -> String {
    format!("{ROUTES}explain = true\n[[routes]]\npath = \"/v1/plain\"\n")
}

fn pay(caller: &str, body: &str) -> Request {
    Request::pay("k", body).field("Authorization", caller)
}

#[track_caller]
fn explained(answer: &Answer) -> (Vec<String>, String) {
    assert_eq!((answer.status, answer.problem().as_str()), (422, "key-reused"), "{answer:?}");
    let problem = answer.json();
    let differing = problem["differing"].as_array().unwrap_or_else(|| panic!("{problem}"));
    let opened = problem["original_opened_at"].as_str().unwrap();
    assert!(opened.starts_with("20") && opened.ends_with('Z'), "{opened}");
    (
        differing.iter().map(|at| at.as_str().unwrap().to_owned()).collect(),
        problem["original_state"].as_str().unwrap().to_owned(),
    )
}

#[track_caller]
fn names_no_difference(answer: &Answer) {
    assert_eq!((answer.status, answer.problem().as_str()), (422, "key-reused"), "{answer:?}");
    for word in ["differing", "original_state", "original_opened_at"] {
        assert!(answer.json().get(word).is_none(), "{answer:?}");
    }
}

#[test]
fn where_a_request_differs_is_named_to_the_first_ones_caller_and_never_what_was_there() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", &routes());
    let first = pay("alice", r#"{"amount":4200,"to":{"iban":"DE-canary"}}"#)
        .act("hold")
        .send_aside(gateway.port);
    upstream.reached(1);
    let changed = pay("alice", r#"{"to":{"iban":"DE-other","bic":"X"},"amount":4200.0}"#);
    let differing = vec!["/to/bic".to_owned(), "/to/iban".to_owned()];
    assert_eq!(explained(&changed.send(gateway.port)), (differing.clone(), "in_flight".to_owned()));
    upstream.release();
    assert_eq!(first.join().unwrap().status, 201);

    let refused = changed.send(gateway.port);
    assert_eq!(explained(&refused), (differing, "completed".to_owned()));
    assert!(!refused.text().contains("canary") && !refused.text().contains("4200"), "{refused:?}");
    let queried = Request::new("POST", "/v1/payments?dry=1")
        .field("Idempotency-Key", "k")
        .field("Authorization", "alice");
    let queried = queried.json(r#"{"amount":4200,"to":{"iban":"DE-canary"}}"#).send(gateway.port);
    assert_eq!(explained(&queried).0, ["query"]);

    names_no_difference(
        &pay("mallory", r#"{"amount":4200,"to":{"iban":"DE-canary"}}"#).send(gateway.port),
    );
    names_no_difference(&pay("mallory", r#"{"amount":1}"#).send(gateway.port));
    let stored = redis.cli(&["get", &redis.cli(&["--scan", "--pattern", "*:r:*"])]);
    assert!(stored.contains("/to/iban") && !stored.contains("canary"), "{stored}");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn what_is_too_large_to_be_kept_is_refused_with_less_to_say() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", &routes());
    let list = |last: usize| {
        format!("[{}]", (0..100).map(|n| (n + last).to_string()).collect::<Vec<_>>().join(","))
    };
    assert_eq!(pay("alice", &list(0)).send(gateway.port).status, 201);
    let refused = pay("alice", &list(1)).send(gateway.port);
    assert_eq!(refused.problem(), "key-reused");
    assert_eq!(
        (refused.json().get("differing"), refused.json()["original_state"].as_str()),
        (None, Some("completed"))
    );
}

#[test]
fn a_route_that_does_not_explain_keeps_nothing_and_names_no_difference() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", &routes());
    let plain = |body: &str| {
        Request::new("POST", "/v1/plain")
            .field("Idempotency-Key", "k")
            .json(body)
            .send(gateway.port)
    };
    assert_eq!(plain(r#"{"amount":1}"#).status, 201);
    names_no_difference(&plain(r#"{"amount":2}"#));
    let stored = redis.cli(&["get", &redis.cli(&["--scan", "--pattern", "*:r:*"])]);
    assert!(stored.contains("/v1/plain") && !stored.contains("/amount"), "{stored}");
}
