//! The projector: follows the event log of a store and keeps a read model up to date.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::error::QueryError;
use super::freshness::{ModelGeneration, ModelProgress};
use super::model::ReadModel;
use super::upkeep::RETIRE_PERIOD;
use crate::store::StoreError;
use crate::store::log::reader::{Backoff, Gap, LogReader};
use crate::store::log::{EventLog, LogEntry, Position};

/// Milliseconds since 1970.
pub type UnixClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Entries per batch: enough to make the cost of a transaction small. Applying a batch takes some
/// tens of milliseconds.
const BATCH: usize = 4096;

/// Batches of observations per round; each has some hundred observations.
const OBSERVED_BATCH: usize = 16;

/// Time between two rounds while the log has no more entries. Each round reads every partition and
/// needs a transaction, even for a single entry. So entries that arrive meanwhile are applied
/// together. The web page shows them with at most this delay.
const PERIOD: Duration = Duration::from_millis(300);

/// Pauses after rounds that fail.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Reasons why a round failed. The next round repeats it.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the thread that works on the read model ended")]
    Ended,
}

/// Work that remains after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remaining {
    Nothing,
    /// Entries that arrived during the round.
    Little,
    Much,
}

/// Follows a log for a read model. Several projectors may share one file: each projector skips the
/// entries that another one has applied.
pub struct Projector {
    model: Arc<ReadModel>,
    reader: LogReader,
    keep: Duration,
    now: UnixClock,
    retired: Option<Instant>,
}

impl Projector {
    /// Returns a projector from `log` into `model`. The model keeps settled operations for `keep`,
    /// as the log keeps entries.
    pub fn new(
        model: Arc<ReadModel>,
        log: Arc<dyn EventLog>,
        keep: Duration,
        now: UnixClock,
    ) -> Projector {
        Projector { model, reader: LogReader::new(log), keep, now, retired: None }
    }

    /// Follows the log for ever. Retries while the store does not answer or the disk is full;
    /// repairs a damaged file.
    pub async fn follow(mut self) {
        let mut backoff = BACKOFF;
        loop {
            match self.round().await {
                Ok(Remaining::Much) => backoff.reset(),
                Ok(Remaining::Nothing | Remaining::Little)
                | Err(RoundError::Query(QueryError::Emptied)) => {
                    backoff.reset();
                    sleep(PERIOD).await;
                }
                Err(error) => {
                    if backoff.is_fresh() {
                        tracing::warn!(
                            %error,
                            "the read model is not brought up to date; trying again"
                        );
                    }
                    sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// Applies all entries that the log has now and the model does not have yet.
    ///
    /// # Errors
    /// The reason why a round failed, for people. Entries that were applied stay.
    pub async fn catch_up(&mut self, mut on_progress: impl FnMut(u64)) -> Result<(), String> {
        loop {
            let remaining = match self.round().await {
                Err(RoundError::Query(QueryError::Emptied)) => Remaining::Much,
                round => round.map_err(|error| error.to_string())?,
            };
            on_progress(self.model.freshness().entries);
            if remaining == Remaining::Nothing {
                return Ok(());
            }
        }
    }

    /// Reads one batch and applies it. Returns the work that remains.
    async fn round(&mut self) -> Result<Remaining, RoundError> {
        if self.blocking(ReadModel::repair).await? {
            self.reader.forget_mark();
        }
        let before_ms = (self.now)();
        let ModelProgress { checkpoint, observed } = self.blocking(ReadModel::progress).await?;
        if self.reader.is_mark_due() {
            if let Some(gap) = self.reader.gap(&checkpoint.position).await? {
                return self.rebuild(gap).await;
            }
            self.mark(&checkpoint.position).await?;
        }
        let batch = self.reader.read(&checkpoint, BATCH).await?;
        let batches = self.reader.log().observations(observed, OBSERVED_BATCH).await?;
        let generation = batch.fence;
        let idle = batch.entries.is_empty() && batches.is_empty();
        let full_ms = batches.get(OBSERVED_BATCH - 1).map(|(id, _)| id.ms);
        let more_ms = batch.complete_until_ms.into_iter().chain(full_ms).min();
        if !batch.entries.is_empty() {
            self.apply(generation, batch.entries).await?;
        }
        if !batches.is_empty() {
            self.blocking(move |model| model.apply_observations(generation, &batches)).await?;
        }
        // The model has all entries that were written before the log was read. If a partition has
        // more entries, the model has only those up to the last one that was read. The times of
        // entries are of the store's clock, which may be ahead of this process's clock.
        let as_of_ms = more_ms.map_or(before_ms, |more_ms| more_ms.min(before_ms));
        self.blocking(move |model| model.complete_until(generation, as_of_ms)).await?;
        let now_ms = (self.now)();
        let turned = self.blocking(move |model| model.turn(now_ms)).await?;
        let retired = idle && self.retire(now_ms).await?;
        Ok(match (more_ms.is_some() || turned || retired, idle) {
            (true, _) => Remaining::Much,
            (false, false) => Remaining::Little,
            (false, true) => Remaining::Nothing,
        })
    }

    async fn apply(
        &self,
        generation: ModelGeneration,
        entries: Vec<LogEntry>,
    ) -> Result<(), RoundError> {
        let applied = self.blocking(move |model| model.apply(generation, &entries)).await?;
        if applied.unknown > 0 {
            tracing::warn!(
                entries = applied.unknown,
                "entries of the event log that this version can't read were passed over"
            );
        }
        Ok(())
    }

    /// Builds the model anew: if the log has a gap, entries of the model's operations may be
    /// missing.
    async fn rebuild(&self, gap: Gap) -> Result<Remaining, RoundError> {
        match gap {
            Gap::Lost => tracing::warn!(
                "the event log ends before the read model's position: the read model is built anew"
            ),
            Gap::Trimmed => tracing::warn!(
                "the event log was trimmed beyond the read model's position: it is built anew"
            ),
        }
        self.blocking(ReadModel::clear).await?;
        Ok(Remaining::Much)
    }

    /// Marks how far the log was read, so that newer entries are not trimmed.
    async fn mark(&mut self, position: &Position) -> Result<(), RoundError> {
        let reader = self.blocking(|model| model.reader_name()).await?;
        Ok(self.reader.mark(&reader, position).await?)
    }

    async fn retire(&mut self, now_ms: u64) -> Result<bool, RoundError> {
        if self.retired.is_some_and(|retired| retired.elapsed() < RETIRE_PERIOD) {
            return Ok(false);
        }
        let keep = self.keep;
        let more = self.blocking(move |model| model.retire(now_ms, keep)).await?;
        if !more {
            self.retired = Some(Instant::now());
        }
        Ok(more)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ReadModel) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, RoundError> {
        let model = self.model.clone();
        Ok(spawn_blocking(move || work(&model)).await.map_err(|_| RoundError::Ended)??)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::engine::tests::policy;
    use crate::engine::{ClaimOver, ClaimRequest, claim};
    use crate::event::{Context, Event};
    use crate::key::PARTITIONS;
    use crate::key::{Caller, Fingerprint, Scope, Slot, Space};
    use crate::record::{Fence, Version};
    use crate::store::Records;
    use crate::store::memory::Memory;

    const BEGAN_MS: u64 = 1_800_000_000_000;

    /// Entries of one partition behind which there may be more.
    const SHARE: usize = BATCH / PARTITIONS as usize;

    async fn begin(store: &Memory, n: usize) {
        let caller = Caller::of_field("authorization", b"alice");
        let asked = ClaimRequest {
            caller,
            fingerprint: Fingerprint::from_bytes([7; 32]),
            fence: Fence(n as u64),
        };
        let next = claim(&asked, ClaimOver::Nothing, Version(n as u64), BEGAN_MS, &policy());
        let event = Event::of(&next.record, next.lifetime, Context::default()).encode();
        let slot = Slot::of(Space::Enforced, "payments", &Scope::shared(), &n.to_be_bytes(), b"");
        store
            .write(
                &slot,
                None,
                &next.record,
                next.lifetime,
                crate::store::Events::logged(&|| event.clone()),
            )
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn few_entries_wait_for_more_and_a_full_partition_is_read_on_at_once() {
        let clock = Arc::new(AtomicU64::new(BEGAN_MS));
        let (stores, models) = (clock.clone(), clock.clone());
        let store = Arc::new(Memory::new(Arc::new(move || stores.load(Ordering::SeqCst))));
        let model = Arc::new(ReadModel::in_memory().unwrap());
        let now: UnixClock = Arc::new(move || models.load(Ordering::SeqCst));
        let mut projector =
            Projector::new(model.clone(), store.clone(), Duration::from_secs(3600), now);
        begin(&store, 0).await;
        let later = clock.fetch_add(70, Ordering::SeqCst) + 70;
        assert_eq!(projector.round().await.unwrap(), Remaining::Little);
        let known = model.freshness();
        assert_eq!((known.entries, known.as_of_ms), (1, Some(later)));
        for n in 1..=SHARE {
            begin(&store, n).await;
        }
        clock.fetch_add(70, Ordering::SeqCst);
        assert_eq!(projector.round().await.unwrap(), Remaining::Much);
        let known = model.freshness();
        assert_eq!(
            (known.entries, known.as_of_ms),
            (1 + SHARE as u64, Some(later)),
            "there may be younger ones"
        );
    }
}
