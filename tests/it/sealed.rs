//! Results at rest, sealed.

use std::process::Command;

use crate::harness::{Gateway, RedisServer, Request, Upstream, until};

const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn gateway(upstream: &Upstream, store: &str, keys: &str) -> Gateway {
    let settings =
        if keys.is_empty() { String::new() } else { format!("[encryption]\nkeys = [{keys}]\n") };
    let env = |command: &mut Command| {
        command.env("KEY_OLD", OLD).env("KEY_NEW", NEW);
    };
    let gateway =
        Gateway::launch(&format!("http://127.0.0.1:{}", upstream.port), store, &settings, "", env);
    until("the gateway to be ready", || gateway.is_ready());
    gateway
}

const OLD_KEY: &str = r#"{ id = "old", env = "KEY_OLD" }"#;
const NEW_KEY: &str = r#"{ id = "new", env = "KEY_NEW" }"#;

#[test]
fn no_card_number_lies_in_the_store_and_keys_can_be_rotated() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let pay = |key: &str| Request::pay(key, "{}").act("field X-Card=4242-canary, body 4242-canary");
    let first = gateway(&upstream, &redis.url(), OLD_KEY);
    let answer = pay("k").send(first.port);
    assert!(answer.status == 201 && pay("k").send(first.port).replayed());
    let key = redis.cli(&["--scan", "--pattern", "*:r:*"]);
    let stored = redis.cli(&["get", &key]);
    assert!(!stored.contains("canary") && stored.contains("old"), "{stored}");
    drop(first);

    let rotated = gateway(&upstream, &redis.url(), &format!("{NEW_KEY}, {OLD_KEY}"));
    let again = pay("k").send(rotated.port);
    assert!(
        again.replayed() && again.body == answer.body && again.get("x-card") == Some("4242-canary"),
        "{again:?}"
    );
    assert_eq!(pay("l").send(rotated.port).status, 201);
    drop(rotated);

    for keys in [NEW_KEY, ""] {
        let forgetful = gateway(&upstream, &redis.url(), keys);
        let refused = pay("k").send(forgetful.port);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (503, "store-unavailable"),
            "{keys}"
        );
    }
    assert_eq!(upstream.executed(), 2, "what can't be opened is not run again");
}

#[test]
fn an_invalid_key_is_reported_before_anything_starts() {
    let upstream = Upstream::start();
    let url = format!("http://127.0.0.1:{}", upstream.port);
    for (value, reason) in [
        (None, "KEY_OLD is not set"),
        (Some("c2hvcnQ="), "32 bytes in base64"),
        (Some("!"), "32 bytes in base64"),
    ] {
        let settings = format!("[encryption]\nkeys = [{OLD_KEY}]\n");
        let mut refused = Gateway::launch(&url, "memory:", &settings, "", |command| {
            value.into_iter().for_each(|value| _ = command.env("KEY_OLD", value));
        });
        assert_eq!(refused.wait().code(), Some(2));
        until("the reason", || refused.logs().contains(reason));
    }
}
