//! Replays from the local cache equal those from the store, and end when the store's record is
//! gone.

use crate::harness::{Answer, Gateway, RedisServer, Request, Upstream, Watched, until};

const ROUTE: &str = "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nlease = \"2s\"\n";
const CACHE: &str = "[store]\nlocal_cache = \"1MiB\"\n";

fn hits(gateway: &Gateway) -> f64 {
    gateway.metric("onceward_local_cache_hits_total")
}

/// Sends duplicates until one is answered from the cache. Each must replay the first answer.
fn kept(gateway: &Gateway, pay: &Request, first: &Answer) {
    until("a replay from the process", || {
        let before = hits(gateway);
        let again = pay.send(gateway.port);
        assert!(
            again.replayed() && again.status == first.status && again.body == first.body,
            "{again:?}"
        );
        hits(gateway) > before
    });
}

#[test]
fn replays_from_the_process_are_the_first_answer_and_cost_the_store_nothing() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), CACHE, ROUTE);
    let pay = Request::pay("k", "{}").field("Authorization", "alice");
    let first = pay.send(gateway.port);
    kept(&gateway, &pay, &first);
    redis.cli(&["config", "resetstat"]);
    for _ in 0..50 {
        let again = pay.send(gateway.port);
        assert!(
            again.replayed() && again.body == first.body && again.get("date") == first.get("date"),
            "{again:?}"
        );
    }
    // A caller without access to the record doesn't get it from the cache either.
    let stranger = Request::pay("k", "{}").field("Authorization", "mallory").send(gateway.port);
    let other =
        Request::pay("k", "{\"amount\":1}").field("Authorization", "alice").send(gateway.port);
    assert_eq!(
        (stranger.problem().as_str(), other.problem().as_str()),
        ("key-reused", "key-reused")
    );
    let asked = redis.cli(&["info", "commandstats"]);
    // The sweeper reads the index without a script.
    assert!(!asked.contains("cmdstat_evalsha"), "{asked}");
    assert!(
        gateway.metric("onceward_local_cache_entries") == 1.0
            && gateway.metric("onceward_local_cache_bytes") > 500.0
    );
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn what_is_deleted_or_flushed_in_the_store_is_not_replayed_from_the_process() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), CACHE, ROUTE);
    for (n, wipe) in [(1, false), (2, true)] {
        let pay = Request::pay(&format!("k{n}"), "{}");
        let first = pay.send(gateway.port);
        kept(&gateway, &pay, &first);
        match wipe {
            true => redis.cli(&["flushall"]),
            false => redis.cli(&["del", &redis.cli(&["--scan", "--pattern", "onceward:*:r:*"])]),
        };
        until("it to be dropped", || gateway.metric("onceward_local_cache_entries") == 0.0);
        assert_eq!(upstream.executed(), n);
    }
}

#[test]
fn after_its_retention_nothing_is_replayed_from_the_process() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let short = format!("{ROUTE}retention = \"3s\"\n");
    let gateway = Gateway::on(upstream.port, &redis.url(), CACHE, &short);
    let pay = Request::pay("k", "{}");
    let first = pay.send(gateway.port);
    kept(&gateway, &pay, &first);
    until("the key to be new", || !pay.send(gateway.port).replayed());
    assert_eq!(
        redis.cli(&["--scan", "--pattern", "onceward:*:r:*"]).lines().count(),
        1,
        "its second result"
    );
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_store_that_hangs_is_not_answered_for_longer_than_a_second_or_so() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), CACHE, ROUTE);
    let pay = Request::pay("k", "{}");
    let first = pay.send(gateway.port);
    kept(&gateway, &pay, &first);
    redis.signal("STOP");
    until("replays to be refused", || pay.send(gateway.port).status == 503);
    redis.signal("CONT");
    until("the store to be used again", || pay.send(gateway.port).replayed());
    kept(&gateway, &pay, &first);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_new_primary_is_listened_to_after_a_failover() {
    let (watched, upstream) = (Watched::start(), Upstream::start());
    let gateway = Gateway::on(upstream.port, &watched.url(), CACHE, ROUTE);
    let pay = Request::pay("k", "{}");
    let first = pay.send(gateway.port);
    kept(&gateway, &pay, &first);
    watched.fail_over();
    until("what was kept to be dropped", || {
        gateway.metric("onceward_local_cache_losses_total") >= 1.0
    });
    until("the new primary to be used", || pay.send(gateway.port).replayed());
    kept(&gateway, &pay, &first);
    // Invalidations now come from the new primary.
    let primary = watched.servers.iter().find(|server| server.port == watched.primary()).unwrap();
    primary.cli(&["flushall"]);
    until("the flush to be heard of", || gateway.metric("onceward_local_cache_entries") == 0.0);
    assert_eq!(upstream.executed(), 1);
}
