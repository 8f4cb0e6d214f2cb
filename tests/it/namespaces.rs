//! Deployments that share Redis servers, each with its own namespace.

use std::process::Command;

use crate::harness::{Cluster, Gateway, ROUTES, RedisServer, Request, Upstream, until};

#[test]
fn two_deployments_on_one_cluster_know_nothing_of_each_other() {
    let (upstream, cluster) = (Upstream::start(), Cluster::start());
    let log = "[log]\nenabled = true\n";
    let here = Gateway::on(upstream.port, &cluster.url(), log, ROUTES);
    // The namespace set in the URL or by the setting selects the same store.
    let renamed = ROUTES.replace("\"payments\"", "\"payouts\"");
    let there = Gateway::on(
        upstream.port,
        &format!("{}?namespace=payouts_eu-1", cluster.url()),
        log,
        &renamed,
    );
    let keyed = format!("[store]\nnamespace = \"payouts_eu-1\"\n{log}");
    let beside = Gateway::on(upstream.port, &cluster.url(), &keyed, &renamed);
    let pay = Request::pay("k", "{}");
    let first = pay.send(here.port);
    let other = pay.send(there.port);
    assert!(first.status == 201 && !other.replayed() && first.body != other.body, "{other:?}");
    assert_eq!(pay.send(beside.port).body, other.body);
    assert!(pay.send(here.port).replayed() && pay.send(here.port).body == first.body);
    assert_eq!(upstream.executed(), 2);
    for gateway in [&here, &there] {
        assert_eq!(listed(gateway), 1);
    }
}

/// Counts the operations that a gateway lists, over all pages. A slow page ends early and may be
/// empty.
fn listed(gateway: &Gateway) -> usize {
    let (mut count, mut path) = (0, "/v1/operations".to_string());
    loop {
        let page = gateway.ask("GET", &path).json();
        count += page["operations"].as_array().unwrap().len();
        let Some(cursor) = page["cursor"].as_str() else { return count };
        path = format!("/v1/operations?cursor={cursor}");
    }
}

#[test]
fn every_name_of_a_store_begins_with_its_namespace() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let settings = "[store]\nnamespace = \"mine\"\nlocal_cache = \"1MiB\"\n[log]\nenabled = true\n";
    let waiting = format!(
        "{ROUTES}on_in_flight = \"wait\"\ntombstone = \"1h\"\n[[routes]]\npath = \"/v1/shadowed\"\nmode = \"shadow\"\n"
    );
    let gateway = Gateway::on(upstream.port, &redis.url(), settings, &waiting);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    let waiter = pay.send_aside(gateway.port);
    until("the waiter to subscribe", || {
        redis.cli(&["pubsub", "channels", "mine:{p*}:r:*"]).lines().count() == 1
    });
    upstream.release();
    assert_eq!(first.join().unwrap().body, waiter.join().unwrap().body);
    let shadowed = Request::new("POST", "/v1/shadowed").field("Idempotency-Key", "s").json("{}");
    assert_eq!(shadowed.send(gateway.port).status, shadowed.send(gateway.port).status);
    until("duplicates to be counted", || redis.cli(&["exists", "mine:{p0}:observations"]) == "1");
    let keys = redis.cli(&["--scan"]);
    let foreign: Vec<&str> = keys.lines().filter(|key| !key.starts_with("mine:")).collect();
    assert!(foreign.is_empty() && keys.lines().count() > 256, "{foreign:?}");
    for kind in [
        ":r:",
        ":t:",
        ":s:",
        ":due",
        ":epoch",
        ":events",
        ":chain",
        ":readers",
        ":identities",
        ":ping",
    ] {
        assert!(kind == ":due" || keys.contains(kind), "{kind} in {keys}");
    }
}

#[test]
fn a_namespace_is_shown_and_a_faulty_one_refused() {
    let redis = RedisServer::start();
    let doctor = |store: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(["doctor", "--store", store])
            .output()
            .unwrap();
        (
            out.status.code(),
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
        )
    };
    let url = redis.url();
    let (_, output) = doctor(&format!("{url}?namespace=mine"));
    assert!(output.contains(&format!("store: {url} (namespace mine)\n")), "{output}");
    let (code, output) = doctor(&format!("{url}?namespace=my:own"));
    assert!(
        code == Some(2)
            && output.contains("expected 1 to 64 letters, digits, _ or - behind namespace="),
        "{output}"
    );
}
