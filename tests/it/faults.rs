//! Faults between the claim and the answer.

use std::time::Duration;

use crate::harness::{Connection, Gateway, Request, Upstream, free_port, until};

/// A route with an upstream that must answer within half a second.
const HASTY: &str = "[upstream]\nresponse_timeout = \"500ms\"\n";

#[test]
fn an_unreachable_upstream_releases_the_key() {
    let port = free_port();
    let gateway = Gateway::start(port);
    let pay = Request::pay("k", "{}");
    let refused = pay.send(gateway.port);
    assert_eq!((refused.status, refused.problem().as_str()), (502, "upstream-unreachable"));
    assert_eq!(
        (refused.get("x-should-retry"), refused.json()["retryable"].clone()),
        (Some("true"), true.into())
    );
    assert!(!pay.send(gateway.port).replayed(), "it may be tried again");
}

#[test]
fn a_request_was_not_sent_if_its_connection_is_not_made_in_time() {
    // Accepts connections, and never starts TLS.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let mut gateway = Gateway::to(
        &url,
        "drain_timeout = \"1s\"\n[upstream]\nresponse_timeout = \"500ms\"\nconnect_timeout = \"60s\"\n",
    );
    let pay = Request::pay("k", "{}");
    for _ in 0..2 {
        let refused = pay.send(gateway.port);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (502, "upstream-unreachable"),
            "{}",
            refused.text()
        );
    }
    assert_eq!(gateway.metric("onceward_uncertain_outcomes_total"), 0.0);
    assert_eq!(
        gateway.ask("GET", "/v1/operations?state=uncertain").json()["operations"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

#[test]
fn an_answer_that_is_lost_after_the_charge_is_never_charged_again() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for (key, script) in [("drop", "drop"), ("cut", "cut"), ("rubbish", "rubbish")] {
        let pay = Request::pay(key, "{}").act(script);
        let lost = pay.send(gateway.port);
        assert_eq!((lost.status, lost.problem().as_str()), (502, "outcome-uncertain"), "{key}");
        let held = pay.send(gateway.port);
        assert_eq!((held.status, held.problem().as_str()), (409, "outcome-uncertain"), "{key}");
        assert_eq!((held.get("retry-after"), held.get("x-should-retry")), (None, Some("false")));
        assert!(held.json()["operation"].as_str().unwrap().starts_with("op_"));
    }
    assert_eq!(upstream.by_key().values().max(), Some(&1));
    assert_eq!(gateway.metric("onceward_uncertain_outcomes_total"), 3.0);
}

#[test]
fn a_timeout_is_not_a_failure() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        HASTY,
        "[[routes]]\npath = \"/v1/payments\"\nuncertain_after = \"1s\"",
    );
    let pay = Request::pay("k", "{}").act("hold");
    let slow = pay.send(gateway.port);
    assert_eq!((slow.status, slow.problem().as_str()), (504, "outcome-uncertain"));
    assert_eq!(pay.send(gateway.port).problem(), "outcome-uncertain");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_status_that_proves_nothing_is_relayed_without_its_body_and_held() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for status in [502, 503, 504] {
        let pay =
            Request::pay(&format!("k{status}"), "{}").act(&format!("status {status}, body secret"));
        let first = pay.send(gateway.port);
        assert_eq!((first.status, first.problem().as_str()), (status, "outcome-uncertain"));
        assert!(!first.text().contains("secret"));
        assert_eq!(pay.send(gateway.port).status, 409);
    }
    assert_eq!(upstream.executed(), 3);
}

#[test]
fn a_client_who_leaves_cancels_nothing() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = Request::pay("k", "{}").act("hold");
    let mut leaving = Connection::open(gateway.port);
    leaving.write(&pay.bytes());
    upstream.reached(1);
    drop(leaving);
    upstream.release();
    until("the answer to be stored", || pay.send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_client_who_only_stops_writing_still_gets_its_answer() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut client = Connection::open(gateway.port);
    client.write(&Request::pay("k", "{}").act("wait 200").bytes());
    client.half_close();
    assert_eq!(client.read().status, 201);
}

#[test]
fn an_upstream_slower_than_the_lease_is_waited_for() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::with(upstream.port, "", "[[routes]]\npath = \"/v1/payments\"\nlease = \"2s\"");
    let pay = Request::pay("k", "{}").act("wait 5000");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    let answer = first.join().unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert!(pay.send(gateway.port).replayed());
    assert_eq!(gateway.metric("onceward_lost_leases_total"), 0.0);
}

#[test]
fn a_gateway_that_is_killed_leaves_an_uncertain_outcome_that_nobody_runs_again() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let store = format!("file:{}", dir.path().display());
    let mut gateway = Gateway::on(upstream.port, &store, "", crate::harness::ROUTES);
    let done = Request::pay("done", "{}");
    let first = done.send(gateway.port);
    let mut client = Connection::open(gateway.port);
    let lost = Request::pay("lost", "{}").act("hold");
    client.write(&lost.bytes());
    upstream.reached(2);
    gateway.kill();
    assert!(client.is_closed());
    upstream.release();

    let gateway = Gateway::on(upstream.port, &store, "", crate::harness::ROUTES);
    let again = done.send(gateway.port);
    assert!(again.replayed() && again.body == first.body, "what was answered stays answered");
    let early = lost.send(gateway.port);
    assert!(early.status == 409, "{early:?}");
    until("the lease to end", || {
        gateway.ask("GET", "/v1/operations?state=uncertain").json()["operations"]
            .as_array()
            .unwrap()
            .len()
            == 1
    });
    assert_eq!(lost.send(gateway.port).problem(), "outcome-uncertain");
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_stopped_gateway_that_wakes_up_does_not_send_on_an_old_claim() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nlease = \"2s\"",
    );
    let mut client = Connection::open(gateway.port);
    let pay = Request::pay("k", "{}").act("hold");
    client.write(&pay.bytes());
    upstream.reached(1);
    gateway.signal("STOP");
    std::thread::sleep(Duration::from_millis(2500));
    upstream.release();
    gateway.signal("CONT");
    // Late, but its own fence is still valid, because nobody else could settle it. The answer is
    // stored and sent.
    let answer = client.read();
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert!(pay.send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn sigterm_settles_what_is_under_way_and_takes_nothing_new() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let store = format!("file:{}", dir.path().display());
    let mut gateway = Gateway::on(upstream.port, &store, "", crate::harness::ROUTES);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    gateway.signal("TERM");
    until("it to say that it drains", || gateway.ask("GET", "/readyz").status == 503);
    until("no new connections", || {
        std::net::TcpStream::connect(("127.0.0.1", gateway.port)).is_err()
    });
    upstream.release();
    let answer = first.join().unwrap();
    assert_eq!(answer.status, 201);
    assert_eq!(gateway.wait().code(), Some(0));
    let next = Gateway::on(upstream.port, &store, "", crate::harness::ROUTES);
    let again = pay.send(next.port);
    assert!(again.replayed() && again.body == answer.body);
}

#[test]
fn what_outlasts_the_drain_timeout_is_marked_uncertain() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let store = format!("file:{}", dir.path().display());
    let mut gateway =
        Gateway::on(upstream.port, &store, "drain_timeout = \"300ms\"", crate::harness::ROUTES);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(1));
    assert_eq!(first.join().unwrap().problem(), "outcome-uncertain");
    let next = Gateway::on(upstream.port, &store, "", crate::harness::ROUTES);
    assert_eq!(pay.send(next.port).problem(), "outcome-uncertain");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_second_process_on_a_directory_is_refused() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let store = format!("file:{}", dir.path().display());
    let _first = Gateway::on(upstream.port, &store, "", "");
    let mut second = Gateway::spawn(upstream.port, &store, "", "");
    until("the second to end", || second.has_ended().is_some());
    assert_eq!(second.wait().code(), Some(1));
    until("its reason", || second.logs().contains("another process"));
}

#[test]
fn a_pooled_connection_that_was_closed_costs_nothing() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    // `cut` closes the connection after a complete answer to another request was read.
    for n in 0..20 {
        let answer =
            Request::pay(&format!("k{n}"), "{}").act("field Connection=close").send(gateway.port);
        assert_eq!(answer.status, 201);
    }
    assert_eq!(upstream.executed(), 20);
    assert!(upstream.connections() >= 20);
}
