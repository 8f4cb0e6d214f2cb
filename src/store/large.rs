//! Large records: stores read them by themselves, and few of them at once.
//!
//! Danger: duplicates of large results that are asked for together would take memory that nobody has counted yet, and keep
//! the store busy for longer than a call may take: everybody's claims would fail.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest completed record, in bytes, that comes with the answer to another call. The scripts of Redis have the same figure.
pub(super) const ALONG_MAX: usize = 64 * 1024;

/// Large records that are being read at once. Other calls wait behind so many of them.
const AT_ONCE: u32 = 2;

/// Turns to read a large record.
#[derive(Debug)]
pub(super) struct Large(Arc<Semaphore>);

impl Default for Large {
    fn default() -> Large {
        Large(Arc::new(Semaphore::new(AT_ONCE as usize)))
    }
}

impl Large {
    /// Waits for a turn, which lasts until it is dropped. Whoever reads keeps it until the record is there, also when the caller
    /// has left: or who asks and leaves would make the store read any number at once.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().acquire_owned().await.ok()
    }

    /// Keeps all others from reading a large record.
    #[cfg(test)]
    pub async fn all_turns(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().acquire_many_owned(AT_ONCE).await.ok()
    }
}
