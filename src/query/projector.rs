//! The projector: follows the event log of a store and keeps a read model up to date, for as long as it is let.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::upkeep::RETIRE_PERIOD;
use super::{Generation, QueryError, Reached, ReadModel};
use crate::store::log::{Ends, Entry, Position};
use crate::store::{Store, StoreError};

/// Milliseconds since 1970.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Entries that are read and applied at once: enough that the transaction costs little, and some tens of milliseconds.
const BATCH: usize = 4096;

/// Batches of observations that are read and applied at once; each has some hundred.
const OBSERVED_BATCH: usize = 16;

/// Between two looks at a log that had nothing new. Somebody who watches the page waits no longer than that.
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

/// Follows a log. There may be several for one file: what one has applied, the others pass over.
pub struct Projector {
    model: Arc<ReadModel>,
    store: Arc<dyn Store>,
    keep: Duration,
    now: Now,
    marked: Option<Instant>,
    retired: Option<Instant>,
}

impl Projector {
    /// One that brings what `store`'s log tells into `model`, where it stays as long as the log keeps entries.
    pub fn new(model: Arc<ReadModel>, store: Arc<dyn Store>, keep: Duration, now: Now) -> Projector {
        Projector { model, store, keep, now, marked: None, retired: None }
    }

    /// Follows for ever. A store that doesn't answer, and a disk that is full, are waited for; damage is repaired.
    pub async fn follow(mut self) {
        let mut backoff = BACKOFF;
        loop {
            match self.round().await {
                Ok(true) | Err(Fault::Query(QueryError::Emptied)) => backoff = BACKOFF,
                Ok(false) => {
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
            let more = match self.round().await {
                Err(Fault::Query(QueryError::Emptied)) => true,
                round => round.map_err(|fault| fault.to_string())?,
            };
            progress(self.model.freshness().entries);
            if !more {
                return Ok(());
            }
        }
    }

    /// Reads once and applies it. Returns whether there may be more.
    async fn round(&mut self) -> Result<bool, Fault> {
        if self.model.is_damaged() {
            self.blocking(|model| model.replace()).await?;
            self.marked = None;
        }
        let before_ms = (self.now)();
        let Reached { generation, position, observed } = self.blocking(ReadModel::reached).await?;
        if self.marked.is_none_or(|marked| marked.elapsed() >= MARK_PERIOD) {
            if self.is_another_log(&position).await? {
                self.blocking(ReadModel::clear).await?;
                return Ok(true);
            }
            self.mark(&position).await?;
        }
        let entries = self.store.log().read(&position, BATCH).await?;
        let batches = self.store.log().observations(observed, OBSERVED_BATCH).await?;
        let idle = entries.is_empty() && batches.is_empty();
        // All that was told before it was asked is in, or else what is older than the oldest of what comes now.
        let oldest_ms = entries.iter().map(|entry| entry.id.ms).chain(batches.first().map(|(id, _)| id.ms)).min();
        if !entries.is_empty() {
            self.apply(generation, entries).await?;
        }
        if !batches.is_empty() {
            self.blocking(move |model| model.apply_observations(generation, &batches)).await?;
        }
        self.blocking(move |model| model.told_until(generation, oldest_ms.unwrap_or(before_ms))).await?;
        let now_ms = (self.now)();
        let turned = self.blocking(move |model| model.turn(now_ms)).await?;
        let retired = idle && self.retire(now_ms).await?;
        Ok(!idle || turned || retired)
    }

    async fn apply(&self, generation: Generation, entries: Vec<Entry>) -> Result<(), Fault> {
        let applied = self.blocking(move |model| model.apply(generation, &entries)).await?;
        if applied.unknown > 0 {
            tracing::warn!(entries = applied.unknown, "entries of the event log that this version can't read were passed over");
        }
        Ok(())
    }

    /// Says how far the log was read, so that it isn't trimmed further.
    async fn mark(&mut self, position: &Position) -> Result<(), Fault> {
        let reader = self.blocking(|model| model.reader_name()).await?;
        self.store.log().mark_read(&reader, position).await?;
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
        let ends: HashMap<u16, Ends> = self.store.log().ends().await?.into_iter().map(|ends| (ends.partition, ends)).collect();
        for (partition, read) in &position.0 {
            let ends = ends.get(partition);
            if ends.is_none_or(|ends| ends.last.id < *read) {
                tracing::warn!("the event log ends before what the read model has read of it: it is built anew");
                return Ok(true);
            }
            if ends.and_then(|ends| ends.trimmed).is_some_and(|trimmed| trimmed.id > *read) {
                tracing::warn!("the event log was trimmed beyond what the read model had read: it is built anew");
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
