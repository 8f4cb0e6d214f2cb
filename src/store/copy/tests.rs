//! Copies from file to file, interrupted wherever they can be.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::TableHandle;

use super::*;
use crate::key::{Slot, Space};
use crate::record::{Lifetime, PrivateContent, Record, SagaPhase, State};
use crate::store::dead_letters::{
    Burial, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterKind, DeadLetters, RoundChange,
};
use crate::store::embedded::{CopiedFile, Embedded, EmbeddedOptions};
use crate::store::log::{Ends, EventLog, LogEntry, verify};
use crate::store::outbox::{
    DeliveryAttempts, EventContent, EventKey, EventOrder, Outbox, OutboxEvent, RelayFence,
    SinkBacklog, WaitingEvent,
};
use crate::store::suite::{Time, claim, completed, slot};
use crate::store::{Events, IdentityNotes, Listing, Note, Records, StoreError};

const HOUR: Duration = Duration::from_secs(3600);
const START_MS: u64 = 1_800_000_000_000;
const RELAY: RelayFence = RelayFence(7);
const LEDGER: &str = "ledger";
/// Pause of postponed events.
const PAUSE: Duration = Duration::from_secs(300);
const NO_REPORT: CopyReport<'static> = &|_, _| {};

fn options() -> EmbeddedOptions {
    EmbeddedOptions { min_free_bytes: 0, ..EmbeddedOptions::new(Time::by_hand().clock(), START_MS) }
}

/// The `number`th event of an operation. Contents of odd numbers are sealed.
fn event(sink: &str, n: u64, number: u8) -> OutboxEvent {
    let text = Bytes::from(format!("event {number} of {n} for {sink}"));
    let content = if number.is_multiple_of(2) {
        EventContent::Plain(text)
    } else {
        EventContent::Sealed(text)
    };
    let order = EventOrder { opened_unix_ms: START_MS, version: n, number };
    OutboxEvent { sink: sink.into(), order, content }
}

fn key(slot: Slot, event: &OutboxEvent) -> EventKey {
    EventKey { sink: event.sink.clone(), slot, order: event.order }
}

/// Postpones or buries the first event of some operations. Returns the number of dead letters.
async fn attempt(store: &Embedded) -> u64 {
    assert!(store.own_partition(0, RELAY, None).await.unwrap());
    let mut buried = 0;
    for n in (0..60).step_by(2).filter(|n| n % 7 != 1) {
        let event = key(slot(Space::Enforced, n), &event(LEDGER, n, 0));
        let kind = match n % 3 {
            0 => DeadLetterKind::Receiver,
            1 => DeadLetterKind::Gateway,
            _ => {
                let attempts = DeliveryAttempts { count: n as u32, first_ms: START_MS - n };
                assert!(store.postpone(RELAY, &event, 0, attempts, PAUSE).await.unwrap());
                continue;
            }
        };
        let report = EventContent::Sealed(Bytes::from(format!("report {n}")));
        assert!(store.bury(RELAY, &event, 0, &Burial { kind, report }).await.unwrap());
        buried += 1;
    }
    buried
}

fn saga(n: u64) -> Record {
    let content = PrivateContent::Sealed(Bytes::from_static(b"sealed"));
    Record { state: State::Saga { phase: SagaPhase::Running, content }, ..claim(n, n) }
}

/// A store with records of all kinds, tombstones, events and dead letters. Returns its backlog.
async fn fill(dir: &Path) -> Vec<SinkBacklog> {
    fill_with(dir, 1500).await
}

/// [`fill`] with this number of records: 60 or more.
async fn fill_with(dir: &Path, records: u64) -> Vec<SinkBacklog> {
    let store = Embedded::open(dir, options()).unwrap();
    let kept = Lifetime { keep: HOUR, due: None, tombstone: Some(2 * HOUR) };
    let running = Lifetime { keep: HOUR, due: Some(HOUR / 2), tombstone: None };
    for n in 0..records {
        let space = if n % 7 == 1 { Space::Shadow } else { Space::Enforced };
        let events = [event(LEDGER, n, 0), event(LEDGER, n, 1), event("mail", n, 0)];
        let outbox = if n % 2 == 0 && space == Space::Enforced { &events[..] } else { &[] };
        let (record, lifetime): (Record, _) = match n % 5 {
            0 if n % 3 == 0 => (saga(n), running),
            0 => (claim(n, n), running),
            1 if n % 3 == 0 => (Record { state: State::Barred, ..claim(n, n) }, kept),
            _ => (completed(n), kept),
        };
        let log = || format!("event {n}").into_bytes();
        let events = Events { outbox, ..Events::logged(&log) };
        store.write(&slot(space, n), None, &record, lifetime, events).await.unwrap();
    }
    store.set_note(Note::Identities, None, "identities").await.unwrap();
    store.set_note(Note::Paths, None, "paths").await.unwrap();
    store.set_note(Note::Sinks, None, "sinks").await.unwrap();
    let buried = attempt(&store).await;
    let backlog = store.backlog().await.unwrap();
    let dead = |one: &SinkBacklog| one.dead_by_receiver + one.dead_by_gateway;
    assert_eq!(backlog.iter().map(dead).sum::<u64>(), buried);
    store.close().await;
    backlog
}

/// Returns the events that are due, and all dead letters.
async fn outbox_of(store: &Embedded) -> (Vec<WaitingEvent>, Vec<DeadLetter>) {
    let mut due = Vec::new();
    for sink in [LEDGER, "mail"] {
        due.extend(store.due_events(0, sink, 10_000).await.unwrap().events);
    }
    let all = DeadLetterFilter::default();
    (due, store.dead_letters(&all, None, 1000).await.unwrap().letters)
}

async fn copied(from: &Path, to: &Path) -> Result<Copied, CopyError> {
    copy(&CopiedFile::source(from, options())?, &CopiedFile::target(to, options())?, NO_REPORT)
        .await
}

async fn is_the_same(from: &Path, to: &Path) {
    // So late that all events are due.
    let late = START_MS + 2 * PAUSE.as_millis() as u64;
    let options = || EmbeddedOptions { unix_ms: late, ..options() };
    let [one, other] = [from, to].map(|dir| Embedded::open(dir, options()).unwrap());
    assert_eq!(other.note(Note::Sinks).await.unwrap().as_deref(), Some("sinks"));
    assert_eq!(other.note(Note::Identities).await.unwrap().as_deref(), Some("identities"));
    assert_eq!(other.note(Note::Paths).await.unwrap().as_deref(), Some("paths"));
    for n in 0..1500 {
        for space in [Space::Enforced, Space::Shadow] {
            let slot = slot(space, n);
            assert_eq!(one.load(&slot).await.unwrap(), other.load(&slot).await.unwrap());
            assert_eq!(one.remains(&slot).await.unwrap(), other.remains(&slot).await.unwrap());
        }
    }
    let unsettled = other.list(Listing::Unsettled, None, 2000).await.unwrap().records;
    assert_eq!(
        unsettled.len(),
        one.list(Listing::Unsettled, None, 2000).await.unwrap().records.len()
    );
    assert!(unsettled.len() > 150);
    let sagas = other.list(Listing::Sagas, None, 2000).await.unwrap().records;
    assert_eq!(sagas, one.list(Listing::Sagas, None, 2000).await.unwrap().records);
    assert!(sagas.len() > 50);
    assert_eq!(one.backlog().await.unwrap(), other.backlog().await.unwrap());
    let (due, dead) = outbox_of(&other).await;
    assert_eq!(outbox_of(&one).await, (due.clone(), dead.clone()));
    assert!(due.len() > 1000 && due.iter().any(|event| event.attempts.count > 0) && dead.len() > 5);
    let all = BTreeSet::from([0]);
    let oldest = [&one, &other].map(|store| store.oldest_waiting_ms(LEDGER, &all));
    let [one_ms, other_ms] = futures_util::future::join_all(oldest).await.try_into().unwrap();
    assert_eq!(one_ms.unwrap(), other_ms.unwrap());
    assert_eq!(other.partition_owners().await.unwrap(), [None]);
    assert_eq!(one.ends().await.unwrap(), other.ends().await.unwrap());
    assert_eq!(verify(&other, None, 10_000).await.unwrap().breaks, []);
    one.close().await;
    other.close().await;
}

/// Returns the backlog of a store.
async fn counted(dir: &Path) -> Vec<SinkBacklog> {
    let store = Embedded::open(dir, options()).unwrap();
    let backlog = store.backlog().await.unwrap();
    store.close().await;
    backlog
}

/// Removes tables from the file of a store.
fn remove_tables(dir: &Path, is_removed: impl Fn(&str) -> bool) {
    let file = redb::Database::open(dir.join("records.redb")).unwrap();
    let txn = file.begin_write().unwrap();
    let tables: Vec<_> = txn.list_tables().unwrap().collect();
    for table in tables.into_iter().filter(|table| is_removed(table.name())) {
        assert!(txn.delete_table(table).unwrap());
    }
    txn.commit().unwrap();
}

/// Fails at the write with this number.
struct Cut<'a> {
    inner: &'a CopiedFile,
    writes: AtomicUsize,
    at: usize,
}

impl Cut<'_> {
    fn pass(&self) -> Result<(), StoreError> {
        let cut = self.writes.fetch_add(1, Ordering::Relaxed) == self.at;
        if cut { Err(StoreError::NotApplied("cut".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl CopySource for Cut<'_> {
    fn log_partitions(&self) -> u16 {
        self.inner.log_partitions()
    }

    fn log(&self) -> &dyn EventLog {
        self.inner.log()
    }

    async fn time_ms(&self) -> Result<u64, StoreError> {
        self.inner.time_ms().await
    }

    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.inner.note(note).await
    }

    async fn unused_state(&self) -> Result<String, CopyError> {
        self.inner.unused_state().await
    }

    async fn items(&self, cursor: Option<&str>) -> Result<Items, StoreError> {
        self.inner.items(cursor).await
    }

    async fn find(&self, keys: &[ItemKey]) -> Result<Vec<Option<Item>>, StoreError> {
        self.inner.find(keys).await
    }

    async fn outbox(&self, cursor: Option<&str>) -> Result<OutboxItems, CopyError> {
        self.inner.outbox(cursor).await
    }
}

#[async_trait]
impl CopyTarget for Cut<'_> {
    async fn begin(&self) -> Result<CopyStart, CopyError> {
        self.inner.begin().await
    }

    async fn put_items(&self, items: &[Item], progress: &CopyProgress) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.put_items(items, progress).await
    }

    async fn put_events(
        &self,
        entries: &[LogEntry],
        progress: &CopyProgress,
    ) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.put_events(entries, progress).await
    }

    async fn put_outbox(
        &self,
        items: &[OutboxItem],
        progress: &CopyProgress,
    ) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.put_outbox(items, progress).await
    }

    async fn put_ends(&self, ends: &[Ends]) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.put_ends(ends).await
    }

    async fn finish(&self, notes: &[(Note, String)]) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.finish(notes).await
    }
}

#[tokio::test]
async fn a_copy_is_the_same_wherever_it_was_interrupted_and_closed_until_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let backlog = fill(&from).await;
    let before = std::fs::read(from.join("records.redb")).unwrap();
    // A copy has these writes: two or more batches of items, three batches of events, the ends, two
    // or more batches of waiting events, one of dead letters, and the finish.
    let mut interruptions = 0;
    for at in 0..20 {
        let to = dir.path().join(format!("to{at}"));
        let cut = async {
            let (source, target) = (
                CopiedFile::source(&from, options()).unwrap(),
                CopiedFile::target(&to, options()).unwrap(),
            );
            let cut = Cut { inner: &target, writes: AtomicUsize::new(0), at };
            copy(&source, &cut, NO_REPORT).await
        };
        match cut.await {
            Ok(_) => break,
            Err(error) => {
                assert!(error.to_string().contains("run the same command again"), "{error}")
            }
        }
        interruptions += 1;
        let closed = Embedded::open(&to, options()).map(|_| ()).unwrap_err();
        assert!(closed.to_string().contains("a copy that isn't finished"), "{closed}");
        let copied = copied(&from, &to).await.unwrap();
        assert!(copied.resumed && !copied.relinked && copied.events == 1500, "{copied:?}");
        assert_eq!(counted(&to).await, backlog);
        let sum = |count: fn(&SinkBacklog) -> u64| backlog.iter().map(count).sum::<u64>();
        assert_eq!(copied.waiting, sum(|one| one.waiting));
        assert_eq!(copied.dead_letters, sum(|one| one.dead_by_receiver + one.dead_by_gateway));
        if at % 3 == 0 {
            assert_eq!(std::fs::read(from.join("records.redb")).unwrap().len(), before.len());
            assert!(
                std::fs::read(from.join("records.redb")).unwrap() == before,
                "the original is not touched"
            );
            let other = dir.path().join(format!("check{at}"));
            std::fs::create_dir(&other).unwrap();
            std::fs::copy(from.join("records.redb"), other.join("records.redb")).unwrap();
            is_the_same(&other, &to).await;
        }
    }
    assert!(interruptions >= 9, "{interruptions}");
}

#[tokio::test]
async fn what_holds_something_is_in_use_or_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [from, full, empty, nothing] =
        ["from", "full", "empty", "nothing"].map(|name| dir.path().join(name));
    fill(&from).await;
    fill(&full).await;
    Embedded::open(&empty, options()).unwrap().close().await;
    for (from, to, reason) in [
        (&from, &full, "holds something already"),
        (&nothing, &full, "there is no store in"),
        (&from, &from, "another process uses it"),
    ] {
        let refused = copied(from, to).await.unwrap_err();
        assert!(matches!(&refused, CopyError::Refused(text) if text.contains(reason)), "{refused}");
    }
    let gateway = Embedded::open(&from, options()).unwrap();
    assert!(
        copied(&from, &empty).await.unwrap_err().to_string().contains("another process uses it")
    );
    gateway.close().await;
    // A gateway that never had a request leaves an empty store.
    assert_eq!(copied(&from, &empty).await.unwrap().events, 1500);
    is_the_same(&from, &empty).await;
}

#[tokio::test]
async fn a_copy_goes_on_only_from_the_store_that_it_began_with() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    fill(&from).await;
    {
        let (source, target) = (
            CopiedFile::source(&from, options()).unwrap(),
            CopiedFile::target(&to, options()).unwrap(),
        );
        let cut = Cut { inner: &target, writes: AtomicUsize::new(0), at: 2 };
        copy(&source, &cut, NO_REPORT).await.unwrap_err();
    }
    let later = EmbeddedOptions { unix_ms: START_MS + 1, ..options() };
    Embedded::open(&from, later).unwrap().close().await;
    let refused = copied(&from, &to).await.unwrap_err();
    assert!(
        matches!(&refused, CopyError::Refused(text) if text.contains("as it was before a gateway used it")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_copy_delivers_events_in_order_and_knows_dead_letters_by_their_ids() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    let here = slot(Space::Enforced, 1);
    let events: Vec<OutboxEvent> = (0..4).map(|number| event(LEDGER, 1, number)).collect();
    let store = Embedded::open(&from, options()).unwrap();
    let kept = Lifetime { keep: HOUR, due: None, tombstone: None };
    let outbox = Events { outbox: &events, ..Events::NONE };
    store.write(&here, None, &completed(1), kept, outbox).await.unwrap();
    assert!(store.own_partition(0, RELAY, None).await.unwrap());
    let report = EventContent::Plain(Bytes::from_static(b"report"));
    let burial = Burial { kind: DeadLetterKind::Gateway, report };
    assert!(store.bury(RELAY, &key(here, &events[1]), 0, &burial).await.unwrap());
    let id = DeadLetterId::of(&key(here, &events[1]));
    let buried = store.dead_letter(id).await.unwrap();
    store.close().await;

    let copied = copied(&from, &to).await.unwrap();
    assert_eq!((copied.waiting, copied.dead_letters), (3, 1));
    let store = Embedded::open(&to, options()).unwrap();
    assert_eq!(store.dead_letter(id).await.unwrap(), buried);
    assert!(buried.is_some() && store.requeue(id, RoundChange { from: 0, to: 1 }).await.unwrap());
    assert!(store.own_partition(0, RELAY, None).await.unwrap());
    for (event, round) in events.iter().zip([0, 1, 0, 0]) {
        let due = store.due_events(0, LEDGER, 10).await.unwrap().events;
        let [first] = &due[..] else { panic!("one event of the operation, not {due:?}") };
        assert_eq!((&first.key, &first.content), (&key(here, event), &event.content));
        assert_eq!(first.round, round);
        assert!(store.remove(RELAY, &first.key, first.round).await.unwrap());
    }
    assert_eq!(store.backlog().await.unwrap(), []);
    store.close().await;
}

#[tokio::test]
async fn a_file_of_a_version_without_an_outbox_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    fill_with(&from, 60).await;
    remove_tables(&from, |name| name.starts_with("outbox_") || name.starts_with("dead_letters"));
    let copied = copied(&from, &to).await.unwrap();
    assert_eq!((copied.events, copied.waiting, copied.dead_letters), (60, 0, 0));
    assert_eq!(counted(&to).await, []);
}

#[tokio::test]
async fn a_store_that_holds_nothing_but_events_or_dead_letters_is_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fill_with(&from, 60).await;
    for kept in ["outbox_", "dead_letters"] {
        let full = dir.path().join(kept);
        fill_with(&full, 60).await;
        remove_tables(&full, |name| name != "meta" && !name.starts_with(kept));
        let refused = copied(&from, &full).await.unwrap_err().to_string();
        assert!(refused.contains("holds something already"), "{kept}: {refused}");
    }
}
