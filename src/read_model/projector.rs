//! The projector: follows the event log of a store and keeps a read model up to date, for as long as it is let.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::upkeep::RETIRE_PERIOD;
use super::{Generation, QueryError, Reached, ReadModel};
use crate::key::PARTITIONS;
use crate::store::StoreError;
use crate::store::log::{Ends, EventLog, LogEntry, Position};

/// Milliseconds since 1970.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Entries that are read and applied at once: enough that the transaction costs little, and some tens of milliseconds.
const BATCH: usize = 4096;

/// Batches of observations that are read and applied at once; each has some hundred.
const OBSERVED_BATCH: usize = 16;

/// Entries of one partition behind which there may be more: a store that has many gives each its share of a batch.
const FULL: usize = BATCH / PARTITIONS as usize;

/// Between two looks at a log that seemed to have no more. A look costs the store a reading of every partition, and the file a
/// transaction, however little there is: so what comes meanwhile is applied together. Somebody who watches the page waits no
/// longer than that.
const PERIOD: Duration = Duration::from_millis(300);

/// Between two words to the log of how far it was read. Trimming waits for them, which is in no hurry.
const MARK_PERIOD: Duration = Duration::from_secs(5);

/// After a fault: doubled each time, up to the last.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Why a round came to nothing. The next one does it again.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the thread that works on the read model ended")]
    Ended,
}

/// What may be left to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    /// What came during the round.
    Little,
    Much,
}

/// Follows a log. There may be several for one file: what one has applied, the others pass over.
pub struct Projector {
    model: Arc<ReadModel>,
    log: Arc<dyn EventLog>,
    keep: Duration,
    now: Now,
    marked: Option<Instant>,
    retired: Option<Instant>,
}

impl Projector {
    /// One that brings what `store`'s log tells into `model`, where it stays as long as the log keeps entries.
    pub fn new(
        model: Arc<ReadModel>,
        log: Arc<dyn EventLog>,
        keep: Duration,
        now: Now,
    ) -> Projector {
        Projector { model, log, keep, now, marked: None, retired: None }
    }

    /// Follows for ever. A store that doesn't answer, and a disk that is full, are waited for; damage is repaired.
    pub async fn follow(mut self) {
        let mut backoff = BACKOFF;
        loop {
            match self.round().await {
                Ok(Left::Much) => backoff = BACKOFF,
                Ok(Left::Nothing | Left::Little) | Err(Fault::Query(QueryError::Emptied)) => {
                    backoff = BACKOFF;
                    sleep(PERIOD).await;
                }
                Err(fault) => {
                    if backoff == BACKOFF {
                        tracing::warn!(%fault, "the read model is not brought up to date; trying again");
                    }
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Applies all that the log has now, from where the model is.
    ///
    /// # Errors
    /// What kept it from it, in words. What was applied stays.
    pub async fn catch_up(&mut self, mut progress: impl FnMut(u64)) -> Result<(), String> {
        loop {
            let left = match self.round().await {
                Err(Fault::Query(QueryError::Emptied)) => Left::Much,
                round => round.map_err(|fault| fault.to_string())?,
            };
            progress(self.model.freshness().entries);
            if left == Left::Nothing {
                return Ok(());
            }
        }
    }

    /// Reads once and applies it. Returns what may be left to do.
    async fn round(&mut self) -> Result<Left, Fault> {
        if self.blocking(ReadModel::repair).await? {
            self.marked = None;
        }
        let before_ms = (self.now)();
        let Reached { generation, position, observed } = self.blocking(ReadModel::reached).await?;
        if self.marked.is_none_or(|marked| marked.elapsed() >= MARK_PERIOD) {
            if self.is_another_log(&position).await? {
                self.blocking(ReadModel::clear).await?;
                return Ok(Left::Much);
            }
            self.mark(&position).await?;
        }
        let entries = self.log.read(&position, BATCH).await?;
        let batches = self.log.observations(observed, OBSERVED_BATCH).await?;
        let idle = entries.is_empty() && batches.is_empty();
        let full_ms = batches.get(OBSERVED_BATCH - 1).map(|(id, _)| id.ms);
        let more_ms = reached(&entries).into_iter().chain(full_ms).min();
        if !entries.is_empty() {
            self.apply(generation, entries).await?;
        }
        if !batches.is_empty() {
            self.blocking(move |model| model.apply_observations(generation, &batches)).await?;
        }
        // All that was told before it was asked is in, or else what is no younger than the last of where there is more: by the
        // store's clock, which may be ahead of this one.
        let as_of_ms = more_ms.map_or(before_ms, |more_ms| more_ms.min(before_ms));
        self.blocking(move |model| model.told_until(generation, as_of_ms)).await?;
        let now_ms = (self.now)();
        let turned = self.blocking(move |model| model.turn(now_ms)).await?;
        let retired = idle && self.retire(now_ms).await?;
        Ok(match (more_ms.is_some() || turned || retired, idle) {
            (true, _) => Left::Much,
            (false, false) => Left::Little,
            (false, true) => Left::Nothing,
        })
    }

    async fn apply(&self, generation: Generation, entries: Vec<LogEntry>) -> Result<(), Fault> {
        let applied = self.blocking(move |model| model.apply(generation, &entries)).await?;
        if applied.unknown > 0 {
            tracing::warn!(
                entries = applied.unknown,
                "entries of the event log that this version can't read were passed over"
            );
        }
        Ok(())
    }

    /// Says how far the log was read, so that it isn't trimmed further.
    async fn mark(&mut self, position: &Position) -> Result<(), Fault> {
        let reader = self.blocking(|model| model.reader_name()).await?;
        self.log.mark_read(&reader, position).await?;
        self.marked = Some(Instant::now());
        Ok(())
    }

    /// Whether the log can't be continued from here, which is said. Either entries were trimmed that had still to be read, after
    /// an absence for longer than they are kept: what the model has may be long over then, without its knowing. Or the log ends
    /// before what was read of it, since its store lost what it had: what comes next would be passed over.
    async fn is_another_log(&self, position: &Position) -> Result<bool, StoreError> {
        if position.0.is_empty() {
            return Ok(false);
        }
        let ends: HashMap<u16, Ends> =
            self.log.ends().await?.into_iter().map(|ends| (ends.partition, ends)).collect();
        for (partition, read) in &position.0 {
            let ends = ends.get(partition);
            if ends.is_none_or(|ends| ends.last.id < *read) {
                tracing::warn!(
                    "the event log ends before what the read model has read of it: it is built anew"
                );
                return Ok(true);
            }
            if ends.and_then(|ends| ends.trimmed).is_some_and(|trimmed| trimmed.id > *read) {
                tracing::warn!(
                    "the event log was trimmed beyond what the read model had read: it is built anew"
                );
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn retire(&mut self, now_ms: u64) -> Result<bool, Fault> {
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
    ) -> Result<T, Fault> {
        let model = self.model.clone();
        Ok(spawn_blocking(move || work(&model)).await.map_err(|_| Fault::Ended)??)
    }
}

/// Up to when all is in that was told, where some partition may have more: in ms, by the store's clock.
fn reached(entries: &[LogEntry]) -> Option<u64> {
    let mut partitions: BTreeMap<u16, (usize, u64)> = BTreeMap::new();
    for entry in entries {
        let (count, last_ms) = partitions.entry(entry.partition).or_default();
        *count += 1;
        *last_ms = entry.id.ms;
    }
    partitions.into_values().filter(|(count, _)| *count >= FULL).map(|(_, last_ms)| last_ms).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::engine::tests::policy;
    use crate::engine::{Asked, ClaimOver, claim};
    use crate::event::{Context, Event};
    use crate::key::{Caller, Fingerprint, Scope, Slot, Space};
    use crate::record::{Fence, Version};
    use crate::store::Records;
    use crate::store::memory::Memory;

    const BEGAN_MS: u64 = 1_800_000_000_000;

    async fn begin(store: &Memory, n: usize) {
        let caller = Caller::of_field("authorization", b"alice");
        let asked =
            Asked { caller, fingerprint: Fingerprint::from_bytes([7; 32]), fence: Fence(n as u64) };
        let next = claim(&asked, ClaimOver::Nothing, Version(n as u64), BEGAN_MS, &policy());
        let event = Event::of(&next.record, next.lifetime, Context::default()).encode();
        let slot = Slot::of(Space::Enforced, "payments", &Scope::shared(), &n.to_be_bytes(), b"");
        store.write(&slot, None, &next.record, next.lifetime, &|| event.clone()).await.unwrap();
    }

    #[tokio::test]
    async fn few_entries_wait_for_more_and_a_full_partition_is_read_on_at_once() {
        let clock = Arc::new(AtomicU64::new(BEGAN_MS));
        let (stores, models) = (clock.clone(), clock.clone());
        let store = Arc::new(Memory::new(Arc::new(move || stores.load(Ordering::SeqCst))));
        let model = Arc::new(ReadModel::in_memory().unwrap());
        let now: Now = Arc::new(move || models.load(Ordering::SeqCst));
        let mut projector =
            Projector::new(model.clone(), store.clone(), Duration::from_secs(3600), now);
        begin(&store, 0).await;
        let later = clock.fetch_add(70, Ordering::SeqCst) + 70;
        assert_eq!(projector.round().await.unwrap(), Left::Little);
        let known = model.freshness();
        assert_eq!((known.entries, known.as_of_ms), (1, Some(later)));
        for n in 1..=FULL {
            begin(&store, n).await;
        }
        clock.fetch_add(70, Ordering::SeqCst);
        assert_eq!(projector.round().await.unwrap(), Left::Much);
        let known = model.freshness();
        assert_eq!(
            (known.entries, known.as_of_ms),
            (1 + FULL as u64, Some(later)),
            "there may be younger ones"
        );
    }
}
