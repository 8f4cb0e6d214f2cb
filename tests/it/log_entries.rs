//! Event log entries about requests: chosen fields, traces, times, and the handling of duplicates.

use serde_json::{Value, json};

use crate::harness::{Answer, Gateway, ROUTES, RedisServer, Request, Upstream, until};

const LOG: &str = "[log]\nenabled = true";

const FIELDS: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
fields = { order = "request:/order/id", amount = "request:/amount", card = "request:/card", payment = "response:/id" }
"#;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn found(gateway: &Gateway, field: &str, value: &str) -> Vec<Value> {
    let listed = gateway.ask("GET", &format!("/v1/operations?field.{field}={value}")).json();
    listed["operations"].as_array().unwrap().clone()
}

#[test]
fn an_operation_is_found_by_its_order_and_shown_with_trace_and_time() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, FIELDS);
    let body =
        r#"{"order":{"id":"A-17"},"amount":1999,"card":"4242 4242 4242 4242","more":"unchosen"}"#;
    let pay =
        Request::pay("k", body).field("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let paid = pay.act(r#"wait 30, body {"id":"pay_1"}"#).send(gateway.port);
    assert_eq!(paid.status, 201);
    assert_eq!(Request::pay("other", r#"{"order":{"id":"A-18"}}"#).send(gateway.port).status, 201);

    until("the order to be known", || found(&gateway, "payment", "pay_1").len() == 1);
    for (field, value) in [("order", "A-17"), ("amount", "1999"), ("card", "%E2%80%A64242")] {
        assert_eq!(found(&gateway, field, value).len(), 1, "{field}");
    }
    assert_eq!(found(&gateway, "order", "A-1").len(), 0);
    let operation = &found(&gateway, "order", "A-17")[0];
    let chosen =
        json!({"order": "A-17", "amount": "1999", "card": "\u{2026}4242", "payment": "pay_1"});
    assert_eq!(operation["fields"], chosen, "{operation}");
    assert_eq!(operation["trace"], TRACE);

    let timeline = gateway
        .ask(
            "GET",
            &format!("/v1/operations/{}/timeline", operation["operation"].as_str().unwrap()),
        )
        .json();
    let [claimed, completed] = timeline["moments"].as_array().unwrap().as_slice() else {
        panic!("{timeline}")
    };
    for moment in [claimed, completed] {
        assert_eq!(
            (&moment["trace"], &moment["request_bytes"]),
            (&TRACE.into(), &body.len().into()),
            "{moment}"
        );
    }
    assert_eq!(
        (&claimed["upstream_ms"], &claimed["fields"]["order"]),
        (&Value::Null, &"A-17".into()),
        "{claimed}"
    );
    assert_eq!(
        (&completed["response_bytes"], &completed["fields"]),
        (&paid.body.len().into(), &json!({"payment": "pay_1"}))
    );
    assert!((30..20_000).contains(&completed["upstream_ms"].as_u64().unwrap()), "{completed}");
    for word in ["4242 4242", "unchosen"] {
        assert!(!timeline.to_string().contains(word), "{word}: {timeline}");
    }
}

#[test]
fn what_an_operator_states_is_found_by_its_fields_too() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, FIELDS);
    let lost = Request::pay("k", r#"{"order":{"id":"A-17"}}"#).act("drop").send(gateway.port);
    let operation = lost.json()["operation"].as_str().unwrap().to_owned();
    let stated = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(stated.path(), r#"{"id":"pay_9"}"#).unwrap();
    let words = [
        "resolve",
        &operation,
        "--status",
        "201",
        "--body",
        stated.path().to_str().unwrap(),
        "--reason",
        "seen",
    ];
    assert_eq!(crate::admin::cli(&gateway, &words).0, 0);
    until("the payment to be known", || found(&gateway, "payment", "pay_9").len() == 1);
    assert_eq!(found(&gateway, "order", "A-17")[0]["operation"], operation.as_str());
}

#[test]
fn a_duplicate_that_waited_is_recorded_with_its_wait_time() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, &format!("{FIELDS}on_in_flight = \"wait\"\n"));
    let first = Request::pay("k", "{}").act("hold").send_aside(gateway.port);
    upstream.reached(1);
    let second = Request::pay("k", "{}")
        .field("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .send_aside(gateway.port);
    until("the duplicate to wait", || gateway.metric("onceward_waiters") == 1.0);
    upstream.release();
    assert_eq!(first.join().unwrap().status, 201);
    assert!(second.join().unwrap().replayed());
    assert!(Request::pay("k", "{}").send(gateway.port).replayed());
    let moments = || {
        let operations = gateway.ask("GET", "/v1/operations?route=payments").json();
        let Some(operation) = operations["operations"][0]["operation"].as_str() else {
            return Vec::new();
        };
        let timeline = gateway.ask("GET", &format!("/v1/operations/{operation}/timeline")).json();
        timeline["moments"].as_array().unwrap().clone()
    };
    until("both duplicates to be recorded", || moments().len() == 4);
    let of = |kind: &str| moments().into_iter().find(|moment| moment["kind"] == kind).unwrap();
    assert!(
        of("waited")["waited_ms"].is_u64() && of("waited")["trace"] == TRACE,
        "{}",
        of("waited")
    );
    assert!(of("replayed").get("waited_ms").is_none());
}

/// Returns all observations that are stored in a Redis server.
fn observations(redis: &RedisServer) -> Vec<Value> {
    let shown = redis.cli(&["xrange", "onceward:{p0}:observations", "-", "+"]);
    let batches = shown.lines().filter(|line| line.starts_with('['));
    let groups = batches.flat_map(|batch| serde_json::from_str::<Vec<Value>>(batch).unwrap());
    let of_group = |mut group: Value| {
        let seen = group["seen"].take();
        let with_its_group = move |one: &Value| {
            let members = [&group, one].into_iter().flat_map(|of| of.as_object().unwrap().clone());
            members.filter(|(_, value)| !value.is_null()).collect::<Value>()
        };
        seen.as_array().unwrap().iter().map(with_its_group).collect::<Vec<_>>()
    };
    groups.flat_map(of_group).collect()
}

#[test]
fn a_watched_route_records_what_enforcing_would_have_done_and_to_whom() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let route = "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nmode = \"shadow\"\nexplain = true\nkey = { required = true }\n";
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, route);
    let pay = |caller: &str, body: &str| Request::pay("k", body).field("Authorization", caller);
    assert_eq!(pay("alice", r#"{"amount":4200,"to":"canary"}"#).send(gateway.port).status, 201);
    let again = |caller: &str, body: &str| -> Answer { pay(caller, body).send(gateway.port) };
    until("a duplicate to be watched", || {
        again("alice", r#"{"amount":4200,"to":"canary"}"#);
        observations(&redis)
            .iter()
            .any(|seen| seen["kind"] == "would_replay" && seen["status"] == 201)
    });
    again("alice", r#"{"amount":9900,"to":"canary"}"#);
    again("mallory", r#"{"amount":4200,"to":"canary"}"#);
    Request::new("POST", "/v1/payments")
        .field("Authorization", "alice")
        .json("{}")
        .send(gateway.port);
    // The first request may still have been active when the second came.
    let refused = |seen: &Value| seen["kind"] == "would_refuse" && seen["problem"] != "in-flight";
    until("all to be recorded", || {
        observations(&redis).iter().filter(|seen| refused(seen)).count() == 3
    });

    let seen = observations(&redis);
    let of = |problem: &str| -> Vec<&Value> {
        seen.iter().filter(|seen| seen["problem"] == problem).collect()
    };
    let replay = seen.iter().find(|seen| seen["kind"] == "would_replay").unwrap();
    let (reused, missing) = (of("key-reused"), of("key-missing"));
    let changed = reused.iter().find(|seen| seen["scope"] == replay["scope"]).unwrap();
    assert_eq!(
        (&changed["status"], &changed["differing"]),
        (&422.into(), &json!([{"pointer": "/amount"}])),
        "{changed}"
    );
    let stranger = reused.iter().find(|seen| seen["scope"] != replay["scope"]).unwrap();
    assert!(stranger["scope"].is_string() && stranger.get("differing").is_none(), "{stranger}");
    assert_eq!(
        (&missing[0]["status"], &missing[0]["scope"], missing[0].get("operation")),
        (&400.into(), &replay["scope"], None)
    );
    for one in &seen {
        assert!(one["route"] == "payments" && one["trace"].as_str().unwrap().len() == 32, "{one}");
    }
    assert!(!format!("{seen:?}").contains("canary"), "{seen:?}");
    assert_eq!(
        redis.cli(&["--scan", "--pattern", "*:events"]).trim(),
        "",
        "what is watched makes no events"
    );
}

#[test]
fn duplicates_of_the_last_moment_before_a_stop_are_recorded() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let mut gateway = Gateway::on(upstream.port, &redis.url(), LOG, ROUTES);
    let pay = || Request::pay("k", "{}").send(gateway.port);
    assert_eq!(pay().status, 201);
    for _ in 0..5 {
        assert!(pay().replayed());
    }
    gateway.signal("TERM");
    assert!(gateway.wait().success());
    let requests = |seen: &Value| seen["times"].as_u64().unwrap_or(1);
    assert_eq!(observations(&redis).iter().map(requests).sum::<u64>(), 5);
}
