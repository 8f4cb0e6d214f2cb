//! How answers are confirmed: by so many replicas, by the disk, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisResult, Value};
use tokio::time::timeout;

use super::{Ack, Options, Redis, millis, unexpected};
use crate::store::StoreError;

/// What is sent behind a call, and what its answer must say. Cheap to clone.
#[derive(Clone)]
pub(super) struct Confirmation {
    ack: Ack,
    /// How long the server may wait. It blocks the connection, and so ends well before a call gives up.
    limit: Duration,
    /// A server was met that doesn't know WAITAOF: there `appendfsync always` is what confirms.
    lacks_waitaof: Arc<AtomicBool>,
}

impl Confirmation {
    /// As the options want it.
    pub(super) fn new(options: &Options) -> Confirmation {
        Confirmation { ack: options.ack, limit: options.timeout / 4, lacks_waitaof: Arc::default() }
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
            Ack::Fsync => self.knows_waitaof().then(|| wait_for_disk(1, self.limit)),
        }
    }

    /// Refuses an answer that was not confirmed. `told` is what [`Confirmation::wait`] was answered.
    pub(super) fn insist(&self, told: Option<Value>) -> Result<(), StoreError> {
        match (self.ack, told) {
            (Ack::Memory, _) | (Ack::Fsync, None) => Ok(()),
            (Ack::Replicas(wanted), Some(Value::Int(confirmed))) if confirmed >= i64::from(wanted) => Ok(()),
            (Ack::Replicas(wanted), Some(Value::Int(confirmed))) => {
                Err(StoreError::MaybeApplied(format!("{confirmed} of {wanted} replicas confirmed it")))
            }
            (Ack::Fsync, Some(Value::Array(counts))) => match counts.first() {
                Some(Value::Int(local)) if *local > 0 => Ok(()),
                _ => Err(StoreError::MaybeApplied("it did not reach the server's disk in time".into())),
            },
            _ => Err(unexpected()),
        }
    }

    /// Asks a server that was just connected what it knows.
    pub(super) async fn learn(&self, connection: &MultiplexedConnection, limit: Duration) {
        if self.ack != Ack::Fsync || !self.knows_waitaof() {
            return;
        }
        let mut connection = connection.clone();
        // Waits for nothing.
        let asked = wait_for_disk(0, Duration::from_millis(1));
        let answer: RedisResult<Value> = match timeout(limit, asked.query_async(&mut connection)).await {
            Ok(answer) => answer,
            // What it doesn't say is taken for known: calls then fail rather than count as confirmed.
            Err(_) => return,
        };
        let unknown = |error: &redis::RedisError| error.detail().is_some_and(|text| text.starts_with("unknown command"));
        if answer.is_err_and(|error| unknown(&error)) {
            tracing::info!("a server without WAITAOF: ack = \"fsync\" relies on its appendfsync always");
            self.lacks_waitaof.store(true, Ordering::Relaxed);
        }
    }

    fn knows_waitaof(&self) -> bool {
        !self.lacks_waitaof.load(Ordering::Relaxed)
    }
}

/// Waits until so many local disks (none or one) have what this connection wrote.
fn wait_for_disk(local: u8, limit: Duration) -> Cmd {
    let mut wait = redis::cmd("WAITAOF");
    wait.arg(local).arg(0).arg(millis(limit));
    wait
}

impl Redis {
    /// The command that has a call confirmed.
    pub(super) fn wait(&self) -> Option<Cmd> {
        self.confirmation.wait()
    }

    /// Refuses an answer that was not confirmed.
    pub(super) fn insist(&self, told: Option<Value>) -> Result<(), StoreError> {
        self.confirmation.insist(told)
    }
}
