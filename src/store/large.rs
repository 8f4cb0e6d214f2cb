//! Large records: stores read them by themselves, and few of them at once.
//!
//! Danger: duplicates of large results that are asked for together would take memory that nobody has counted yet, and keep
//! the store busy for longer than a call may take: everybody's claims would fail.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Longest record, in bytes, that comes with the answer to another call. The scripts of Redis have the same figure.
pub(super) const ALONG_MAX: usize = 64 * 1024;

/// Large records that are on their way at once. Even the largest then delay other calls by some ten milliseconds.
const AT_ONCE: u32 = 2;

/// Turns to read a large record.
#[derive(Debug)]
pub(super) struct Large(Semaphore);

impl Default for Large {
    fn default() -> Large {
        Large(Semaphore::new(AT_ONCE as usize))
    }
}

impl Large {
    /// Waits for a turn, which lasts until it is dropped.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.0.acquire().await.ok()
    }

    /// Keeps all others from reading a large record.
    #[cfg(test)]
    pub async fn all_turns(&self) -> Option<SemaphorePermit<'_>> {
        self.0.acquire_many(AT_ONCE).await.ok()
    }
}
