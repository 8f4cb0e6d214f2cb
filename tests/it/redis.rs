//! Two gateways on one Redis server that fails during requests.

use std::time::Duration;

use crate::harness::{Gateway, ROUTES, RedisServer, Request, Upstream, until};

#[test]
fn two_gateways_and_many_clients_make_one_execution_per_key() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateways = [0, 1].map(|_| Gateway::on(upstream.port, &redis.url(), "", ROUTES));
    for round in 0..10 {
        let pay = Request::pay(&format!("k{round}"), "{}").act("wait 20");
        let answers: Vec<_> = (0..16).map(|n| pay.send_aside(gateways[n % 2].port)).collect();
        for answer in answers {
            let answer = answer.join().unwrap();
            assert!(answer.status == 201 || answer.problem() == "in-flight", "{answer:?}");
        }
        let first = pay.send(gateways[0].port);
        assert!(first.replayed() && first.body == pay.send(gateways[1].port).body);
    }
    assert_eq!(upstream.executed(), 10);
    assert!(upstream.by_key().values().all(|n| *n == 1));
}

#[test]
fn a_waiter_at_one_gateway_is_woken_by_the_other() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let waiting = format!("{ROUTES}on_in_flight = \"wait\"\n");
    let gateways = [0, 1].map(|_| Gateway::on(upstream.port, &redis.url(), "", &waiting));
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateways[0].port);
    upstream.reached(1);
    let waiters: Vec<_> = (0..20).map(|_| pay.send_aside(gateways[1].port)).collect();
    until("all to wait", || gateways[1].metric("onceward_waiters") == 20.0);
    until("one subscription", || {
        redis.cli(&["pubsub", "channels", "onceward:*"]).lines().count() == 1
    });
    upstream.release();
    let first = first.join().unwrap();
    assert!(waiters.into_iter().all(|answer| answer.join().unwrap().body == first.body));
    until("no subscription", || redis.cli(&["pubsub", "channels", "onceward:*"]).is_empty());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_gateway_that_is_killed_is_noticed_by_the_other_even_if_nobody_asks() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let mut first = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    let second = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    let mut client = crate::harness::Connection::open(first.port);
    let pay = Request::pay("k", "{}").act("hold");
    client.write(&pay.bytes());
    upstream.reached(1);
    first.kill();
    assert_eq!(pay.send(second.port).problem(), "in-flight");
    until("the sweeper to mark it", || second.metric("onceward_uncertain_outcomes_total") == 1.0);
    assert_eq!(pay.send(second.port).problem(), "outcome-uncertain");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_gateway_that_slept_through_its_lease_changes_nothing_that_was_settled_meanwhile() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let [sleeper, other] = [0, 1].map(|_| Gateway::on(upstream.port, &redis.url(), "", ROUTES));
    let mut client = crate::harness::Connection::open(sleeper.port);
    let pay = Request::pay("k", "{}").act("hold, body late");
    client.write(&pay.bytes());
    upstream.reached(1);
    sleeper.signal("STOP");
    until("the lease to end", || other.metric("onceward_uncertain_outcomes_total") == 1.0);
    let operation = pay.send(other.port).json()["operation"].as_str().unwrap().to_owned();
    let seen = other.ask("GET", &format!("/v1/operations/{operation}"));
    let settled = Request::new("POST", &format!("/v1/operations/{operation}/resolve"))
        .host("127.0.0.1")
        .field("If-Match", seen.get("etag").unwrap())
        .json(r#"{"status":200,"body_base64":"c2V0dGxlZA==","reason":"seen in the ledger"}"#)
        .send(other.admin);
    assert_eq!(settled.status, 200, "{}", settled.text());
    assert_eq!(pay.send(other.port).text(), "settled");
    upstream.release();
    sleeper.signal("CONT");
    let late = client.read();
    assert!(late.replayed() && late.text() == "settled", "never its own copy: {late:?}");
    assert_eq!(pay.send(sleeper.port).text(), "settled");
    assert_eq!(sleeper.metric("onceward_lost_leases_total"), 1.0);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_store_that_does_not_answer_fails_closed_in_time_and_comes_back() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    assert_eq!(Request::pay("before", "{}").send(gateway.port).status, 201);
    redis.signal("STOP");
    #[allow(clippy::disallowed_methods)]
    let began = std::time::Instant::now();
    let refused = Request::pay("k", "{}").send(gateway.port);
    assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
    assert!(refused.get("retry-after").is_some());
    assert!(
        began.elapsed() < Duration::from_millis(1800),
        "within twice the store's timeout: {:?}",
        began.elapsed()
    );
    assert_eq!(gateway.ask("GET", "/readyz").status, 503);
    assert_eq!(upstream.executed(), 1);
    redis.signal("CONT");
    // The claim that was given up may have reached the store; its record ends released, not
    // uncertain.
    until("the key to run", || Request::pay("k", "{}").send(gateway.port).status == 201);
    assert_eq!(gateway.metric("onceward_uncertain_outcomes_total"), 0.0);
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_store_lost_after_the_upstream_answered_costs_the_answer_or_keeps_it_but_never_both() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    redis.signal("STOP");
    upstream.release();
    let answer = first.join().unwrap();
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (502, "outcome-uncertain"),
        "after min(lease, 10 s)"
    );
    redis.signal("CONT");
    until("the result to be stored in the background", || pay.send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn fail_open_forwards_unprotected_and_reports_it() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let open = format!("{ROUTES}on_failure = \"fail_open\"\n");
    let gateway = Gateway::on(upstream.port, &redis.url(), "", &open);
    redis.signal("STOP");
    let pay = Request::pay("k", "{}");
    assert_eq!((pay.send(gateway.port).status, pay.send(gateway.port).status), (201, 201));
    assert_eq!(upstream.executed(), 2);
    let ready = gateway.ask("GET", "/readyz");
    assert!(ready.status == 200 && ready.text().contains("degraded"), "{ready:?}");
    assert_eq!(
        gateway.metric("onceward_requests_total{route=\"payments\",outcome=\"unprotected\"}"),
        2.0
    );
    gateway.logged("without protection");
}

#[test]
fn a_server_that_takes_calls_and_does_not_answer_costs_a_few_their_timeout_and_the_others_nothing()
{
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    // A long timeout, so that waiting for it differs from an immediate failure on a busy machine.
    let slow = "[store]\ntimeout = \"3s\"\n";
    let routes = "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\n\
                  [[routes]]\npath = \"/v1/refunds\"\non_failure = \"fail_open\"\n";
    let gateway = Gateway::on(upstream.port, &redis.url(), slow, routes);
    assert_eq!(Request::pay("before", "{}").send(gateway.port).status, 201);
    redis.signal("STOP");
    let first: Vec<_> =
        (0..5).map(|n| Request::pay(&format!("k{n}"), "{}").send_aside(gateway.port)).collect();
    for refused in first {
        assert_eq!(refused.join().unwrap().problem(), "store-unavailable");
    }
    until("the breaker to open", || {
        gateway.metric("onceward_store_breaker_transitions_total{to=\"open\"}") >= 1.0
    });
    let quick = |n: usize, path: &str| {
        #[allow(clippy::disallowed_methods)]
        let began = std::time::Instant::now();
        let answer = Request::new("POST", path)
            .field("Idempotency-Key", &format!("k{n}"))
            .json("{}")
            .send(gateway.port);
        (answer.status, began.elapsed() < Duration::from_secs(1))
    };
    // One request at a time is let through and waits. Of two consecutive requests at most one
    // waits.
    let spared = [quick(10, "/v1/payments"), quick(11, "/v1/payments"), quick(12, "/v1/payments")];
    assert!(
        spared.iter().all(|(status, _)| *status == 503) && spared.iter().any(|(_, quick)| *quick),
        "{spared:?}"
    );
    let unprotected =
        [quick(20, "/v1/refunds"), quick(21, "/v1/refunds"), quick(22, "/v1/refunds")];
    assert!(
        unprotected.iter().all(|(status, _)| *status == 201)
            && unprotected.iter().any(|(_, quick)| *quick),
        "{unprotected:?}"
    );
    assert_eq!(
        gateway.metric("onceward_requests_total{route=\"/v1/refunds\",outcome=\"unprotected\"}"),
        3.0
    );
    until("three lines", || gateway.logs().matches("forwarded without protection").count() == 3);
    gateway.logged("the store's server does not answer");
    redis.signal("CONT");
    until("a key to run", || Request::pay("k0", "{}").send(gateway.port).status == 201);
    until("the breaker to be closed", || {
        gateway.metric("onceward_store_breakers{state=\"closed\"}") == 1.0
    });
    assert_eq!(gateway.metric("onceward_uncertain_outcomes_total"), 0.0);
    assert_eq!(upstream.executed(), 5);
}

#[test]
fn scripts_that_redis_forgot_are_sent_again() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    for n in 0..5 {
        redis.cli(&["script", "flush"]);
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
    assert_eq!(upstream.executed(), 5);
}

#[test]
fn a_record_that_can_not_be_read_is_neither_replayed_nor_run_again() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    // This holds even where the route works without a store.
    let open = format!("{ROUTES}on_failure = \"fail_open\"\n");
    let gateway = Gateway::on(upstream.port, &redis.url(), "", &open);
    let pay = Request::pay("k", "{}");
    assert_eq!(pay.send(gateway.port).status, 201);
    let key = redis.cli(&["--scan", "--pattern", "onceward:*:r:*"]);
    redis.cli(&["setrange", &key, "60", "damaged"]);
    let refused = pay.send(gateway.port);
    assert_eq!((refused.status, refused.problem().as_str()), (503, "store-unavailable"));
    assert_eq!(upstream.executed(), 1);
    assert_eq!(gateway.metric("onceward_corrupt_records_total"), 1.0);
}

#[test]
fn keys_are_kept_only_hashed() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), "", ROUTES);
    let pay = Request::pay("canary-key", r#"{"card":"canary-body"}"#)
        .field("Authorization", "canary-token");
    assert_eq!(pay.send(gateway.port).status, 201);
    let key = redis.cli(&["--scan", "--pattern", "*:r:*"]);
    assert!(redis.cli(&["strlen", &key]).parse::<usize>().unwrap() > 50);
    assert!(!redis.cli(&["get", &key]).contains("canary") && !key.contains("canary"));
    assert!(redis.cli(&["pttl", &key]).parse::<u64>().unwrap() > 80_000_000, "a day");
}

#[test]
fn a_gateway_starts_not_ready_without_its_store_and_becomes_ready() {
    let upstream = Upstream::start();
    let port = crate::harness::free_port();
    let gateway = Gateway::spawn(
        upstream.port,
        &format!("redis://:secret-word@127.0.0.1:{port}"),
        "",
        ROUTES,
    );
    until("the admin port", || std::net::TcpStream::connect(("127.0.0.1", gateway.admin)).is_ok());
    assert_eq!(gateway.ask("GET", "/readyz").status, 503);
    assert_eq!(gateway.ask("GET", "/healthz").status, 200);
    assert_eq!(Request::pay("k", "{}").send(gateway.port).problem(), "store-unavailable");
    assert!(!gateway.logs().contains("secret-word"));
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn a_store_that_restarts_empty_gets_back_what_the_gateways_hold() {
    let (upstream, mut redis) = (Upstream::start(), RedisServer::start());
    let gateways = [0, 1].map(|_| Gateway::on(upstream.port, &redis.url(), "", ROUTES));
    let done = Request::pay("done", "{}");
    let answer = done.send(gateways[0].port);
    let running = Request::pay("running", "{}").act("hold");
    let first = running.send_aside(gateways[1].port);
    upstream.reached(2);
    let port = redis.port;
    redis.kill();
    let redis = RedisServer::with(port, &[]);
    until("the results of the last seconds to be back", || done.send(gateways[0].port).replayed());
    assert_eq!(done.send(gateways[0].port).body, answer.body);
    let records = || redis.cli(&["--scan", "--pattern", "onceward:{p*}:r:*"]).lines().count();
    until("the claim of the other gateway to be back", || records() == 2);
    assert_eq!(running.send(gateways[0].port).problem(), "in-flight");
    upstream.release();
    let first = first.join().unwrap();
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(running.send(gateways[0].port).body, first.body);
    assert_eq!(upstream.executed(), 2);
    assert_eq!(redis.cli(&["exists", "onceward:{p0}:epoch", "onceward:{p255}:epoch"]), "2");
}

/// Settings under which a server may be used where nothing may be lost. These tests lose its file
/// as well.
const ON_DISK: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Runs a request at a slow upstream. The server hangs while duplicates reach `gateways`, is then
/// killed, and restarts empty. The request gets its answer, and a retry at any gateway gets the
/// same answer.
fn a_hung_server_that_comes_back_empty_takes_nothing_from_who_runs(
    durability: &str,
    settings: &[&str],
    gateways: usize,
) {
    let upstream = Upstream::start();
    let mut redis = RedisServer::with(crate::harness::free_port(), settings);
    let store = format!("[store]\ntimeout = \"900ms\"\ndurability = \"{durability}\"\n");
    let gateways: Vec<_> =
        (0..gateways).map(|_| Gateway::on(upstream.port, &redis.url(), &store, ROUTES)).collect();
    let pay = Request::pay("k", "{}");
    until("keys to run", || Request::pay("before", "{}").send(gateways[0].port).status == 201);
    let first = pay.clone().act("hold").send_aside(gateways[0].port);
    upstream.reached(2);
    redis.signal("STOP");
    let duplicates: Vec<_> =
        gateways.iter().flat_map(|gateway| [0, 1].map(|_| pay.send_aside(gateway.port))).collect();
    for duplicate in duplicates {
        assert_eq!(duplicate.join().unwrap().problem(), "store-unavailable");
    }
    for gateway in &gateways {
        // Only a claim that the store may have carried out is given up.
        until("a duplicate's claim to be given up", || {
            gateway.metric("onceward_unsettled_in_background") >= 1.0
        });
    }
    redis.kill();
    redis.restart_empty(settings);
    for gateway in &gateways {
        until("duplicates to be refused as in flight", || {
            let answer = pay.send(gateway.port);
            assert!(answer.status != 201, "it was executed again: {answer:?}");
            answer.problem() == "in-flight"
        });
    }
    let given_up = |gateway: &Gateway| gateway.metric("onceward_unsettled_in_background") == 0.0;
    until("what was given up to be settled", || gateways.iter().all(given_up));
    assert_eq!(upstream.executed(), 2);
    upstream.release();
    let first = first.join().unwrap();
    assert_eq!((first.status, first.replayed()), (201, false), "{first:?}");
    for gateway in &gateways {
        until("the answer to be replayed", || {
            let again = pay.send(gateway.port);
            again.status == 201
        });
        let again = pay.send(gateway.port);
        assert!(again.replayed() && again.body == first.body, "{again:?}");
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn duplicates_at_a_hung_store_take_nothing_from_who_runs_when_it_comes_back_empty() {
    a_hung_server_that_comes_back_empty_takes_nothing_from_who_runs("warn", &[], 1);
}

#[test]
fn under_strict_neither_do_duplicates_at_another_gateway_where_the_servers_file_is_lost() {
    a_hung_server_that_comes_back_empty_takes_nothing_from_who_runs("strict", &ON_DISK, 2);
}
