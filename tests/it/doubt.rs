//! Operations with an unknown outcome: probed, forwarded again, or retried by an operator.

use crate::admin::cli;
use crate::harness::{Gateway, Request, Upstream, until};

const SOON: &str = "[upstream]\nresponse_timeout = \"1s\"\n";

fn probing(upstream: &Upstream, probe: &str, more: &str) -> Gateway {
    let route =
        "[[routes]]\npath = \"/v1/payments\"\non_uncertain = \"probe\"\nuncertain_after = \"1s\"\n";
    Gateway::with(
        upstream.port,
        SOON,
        &format!("{route}probe = {{ path = \"/v1/by-key/{{key}}\"{probe} }}\n{more}"),
    )
}

fn lost(gateway: &Gateway, key: &str) -> String {
    let lost = Request::pay(key, "{}").act("drop").send(gateway.port);
    assert_eq!((lost.status, lost.problem().as_str()), (502, "outcome-uncertain"));
    lost.json()["operation"].as_str().unwrap().to_owned()
}

#[test]
fn the_answer_that_a_probe_finds_is_replayed_to_every_duplicate() {
    let upstream = Upstream::start();
    upstream.answer_questions("field X-Bank=1, body found");
    let gateway = probing(&upstream, ", found = [\"201\"], map_status = 200", "");
    let pay = Request::pay("a:key@1", "{}");
    let first = pay.clone().act("drop").field("Authorization", "Bearer mine").send(gateway.port);
    assert_eq!((first.status, first.get("retry-after").is_some()), (502, true));
    assert_eq!(first.json()["retryable"], true, "the same request finds out");

    let answer = pay.clone().field("Authorization", "Bearer mine").send(gateway.port);
    assert!(
        answer.status == 200 && answer.replayed() && answer.text() == "found",
        "{}",
        answer.text()
    );
    let asked = upstream.seen().into_iter().find(|seen| seen.line.starts_with("GET")).unwrap();
    assert!(asked.line.starts_with("GET /v1/by-key/a%3Akey%401 "), "{}", asked.line);
    assert_eq!(
        (asked.get("authorization"), asked.get("idempotency-key")),
        (Some("Bearer mine"), None)
    );
    let again = pay.field("Authorization", "Bearer mine").send(gateway.port);
    assert_eq!((again.text(), again.get("x-bank")), ("found".to_owned(), Some("1")));
    assert_eq!(
        upstream.payments_and_questions(),
        (1, 1),
        "the result is stored, and asked for once"
    );
}

#[test]
fn an_absent_counts_only_when_the_lost_request_had_its_time() {
    let upstream = Upstream::start();
    upstream.answer_questions("status 404, body {}");
    let gateway = probing(&upstream, "", "");
    lost(&gateway, "k");
    let pay = Request::pay("k", "{}");
    let early = pay.send(gateway.port);
    assert_eq!((early.status, early.problem().as_str()), (409, "outcome-uncertain"));
    assert_eq!((early.get("retry-after"), early.get("x-should-retry")), (Some("1"), Some("true")));
    assert_eq!(upstream.payments_and_questions().0, 1);

    until("uncertain_after to pass", || pay.send(gateway.port).status == 201);
    assert!(pay.send(gateway.port).replayed());
    assert_eq!(upstream.payments_and_questions().0, 2, "once more, and only once");
}

#[test]
fn an_unclear_probe_answer_leaves_the_operation_uncertain() {
    let upstream = Upstream::start();
    let gateway = probing(&upstream, ", found = [\"200\"], found_if = \"/data/0\"", "");
    lost(&gateway, "k");
    let pay = Request::pay("k", "{}");
    for script in
        ["status 500", "drop", "rubbish", "status 302", "status 200, body <html>", "wait 2000"]
    {
        upstream.answer_questions(script);
        let unclear = pay.send(gateway.port);
        assert_eq!(
            (unclear.status, unclear.problem().as_str()),
            (409, "outcome-uncertain"),
            "{script}"
        );
    }
    assert_eq!(upstream.payments_and_questions().0, 1);
    upstream.answer_questions(r#"status 200, body {"data":[{"id":1.0}]}"#);
    assert_eq!(pay.send(gateway.port).text(), r#"{"id":1.0}"#, "the element is the result");
    assert_eq!(gateway.metric("onceward_probes_unclear_total"), 6.0);
    assert_eq!(gateway.metric("onceward_probes_found_total"), 1.0);
}

#[test]
fn a_stranger_causes_no_probe() {
    let upstream = Upstream::start();
    upstream.answer_questions("body found");
    let gateway = probing(&upstream, ", found = [\"201\"]", "");
    let mine = Request::pay("k", "{}").field("Authorization", "mine");
    mine.clone().act("drop").send(gateway.port);
    let stranger = Request::pay("k", "{}").field("Authorization", "theirs").send(gateway.port);
    assert_eq!(stranger.problem(), "key-reused");
    assert_eq!(upstream.payments_and_questions(), (1, 0));
}

#[test]
fn of_many_duplicates_one_runs_again() {
    let upstream = Upstream::start();
    upstream.answer_questions("status 404");
    let gateway = probing(&upstream, "", "on_in_flight = \"wait\"");
    lost(&gateway, "k");
    let pay = Request::pay("k", "{}").act("wait 300");
    until("uncertain_after to pass", || {
        let all: Vec<_> = (0..8).map(|_| pay.send_aside(gateway.port)).collect();
        let answers: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
        answers.iter().all(|answer| answer.status == 201)
    });
    assert_eq!(upstream.payments_and_questions().0, 2);
}

fn forwarding(upstream: &Upstream, more: &str) -> Gateway {
    let route = "[[routes]]\npath = \"/v1/payments\"\non_uncertain = \"forward\"\n";
    Gateway::with(upstream.port, SOON, &format!("{route}{more}"))
}

#[test]
fn an_upstream_that_deduplicates_gets_the_same_key_again() {
    let upstream = Upstream::start();
    let gateway = forwarding(&upstream, "");
    lost(&gateway, "k");
    let paid = Request::pay("k", "{}").send(gateway.port);
    assert_eq!((paid.status, paid.replayed()), (201, false));
    assert_eq!(Request::pay("k", "{}").send(gateway.port).text(), paid.text());
    assert_eq!(upstream.by_key()["k"], 2);
}

#[test]
fn an_attempt_from_uncertain_never_leaves_less() {
    let upstream = Upstream::start();
    let gateway = forwarding(&upstream, "");
    lost(&gateway, "k");
    for status in [401, 409, 423, 425, 429] {
        let pay = Request::pay("k", "{}").act(&format!("status {status}, body secret"));
        let answer = pay.send(gateway.port);
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (409, "outcome-uncertain"),
            "{status}"
        );
        assert!(answer.get("retry-after").is_some() && !answer.text().contains("secret"));
        assert_eq!(
            Request::pay("k", "{\"other\":1}").send(gateway.port).problem(),
            "key-reused",
            "it keeps its fingerprint"
        );
    }
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
}

#[test]
fn the_key_goes_on_as_the_upstream_wants_it() {
    let upstream = Upstream::start();
    let long = "k".repeat(80);
    let header =
        forwarding(&upstream, "upstream_key = { header = \"X-Request-Id\", max_length = 38 }");
    let body =
        forwarding(&upstream, "upstream_key = { body = \"/idempotency_key\", max_length = 45 }");
    for gateway in [&header, &body] {
        assert_eq!(
            Request::pay(&long, r#"{"amount":10.00}"#).act("drop").send(gateway.port).status,
            502
        );
        assert_eq!(Request::pay(&long, r#"{"amount":10.00}"#).send(gateway.port).status, 201);
    }
    let seen = upstream.seen();
    let named: Vec<_> =
        seen.iter().filter_map(|seen| seen.get("x-request-id").map(str::to_owned)).collect();
    assert!(named.len() == 2 && named[0] == named[1] && named[0].len() == 38, "{named:?}");
    assert!(
        seen.iter().all(|seen| seen.get("idempotency-key").is_none()),
        "it is renamed, not copied"
    );
    let moved: Vec<_> =
        seen.iter().map(|seen| String::from_utf8_lossy(&seen.body).into_owned()).skip(2).collect();
    assert_eq!(moved[0], moved[1]);
    assert!(moved[0].starts_with(r#"{"amount":10.00,"idempotency_key":""#), "{}", moved[0]);
    let form = Request::new("POST", "/v1/payments")
        .field("Idempotency-Key", "f")
        .body("amount=1")
        .send(body.port);
    assert_eq!((form.status, form.problem().as_str()), (400, "key-invalid"));
}

#[test]
fn an_operator_lets_the_next_duplicate_run_and_nothing_else() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        SOON,
        "[[routes]]\npath = \"/v1/payments\"\nuncertain_after = \"1s\"",
    );
    let operation = lost(&gateway, "k");
    let (code, output) = cli(&gateway, &["retry", &operation]);
    assert!(code == 1 && output.contains("too early"), "{output}");
    until("uncertain_after to pass", || {
        cli(&gateway, &["retry", &operation, "--reason", "the bank has no trace"]).0 == 0
    });
    let (_, shown) = cli(&gateway, &["show", &operation]);
    assert!(shown.contains("the next duplicate runs"), "{shown}");
    gateway.logged("the bank has no trace");

    assert_eq!(Request::pay("k", "{\"other\":1}").send(gateway.port).problem(), "key-reused");
    let busy = Request::pay("k", "{}").act("status 429").send(gateway.port);
    assert_eq!(
        (busy.status, busy.get("x-should-retry")),
        (409, Some("false")),
        "it did nothing: held again"
    );
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 409);
    assert_eq!(cli(&gateway, &["retry", &operation]).0, 0, "it has rested long enough still");
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    assert_eq!(upstream.executed(), 3);
}

/// Starts a gateway that may keep keys, and authenticates its probes.
pub fn asking_by_itself(upstream: &Upstream, uncertain_after: &str) -> Gateway {
    let settings = format!("{SOON}[encryption]\nkeys = [{{ id = \"a\", env = \"SEAL\" }}]\n");
    let route = format!(
        "[[routes]]\npath = \"/v1/payments\"\non_uncertain = \"probe\"\nuncertain_after = \"{uncertain_after}\"\n\
         probe = {{ path = \"/v1/by-key/{{key}}\", found = [\"201\"], headers = {{ Authorization = {{ env = \"PROBE\" }}, X-Api = \"2\" }} }}"
    );
    let gateway = Gateway::launch(
        &format!("http://127.0.0.1:{}", upstream.port),
        "memory:",
        &settings,
        &route,
        |command| {
            command
                .env("SEAL", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
                .env("PROBE", "Bearer gateway");
        },
    );
    until("the gateway to be ready", || gateway.is_ready());
    gateway
}

#[test]
fn an_operation_without_duplicates_is_probed_in_the_background() {
    let upstream = Upstream::start();
    upstream.answer_questions("body found");
    let gateway = asking_by_itself(&upstream, "1s");
    let operation = lost(&gateway, "a:key");
    until("the upstream to be asked", || {
        cli(&gateway, &["show", &operation]).1.contains("settled by the probe")
    });
    let asked = upstream.seen().into_iter().find(|seen| seen.line.starts_with("GET")).unwrap();
    assert!(asked.line.starts_with("GET /v1/by-key/a%3Akey "), "{}", asked.line);
    assert_eq!(
        (asked.get("authorization"), asked.get("x-api")),
        (Some("Bearer gateway"), Some("2"))
    );
    assert!(!gateway.logs().contains("a:key") && !gateway.logs().contains("Bearer gateway"));
    let answer = Request::pay("a:key", "{}").send(gateway.port);
    assert!(answer.replayed() && answer.text() == "found");
    assert_eq!(upstream.payments_and_questions(), (1, 1));
}

#[test]
fn in_the_background_an_absent_frees_the_key_when_the_lost_request_had_its_time() {
    let upstream = Upstream::start();
    upstream.answer_questions("status 404");
    let gateway = asking_by_itself(&upstream, "3s");
    let operation = lost(&gateway, "k");
    until("two questions", || upstream.payments_and_questions().1 >= 2);
    until("the key to be free", || cli(&gateway, &["show", &operation]).1.contains("released"));
    assert_eq!(upstream.payments_and_questions().0, 1, "nothing runs that no client asked for");
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
}
