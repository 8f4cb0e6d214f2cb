//! Merges the partitions of an event log: yields all entries in the order of their ids.

use std::collections::{BTreeMap, VecDeque};

use super::endpoint::CopySource;
use crate::store::error::StoreError;
use crate::store::log::{EntryId, EventLog, LogEntry, Position};

/// Entries read ahead per partition.
const AHEAD: usize = 64;

/// Reads a log partition by partition, and yields its entries in the order of their ids.
pub(super) struct Merge<'a> {
    log: &'a dyn EventLog,
    /// Entries read ahead, by partition. A partition that is read to its end is removed.
    ahead: BTreeMap<u16, VecDeque<LogEntry>>,
}

impl<'a> Merge<'a> {
    /// Begins behind a position.
    pub(super) async fn new(
        source: &'a dyn CopySource,
        from: &Position,
    ) -> Result<Merge<'a>, StoreError> {
        let mut merge = Merge { log: source.log(), ahead: BTreeMap::new() };
        for ends in merge.log.ends().await? {
            merge.read_ahead(ends.partition, from.of(ends.partition)).await?;
        }
        Ok(merge)
    }

    async fn read_ahead(&mut self, partition: u16, behind: EntryId) -> Result<(), StoreError> {
        let entries = self.log.read_partition(partition, behind, AHEAD).await?;
        if entries.is_empty() {
            self.ahead.remove(&partition);
        } else {
            self.ahead.insert(partition, entries.into());
        }
        Ok(())
    }

    /// Returns the next entry; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<LogEntry>, StoreError> {
        let firsts = self
            .ahead
            .iter()
            .filter_map(|(partition, ahead)| Some((ahead.front()?.id, *partition)));
        let Some((id, partition)) = firsts.min() else { return Ok(None) };
        let entry = self.ahead.get_mut(&partition).and_then(VecDeque::pop_front);
        if self.ahead.get(&partition).is_some_and(VecDeque::is_empty) {
            self.read_ahead(partition, id).await?;
        }
        Ok(entry)
    }
}
