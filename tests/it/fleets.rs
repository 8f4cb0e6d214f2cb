//! Redis with more than one server: a cluster, and a primary with sentinels.

use crate::admin::cli;
use std::process::Command;

use crate::harness::{
    Answer, Cluster, Gateway, RedisServer, Request, Upstream, Watched, free_port, until,
};

const ROUTE: &str = "[[routes]]\npath = \"/v1/payments\"\nlease = \"2s\"";

fn pay(gateway: &Gateway, n: usize) -> Answer {
    Request::pay(&format!("k{n}"), "{}").send(gateway.port)
}

#[test]
fn in_a_cluster_every_key_has_its_node_and_is_executed_once() {
    let (cluster, upstream) = (Cluster::start(), Upstream::start());
    let gateways: Vec<_> =
        (0..2).map(|_| Gateway::on(upstream.port, &cluster.url(), "", ROUTE)).collect();
    let first: Vec<Answer> = (0..60).map(|n| pay(&gateways[n % 2], n)).collect();
    for (n, first) in first.iter().enumerate() {
        let again = pay(&gateways[(n + 1) % 2], n);
        assert!(again.replayed() && again.body == first.body, "{n}: {again:?}");
    }
    assert_eq!(upstream.executed(), 60);
    for primary in cluster.primaries() {
        assert_ne!(primary.cli(&["dbsize"]), "0", "every node has a part of the records");
    }
    let (_, listed) = cli(&gateways[0], &["list", "--limit", "100"]);
    assert_eq!(listed.lines().filter(|line| line.contains("completed")).count(), 60, "{listed}");
}

#[test]
fn in_a_cluster_waiters_get_the_answer_whichever_node_has_it() {
    let (cluster, upstream) = (Cluster::start(), Upstream::start());
    let gateways: Vec<_> = (0..2)
        .map(|_| {
            Gateway::on(
                upstream.port,
                &cluster.url(),
                "",
                &format!("{ROUTE}\non_in_flight = \"wait\""),
            )
        })
        .collect();
    for n in 0..6 {
        let pay = Request::pay(&format!("k{n}"), "{}").act("wait 200");
        let first = pay.send_aside(gateways[0].port);
        upstream.reached(n + 1);
        let second = pay.send_aside(gateways[1].port);
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert!(second.replayed() && first.body == second.body, "{second:?}");
    }
    assert_eq!(upstream.executed(), 6);
}

#[test]
fn when_a_clusters_primary_dies_its_replica_goes_on_with_what_it_got() {
    let (mut cluster, upstream) = (Cluster::start(), Upstream::start());
    let gateway = Gateway::on(upstream.port, &cluster.url(), "", ROUTE);
    let first: Vec<Answer> = (0..30).map(|n| pay(&gateway, n)).collect();
    until("the replicas to have it all", || cluster.is_copied());
    let victim = cluster.servers.iter().rposition(|server| server.is_primary()).unwrap();
    cluster.servers.remove(victim).kill();
    until("the failover", || cluster.primaries().len() == 3 && gateway.is_ready());
    for (n, first) in first.iter().enumerate() {
        until("a key to be replayed", || pay(&gateway, n).replayed());
        assert_eq!(pay(&gateway, n).body, first.body);
    }
    assert!((30..60).all(|n| pay(&gateway, n).status == 201), "new keys on every node");
    assert_eq!(upstream.executed(), 60);
}

#[test]
fn in_a_cluster_a_dead_gateways_operation_is_marked_on_whichever_node_it_is() {
    let (cluster, upstream) = (Cluster::start(), Upstream::start());
    let mut dying = Gateway::on(upstream.port, &cluster.url(), "", ROUTE);
    let living = Gateway::on(upstream.port, &cluster.url(), "", ROUTE);
    let lost: Vec<_> = (0..5)
        .map(|n| Request::pay(&format!("k{n}"), "{}").act("hold").send_aside(dying.port))
        .collect();
    upstream.reached(5);
    dying.kill();
    drop(lost);
    until("the leases to end", || {
        cli(&living, &["list", "--state", "uncertain"]).1.lines().count() == 5
    });
    assert!((0..5).all(|n| pay(&living, n).problem() == "outcome-uncertain"));
}

#[test]
fn sentinels_lead_to_the_primary_and_to_the_next_one() {
    let (watched, upstream) = (Watched::start(), Upstream::start());
    let gateway = Gateway::on(upstream.port, &watched.url(), "", ROUTE);
    let first: Vec<Answer> = (0..20).map(|n| pay(&gateway, n)).collect();
    watched.fail_over();
    let primary = watched.primary();
    let serving = watched.servers.iter().find(|server| server.port == primary).unwrap();
    until("the gateway to use the new primary", || {
        let replayed = pay(&gateway, 0).replayed();
        replayed && serving.cli(&["info", "commandstats"]).contains("cmdstat_evalsha:")
    });
    for (n, first) in first.iter().enumerate() {
        let again = pay(&gateway, n);
        assert!(again.replayed() && again.body == first.body, "{n}: {again:?}");
    }
    assert_eq!(pay(&gateway, 20).status, 201);
    assert_eq!(upstream.executed(), 21);
}

#[test]
fn a_primary_that_dies_is_replaced_and_nothing_runs_twice() {
    let (mut watched, upstream) = (Watched::start(), Upstream::start());
    let gateway = Gateway::on(upstream.port, &watched.url(), "", ROUTE);
    let first: Vec<Answer> = (0..20).map(|n| pay(&gateway, n)).collect();
    let position = watched.servers[0].position();
    until("the replicas to have it all", || watched.servers[0].is_copied_up_to(position, 2));
    let before = watched.primary();
    watched.servers[0].kill();
    let refused = pay(&gateway, 20);
    assert_eq!(refused.problem(), "store-unavailable", "nothing is sent without a store");
    until("the failover", || watched.primary() != before && gateway.is_ready());
    for (n, first) in first.iter().enumerate() {
        until("a key to be replayed", || pay(&gateway, n).replayed());
        assert_eq!(pay(&gateway, n).body, first.body);
    }
    assert_eq!(upstream.executed(), 20);
}

#[test]
fn what_replicas_have_to_confirm_is_not_sent_before_and_not_answered_before() {
    let (primary, upstream) = (RedisServer::start(), Upstream::start());
    let follow = ["--replicaof", "127.0.0.1", &primary.port.to_string()].map(str::to_owned);
    let replica = RedisServer::with(free_port(), &follow.each_ref().map(String::as_str));
    until("the replica to follow", || primary.is_copied_to(1));
    let settings = "[store]\nack = \"replicas:1\"\n";
    let gateway = Gateway::on(upstream.port, &primary.url(), settings, ROUTE);
    let first = pay(&gateway, 0);
    assert_eq!(first.status, 201);
    assert!(pay(&gateway, 0).replayed());

    replica.cli(&["replicaof", "no", "one"]);
    until("the primary to notice", || !primary.is_copied_to(1));
    let refused = pay(&gateway, 1);
    assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
    assert_eq!(
        pay(&gateway, 0).problem(),
        "store-unavailable",
        "what a failover could take away is not replayed"
    );
    assert_eq!(upstream.executed(), 1);

    replica.cli(&["replicaof", "127.0.0.1", &primary.port.to_string()]);
    until("the replica to follow again", || pay(&gateway, 0).replayed());
    until("the claim that was given up to be gone", || pay(&gateway, 1).status == 201);
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_server_that_may_lose_records_is_reported_and_under_strict_refused() {
    let redis = RedisServer::start();
    let doctor = |url: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(["doctor", "--store", url])
            .output()
            .unwrap();
        (
            out.status.code().unwrap(),
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
        )
    };
    let (code, output) = doctor(&redis.url());
    assert!(
        code == 1 && output.contains("WARN") && output.contains("set appendonly yes"),
        "{output}"
    );
    let strict = "[store]\ndurability = \"strict\"\n";
    let mut refused = Gateway::spawn(9, &redis.url(), strict, ROUTE);
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.logs().contains("appendonly"), "{}", refused.logs());

    for words in
        [["config", "set", "appendonly", "yes"], ["config", "set", "appendfsync", "always"]]
    {
        assert_eq!(redis.cli(&words), "OK");
    }
    let (code, output) = doctor(&redis.url());
    assert!(code == 0 && !output.contains("WARN"), "{output}");
    let gateway = Gateway::on(9, &redis.url(), strict, ROUTE);
    assert!(gateway.is_ready());
    let (code, output) = doctor(&format!("redis://127.0.0.1:{}", free_port()));
    assert!(code == 1 && output.contains("can't be inspected"), "{output}");
}
