//! How answers are confirmed: by replicas, by the server's disk, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::time::timeout;

use super::answer::unexpected;
use super::layout::KeyNames;
use super::options::{RedisAck, RedisOptions};
use super::time::millis;
use crate::store::StoreError;

/// How long the key of a probe write lasts, in ms.
const PROBE_KEEP_MS: u64 = 60_000;

/// Makes the command that waits for the confirmation of a call, and checks its answer. Cheap to
/// clone.
#[derive(Clone)]
pub(super) struct Confirmation {
    ack: RedisAck,
    /// Longest time for which a server waits. The wait blocks the connection, so it ends well
    /// before a call's timeout.
    limit: Duration,
    disk: Arc<AtomicU8>,
}

/// How servers confirm that a write is on their disk. If one of several servers needs a `WAITAOF`,
/// all servers get one.
const UNKNOWN: u8 = 0;
/// Every answer comes after the disk write.
const BY_ANSWER: u8 = 1;
/// Only a `WAITAOF` confirms the disk write.
const ON_REQUEST: u8 = 2;

impl Confirmation {
    /// Reads the options.
    pub(super) fn new(options: &RedisOptions) -> Confirmation {
        Confirmation {
            ack: options.ack,
            limit: options.timeout / 4,
            disk: Arc::new(AtomicU8::new(UNKNOWN)),
        }
    }

    /// Returns the command that waits; `None` if no wait is needed. The command waits only for
    /// earlier writes of its own connection, so it must be sent with them.
    pub(super) fn wait_command(&self) -> Option<Cmd> {
        match self.ack {
            RedisAck::Memory => None,
            RedisAck::Replicas(wanted) => {
                let mut wait = redis::cmd("WAIT");
                wait.arg(wanted).arg(millis(self.limit));
                Some(wait)
            }
            RedisAck::Fsync if self.disk.load(Ordering::Relaxed) == BY_ANSWER => None,
            RedisAck::Fsync => Some(wait_for_disk(1, self.limit)),
        }
    }

    /// Checks the answer to [`Confirmation::wait_command`].
    ///
    /// # Errors
    /// The call was not confirmed, and may have been applied.
    pub(super) fn require_confirmed(&self, answer: Option<Value>) -> Result<(), StoreError> {
        match (self.ack, answer) {
            (RedisAck::Memory, _) | (RedisAck::Fsync, None) => Ok(()),
            (RedisAck::Replicas(wanted), Some(Value::Int(confirmed)))
                if confirmed >= i64::from(wanted) =>
            {
                Ok(())
            }
            (RedisAck::Replicas(wanted), Some(Value::Int(confirmed))) => Err(
                StoreError::MaybeApplied(format!("{confirmed} of {wanted} replicas confirmed it")),
            ),
            (RedisAck::Fsync, Some(Value::Array(counts))) => match counts.first() {
                Some(Value::Int(local)) if *local > 0 => Ok(()),
                _ => Err(StoreError::MaybeApplied(
                    "it did not reach the server's disk in time".into(),
                )),
            },
            _ => Err(unexpected()),
        }
    }

    /// Finds out how a server that was just connected confirms disk writes.
    ///
    /// With `appendfsync always`, the server answers after the disk write, and one disk write
    /// serves all commands that came together. With a `WAITAOF`, each of them would need its own
    /// disk write. A server that is too old for `WAITAOF` counts as one that answers after the disk
    /// write.
    pub(super) async fn detect_disk_ack(
        &self,
        connection: &MultiplexedConnection,
        limit: Duration,
    ) {
        if self.ack != RedisAck::Fsync {
            return;
        }
        let mut connection = connection.clone();
        let mut queries = redis::pipe();
        queries.cmd("CONFIG").arg("GET").arg("appendfsync");
        // Zero disks, so the command doesn't wait.
        queries.add_command(wait_for_disk(0, Duration::from_millis(1)));
        let Ok(Ok(answers)) = timeout(limit, connection.send_packed_commands(&queries, 0, 2)).await
        else {
            return;
        };
        let [setting, waited] = answers.as_slice() else { return };
        if is_always(setting) || matches!(waited, Value::ServerError(_)) {
            // If another server needs the WAITAOF, that stays the result.
            let _ = self.disk.compare_exchange(
                UNKNOWN,
                BY_ANSWER,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        } else {
            self.disk.store(ON_REQUEST, Ordering::Relaxed);
        }
    }
}

/// Whether an answer to CONFIG GET has the value "always".
fn is_always(setting: &Value) -> bool {
    let is = |value: &Value| matches!(value, Value::BulkString(text) if text == b"always");
    match setting {
        Value::Map(pairs) => pairs.iter().any(|(_, value)| is(value)),
        Value::Array(parts) => parts.iter().any(is),
        _ => false,
    }
}

/// Returns a write of a dummy key, which shows whether the server accepts writes.
pub(super) fn probe_write(names: &KeyNames, partition: Option<u16>) -> Cmd {
    let mut set = redis::cmd("SET");
    set.arg(names.ping_key(partition)).arg("").arg("PX").arg(PROBE_KEEP_MS);
    set
}

/// Returns the command that waits until `local` disks (0 or 1) have the writes of this connection.
fn wait_for_disk(local: u8, limit: Duration) -> Cmd {
    let mut wait = redis::cmd("WAITAOF");
    wait.arg(local).arg(0).arg(millis(limit));
    wait
}
