//! Events of operations reach their sinks.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::json;

use crate::harness::{Gateway, Hook, Hooks, RedisServer, Request, Upstream, until};

/// The value of the variable that signs the webhooks of these stories.
const SECRET: &str = "a secret of the stories, of 32 bytes and more";

/// Returns settings with the sink `ledger`, and more settings of it.
fn settings(hooks: &Hooks, more: &str) -> String {
    let port = hooks.port;
    format!(
        r#"
[store]
format = 2
[[sinks]]
name = "ledger"
webhook = {{ url = "http://127.0.0.1:{port}/hooks", secrets = [{{ env = "HASHING_SECRET" }}] }}
retry = {{ first = "20ms", max = "100ms" }}
{more}
"#
    )
}

/// A route that publishes to `ledger`.
const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
lease = "3s"
uncertain_after = "1s"
release_status = ["422"]
[[routes.publish]]
on = ["completed", "uncertain", "released"]
to = ["ledger"]
data = { answer = "response:", nothing = "response:/nothing" }
[[routes]]
name = "refunds"
path = "/v1/refunds"
"#;

fn verified(hook: &Hook) -> bool {
    let (id, time) = (hook.id(), hook.request.get("webhook-timestamp").unwrap());
    let signed = [format!("{id}.{time}.").as_bytes(), &hook.request.body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = STANDARD.encode(hmac::sign(&key, &signed));
    hook.request.get("webhook-signature") == Some(&format!("v1,{signature}"))
}

#[test]
fn a_payment_is_one_signed_event_and_its_replays_are_none() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    for store in [format!("file:{}", folder.path().join("data").display()), redis.url()] {
        let (upstream, hooks) = (Upstream::start(), Hooks::start());
        let gateway = Gateway::on(upstream.port, &store, &settings(&hooks, ""), ROUTES);
        let pay = Request::pay("k", "{}").act(r#"type application/json, body {"id":"pay_1"}"#);
        let answer = pay.send(gateway.port);
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert!(pay.send(gateway.port).replayed());
        let [hook] = &hooks.wait_for(1)[..] else { panic!("one event") };
        assert!(verified(hook));
        let event = hook.event();
        let operation = event["subject"].as_str().unwrap();
        assert!(gateway.ask("GET", &format!("/v1/operations/{operation}")).status == 200);
        let expected = json!({
            "specversion": "1.0",
            "id": hook.id(),
            "source": "urn:onceward",
            "type": "onceward.operation.completed",
            "subject": operation,
            "time": event["time"],
            "datacontenttype": "application/json",
            "partitionkey": operation,
            "sequence": event["sequence"],
            "data": {
                "operation": operation,
                "route": "payments",
                "state": "completed",
                "status": 201,
                "settled_by": "upstream",
                "opened_at": event["data"]["opened_at"],
                "closed_at": event["time"],
                "answer": { "id": "pay_1" },
                "missing": { "nothing": "absent" },
            },
        });
        assert_eq!(event, expected);
        until("it no longer waits", || {
            gateway.metric("onceward_outbox_backlog{sink=\"ledger\"}") == 0.0
        });
        Request::pay("other", "{}").send(gateway.port);
        hooks.wait_for(2);
        assert_eq!(hooks.attempts().len(), 2, "the replay made no event");
    }
}

#[test]
fn an_operation_that_is_uncertain_and_then_settled_makes_two_events_in_order() {
    let (upstream, hooks) =
        (Upstream::start(), Hooks::deciding(|_, before| [500, 200][before.min(1)]));
    let gateway = Gateway::with(upstream.port, &settings(&hooks, ""), ROUTES);
    let lost = Request::pay("k", "{}").act("drop").send(gateway.port);
    let operation = lost.json()["operation"].as_str().unwrap().to_owned();
    let settled = std::process::Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["operations", "--admin", &format!("127.0.0.1:{}", gateway.admin), "resolve"])
        .args([&operation, "--status", "201", "--reason", "the bank has it"])
        .output()
        .unwrap();
    assert!(settled.status.success(), "{settled:?}");
    let delivered = hooks.wait_for(2);
    let states: Vec<_> = delivered.iter().map(|hook| hook.event()["data"].clone()).collect();
    let facts = |data: &serde_json::Value| {
        (data["state"].clone(), data["status"].clone(), data["settled_by"].clone())
    };
    assert_eq!(facts(&states[0]), (json!("uncertain"), json!(null), json!(null)));
    assert_eq!(facts(&states[1]), (json!("completed"), json!(201), json!("operator")));
    assert!(delivered[0].text("sequence") < delivered[1].text("sequence"));
    let ids: Vec<_> = hooks.attempts().iter().map(|hook| hook.id().to_owned()).collect();
    assert_eq!(ids[0], ids[1], "each failed once");
    assert_eq!(ids[2], ids[3]);
}

#[test]
fn events_outlive_a_gateway_that_is_killed_while_its_receiver_is_away() {
    let (upstream, hooks) = (Upstream::start(), Hooks::deciding(|_, _| 503));
    let mut gateway = Gateway::with(upstream.port, &settings(&hooks, ""), ROUTES);
    for n in 0..20 {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
    let attempted = || {
        let hooks = hooks.attempts();
        hooks.iter().map(|hook| hook.id().to_owned()).collect::<BTreeSet<_>>().len()
    };
    until("each was attempted", || attempted() == 20);
    gateway.kill();
    let before = hooks.attempts();
    hooks.decide(|_, _| 200);
    gateway.start_again();
    let delivered = hooks.wait_for(20);
    let ids = |hooks: &[Hook]| {
        hooks.iter().map(|hook| (hook.id().to_owned(), hook.request.body.clone())).collect()
    };
    let (before, after): (BTreeSet<_>, BTreeSet<_>) = (ids(&before), ids(&delivered));
    assert_eq!(before, after, "the same ids, with the same bytes");
}

#[test]
fn gateways_of_one_redis_share_the_work_and_take_over_from_one_that_is_killed() {
    let redis = RedisServer::start();
    let (upstream, hooks) = (Upstream::start(), Hooks::deciding(|_, _| 500));
    let settings = settings(&hooks, "timeout = \"1s\"\n");
    let mut gateways: Vec<_> =
        (0..2).map(|_| Gateway::on(upstream.port, &redis.url(), &settings, ROUTES)).collect();
    until("shares", || gateways.iter().any(|one| one.logs().contains("partitions=128")));
    for n in 0..40 {
        let gateway = &gateways[n % 2];
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
    let attempted = || {
        let hooks = hooks.attempts();
        hooks.iter().map(|hook| hook.id().to_owned()).collect::<BTreeSet<_>>().len()
    };
    until("each was attempted", || attempted() == 40);
    gateways[0].kill();
    hooks.decide(|_, _| 200);
    hooks.wait_for(40);
    assert_eq!(attempted(), 40, "one id for each event");
}

#[test]
fn a_full_sink_refuses_new_operations_of_its_routes_alone_until_it_has_room() {
    let (upstream, hooks) = (Upstream::start(), Hooks::deciding(|_, _| 500));
    let gateway = Gateway::with(upstream.port, &settings(&hooks, "max_backlog = 3\n"), ROUTES);
    for n in 0..3 {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
    gateway.logged("the sink's backlog has reached its limit");
    let refused = Request::pay("k3", "{}").send(gateway.port);
    assert_eq!((refused.status, refused.problem().as_str()), (503, "outbox-full"));
    assert_eq!(refused.json()["retryable"], true);
    assert!(refused.get("retry-after").is_some());
    assert!(Request::pay("k0", "{}").send(gateway.port).replayed(), "a duplicate is answered");
    let refund = Request::new("POST", "/v1/refunds").field("idempotency-key", "k").json("{}");
    assert_eq!(refund.send(gateway.port).status, 201, "another route");
    assert_eq!(upstream.executed(), 4);
    hooks.decide(|_, _| 200);
    hooks.wait_for(3);
    until("there is room", || Request::pay("k3", "{}").send(gateway.port).status == 201);
}

#[test]
fn events_of_a_sink_that_the_configuration_does_not_name_wait_until_it_does() {
    let (upstream, hooks) = (Upstream::start(), Hooks::deciding(|_, _| 500));
    let mut gateway = Gateway::with(upstream.port, &settings(&hooks, ""), ROUTES);
    let with_sink = std::fs::read_to_string(gateway.config()).unwrap();
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    until("an attempt", || !hooks.attempts().is_empty());
    gateway.signal("TERM");
    gateway.wait();
    std::fs::write(gateway.config(), crate::harness::ROUTES).unwrap();
    gateway.start_again();
    hooks.decide(|_, _| 200);
    until("it is counted", || gateway.metric("onceward_outbox_backlog{sink=\"ledger\"}") == 1.0);
    let attempts = hooks.attempts().len();
    std::fs::write(gateway.config(), with_sink).unwrap();
    gateway.signal("HUP");
    hooks.wait_for(1);
    assert_eq!(hooks.attempts().len(), attempts + 1, "nobody attempted it meanwhile");
}

#[test]
fn a_secret_that_is_replaced_between_retries_signs_the_next_one() {
    let (upstream, hooks) = (Upstream::start(), Hooks::deciding(|_, _| 500));
    let gateway = Gateway::with(upstream.port, &settings(&hooks, ""), ROUTES);
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    until("an attempt", || !hooks.attempts().is_empty());
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "another secret, of more than 24 bytes").unwrap();
    let config = std::fs::read_to_string(gateway.config()).unwrap();
    let file = format!("file = \"{}\"", secret.path().display());
    let both = format!("{{ {file} }}, {{ env = \"HASHING_SECRET\" }}");
    let config = config.replace("{ env = \"HASHING_SECRET\" }", &both);
    std::fs::write(gateway.config(), config).unwrap();
    gateway.signal("HUP");
    until("an attempt with two signatures", || {
        let attempts = hooks.attempts();
        let signature = attempts.last().unwrap().request.get("webhook-signature").unwrap();
        signature.split(' ').count() == 2
    });
    hooks.decide(|_, _| 200);
    let delivered = hooks.wait_for(1);
    let first = hooks.attempts().remove(0);
    assert!(verified(&first));
    assert_eq!(first.id(), delivered[0].id());
}
