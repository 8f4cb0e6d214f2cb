//! Sinks that call APIs: an event becomes a request through the gateway, which runs once.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Answer, Gateway, ReceivedRequest, RedisServer, Request, Upstream, until};

/// Settings with two sinks: one books a shipment, the other one refunds a payment.
fn settings(carrier: &Upstream, bank: &Upstream, attempts: u32) -> String {
    let (carrier, bank) = (carrier.port, bank.port);
    format!(
        r#"
[store]
format = 2
[encryption]
keys = [{{ id = "a", env = "STORE_KEY" }}]
[upstreams.carrier]
url = "http://127.0.0.1:{carrier}"
[upstreams.bank]
url = "http://127.0.0.1:{bank}"
[[sinks]]
name = "book-shipment"
timeout = "2s"
retry = {{ first = "20ms", max = "50ms", attempts = {attempts} }}
[sinks.call]
route = "shipments"
path = "/v1/orders/{{{{ data.order }}}}/shipments"
body = '{{"order": {{{{ data.order }}}}, "weight": {{{{ data.weight }}}}}}'
headers = {{ Authorization = {{ env = "SHIP_TOKEN" }}, X-Carrier = "post" }}
[[sinks]]
name = "refund"
timeout = "2s"
call = {{ route = "refunds", path = "/v1/refunds", body = '{{"order": {{{{ data.order }}}}}}' }}
"#
    )
}

/// A payment leads to a shipment.
const PAYMENTS: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
[[routes.publish]]
to = ["book-shipment"]
status = ["2xx"]
data = { order = "request:/order", weight = "request:/weight" }
[[routes]]
name = "refunds"
path = "/v1/refunds"
upstream = "bank"
"#;

const SHIPMENTS: &str = r#"
[[routes]]
name = "shipments"
path = "/v1/orders/{order}/shipments"
upstream = "carrier"
lease = "3s"
uncertain_after = "1s"
"#;

/// A shipment that is refused leads to a refund.
const COMPENSATED: &str = r#"
[[routes.publish]]
to = ["refund"]
status = ["4xx"]
type = "com.example.shipment.refused"
data = { order = "request:/order" }
"#;

const ORDER: &str = r#"{"order":"a 7","weight":1.50}"#;

/// A gateway in front of three services.
struct Shop {
    gateway: Gateway,
    carrier: Upstream,
    bank: Upstream,
    payments: Upstream,
}

impl Shop {
    fn open(store: &str, attempts: u32, routes: &str) -> Shop {
        let [payments, carrier, bank] = [(); 3].map(|()| Upstream::start());
        let settings = settings(&carrier, &bank, attempts);
        let routes = format!("{PAYMENTS}{routes}");
        let url = format!("http://127.0.0.1:{}", payments.port);
        let gateway = Gateway::launch(&url, store, &settings, &routes, |command| {
            let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
            command.env("STORE_KEY", key).env("SHIP_TOKEN", "Bearer of parcels");
        });
        until("the gateway to be ready", || gateway.is_ready());
        Shop { gateway, carrier, bank, payments }
    }

    fn in_memory(routes: &str) -> Shop {
        Shop::open("memory:", 0, routes)
    }

    fn pay(&self, key: &str) -> Answer {
        Request::pay(key, "").json(ORDER).send(self.gateway.port)
    }

    /// Waits until nothing waits for a sink.
    #[track_caller]
    fn settled(&self) {
        until("nothing waits", || {
            let sinks = self.gateway.ask("GET", "/v1/sinks").json();
            let sinks = sinks["sinks"].as_array().unwrap();
            !sinks.is_empty() && sinks.iter().all(|sink| sink["backlog"] == 0)
        });
    }

    /// Waits for this many dead letters.
    #[track_caller]
    fn dead_letters(&self, count: usize) -> Vec<Value> {
        let letters = || self.gateway.ask("GET", "/v1/dead-letters").json()["dead_letters"].clone();
        until(&format!("{count} dead letters"), || letters().as_array().unwrap().len() == count);
        letters().as_array().unwrap().clone()
    }

    /// Runs a command. Returns its exit code and what it prints.
    fn cli(&self, words: &[&str]) -> (i32, String) {
        let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(words)
            .args(["--admin", &format!("127.0.0.1:{}", self.gateway.admin)])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.code().unwrap(), text)
    }

    /// Returns the reference of the only uncertain operation.
    #[track_caller]
    fn uncertain(&self) -> String {
        let list = || self.gateway.ask("GET", "/v1/operations?state=uncertain").json();
        until("an uncertain operation", || {
            list()["operations"].as_array().is_some_and(|operations| operations.len() == 1)
        });
        list()["operations"][0]["operation"].as_str().unwrap().to_owned()
    }
}

/// Returns the keys of requests, each once, in the order of their first request.
fn keys(requests: &[ReceivedRequest]) -> Vec<String> {
    let mut keys = Vec::new();
    for request in requests {
        let key = request.get("idempotency-key").unwrap().to_owned();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

#[test]
fn a_payment_calls_the_carrier_once_with_the_values_of_the_payment() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    for store in [format!("file:{}", folder.path().join("data").display()), redis.url()] {
        let shop = Shop::open(&store, 0, SHIPMENTS);
        assert_eq!(shop.pay("k").status, 201);
        assert!(shop.pay("k").replayed());
        shop.carrier.reached(1);
        shop.settled();
        let [call] = &shop.carrier.seen()[..] else { panic!("one call") };
        assert_eq!(call.line, "POST /v1/orders/a%207/shipments HTTP/1.1");
        assert_eq!(call.body, br#"{"order": "a 7", "weight": 1.50}"#);
        assert_eq!(call.get("content-type"), Some("application/json"));
        assert_eq!(call.get("authorization"), Some("Bearer of parcels"));
        assert_eq!(call.get("x-carrier"), Some("post"));
        assert_eq!(
            call.get("idempotency-key").unwrap().len(),
            36,
            "a UUID, which every API accepts"
        );
        let listed = shop.gateway.ask("GET", "/v1/operations?state=completed").json();
        let routes: Vec<&str> = listed["operations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|operation| operation["route"].as_str().unwrap())
            .collect();
        assert!(routes.contains(&"shipments"), "the call is an operation like others: {routes:?}");
        // A client that sends the same key has another scope: it gets neither the answer nor the
        // record of the call.
        let key = call.get("idempotency-key").unwrap();
        let probe = Request::new("POST", "/v1/orders/a%207/shipments")
            .field("Idempotency-Key", key)
            .json(r#"{"order": "a 7", "weight": 1.50}"#)
            .send(shop.gateway.port);
        assert!(!probe.replayed() && probe.status == 201);
        let line = "onceward_outbox_deliveries_total{sink=\"book-shipment\",result=\"delivered\"}";
        assert_eq!(shop.gateway.metric(line), 1.0);
    }
}

#[test]
fn a_refusal_with_a_rule_of_its_own_is_compensated() {
    let shop = Shop::in_memory(&format!("{SHIPMENTS}{COMPENSATED}"));
    shop.carrier.answer_others("status 422, body too heavy");
    assert_eq!(shop.pay("k").status, 201);
    shop.bank.reached(1);
    shop.settled();
    assert_eq!(shop.bank.seen()[0].body, br#"{"order": "a 7"}"#);
    assert_eq!((shop.carrier.executed(), shop.bank.executed()), (1, 1));
    shop.dead_letters(0);
    let line = "onceward_outbox_deliveries_total{sink=\"book-shipment\",result=\"refused\"}";
    assert_eq!(shop.gateway.metric(line), 1.0);
}

#[test]
fn a_refusal_without_a_rule_is_a_dead_letter_and_its_requeue_really_calls_again() {
    let shop = Shop::in_memory(SHIPMENTS);
    shop.carrier.answer_others("status 422, body too heavy");
    shop.pay("k");
    let letter = &shop.dead_letters(1)[0];
    let attempts = &letter["attempts"];
    assert_eq!((&letter["kind"], &attempts["status"]), (&"receiver".into(), &422.into()));
    assert_eq!((&attempts["count"], &attempts["answer"]), (&1.into(), &"too heavy".into()));
    shop.carrier.answer_others("");
    let (code, text) = shop.cli(&["dead-letters", "requeue", letter["id"].as_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    shop.carrier.reached(2);
    shop.settled();
    shop.dead_letters(0);
    assert_eq!(keys(&shop.carrier.seen()).len(), 2, "a new round has a new key");
}

#[test]
fn a_released_call_is_repeated_under_the_same_key_and_the_round_survives_its_burial() {
    let shop = Shop::open("memory:", 3, SHIPMENTS);
    shop.carrier.answer_others("status 429, body later");
    shop.pay("k");
    let letter = &shop.dead_letters(1)[0];
    assert_eq!(letter["attempts"]["count"], 3);
    assert_eq!(letter["attempts"]["status"], 429);
    assert_eq!(shop.carrier.executed(), 3);
    shop.carrier.answer_others("");
    assert_eq!(shop.cli(&["dead-letters", "requeue", letter["id"].as_str().unwrap()]).0, 0);
    shop.carrier.reached(4);
    shop.settled();
    assert_eq!(keys(&shop.carrier.seen()).len(), 1, "{:?}", shop.carrier.by_key());
}

#[test]
fn an_uncertain_call_waits_for_an_operator_and_is_not_made_again() {
    let shop = Shop::in_memory(SHIPMENTS);
    shop.carrier.answer_others("drop");
    shop.pay("k");
    let operation = shop.uncertain();
    let (_, text) = shop.cli(&["operations", "show", &operation]);
    assert!(text.contains("called by the sink book-shipment"), "{text}");
    let page = shop.gateway.ask("GET", &format!("/operations/{operation}")).text();
    assert!(page.contains("Called by the sink"), "{page}");
    shop.carrier.answer_others("");
    let (code, text) = shop.cli(&[
        "operations",
        "resolve",
        &operation,
        "--status",
        "201",
        "--reason",
        "the carrier has it",
    ]);
    assert_eq!(code, 0, "{text}");
    shop.settled();
    shop.dead_letters(0);
    assert_eq!(shop.carrier.executed(), 1);
}

#[test]
fn a_gateway_that_is_killed_during_a_call_does_not_call_again() {
    let redis = RedisServer::start();
    let mut shop = Shop::open(&redis.url(), 0, SHIPMENTS);
    shop.carrier.answer_others("hold");
    shop.pay("k");
    shop.carrier.reached(1);
    shop.gateway.kill();
    shop.carrier.release();
    shop.carrier.answer_others("");
    shop.gateway.start_again();
    let operation = shop.uncertain();
    assert_eq!(shop.carrier.executed(), 1);
    let release = ["operations", "release", &operation, "--reason", "the carrier lost it"];
    until("the release, after uncertain_after", || shop.cli(&release).0 == 0);
    shop.carrier.reached(2);
    shop.settled();
    assert_eq!(keys(&shop.carrier.seen()).len(), 1, "the round goes on after the release");
    assert_eq!(shop.payments.executed(), 1);
}

#[test]
fn a_value_that_is_missing_is_named_and_the_call_is_made_when_the_file_is_corrected() {
    let shop = Shop::in_memory(SHIPMENTS);
    Request::pay("k", "").json(r#"{"order":"7"}"#).send(shop.gateway.port);
    let letter = &shop.dead_letters(1)[0];
    assert_eq!(letter["kind"], "gateway");
    let error = letter["attempts"]["error"].as_str().unwrap();
    assert!(error.contains("`data.weight` is undefined"), "{error}");
    assert!(error.contains("the event has the reason: absent"), "{error}");
    assert_eq!(shop.carrier.executed(), 0);
    let file = std::fs::read_to_string(shop.gateway.config()).unwrap();
    let corrected = file.replace("{{ data.weight }}", "{{ data.weight | default(1) }}");
    std::fs::write(shop.gateway.config(), corrected).unwrap();
    shop.gateway.signal("HUP");
    shop.gateway.logged("configuration");
    until("the call", || {
        let _ = shop.cli(&["dead-letters", "requeue", letter["id"].as_str().unwrap()]);
        shop.carrier.executed() == 1
    });
    shop.settled();
    assert_eq!(shop.carrier.seen()[0].body, br#"{"order": "7", "weight": 1}"#);
}

#[test]
fn a_call_that_the_gateway_refuses_to_send_is_made_when_the_file_is_corrected() {
    // The body of the call is larger than the route takes. Nothing is sent.
    let shop = Shop::in_memory(&format!("{SHIPMENTS}[limits]\nrequest_body = \"64B\"\n"));
    let file = std::fs::read_to_string(shop.gateway.config()).unwrap();
    let long = format!("\"note\": \"{}\", \"weight\"", "x".repeat(64));
    let write = |text: &str| {
        let reloads = || shop.gateway.metric("onceward_config_reloads_total{result=\"applied\"}");
        let before = reloads();
        std::fs::write(shop.gateway.config(), text).unwrap();
        shop.gateway.signal("HUP");
        until("the reload", || reloads() > before);
    };
    write(&file.replace("\"weight\"", &long));
    assert_eq!(shop.pay("k").status, 201);
    let letter = &shop.dead_letters(1)[0];
    let error = letter["attempts"]["error"].as_str().unwrap();
    assert!(error.contains("body-too-large"), "{error}");
    assert_eq!((&letter["kind"], shop.carrier.executed()), (&"gateway".into(), 0));
    write(&file);
    let (code, text) = shop.cli(&["dead-letters", "requeue", letter["id"].as_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    shop.carrier.reached(1);
    shop.settled();
    shop.dead_letters(0);
    assert_eq!(shop.carrier.seen()[0].body, br#"{"order": "a 7", "weight": 1.50}"#);
}

#[test]
fn a_call_with_a_lost_outcome_is_made_again_only_on_purpose() {
    let short = "retention = \"1s\"\ntombstone = \"1s\"\nunsettled_retention = \"4s\"\n";
    let shop = Shop::in_memory(
        &SHIPMENTS.replace("lease = \"3s\"\n", &format!("lease = \"2s\"\n{short}")),
    );
    shop.carrier.answer_others("drop");
    shop.pay("k");
    let letter = &shop.dead_letters(1)[0];
    let error = letter["attempts"]["error"].as_str().unwrap();
    assert!(error.starts_with("outcome-expired"), "{error}");
    assert_eq!((&letter["kind"], shop.carrier.executed()), (&"gateway".into(), 1));
    shop.carrier.answer_others("");
    let id = letter["id"].as_str().unwrap();
    let (code, text) = shop.cli(&["dead-letters", "requeue", id]);
    assert!(code == 1 && text.contains("outcome-expired") && text.contains("--again"), "{text}");
    let (code, text) = shop.cli(&["dead-letters", "requeue", "--yes", "--sink", "book-shipment"]);
    assert!(code == 1 && text.contains("1 dead letter stayed"), "{text}");
    assert_eq!(shop.carrier.executed(), 1);
    assert_eq!(shop.cli(&["dead-letters", "requeue", "--again", id]).0, 0);
    shop.carrier.reached(2);
    shop.settled();
    assert_eq!(keys(&shop.carrier.seen()).len(), 2, "a new round has a new key");
}

#[test]
fn a_circle_of_calls_ends_with_a_dead_letter() {
    let circle = r#"
[[routes.publish]]
to = ["book-shipment"]
data = { order = "request:/order", weight = "request:/weight" }
"#;
    let shop = Shop::in_memory(&format!("{SHIPMENTS}{circle}"));
    shop.gateway.logged("circle");
    shop.pay("k");
    let letter = &shop.dead_letters(1)[0];
    assert_eq!(letter["kind"], "gateway");
    let error = letter["attempts"]["error"].as_str().unwrap();
    assert!(error.contains("circle"), "{error}");
    shop.settled();
    assert_eq!(shop.carrier.executed(), 8);
}

#[test]
fn a_sink_that_calls_is_never_tested_by_a_call() {
    let shop = Shop::in_memory(SHIPMENTS);
    let (code, text) = shop.cli(&["sinks", "test", "book-shipment"]);
    assert!(code == 1 && text.contains("a test would be a real call"), "{text}");
    assert_eq!(shop.carrier.executed(), 0);
}
