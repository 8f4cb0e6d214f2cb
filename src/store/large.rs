//! Large records: stores read them in separate calls, and only a few at a time.
//!
//! Danger: many duplicates of large results at once would take memory that no budget counts yet.
//! They would also keep the store busy for longer than the timeout of a call, so all claims would
//! fail.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A completed record of more bytes is large: only a separate call reads it. The scripts of Redis
/// use the same limit.
pub(super) const ALONG_MAX: usize = 64 * 1024;

/// Limit for the large records that are read at the same time. Other calls wait behind these reads.
const AT_ONCE: u32 = 2;

/// Permits to read large records.
#[derive(Debug)]
pub(super) struct Large(Arc<Semaphore>);

impl Default for Large {
    fn default() -> Large {
        Large(Arc::new(Semaphore::new(AT_ONCE as usize)))
    }
}

impl Large {
    /// Waits for a permit. The reader must hold the permit until the record is read, even if the
    /// caller has left. Otherwise clients that leave could make the store read any number of
    /// records at once.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().acquire_owned().await.ok()
    }

    /// Takes all permits, so that no large record can be read.
    #[cfg(test)]
    pub async fn all_turns(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().acquire_many_owned(AT_ONCE).await.ok()
    }
}
