//! Large records: they are read by themselves, and few of them at once.
//!
//! Danger: all calls to a server share a connection, and its answers come in the order of the calls. Duplicates of large
//! results that are asked for together would keep the connection busy for longer than a call may take: everybody's claims
//! would fail, and the breaker would take the server for silent.

use redis::{Cmd, Value};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout_at;

use super::{Redis, array, held, time_ms, unexpected};
use crate::key::Slot;
use crate::record::Held;
use crate::store::StoreError;

/// Longest record, in bytes, that comes with the answer to another call. The scripts have the same figure.
pub(super) const ALONG_MAX: usize = 64 * 1024;

/// Large records that are on their way at once. Even the largest then delay other calls by some ten milliseconds.
const AT_ONCE: usize = 4;

/// Turns to read a large record.
pub(super) struct Large(Semaphore);

impl Default for Large {
    fn default() -> Large {
        Large(Semaphore::new(AT_ONCE))
    }
}

impl Large {
    /// Keeps all others from reading a large record.
    #[cfg(test)]
    pub async fn all_turns(&self) -> SemaphorePermit<'_> {
        self.0.acquire_many(AT_ONCE as u32).await.unwrap()
    }
}

/// Reads a record, of a large one only so much that this shows: [`is_cut`].
pub(super) fn first_bytes(key: &[u8]) -> Cmd {
    let mut command = redis::cmd("GETRANGE");
    command.arg(key).arg(0).arg(ALONG_MAX);
    command
}

/// Whether what [`first_bytes`] read is not the whole record.
pub(super) fn is_cut(value: &[u8]) -> bool {
    value.len() > ALONG_MAX
}

impl Redis {
    /// The record, of any size, or what tells that an operation was completed whose record is gone, where `remains`.
    pub(super) async fn read(&self, slot: &Slot, remains: bool) -> Result<Option<Held>, StoreError> {
        let keys = [self.names.record_key(slot), self.names.tombstone_key(slot)];
        let keys = if remains { &keys[..] } else { &keys[..1] };
        let answer = self.run(slot.partition(), &self.scripts.read, (keys, &[]), None, self.deadline()).await?;
        let mut parts = array(answer)?.into_iter();
        let (Some(seconds), Some(micros)) = (parts.next(), parts.next()) else { return Err(unexpected()) };
        match parts.next() {
            Some(Value::Int(_)) => self.read_large(slot).await,
            value => held(value.unwrap_or(Value::Nil), time_ms(Value::Array(vec![seconds, micros]))?),
        }
    }

    /// A large record, when it is its turn.
    pub(super) async fn read_large(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let _turn = self.turn().await?;
        let mut pipeline = redis::pipe();
        // The time comes first: a lease that is renewed in between must not look as if it were over.
        pipeline.cmd("TIME").cmd("GET").arg(self.names.record_key(slot));
        if let Some([marker, wait]) = self.wait_behind(slot.partition()) {
            pipeline.add_command(marker).add_command(wait);
        }
        let mut values = self.pipeline(slot.partition(), &pipeline).await?.into_iter();
        let (Some(time), Some(value)) = (values.next(), values.next()) else { return Err(unexpected()) };
        self.insist(values.nth(1))?;
        held(value, time_ms(time)?)
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        match timeout_at(self.deadline(), self.large.0.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(StoreError::NotApplied("too many large records are being read".into())),
        }
    }
}
