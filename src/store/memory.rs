//! A store in the memory of this process, for tests and trials. Its contents end with the process.
//!
//! Danger: two gateways that each have such a store share no records. So each gateway executes
//! duplicates of the other's requests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::log::{Journal, PARTITION};
use self::waiting_events::WaitingEvents;
use super::error::{ListError, StoreError};
use super::identities::{IdentityNotes, Note};
use super::local_relays::LocalRelays;
use super::log::{Ends, EntryId, EventLog, LogEntry, Position, Trimmed};
use super::records::{DueSagas, Events, Listing, Page, Records, Swap, is_listed};
use super::watch::{Hub, Watch};
use crate::clock::StoreClock;
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, State, Version};

mod log;
mod outbox;
mod waiting_events;

/// Limit for the ended records that one write removes. The limit is more than one, because the
/// store must shrink while it is in use. It is small, because one request must not pay for many
/// others.
const SWEPT_PER_WRITE: usize = 4;

/// A store in memory.
pub struct Memory {
    clock: StoreClock,
    hub: Hub,
    relays: LocalRelays,
    contents: Mutex<Contents>,
}

/// Everything in the store. The indexes name exactly the records and tombstones of the maps.
#[derive(Default)]
struct Contents {
    records: BTreeMap<Slot, Stored>,
    tombstones: BTreeMap<Slot, Stored>,
    due: BTreeSet<(u64, Slot)>,
    sagas: BTreeSet<(u64, Slot)>,
    ends: BTreeSet<(u64, Slot)>,
    tombstone_ends: BTreeSet<(u64, Slot)>,
    notes: Notes,
    journal: Journal,
    outbox: WaitingEvents,
}

#[derive(Default)]
struct Notes {
    identities: Option<String>,
    paths: Option<String>,
    sinks: Option<String>,
    outbox_keys: Option<String>,
}

impl Notes {
    fn of(&mut self, note: Note) -> &mut Option<String> {
        match note {
            Note::Identities => &mut self.identities,
            Note::Paths => &mut self.paths,
            Note::Sinks => &mut self.sinks,
            Note::OutboxKeys => &mut self.outbox_keys,
        }
    }
}

struct Stored {
    record: Record,
    written_ms: u64,
    /// Due time in ms since 1970; 0: never.
    due_ms: u64,
    ends_ms: u64,
}

impl Memory {
    /// Returns an empty store with this clock.
    pub fn new(clock: StoreClock) -> Memory {
        Memory {
            clock,
            hub: Hub::local(),
            relays: LocalRelays::default(),
            contents: Mutex::default(),
        }
    }

    /// Locks the contents, and returns the time. A panic elsewhere can't leave them half changed:
    /// no code that can panic runs under the lock.
    fn lock(&self) -> (MutexGuard<'_, Contents>, u64) {
        let contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that times are in the order of writes.
        let now_ms = (self.clock)();
        (contents, now_ms)
    }
}

#[async_trait]
impl Records for Memory {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        let (mut contents, now_ms) = self.lock();
        contents.sweep(now_ms);
        let current = contents.live(slot, now_ms);
        if current.is_some_and(|stored| stored.record.is_same_write(next)) {
            return Ok(Swap::Stored);
        }
        if current.map(|stored| stored.record.version) != expected {
            return Ok(Swap::Stale(current.map(|stored| stored.held(now_ms))));
        }
        // A tombstone bars the claim of a saga, too. The later writes of a saga ask for no
        // tombstone.
        let claims = next.state.has_lease();
        let barrier = if claims && lifetime.tombstone.is_some() {
            contents.live_tombstone(slot, now_ms)
        } else {
            None
        };
        if let Some(tombstone) = barrier {
            return Ok(Swap::Stale(Some(tombstone.held(now_ms))));
        }
        contents.write(slot, next, lifetime, now_ms);
        contents.journal.append(slot, &(events.log)(), now_ms);
        contents.outbox.append(slot, events.outbox, now_ms);
        drop(contents);
        self.hub.notify(slot);
        events.outbox.iter().for_each(|event| self.relays.wake(&event.sink));
        Ok(Swap::Stored)
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let (mut contents, now_ms) = self.lock();
        Ok(contents.live(slot, now_ms).map(|stored| stored.held(now_ms)))
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let (mut contents, now_ms) = self.lock();
        if let Some(stored) = contents.live(slot, now_ms) {
            return Ok(Some(stored.held(now_ms)));
        }
        Ok(contents.live_tombstone(slot, now_ms).map(|stored| stored.held(now_ms)))
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let (mut contents, now_ms) = self.lock();
        let runs = |stored: &&Stored| {
            stored.record.fence == fence
                && stored.record.state.has_lease()
                && stored.due_ms > now_ms
        };
        if contents.live(slot, now_ms).filter(runs).is_none() {
            return Ok(false);
        }
        if let Some(stored) = contents.remove(slot) {
            contents.insert(
                slot,
                Stored { due_ms: after(now_ms, lease), ends_ms: after(now_ms, keep), ..stored },
            );
        }
        Ok(true)
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        let (mut contents, now_ms) = self.lock();
        contents.sweep(now_ms);
        Ok(contents.overdue(&contents.due, limit, now_ms))
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        let (mut contents, now_ms) = self.lock();
        contents.sweep(now_ms);
        Ok(DueSagas { slots: contents.overdue(&contents.sagas, limit, now_ms), now_ms })
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let after = match cursor.map(Slot::from_reference) {
            None => Bound::Unbounded,
            Some(Ok(slot)) => Bound::Excluded(slot),
            Some(Err(_)) => return Err(ListError::Cursor),
        };
        let (contents, now_ms) = self.lock();
        let belongs = |stored: &Stored| {
            let is_saga = matches!(stored.record.state, State::Saga { .. });
            let is_asked = match listing {
                Listing::All => true,
                Listing::Unsettled => stored.due_ms != 0 && !is_saga,
                Listing::Sagas => is_saga,
            };
            stored.ends_ms > now_ms && is_asked
        };
        let mut records = Vec::new();
        let mut cursor = None;
        for (slot, stored) in contents.records.range((after, Bound::Unbounded)) {
            if !is_listed(slot) || !belongs(stored) {
                continue;
            }
            if records.len() >= limit.max(1) {
                cursor = records.last().map(|(last, _): &(Slot, Held)| last.to_string());
                break;
            }
            records.push((*slot, stored.held(now_ms)));
        }
        Ok(Page { records, cursor })
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.hub.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl IdentityNotes for Memory {
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        Ok(self.lock().0.notes.of(note).clone())
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        let (mut contents, _) = self.lock();
        let current = contents.notes.of(note);
        let matches = current.as_deref() == Some(next) || current.as_deref() == expected;
        if matches {
            *current = Some(next.to_owned());
        }
        Ok(matches)
    }
}

#[async_trait]
impl EventLog for Memory {
    async fn read(&self, from: &Position, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        Ok(self.lock().0.journal.behind(from.of(PARTITION), limit.max(1)))
    }

    async fn read_partition(
        &self,
        partition: u16,
        from: EntryId,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        Ok(if partition == PARTITION {
            self.lock().0.journal.behind(from, limit)
        } else {
            Vec::new()
        })
    }

    async fn mark_read(&self, reader: &str, read: &Position) -> Result<(), StoreError> {
        let (mut contents, now_ms) = self.lock();
        contents.journal.mark_read(reader, read.of(PARTITION), now_ms);
        Ok(())
    }

    async fn read_by(&self, reader: &str) -> Result<Option<Position>, StoreError> {
        let (contents, _) = self.lock();
        let read = contents.journal.read_by(reader);
        Ok(read.map(|read| Position(BTreeMap::from([(PARTITION, read)]))))
    }

    async fn trim(&self, older_than: Duration) -> Result<Trimmed, StoreError> {
        let (mut contents, now_ms) = self.lock();
        Ok(contents.journal.trim(older_than, now_ms))
    }

    async fn observe(&self, batch: &[u8]) -> Result<(), StoreError> {
        let (mut contents, now_ms) = self.lock();
        contents.journal.observe(batch, now_ms);
        Ok(())
    }

    async fn observations(
        &self,
        after: EntryId,
        limit: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError> {
        let (contents, _) = self.lock();
        Ok(contents.journal.observations(after, limit))
    }

    async fn ends(&self) -> Result<Vec<Ends>, StoreError> {
        let (contents, _) = self.lock();
        Ok(contents.journal.ends().into_iter().collect())
    }
}

impl Stored {
    fn held(&self, now_ms: u64) -> Held {
        Held {
            record: self.record.clone(),
            written_ms: self.written_ms,
            due_ms: self.due_ms,
            now_ms,
        }
    }
}

impl Contents {
    /// Returns the slot's record. Removes a record that has ended.
    fn live(&mut self, slot: &Slot, now_ms: u64) -> Option<&Stored> {
        if self.records.get(slot).is_some_and(|stored| stored.ends_ms <= now_ms) {
            self.remove(slot);
        }
        self.records.get(slot)
    }

    fn live_tombstone(&mut self, slot: &Slot, now_ms: u64) -> Option<&Stored> {
        if self.tombstones.get(slot).is_some_and(|stored| stored.ends_ms <= now_ms) {
            self.remove_tombstone(slot);
        }
        self.tombstones.get(slot)
    }

    fn write(&mut self, slot: &Slot, next: &Record, lifetime: Lifetime, now_ms: u64) {
        if let (State::Completed { .. }, Some(keep)) = (&next.state, lifetime.tombstone) {
            self.remove_tombstone(slot);
            let record = next.tombstone();
            let ends_ms = after(now_ms, keep);
            self.tombstones
                .insert(*slot, Stored { record, written_ms: now_ms, due_ms: 0, ends_ms });
            self.tombstone_ends.insert((ends_ms, *slot));
        }
        self.remove(slot);
        let due_ms = lifetime.due.map_or(0, |due| after(now_ms, due));
        self.insert(
            slot,
            Stored {
                record: next.clone(),
                written_ms: now_ms,
                due_ms,
                ends_ms: after(now_ms, lifetime.keep),
            },
        );
    }

    /// Returns the index of the due time of a record.
    fn due_index(&mut self, record: &Record) -> &mut BTreeSet<(u64, Slot)> {
        match record.state {
            State::Saga { .. } => &mut self.sagas,
            _ => &mut self.due,
        }
    }

    /// Returns up to `limit` slots of an index with a due time in the past.
    fn overdue(&self, index: &BTreeSet<(u64, Slot)>, limit: usize, now_ms: u64) -> Vec<Slot> {
        let is_live =
            |slot: &Slot| self.records.get(slot).is_some_and(|stored| stored.ends_ms > now_ms);
        let overdue = index.iter().take_while(|(due_ms, _)| *due_ms <= now_ms);
        overdue.map(|(_, slot)| *slot).filter(is_live).take(limit).collect()
    }

    fn insert(&mut self, slot: &Slot, stored: Stored) {
        if stored.due_ms != 0 {
            self.due_index(&stored.record).insert((stored.due_ms, *slot));
        }
        self.ends.insert((stored.ends_ms, *slot));
        self.records.insert(*slot, stored);
    }

    fn remove(&mut self, slot: &Slot) -> Option<Stored> {
        let stored = self.records.remove(slot)?;
        self.due_index(&stored.record).remove(&(stored.due_ms, *slot));
        self.ends.remove(&(stored.ends_ms, *slot));
        Some(stored)
    }

    fn remove_tombstone(&mut self, slot: &Slot) {
        if let Some(stored) = self.tombstones.remove(slot) {
            self.tombstone_ends.remove(&(stored.ends_ms, *slot));
        }
    }

    /// Removes a few records and tombstones that have ended.
    fn sweep(&mut self, now_ms: u64) {
        for _ in 0..SWEPT_PER_WRITE {
            if let Some(slot) = first_ended(&self.ends, now_ms) {
                self.remove(&slot);
            }
            if let Some(slot) = first_ended(&self.tombstone_ends, now_ms) {
                self.remove_tombstone(&slot);
            }
        }
    }
}

fn first_ended(ends: &BTreeSet<(u64, Slot)>, now_ms: u64) -> Option<Slot> {
    ends.first().filter(|(ends_ms, _)| *ends_ms <= now_ms).map(|(_, slot)| *slot)
}

/// Returns the time `span` after `now_ms`.
fn after(now_ms: u64, span: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Memory;
    use crate::key::Space;
    use crate::record::Lifetime;
    use crate::store::suite::{self, Stage, Time};
    use crate::store::{Listing, Records};

    async fn stage() -> Stage {
        let time = Time::by_hand();
        Stage::new(Memory::new(time.clock()), time)
    }

    suite::stories!(stage);

    #[tokio::test]
    async fn writes_remove_records_that_have_ended() {
        let time = Time::by_hand();
        let memory = Memory::new(time.clock());
        let short = Some(Duration::from_millis(10));
        let lifetime = Lifetime { keep: Duration::from_millis(10), due: short, tombstone: short };
        for n in 0..200 {
            if n == 100 {
                time.pass(Duration::from_secs(1)).await;
            }
            memory
                .swap(&suite::slot(Space::Enforced, n), None, &suite::completed(n), lifetime)
                .await
                .unwrap();
        }
        let contents = memory.contents.lock().unwrap();
        assert_eq!(
            (contents.records.len(), contents.ends.len(), contents.due.len()),
            (100, 100, 100)
        );
        assert_eq!((contents.tombstones.len(), contents.tombstone_ends.len()), (100, 100));
    }

    #[tokio::test]
    async fn a_record_that_ends_now_is_gone_although_nothing_has_removed_it() {
        let time = Time::by_hand();
        let memory = Memory::new(time.clock());
        let span = Duration::from_millis(10);
        for n in 0..20 {
            let lifetime = Lifetime { keep: span, due: Some(span / 2), tombstone: None };
            memory
                .swap(&suite::slot(Space::Enforced, n), None, &suite::claim(n, n), lifetime)
                .await
                .unwrap();
        }
        time.pass(span).await;
        assert!(memory.list(Listing::All, None, 100).await.unwrap().records.is_empty());
        assert_eq!(memory.due(100).await.unwrap(), []);
        assert_eq!(memory.load(&suite::slot(Space::Enforced, 19)).await.unwrap(), None);
    }
}
