//! Sagas as others see them: events in the log and for sinks, spans, and durations.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Answer, Connection, Gateway, Hooks, RedisServer, Request, Upstream, until};
use crate::traces::{attribute, settings as tracing, spans};

/// An order of two steps, with an event for a webhook whatever happens.
const ORDER: &str = r#"
[store]
format = 3
[log]
enabled = true
[encryption]
keys = [{ id = "a", env = "SAGA_KEY" }]
[[sinks]]
name = "watcher"
webhook = { url = "http://127.0.0.1:HOOKS/hooks", secrets = [{ env = "HASHING_SECRET" }] }
retry = { first = "10ms", max = "100ms" }
[[sagas]]
name = "order"
path = "/v1/orders"
answer = { status = 201, body = '{"reservation": {{ steps.reserve.body.id }}}' }
[[sagas.publish]]
on = ["saga.started", "saga.step", "saga.stuck", "saga.resumed", "saga.completed", "saga.failed"]
to = ["watcher"]
data = { sku = "request:/sku", reservation = "response:/reservation" }
[[sagas.steps]]
name = "reserve"
request = { path = "/v1/reservations", body = '{"sku": {{ request.body.sku }}}' }
compensate = { method = "DELETE", path = "/v1/reservations/{{ steps.reserve.body.id }}" }
[[sagas.steps]]
name = "ship"
request = { path = "/v1/shipments", body = '{"card": {{ request.body.card }}}' }
compensate = "none"
retry = { first = "1s", max = "2s", attempts = 100 }
"#;

const BODY: &str = r#"{"sku": "A/1", "card": "canary-card"}"#;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

struct Scene {
    services: Upstream,
    hooks: Hooks,
    gateway: Gateway,
}

impl Scene {
    fn new() -> Scene {
        Scene::on("memory:", "")
    }

    fn on(store: &str, settings: &str) -> Scene {
        let (services, hooks) = (Upstream::start(), Hooks::start());
        services.answer_line("POST /v1/reservations", r#"body {"id":"canary-id"}"#);
        services.answer_line("DELETE /v1/reservations/", "status 204");
        let file = format!("{settings}{}", ORDER.replace("HOOKS", &hooks.port.to_string()));
        let url = format!("http://127.0.0.1:{}", services.port);
        let gateway = Gateway::launch(&url, store, &file, "", |command| {
            command.env("SAGA_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
        });
        until("the gateway to be ready", || gateway.is_ready());
        Scene { services, hooks, gateway }
    }

    fn order(&self) -> Answer {
        order().send(self.gateway.port)
    }

    /// Returns the events of sagas in the log: the names, the status, and the steps with theirs.
    fn log(&self) -> Vec<String> {
        let (mut from, mut sagas) = ("since=2020-01-01T00:00:00Z".to_owned(), Vec::new());
        loop {
            let page = self.gateway.ask("GET", &format!("/v1/log?{from}")).json();
            assert!(!page.to_string().contains("canary"), "{page}");
            let events = page["events"].as_array().unwrap();
            if events.is_empty() {
                return sagas;
            }
            let of_sagas = events.iter().map(|event| &event["saga"]).filter(|saga| !saga.is_null());
            sagas.extend(of_sagas.map(words));
            from = format!("after={}", page["cursor"].as_str().unwrap());
        }
    }

    /// Waits for so many events of the sink. Returns their types and steps, in the order of their
    /// delivery.
    fn delivered(&self, events: usize) -> Vec<String> {
        let hooks = self.hooks.wait_for(events);
        let events = hooks.iter().map(|hook| {
            let event = hook.event();
            assert_eq!(event["data"]["sku"], "A/1");
            format!("{}: {}", hook.text("type"), steps(&event["data"]["saga"]))
        });
        events.collect()
    }
}

fn order() -> Request {
    Request::new("POST", "/v1/orders").field("Idempotency-Key", "canary-key").json(BODY)
}

fn words(saga: &Value) -> String {
    let names: Vec<&str> =
        saga["events"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    format!("{} {}: {}", names.join(" "), saga["status"].as_str().unwrap(), steps(saga))
}

fn steps(saga: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = saga["steps"].as_array().into_iter().flatten();
    let steps = steps.map(|step| format!("{} {}", text(&step["name"]), text(&step["status"])));
    let stuck = saga["stuck"].as_array().into_iter().flatten();
    let stuck = stuck.map(|stuck| format!("{} {}", text(&stuck["step"]), text(&stuck["cause"])));
    steps.chain(stuck).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_saga_that_completes_is_in_the_log_and_at_the_sink_once_and_in_order() {
    let (redis, dir) = (RedisServer::start(), TempDir::new().unwrap());
    let file = format!("file:{}", dir.path().join("data").display());
    for store in ["memory:", &redis.url(), &file] {
        completed_on(store);
    }
}

fn completed_on(store: &str) {
    let scene = Scene::on(store, "");
    assert_eq!(scene.order().status, 201);
    let started = "saga.started running: reserve running";
    let step = "saga.step running: reserve done, ship running";
    let end = "saga.step saga.completed completed: ship done";
    assert_eq!(scene.log(), [started, step, end]);
    let delivered = [
        "onceward.saga.started: reserve running",
        "onceward.saga.step: reserve done, ship running",
        "onceward.saga.step: ship done",
        "onceward.saga.completed: ship done",
    ];
    assert_eq!(scene.delivered(4), delivered);
    let events: Vec<Value> = scene.hooks.delivered().iter().map(|hook| hook.event()).collect();
    let sequences: Vec<&str> = events.iter().map(|it| it["sequence"].as_str().unwrap()).collect();
    assert!(sequences.is_sorted(), "{sequences:?}");
    let end = &events[3]["data"];
    let expected = json!({
        "operation": events[0]["subject"], "route": "order", "state": "completed",
        "status": 201, "settled_by": null, "reservation": "canary-id", "sku": "A/1",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&end[name], value, "{name}: {end}");
    }
    let metric = |line: &str| scene.gateway.metric(line);
    assert_eq!(metric("onceward_saga_seconds_count{saga=\"order\"}"), 1.0);
    let sum = metric("onceward_saga_seconds_sum{saga=\"order\"}");
    assert!((0.0..60.0).contains(&sum), "{sum}");
    assert!(scene.order().replayed());
    assert_eq!(metric("onceward_saga_seconds_count{saga=\"order\"}"), 1.0, "no second saga");
}

#[test]
fn a_saga_that_fails_names_what_failed_in_the_log_on_the_page_and_at_the_sink() {
    let scene = Scene::new();
    scene.services.answer_line("POST /v1/shipments", "status 422, body no canary goes there");
    assert_eq!(scene.order().problem(), "saga-failed");
    let expected = [
        "saga.started running: reserve running",
        "saga.step running: reserve done, ship running",
        "saga.step compensating: reserve undoing, ship failed",
        "saga.step saga.failed failed: reserve undone",
    ];
    assert_eq!(scene.log(), expected);
    let last = scene.delivered(5).pop().unwrap();
    assert_eq!(last, "onceward.saga.failed: reserve undone");
    let event = scene.hooks.delivered().pop().unwrap().event();
    let failure = json!({ "cause": "step", "step": "ship", "upstream_status": 422 });
    assert_eq!(
        (&event["data"]["saga"]["failure"], &event["data"]["status"]),
        (&failure, &json!(409))
    );
    let saga = event["subject"].as_str().unwrap();
    let mut tail = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["log", "tail", "--since", "1h", "--admin"])
        .arg(format!("127.0.0.1:{}", scene.gateway.admin))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(tail.stdout.take().unwrap()));
    let line = lines.find(|line| line.as_ref().unwrap().contains("saga.failed")).unwrap().unwrap();
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert!(line.ends_with("  reserve undone, because of ship (422)"), "{line}");
    until("the end in the timeline", || {
        let page = scene.gateway.ask("GET", &format!("/operations/{saga}")).text();
        page.contains("The saga failed, and all is undone: the result is 409")
            && page.contains("reserve undone, because of ship (422)")
            && !page.contains("canary")
    });
}

#[test]
fn a_saga_that_is_stuck_is_an_event_once_and_another_one_when_it_goes_on() {
    let scene = Scene::new();
    scene.services.answer_line("POST /v1/shipments", "status 422");
    scene.services.answer_line("DELETE /v1/reservations/", "status 409");
    assert_eq!(scene.order().problem(), "saga-stuck");
    assert_eq!(scene.order().problem(), "saga-stuck");
    let stuck = "saga.step saga.stuck stuck: reserve refused, reserve refused";
    assert_eq!(scene.log().last().map(String::as_str), Some(stuck));
    scene.services.answer_line("DELETE /v1/reservations/", "status 204");
    let listed = scene.gateway.ask("GET", "/v1/sagas?status=stuck").json();
    let id = listed["sagas"][0]["id"].as_str().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["sagas", "retry", id, "--reason", "the stock works again", "--admin"])
        .arg(format!("127.0.0.1:{}", scene.gateway.admin))
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    until("the end", || scene.order().problem() == "saga-failed");
    let log = scene.log();
    let expected = [
        "saga.resumed saga.step compensating: reserve undoing",
        "saga.step saga.failed failed: reserve undone",
    ];
    assert_eq!(log[log.len() - 2..], expected);
    assert_eq!(log.iter().filter(|event| event.contains("saga.stuck")).count(), 1, "{log:?}");
    let delivered = scene.delivered(9);
    let of_stop = ["stuck", "resumed"].map(|name| {
        let kind = format!("onceward.saga.{name}");
        delivered.iter().filter(|event| event.starts_with(&kind)).count()
    });
    assert_eq!(of_stop, [1, 1], "{delivered:?}");
}

/// Returns the span with this name, and checks that there is only one.
#[track_caller]
fn only<'s>(all: &'s [Value], name: &str) -> &'s Value {
    let found: Vec<&Value> = all.iter().filter(|span| span["name"] == name).collect();
    let [span] = found[..] else { panic!("one {name:?}: {all:?}") };
    span
}

/// Returns the statuses of the attempts below a step, sorted.
fn attempts<'s>(all: &'s [Value], step: &Value) -> Vec<&'s str> {
    let is_below = |span: &&Value| span["parentSpanId"] == step["spanId"];
    let forwards = all.iter().filter(is_below).filter(|span| span["name"] == "forward");
    let mut statuses: Vec<&str> =
        forwards.map(|span| attribute(span, "http.response.status_code")).collect();
    statuses.sort_unstable();
    statuses
}

#[test]
fn the_spans_of_a_saga_are_one_tree_below_its_request() {
    let collector = Upstream::start();
    let mut scene = Scene::on("memory:", &tracing(collector.port, ""));
    let traceparent = format!("00-{TRACE}-{CLIENT_SPAN}-01");
    let answer = order().field("traceparent", &traceparent).send(scene.gateway.port);
    assert_eq!(answer.status, 201);
    scene.gateway.signal("TERM");
    assert!(scene.gateway.wait().success());
    let all = spans(&collector);
    let (request, saga) = (only(&all, "POST order"), only(&all, "saga order"));
    let ids = (&request["traceId"], &request["parentSpanId"], &saga["parentSpanId"]);
    assert_eq!(ids, (&json!(TRACE), &json!(CLIENT_SPAN), &request["spanId"]));
    for (number, name) in ["step reserve", "step ship"].into_iter().enumerate() {
        let step = only(&all, name);
        assert_eq!((&step["traceId"], &step["parentSpanId"]), (&json!(TRACE), &saga["spanId"]));
        assert_eq!(attempts(&all, step), ["201"]);
        let sent = scene.services.seen()[number].get("traceparent").unwrap().to_owned();
        let forward = all
            .iter()
            .find(|span| span["name"] == "forward" && span["parentSpanId"] == step["spanId"]);
        let forward = forward.unwrap()["spanId"].as_str().unwrap();
        assert_eq!(sent, format!("00-{TRACE}-{forward}-01"), "the upstream's parent");
    }
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn a_gateway_that_takes_a_saga_over_continues_its_tree_of_spans() {
    let (collector, dir) = (Upstream::start(), TempDir::new().unwrap());
    let store = format!("file:{}", dir.path().join("data").display());
    let mut scene = Scene::on(&store, &tracing(collector.port, ""));
    scene.services.answer_line("POST /v1/shipments", "status 429");
    let mut client = Connection::open(scene.gateway.port);
    let traceparent = format!("00-{TRACE}-{CLIENT_SPAN}-01");
    client.write(&order().field("traceparent", &traceparent).bytes());
    let is_declined = |span: &Value| {
        span["name"] == "forward" && attribute(span, "http.response.status_code") == "429"
    };
    until("an attempt that is declined", || spans(&collector).iter().any(is_declined));
    scene.gateway.kill();
    scene.services.answer_line("POST /v1/shipments", "status 422");
    scene.gateway.start_again();
    until("the end", || scene.order().problem() == "saga-failed");
    until("the saga", || spans(&collector).iter().any(|span| span["name"] == "saga order"));
    let all: Vec<Value> =
        spans(&collector).into_iter().filter(|span| span["traceId"] == TRACE).collect();
    let saga = only(&all, "saga order");
    assert_eq!(attribute(saga, "onceward.outcome"), "failed");
    let outcomes = [("step reserve", "done"), ("step ship", "failed"), ("undo reserve", "undone")];
    for (name, outcome) in outcomes {
        let step = only(&all, name);
        assert_eq!(step["parentSpanId"], saga["spanId"], "{step}");
        assert_eq!(attribute(step, "onceward.outcome"), outcome);
    }
    let shipping = attempts(&all, only(&all, "step ship"));
    assert!(shipping.starts_with(&["422"]) && shipping.ends_with(&["429"]), "{shipping:?}");
    let undo = only(&all, "undo reserve");
    assert_eq!(attribute(undo, "onceward.route"), "order/reserve/undo");
    assert_eq!(attempts(&all, undo), ["204"]);
}

#[test]
fn steps_continue_the_trace_of_the_client_also_where_no_spans_are_exported() {
    let scene = Scene::new();
    let traceparent = format!("00-{TRACE}-{CLIENT_SPAN}-01");
    let answer = order().field("traceparent", &traceparent).send(scene.gateway.port);
    assert_eq!(answer.status, 201);
    let seen = scene.services.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| seen.get("traceparent") == Some(&*traceparent)));
}
