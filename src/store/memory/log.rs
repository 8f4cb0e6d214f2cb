//! The event log of a store in memory: one partition, of which only so much is kept.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::Memory;
use crate::key::Slot;
use crate::store::StoreError;
use crate::store::log::{
    Ends, EntryId, EventLog, Link, LogEntry, Mark, OBSERVED_BYTES_MAX, OBSERVED_ENTRY_BYTES,
    Position, Trimmed, member,
};

/// Entries kept at most, read or not: some 100 MB with the longest events, and more than any test or trial writes.
const ENTRIES_MAX: usize = 100_000;

/// Entries that one call trims.
const TRIMMED_PER_CALL: usize = 1000;

/// The one partition.
const PARTITION: u16 = 0;

/// The log, under the store's lock.
#[derive(Default)]
pub(super) struct Journal {
    entries: VecDeque<LogEntry>,
    last: Option<Mark>,
    trimmed: Option<Mark>,
    readers: BTreeMap<String, Reader>,
    observed: Observed,
}

/// Batches of observations.
#[derive(Default)]
struct Observed {
    batches: VecDeque<(EntryId, Bytes)>,
    last: EntryId,
    bytes: usize,
}

impl Observed {
    fn append(&mut self, batch: &[u8], now_ms: u64) {
        self.last = EntryId::behind(self.last, now_ms);
        self.bytes += batch.len() + OBSERVED_ENTRY_BYTES;
        self.batches.push_back((self.last, Bytes::copy_from_slice(batch)));
        while self.bytes > OBSERVED_BYTES_MAX {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, batch)) = self.batches.pop_front() {
            self.bytes -= batch.len() + OBSERVED_ENTRY_BYTES;
        }
    }

    fn trim(&mut self, since: u64) -> usize {
        let gone = self.batches.partition_point(|(id, _)| id.ms < since);
        (0..gone).for_each(|_| self.drop_first());
        gone
    }
}

struct Reader {
    read: EntryId,
    heard_ms: u64,
}

impl Journal {
    /// Appends an event, if there is one.
    pub(super) fn append(&mut self, slot: &Slot, event: &[u8], now_ms: u64) {
        if event.is_empty() {
            return;
        }
        let link = Link::of(self.last.map(|last| last.link), &member(slot), event);
        let id = EntryId::behind(self.last.map(|last| last.id).unwrap_or_default(), now_ms);
        self.last = Some(Mark { id, link });
        let event = event.to_vec().into();
        self.entries.push_back(LogEntry {
            partition: PARTITION,
            id,
            slot: *slot,
            event,
            link: Some(link),
        });
        if self.entries.len() > ENTRIES_MAX {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.entries.pop_front() {
            self.trimmed = first.link.map(|link| Mark { id: first.id, link });
        }
    }

    fn behind(&self, from: EntryId, limit: usize) -> Vec<LogEntry> {
        let start = self.entries.partition_point(|entry| entry.id <= from);
        self.entries.range(start..).take(limit).cloned().collect()
    }

    fn trim(&mut self, older_than: Duration, now_ms: u64) -> Trimmed {
        let span = u64::try_from(older_than.as_millis()).unwrap_or(u64::MAX);
        let since = now_ms.saturating_sub(span);
        let mut trimmed = Trimmed { batches: self.observed.trim(since), ..Trimmed::default() };
        self.readers.retain(|name, reader| {
            let heard = reader.heard_ms >= since;
            if !heard {
                trimmed.forgotten.push(name.clone());
            }
            heard
        });
        let slowest = self.readers.values().map(|reader| reader.read).min();
        while trimmed.entries < TRIMMED_PER_CALL
            && self.entries.front().is_some_and(|first| {
                first.id.ms < since && slowest.is_none_or(|read| first.id <= read)
            })
        {
            self.drop_first();
            trimmed.entries += 1;
        }
        trimmed
    }
}

#[async_trait]
impl EventLog for Memory {
    async fn read(&self, from: &Position, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        Ok(self.open().0.journal.behind(from.of(PARTITION), limit.max(1)))
    }

    async fn read_partition(
        &self,
        partition: u16,
        from: EntryId,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        Ok(if partition == PARTITION {
            self.open().0.journal.behind(from, limit)
        } else {
            Vec::new()
        })
    }

    async fn mark_read(&self, reader: &str, read: &Position) -> Result<(), StoreError> {
        let (mut shelf, now_ms) = self.open();
        shelf
            .journal
            .readers
            .insert(reader.to_owned(), Reader { read: read.of(PARTITION), heard_ms: now_ms });
        Ok(())
    }

    async fn read_by(&self, reader: &str) -> Result<Option<Position>, StoreError> {
        let (shelf, _) = self.open();
        Ok(shelf
            .journal
            .readers
            .get(reader)
            .map(|reader| Position(BTreeMap::from([(PARTITION, reader.read)]))))
    }

    async fn trim(&self, older_than: Duration) -> Result<Trimmed, StoreError> {
        let (mut shelf, now_ms) = self.open();
        Ok(shelf.journal.trim(older_than, now_ms))
    }

    async fn observe(&self, batch: &[u8]) -> Result<(), StoreError> {
        let (mut shelf, now_ms) = self.open();
        shelf.journal.observed.append(batch, now_ms);
        Ok(())
    }

    async fn observations(
        &self,
        after: EntryId,
        limit: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError> {
        let (shelf, _) = self.open();
        let batches = &shelf.journal.observed.batches;
        let start = batches.partition_point(|(id, _)| *id <= after);
        Ok(batches.range(start..).take(limit).cloned().collect())
    }

    async fn ends(&self) -> Result<Vec<Ends>, StoreError> {
        let (shelf, _) = self.open();
        let Journal { last, trimmed, .. } = &shelf.journal;
        Ok(last
            .map(|last| Ends { partition: PARTITION, trimmed: *trimmed, last })
            .into_iter()
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Space;
    use crate::store::suite::slot;

    /// A journal of so many entries, all written at 5 s.
    fn journal(entries: usize) -> Journal {
        let mut journal = Journal::default();
        (0..entries).for_each(|_| journal.append(&slot(Space::Enforced, 1), b"told", 5000));
        journal
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut journal = journal(ENTRIES_MAX);
        assert_eq!((journal.entries.len(), journal.trimmed), (ENTRIES_MAX, None));
        journal.append(&slot(Space::Enforced, 1), b"told", 5000);
        assert_eq!(journal.entries.len(), ENTRIES_MAX);
        assert_eq!(
            journal.trimmed.map(|mark| mark.id),
            Some(EntryId { ms: 5000, seq: 0 }),
            "the oldest went"
        );
    }

    #[test]
    fn one_call_trims_so_many_entries() {
        let mut journal = journal(TRIMMED_PER_CALL + 1);
        let trimmed = [(); 3].map(|()| journal.trim(Duration::from_secs(1), 9000).entries);
        assert_eq!(trimmed, [TRIMMED_PER_CALL, 1, 0]);
    }

    #[test]
    fn what_is_just_as_old_as_it_may_be_stays() {
        let mut journal = journal(1);
        journal.observed.append(b"seen", 5000);
        journal
            .readers
            .insert("page".into(), Reader { read: EntryId { ms: 9000, seq: 0 }, heard_ms: 5000 });
        assert_eq!(journal.trim(Duration::from_secs(1), 6000), Trimmed::default());
        let trimmed = journal.trim(Duration::from_secs(1), 6001);
        assert_eq!(trimmed, Trimmed { entries: 1, batches: 1, forgotten: vec!["page".into()] });
    }
}
