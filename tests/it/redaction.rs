//! Members of results that are redacted in the store and for every reader.

use crate::admin::cli;
use crate::harness::{Gateway, RedisServer, Request, Upstream, until};

const CANARY: &str = "4242-canary";

fn gateway(upstream: &Upstream, redis: &RedisServer, more: &str) -> Gateway {
    let routes = format!(
        "[[routes]]\npath = \"/v1/payments\"\nredact = [\"/card/number\", \"/items/0\"]\nuncertain_after = \"1s\"\n{more}"
    );
    Gateway::on(upstream.port, &redis.url(), "", &routes)
}

/// Returns everything that is stored in Redis.
fn stored(redis: &RedisServer) -> String {
    let keys = redis.cli(&["--scan", "--pattern", "onceward:*:r:*"]);
    assert!(!keys.is_empty(), "there is nothing");
    keys.lines().map(|key| redis.cli(&["get", key])).collect()
}

#[test]
fn redacted_members_are_stored_nowhere_and_the_first_answer_is_the_replay() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = gateway(&upstream, &redis, "");
    let pay = Request::pay("k", "{}")
        .act("body { \"card\": {\"number\":\"4242-canary\" }}, field ETag=\"1\", field X-Kept=yes");
    let (first, again) = (pay.send(gateway.port), pay.send(gateway.port));
    assert_eq!(
        (first.status, first.text().as_str()),
        (201, r#"{ "card": {"number":"[redacted]" }}"#)
    );
    assert!(again.replayed() && again.body == first.body);
    assert_eq!((first.get("etag"), first.get("x-kept")), (None, Some("yes")));
    assert_eq!((again.get("etag"), again.get("x-kept")), (None, Some("yes")));
    assert!(!stored(&redis).contains(CANARY), "{}", stored(&redis));
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_result_that_cannot_be_redacted_is_relayed_once_and_stored_nowhere() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = gateway(&upstream, &redis, "");
    for (key, script) in [
        ("encoded", "field Content-Encoding=br, body 4242-canary"),
        ("broken", "body {\"card\":{\"number\":\"4242-canary\""),
    ] {
        let pay = Request::pay(key, "{}").act(script);
        let first = pay.send(gateway.port);
        assert!(first.status == 201 && first.text().contains(CANARY), "{first:?}");
        let again = pay.send(gateway.port);
        assert_eq!((again.status, again.problem().as_str()), (409, "response-not-stored"), "{key}");
    }
    assert!(!stored(&redis).contains(CANARY));
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn results_of_probes_and_operators_are_redacted_too() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let probing =
        "on_uncertain = \"probe\"\nprobe = { path = \"/v1/payments/{key}\", absent = [\"404\"] }";
    upstream.answer_questions("status 200, body {\"card\":{\"number\":\"4242-canary\"}}");
    let asking = gateway(&upstream, &redis, probing);
    let lost = Request::pay("asked", "{}").act("drop");
    assert_eq!(lost.send(asking.port).status, 502);
    for _ in 0..2 {
        let found = lost.send(asking.port);
        assert!(found.replayed(), "{found:?}");
        assert_eq!(found.text(), r#"{"card":{"number":"[redacted]"}}"#);
    }
    drop(asking);

    let held = gateway(&upstream, &redis, "");
    let lost = Request::pay("by-hand", "{}").act("drop");
    let operation = lost.send(held.port).json()["operation"].as_str().unwrap().to_owned();
    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), r#"{"card":{"number":"4242-canary"}}"#).unwrap();
    let (code, output) = cli(
        &held,
        &["resolve", &operation, "--status", "201", "--body", body.path().to_str().unwrap()],
    );
    assert_eq!(code, 0, "{output}");
    until("the decision to be replayed", || lost.send(held.port).replayed());
    assert_eq!(lost.send(held.port).text(), r#"{"card":{"number":"[redacted]"}}"#);
    assert!(!stored(&redis).contains(CANARY));
}
