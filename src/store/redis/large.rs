//! Reads records. Large records are read only a few at a time.
//!
//! Danger: all calls to a server share a connection, and answers come in the order of the calls.
//! Calls behind many large answers would wait so long that the breaker would open, as if the server
//! did not answer.

use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::{Instant, timeout};

use super::answer::{array, held, time_ms, unexpected};
use super::client::Redis;
use super::connection::Commands;
use crate::key::Slot;
use crate::record::{Fence, HEAD_BYTES, Held, head_completed, head_fence};
use crate::store::StoreError;
use crate::store::large::ALONG_MAX;

/// How long a read of a large record waits for its turn. The store works during this wait, so
/// waiting is better than a refusal.
const TURN_MAX: Duration = Duration::from_secs(5);

/// Makes a command that reads a record. Of a large record it reads only the beginning: enough for
/// [`large`] to detect it.
pub(super) fn first_bytes(key: &[u8]) -> Cmd {
    let mut command = redis::cmd("GETRANGE");
    command.arg(key).arg(0).arg(ALONG_MAX);
    command
}

/// Returns the fence of a completed record that [`first_bytes`] did not read to its end.
pub(super) fn large(value: &[u8]) -> Option<Fence> {
    let head: &[u8; HEAD_BYTES] = value.first_chunk()?;
    (value.len() > ALONG_MAX && head_completed(head)).then(|| head_fence(head))
}

impl Redis {
    /// Reads a record of any size. If it is absent, reads its tombstone if `or_tombstone` is set.
    pub(super) async fn read(
        &self,
        slot: &Slot,
        or_tombstone: bool,
    ) -> Result<Option<Held>, StoreError> {
        let deadline = self.deadline();
        let keys = [self.names.record_key(slot), self.names.tombstone_key(slot)];
        let keys = if or_tombstone { &keys[..] } else { &keys[..1] };
        let answer =
            self.run(slot.partition(), &self.scripts.read, (keys, &[]), None, deadline).await?;
        let mut parts = array(answer)?.into_iter();
        let (Some(seconds), Some(micros)) = (parts.next(), parts.next()) else {
            return Err(unexpected());
        };
        match parts.next() {
            Some(Value::Int(_)) => self.read_large(slot, or_tombstone).await,
            value => {
                held(value.unwrap_or(Value::Nil), time_ms(Value::Array(vec![seconds, micros]))?)
            }
        }
    }

    /// Waits for a turn, then reads a large record.
    async fn read_large(
        &self,
        slot: &Slot,
        or_tombstone: bool,
    ) -> Result<Option<Held>, StoreError> {
        let (Some(store), Ok(turn)) =
            (self.itself.upgrade(), timeout(TURN_MAX, self.large.turn()).await)
        else {
            return Err(StoreError::Unread("others were read first".into()));
        };
        let slot = *slot;
        let reading = tokio::spawn(async move {
            let _turn = turn;
            // The deadline is set only now: the breaker must not count the wait for a turn as a
            // server that doesn't answer.
            let deadline = store.deadline();
            store.read_whole(&slot, or_tombstone, deadline).await
        });
        let read = reading.await.unwrap_or_else(|error| Err(StoreError::Unread(error.to_string())));
        read.map_err(|error| match error {
            StoreError::NotApplied(why) | StoreError::MaybeApplied(why) => StoreError::Unread(why),
            error => error,
        })
    }

    async fn read_whole(
        &self,
        slot: &Slot,
        or_tombstone: bool,
        deadline: Instant,
    ) -> Result<Option<Held>, StoreError> {
        let mut pipeline = redis::pipe();
        // The time comes first: a lease that is renewed in between must not look expired.
        pipeline.cmd("TIME").cmd("MGET").arg(self.names.record_key(slot));
        if or_tombstone {
            pipeline.arg(self.names.tombstone_key(slot));
        }
        if let Some([probe, wait]) = self.wait_commands(slot.partition()) {
            pipeline.add_command(probe).add_command(wait);
        }
        let answer =
            self.servers.call(slot.partition(), Commands::Many(&pipeline), None, deadline).await?;
        let mut values = array(answer)?.into_iter();
        let (Some(time), Some(found)) = (values.next(), values.next()) else {
            return Err(unexpected());
        };
        self.require_confirmed(values.nth(1))?;
        let first = array(found)?.into_iter().find(|value| *value != Value::Nil);
        held(first.unwrap_or(Value::Nil), time_ms(time)?)
    }
}
