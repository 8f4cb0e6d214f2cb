//! The store of the model: the product's own store in memory.
//!
//! A state has the store's contents as a small value. To carry out a command, a store is built with
//! these contents by its own commands; then the command runs, and the contents are read back. The
//! results are remembered, because the same contents occur in many states.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use onceward::event::{AnnouncedChange, events_of, finished};
use onceward::key::{Scope, Slot, Space};
use onceward::record::{self, AnnouncedRule, AnnouncedState, Announcements, Lifetime, Record};
use onceward::store::dead_letters::{
    Burial, DeadLetterFilter, DeadLetterId, DeadLetterKind, RoundChange,
};
use onceward::store::memory::Memory;
use onceward::store::outbox::{
    DeliveryAttempts, EventContent, EventKey, EventOrder, OutboxEvent, RelayFence,
};
use onceward::store::{DeadLetters, Events, Outbox, Records, Swap};

use super::state::{Attempts, Contents, DEAD_RELAY, EVENTS, LEASE, RELAYS, Stored, Waiting};
use crate::bridge::Bridge;
use crate::state::{Answer, Entry, Stand, Ticks, Who};

pub const TICK: Duration = Duration::from_secs(10);
/// The store's time in every state: ages are before it, deadlines after it.
const NOW_MS: u64 = 1_000_000_000;
/// No event is due later.
const LATER_MS: u64 = NOW_MS + 1_000_000;
const FOREVER: Duration = Duration::from_secs(24 * 3600);
const SINK: &str = "ledger";
const PARTITION: u16 = 0;
/// Owns the partition while contents are built and read.
const BUILDER: u8 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Writes a change with its event, or only the record.
    Change {
        change: u8,
        with_event: bool,
    },
    Attend(u8),
    Leave(u8),
    Own {
        next: u8,
        over: u8,
    },
    Due,
    Postpone {
        fence: u8,
        event: u8,
        round: u8,
        attempts: Attempts,
        pause: Ticks,
    },
    Remove {
        fence: u8,
        event: u8,
        round: u8,
    },
    Bury {
        fence: u8,
        event: u8,
        round: u8,
    },
    Requeue(u8),
    Discard(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    Done(bool),
    /// The relays that attend, bit by bit.
    Relays(u8),
    Due(Option<DueEvent>),
}

/// An event that is due, as a relay reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueEvent {
    pub event: u8,
    pub waiting: Waiting,
    /// Its id and content are those that its change wrote.
    pub is_intact: bool,
}

type Known = HashMap<(Contents, Command), (Contents, Answered)>;

/// The product's store, and what it does.
pub struct ProductStore {
    slot: Slot,
    records: [Record; EVENTS],
    contents: [Bytes; EVENTS],
    ids: [String; EVENTS],
    known: Mutex<Known>,
}

/// A store with some contents.
struct Shop {
    memory: Memory,
    now_ms: Arc<AtomicU64>,
}

impl ProductStore {
    pub fn new() -> ProductStore {
        let bridge = Bridge::new();
        let slot = Slot::of(Space::Enforced, "payments", &Scope::of_fields([]), b"key", b"");
        let stands = [Stand::Uncertain(None), Stand::Completed(Answer::Upstream(0))];
        let records = [0, 1].map(|change: usize| {
            let version = change as u16 + 1;
            let entry = Entry { version, fence: 0, who: Some(Who::Alice), stand: stands[change] };
            bridge.record(&entry)
        });
        let events = [0, 1].map(|change| event(&slot, &records[change]));
        let ids = events.clone().map(|(id, _)| id);
        let contents = events.map(|(_, content)| content);
        ProductStore { slot, records, contents, ids, known: Mutex::default() }
    }

    /// Carries a command out.
    pub fn run(&self, contents: &mut Contents, command: Command) -> Answered {
        let asked = (*contents, command);
        let known = self.known.lock().unwrap().get(&asked).copied();
        let (next, answered) = known.unwrap_or_else(|| {
            let result = self.run_product(contents, command);
            self.known.lock().unwrap().insert(asked, result);
            result
        });
        *contents = next;
        answered
    }

    fn run_product(&self, contents: &Contents, command: Command) -> (Contents, Answered) {
        let shop = self.build(contents);
        let key = |event| self.key(contents, event);
        let memory = &shop.memory;
        let answered = match command {
            Command::Change { change, with_event } => {
                let stored = Stored { order: change + 1, round: 0, written_ago: 0 };
                self.write(memory, change, with_event.then_some(stored));
                Answered::Done(true)
            }
            Command::Attend(relay) => {
                let relays = now(memory.attend(fence(relay), span(LEASE))).unwrap();
                Answered::Relays(relays.iter().map(|relay| 1 << relay.0).sum())
            }
            Command::Leave(relay) => Answered::Done(now(memory.leave(fence(relay))).is_ok()),
            Command::Own { next, over } => Answered::Done(own(memory, next, Some(over))),
            Command::Due => {
                let due = now(memory.due_events(PARTITION, SINK, 1)).unwrap();
                Answered::Due(due.events.into_iter().next().map(|waiting| self.read(&waiting)))
            }
            Command::Postpone { fence: by, event, round, attempts, pause } => {
                let (key, attempts, pause) = (key(event), product(attempts), span(pause));
                let postponed = memory.postpone(fence(by), &key, round.into(), attempts, pause);
                Answered::Done(now(postponed).unwrap())
            }
            Command::Remove { fence: by, event, round } => {
                Answered::Done(now(memory.remove(fence(by), &key(event), round.into())).unwrap())
            }
            Command::Bury { fence: by, event, round } => {
                let (key, burial) = (key(event), burial());
                let buried = memory.bury(fence(by), &key, round.into(), &burial);
                Answered::Done(now(buried).unwrap())
            }
            Command::Requeue(event) => {
                let id = DeadLetterId::of(&key(event));
                let letter = now(memory.dead_letter(id)).unwrap();
                Answered::Done(letter.is_some_and(|letter| {
                    now(memory.requeue(id, RoundChange::next(&letter))).unwrap()
                }))
            }
            Command::Discard(event) => {
                let id = DeadLetterId::of(&key(event));
                Answered::Done(now(memory.discard(id)).unwrap())
            }
        };
        let mut attends = contents.attends;
        match (command, answered) {
            (Command::Attend(relay), Answered::Relays(relays)) => {
                attends[usize::from(relay)] = LEASE;
                let is_gone = |relay: &usize| relays & 1 << relay == 0;
                (0..RELAYS).filter(is_gone).for_each(|relay| attends[relay] = 0);
            }
            (Command::Leave(relay), _) => attends[usize::from(relay)] = 0,
            _ => {}
        }
        (Contents { attends, ..self.read_back(&shop) }, answered)
    }

    fn build(&self, contents: &Contents) -> Shop {
        let now_ms = Arc::new(AtomicU64::new(NOW_MS));
        let clock = now_ms.clone();
        let memory = Memory::new(Arc::new(move || clock.load(Ordering::Relaxed)));
        assert!(own(&memory, BUILDER, None));
        for change in 0..contents.version {
            let n = usize::from(change);
            let stored = contents.waiting[n].map(|waiting| waiting.event).or(contents.dead[n]);
            now_ms.store(ago(stored.map_or(0, |stored| stored.written_ago)), Ordering::Relaxed);
            self.write(&memory, change, stored);
        }
        now_ms.store(NOW_MS, Ordering::Relaxed);
        for n in 0..EVENTS {
            let key = self.key(contents, n as u8);
            let bury = |round: u8| {
                let burial = burial();
                let buried = memory.bury(fence(BUILDER), &key, round.into(), &burial);
                assert!(now(buried).unwrap());
            };
            let waiting = contents.waiting[n];
            let round = waiting.map(|waiting| waiting.event).or(contents.dead[n]);
            let round = round.map_or(0, |stored| stored.round);
            for earlier in 0..round {
                bury(earlier);
                let next = RoundChange { from: earlier.into(), to: u32::from(earlier) + 1 };
                assert!(now(memory.requeue(DeadLetterId::of(&key), next)).unwrap());
            }
            if contents.dead[n].is_some() {
                bury(round);
            }
        }
        // The first event of the operation also gets the time at which it is due.
        for (n, waiting) in contents.waiting.iter().enumerate() {
            let Some(Waiting { event, attempts }) = waiting else { continue };
            let (key, due) = (self.key(contents, n as u8), span(contents.due));
            let (round, attempts) = (event.round.into(), product(*attempts));
            let postponed = memory.postpone(fence(BUILDER), &key, round, attempts, due);
            assert!(now(postponed).unwrap());
        }
        assert!(own(&memory, contents.owner, Some(BUILDER)));
        for (relay, left) in contents.attends.iter().enumerate().filter(|(_, left)| **left > 0) {
            now(memory.attend(fence(relay as u8), span(*left))).unwrap();
        }
        Shop { memory, now_ms }
    }

    /// Reads everything but the leases, and thereby empties the store.
    fn read_back(&self, Shop { memory, now_ms }: &Shop) -> Contents {
        let mut contents = Contents::EMPTY;
        let record = now(memory.load(&self.slot)).unwrap();
        contents.version = record.map_or(0, |held| held.record.version.0 as u8);
        let owner = now(memory.partition_owners()).unwrap()[0].unwrap();
        contents.owner = owner.0 as u8;
        let due = now(memory.due_events(PARTITION, SINK, 1)).unwrap();
        if due.events.is_empty() {
            contents.due = due.next_due_ms.map_or(0, |due_ms| ticks(due_ms - NOW_MS));
        }
        assert!(own(memory, BUILDER, Some(contents.owner)));
        now_ms.store(LATER_MS, Ordering::Relaxed);
        loop {
            let due = now(memory.due_events(PARTITION, SINK, 1)).unwrap();
            let Some(event) = due.events.into_iter().next() else { break };
            let DueEvent { event: n, waiting, .. } = self.read(&event);
            contents.waiting[usize::from(n)] = Some(waiting);
            assert!(now(memory.remove(fence(BUILDER), &event.key, event.round)).unwrap());
        }
        let page = now(memory.dead_letters(&DeadLetterFilter::default(), None, EVENTS)).unwrap();
        for letter in page.letters {
            let stored = stored(letter.key.order, letter.round, letter.written_ms);
            contents.dead[self.number(&letter.content)] = Some(stored);
        }
        contents
    }

    fn write(&self, memory: &Memory, change: u8, stored: Option<Stored>) {
        let n = usize::from(change);
        let event = stored.map(|stored| OutboxEvent {
            sink: SINK.into(),
            order: order(stored.order),
            content: EventContent::Plain(self.contents[n].clone()),
        });
        let expected = (change > 0).then(|| record::Version(change.into()));
        let lifetime = Lifetime { keep: FOREVER, due: None, tombstone: None };
        let events = Events { outbox: event.as_slice(), ..Events::NONE };
        let written = memory.write(&self.slot, expected, &self.records[n], lifetime, events);
        assert_eq!(now(written).unwrap(), Swap::Stored);
    }

    fn read(&self, event: &onceward::store::outbox::WaitingEvent) -> DueEvent {
        let n = self.number(&event.content);
        let EventContent::Plain(content) = &event.content else { panic!("plain") };
        let whole = finished(content, event.written_ms).unwrap();
        let attempts = Attempts {
            count: event.attempts.count as u8,
            first_ago: match event.attempts.count {
                0 => 0,
                _ => ticks(NOW_MS - event.attempts.first_ms),
            },
        };
        let event = stored(event.key.order, event.round, event.written_ms);
        let is_intact = *content == self.contents[n] && id_of(&whole) == self.ids[n];
        DueEvent { event: n as u8, waiting: Waiting { event, attempts }, is_intact }
    }

    /// The number of an event, by its id.
    fn number(&self, content: &EventContent) -> usize {
        let EventContent::Plain(content) = content else { panic!("plain") };
        let id = id_of(&finished(content, NOW_MS).unwrap());
        self.ids.iter().position(|one| *one == id).expect("an event that a change wrote")
    }

    fn key(&self, contents: &Contents, event: u8) -> EventKey {
        let n = usize::from(event);
        let stored = contents.waiting[n].map(|waiting| waiting.event).or(contents.dead[n]);
        let order = order(stored.map_or(event + 1, |stored| stored.order));
        EventKey { sink: SINK.into(), slot: self.slot, order }
    }
}

/// Returns the id and the content of the event of a change.
fn event(slot: &Slot, record: &Record) -> (String, Bytes) {
    let (state, reply) = match &record.state {
        record::State::Completed { reply, .. } => (AnnouncedState::Completed, Some(&**reply)),
        _ => (AnnouncedState::Uncertain, None),
    };
    let rule = AnnouncedRule {
        on: vec![state],
        statuses: vec![],
        to: vec![SINK.into()],
        kind: None,
        members: vec![],
    };
    let announcements = Announcements {
        source: "urn:model".into(),
        rules: vec![rule],
        uncertain_announced: false,
        hops: 0,
        event_bytes: 1 << 16,
    };
    let change = AnnouncedChange {
        slot,
        record,
        announcements: &announcements,
        states: &[state],
        status: reply.map(|reply| reply.status.as_u16()),
        settled_by: reply.map(|_| "upstream"),
        reply,
        saga: None,
    };
    let event = events_of(change).remove(0);
    (event.id, event.content)
}

fn id_of(event: &[u8]) -> String {
    let event: serde_json::Value = serde_json::from_slice(event).unwrap();
    event["id"].as_str().unwrap().to_owned()
}

/// Runs a call of the store, which never waits.
fn now<T>(call: impl Future<Output = T>) -> T {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("a store in memory waits for nothing"),
    }
}

fn own(memory: &Memory, next: u8, over: Option<u8>) -> bool {
    now(memory.own_partition(PARTITION, fence(next), over.map(fence))).unwrap()
}

/// Relays are numbered, and so are their fences.
fn fence(relay: u8) -> RelayFence {
    assert!(usize::from(relay) < RELAYS || [BUILDER, DEAD_RELAY].contains(&relay));
    RelayFence(relay.into())
}

fn order(number: u8) -> EventOrder {
    EventOrder { opened_unix_ms: 1, version: number.into(), number: 0 }
}

fn stored(order: EventOrder, round: u32, written_ms: u64) -> Stored {
    let written_ago = ticks(NOW_MS.saturating_sub(written_ms));
    Stored { order: order.version as u8, round: round as u8, written_ago }
}

pub fn product(attempts: Attempts) -> DeliveryAttempts {
    let first_ms = if attempts.count == 0 { 0 } else { ago(attempts.first_ago) };
    DeliveryAttempts { count: attempts.count.into(), first_ms }
}

fn burial() -> Burial {
    let report = EventContent::Plain(Bytes::from_static(b"{}"));
    Burial { kind: DeadLetterKind::Receiver, report }
}

pub fn span(ticks: Ticks) -> Duration {
    TICK * u32::from(ticks)
}

/// Returns the time this many ticks ago.
pub fn ago(ticks: Ticks) -> u64 {
    NOW_MS - span(ticks).as_millis() as u64
}

fn ticks(ms: u64) -> Ticks {
    (ms / TICK.as_millis() as u64) as Ticks
}
