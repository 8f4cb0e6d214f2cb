//! Sagas that run: what operators see, and what they decide, by API and by commands.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::admin::TOKENS;
use crate::harness::{Answer, Gateway, ReceivedRequest, Request, Upstream, until};

/// An order of two steps. Its body has the upstream's scripts for both; without a script, a request
/// is answered like all others.
const SAGA: &str = r#"
[store]
format = 3
[log]
enabled = true
[encryption]
keys = [{ id = "a", env = "SAGA_KEY" }]
[[sagas]]
name = "order"
path = "/v1/orders"
[[sagas.steps]]
name = "reserve"
compensate = { method = "DELETE", path = "/v1/reservations/7" }
[sagas.steps.request]
path = "/v1/reservations"
headers = { X-Act = "{{ request.body.reserve }}" }
[[sagas.steps]]
name = "ship"
timeout = "60s"
compensate = "none"
[sagas.steps.request]
path = "/v1/shipments"
headers = { X-Act = "{{ request.body.ship }}" }
"#;

/// The reservation is made, and the shipment is refused.
const REFUSED: &str = r#"{"reserve": "status 201", "ship": "status 422"}"#;
/// The shipment is not answered until the upstream is released.
const HELD: &str = r#"{"reserve": "status 201", "ship": "hold"}"#;

struct Scene {
    gateway: Gateway,
    upstream: Upstream,
}

impl Scene {
    fn new() -> Scene {
        let upstream = Upstream::start();
        let url = format!("http://127.0.0.1:{}", upstream.port);
        let settings = format!("{SAGA}{TOKENS}");
        let gateway = Gateway::launch(&url, "memory:", &settings, "", |command| {
            command.env("SAGA_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
        });
        until("the gateway to be ready", || gateway.is_ready());
        Scene { gateway, upstream }
    }

    /// Starts a saga that can't be undone, because the upstream refuses it. Returns its id.
    fn stuck() -> (Scene, String) {
        let scene = Scene::new();
        scene.upstream.answer_others("status 409");
        assert_eq!(scene.order(REFUSED).problem(), "saga-stuck");
        let id = scene.only_saga("stuck");
        (scene, id)
    }

    fn order(&self, body: &str) -> Answer {
        order(body).send(self.gateway.port)
    }

    /// Runs a command of the command line. Returns its exit code and what it prints.
    fn cli(&self, words: &[&str]) -> (i32, String) {
        let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .arg("sagas")
            .args(words)
            .args(["--admin", &format!("127.0.0.1:{}", self.gateway.admin)])
            .args(["--token", "letmein"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.code().unwrap(), text)
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let (code, text) = self.cli(words);
        assert_eq!(code, 0, "{words:?}: {text}");
        text
    }

    /// Waits until there is one saga, and it has this status. Returns its id.
    fn only_saga(&self, status: &str) -> String {
        let listed = || -> Value {
            let text = self.done(&["list", "--status", status, "--name", "order", "--json"]);
            serde_json::from_str(&text).unwrap()
        };
        until(&format!("a saga that is {status}"), || !listed()["sagas"][0].is_null());
        let list = listed();
        assert_eq!(list["sagas"].as_array().unwrap().len(), 1, "{list}");
        list["sagas"][0]["id"].as_str().unwrap().to_owned()
    }

    fn ask(&self, method: &str, target: &str, token: &str) -> Request {
        let request = Request::new(method, target).host("127.0.0.1");
        request.field("Authorization", &format!("Bearer {token}"))
    }

    fn show(&self, id: &str) -> Value {
        let answer =
            self.ask("GET", &format!("/v1/sagas/{id}"), "letmesee").send(self.gateway.admin);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let shown = answer.json();
        let etag = format!("\"{}\"", shown["version"].as_str().unwrap());
        assert_eq!(answer.get("etag"), Some(&*etag));
        shown
    }

    /// Waits for the end of a saga, which is undone.
    fn failed(&self, id: &str) {
        until("the end of the saga", || self.show(id)["status"] == "ended");
        let ended = self.show(id);
        assert_eq!((&ended["answer_status"], &ended["outcome"]), (&409.into(), &"failed".into()));
        assert_eq!(ended["step_summary"][0]["status"], "undone", "{ended}");
    }

    fn undone(&self) -> Vec<ReceivedRequest> {
        let seen = self.upstream.seen().into_iter();
        seen.filter(|seen| seen.line.starts_with("DELETE ")).collect()
    }
}

fn order(body: &str) -> Request {
    Request::new("POST", "/v1/orders").field("Idempotency-Key", "k").json(body)
}

#[test]
fn a_stuck_saga_is_shown_with_its_steps_and_goes_on_when_an_operator_retries_it() {
    let (scene, id) = Scene::stuck();
    let shown = scene.show(&id);
    let (reserve, ship) = (&shown["steps"][0], &shown["steps"][1]);
    assert_eq!((&reserve["name"], &reserve["status"]), (&"reserve".into(), &"refused".into()));
    assert_eq!((&ship["status"], &ship["attempts"]), (&"failed".into(), &1.into()));
    assert_eq!(ship["compensation"], Value::Null, "{shown}");
    assert_eq!((&ship["after"], &ship["pivot"]), (&serde_json::json!(["reserve"]), &false.into()));
    assert_eq!(shown["back_at"], ship["ended_at"], "{shown}");
    assert_eq!((&shown["status"], &shown["back"]), (&"stuck".into(), &"step ship".into()));
    assert_eq!(shown["stuck"][0]["direction"], "compensation");
    // The references are those of the operations in the store.
    for operation in
        [&reserve["operation"], &ship["operation"], &reserve["compensation"]["operation"]]
    {
        let target = format!("/v1/operations/{}", operation.as_str().unwrap());
        let found = scene.ask("GET", &target, "letmesee").send(scene.gateway.admin);
        assert_eq!(found.json()["state"], "completed", "{shown}");
    }
    let text = scene.done(&["show", &id]);
    assert!(text.contains("refused with the status 409: retry or skip it"), "{text}");
    assert_eq!(scene.gateway.metric("onceward_sagas_stuck"), 1.0);

    scene.upstream.answer_others("status 204");
    scene.done(&["retry", &id, "--step", "reserve", "--reason", "stock is back"]);
    scene.failed(&id);
    let keys: Vec<String> =
        scene.undone().iter().map(|seen| seen.get("idempotency-key").unwrap().into()).collect();
    assert!(keys.len() == 2 && keys[0] != keys[1], "a definite no gets another key: {keys:?}");
    assert_eq!(scene.order(REFUSED).problem(), "saga-failed");

    let log = scene.ask("GET", "/v1/log?since=2020-01-01T00:00:00Z", "letmein");
    let log = log.send(scene.gateway.admin).text();
    assert!(log.contains("stock is back") && log.contains("on-call"), "{log}");
    for (metric, count) in [
        ("onceward_sagas_running", 0.0),
        ("onceward_sagas_stuck", 0.0),
        ("onceward_sagas_ended_total{saga=\"order\",status=\"failed\"}", 1.0),
        ("onceward_saga_steps_total{saga=\"order\",result=\"done\"}", 1.0),
        ("onceward_saga_steps_total{saga=\"order\",result=\"failed\"}", 1.0),
        ("onceward_saga_compensations_total{saga=\"order\",result=\"refused\"}", 1.0),
        ("onceward_saga_compensations_total{saga=\"order\",result=\"undone\"}", 1.0),
    ] {
        until(metric, || scene.gateway.metric(metric) == count);
    }
}

#[test]
fn a_step_that_an_operator_did_by_hand_is_never_sent_again() {
    let (scene, id) = Scene::stuck();
    let before = scene.undone().len();
    let (code, text) = scene.cli(&["skip", &id, "--step", "ship", "--reason", "x"]);
    assert!(code == 1 && text.contains("does not wait for a decision"), "{text}");
    let (code, text) = scene.cli(&["skip", &id, "--step", "pack", "--reason", "x"]);
    assert!(code == 1 && text.contains("the saga has no step pack"), "{text}");
    scene.done(&["skip", &id, "--step", "reserve", "--reason", "undone by phone"]);
    scene.failed(&id);
    let text = scene.done(&["show", &id]);
    assert!(text.contains("outcome      failed") && text.contains("ship: failed"), "{text}");
    assert_eq!(scene.undone().len(), before);
}

#[test]
fn a_cancelled_saga_goes_back_and_a_second_cancel_changes_nothing() {
    let scene = Scene::new();
    let client = order(HELD).send_aside(scene.gateway.port);
    let id = scene.only_saga("running");
    scene.upstream.reached(2);
    scene.done(&["cancel", &id, "--reason", "the customer called"]);
    let cancelled = scene.show(&id);
    assert_eq!(
        (&cancelled["status"], &cancelled["back"]),
        (&"compensating".into(), &"cancel".into())
    );
    let decided = scene.done(&["cancel", &id, "--reason", "again", "--json"]);
    let decided: Value = serde_json::from_str(&decided).unwrap();
    assert_eq!(decided["decisions"].as_array().unwrap().len(), 1, "{decided}");
    assert_eq!(decided["decisions"][0]["reason"], "the customer called");

    scene.upstream.release();
    scene.failed(&id);
    assert_eq!(client.join().unwrap().problem(), "saga-failed");
    assert_eq!(scene.undone().len(), 1);
    let (code, text) = scene.cli(&["cancel", &id, "--reason", "late"]);
    assert!(code == 1 && text.contains("409") && text.contains("has ended"), "{text}");
}

#[test]
fn a_decision_needs_the_role_the_version_and_a_reason() {
    let (scene, id) = Scene::stuck();
    let version = scene.show(&id)["version"].as_str().unwrap().to_owned();
    let decide = |verb: &str, token: &str, version: Option<&str>, body: &str| {
        let request = scene.ask("POST", &format!("/v1/sagas/{id}/{verb}"), token).json(body);
        let request = version
            .into_iter()
            .fold(request, |request, version| request.field("If-Match", &format!("\"{version}\"")));
        let answer = request.send(scene.gateway.admin);
        (answer.status, answer.problem())
    };
    let now = Some(&*version);
    let because = r#"{"reason": "x"}"#;
    for (answer, status, problem) in [
        (decide("retry", "letmesee", now, because), 403, "forbidden"),
        (decide("retry", "letmein", None, because), 428, "if-match-required"),
        (decide("retry", "letmein", Some("7"), because), 412, "saga-moved"),
        (decide("retry", "letmein", now, "{}"), 400, "request-invalid"),
        (decide("skip", "letmein", now, because), 400, "request-invalid"),
        (
            decide("cancel", "letmein", now, r#"{"reason": "x", "step": "ship"}"#),
            400,
            "request-invalid",
        ),
        (
            decide("retry", "letmein", now, r#"{"reason": "x", "step": "ship"}"#),
            409,
            "saga-decision-denied",
        ),
    ] {
        assert_eq!(answer, (status, problem.to_owned()));
    }
    assert_eq!(scene.show(&id)["version"], version, "nothing was written");
    let other = format!("op_{}", "0".repeat(40));
    let (code, text) = scene.cli(&["show", &other]);
    assert!(code == 1 && text.contains("no saga has this id"), "{text}");
    let (code, text) = scene.cli(&["list", "--status", "completed"]);
    assert!(code == 2 && text.contains("possible values"), "{text}");
}

#[test]
fn a_cancelled_saga_goes_back_also_from_a_step_that_its_gateway_can_not_send() {
    let upstream = Upstream::start();
    let url = format!("http://127.0.0.1:{}", upstream.port);
    let dir = TempDir::new().unwrap();
    let store = format!("file:{}", dir.path().join("data").display());
    let launch = |file: &str, token: Option<&str>| {
        let gateway = Gateway::launch(&url, &store, &format!("{file}{TOKENS}"), "", |command| {
            command.env("SAGA_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
            token.map(|token| command.env("SHIP_TOKEN", token));
        });
        until("the gateway to be ready", || gateway.is_ready());
        gateway
    };
    let secret = r#"headers = { Authorization = { env = "SHIP_TOKEN" }, X-Act = "status 503" }"#;
    let file = SAGA
        .replace(r#"headers = { X-Act = "{{ request.body.ship }}" }"#, secret)
        .replace("name = \"ship\"", "name = \"ship\"\nrelease_status = [\"503\"]");
    let mut scene = Scene { gateway: launch(&file, Some("Bearer of ship")), upstream };
    let begun = order(r#"{"reserve": "status 201"}"#).field("Prefer", "respond-async");
    assert_eq!(begun.send(scene.gateway.port).status, 202);
    let id = scene.only_saga("running");
    let status = |scene: &Scene| scene.show(&id)["steps"][1]["status"].clone();
    until("a refused shipment", || status(&scene) == "retrying");
    scene.gateway.kill();

    // Another plan is configured by now, and the secret of the first one is gone.
    scene.gateway = launch(SAGA, None);
    assert_eq!(scene.only_saga("stuck"), id);
    scene.done(&["cancel", &id, "--reason", "the customer called"]);
    scene.failed(&id);
    assert_eq!(scene.undone().len(), 1);
}

#[test]
fn duplicates_do_not_make_a_step_forget_its_attempts() {
    let upstream = Upstream::start();
    let url = format!("http://127.0.0.1:{}", upstream.port);
    let tries = "name = \"reserve\"\nrelease_status = [\"503\"]\n\
                 retry = { first = \"400ms\", max = \"400ms\", attempts = 3 }";
    let settings = format!("{}{TOKENS}", SAGA.replacen("name = \"reserve\"", tries, 1));
    let gateway = Gateway::launch(&url, "memory:", &settings, "", |command| {
        command.env("SAGA_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
    });
    until("the gateway to be ready", || gateway.is_ready());
    let scene = Scene { gateway, upstream };
    let away = r#"{"reserve": "status 503", "ship": "status 201"}"#;
    until("the end of the saga", || {
        let answer = order(away).field("Prefer", "respond-async").send(scene.gateway.port);
        answer.status != 202
    });
    assert_eq!(scene.upstream.seen().len(), 3, "{:?}", scene.upstream.seen());
}
