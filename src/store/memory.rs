//! Records in this process's memory: for tests and trials, gone when it ends.
//!
//! Danger: two gateways on two of these protect nothing from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use self::log::Journal;
use super::{
    EventSource, Hub, IdentityNotes, ListError, Listing, Note, Page, Records, StoreError, Swap,
    Watch, is_listed,
};
use crate::clock::StoreClock;
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, State, Version};

mod log;

/// How many records that have ended one write clears away. More than one, so that a store that is written to shrinks;
/// few, so that no single request pays for many others.
const SWEPT_PER_WRITE: usize = 4;

/// A store in memory.
pub struct Memory {
    clock: StoreClock,
    hub: Hub,
    shelf: Mutex<Shelf>,
}

/// Everything that is kept. The indexes name exactly what the maps hold.
#[derive(Default)]
struct Shelf {
    records: BTreeMap<Slot, Kept>,
    tombstones: BTreeMap<Slot, Kept>,
    due: BTreeSet<(u64, Slot)>,
    ends: BTreeSet<(u64, Slot)>,
    tombstone_ends: BTreeSet<(u64, Slot)>,
    notes: Notes,
    journal: Journal,
}

#[derive(Default)]
struct Notes {
    identities: Option<String>,
    paths: Option<String>,
}

impl Notes {
    fn of(&mut self, note: Note) -> &mut Option<String> {
        match note {
            Note::Identities => &mut self.identities,
            Note::Paths => &mut self.paths,
        }
    }
}

struct Kept {
    record: Record,
    written_ms: u64,
    /// 0 where never.
    due_ms: u64,
    ends_ms: u64,
}

impl Memory {
    /// An empty store with this clock.
    pub fn new(clock: StoreClock) -> Memory {
        Memory { clock, hub: Hub::local(), shelf: Mutex::default() }
    }

    /// The shelf, and the time. A panic elsewhere can't leave it half changed: no code that can panic runs under the lock.
    fn open(&self) -> (MutexGuard<'_, Shelf>, u64) {
        let shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that times are in the order of the writes.
        let now_ms = (self.clock)();
        (shelf, now_ms)
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
        event: EventSource<'_>,
    ) -> Result<Swap, StoreError> {
        let (mut shelf, now_ms) = self.open();
        shelf.sweep(now_ms);
        let current = shelf.live(slot, now_ms);
        if current.is_some_and(|kept| kept.record.is_same_write(next)) {
            return Ok(Swap::Stored);
        }
        if current.map(|kept| kept.record.version) != expected {
            return Ok(Swap::Stale(current.map(|kept| kept.held(now_ms))));
        }
        let claims = matches!(next.state, State::InFlight { .. });
        let in_its_way = if claims && lifetime.tombstone.is_some() {
            shelf.live_tombstone(slot, now_ms)
        } else {
            None
        };
        if let Some(tombstone) = in_its_way {
            return Ok(Swap::Stale(Some(tombstone.held(now_ms))));
        }
        shelf.write(slot, next, lifetime, now_ms);
        shelf.journal.append(slot, &event(), now_ms);
        drop(shelf);
        self.hub.notify(slot);
        Ok(Swap::Stored)
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let (mut shelf, now_ms) = self.open();
        Ok(shelf.live(slot, now_ms).map(|kept| kept.held(now_ms)))
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let (mut shelf, now_ms) = self.open();
        if let Some(kept) = shelf.live(slot, now_ms) {
            return Ok(Some(kept.held(now_ms)));
        }
        Ok(shelf.live_tombstone(slot, now_ms).map(|kept| kept.held(now_ms)))
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let (mut shelf, now_ms) = self.open();
        let runs = |kept: &&Kept| {
            kept.record.fence == fence
                && matches!(kept.record.state, State::InFlight { .. })
                && kept.due_ms > now_ms
        };
        if shelf.live(slot, now_ms).filter(runs).is_none() {
            return Ok(false);
        }
        if let Some(kept) = shelf.remove(slot) {
            shelf.insert(
                slot,
                Kept { due_ms: after(now_ms, lease), ends_ms: after(now_ms, keep), ..kept },
            );
        }
        Ok(true)
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        let (mut shelf, now_ms) = self.open();
        shelf.sweep(now_ms);
        let is_live =
            |slot: &Slot| shelf.records.get(slot).is_some_and(|kept| kept.ends_ms > now_ms);
        let overdue = shelf.due.iter().take_while(|(due_ms, _)| *due_ms <= now_ms);
        Ok(overdue.map(|(_, slot)| *slot).filter(is_live).take(limit).collect())
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
        let (shelf, now_ms) = self.open();
        let belongs =
            |kept: &Kept| kept.ends_ms > now_ms && (listing == Listing::All || kept.due_ms != 0);
        let mut records = Vec::new();
        let mut cursor = None;
        for (slot, kept) in shelf.records.range((after, Bound::Unbounded)) {
            if !is_listed(slot) || !belongs(kept) {
                continue;
            }
            if records.len() >= limit.max(1) {
                cursor = records.last().map(|(last, _): &(Slot, Held)| last.to_string());
                break;
            }
            records.push((*slot, kept.held(now_ms)));
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
        Ok(self.open().0.notes.of(note).clone())
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        let (mut shelf, _) = self.open();
        let current = shelf.notes.of(note);
        let agreed = current.as_deref() == Some(next) || current.as_deref() == expected;
        if agreed {
            *current = Some(next.to_owned());
        }
        Ok(agreed)
    }
}

impl Kept {
    fn held(&self, now_ms: u64) -> Held {
        Held {
            record: self.record.clone(),
            written_ms: self.written_ms,
            due_ms: self.due_ms,
            now_ms,
        }
    }
}

impl Shelf {
    /// The slot's record; one that has ended is taken away.
    fn live(&mut self, slot: &Slot, now_ms: u64) -> Option<&Kept> {
        if self.records.get(slot).is_some_and(|kept| kept.ends_ms <= now_ms) {
            self.remove(slot);
        }
        self.records.get(slot)
    }

    fn live_tombstone(&mut self, slot: &Slot, now_ms: u64) -> Option<&Kept> {
        if self.tombstones.get(slot).is_some_and(|kept| kept.ends_ms <= now_ms) {
            self.remove_tombstone(slot);
        }
        self.tombstones.get(slot)
    }

    fn write(&mut self, slot: &Slot, next: &Record, lifetime: Lifetime, now_ms: u64) {
        if let (State::Completed { .. }, Some(keep)) = (&next.state, lifetime.tombstone) {
            self.remove_tombstone(slot);
            let record = next.tombstone();
            let ends_ms = after(now_ms, keep);
            self.tombstones.insert(*slot, Kept { record, written_ms: now_ms, due_ms: 0, ends_ms });
            self.tombstone_ends.insert((ends_ms, *slot));
        }
        self.remove(slot);
        let due_ms = lifetime.due.map_or(0, |due| after(now_ms, due));
        self.insert(
            slot,
            Kept {
                record: next.clone(),
                written_ms: now_ms,
                due_ms,
                ends_ms: after(now_ms, lifetime.keep),
            },
        );
    }

    fn insert(&mut self, slot: &Slot, kept: Kept) {
        if kept.due_ms != 0 {
            self.due.insert((kept.due_ms, *slot));
        }
        self.ends.insert((kept.ends_ms, *slot));
        self.records.insert(*slot, kept);
    }

    fn remove(&mut self, slot: &Slot) -> Option<Kept> {
        let kept = self.records.remove(slot)?;
        self.due.remove(&(kept.due_ms, *slot));
        self.ends.remove(&(kept.ends_ms, *slot));
        Some(kept)
    }

    fn remove_tombstone(&mut self, slot: &Slot) {
        if let Some(kept) = self.tombstones.remove(slot) {
            self.tombstone_ends.remove(&(kept.ends_ms, *slot));
        }
    }

    /// Takes away a few of those that have ended.
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

/// The time `span` after `now_ms`.
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
    async fn writes_clear_away_what_has_ended() {
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
        let shelf = memory.shelf.lock().unwrap();
        assert_eq!((shelf.records.len(), shelf.ends.len(), shelf.due.len()), (100, 100, 100));
        assert_eq!((shelf.tombstones.len(), shelf.tombstone_ends.len()), (100, 100));
    }

    #[tokio::test]
    async fn what_ends_now_is_gone_though_nothing_has_cleared_it_away() {
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
