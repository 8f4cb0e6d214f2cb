//! The part of a store that keeps the event log.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::entry::{Ends, EntryId, LogEntry, Position, Trimmed};
use crate::store::error::StoreError;

/// Keeps the event log of a store. [`Records::write`](crate::store::Records::write) appends to it.
///
/// This part of the store also keeps observations, beside the log. They come in opaque batches that
/// may be lost. Batches have their own ids, and an order of their own.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Reads about `limit` entries behind a position, in order within each partition. Returns at
    /// least one entry of every partition that has more. An empty answer means that no partition
    /// has more.
    async fn read(&self, from: &Position, limit: usize) -> Result<Vec<LogEntry>, StoreError>;

    /// Reads up to `limit` entries of one partition behind the entry `from`, in order.
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
    /// read them. Removes observations that are older than `older_than`. Forgets readers that have
    /// not repeated their mark for `older_than`.
    async fn trim(&self, older_than: Duration) -> Result<Trimmed, StoreError>;

    /// Appends a batch of observations. If all batches together exceed
    /// [`OBSERVED_BYTES_MAX`](super::OBSERVED_BYTES_MAX), the oldest ones are dropped, even if
    /// nobody has read them.
    async fn observe(&self, batch: &[u8]) -> Result<(), StoreError>;

    /// Reads up to `limit` batches of observations behind the batch `after`, in order.
    async fn observations(
        &self,
        after: EntryId,
        limit: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError>;

    /// Returns the ends of every partition that ever had an entry, by partition.
    async fn ends(&self) -> Result<Vec<Ends>, StoreError>;

    /// Returns the ends of the given partitions. Stores with many partitions read only the given
    /// ones.
    async fn ends_of(&self, partitions: &BTreeSet<u16>) -> Result<Vec<Ends>, StoreError> {
        Ok(self
            .ends()
            .await?
            .into_iter()
            .filter(|ends| partitions.contains(&ends.partition))
            .collect())
    }
}
