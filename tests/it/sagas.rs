//! Sagas: a checkout of three steps is completed or undone as a whole, whatever is killed.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{
    Answer, Connection, Gateway, PATIENCE, RedisServer, Request, Upstream, until, within_patience,
};

/// The lease of a saga's owner, at most.
const LEASE: Duration = Duration::from_secs(10);
/// Longest time from the end of a lease to the takeover.
const TAKEOVER: Duration = Duration::from_secs(2);
/// Time for the steps themselves, on a busy machine.
const STEPS: Duration = Duration::from_secs(2);

const SETTINGS: &str = r#"
[store]
format = 3
[encryption]
keys = [{ id = "a", env = "STORE_KEY" }]
"#;

/// A checkout: `CHARGE`, `AFTER` and `SHIP` are replaced by further settings.
const CHECKOUT: &str = r#"
[[sagas]]
name = "checkout"
path = "/v1/checkouts"
wait_timeout = "2s"
answer = { status = 201, body = '{"order": {{ steps.reserve.body.id }}, "payment": {{ steps.charge.body.id }}}' }
[[sagas.steps]]
name = "reserve"
request = { path = "/v1/reservations", headers = { Authorization = { env = "STOCK_TOKEN" } }, body = '{"sku": {{ request.body.sku }}}' }
compensate = { method = "DELETE", path = "/v1/reservations/{{ steps.reserve.body.id }}" }
[[sagas.steps]]
name = "charge"
request = { path = "/v1/charges", body = '{"amount": {{ request.body.amount }}}' }
compensate = { path = "/v1/refunds", body = '{"charge": {{ steps.charge.body.id }}}' }
lease = "3s"
uncertain_after = "1s"
timeout = "60s"
CHARGE
[[sagas.steps]]
name = "ship"
request = { path = "/v1/shipments", body = '{"to": {{ request.body.to }}}' }
compensate = "none"
SHIP
"#;

const ORDER: &str = r#"{"sku":"A/1","amount":10.50,"to":"Bern"}"#;

/// The answers of the services. Their ids are in the requests that undo.
const ANSWERS: [(&str, &str); 6] = [
    ("POST /v1/reservations", r#"body {"id":"r-1"}"#),
    ("DELETE /v1/reservations/", "status 204"),
    ("POST /v1/charges", r#"body {"id":"c-1"}"#),
    ("GET /v1/charges/by-key/", r#"status 200, body {"id":"c-1"}"#),
    ("POST /v1/refunds", r#"body {"id":"f-1"}"#),
    ("POST /v1/shipments", r#"body {"id":"s-1"}"#),
];

const FORWARD: &str = "on_uncertain = \"forward\"";
const PROBE: &str = r#"
on_uncertain = "probe"
probe = { method = "GET", path = "/v1/charges/by-key/{key}", found = ["200"], absent = ["404"] }
"#;

/// The services of a shop.
struct Shop {
    services: Upstream,
    file: String,
}

impl Shop {
    /// Opens a shop with further settings of the steps `charge` and `ship`.
    fn open(charge: &str, ship: &str) -> Shop {
        let services = Upstream::start();
        for (line, script) in ANSWERS {
            services.answer_line(line, script);
        }
        let file = CHECKOUT.replace("CHARGE", charge).replace("SHIP", ship);
        Shop { services, file }
    }

    fn gateway(&self, store: &str) -> Gateway {
        let url = format!("http://127.0.0.1:{}", self.services.port);
        let gateway = Gateway::launch(&url, store, SETTINGS, &self.file, |command| {
            let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
            command.env("STORE_KEY", key).env("STOCK_TOKEN", "Bearer of stock");
        });
        until("the gateway to be ready", || gateway.is_ready());
        gateway
    }

    /// Returns the executed requests, in their order, without the version of HTTP.
    fn ledger(&self) -> Vec<String> {
        let line = |line: &str| line.trim_end_matches(" HTTP/1.1").to_owned();
        self.services.seen().iter().map(|seen| line(&seen.line)).collect()
    }

    /// Returns the number of requests and of keys on a line.
    fn executed(&self, line: &str) -> (usize, usize) {
        let seen = self.services.seen();
        let of_line: Vec<_> = seen.iter().filter(|seen| seen.line.starts_with(line)).collect();
        let mut keys: Vec<_> = of_line.iter().map(|seen| seen.get("idempotency-key")).collect();
        keys.sort_unstable();
        keys.dedup();
        (of_line.len(), keys.len())
    }
}

fn order(key: &str) -> Request {
    Request::new("POST", "/v1/checkouts").field("Idempotency-Key", key).json(ORDER)
}

/// Sends the order until the answer is a result. A takeover may take longer than the patience.
#[track_caller]
fn result(gateway: &Gateway, key: &str) -> Answer {
    let mut answer = order(key).send(gateway.port);
    let mut is_over = || {
        let is_over = answer.get("retry-after").is_none();
        if !is_over {
            answer = order(key).send(gateway.port);
        }
        is_over
    };
    let is_in_time = within_patience(&mut is_over) || within_patience(&mut is_over);
    assert!(is_in_time, "no result within {:?}: {answer:?}", 2 * PATIENCE);
    answer
}

#[track_caller]
fn completed(answer: &Answer) {
    assert_eq!((answer.status, answer.json()), (201, json!({"order": "r-1", "payment": "c-1"})));
}

/// Waits until a client gets that the saga is stuck.
#[track_caller]
fn stuck(gateway: &Gateway, key: &str) {
    let mut answer = None;
    until("the saga to be stuck", || {
        let last = order(key).send(gateway.port);
        let is_stuck = last.problem() == "saga-stuck";
        answer = Some(last);
        is_stuck
    });
    let answer = answer.unwrap();
    let saga = &answer.json()["saga"];
    let location = format!("/.well-known/onceward/sagas/{}", saga.as_str().unwrap());
    assert_eq!((answer.status, answer.get("location")), (409, Some(location.as_str())));
}

/// Settles the uncertain operation: the charge was executed.
#[track_caller]
fn resolve_charge(gateway: &Gateway) {
    let done = resolve_charge_with(gateway, "201");
    assert!(done.status.success(), "{done:?}");
}

fn resolve_charge_with(gateway: &Gateway, status: &str) -> Output {
    let listed = gateway.ask("GET", "/v1/operations?state=uncertain").json();
    let operations = listed["operations"].as_array().unwrap();
    let [operation] = &operations[..] else { panic!("one uncertain operation: {listed}") };
    assert_eq!(operation["route"], "checkout/charge");
    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), r#"{"id":"c-1"}"#).unwrap();
    Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["operations", "resolve", operation["operation"].as_str().unwrap()])
        .args(["--status", status, "--header", "Content-Type: application/json", "--body"])
        .arg(body.path())
        .args(["--reason", "the bank has it", "--admin", &format!("127.0.0.1:{}", gateway.admin)])
        .output()
        .unwrap()
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn a_checkout_is_completed_and_a_duplicate_gets_its_answer() {
    let shop = Shop::open("", "");
    let gateway = shop.gateway("memory:");
    let answer = order("k").send(gateway.port);
    completed(&answer);
    assert!(!answer.replayed());
    let again = order("k").send(gateway.port);
    completed(&again);
    assert!(again.replayed());
    let lines = ["POST /v1/reservations", "POST /v1/charges", "POST /v1/shipments"];
    assert_eq!(shop.ledger(), lines);
    let seen = shop.services.seen();
    assert_eq!(seen[0].get("authorization"), Some("Bearer of stock"));
    assert_eq!(seen[1].body, br#"{"amount": 10.50}"#, "an amount keeps its digits");
    assert_eq!(shop.services.by_key().len(), 3, "each step has a key of its own");
}

#[test]
fn a_definite_no_of_the_third_step_undoes_the_others_once_in_reverse_order() {
    let shop = Shop::open("", "");
    shop.services.answer_line("POST /v1/shipments", "status 422, body no carrier goes there");
    let gateway = shop.gateway("memory:");
    let answer = order("k").send(gateway.port);
    let again = order("k").send(gateway.port);
    assert_eq!((answer.status, answer.problem().as_str()), (409, "saga-failed"));
    let problem = answer.json();
    assert_eq!((&problem["step"], &problem["step_status"]), (&json!("ship"), &json!(422)));
    assert!(!answer.text().contains("no carrier"), "no service's words: {problem}");
    assert!(again.replayed() && !answer.replayed());
    assert_eq!((again.status, again.body), (answer.status, answer.body));
    let lines = [
        "POST /v1/reservations",
        "POST /v1/charges",
        "POST /v1/shipments",
        "POST /v1/refunds",
        "DELETE /v1/reservations/r-1",
    ];
    assert_eq!(shop.ledger(), lines);
    assert_eq!(shop.services.seen()[3].body, br#"{"charge": "c-1"}"#);
    assert_eq!(shop.services.by_key().len(), 5, "each action and each undo has its own key");
}

/// Kills the only gateway while the charge is under way, and starts it again.
fn killed_during_the_charge(settings: &str) -> Shop {
    let shop = Shop::open(settings, "");
    let dir = TempDir::new().unwrap();
    let mut gateway = shop.gateway(&format!("file:{}", dir.path().join("data").display()));
    shop.services.answer_line("POST /v1/charges", r#"hold, body {"id":"c-1"}"#);
    let mut client = Connection::open(gateway.port);
    client.write(&order("k").bytes());
    shop.services.reached(2);
    gateway.kill();
    shop.services.release();
    gateway.start_again();
    completed(&result(&gateway, "k"));
    for line in ["POST /v1/reservations", "POST /v1/shipments"] {
        assert_eq!(shop.executed(line), (1, 1), "{line}");
    }
    shop
}

#[test]
fn a_gateway_that_is_killed_in_a_step_sends_it_again_under_its_key_and_completes_the_saga() {
    let shop = killed_during_the_charge(FORWARD);
    assert_eq!(shop.executed("POST /v1/charges"), (2, 1), "{:?}", shop.ledger());
}

#[test]
fn a_gateway_that_is_killed_in_a_step_asks_for_its_outcome_and_does_not_send_it_again() {
    let shop = killed_during_the_charge(PROBE);
    assert_eq!(shop.executed("POST /v1/charges"), (1, 1), "{:?}", shop.ledger());
    assert!(shop.executed("GET /v1/charges/by-key/").0 >= 1);
}

#[test]
fn another_gateway_finishes_the_saga_of_a_killed_one() {
    let (redis, shop) = (RedisServer::start(), Shop::open(FORWARD, ""));
    let (mut owner, other) = (shop.gateway(&redis.url()), shop.gateway(&redis.url()));
    shop.services.answer_line("POST /v1/charges", r#"hold, body {"id":"c-1"}"#);
    let mut client = Connection::open(owner.port);
    client.write(&order("k").bytes());
    shop.services.reached(2);
    owner.kill();
    let killed = now();
    shop.services.release();
    completed(&result(&other, "k"));
    let took = killed.elapsed();
    assert!(took < LEASE + TAKEOVER + STEPS, "{took:?}");
    other.logged("saga taken over");
    for line in ["POST /v1/reservations", "POST /v1/charges", "POST /v1/shipments"] {
        assert_eq!(shop.executed(line).1, 1, "{line}: {:?}", shop.ledger());
    }
}

#[test]
fn a_gateway_that_ends_gives_its_saga_to_another_one_at_once() {
    let (redis, shop) = (RedisServer::start(), Shop::open("", ""));
    let (mut owner, other) = (shop.gateway(&redis.url()), shop.gateway(&redis.url()));
    shop.services.answer_line("POST /v1/charges", r#"hold, body {"id":"c-1"}"#);
    let mut client = Connection::open(owner.port);
    client.write(&order("k").bytes());
    shop.services.reached(2);
    owner.signal("TERM");
    owner.logged("stopping");
    let stopped = now();
    shop.services.release();
    completed(&result(&other, "k"));
    let took = stopped.elapsed();
    assert!(took < TAKEOVER + STEPS, "no lease has ended in {took:?}");
    other.logged("saga taken over");
    assert!(owner.wait().success());
    for line in ["POST /v1/reservations", "POST /v1/charges", "POST /v1/shipments"] {
        assert_eq!(shop.executed(line), (1, 1), "{line}: {:?}", shop.ledger());
    }
}

#[test]
fn a_step_with_an_unknown_outcome_is_stuck_until_an_operator_settles_its_operation() {
    let shop = Shop::open("", "");
    shop.services.answer_line("POST /v1/charges", "status 500");
    let gateway = shop.gateway("memory:");
    stuck(&gateway, "k");
    assert_eq!(shop.ledger(), ["POST /v1/reservations", "POST /v1/charges"]);
    let unclear = resolve_charge_with(&gateway, "500");
    let why = String::from_utf8_lossy(&unclear.stderr);
    assert!(!unclear.status.success() && why.contains("in success or in failure"), "{unclear:?}");
    resolve_charge(&gateway);
    completed(&result(&gateway, "k"));
    let lines = ["POST /v1/reservations", "POST /v1/charges", "POST /v1/shipments"];
    assert_eq!(shop.ledger(), lines);
}

#[test]
fn nothing_is_undone_while_a_parallel_step_is_in_doubt() {
    let shop = Shop::open("after = []", "after = []");
    shop.services.answer_line("POST /v1/charges", "status 500");
    shop.services.answer_line("POST /v1/shipments", "status 422");
    let gateway = shop.gateway("memory:");
    stuck(&gateway, "k");
    // A later look at the held step must not begin the way back either.
    let looked = now();
    until("a later look", || {
        stuck(&gateway, "k");
        looked.elapsed() > Duration::from_secs(2)
    });
    let mut begun = shop.ledger();
    begun.sort();
    let actions = ["POST /v1/charges", "POST /v1/reservations", "POST /v1/shipments"];
    assert_eq!(begun, actions, "nothing is undone");
    resolve_charge(&gateway);
    let answer = result(&gateway, "k");
    assert_eq!(
        (answer.problem().as_str(), &answer.json()["step"]),
        ("saga-failed", &json!("ship"))
    );
    let mut undone = shop.ledger().split_off(actions.len());
    undone.sort();
    assert_eq!(undone, ["DELETE /v1/reservations/r-1", "POST /v1/refunds"]);
}

#[test]
fn another_request_under_the_key_of_a_saga_and_a_large_one_begin_nothing() {
    let shop = Shop::open("", "");
    let gateway = shop.gateway("memory:");
    let request = |key, body: &str| {
        Request::new("POST", "/v1/checkouts").field("Idempotency-Key", key).json(body)
    };
    let note = "x".repeat(256 * 1024);
    let large = request("k", &format!(r#"{{"note":"{note}"}}"#)).send(gateway.port);
    assert_eq!((large.status, large.problem().as_str()), (413, "body-too-large"));
    assert_eq!(shop.services.executed(), 0);
    completed(&order("k").send(gateway.port));
    let other = request("k", r#"{"sku":"B/2","amount":1,"to":"Bern"}"#).send(gateway.port);
    assert_eq!((other.status, other.problem().as_str()), (422, "key-reused"));
    assert_eq!(shop.services.executed(), 3);
}

#[test]
fn the_check_refuses_sagas_in_a_store_of_format_2() {
    let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let upstream = "[upstream]\nurl = \"http://127.0.0.1:9\"\n";
    let steps = CHECKOUT.replace("CHARGE", "").replace("SHIP", "");
    let check = |settings: &str| {
        std::fs::write(config.path(), format!("{upstream}{settings}{steps}")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(["check", "--config"])
            .arg(config.path())
            .output()
            .unwrap()
    };
    let sound = check(SETTINGS);
    assert!(sound.status.success(), "{sound:?}");
    let refused = check(&SETTINGS.replace("format = 3", "format = 2"));
    let text = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("[[sagas]]") && text.contains("needs format = 3"), "{text}");
}
