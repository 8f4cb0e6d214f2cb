//! The part of a store that keeps the event log.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::entry::{Ends, EntryId, LogEntry, Position, Trimmed};
use crate::store::error::StoreError;

/// Keeps the event log of a store. [`Records::write`](crate::store::Records::write) appends to it.
///
/// Beside the log it keeps observations: opaque batches that may be lost, with ids and an order of
/// their own.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Reads the entries behind a position, of every partition that has more, in order within each
    /// partition: about `limit` in all, but at least one of each. An empty answer means that there
    /// are no more.
    async fn read(&self, from: &Position, limit: usize) -> Result<Vec<LogEntry>, StoreError>;

    /// Reads up to `limit` entries of one partition behind an entry, in order.
    async fn read_partition(
        &self,
        partition: u16,
        from: EntryId,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError>;

    /// Marks how far a reader has read, in all partitions. Entries behind the mark are not trimmed
    /// while the reader repeats its mark.
    ///
    /// Readers must mark their position before they first read, and repeat it even if there was
    /// nothing to read.
    async fn mark_read(&self, reader: &str, read: &Position) -> Result<(), StoreError>;

    /// Returns the last mark of a reader; `None` if it has none, or was forgotten.
    async fn read_by(&self, reader: &str) -> Result<Option<Position>, StoreError>;

    /// Removes some of the oldest entries, if they are older than `older_than` and every reader has
    /// read them. Removes observations that are older. Forgets readers that did not repeat their
    /// mark for as long.
    async fn trim(&self, older_than: Duration) -> Result<Trimmed, StoreError>;

    /// Appends a batch of observations. The oldest batches are dropped when all of them together
    /// exceed [`OBSERVED_BYTES_MAX`](super::OBSERVED_BYTES_MAX), read or not.
    async fn observe(&self, batch: &[u8]) -> Result<(), StoreError>;

    /// Reads up to `limit` batches of observations behind one, in order.
    async fn observations(
        &self,
        after: EntryId,
        limit: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError>;

    /// Returns the ends of every partition that ever had an entry, by partition.
    async fn ends(&self) -> Result<Vec<Ends>, StoreError>;

    /// Returns the ends of the given partitions, at the cost of those alone.
    async fn ends_of(&self, partitions: &BTreeSet<u16>) -> Result<Vec<Ends>, StoreError> {
        Ok(self
            .ends()
            .await?
            .into_iter()
            .filter(|ends| partitions.contains(&ends.partition))
            .collect())
    }
}
