//! The lock of a resource: writers that wait for each other, and what a lost write leaves.

use std::time::Duration;

use serde_json::json;

use crate::admin::cli;
use crate::harness::{Documents, Gateway, RedisServer, Request, until};
use crate::resource_writes::{PATH, gateway, put, refusal, route, tag};

const OTHER: &str = "/v1/subscriptions/s2";

fn document() -> Documents {
    let upstream = Documents::start();
    upstream.put(PATH, json!({ "plan": 1 }));
    upstream
}

/// Two gateways on one store, in front of one upstream.
struct Pair {
    upstream: Documents,
    _redis: RedisServer,
    one: Gateway,
    two: Gateway,
}

impl Pair {
    fn start(resource: &str, more: &str) -> Pair {
        let (upstream, redis) = (document(), RedisServer::start());
        let routes = route(resource, more);
        let start = || Gateway::on(upstream.port, &redis.url(), "", &routes);
        let (one, two) = (start(), start());
        Pair { upstream, _redis: redis, one, two }
    }
}

fn write(plan: u64, tag: &str) -> Request {
    put(PATH, plan).field("If-Match", tag)
}

/// Waits until a write on the resource is answered with 200; returns the tag that it named.
fn until_writable(gateway: &Gateway, plan: u64) {
    until("the resource to be writable", || {
        write(plan, &tag(gateway, PATH)).send(gateway.port).status == 200
    });
}

#[test]
fn writers_wait_for_each_other_for_a_while() {
    let upstream = document();
    let gateway = gateway(&upstream, "lock_timeout = \"500ms\"", "");
    let slow = write(2, &tag(&gateway, PATH)).field("X-Fault", "hold").send_aside(gateway.port);
    until("the write to be held", || upstream.held() == 1);
    let busy = write(3, "*").field("Idempotency-Key", "k").send(gateway.port);
    assert_eq!(refusal(&busy), (409, "resource-busy".to_owned()));
    assert_eq!((&busy.json()["retryable"], busy.get("retry-after")), (&json!(true), Some("2")));
    assert_eq!(
        put(OTHER, 1).field("If-None-Match", "*").send(gateway.port).status,
        200,
        "another resource is free"
    );
    let waiting = write(4, "*").send_aside(gateway.port);
    upstream.release();
    assert_eq!((slow.join().unwrap().status, waiting.join().unwrap().status), (200, 200));
    let again = write(3, "*").field("Idempotency-Key", "k").send(gateway.port);
    assert!(again.status == 200 && !again.replayed(), "the refusal had released the key");
}

#[test]
fn all_spellings_routes_and_callers_share_the_lock_of_a_resource() {
    let upstream = document();
    let second = "[[routes]]\nname = \"second\"\npath = \"/v1/{*rest}\"\nmethods = [\"PATCH\"]\n\
                  resource = { lock_timeout = \"300ms\", if_match = \"optional\" }\n";
    let first = route("lock_timeout = \"300ms\"", "").replace(", \"PATCH\"", "");
    let gateway = Gateway::with(upstream.port, "", &format!("{first}{second}"));
    let holder = write(2, "*").field("Authorization", "Bearer one").field("X-Fault", "hold");
    let holder = holder.send_aside(gateway.port);
    until("the write to be held", || upstream.held() == 1);
    for path in
        [PATH, "/v1/subscriptions/s1/", "/v1/subscriptions/%731", "/v1/subscriptions/s1?a=1"]
    {
        for method in ["PUT", "PATCH"] {
            let other = Request::new(method, path).json("{}").field("If-Match", "*");
            let answer = other.field("Authorization", "Bearer two").send(gateway.port);
            assert_eq!(refusal(&answer), (409, "resource-busy".to_owned()), "{method} {path}");
        }
    }
    upstream.release();
    assert_eq!(holder.join().unwrap().status, 200);
}

#[test]
fn a_tenant_has_resources_of_its_own() {
    let upstream = document();
    let gateway = gateway(&upstream, "per = [\"header:X-Tenant\"], lock_timeout = \"300ms\"", "");
    let of = |tenant: &str| write(2, "*").field("X-Tenant", tenant);
    let holder = of("a").field("X-Fault", "hold").send_aside(gateway.port);
    until("the write to be held", || upstream.held() == 1);
    assert_eq!(of("a").send(gateway.port).status, 409);
    assert_eq!(of("b").send(gateway.port).status, 200);
    assert_eq!(refusal(&write(2, "*").send(gateway.port)), (400, "scope-missing".to_owned()));
    let twice = of("a").field("X-Tenant", "b").send(gateway.port);
    assert_eq!(refusal(&twice), (400, "scope-invalid".to_owned()));
    upstream.release();
    assert_eq!(holder.join().unwrap().status, 200);
}

#[test]
fn two_gateways_share_the_lock_and_hand_it_over() {
    let pair = Pair::start("versions = \"hash\"", "");
    let Pair { upstream, one, two, .. } = &pair;
    let held = write(2, &tag(one, PATH)).field("X-Fault", "hold").send_aside(one.port);
    until("the write to be held", || upstream.held() == 1);
    let stale = write(3, &tag(two, PATH)).send_aside(two.port);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!stale.is_finished(), "it waits");
    upstream.release();
    assert_eq!(held.join().unwrap().status, 200);
    assert_eq!(stale.join().unwrap().status, 412, "it looked after the first write");
    for plan in 4..12 {
        let gateway = if plan % 2 == 0 { one } else { two };
        assert_eq!(write(plan, &tag(gateway, PATH)).send(gateway.port).status, 200);
    }
    let ledger = upstream.ledger();
    assert!(ledger.windows(2).all(|pair| pair[0].after == pair[1].before), "{ledger:?}");
}

#[test]
fn while_a_write_is_in_doubt_others_are_refused_and_its_sender_is_not_sure() {
    for key in [None, Some("k")] {
        let upstream = document();
        let gateway = gateway(&upstream, "versions = \"hash\"", "");
        let current = tag(&gateway, PATH);
        let mut lost = write(2, &current).field("X-Fault", "late 500");
        if let Some(key) = key {
            lost = lost.field("Idempotency-Key", key);
        }
        let lost = lost.send(gateway.port);
        assert_eq!(refusal(&lost), (502, "outcome-uncertain".to_owned()));
        let operation = lost.json()["operation"].clone();
        let other = write(3, &current).send(gateway.port);
        assert_eq!(refusal(&other), (409, "resource-uncertain".to_owned()));
        assert_eq!(
            (&other.json()["operation"], &other.json()["retryable"]),
            (&operation, &json!(true))
        );
        assert!(other.get("retry-after").is_some());
        let (code, listed) = cli(&gateway, &["list", "--state", "uncertain"]);
        assert!(code == 0 && listed.contains(operation.as_str().unwrap()), "{listed}");
        // The lost write lands, and no earlier write was sent.
        until("the lost write to land", || upstream.get(PATH) == Some(json!({ "plan": 2 })));
        until("the time of the lost write to be over", || {
            write(4, &current).send(gateway.port).status == 412
        });
        assert_eq!(write(4, &tag(&gateway, PATH)).send(gateway.port).status, 200);
        assert_eq!(upstream.ledger().len(), 2);
    }
}

#[test]
fn a_decision_frees_the_resource_at_once() {
    let upstream = document();
    let gateway = Gateway::with(
        upstream.port,
        "",
        &route("versions = \"hash\"", "")
            .replace("uncertain_after = \"2s\"", "uncertain_after = \"1h\""),
    );
    let lost = write(2, "*").field("X-Fault", "lose").send(gateway.port);
    let operation = lost.json()["operation"].as_str().unwrap().to_owned();
    assert_eq!(write(3, "*").send(gateway.port).status, 409);
    let resolve = ["resolve", &operation, "--status", "200", "--reason", "seen"];
    let (code, printed) = cli(&gateway, &resolve);
    assert_eq!(code, 0, "{printed}");
    assert_eq!(write(3, "*").send(gateway.port).status, 200);
    let (_, listed) = cli(&gateway, &["list"]);
    assert!(!listed.contains("lock"), "the record of the lock is no operation: {listed}");
}

#[test]
fn a_retry_of_a_lost_write_is_not_taken_for_anothers_work() {
    let upstream = document();
    let gateway = gateway(&upstream, "versions = \"hash\"", "on_uncertain = \"forward\"");
    let current = tag(&gateway, PATH);
    let keyed = write(2, &current).field("Idempotency-Key", "k");
    let executed = keyed.clone().field("X-Fault", "lose").send(gateway.port);
    assert_eq!(executed.status, 502);
    // The version that it finds is its own work, so nothing is released and nothing is sent again.
    let again = keyed.send(gateway.port);
    assert_eq!(refusal(&again), (409, "outcome-uncertain".to_owned()));
    assert_eq!(write(3, "*").send(gateway.port).status, 409, "the lock is held all the while");
    assert_eq!(upstream.ledger().len(), 1);

    let upstream = document();
    let gateway = self::gateway(&upstream, "versions = \"hash\"", "on_uncertain = \"forward\"");
    let keyed = write(2, &tag(&gateway, PATH)).field("Idempotency-Key", "k");
    assert_eq!(keyed.clone().field("X-Fault", "drop").send(gateway.port).status, 502);
    let again = keyed.send(gateway.port);
    assert_eq!(again.status, 200, "the version is still the one that the writer names");
    assert_eq!(write(3, "*").send(gateway.port).status, 200, "the lock is free");
}

#[test]
fn a_lost_write_that_a_probe_does_not_find_is_stale_if_another_came_first() {
    let upstream = document();
    let probe = "on_uncertain = \"probe\"\nprobe = { method = \"GET\", path = \"/by-write/{key}\", \
                 found = [\"200\"], absent = [\"404\"] }";
    let gateway = gateway(&upstream, "versions = \"hash\"", probe);
    let keyed = write(2, &tag(&gateway, PATH)).field("Idempotency-Key", "k").field("X-Write", "k");
    assert_eq!(keyed.clone().field("X-Fault", "drop").send(gateway.port).status, 502);
    until_writable(&gateway, 3);
    // The version that it finds can't be its own work.
    assert_eq!(refusal(&keyed.send(gateway.port)), (412, "precondition-failed".to_owned()));
    assert_eq!(refusal(&keyed.send(gateway.port)), (412, "precondition-failed".to_owned()));
    assert_eq!(upstream.ledger().len(), 1);
}

#[test]
fn a_gateway_that_dies_while_it_looks_leaves_nothing() {
    let mut pair = Pair::start("versions = \"hash\"", "");
    let current = tag(&pair.one, PATH);
    let lost = write(2, &current).field("Idempotency-Key", "k").field("X-Read-Fault", "hold");
    let lost = lost.send_aside(pair.one.port);
    until("the look to be held", || pair.upstream.held() == 1);
    pair.one.kill();
    pair.upstream.release();
    drop(lost);
    let Pair { two, upstream, .. } = &pair;
    until("the key to be released", || {
        let again = write(2, &current).field("Idempotency-Key", "k").send(two.port);
        let is_written = again.status == 200;
        assert!(is_written || again.problem() != "outcome-uncertain", "nothing was sent");
        is_written
    });
    assert_eq!(upstream.ledger().len(), 1);
}

#[test]
fn a_gateway_that_dies_while_it_waits_for_the_lock_leaves_nothing() {
    let mut pair = Pair::start("lock_timeout = \"30s\"", "");
    let current = tag(&pair.two, PATH);
    let holder = write(2, &current).field("X-Fault", "hold").send_aside(pair.two.port);
    until("the write to be held", || pair.upstream.held() == 1);
    let waiting = write(3, &current).field("Idempotency-Key", "k").send_aside(pair.one.port);
    until("the key to be claimed", || {
        cli(&pair.two, &["list", "--state", "in_flight"]).1.matches("op_").count() == 2
    });
    pair.one.kill();
    drop(waiting);
    until("the key to be released", || {
        let of = |state: &str| cli(&pair.two, &["list", "--state", state]).1.matches("op_").count();
        assert_eq!(of("uncertain"), 0, "nothing was sent");
        of("in_flight") == 1
    });
    pair.upstream.release();
    assert_eq!(holder.join().unwrap().status, 200);
}

#[test]
fn a_gateway_that_dies_after_it_sent_holds_the_resource_until_the_write_has_had_its_time() {
    for key in [None, Some("k")] {
        let mut pair = Pair::start("versions = \"hash\"", "");
        let current = tag(&pair.one, PATH);
        let mut lost = write(2, &current).field("X-Fault", "slow 4000");
        if let Some(key) = key {
            lost = lost.field("Idempotency-Key", key);
        }
        let lost = lost.send_aside(pair.one.port);
        until("the write to arrive", || {
            pair.upstream.seen().iter().any(|seen| seen.line.starts_with("PUT"))
        });
        pair.one.kill();
        drop(lost);
        let Pair { two, upstream, .. } = &pair;
        until("others to be refused", || {
            let other = write(3, &current).send(two.port);
            assert_ne!(other.status, 200, "the lost write has not landed");
            other.problem() == "resource-uncertain"
        });
        until_writable(two, 5);
        let ledger = upstream.ledger();
        assert_eq!(ledger[0].after, Some(json!({ "plan": 2 })), "{ledger:?}");
        assert!(ledger.windows(2).all(|pair| pair[0].after == pair[1].before), "{ledger:?}");
    }
}

#[test]
fn a_gateway_that_is_stopped_while_it_looks_sends_nothing_when_it_goes_on() {
    let pair = Pair::start("versions = \"hash\"", "");
    let current = tag(&pair.one, PATH);
    let stopped = write(2, &current).field("Idempotency-Key", "k").field("X-Read-Fault", "hold");
    let stopped = stopped.send_aside(pair.one.port);
    until("the look to be held", || pair.upstream.held() == 1);
    pair.one.signal("STOP");
    pair.upstream.release();
    until_writable(&pair.two, 7);
    pair.one.signal("CONT");
    let answer = stopped.join().unwrap();
    let ledger = pair.upstream.ledger();
    assert!([409, 412, 503].contains(&answer.status), "{} {ledger:?}", answer.text());
    assert_eq!(ledger.len(), 1, "{ledger:?}");
    assert_eq!(ledger[0].after, Some(json!({ "plan": 7 })));
}
