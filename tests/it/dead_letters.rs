//! Sinks and dead letters: what operators see, and what they decide, by API and by commands.

use std::process::Command;

use serde_json::{Value, json};

use crate::admin::TOKENS;
use crate::harness::{Answer, Gateway, ReceivedRequest, Request, Upstream, until};

/// The settings of a gateway with one sink, which gives up after two attempts.
fn settings(receiver: &Upstream) -> String {
    format!(
        r#"
[store]
format = 2
[[sinks]]
name = "ledger"
webhook = {{ url = "http://127.0.0.1:{}/hooks?key=hidden", secrets = [{{ env = "HASHING_SECRET" }}] }}
retry = {{ first = "50ms", max = "100ms", attempts = 2 }}
"#,
        receiver.port
    )
}

const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
[[routes.publish]]
on = ["completed"]
to = ["ledger"]
data = { payment = "response:/payment" }
"#;

/// A gateway with an upstream, and the receiver of its sink, which refuses everything.
struct Scene {
    gateway: Gateway,
    receiver: Upstream,
    _upstream: Upstream,
}

impl Scene {
    fn new() -> Scene {
        Scene::with("")
    }

    fn with(more: &str) -> Scene {
        let (upstream, receiver) = (Upstream::start(), Upstream::start());
        receiver.answer_others("status 500, body not today");
        let settings = format!("{}\n{more}", settings(&receiver));
        let gateway = Gateway::with(upstream.port, &settings, ROUTES);
        Scene { gateway, receiver, _upstream: upstream }
    }

    /// Runs a command of the command line. Returns its exit code and what it prints.
    fn cli(&self, words: &[&str]) -> (i32, String) {
        let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(words)
            .args(["--admin", &format!("127.0.0.1:{}", self.gateway.admin)])
            .args(["--token", "letmein"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.code().unwrap(), text)
    }

    fn pay(&self, key: &str) {
        assert_eq!(Request::pay(key, "{}").send(self.gateway.port).status, 201);
    }

    fn ask(&self, method: &str, target: &str, token: &str, body: Option<&str>) -> Answer {
        let request = Request::new(method, target).host("127.0.0.1");
        let request = request.field("Authorization", &format!("Bearer {token}"));
        let request = body.into_iter().fold(request, |request, body| request.json(body));
        request.send(self.gateway.admin)
    }

    fn post(&self, target: &str, body: Option<&str>) -> Answer {
        self.ask("POST", target, "letmein", body)
    }

    fn get(&self, target: &str, token: &str) -> Value {
        let answer = self.ask("GET", target, token, None);
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        answer.json()
    }

    /// Waits for this many dead letters, and returns them.
    fn buried(&self, count: usize) -> Vec<Value> {
        let listed = || self.get("/v1/dead-letters", "letmein")["dead_letters"].clone();
        until(&format!("{count} dead letters"), || listed().as_array().unwrap().len() == count);
        listed().as_array().unwrap().clone()
    }

    /// Returns the only sink.
    fn sink(&self) -> Value {
        self.get("/v1/sinks", "letmein")["sinks"][0].clone()
    }

    /// Returns the requests that were received, without test events.
    fn received(&self) -> Vec<ReceivedRequest> {
        self.receiver.seen()
    }
}

fn id(letter: &Value) -> String {
    letter["id"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_receiver_refuses_is_a_dead_letter_and_a_requeue_sends_it_again_under_its_id() {
    let scene = Scene::new();
    scene.pay("k1");
    let letter = scene.buried(1).remove(0);
    assert_eq!((&letter["sink"], &letter["kind"]), (&json!("ledger"), &json!("receiver")));
    let attempts = &letter["attempts"];
    assert_eq!((&attempts["count"], &attempts["status"]), (&json!(2), &json!(500)));
    assert_eq!((&attempts["answer"], &attempts["error"]), (&json!("not today"), &Value::Null));
    assert_eq!(letter["event"]["type"], "onceward.operation.completed");
    assert_eq!(letter["event"]["data"]["payment"], json!(0));
    let sink = scene.sink();
    assert_eq!((&sink["backlog"], &sink["dead_letters"]["receiver"]), (&json!(0), &json!(1)));
    assert!(sink["failing_since"].is_string() && sink["last_delivered"].is_null(), "{sink}");

    let (id, operation) = (id(&letter), letter["event"]["subject"].as_str().unwrap());
    let (code, listed) = scene.cli(&["dead-letters", "list", "--sink", "ledger"]);
    assert!(code == 0 && listed.contains(&id) && listed.contains(operation), "{listed}");
    assert!(listed.starts_with("ID ") && listed.contains("status 500"), "{listed}");
    let (code, shown) = scene.cli(&["dead-letters", "show", &id]);
    assert!(code == 0 && shown.contains("not today") && shown.contains("\"payment\":0"), "{shown}");
    let none = [["--kind", "gateway"], ["--sink", "mail"], ["--since", "2100-01-01T00:00:00Z"]];
    for filter in none {
        let (code, listed) = scene.cli(&[&["dead-letters", "list"], &filter[..]].concat());
        assert_eq!((code, listed.trim()), (0, "no dead letters"), "{filter:?}");
    }

    scene.receiver.answer_others("status 204");
    let (code, output) = scene.cli(&["dead-letters", "requeue", &id]);
    assert_eq!((code, output.trim()), (0, "requeued 1 dead letter"));
    until("the delivery", || scene.received().len() == 3);
    let received = scene.received();
    let same = |name: &str| received.iter().all(|seen| seen.get(name) == received[0].get(name));
    assert!(same("webhook-id") && received.iter().all(|seen| seen.body == received[0].body));
    scene.buried(0);
    until("the delivery in the list of sinks", || scene.sink()["last_delivered"].is_string());
    assert_eq!(scene.sink()["failing_since"], Value::Null);
    let (code, output) = scene.cli(&["dead-letters", "requeue", &id]);
    assert!(code == 1 && output.contains("404"), "{output}");
    scene.gateway.logged("dead letter requeued by an operator");
}

#[test]
fn all_dead_letters_of_a_sink_are_requeued_page_by_page() {
    let scene = Scene::new();
    (0..5).for_each(|n| scene.pay(&format!("k{n}")));
    let ids: Vec<String> = scene.buried(5).iter().map(id).collect();
    let page = scene.get("/v1/dead-letters?limit=2", "letmein");
    let cursor = page["cursor"].as_str().unwrap();
    let next = scene.get(&format!("/v1/dead-letters?limit=3&cursor={cursor}"), "letmein");
    let paged = [&page, &next].map(|page| page["dead_letters"].as_array().unwrap().iter().map(id));
    assert_eq!(paged.into_iter().flatten().collect::<Vec<_>>(), ids);
    let (code, listed) = scene.cli(&["dead-letters", "list", "--limit", "2", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((code, listed["dead_letters"].as_array().unwrap().len()), (0, 2));
    assert!(listed["cursor"].is_string());

    // The receiver still refuses: what is buried again is not requeued again.
    let body = r#"{"sink":"ledger","limit":3}"#;
    let first = scene.post("/v1/dead-letters/requeue", Some(body)).json();
    assert_eq!(first["requeued"], 3);
    until("their burial", || scene.received().len() == 16);
    scene.buried(5);
    let body = json!({ "sink": "ledger", "limit": 3, "cursor": first["cursor"] }).to_string();
    let second = scene.post("/v1/dead-letters/requeue", Some(&body)).json();
    assert_eq!(second, json!({ "requeued": 2, "refused": 0, "cursor": null }));
    until("their burial", || scene.received().len() == 20);
    scene.buried(5);

    scene.receiver.answer_others("status 200");
    let early = ["dead-letters", "requeue", "--sink", "ledger", "--until", "2020-01-01T00:00:00Z"];
    assert_eq!(scene.cli(&early), (0, "requeued 0 dead letters\n".into()));
    let (code, output) =
        scene.cli(&["dead-letters", "requeue", "--sink", "ledger", "--since", "1h"]);
    assert_eq!((code, output.as_str()), (0, "requeued 5 dead letters\n"));
    until("the deliveries", || scene.received().len() == 25);
    let unknown = scene.post("/v1/dead-letters/requeue", Some(r#"{"sink":"ledgre"}"#));
    assert_eq!((unknown.status, unknown.problem().as_str()), (404, "sink-unknown"));
    assert_eq!(scene.cli(&["dead-letters", "requeue"]).0, 2, "everything is not a default");
}

#[test]
fn a_discard_needs_a_reason_and_is_final() {
    let scene = Scene::new();
    scene.pay("k1");
    let id = id(&scene.buried(1)[0]);
    let target = format!("/v1/dead-letters/{id}/discard");
    for body in ["{}", r#"{"reason":" "}"#] {
        let refused = scene.post(&target, Some(body));
        assert_eq!((refused.status, refused.problem().as_str()), (400, "request-invalid"));
    }
    assert_eq!(scene.cli(&["dead-letters", "discard", &id]).0, 2);
    let (code, output) =
        scene.cli(&["dead-letters", "discard", &id, "--reason", "booked by hand, 4711"]);
    assert_eq!((code, output.as_str()), (0, "discarded 1 dead letter\n"));
    scene.buried(0);
    scene.gateway.logged("booked by hand, 4711");
    let line = |line: &&str| line.contains("discarded by an operator");
    let logs = scene.gateway.logs();
    let line = logs.lines().find(line).unwrap();
    assert!(line.contains(&id) && line.contains("ledger") && line.contains("loopback"), "{line}");
    for (target, body) in [
        (target.as_str(), Some(r#"{"reason":"again"}"#)),
        (&format!("/v1/dead-letters/{id}/requeue"), None),
        ("/v1/dead-letters/dl_1/requeue", None),
    ] {
        let refused = scene.post(target, body);
        assert_eq!((refused.status, refused.problem().as_str()), (404, "dead-letter-unknown"));
    }
    assert_eq!(scene.received().len(), 2, "it was never sent again");
}

#[test]
fn a_reader_sees_neither_data_nor_answers_and_changes_nothing() {
    let scene = Scene::with(TOKENS);
    scene.pay("k1");
    let id = id(&scene.buried(1)[0]);
    let list = scene.get("/v1/dead-letters", "letmesee");
    let one = scene.get(&format!("/v1/dead-letters/{id}"), "letmesee");
    for letter in [&list["dead_letters"][0], &one] {
        assert_eq!(letter["event"]["type"], "onceward.operation.completed");
        assert_eq!(
            (&letter["event"]["data"], &letter["attempts"]["answer"]),
            (&json!(null), &json!(null))
        );
        assert!(letter["event"].get("data").is_none() && letter["attempts"]["status"] == 500);
    }
    assert!(!list.to_string().contains("not today") && !one.to_string().contains("not today"));
    let sinks = scene.get("/v1/sinks", "letmesee");
    assert_eq!(sinks["sinks"][0]["url"], format!("http://127.0.0.1:{}", scene.receiver.port));
    assert!(!sinks.to_string().contains("hidden"), "{sinks}");
    let reason = Some(r#"{"reason":"r"}"#);
    for target in [
        format!("/v1/dead-letters/{id}/requeue"),
        format!("/v1/dead-letters/{id}/discard"),
        "/v1/dead-letters/requeue".into(),
        "/v1/sinks/ledger/pause".into(),
        "/v1/sinks/ledger/resume".into(),
        "/v1/sinks/ledger/test".into(),
    ] {
        assert_eq!(scene.ask("POST", &target, "letmesee", reason).status, 403, "{target}");
        assert_eq!(scene.ask("POST", &target, "wrong", reason).status, 401, "{target}");
    }
    scene.buried(1);
    assert_eq!(scene.post(&format!("/v1/dead-letters/{id}/requeue"), None).status, 200);
    scene.gateway.logged("on-call");
}

#[test]
fn a_paused_sink_gets_nothing_until_it_is_resumed() {
    let scene = Scene::new();
    scene.receiver.answer_others("status 200");
    assert_eq!(scene.cli(&["sinks", "pause", "ledger"]).0, 2, "a reason is required");
    let unreasoned = scene.post("/v1/sinks/ledger/pause", Some("{}"));
    assert_eq!((unreasoned.status, unreasoned.problem().as_str()), (400, "request-invalid"));
    let (code, output) = scene.cli(&["sinks", "pause", "ledger", "--reason", "they move"]);
    assert!(code == 0 && output.contains("paused") && output.contains("they move"), "{output}");
    // The worker knows it within a moment.
    until("the metric", || scene.gateway.metric("onceward_sink_paused{sink=\"ledger\"} ") == 1.0);
    scene.pay("k1");
    let (code, listed) = scene.cli(&["sinks", "list"]);
    assert!(code == 0 && listed.starts_with("NAME "), "{listed}");
    assert!(listed.contains("they move (by loopback)"), "{listed}");
    let sink = scene.sink();
    assert_eq!((&sink["state"], &sink["backlog"]), (&json!("paused"), &json!(1)));
    assert!(sink["oldest"].is_string() && sink["reason"] == "they move", "{sink}");
    assert_eq!(scene.received().len(), 0);
    let (code, output) = scene.cli(&["sinks", "resume", "ledger"]);
    assert!(code == 0 && output.contains("running"), "{output}");
    until("the delivery", || scene.received().len() == 1);
    until("an empty backlog", || scene.sink()["backlog"] == 0);
    scene.gateway.logged("sink paused by an operator");
    scene.gateway.logged("sink resumed by an operator");
    for verb in ["pause", "resume", "test"] {
        let target = format!("/v1/sinks/ledgre/{verb}");
        let refused = scene.post(&target, Some(r#"{"reason":"r"}"#));
        assert_eq!((refused.status, refused.problem().as_str()), (404, "sink-unknown"), "{verb}");
    }
}

#[test]
fn a_test_of_a_sink_prints_what_came_back() {
    let scene = Scene::new();
    let (code, output) = scene.cli(&["sinks", "test", "ledger"]);
    assert_eq!((code, output.trim()), (1, "not delivered to ledger: status 500: not today"));
    scene.receiver.answer_others("status 202");
    let (code, output) = scene.cli(&["sinks", "test", "ledger", "--json"]);
    let result: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, &result["delivered"], &result["status"]), (0, &json!(true), &json!(202)));
    let received = scene.received();
    let event: Value = serde_json::from_slice(&received[1].body).unwrap();
    assert_eq!((&event["type"], &event["data"]), (&json!("onceward.test"), &json!({})));
    assert_eq!((&event["id"], &event["source"]), (&result["event"], &json!("urn:onceward")));
    assert_eq!(received[1].get("webhook-id"), event["id"].as_str());
    assert!(received[1].get("webhook-signature").unwrap().starts_with("v1,"));
    assert_ne!(received[0].get("webhook-id"), received[1].get("webhook-id"));
    scene.buried(0);
    assert_eq!(
        scene.sink()["last_delivered"],
        Value::Null,
        "a test delivers no event of an operation"
    );
    scene.receiver.answer_others("drop");
    let (code, output) = scene.cli(&["sinks", "test", "ledger"]);
    assert!(code == 1 && output.starts_with("not delivered to ledger: "), "{output}");
    assert_eq!(scene.cli(&["sinks", "test", "ledgre"]).0, 1);
}
