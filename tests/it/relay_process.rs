//! `onceward relay`: a process that only delivers, beside gateways that leave delivery to it.

use std::collections::BTreeSet;

use crate::harness::{Gateway, Hook, Hooks, RedisServer, Request, Upstream, until};

/// The file of gateways and relay, with delivery by the gateways or not.
fn file(hooks: &Hooks, relay: bool) -> String {
    let port = hooks.port;
    format!(
        r#"
[store]
format = 2
[outbox]
relay = {relay}
[[sinks]]
name = "ledger"
webhook = {{ url = "http://127.0.0.1:{port}/hooks", secrets = [{{ env = "HASHING_SECRET" }}] }}
retry = {{ first = "20ms", max = "100ms" }}
timeout = "1s"
"#
    )
}

const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
[[routes.publish]]
on = ["completed"]
to = ["ledger"]
"#;

struct Scene {
    redis: RedisServer,
    upstream: Upstream,
    hooks: Hooks,
}

impl Scene {
    fn new() -> Scene {
        Scene { redis: RedisServer::start(), upstream: Upstream::start(), hooks: Hooks::start() }
    }

    /// Starts a gateway that leaves delivery to a relay.
    fn gateway(&self) -> Gateway {
        Gateway::on(self.upstream.port, &self.redis.url(), &file(&self.hooks, false), ROUTES)
    }

    /// Starts a relay with the file of the gateways.
    fn relay(&self) -> Gateway {
        let url = format!("http://127.0.0.1:{}", self.upstream.port);
        let file = format!("{}{ROUTES}", file(&self.hooks, false));
        let relay = Gateway::relay(&url, &self.redis.url(), &file, |_| {});
        until("the relay to be ready", || relay.is_ready());
        relay
    }
}

fn pay(gateway: &Gateway, keys: std::ops::Range<u32>) {
    for n in keys {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
}

fn ids(hooks: &[Hook]) -> BTreeSet<String> {
    hooks.iter().map(|hook| hook.id().to_owned()).collect()
}

#[test]
fn events_of_gateways_that_do_not_deliver_arrive_through_a_relay_and_survive_its_death() {
    let scene = Scene::new();
    let gateways = [scene.gateway(), scene.gateway()];
    pay(&gateways[0], 0..5);
    let backlog = "onceward_outbox_backlog{sink=\"ledger\"}";
    until("the events to wait", || gateways[1].metric(backlog) == 5.0);
    assert!(scene.hooks.attempts().is_empty(), "no gateway delivers");

    let mut relay = scene.relay();
    relay.logged("delivering events");
    scene.hooks.wait_for(5);
    pay(&gateways[1], 5..10);
    scene.hooks.wait_for(10);
    until("nothing to wait", || relay.metric(backlog) == 0.0);
    assert_eq!(
        relay.metric("onceward_outbox_deliveries_total{sink=\"ledger\",result=\"delivered\"}"),
        10.0
    );

    scene.hooks.decide(|_, _| 500);
    pay(&gateways[0], 10..20);
    until("each was attempted", || ids(&scene.hooks.attempts()).len() == 20);
    relay.kill();
    pay(&gateways[0], 20..25);
    scene.hooks.decide(|_, _| 200);
    let _successor = scene.relay();
    scene.hooks.wait_for(25);
    assert_eq!(ids(&scene.hooks.attempts()).len(), 25, "one id for each event");
    assert_eq!(scene.upstream.executed(), 25);
}

#[test]
fn a_relay_that_is_stopped_hands_its_work_over_at_once() {
    let scene = Scene::new();
    let gateway = scene.gateway();
    let mut first = scene.relay();
    first.logged("partitions=256");
    let second = scene.relay();
    second.logged("partitions=128");
    first.signal("TERM");
    assert!(first.wait().success());
    first.logged("stopping");
    // The lease of a relay that dies is 10 s.
    #[allow(clippy::disallowed_methods)]
    let began = std::time::Instant::now();
    pay(&gateway, 0..20);
    scene.hooks.wait_for(20);
    assert!(began.elapsed().as_secs() < 8, "{:?}", began.elapsed());
    second.logged("partitions=256");
}

#[test]
fn a_relay_has_no_public_listener_and_its_sinks_can_be_reloaded() {
    let scene = Scene::new();
    let gateway = scene.gateway();
    let relay = scene.relay();
    let sockets = std::process::Command::new("sh")
        .args(["-c", "cat /proc/$0/net/tcp /proc/$0/net/tcp6; ls -l /proc/$0/fd"])
        .arg(relay.process().to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&sockets.stdout).into_owned();
    let listening = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(3) == Some(&"0A"))
        .filter(|words| text.contains(&format!("socket:[{}]", words[9])))
        .count();
    assert_eq!(listening, 1, "only the admin port: {text}");

    let other = Hooks::start();
    let config = std::fs::read_to_string(relay.config()).unwrap();
    let moved = config.replace(&format!(":{}/", scene.hooks.port), &format!(":{}/", other.port));
    // The address of the gateways, which share the file, may change too.
    std::fs::write(relay.config(), format!("listen = \"127.0.0.1:1\"\n{moved}")).unwrap();
    relay.signal("HUP");
    relay.logged("configuration reloaded");
    pay(&gateway, 0..1);
    other.wait_for(1);
    assert!(scene.hooks.attempts().is_empty());
}

#[test]
fn a_relay_on_a_store_that_it_could_not_share_is_refused() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    for store in [format!("file:{}", folder.path().join("data").display()), "memory:".into()] {
        let file = format!("{}{ROUTES}", file(&scene.hooks, true));
        let mut refused = Gateway::relay("http://127.0.0.1:9", &store, &file, |_| {});
        assert_eq!(refused.wait().code(), Some(2), "{store}");
        refused.logged("the store must be in Redis");
    }
}
