//! The reader of an event log. It reads from a checkpoint on, marks how far it has read, and
//! notices missing entries.
//!
//! The consumer of the entries stores the checkpoint in the same step in which it applies the
//! entries. Several readers may follow one log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{Ends, EntryId, LogEntry, Position};
use super::event_log::EventLog;
use crate::key::PARTITIONS;
use crate::store::error::StoreError;

/// Time between two marks. Only trimming waits for marks, and it is not urgent.
const MARK_PERIOD: Duration = Duration::from_secs(5);

/// A position, and the fence of its owner.
///
/// Danger: entries that were read under one fence must not be applied under another. The consumer
/// must check the fence of a [`Batch`] in the same step in which it applies the batch. Otherwise a
/// reader that was paused moves a position past entries that were never applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint<F> {
    /// Identifies the owner of the position; a new owner has a new fence.
    pub fence: F,
    /// How far the log was applied.
    pub position: Position,
}

/// Entries of a log, read behind a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<F> {
    /// The fence of the checkpoint.
    pub fence: F,
    /// The entries, in order within each partition.
    pub entries: Vec<LogEntry>,
    /// The time up to which the batch is complete, in ms by the store's clock. `None` if no
    /// partition has more entries.
    pub complete_until_ms: Option<u64>,
}

/// Reasons why a log can't be continued from a position. Reading on would skip entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// The log ends before the position: its store lost entries that had been read. New entries
    /// would be skipped.
    Lost,
    /// Entries behind the position were trimmed before they were read: the reader paused for longer
    /// than entries are kept.
    Trimmed,
}

/// Entries in the order of their ids, for people who follow a log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogPage {
    /// The entries, of all partitions.
    pub entries: Vec<LogEntry>,
    /// The position behind them, and behind entries that were trimmed.
    pub position: Position,
    /// Whether entries were trimmed before they were read. Reported once per gap.
    pub trimmed: bool,
}

/// Reads a log.
pub struct LogReader {
    log: Arc<dyn EventLog>,
    marked: Option<Instant>,
}

impl LogReader {
    /// Returns a reader that has no mark yet.
    pub fn new(log: Arc<dyn EventLog>) -> LogReader {
        LogReader { log, marked: None }
    }

    /// Returns the log.
    pub fn log(&self) -> &dyn EventLog {
        &*self.log
    }

    /// Whether it is time to look for a [gap](LogReader::gap) and to [mark](LogReader::mark) the
    /// position again.
    pub fn is_mark_due(&self) -> bool {
        self.marked.is_none_or(|marked| marked.elapsed() >= MARK_PERIOD)
    }

    /// Makes the next mark due at once, after the checkpoint was replaced.
    pub fn forget_mark(&mut self) {
        self.marked = None;
    }

    /// Marks how far the reader `name` has read, so that newer entries are not trimmed.
    ///
    /// # Errors
    /// The store failed. The mark stays due.
    pub async fn mark(&mut self, name: &str, position: &Position) -> Result<(), StoreError> {
        self.log.mark_read(name, position).await?;
        self.marked = Some(Instant::now());
        Ok(())
    }

    /// Checks whether reading can continue from a position. From the beginning, it always can.
    ///
    /// # Errors
    /// The store failed.
    pub async fn gap(&self, position: &Position) -> Result<Option<Gap>, StoreError> {
        if position.0.is_empty() {
            return Ok(None);
        }
        let ends: HashMap<u16, Ends> =
            self.log.ends().await?.into_iter().map(|ends| (ends.partition, ends)).collect();
        for (partition, read) in &position.0 {
            let ends = ends.get(partition);
            if ends.is_none_or(|ends| ends.last.id < *read) {
                return Ok(Some(Gap::Lost));
            }
            if ends.and_then(|ends| ends.trimmed).is_some_and(|trimmed| trimmed.id > *read) {
                return Ok(Some(Gap::Trimmed));
            }
        }
        Ok(None)
    }

    /// Reads about `limit` entries behind a checkpoint.
    ///
    /// # Errors
    /// The store failed.
    pub async fn read<F: Copy>(
        &self,
        from: &Checkpoint<F>,
        limit: usize,
    ) -> Result<Batch<F>, StoreError> {
        let entries = self.log.read(&from.position, limit).await?;
        let complete_until_ms = complete_until_ms(&entries, limit);
        Ok(Batch { fence: from.fence, entries, complete_until_ms })
    }

    /// Returns the position at the end of the log.
    ///
    /// # Errors
    /// The store failed.
    pub async fn end(&self) -> Result<Position, StoreError> {
        let ends = self.log.ends().await?;
        Ok(Position(ends.iter().map(|ends| (ends.partition, ends.last.id)).collect()))
    }

    /// Reads at most `limit` entries behind a position, in the order of their ids.
    ///
    /// # Errors
    /// The store failed.
    pub async fn in_order(
        &self,
        from: &Position,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let mut entries = self.log.read(from, limit).await?;
        // The store may return more than `limit` entries, because it returns at least one of each
        // partition. Ids begin with the time, and ascend within each partition.
        entries.sort_by_key(|entry| (entry.id, entry.partition));
        entries.truncate(limit);
        Ok(entries)
    }

    /// Makes a page of entries that were read from a position. Finds out whether other entries
    /// behind the position were trimmed before.
    ///
    /// Must be called after reading. Otherwise entries that are trimmed between the two calls would
    /// be missing without a report. At worst, entries that were just read are reported as trimmed.
    ///
    /// # Errors
    /// The store failed.
    pub async fn page(
        &self,
        from: &Position,
        entries: Vec<LogEntry>,
    ) -> Result<LogPage, StoreError> {
        let ends = if entries.is_empty() {
            self.log.ends().await?
        } else {
            // Readers of a busy log read often, so only the partitions of the entries are checked.
            // A gap in another partition is reported when entries of that partition are read.
            let partitions: BTreeSet<u16> = entries.iter().map(|entry| entry.partition).collect();
            self.log.ends_of(&partitions).await?
        };
        let mut page = LogPage { entries, position: from.clone(), trimmed: false };
        page.entries.iter().for_each(|entry| page.position.advance(entry));
        for ends in ends {
            let Some(trimmed) = ends.trimmed.map(|mark| mark.id) else { continue };
            if trimmed > from.of(ends.partition) {
                page.trimmed = true;
                let read = page.position.of(ends.partition);
                page.position.0.insert(ends.partition, read.max(trimmed));
            }
        }
        Ok(page)
    }
}

/// Returns the position before all entries of a millisecond, in every partition.
pub fn position_before(ms: u64) -> Position {
    let last = ms.checked_sub(1).map_or(EntryId::default(), |ms| EntryId { ms, seq: u64::MAX });
    Position((0..PARTITIONS).map(|partition| (partition, last)).collect())
}

/// Returns the time up to which a batch of about `limit` entries is complete; `None` if no
/// partition has more entries.
///
/// A store with many partitions gives each of them its share of a batch. A partition that filled
/// its share may have more.
fn complete_until_ms(entries: &[LogEntry], limit: usize) -> Option<u64> {
    let share = (limit / usize::from(PARTITIONS)).max(1);
    let mut partitions: BTreeMap<u16, (usize, u64)> = BTreeMap::new();
    for entry in entries {
        let (count, last_ms) = partitions.entry(entry.partition).or_default();
        *count += 1;
        *last_ms = entry.id.ms;
    }
    partitions.into_values().filter(|(count, _)| *count >= share).map(|(_, last_ms)| last_ms).min()
}

/// Pauses between attempts that fail: each is twice as long as the one before, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Returns pauses from `first` up to `max`.
    pub const fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, next: first }
    }

    /// Begins again with the first pause, after an attempt that succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Whether no attempt has failed since the start or the last reset.
    pub fn is_fresh(&self) -> bool {
        self.next == self.first
    }

    /// Returns the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_anew() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5));
        assert!(backoff.is_fresh());
        assert_eq!([(); 4].map(|()| backoff.pause()), [1, 2, 4, 5].map(seconds));
        assert!(!backoff.is_fresh());
        backoff.reset();
        assert_eq!(backoff.pause(), seconds(1));
    }

    #[test]
    fn the_position_before_a_millisecond_is_before_its_first_entry() {
        let before = position_before(7);
        assert_eq!(before.0.len(), usize::from(PARTITIONS));
        assert!(before.of(3) < EntryId { ms: 7, seq: 0 });
        assert!(before.of(3) > EntryId { ms: 6, seq: 1 << 40 });
        assert_eq!(position_before(0).of(3), EntryId::default());
    }
}
