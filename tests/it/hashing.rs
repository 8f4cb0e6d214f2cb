//! Keys under secrets: no key is stored in the clear, and secrets are rotated while gateways run.

use std::process::Command;

use crate::harness::{Answer, Gateway, ROUTES, RedisServer, Request, Upstream, until};

const OLD: &str = "canary-old-secret-of-more-than-32-bytes";
const NEW: &str = "canary-new-secret-of-more-than-32-bytes";

const OLD_SECRET: &str = r#"{ env = "SECRET_OLD" }"#;
const NEW_SECRET: &str = r#"{ env = "SECRET_NEW" }"#;

/// Builds the `[hashing]` table with secrets in this order.
fn secrets(order: &[&str]) -> String {
    format!("[hashing]\nsecrets = [{}]\n", order.join(", "))
}

fn gateway(upstream: &Upstream, store: &str, order: &[&str]) -> Gateway {
    let env = |command: &mut Command| {
        command.env("SECRET_OLD", OLD).env("SECRET_NEW", NEW);
    };
    let url = format!("http://127.0.0.1:{}", upstream.port);
    let gateway = Gateway::launch(&url, store, &secrets(order), ROUTES, env);
    until("the gateway to be ready", || gateway.is_ready());
    gateway
}

/// Sends until the answer is not "try again later".
fn insist(request: &Request, port: u16) -> Answer {
    let mut answer = request.send(port);
    until("an answer that is one", || {
        if answer.status == 409 && answer.problem() == "in-flight" {
            answer = request.send(port);
            return false;
        }
        true
    });
    answer
}

#[test]
fn gateways_with_opposite_secrets_run_each_key_once() {
    const KEYS: usize = 40;
    const CLIENTS: usize = 4;
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let (a, b) = (
        gateway(&upstream, &redis.url(), &[OLD_SECRET, NEW_SECRET]),
        gateway(&upstream, &redis.url(), &[NEW_SECRET, OLD_SECRET]),
    );
    for n in 0..KEYS {
        let together = std::sync::Arc::new(std::sync::Barrier::new(CLIENTS));
        let clients = (0..CLIENTS).map(|client| {
            let (port, together) = ([a.port, b.port][client % 2], together.clone());
            let pay = Request::pay(&format!("k{n}"), "{}").act("wait 5");
            std::thread::spawn(move || {
                together.wait();
                insist(&pay, port)
            })
        });
        let answers: Vec<Answer> =
            clients.collect::<Vec<_>>().into_iter().map(|client| client.join().unwrap()).collect();
        assert!(
            answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body),
            "{answers:?}"
        );
    }
    let by_key = upstream.by_key();
    assert!(by_key.len() == KEYS && by_key.values().all(|executed| *executed == 1), "{by_key:?}");
}

#[test]
fn a_secret_is_rotated_and_everything_goes_on_being_replayed() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let pay = Request::pay("k", "{}").field("Authorization", "alice");
    let lost = Request::pay("lost", "{}").act("drop");
    let first = gateway(&upstream, &redis.url(), &[OLD_SECRET]);
    let answer = pay.send(first.port);
    let uncertain = lost.send(first.port).json()["operation"].as_str().unwrap().to_owned();
    let second = gateway(&upstream, &redis.url(), &[OLD_SECRET, NEW_SECRET]);
    drop(first);
    let third = gateway(&upstream, &redis.url(), &[NEW_SECRET, OLD_SECRET]);
    for (n, gateway) in [&second, &third].into_iter().enumerate() {
        let again = pay.send(gateway.port);
        assert!(again.replayed() && again.body == answer.body, "{again:?}");
        assert_eq!(
            Request::pay("k", "{}").field("Authorization", "eve").send(gateway.port).problem(),
            "key-reused"
        );
        let held = lost.send(gateway.port);
        assert_eq!(
            (held.problem().as_str(), held.json()["operation"].as_str()),
            ("outcome-uncertain", Some(&*uncertain))
        );
        // Each gateway finds the records that the other writes.
        let fresh = Request::pay(&format!("fresh-{n}"), "{}");
        assert_eq!(fresh.send(gateway.port).status, 201);
        assert!(fresh.send(second.port).replayed() && fresh.send(third.port).replayed());
    }
    drop(second);
    let last = gateway(&upstream, &redis.url(), &[NEW_SECRET]);
    assert!(Request::pay("fresh-1", "{}").send(last.port).replayed(), "what the new secret wrote");
    assert!(last.logs().contains("no longer looked up"));
    assert_eq!(upstream.executed(), 4);
}

#[test]
fn no_key_and_no_secret_lies_in_the_store_or_in_a_log() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = gateway(&upstream, &redis.url(), &[OLD_SECRET, NEW_SECRET]);
    let pay = Request::pay("canary-key", r#"{"card":"canary-body"}"#)
        .field("Authorization", "canary-token");
    assert_eq!(pay.send(gateway.port).status, 201);
    assert_eq!(pay.send(gateway.port).status, 201);
    let keys = redis.cli(&["--scan", "--pattern", "*"]);
    assert!(
        keys.lines().any(|key| key.ends_with(":identities"))
            && keys.lines().any(|key| key.contains(":r:")),
        "{keys}"
    );
    assert!(!keys.contains("canary"), "{keys}");
    for key in keys.lines().filter(|key| redis.cli(&["type", key]) == "string") {
        assert!(!redis.cli(&["get", key]).contains("canary"), "{key}");
    }
    // The plain hash of the same operation, which an attacker who guesses keys would look for.
    let mut plain = Gateway::on(upstream.port, "memory:", "", ROUTES);
    assert_eq!(pay.send(plain.port).status, 201);
    let listed = |gateway: &Gateway| {
        gateway.ask("GET", "/v1/operations").json()["operations"][0]["operation"].clone()
    };
    assert_ne!(listed(&plain), listed(&gateway));
    plain.kill();
    assert!(!gateway.logs().contains("canary"));
}

#[test]
fn a_missing_or_short_secret_is_reported_before_anything_starts() {
    let url = "http://127.0.0.1:9";
    for (value, reason) in
        [(None, "SECRET_OLD is not set"), (Some("canary-too-short"), "at least 32 bytes")]
    {
        let mut refused =
            Gateway::launch(url, "memory:", &secrets(&[OLD_SECRET]), ROUTES, |command| {
                value.into_iter().for_each(|value| _ = command.env("SECRET_OLD", value));
            });
        assert_eq!(refused.wait().code(), Some(2));
        until("the reason", || refused.logs().contains(reason));
        assert!(!refused.logs().contains("canary"));
    }
}
