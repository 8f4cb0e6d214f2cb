//! Large records in Redis.
//!
//! Danger: all calls to a server share a connection, and its answers come in the order of the calls. Calls behind many large
//! answers would take so long that the breaker takes the server for silent.

use redis::{Cmd, Value};
use tokio::time::timeout_at;

use super::{Redis, array, held, time_ms, unexpected};
use crate::key::Slot;
use crate::record::Held;
use crate::store::StoreError;
use crate::store::large::ALONG_MAX;

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
        let Ok(_turn) = timeout_at(self.deadline(), self.large.turn()).await else {
            return Err(StoreError::NotApplied("too many large records are being read".into()));
        };
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
}
