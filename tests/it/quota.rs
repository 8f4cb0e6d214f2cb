//! A tenant that floods keys is limited, and other tenants are not affected.

use crate::harness::{Gateway, RedisServer, Request, Upstream, until};

const ROUTE: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
scope = { header = "X-Account" }
"#;

fn pay(account: &str, key: &str) -> Request {
    Request::pay(key, "{}").field("X-Account", account)
}

#[test]
fn a_scope_begins_so_many_operations_and_its_duplicates_are_answered_all_the_same() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "[limits]\nrecords_per_scope = 3\n", ROUTE);
    // A release status leaves no record and does not count against the quota.
    for _ in 0..5 {
        assert_eq!(pay("alice", "limited").act("status 429").send(gateway.port).status, 429);
    }
    for n in 0..3 {
        assert_eq!(pay("alice", &format!("k{n}")).send(gateway.port).status, 201);
    }
    for n in 3..6 {
        let refused = pay("alice", &format!("k{n}")).send(gateway.port);
        assert_eq!((refused.status, refused.problem().as_str()), (503, "overloaded"));
        assert_eq!(
            (refused.get("retry-after"), refused.get("x-should-retry")),
            (Some("60"), Some("true"))
        );
    }
    for n in 0..3 {
        assert!(pay("alice", &format!("k{n}")).send(gateway.port).replayed());
        let other = Request::pay(&format!("k{n}"), r#"{"amount":1}"#)
            .field("X-Account", "alice")
            .send(gateway.port);
        assert_eq!(other.problem(), "key-reused");
    }
    assert_eq!(pay("bob", "k5").send(gateway.port).status, 201);
    assert_eq!(upstream.executed(), 5 + 3 + 1);
}

#[test]
fn a_flood_by_one_scope_leaves_others_and_the_store_untouched() {
    const FLOODERS: usize = 8;
    const EACH: usize = 150;
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway =
        Gateway::on(upstream.port, &redis.url(), "[limits]\nrecords_per_scope = 20\n", ROUTE);
    let flooders: Vec<_> = (0..FLOODERS)
        .map(|flooder| {
            let port = gateway.port;
            let flood = move || {
                (0..EACH)
                    .filter(|n| pay("eve", &format!("{flooder}-{n}")).send(port).status == 201)
                    .count()
            };
            std::thread::spawn(flood)
        })
        .collect();
    for n in 0..20 {
        assert_eq!(pay("bob", &format!("k{n}")).send(gateway.port).status, 201, "while eve floods");
    }
    let executed: usize = flooders.into_iter().map(|flooder| flooder.join().unwrap()).sum();
    assert_eq!((executed, upstream.executed()), (20, 40));
    // Claims that lost the last free place leave released markers, which are small and short-lived.
    let completed = gateway.ask("GET", "/v1/operations?state=completed&limit=1000").json();
    assert_eq!(completed["operations"].as_array().unwrap().len(), 40);
}

#[test]
fn a_reload_that_changes_the_retention_keeps_the_count_and_lets_go_of_it_in_time() {
    let upstream = Upstream::start();
    let config = |retention: &str, max: u8| {
        format!("[limits]\nrecords_per_scope = {max}\n{ROUTE}retention = \"{retention}\"\n")
    };
    let gateway = Gateway::with(upstream.port, "", &config("5s", 1));
    let status = |key: &str| pay("alice", key).send(gateway.port).status;
    let reload = |config: String| {
        std::fs::write(gateway.config(), config).unwrap();
        assert_eq!(gateway.ask("POST", "/v1/reload").status, 200);
    };
    assert_eq!((status("a"), status("b")), (201, 503));
    reload(config("1d", 1));
    until("the short retention to be over", || status("b") == 201);
    assert_eq!(status("c"), 503);
    reload(config("1s", 2));
    assert_eq!(status("c"), 201);
    until("a short retention to be over beside the long one", || status("d") == 201);
    reload(config("1s", 0));
    assert_eq!(status("e"), 201);
}
