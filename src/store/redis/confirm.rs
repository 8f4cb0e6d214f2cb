//! How answers are confirmed: by so many replicas, by the disk, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::time::timeout;

use super::layout::Names;
use super::{Ack, Options, PING_KEEP_MS, Redis, millis, unexpected};
use crate::store::StoreError;

/// What is sent behind a call, and what its answer must say. Cheap to clone.
#[derive(Clone)]
pub(super) struct Confirmation {
    ack: Ack,
    /// How long the server may wait. It blocks the connection, and so ends well before a call gives up.
    limit: Duration,
    disk: Arc<AtomicU8>,
}

/// How servers say that something is on their disk: not known yet; by answering at all; only when asked. Of several
/// servers, one that has to be asked is enough to ask them all.
const UNKNOWN: u8 = 0;
const ANSWERED: u8 = 1;
const ASKED: u8 = 2;

impl Confirmation {
    /// As the options want it.
    pub(super) fn new(options: &Options) -> Confirmation {
        Confirmation {
            ack: options.ack,
            limit: options.timeout / 4,
            disk: Arc::new(AtomicU8::new(UNKNOWN)),
        }
    }

    /// The command that waits. It counts what its own connection wrote before, so it has to go out with that.
    pub(super) fn wait(&self) -> Option<Cmd> {
        match self.ack {
            Ack::Memory => None,
            Ack::Replicas(wanted) => {
                let mut wait = redis::cmd("WAIT");
                wait.arg(wanted).arg(millis(self.limit));
                Some(wait)
            }
            Ack::Fsync if self.disk.load(Ordering::Relaxed) == ANSWERED => None,
            Ack::Fsync => Some(wait_for_disk(1, self.limit)),
        }
    }

    /// Refuses an answer that was not confirmed. `told` is what [`Confirmation::wait`] was answered.
    pub(super) fn insist(&self, told: Option<Value>) -> Result<(), StoreError> {
        match (self.ack, told) {
            (Ack::Memory, _) | (Ack::Fsync, None) => Ok(()),
            (Ack::Replicas(wanted), Some(Value::Int(confirmed)))
                if confirmed >= i64::from(wanted) =>
            {
                Ok(())
            }
            (Ack::Replicas(wanted), Some(Value::Int(confirmed))) => Err(StoreError::MaybeApplied(
                format!("{confirmed} of {wanted} replicas confirmed it"),
            )),
            (Ack::Fsync, Some(Value::Array(counts))) => match counts.first() {
                Some(Value::Int(local)) if *local > 0 => Ok(()),
                _ => Err(StoreError::MaybeApplied(
                    "it did not reach the server's disk in time".into(),
                )),
            },
            _ => Err(unexpected()),
        }
    }

    /// Asks a server that was just connected how it says that something is on its disk.
    ///
    /// `appendfsync always` answers after the disk, all that came together in one go. There a `WAITAOF` would only part what
    /// came together, each with a flush of its own. An older server can't be asked, and is taken for one that does so.
    pub(super) async fn learn(&self, connection: &MultiplexedConnection, limit: Duration) {
        if self.ack != Ack::Fsync {
            return;
        }
        let mut connection = connection.clone();
        let mut questions = redis::pipe();
        questions.cmd("CONFIG").arg("GET").arg("appendfsync");
        // Waits for nothing.
        questions.add_command(wait_for_disk(0, Duration::from_millis(1)));
        let Ok(Ok(answers)) =
            timeout(limit, connection.send_packed_commands(&questions, 0, 2)).await
        else {
            return;
        };
        let [setting, asked] = answers.as_slice() else { return };
        if is_always(setting) || matches!(asked, Value::ServerError(_)) {
            // Unless another has to be asked.
            let _ =
                self.disk.compare_exchange(UNKNOWN, ANSWERED, Ordering::Relaxed, Ordering::Relaxed);
        } else {
            self.disk.store(ASKED, Ordering::Relaxed);
        }
    }
}

/// Whether a setting's value, as CONFIG GET tells it, is "always".
fn is_always(setting: &Value) -> bool {
    let is = |value: &Value| matches!(value, Value::BulkString(text) if text == b"always");
    match setting {
        Value::Map(pairs) => pairs.iter().any(|(_, value)| is(value)),
        Value::Array(parts) => parts.iter().any(is),
        _ => false,
    }
}

/// A write of no meaning.
pub(super) fn marker(names: &Names, partition: Option<u16>) -> Cmd {
    let mut set = redis::cmd("SET");
    set.arg(names.ping_key(partition)).arg("").arg("PX").arg(PING_KEEP_MS);
    set
}

/// Waits until so many local disks (none or one) have what this connection wrote.
fn wait_for_disk(local: u8, limit: Duration) -> Cmd {
    let mut wait = redis::cmd("WAITAOF");
    wait.arg(local).arg(0).arg(millis(limit));
    wait
}

impl Redis {
    /// The command that has a write confirmed.
    pub(super) fn wait(&self) -> Option<Cmd> {
        self.confirmation.wait()
    }

    /// The commands that have a call confirmed that may have read only. Servers since 7.2 let a connection wait for its own
    /// writes alone; what others wrote and it has read is older than a write of its own behind that.
    pub(super) fn wait_behind(&self, partition: u16) -> Option<[Cmd; 2]> {
        let wait = self.wait()?;
        let partition = Some(partition).filter(|_| self.servers.is_cluster());
        Some([marker(&self.names, partition), wait])
    }

    /// Refuses an answer that was not confirmed.
    pub(super) fn insist(&self, told: Option<Value>) -> Result<(), StoreError> {
        self.confirmation.insist(told)
    }
}
