//! Events that are sealed under a key which is no longer configured.

use std::process::Command;

use crate::admin::TOKENS;
use crate::harness::{Cluster, Gateway, Hook, Hooks, RedisServer, Request, Upstream, until};

const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

const OLD_KEY: &str = r#"{ id = "old", env = "KEY_OLD" }"#;
const NEW_KEY: &str = r#"{ id = "new", env = "KEY_NEW" }"#;

/// A route that publishes to both sinks.
const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
[[routes.publish]]
on = ["completed"]
to = ["ledger", "mail"]
data = { card = "response:/card" }
"#;

/// A store with an event that waits for `ledger`, and a dead letter of `mail`.
struct Scene {
    store: String,
    upstream: Upstream,
    ledger: Hooks,
    mail: Hooks,
}

impl Scene {
    /// Writes the event under the old key, and stops the gateway.
    fn new(store: &str) -> Scene {
        let refusing = || Hooks::deciding(|_, _| 500);
        let (ledger, mail) = (refusing(), refusing());
        let scene = Scene { store: store.to_owned(), upstream: Upstream::start(), ledger, mail };
        let mut first = scene.ready(OLD_KEY);
        let pay = Request::pay("k", "{}").act(r#"type application/json, body {"card":"4242"}"#);
        assert_eq!(pay.send(first.port).status, 201);
        until("the dead letter", || dead_letters(&first).len() == 1);
        until("an attempt", || !scene.ledger.attempts().is_empty());
        first.signal("TERM");
        assert!(first.wait().success());
        scene
    }

    /// Starts a gateway with these keys, without waiting.
    fn launch(&self, keys: &str) -> Gateway {
        let sink = |name: &str, hooks: &Hooks, retry: &str| {
            format!(
                "[[sinks]]\nname = \"{name}\"\nwebhook = {{ url = \"http://127.0.0.1:{}/\", \
                 secrets = [{{ env = \"HASHING_SECRET\" }}] }}\n\
                 retry = {{ first = \"20ms\", max = \"100ms\"{retry} }}\n",
                hooks.port
            )
        };
        let encryption = match keys {
            "" => String::new(),
            keys => format!("[encryption]\nkeys = [{keys}]\n"),
        };
        let settings = format!(
            "[store]\nformat = 2\n{encryption}{}{}",
            sink("ledger", &self.ledger, ""),
            sink("mail", &self.mail, ", attempts = 1")
        );
        let url = format!("http://127.0.0.1:{}", self.upstream.port);
        let env = |command: &mut Command| {
            command.env("KEY_OLD", OLD).env("KEY_NEW", NEW);
        };
        Gateway::launch(&url, &self.store, &settings, ROUTES, env)
    }

    fn ready(&self, keys: &str) -> Gateway {
        let gateway = self.launch(keys);
        until("the gateway to be ready", || gateway.is_ready());
        gateway
    }

    /// Checks that a gateway with these keys ends, and names the missing key.
    fn is_refused(&self, keys: &str) {
        let mut refused = self.launch(keys);
        assert_eq!(refused.wait().code(), Some(1), "{keys}");
        for part in [
            "\"old\": 1 waiting events, 1 dead letters",
            "Put these keys back, after the first one",
            "`onceward outbox reseal`",
        ] {
            refused.logged(part);
        }
    }

    /// Takes the events from now on. Checks that both sinks get the event as it was sent before.
    fn is_delivered_by(&self, gateway: &Gateway) {
        let before = [&self.ledger, &self.mail].map(|hooks| hooks.attempts().remove(0));
        self.ledger.decide(|_, _| 200);
        self.mail.decide(|_, _| 200);
        let letters = dead_letters(gateway);
        let (code, output) = cli(gateway, &["dead-letters", "requeue", &letters[0]]);
        assert_eq!(code, 0, "{output}");
        let same = |hook: &Hook| (hook.id().to_owned(), hook.request.body.clone());
        for (hooks, before) in [&self.ledger, &self.mail].into_iter().zip(before) {
            let delivered = hooks.wait_for(1).remove(0);
            assert_eq!(same(&delivered), same(&before));
            assert_eq!(delivered.event()["data"]["card"], "4242");
        }
    }
}

fn cli(gateway: &Gateway, words: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(words)
        .args(["--admin", &format!("127.0.0.1:{}", gateway.admin)])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    (out.status.code().unwrap(), text)
}

/// Returns the ids of the dead letters.
fn dead_letters(gateway: &Gateway) -> Vec<String> {
    let listed = gateway.ask("GET", "/v1/dead-letters").json()["dead_letters"].clone();
    let id = |letter: &serde_json::Value| letter["id"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(id).collect()
}

/// Runs a story on a file and on Redis.
fn on_each_store(story: impl Fn(&str)) {
    let folder = tempfile::tempdir().unwrap();
    story(&format!("file:{}", folder.path().join("data").display()));
    story(&RedisServer::start().url());
}

#[test]
fn without_the_key_of_a_waiting_event_a_start_is_refused_and_with_it_the_event_arrives() {
    on_each_store(|store| {
        let scene = Scene::new(store);
        scene.is_refused(NEW_KEY);
        scene.is_refused("");
        let back = scene.ready(&format!("{NEW_KEY}, {OLD_KEY}"));
        scene.is_delivered_by(&back);
    });
}

fn the_old_key_is_removed(store: &str) {
    let scene = Scene::new(store);
    let mut both = scene.ready(&format!("{NEW_KEY}, {OLD_KEY}"));
    let config = std::fs::read_to_string(both.config()).unwrap();
    std::fs::write(both.config(), config.replace(&format!(", {OLD_KEY}"), "")).unwrap();
    both.signal("HUP");
    both.logged("encryption.keys can't be changed without a restart");

    let (code, output) = cli(&both, &["outbox", "reseal"]);
    assert!(code == 0 && output.starts_with("sealed 2 events anew\n"), "{output}");
    both.logged("outbox sealed anew by an operator");
    let (code, output) = cli(&both, &["outbox", "reseal", "--json"]);
    let first = output.lines().next().unwrap();
    assert_eq!((code, first), (0, r#"{"resealed":0,"unreadable":0}"#));
    both.signal("TERM");
    assert!(both.wait().success());

    let new = scene.ready(NEW_KEY);
    scene.is_delivered_by(&new);
}

#[test]
fn after_everything_is_sealed_anew_the_old_key_can_be_removed_and_the_same_events_arrive() {
    on_each_store(the_old_key_is_removed);
}

#[test]
fn in_a_cluster_everything_is_sealed_anew_on_whichever_node_it_is() {
    let cluster = Cluster::start();
    the_old_key_is_removed(&cluster.url());
}

#[test]
fn a_store_that_did_not_answer_at_the_start_is_checked_before_anything_is_buried() {
    let redis = RedisServer::start();
    let scene = Scene::new(&redis.url());
    let dead = |redis: &RedisServer| {
        let keys = redis.cli(&["--scan", "--pattern", "*outbox_dead"]);
        keys.lines().map(|key| redis.cli(&["hlen", key]).parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_eq!(dead(&redis), 1);
    redis.signal("STOP");
    let mut refused = scene.launch(NEW_KEY);
    refused.logged("the store has not returned its identities yet");
    redis.signal("CONT");
    assert_eq!(refused.wait().code(), Some(1));
    refused.logged("\"old\": 1 waiting events, 1 dead letters");
    assert_eq!(dead(&redis), 1, "the event that it could not open still waits");
}

#[test]
fn only_operators_seal_anew_and_only_with_keys() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TOKENS, crate::harness::ROUTES);
    let post = |token: &str, body: &str| {
        let request = Request::new("POST", "/v1/outbox/reseal").host("127.0.0.1").json(body);
        let answer = request.field("Authorization", &format!("Bearer {token}")).send(gateway.admin);
        (answer.status, answer.problem())
    };
    assert_eq!(post("letmesee", "{}"), (403, "forbidden".into()));
    assert_eq!(post("letmein", "{}"), (501, "encryption-off".into()));

    let settings = format!("{TOKENS}\n[encryption]\nkeys = [{{ id = \"a\", env = \"KEY\" }}]\n");
    let url = format!("http://127.0.0.1:{}", upstream.port);
    let sealing = Gateway::launch(&url, "memory:", &settings, crate::harness::ROUTES, |command| {
        command.env("KEY", OLD);
    });
    until("the gateway to be ready", || sealing.is_ready());
    let post = |body: &str| {
        let request = Request::new("POST", "/v1/outbox/reseal").host("127.0.0.1").json(body);
        request.field("Authorization", "Bearer letmein").send(sealing.admin)
    };
    let odd = post(r#"{"cursor":"odd"}"#);
    assert_eq!((odd.status, odd.problem().as_str()), (400, "request-invalid"));
    assert_eq!(post("{}").json()["resealed"], 0);
}
