//! The event log of an embedded store.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::event_tables::{self, PARTITION};
use super::jobs::{Job, WriteReply};
use super::store::Embedded;
use crate::store::error::StoreError;
use crate::store::log::{Ends, EntryId, EventLog, LogEntry, Position, Trimmed};

#[async_trait]
impl EventLog for Embedded {
    async fn read(&self, from: &Position, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.read_partition(PARTITION, from.of(PARTITION), limit.max(1)).await
    }

    async fn read_partition(
        &self,
        partition: u16,
        from: EntryId,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        if partition != PARTITION {
            return Ok(Vec::new());
        }
        let found = self
            .blocking(move |shared| shared.reading(|txn| event_tables::entries(txn, from, limit)))
            .await?;
        Ok(found.into_iter().map(|(id, value)| event_tables::entry_of(id, value)).collect())
    }

    async fn mark_read(&self, reader: &str, read: &Position) -> Result<(), StoreError> {
        let job = Job::MarkRead { reader: reader.to_owned(), read: read.of(PARTITION) };
        self.request(job).await.map(drop)
    }

    async fn read_by(&self, reader: &str) -> Result<Option<Position>, StoreError> {
        let reader = reader.to_owned();
        let found =
            self.blocking(move |shared| shared.reading(|txn| event_tables::read_by(txn, &reader)));
        Ok(found.await?.map(|read| Position(BTreeMap::from([(PARTITION, read)]))))
    }

    async fn trim(&self, older_than: Duration) -> Result<Trimmed, StoreError> {
        match self.request(Job::Trim { older_than }).await? {
            WriteReply::Trimmed(trimmed) => Ok(trimmed),
            _ => Ok(Trimmed::default()),
        }
    }

    async fn observe(&self, batch: &[u8]) -> Result<(), StoreError> {
        self.request(Job::Observe { batch: batch.to_vec() }).await.map(drop)
    }

    async fn observations(
        &self,
        after: EntryId,
        limit: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError> {
        self.blocking(move |shared| {
            shared.reading(|txn| event_tables::observations(txn, after, limit))
        })
        .await
    }

    async fn ends(&self) -> Result<Vec<Ends>, StoreError> {
        let ends = self.blocking(|shared| shared.reading(event_tables::ends)).await?;
        Ok(ends.into_iter().collect())
    }
}
