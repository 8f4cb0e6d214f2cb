//! Receives the server's reports about changes of cached records (CLIENT TRACKING with OPTIN for
//! each record), over a connection of its own.
//!
//! Danger: a message that the server sends while there is no connection is lost, and a connection
//! that hangs looks as if nothing changes. So a lost connection empties the cache, and the tracker
//! sends a probe several times a second. The probe is a write: a former primary that is a replica
//! now answers any other command, but gets changes late.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, PushInfo, PushKind, RedisError, Value};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::answer::UNREADABLE;
use super::backoff::{BACKOFF_MAX, ReconnectBackoff};
use super::connect::Connector;
use super::fault;
use super::layout::KeyNames;
use super::options::{ConnectError, RedisOptions};
use super::replication_ack::probe_write;
use super::transport::NewConnection;
use crate::key::Slot;
use crate::record::{HEAD_BYTES, head_completed, head_fence, head_version};
use crate::store::cache::{Confirmed, LocalCache};

/// Time between two probes. Several probes fit into the time for which the cache answers after a
/// probe.
const PERIOD: Duration = Duration::from_millis(250);

/// Limit for the records that one probe confirms.
const BATCH: usize = 64;

/// Commands that confirm a record.
const COMMANDS_PER_RECORD: usize = 3;

/// Removes changed records from `cache` for as long as the task runs, and confirms the records that
/// are `wanted`. If the server is down, the cache is empty, and nothing else fails. Must be called
/// within a tokio runtime.
///
/// # Errors
/// An option is invalid.
pub fn track(
    options: &RedisOptions,
    cache: Arc<LocalCache>,
    wanted: mpsc::Receiver<Slot>,
) -> Result<AbortOnDropHandle<()>, ConnectError> {
    let connector = Connector::new(options)?;
    Ok(AbortOnDropHandle::new(tokio::spawn(run(connector, cache, wanted))))
}

async fn run(connector: Connector, cache: Arc<LocalCache>, mut wanted: mpsc::Receiver<Slot>) {
    let mut backoff = ReconnectBackoff::default();
    let mut is_logged = false;
    loop {
        let ended = Arc::new(Notify::new());
        let reason = match connector
            .connect(listener(connector.names.clone(), cache.clone(), ended.clone()))
            .await
        {
            Ok(NewConnection { connection, driver: _driver, address }) => {
                connector.confirmation.detect_disk_ack(&connection, connector.timeout).await;
                let connected_at = Instant::now();
                let mut session = TrackerSession {
                    connector: &connector,
                    cache: &cache,
                    wanted: &mut wanted,
                    connection,
                };
                let reason = tokio::select! {
                    reason = session.follow() => reason,
                    () = ended.notified() => "the connection is lost".into(),
                    () = connector.until_replaced(&address) => {
                        "the sentinels name another primary".into()
                    }
                };
                cache.lost();
                if connected_at.elapsed() >= BACKOFF_MAX {
                    (backoff, is_logged) = (ReconnectBackoff::default(), false);
                }
                reason
            }
            Err(reason) => reason,
        };
        if !is_logged {
            tracing::warn!(reason, "the store reports no changes: the process keeps no records");
        }
        is_logged = true;
        backoff.wait().await;
    }
}

/// Makes the receiver of the messages that the server sends.
fn listener(
    names: KeyNames,
    cache: Arc<LocalCache>,
    ended: Arc<Notify>,
) -> impl Fn(PushInfo) + Send + Sync + 'static {
    move |info| match info.kind {
        PushKind::Invalidate => match info.data.first() {
            Some(Value::Array(keys)) => keys
                .iter()
                .filter_map(|key| slot_of(&names, key))
                .for_each(|slot| cache.changed(&slot)),
            // The server was flushed.
            _ => cache.lost(),
        },
        PushKind::Disconnection => {
            cache.lost();
            ended.notify_one();
        }
        _ => {}
    }
}

fn slot_of(names: &KeyNames, key: &Value) -> Option<Slot> {
    match key {
        Value::BulkString(key) => names.slot_of(key),
        _ => None,
    }
}

struct TrackerSession<'a> {
    connector: &'a Connector,
    cache: &'a LocalCache,
    wanted: &'a mut mpsc::Receiver<Slot>,
    connection: MultiplexedConnection,
}

impl TrackerSession<'_> {
    /// Confirms records and sends probes until a probe fails. Returns the reason.
    async fn follow(&mut self) -> String {
        let mut tracking = redis::pipe();
        tracking.cmd("CLIENT").arg("TRACKING").arg("ON").arg("OPTIN");
        if let Err(reason) = self.send(&tracking).await.and_then(no_errors) {
            return reason;
        }
        let mut slots = Vec::with_capacity(BATCH);
        loop {
            if let Err(reason) = self.confirm(&slots).await {
                return reason;
            }
            slots.clear();
            // After a timeout, and if no sender of slots is left, the next probe is due.
            let _ = timeout(PERIOD, self.wanted.recv_many(&mut slots, BATCH)).await;
        }
    }

    /// Reads the wanted records. From then on, the server reports their changes. The probe behind
    /// them shows that the server has reported all changes so far.
    async fn confirm(&mut self, slots: &[Slot]) -> Result<(), String> {
        let confirmation = &self.connector.confirmation;
        let mut pipeline = Pipeline::with_capacity(slots.len() * COMMANDS_PER_RECORD + 2);
        for slot in slots {
            let key = self.connector.names.record_key(slot);
            pipeline.cmd("CLIENT").arg("CACHING").arg("YES");
            pipeline.cmd("GETRANGE").arg(&key).arg(0).arg(HEAD_BYTES - 1);
            pipeline.cmd("PTTL").arg(&key);
        }
        // The probe is a write, so the wait for its confirmation covers everything before it, too.
        pipeline.add_command(probe_write(&self.connector.names, None));
        let wait = confirmation.wait_command();
        wait.into_iter().for_each(|wait| _ = pipeline.add_command(wait));

        let sent_ms = self.cache.clock().boot_ms();
        let mut values = self.send(&pipeline).await?;
        let mut after =
            values.split_off((slots.len() * COMMANDS_PER_RECORD).min(values.len())).into_iter();
        let written = match after.next() {
            Some(Value::ServerError(error)) => {
                let error = RedisError::from(error);
                if fault::is_replica(&error) {
                    return Err("it is a replica".into());
                }
                false
            }
            Some(_) => true,
            None => return Err(UNREADABLE.into()),
        };
        let sound = written && confirmation.require_confirmed(after.next()).is_ok();
        for (slot, answers) in slots.iter().zip(values.chunks(COMMANDS_PER_RECORD)) {
            let [_, head, life] = answers else { return Err(UNREADABLE.into()) };
            self.cache.confirm(slot, found(head, life, sent_ms).filter(|_| sound));
        }
        no_errors(values)?;
        self.cache.heard(sent_ms);
        Ok(())
    }

    async fn send(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, String> {
        let answer = self.connection.send_packed_commands(pipeline, 0, pipeline.len());
        match timeout(self.connector.timeout, answer).await {
            Ok(answer) => answer.map_err(|error| fault::of_connecting(&error)),
            Err(_) => Err("no answer in time".into()),
        }
    }
}

/// Fails if an answer is an error.
fn no_errors(values: Vec<Value>) -> Result<(), String> {
    match values
        .into_iter()
        .find_map(|value| if let Value::ServerError(error) = value { Some(error) } else { None })
    {
        Some(error) => Err(format!("the server answered {}", error.code())),
        None => Ok(()),
    }
}

/// Reads a completed record's head and remaining life.
fn found(head: &Value, life: &Value, sent_ms: u64) -> Option<Confirmed> {
    let (Value::BulkString(head), Value::Int(life_ms)) = (head, life) else { return None };
    let head: &[u8; HEAD_BYTES] = head.as_slice().try_into().ok()?;
    // Negative for an absent key, and for a key without an expiry.
    let life = Duration::from_millis(u64::try_from(*life_ms).ok()?);
    head_completed(head).then(|| Confirmed {
        version: head_version(head),
        fence: head_fence(head),
        life,
        asked_ms: sent_ms,
    })
}
