//! Stories of the relay over a store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::AttemptsReport;
use super::backlog::Backlogs;
use super::delivery::{AttemptResult, Delivery};
use super::relay::{Relay, RelayParts, Sinks};
use super::settings::{RetryRule, SinkSettings, SinkTarget, WebhookTarget};
use super::sink::{Sink, SinkClient};
use super::states::{Pause, SinkStates};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::event::{AnnouncedChange, events_of};
use crate::gate::FullSinks;
use crate::key::{Slot, Space};
use crate::record::{AnnouncedRule, AnnouncedState, Announcements, Lifetime, Record, State};
use crate::store::dead_letters::{DeadLetter, DeadLetterFilter, DeadLetterKind, RoundChange};
use crate::store::memory::Memory;
use crate::store::outbox::{EventContent, EventOrder, OutboxEvent};
use crate::store::suite::{completed, slot};
use crate::store::{DeadLetters, Events, Outbox, Records, Store, Swap};
use crate::telemetry::OutboxMeter;

mod calling;
mod note_faults;
mod vanishing;

/// Limit for the time until a condition holds.
const PATIENCE: Duration = Duration::from_secs(20);
const LEDGER: &str = "ledger";
const REFUSED: u16 = 500;

/// What a receiver got: the event's id, its operation, its sequence, its round and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Received {
    id: String,
    operation: String,
    sequence: String,
    round: u32,
    event: Bytes,
}

/// Returns the status for an attempt, from the number of earlier attempts of the same event.
type Answering = dyn Fn(&Received, usize) -> u16 + Send + Sync;

/// A receiver with the answers of the test.
struct Receiver {
    /// Every attempt, in the order in which they began.
    attempts: Mutex<Vec<Received>>,
    delivered: Mutex<Vec<Received>>,
    under_way: Mutex<BTreeMap<String, usize>>,
    answer: Box<Answering>,
    work: Duration,
}

impl Receiver {
    /// `answer` gets an attempt, and the number of earlier attempts of the same event.
    fn new(answer: impl Fn(&Received, usize) -> u16 + Send + Sync + 'static) -> Arc<Receiver> {
        Arc::new(Receiver {
            attempts: Mutex::default(),
            delivered: Mutex::default(),
            under_way: Mutex::default(),
            answer: Box::new(answer),
            work: Duration::from_millis(1),
        })
    }

    fn delivered(&self) -> Vec<Received> {
        self.delivered.lock().unwrap().clone()
    }

    fn attempts(&self) -> Vec<Received> {
        self.attempts.lock().unwrap().clone()
    }
}

#[async_trait]
impl SinkClient for Receiver {
    async fn attempt(&self, delivery: &Delivery, _: u64, _: Duration) -> AttemptResult {
        let event: serde_json::Value = serde_json::from_slice(&delivery.event).unwrap();
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let received = Received {
            id: delivery.event_id.clone(),
            operation: text("subject"),
            sequence: text("sequence"),
            round: delivery.round,
            event: delivery.event.clone(),
        };
        assert_eq!(received.id, text("id"));
        let before = {
            let mut attempts = self.attempts.lock().unwrap();
            let before = attempts.iter().filter(|attempt| attempt.id == received.id).count();
            attempts.push(received.clone());
            before
        };
        let at_once = {
            let mut under_way = self.under_way.lock().unwrap();
            let count = under_way.entry(received.operation.clone()).or_default();
            *count += 1;
            *count
        };
        assert_eq!(at_once, 1, "one attempt of an operation at a time");
        tokio::time::sleep(self.work).await;
        *self.under_way.lock().unwrap().get_mut(&received.operation).unwrap() -= 1;
        match (self.answer)(&received, before) {
            200 => {
                self.delivered.lock().unwrap().push(received);
                AttemptResult::Delivered { status: Some(200) }
            }
            status => AttemptResult::Refused {
                status,
                answer: Bytes::from_static(b"not now"),
                retry_after: None,
            },
        }
    }
}

/// Relays over one store.
struct Scene {
    clock: Clock,
    store: Arc<Memory>,
    full: FullSinks,
}

fn settings() -> SinkSettings {
    let target = WebhookTarget {
        url: http::Uri::from_static("http://ledger.test"),
        secrets: Vec::new(),
        headers: http::HeaderMap::new(),
        ca_file: None,
    };
    let retry = RetryRule {
        first: Duration::from_millis(4),
        max: Duration::from_millis(20),
        attempts: 0,
        age: Duration::from_secs(600),
    };
    let timeout = Duration::from_millis(100);
    SinkSettings { retry, timeout, ..SinkSettings::new(LEDGER, SinkTarget::Webhook(target)) }
}

fn sinks(settings: SinkSettings, receiver: &Arc<Receiver>) -> Sinks {
    let sink = Sink::with_client(settings, receiver.clone());
    Arc::new(BTreeMap::from([(LEDGER.to_owned(), sink)]))
}

impl Scene {
    fn new() -> Scene {
        Scene::with_clock(Clock::system())
    }

    /// Returns a scene with the clock of tokio's timers, which a test can pause.
    fn in_tokio_time() -> Scene {
        let start = tokio::time::Instant::now();
        let ms = Arc::new(move || 1_000_000 + u64::try_from(start.elapsed().as_millis()).unwrap());
        Scene::with_clock(Clock::given(ms.clone(), ms))
    }

    fn with_clock(clock: Clock) -> Scene {
        let store = Arc::new(Memory::new(clock.anchored()));
        Scene { clock, store, full: FullSinks::default() }
    }

    fn parts(&self) -> RelayParts {
        let (meter, full) = (OutboxMeter::default(), self.full.clone());
        RelayParts {
            store: Store::from(self.store.clone()),
            clock: self.clock.clone(),
            entropy: Arc::new(Entropy::from_system().unwrap()),
            backlogs: Backlogs::new(meter.clone(), move |names| full.replace(names)),
            meter,
            delivers: true,
        }
    }

    fn relay(&self, settings: SinkSettings, receiver: &Arc<Receiver>) -> Relay {
        Relay::start(self.parts(), sinks(settings, receiver))
    }

    /// Writes the change of an operation to `version`, with its event.
    async fn change(&self, operation: u64, version: u64, over: Option<u64>) {
        let slot = slot(Space::Enforced, operation);
        let record = completed(version);
        let order = EventOrder { opened_unix_ms: record.opened_unix_ms, version, number: 0 };
        let content = EventContent::Plain(content(&slot, &record));
        let outbox = [OutboxEvent { sink: LEDGER.into(), order, content }];
        let events = Events { outbox: &outbox, ..Events::NONE };
        let lifetime = Lifetime { keep: PATIENCE, due: None, tombstone: None };
        let over = over.map(crate::record::Version);
        let swap = self.store.write(&slot, over, &record, lifetime, events).await.unwrap();
        assert_eq!(swap, Swap::Stored);
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let filter = DeadLetterFilter::default();
        self.store.dead_letters(&filter, None, 10_000).await.unwrap().letters
    }

    async fn waiting(&self) -> u64 {
        self.store.backlog().await.unwrap().iter().map(|part| part.waiting).sum()
    }
}

/// The content of the event of a change.
fn content(slot: &Slot, record: &Record) -> Bytes {
    let State::Completed { reply, .. } = &record.state else { unreachable!() };
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
        status: Some(reply.status.as_u16()),
        settled_by: Some("upstream"),
        reply: Some(reply),
        saga: None,
    };
    events_of(change).remove(0).content
}

/// Waits until a condition holds.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn every_event_is_delivered_once_if_its_receiver_takes_it() {
    let (scene, receiver) = (Scene::new(), Receiver::new(|_, _| 200));
    scene.change(1, 7, None).await;
    let relay = scene.relay(settings(), &receiver);
    for operation in 2..=50 {
        scene.change(operation, 7, None).await;
    }
    until("all are gone", async || scene.waiting().await == 0).await;
    relay.stop().await;
    let ids: BTreeSet<_> = receiver.delivered().into_iter().map(|received| received.id).collect();
    assert_eq!((ids.len(), receiver.attempts().len()), (50, 50));
}

#[tokio::test]
async fn events_that_fail_are_repeated_with_the_same_id_and_bytes_and_in_order() {
    // Every event fails twice. Operation 1 has three events.
    let receiver = Receiver::new(|_, before| if before < 2 { REFUSED } else { 200 });
    let scene = Scene::new();
    for version in 7..=9 {
        scene.change(1, version, (version > 7).then(|| version - 1)).await;
    }
    scene.change(2, 7, None).await;
    let relay = scene.relay(settings(), &receiver);
    until("all are gone", async || scene.waiting().await == 0).await;
    relay.stop().await;
    let attempts = receiver.attempts();
    assert_eq!(attempts.len(), 12);
    for attempt in &attempts {
        let same = attempts.iter().filter(|other| other.id == attempt.id);
        assert_eq!(same.filter(|other| other.event == attempt.event).count(), 3);
    }
    let first = slot(Space::Enforced, 1).to_string();
    let sequences: Vec<_> = attempts
        .iter()
        .filter(|attempt| attempt.operation == first)
        .map(|attempt| attempt.sequence.parse::<u64>().unwrap())
        .collect();
    assert_eq!(sequences, [7, 7, 7, 8, 8, 8, 9, 9, 9]);
}

#[tokio::test]
async fn an_operation_that_always_fails_holds_back_no_other_and_is_buried_after_its_attempts() {
    let failing = slot(Space::Enforced, 1).to_string();
    let receiver = {
        let failing = failing.clone();
        Receiver::new(move |received, _| if received.operation == failing { REFUSED } else { 200 })
    };
    let scene = Scene::new();
    let retry = RetryRule { attempts: 4, ..settings().retry };
    let settings = SinkSettings { retry, concurrency: 1, ..settings() };
    scene.change(1, 7, None).await;
    scene.change(1, 8, Some(7)).await;
    for operation in 2..=30 {
        scene.change(operation, 7, None).await;
    }
    let relay = scene.relay(settings, &receiver);
    until("nothing waits", async || scene.waiting().await == 0).await;
    relay.stop().await;
    assert_eq!(receiver.delivered().len(), 29);
    let letters = scene.dead_letters().await;
    assert_eq!(letters.len(), 2, "the later event was attempted, too: {letters:?}");
    for letter in letters {
        assert_eq!(letter.burial.kind, DeadLetterKind::Receiver);
        let EventContent::Plain(report) = &letter.burial.report else { panic!("plain") };
        let report: AttemptsReport = serde_json::from_slice(report).unwrap();
        assert_eq!((report.count, report.status), (4, Some(REFUSED)));
        assert_eq!(report.answer.as_deref(), Some("not now"));
        assert!(report.first_ms <= report.last_ms);
    }
}

#[tokio::test]
async fn an_event_that_can_not_be_sent_is_buried_at_once_and_stops_nothing() {
    let (scene, receiver) = (Scene::new(), Receiver::new(|_, _| 200));
    let poisoned = slot(Space::Enforced, 1);
    let contents = [
        EventContent::Plain(Bytes::from_static(b"\xffnot an event")),
        EventContent::Sealed(Bytes::from_static(b"sealed")),
    ];
    for (version, content) in (7..).zip(contents) {
        let order = EventOrder { opened_unix_ms: 5, version, number: 0 };
        let outbox = [OutboxEvent { sink: LEDGER.into(), order, content }];
        let events = Events { outbox: &outbox, ..Events::NONE };
        let lifetime = Lifetime { keep: PATIENCE, due: None, tombstone: None };
        let over = (version > 7).then(|| crate::record::Version(version - 1));
        scene.store.write(&poisoned, over, &completed(version), lifetime, events).await.unwrap();
    }
    scene.change(2, 7, None).await;
    let relay = scene.relay(settings(), &receiver);
    until("nothing waits", async || scene.waiting().await == 0).await;
    relay.stop().await;
    assert_eq!(receiver.attempts().len(), 1);
    let kinds: Vec<_> =
        scene.dead_letters().await.iter().map(|letter| letter.burial.kind).collect();
    assert_eq!(kinds, [DeadLetterKind::Gateway; 2]);
}

#[tokio::test]
async fn a_requeued_event_is_really_sent_with_its_id_and_a_new_round() {
    let receiver = Receiver::new(|received, _| if received.round == 0 { REFUSED } else { 200 });
    let scene = Scene::new();
    let retry = RetryRule { attempts: 1, ..settings().retry };
    scene.change(1, 7, None).await;
    let relay = scene.relay(SinkSettings { retry, ..settings() }, &receiver);
    until("it is buried", async || !scene.dead_letters().await.is_empty()).await;
    let letter = scene.dead_letters().await.remove(0);
    let id = crate::store::dead_letters::DeadLetterId::of(&letter.key);
    assert!(scene.store.requeue(id, RoundChange::next(&letter)).await.unwrap());
    until("it is delivered", async || receiver.delivered().len() == 1).await;
    relay.stop().await;
    let [first, second] = &receiver.attempts()[..] else { panic!("two attempts") };
    assert_eq!((&first.id, &first.event), (&second.id, &second.event));
    assert_eq!((first.round, second.round), (0, 1));
}

#[tokio::test]
async fn a_paused_sink_gets_nothing_until_it_is_resumed() {
    let (scene, receiver) = (Scene::new(), Receiver::new(|_, _| 200));
    let pause = Pause { reason: "maintenance".into(), by: None, since_ms: 1 };
    SinkStates::pause(&*scene.store, LEDGER, &pause).await.unwrap();
    let relay = scene.relay(settings(), &receiver);
    scene.change(1, 7, None).await;
    let backlogs = relay.view().backlogs().clone();
    until("it is seen", async || backlogs.sums().get(LEDGER).is_some_and(|sum| sum.waiting == 1))
        .await;
    assert_eq!(receiver.attempts(), []);
    SinkStates::resume(&*scene.store, LEDGER, 2).await.unwrap();
    relay.view().states_changed();
    until("it is delivered", async || receiver.delivered().len() == 1).await;
    relay.stop().await;
}

#[tokio::test]
async fn three_operations_that_find_the_receiver_gone_pause_the_sink() {
    let (scene, receiver) = (Scene::new(), Receiver::new(|_, _| 410));
    scene.change(1, 7, None).await;
    scene.change(2, 7, None).await;
    let relay = scene.relay(settings(), &receiver);
    until("some retries", async || receiver.attempts().len() > 10).await;
    let paused = async || SinkStates::load(&*scene.store).await.unwrap().of(LEDGER).pause;
    assert_eq!(paused().await, None, "two operations are not enough");
    scene.change(3, 7, None).await;
    until("it is paused", async || paused().await.is_some()).await;
    assert_eq!(paused().await.unwrap().reason, "gone");
    relay.stop().await;
    assert_eq!((scene.waiting().await, scene.dead_letters().await.len()), (3, 0));
}

#[tokio::test]
async fn a_sink_at_its_limit_is_named_until_its_backlog_shrinks() {
    let (scene, receiver) = (Scene::new(), Receiver::new(|_, _| REFUSED));
    let retry = RetryRule { max: Duration::from_secs(600), ..settings().retry };
    let full = SinkSettings { max_backlog: 2, retry, ..settings() };
    scene.change(1, 7, None).await;
    let relay = scene.relay(full.clone(), &receiver);
    let is_full = async || scene.full.contains(LEDGER);
    scene.change(2, 7, None).await;
    until("it is full", is_full).await;
    relay.replace(sinks(SinkSettings { max_backlog: 3, ..full }, &receiver));
    until("it has room", async || !is_full().await).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_that_stops_hands_its_work_to_another_at_once() {
    let (scene, receiver) = (Scene::new(), Receiver::new(|_, _| 200));
    let first = scene.relay(settings(), &receiver);
    scene.change(1, 7, None).await;
    until("the first delivers", async || receiver.delivered().len() == 1).await;
    let second = scene.relay(settings(), &receiver);
    first.stop().await;
    scene.change(2, 7, None).await;
    until("the second delivers", async || receiver.delivered().len() == 2).await;
    second.stop().await;
}
