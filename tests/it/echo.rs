//! `echo_key`: the key on every answer to its client, and nowhere else.

use crate::harness::{Answer, Connection, Gateway, Request, Streams, Upstream, free_port, until};

const ECHOED: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
echo_key = true
key = { min_length = 3, max_length = 60 }
scope = { header = "X-Tenant" }

[[routes]]
name = "watched"
path = "/v1/watched"
mode = "shadow"
echo_key = true
"#;

fn pay(key: &str, body: &str) -> Request {
    Request::pay(key, body).field("X-Tenant", "a")
}

/// Returns the values of the echo's lines.
fn echoed(answer: &Answer) -> Vec<&str> {
    let lines = answer.fields.iter().filter(|(name, _)| name == "idempotency-key");
    lines.map(|(_, value)| value.as_str()).collect()
}

#[test]
fn every_answer_carries_the_key_as_its_own_client_sent_it() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ECHOED);
    for (spelling, body, status, problem) in [
        ("key-1", "{}", 201, ""),
        ("\"key-1\";v=1", "{}", 201, "a replay, in another spelling"),
        ("\"key-1\"", "[]", 422, "key-reused"),
        ("ke", "{}", 400, "key-invalid"),
        ("\"key", "{}", 400, "key-invalid"),
        (&"k".repeat(61), "{}", 400, "key-invalid"),
    ] {
        let answer = pay(spelling, body).send(gateway.port);
        assert_eq!((answer.status, echoed(&answer)), (status, vec![spelling]), "{problem}");
    }
    let large = pay("key-2", &format!("\"{}\"", "x".repeat(2 << 20))).send(gateway.port);
    assert_eq!((large.status, echoed(&large)), (413, vec!["key-2"]));
    let nobodys = Request::pay("key-3", "{}").send(gateway.port);
    assert_eq!((nobodys.problem().as_str(), echoed(&nobodys)), ("scope-missing", vec!["key-3"]));

    pay("key-4", "{}").act("hold").send_aside(gateway.port);
    upstream.reached(2);
    let running = pay("\"key-4\"", "{}").act("hold").send(gateway.port);
    assert_eq!((running.problem().as_str(), echoed(&running)), ("in-flight", vec!["\"key-4\""]));
    let lost = pay("key-5", "{}").act("drop").send(gateway.port);
    assert_eq!((lost.status, echoed(&lost)), (502, vec!["key-5"]));
    let released = pay("key-6", "{}").act("status 429").send(gateway.port);
    assert_eq!((released.status, echoed(&released)), (429, vec!["key-6"]));
}

#[test]
fn the_key_is_echoed_over_http_2_and_where_the_store_is_away() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ECHOED);
    let answer =
        Streams::open(gateway.port).send(Streams::pay("key-1", "{}", &[("X-Tenant", "a")]));
    assert_eq!((answer.status, echoed(&answer)), (201, vec!["key-1"]));

    let redis = format!("redis://127.0.0.1:{}", free_port());
    let gateway = Gateway::spawn(upstream.port, &redis, "", ECHOED);
    until("it to listen", || {
        Connection::try_open(gateway.port, crate::harness::PATIENCE).is_some()
    });
    let answer = pay("key-2", "{}").send(gateway.port);
    assert_eq!((answer.problem().as_str(), echoed(&answer)), ("store-unavailable", vec!["key-2"]));
}

#[test]
fn what_has_no_one_readable_key_is_not_echoed() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ECHOED);
    let twice = pay("key-1", "{}").field("Idempotency-Key", "key-1").send(gateway.port);
    assert_eq!((twice.problem().as_str(), echoed(&twice)), ("key-invalid", vec![]));
    for unreadable in ["", "key\u{e9}", "key\tkey"] {
        let refused = pay(unreadable, "{}").send(gateway.port);
        assert_eq!((refused.status, echoed(&refused)), (400, vec![]), "{unreadable:?}");
    }
    let without = Request::new("POST", "/v1/payments").json("{}").send(gateway.port);
    assert_eq!((without.status, echoed(&without)), (201, vec![]));
    let watched =
        Request::new("POST", "/v1/watched").field("Idempotency-Key", "key-1").send(gateway.port);
    assert_eq!(
        (watched.status, echoed(&watched)),
        (201, vec![]),
        "a route that only watches changes no answer"
    );
}

#[test]
fn an_echoed_key_is_neither_stored_nor_logged_even_if_the_upstream_echoes_it_too() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    let gateway = Gateway::on(
        upstream.port,
        &format!("file:{}", data.display()),
        "[access_log]\nformat = \"json\"",
        ECHOED,
    );
    let script = "field Idempotency-Key=canary-of-the-upstream, field X-Seen=in-the-store";
    for replayed in [false, true] {
        let answer = pay("canary-of-the-client", "{}").act(script).send(gateway.port);
        assert_eq!((answer.status, answer.replayed()), (201, replayed));
        assert_eq!(echoed(&answer), ["canary-of-the-client"]);
    }
    until("both to be counted", || {
        gateway.metric("onceward_requests_total{route=\"payments\",outcome=\"replayed\"}") == 1.0
    });
    assert!(!gateway.logs().contains("canary"), "{}", gateway.logs());
    drop(gateway);
    let files = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap_or_default());
    let stored: Vec<u8> = files.flatten().collect();
    let has = |text: &str| stored.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(has("in-the-store") && !has("canary"));
}
