//! The event log of a store in memory: one partition, limited in size.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::key::Slot;
use crate::store::log::{
    Ends, EntryId, Link, LogEntry, Mark, OBSERVED_BYTES_MAX, OBSERVED_ENTRY_BYTES, Trimmed, member,
};

/// Limit for the stored entries, whether they were read or not. With the longest events, they take
/// some 100 MB. Tests and trials write fewer.
const ENTRIES_MAX: usize = 100_000;

/// Limit for the entries that one call trims.
const TRIMMED_PER_CALL: usize = 1000;

/// The only partition.
pub(super) const PARTITION: u16 = 0;

/// The log. The store's lock guards it.
#[derive(Default)]
pub(super) struct Journal {
    entries: VecDeque<LogEntry>,
    last: Option<Mark>,
    trimmed: Option<Mark>,
    readers: BTreeMap<String, Reader>,
    observed: Observed,
}

/// Stored batches of observations.
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
    marked_ms: u64,
}

impl Journal {
    /// Appends an event, unless it is empty.
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

    /// Returns up to `limit` entries behind the entry `from`.
    pub(super) fn behind(&self, from: EntryId, limit: usize) -> Vec<LogEntry> {
        let start = self.entries.partition_point(|entry| entry.id <= from);
        self.entries.range(start..).take(limit).cloned().collect()
    }

    pub(super) fn mark_read(&mut self, reader: &str, read: EntryId, now_ms: u64) {
        self.readers.insert(reader.to_owned(), Reader { read, marked_ms: now_ms });
    }

    pub(super) fn read_by(&self, reader: &str) -> Option<EntryId> {
        self.readers.get(reader).map(|reader| reader.read)
    }

    pub(super) fn observe(&mut self, batch: &[u8], now_ms: u64) {
        self.observed.append(batch, now_ms);
    }

    pub(super) fn observations(&self, after: EntryId, limit: usize) -> Vec<(EntryId, Bytes)> {
        let batches = &self.observed.batches;
        let start = batches.partition_point(|(id, _)| *id <= after);
        batches.range(start..).take(limit).cloned().collect()
    }

    pub(super) fn ends(&self) -> Option<Ends> {
        self.last.map(|last| Ends { partition: PARTITION, trimmed: self.trimmed, last })
    }

    pub(super) fn trim(&mut self, older_than: Duration, now_ms: u64) -> Trimmed {
        let span = u64::try_from(older_than.as_millis()).unwrap_or(u64::MAX);
        let since = now_ms.saturating_sub(span);
        let mut trimmed = Trimmed { batches: self.observed.trim(since), ..Trimmed::default() };
        self.readers.retain(|name, reader| {
            let is_current = reader.marked_ms >= since;
            if !is_current {
                trimmed.forgotten.push(name.clone());
            }
            is_current
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Space;
    use crate::store::suite::slot;

    /// A journal with this number of entries, all written at 5 s.
    fn journal(entries: usize) -> Journal {
        let mut journal = Journal::default();
        (0..entries).for_each(|_| journal.append(&slot(Space::Enforced, 1), b"claimed", 5000));
        journal
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut journal = journal(ENTRIES_MAX);
        assert_eq!((journal.entries.len(), journal.trimmed), (ENTRIES_MAX, None));
        journal.append(&slot(Space::Enforced, 1), b"claimed", 5000);
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
            .insert("page".into(), Reader { read: EntryId { ms: 9000, seq: 0 }, marked_ms: 5000 });
        assert_eq!(journal.trim(Duration::from_secs(1), 6000), Trimmed::default());
        let trimmed = journal.trim(Duration::from_secs(1), 6001);
        assert_eq!(trimmed, Trimmed { entries: 1, batches: 1, forgotten: vec!["page".into()] });
    }
}
