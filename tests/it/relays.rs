//! Relays under stress: stopped processes, clocks that jump, long pauses, and many failures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use onceward::clock::Clock;
use onceward::entropy::Entropy;
use onceward::event::{AnnouncedChange, events_of};
use onceward::key::{Scope, Slot, Space};
use onceward::outbox::backlog::Backlogs;
use onceward::outbox::relay::{Relay, RelayParts};
use onceward::outbox::settings::{RetryRule, SinkSettings, SinkTarget, WebhookTarget};
use onceward::outbox::sink::Sink;
use onceward::record::{
    AnnouncedRule, AnnouncedState, Announcements, Extras, Fence, Lifetime, Record, Reply,
    ReplyBody, Settler, State, Version,
};
use onceward::store::dead_letters::{DeadLetter, DeadLetterFilter, DeadLetterKind};
use onceward::store::memory::Memory;
use onceward::store::outbox::{EventContent, EventOrder, OutboxEvent};
use onceward::store::redis::{Endpoint, Redis, RedisAck, RedisOptions};
use onceward::store::{DeadLetters, Events, Outbox, Records, Store, Swap};
use onceward::telemetry::OutboxMeter;
use tokio::runtime::Runtime;

use crate::harness::{Gateway, Hook, Hooks, RedisServer, Request, Upstream, until};

const LEDGER: &str = "ledger";

/// Returns settings with the sink `ledger`.
fn settings(hooks: &Hooks, sink: &str) -> String {
    let port = hooks.port;
    format!(
        r#"
[store]
format = 2
[[sinks]]
name = "ledger"
webhook = {{ url = "http://127.0.0.1:{port}/hooks", secrets = [{{ env = "HASHING_SECRET" }}] }}
{sink}
"#
    )
}

/// A route that publishes to `ledger`.
const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
[[routes.publish]]
on = ["completed"]
to = ["ledger"]
data = { payment = "response:/payment" }
"#;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Opens the store of gateways on this server.
fn open(runtime: &Runtime, redis: &RedisServer) -> Arc<Redis> {
    let _inside = runtime.enter();
    let options = RedisOptions {
        endpoint: Endpoint::Server(redis.url()),
        timeout: Duration::from_secs(5),
        ca_file: None,
        client: None,
        ack: RedisAck::Memory,
        loss_pause: Duration::ZERO,
        breakers: Default::default(),
        namespace: "onceward".into(),
        features: Default::default(),
    };
    Redis::connect(options).unwrap()
}

fn slot(n: u64) -> Slot {
    Slot::of(Space::Enforced, "payments", &Scope::shared(), &n.to_be_bytes(), b"")
}

fn record(version: u64) -> Record {
    let reply = Reply {
        status: StatusCode::CREATED,
        headers: HeaderMap::new(),
        body: ReplyBody::Whole(Bytes::from_static(b"{}")),
        trailers: None,
    };
    Record {
        version: Version(version),
        fence: Fence(version),
        route: "payments".into(),
        fingerprint: None,
        caller: None,
        opened_unix_ms: 1_800_000_000_000,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state: State::Completed { reply: Arc::new(reply), by: Settler::Upstream },
    }
}

/// Returns the content of the event of a completed operation.
fn content(slot: &Slot, record: &Record) -> Bytes {
    let rule = AnnouncedRule {
        on: vec![AnnouncedState::Completed],
        statuses: vec![],
        to: vec![LEDGER.into()],
        kind: None,
        members: vec![],
    };
    let announcements = Announcements {
        source: "urn:test".into(),
        rules: vec![rule],
        uncertain_announced: false,
        hops: 0,
        event_bytes: 1 << 16,
    };
    let change = AnnouncedChange {
        slot,
        record,
        announcements: &announcements,
        states: &[AnnouncedState::Completed],
        status: Some(201),
        settled_by: Some("upstream"),
        reply: None,
        saga: None,
    };
    events_of(change).remove(0).content
}

/// Writes a completed operation with an event of this content.
async fn announce(store: &dyn Records, slot: &Slot, content: Bytes) {
    const VERSION: u64 = 7;
    const KEEP: Lifetime = Lifetime { keep: Duration::from_secs(3600), due: None, tombstone: None };
    let record = record(VERSION);
    let order = EventOrder { opened_unix_ms: record.opened_unix_ms, version: VERSION, number: 0 };
    let outbox =
        [OutboxEvent { sink: LEDGER.into(), order, content: EventContent::Plain(content) }];
    let events = Events { outbox: &outbox, ..Events::NONE };
    let swap = store.write(slot, None, &record, KEEP, events).await.unwrap();
    assert_eq!(swap, Swap::Stored);
}

/// Writes this many completed operations, each with an event.
async fn announce_all(store: &dyn Records, operations: std::ops::Range<u64>) {
    let writes = operations.map(async |n| {
        let slot = slot(n);
        announce(store, &slot, content(&slot, &record(7))).await;
    });
    futures_util::stream::iter(writes).buffer_unordered(64).collect::<Vec<()>>().await;
}

async fn waiting(store: &dyn Outbox) -> u64 {
    store.backlog().await.unwrap().iter().map(|part| part.waiting).sum()
}

/// Waits until nothing waits. Fails if the backlog stays the same for long.
#[track_caller]
fn drain(runtime: &Runtime, store: &dyn Outbox) {
    let mut left = u64::MAX;
    while left > 0 {
        let before = left;
        until("the backlog to shrink", || {
            left = runtime.block_on(waiting(store));
            left < before
        });
        std::thread::sleep(Duration::from_millis(50));
    }
}

async fn dead_letters(store: &dyn DeadLetters) -> Vec<DeadLetter> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.dead_letters(&DeadLetterFilter::default(), cursor, 1000).await.unwrap();
        all.extend(page.letters);
        cursor = page.cursor;
        if cursor.is_none() {
            return all;
        }
    }
}

/// Returns the number of attempts of each operation.
fn attempts_of(hooks: &Hooks) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for hook in hooks.attempts() {
        *counts.entry(hook.text("subject")).or_default() += 1;
    }
    counts
}

fn subjects(hooks: &[Hook]) -> BTreeSet<String> {
    hooks.iter().map(|hook| hook.text("subject")).collect()
}

/// Returns a number for an attempt of an event, the same in each run.
fn dice(id: &str, before: usize) -> u64 {
    let seed = id.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
    Entropy::from_seed(seed.wrapping_add(before as u64)).next()
}

#[test]
fn of_ten_thousand_events_only_those_that_are_always_refused_become_dead_letters() {
    const EVENTS: u64 = 10_000;
    const ATTEMPTS: usize = 4;
    let (redis, runtime) = (RedisServer::start(), runtime());
    let store = open(&runtime, &redis);
    runtime.block_on(announce_all(&*store, 0..EVENTS));
    let refused: BTreeSet<String> = (0..EVENTS).step_by(3).map(|n| slot(n).to_string()).collect();
    let hooks = Hooks::deciding({
        let refused = refused.clone();
        move |event, before| {
            let is_refused = refused.contains(event["subject"].as_str().unwrap());
            // The last attempt of the others succeeds.
            let fails = before < ATTEMPTS - 1
                && dice(event["id"].as_str().unwrap(), before).is_multiple_of(3);
            if is_refused || fails { 503 } else { 200 }
        }
    });
    let upstream = Upstream::start();
    let retry = "retry = { first = \"10ms\", max = \"50ms\", attempts = 4 }\nconcurrency = 32";
    let settings = settings(&hooks, retry);
    let _gateways: Vec<_> =
        (0..2).map(|_| Gateway::on(upstream.port, &redis.url(), &settings, ROUTES)).collect();
    drain(&runtime, &*store);
    let delivered = hooks.delivered();
    let ids: BTreeSet<_> = delivered.iter().map(Hook::id).collect();
    assert_eq!(ids.len() as u64, EVENTS - refused.len() as u64, "one id for each operation");
    assert!(subjects(&delivered).is_disjoint(&refused));
    let letters = runtime.block_on(dead_letters(&*store));
    let buried: BTreeSet<_> = letters.iter().map(|letter| letter.key.slot.to_string()).collect();
    assert_eq!((letters.len(), buried == refused), (refused.len(), true));
    let attempts = attempts_of(&hooks);
    assert!(refused.iter().all(|operation| attempts[operation] >= ATTEMPTS));
}

/// Returns the number of attempts of a gateway that have a result.
fn results(gateway: &Gateway) -> usize {
    let count = |result: &str| {
        let labels = format!("{{sink=\"ledger\",result=\"{result}\"}} ");
        gateway.metric(&format!("onceward_outbox_deliveries_total{labels}"))
    };
    ["delivered", "retried", "buried"].map(count).iter().sum::<f64>() as usize
}

#[test]
fn a_relay_that_was_stopped_beyond_its_lease_ends_nothing_that_another_relay_owns() {
    let (redis, runtime) = (RedisServer::start(), runtime());
    let upstream = Upstream::start();
    // Of each event, the first and the second attempt wait until their gate is open. The first
    // attempt at an even payment is refused, and that at an odd one succeeds. A second attempt has
    // the other result.
    let gates = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
    let hooks = Hooks::deciding({
        let gates = gates.clone();
        move |event, before| {
            if let Some(gate) = gates.get(before) {
                until("the gate of an attempt", || gate.load(Ordering::SeqCst));
            }
            let number = event["data"]["payment"].as_u64().unwrap() as usize;
            if (number + before).is_multiple_of(2) { 500 } else { 200 }
        }
    });
    const PAYMENTS: usize = 24;
    // One attempt decides.
    let sink = "retry = { attempts = 1 }\ntimeout = \"6s\"\nconcurrency = 64";
    let settings = settings(&hooks, sink);
    let gateways: Vec<_> =
        (0..2).map(|_| Gateway::on(upstream.port, &redis.url(), &settings, ROUTES)).collect();
    let [stopped, other] = &gateways[..] else { unreachable!() };
    let store = open(&runtime, &redis);
    let shares = || {
        let mut shares = BTreeMap::<_, usize>::new();
        for owner in runtime.block_on(store.partition_owners()).unwrap() {
            *shares.entry(owner).or_default() += 1;
        }
        shares.into_values().collect::<Vec<_>>()
    };
    until("even shares", || shares() == [128, 128]);
    for n in 0..PAYMENTS {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(other.port).status, 201);
    }
    until("an attempt of each event", || hooks.begun() == PAYMENTS);
    stopped.signal("STOP");
    gates[0].store(true, Ordering::SeqCst);
    until("the takeover", || shares() == [256]);
    let left = || runtime.block_on(waiting(&*store)) as usize;
    until("second attempts of the events that wait", || hooks.begun() == PAYMENTS + left());
    let taken_over = left();
    stopped.signal("CONT");
    until("the first attempts to end", || results(stopped) == taken_over);
    assert_eq!(left(), taken_over, "the stopped relay removed and buried nothing");
    gates[1].store(true, Ordering::SeqCst);
    drain(&runtime, &*store);
    until("even shares again", || shares() == [128, 128]);

    let letters = runtime.block_on(dead_letters(&*store));
    let dead: BTreeSet<_> = letters.iter().map(|letter| letter.key.slot.to_string()).collect();
    let (attempts, mut kinds) = (hooks.attempts(), BTreeSet::new());
    for (operation, count) in attempts_of(&hooks) {
        let own: Vec<_> =
            attempts.iter().filter(|hook| hook.text("subject") == operation).collect();
        assert!(own.iter().all(|hook| hook.id() == own[0].id()), "one id");
        // The owner made the last attempt, so that one decided.
        let is_refused = own[count - 1].status == 500;
        assert_eq!(dead.contains(&operation), is_refused, "{operation}: {count} attempts");
        kinds.insert((count, is_refused));
    }
    assert_eq!((attempts.len(), letters.len()), (PAYMENTS + taken_over, dead.len()));
    let expected = [(1, false), (1, true), (2, false), (2, true)];
    assert_eq!(kinds, BTreeSet::from(expected), "each relay had events of both kinds");
}

#[test]
fn a_backlog_from_a_time_without_relays_is_attempted_before_anything_is_buried() {
    let (redis, runtime) = (RedisServer::start(), runtime());
    let (upstream, hooks) = (Upstream::start(), Hooks::start());
    // The events become much older than this age before the first attempt.
    let sink = "retry = { first = \"10ms\", max = \"20ms\", age = \"1ms\" }";
    let settings = settings(&hooks, sink);
    let idle = format!("[outbox]\nrelay = false\n{settings}");
    let mut writer = Gateway::on(upstream.port, &redis.url(), &idle, ROUTES);
    for n in 0..30 {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(writer.port).status, 201);
    }
    writer.kill();
    // One third is taken at once, one third at the fifth attempt, and one third never.
    hooks.decide(|event, before| match event["data"]["payment"].as_u64().unwrap() % 3 {
        0 => 200,
        1 if before == 4 => 200,
        _ => 500,
    });
    let _relay = Gateway::on(upstream.port, &redis.url(), &settings, ROUTES);
    let store = open(&runtime, &redis);
    drain(&runtime, &*store);
    assert_eq!(subjects(&hooks.delivered()).len(), 20);
    let letters = runtime.block_on(dead_letters(&*store));
    let attempts = attempts_of(&hooks);
    assert_eq!((letters.len(), attempts.len()), (10, 30));
    assert!(letters.iter().all(|letter| attempts[&letter.key.slot.to_string()] == 5));
}

#[test]
fn a_poisoned_event_stops_neither_its_partition_nor_the_later_events() {
    let (redis, runtime) = (RedisServer::start(), runtime());
    let (upstream, hooks) = (Upstream::start(), Hooks::start());
    let store = open(&runtime, &redis);
    let in_one_partition: Vec<Slot> =
        (0..).map(slot).filter(|slot| slot.partition() == 3).take(12).collect();
    runtime.block_on(async {
        for (n, slot) in in_one_partition.iter().enumerate() {
            let content = match n % 3 {
                0 => Bytes::from_static(b"\xffnot an event"),
                1 => Bytes::from_static(b"{}"),
                _ => content(slot, &record(7)),
            };
            announce(&*store, slot, content).await;
        }
    });
    let settings = settings(&hooks, "concurrency = 1");
    let _gateway = Gateway::on(upstream.port, &redis.url(), &settings, ROUTES);
    drain(&runtime, &*store);
    let sound = in_one_partition.iter().skip(2).step_by(3).map(Slot::to_string).collect();
    assert_eq!(subjects(&hooks.attempts()), sound);
    let letters = runtime.block_on(dead_letters(&*store));
    assert_eq!(letters.len(), 8);
    assert!(letters.iter().all(|letter| letter.burial.kind == DeadLetterKind::Gateway));
}

/// Starts a relay in this process, with its own wall clock.
fn relay(store: &Arc<Memory>, hooks: &Hooks, wall: Arc<AtomicU64>) -> Relay {
    let url = format!("http://127.0.0.1:{}/hooks", hooks.port);
    let target = WebhookTarget {
        url: url.parse().unwrap(),
        secrets: vec![vec![7; 32]],
        headers: HeaderMap::new(),
        ca_file: None,
    };
    let retry = RetryRule {
        first: Duration::from_millis(10),
        max: Duration::from_millis(50),
        attempts: 0,
        age: Duration::from_secs(3600),
    };
    let settings = SinkSettings { retry, ..SinkSettings::new(LEDGER, SinkTarget::Webhook(target)) };
    let boot = Clock::system();
    let meter = OutboxMeter::default();
    let parts = RelayParts {
        store: Store::from(store.clone()),
        clock: Clock::given(
            Arc::new(move || boot.boot_ms()),
            Arc::new(move || wall.load(Ordering::SeqCst)),
        ),
        entropy: Arc::new(Entropy::from_system().unwrap()),
        backlogs: Backlogs::new(meter.clone(), |names| names),
        meter,
        delivers: true,
    };
    let sink = Sink::new(settings).unwrap();
    Relay::start(parts, Arc::new(BTreeMap::from([(LEDGER.to_owned(), sink)])))
}

#[test]
fn clocks_that_jump_bury_nothing_and_lose_nothing() {
    const WEEK_MS: u64 = 7 * 24 * 3_600_000;
    let runtime = runtime();
    let (wall, ahead_ms) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(2 * WEEK_MS)));
    let system = Clock::system();
    wall.store(system.unix_ms(), Ordering::SeqCst);
    let store = Arc::new(Memory::new({
        let ahead_ms = ahead_ms.clone();
        Arc::new(move || system.unix_ms() + ahead_ms.load(Ordering::SeqCst))
    }));
    // Each event is taken at its fourth attempt.
    let held = Arc::new(Mutex::new(()));
    let hooks = Hooks::deciding({
        let held = held.clone();
        move |_, before| {
            drop(held.lock().unwrap());
            if before < 3 { 500 } else { 200 }
        }
    });
    let relay = {
        let _inside = runtime.enter();
        relay(&store, &hooks, wall.clone())
    };
    // The jumps happen while first attempts are under way.
    for (round, jumped_ms) in [(0, 3 * WEEK_MS), (1, WEEK_MS)] {
        let attempts = hooks.begun();
        let hold = held.lock().unwrap();
        let operations = 10 * round..10 * (round + 1);
        runtime.block_on(announce_all(&*store, operations));
        until("the first attempts", || hooks.begun() == attempts + 10);
        ahead_ms.store(jumped_ms, Ordering::SeqCst);
        wall.fetch_add(jumped_ms, Ordering::SeqCst);
        drop(hold);
        drain(&runtime, &*store);
    }
    runtime.block_on(relay.stop());
    let attempts = attempts_of(&hooks);
    assert!(attempts.len() == 20 && attempts.values().all(|count| *count == 4), "{attempts:?}");
    assert!(runtime.block_on(dead_letters(&*store)).is_empty());
}
