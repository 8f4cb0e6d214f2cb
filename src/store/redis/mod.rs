//! Records in Redis or Valkey servers (6 or newer), shared by any number of gateways: one server, the primary that sentinels
//! name, or a cluster.
//!
//! Danger: the server's settings decide what a promise is worth. Behind replication an acknowledged write can be lost in a
//! failover, and a server that evicts keys or doesn't persist forgets claims.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use redis::{Cmd, ErrorKind, Pipeline, ServerErrorKind, Value};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::dial::Dialer;
use self::link::{Ask, Failure};
use self::servers::{Group, Servers, ask_whole};
pub use self::survey::{Grade, Remark};
use self::time::ServerTime;
use super::{Hub, Listing, Page, Store, StoreError, Swap, Watch};
use crate::key::Slot;
use crate::record::{Encoded, Fence, HEAD_BYTES, Held, Lifetime, Record, State, Version, encode};
use crate::tls::TrustError;

mod dial;
mod fault;
mod layout;
mod link;
mod listing;
mod sentinel;
mod servers;
mod subscriber;
mod survey;
mod time;

/// How long the trace of a [`Redis::ping`] stays, in ms.
const PING_KEEP_MS: u64 = 60_000;

/// Which servers are meant. URLs are `redis://`, `rediss://` or `unix:///path`; user, password and database as redis-rs
/// writes them (`redis://user:password@host:port/db`, `unix:///path?user=..&pass=..&db=..`).
#[derive(Clone)]
pub enum Place {
    /// This one.
    Server(String),
    /// A cluster, of which these nodes are asked first. All nodes are greeted as the first one.
    Cluster(Vec<String>),
    /// The primary that sentinels know by a name.
    Sentinel {
        /// The sentinels, with their own user and password.
        sentinels: Vec<String>,
        /// How the primary is greeted; host and port mean nothing.
        primary: String,
        /// What the sentinels call it.
        name: String,
    },
}

/// What a call waits for before its answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The primary's memory.
    Memory,
    /// So many replicas. Behind every call that claims, completes or reads a record stands a `WAIT` on the same
    /// connection: what was read is as good as what was written, or a replay could answer what a failover takes away.
    Replicas(u32),
    /// The disk. The server answers after it if `appendfsync always` is set, which [`Redis::survey`] looks at.
    Fsync,
}

/// Where the servers are and how to talk to them.
#[derive(Clone)]
pub struct Options {
    /// Which servers.
    pub place: Place,
    /// How long a call may take, the wait for a connection included.
    pub timeout: Duration,
    /// Certificates in PEM that `rediss://` trusts, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// What calls wait for.
    pub ack: Ack,
}

impl fmt::Debug for Options {
    /// Without the URLs, which may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("timeout", &self.timeout).field("ca_file", &self.ca_file).finish_non_exhaustive()
    }
}

/// Options that lead nowhere. The texts never contain the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The URL is none of a Redis server.
    #[error("the store's URL is not of the form redis://[user:password@]host[:port][/db], rediss://.. or unix:///path")]
    Url,
    /// The file can't be read.
    #[error("can't read the store's ca_file {}: {kind}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        kind: std::io::ErrorKind,
    },
    /// There is nobody to trust.
    #[error("TLS to the store can't be set up: {0}")]
    Trust(#[from] TrustError),
    /// The file has no certificates, or the URL is not a `rediss://` one.
    #[error("the store's ca_file {} must have certificates in PEM, and belongs to a rediss:// URL", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
    },
}

/// A store in Redis servers. Its connections end when it is dropped.
pub struct Redis {
    servers: Servers,
    timeout: Duration,
    ack: Ack,
    hub: Hub,
    scripts: Scripts,
    time: ServerTime,
    /// Where the next [`Store::due`] begins, so that no partition starves behind others.
    next_partition: std::sync::atomic::AtomicU16,
    _subscriber: AbortOnDropHandle<()>,
}

struct Scripts {
    swap: Script,
    renew: Script,
    forget: Script,
    agree: Script,
}

struct Script {
    text: &'static str,
    /// The name under which the server knows it.
    digest: String,
}

impl Script {
    fn new(text: &'static str) -> Script {
        Script { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }
}

impl Redis {
    /// Begins to connect, and goes on trying for as long as the store lives: a server that is down makes calls fail, not
    /// this one. Must be called within a tokio runtime.
    pub fn connect(options: Options) -> Result<Arc<Redis>, ConnectError> {
        let dialer = Dialer::new(&options)?;
        let hub = Hub::remote();
        Ok(Arc::new(Redis {
            servers: Servers::keep(dialer.clone()),
            timeout: options.timeout,
            ack: options.ack,
            hub: hub.clone(),
            scripts: Scripts {
                swap: Script::new(include_str!("swap.lua")),
                renew: Script::new(include_str!("renew.lua")),
                forget: Script::new(include_str!("forget.lua")),
                agree: Script::new(include_str!("agree.lua")),
            },
            time: ServerTime::new(),
            next_partition: Default::default(),
            _subscriber: AbortOnDropHandle::new(tokio::spawn(subscriber::run(dialer, hub))),
        }))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    async fn command(&self, partition: u16, command: &Cmd) -> Result<Value, StoreError> {
        Ok(self.servers.call(partition, Ask::One(command), self.deadline()).await?)
    }

    async fn pipeline(&self, partition: u16, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        array(self.servers.call(partition, Ask::Many(pipeline), self.deadline()).await?)
    }

    /// Sends commands to one server. What it doesn't hold (any more) is an error.
    async fn pipeline_to(&self, group: &Group, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        match ask_whole(&group.links, Ask::Many(pipeline), self.deadline()).await {
            Ok(values) => array(values),
            Err(failure) => {
                self.servers.suspect();
                Err(failure.into())
            }
        }
    }

    /// Runs a script; one that the server doesn't know (it restarted, or was told to forget it) is loaded first.
    async fn run(&self, partition: u16, script: &Script, keys: &[Vec<u8>], args: &[&[u8]]) -> Result<Value, StoreError> {
        let deadline = self.deadline();
        let command = evaluate("EVALSHA", &script.digest, keys, args);
        match self.confirmed(partition, command, deadline).await {
            Err(Failure::Answered(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {}
            done => return Ok(done?),
        }
        // EVAL carries the text along, so nothing can come between loading and running. The server keeps it.
        let command = evaluate("EVAL", script.text, keys, args);
        Ok(self.confirmed(partition, command, deadline).await?)
    }

    /// Sends a command, and has its answer confirmed.
    async fn confirmed(&self, partition: u16, command: Cmd, deadline: Instant) -> Result<Value, Failure> {
        let Some(wait) = self.wait() else { return self.servers.call(partition, Ask::One(&command), deadline).await };
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(command).add_command(wait);
        let answer = self.servers.call(partition, Ask::Many(&pipeline), deadline).await?;
        let mut values = array(answer).map_err(Failure::Refused)?;
        self.insist(values.pop()).map_err(Failure::Refused)?;
        values.pop().ok_or_else(|| Failure::Refused(unexpected()))
    }

    /// The command that waits for replicas. It counts what its own connection wrote before, so it has to go out with
    /// that. It blocks the connection, and so ends well before a call gives up.
    fn wait(&self) -> Option<Cmd> {
        let Ack::Replicas(wanted) = self.ack else { return None };
        let mut wait = redis::cmd("WAIT");
        wait.arg(wanted).arg(millis(self.timeout / 4));
        Some(wait)
    }

    /// Refuses an answer that too few replicas confirmed.
    fn insist(&self, told: Option<Value>) -> Result<(), StoreError> {
        let Ack::Replicas(wanted) = self.ack else { return Ok(()) };
        match told {
            Some(Value::Int(confirmed)) if confirmed >= i64::from(wanted) => Ok(()),
            Some(Value::Int(confirmed)) => {
                Err(StoreError::MaybeApplied(format!("{confirmed} of {wanted} replicas confirmed it")))
            }
            _ => Err(unexpected()),
        }
    }
}

impl Redis {
    /// What the swap script answered.
    fn swapped(&self, answer: Value) -> Result<Swap, StoreError> {
        match answer {
            Value::Int(1) => Ok(Swap::Stored),
            // Written, at this time.
            Value::Int(now_ms) => {
                self.time.told(u64::try_from(now_ms).map_err(|_| unexpected())?);
                Ok(Swap::Stored)
            }
            Value::Nil => Ok(Swap::Stale(None)),
            // Settled: without the time.
            Value::BulkString(_) => {
                let mut held = held(answer, 0)?;
                held.iter_mut().for_each(|held| held.now_ms = held.written_ms.max(self.time.now_ms().unwrap_or(0)));
                Ok(Swap::Stale(held))
            }
            Value::Array(parts) => {
                let mut parts = parts.into_iter();
                let value = parts.next().ok_or_else(unexpected)?;
                let now_ms = time_ms(Value::Array(parts.collect()))?;
                self.time.told(now_ms);
                Ok(Swap::Stale(held(value, now_ms)?))
            }
            _ => Err(unexpected()),
        }
    }

    /// The server's time, asked for only if no answer told it yet.
    async fn now_ms(&self, partition: u16) -> Result<u64, StoreError> {
        if let Some(now_ms) = self.time.now_ms() {
            return Ok(now_ms);
        }
        let now_ms = time_ms(self.command(partition, &redis::cmd("TIME")).await?)?;
        self.time.told(now_ms);
        Ok(now_ms)
    }
}

/// A command that runs a script. All of its memory is taken at once: it is made twice for every request.
fn evaluate(name: &str, script: &str, keys: &[Vec<u8>], args: &[&[u8]]) -> Cmd {
    const COUNT_BYTES: usize = 20;
    let bytes = keys.iter().map(Vec::len).sum::<usize>() + args.iter().map(|arg| arg.len()).sum::<usize>();
    let mut command = Cmd::with_capacity(3 + keys.len() + args.len(), name.len() + script.len() + COUNT_BYTES + bytes);
    command.arg(name).arg(script).arg(keys.len());
    keys.iter().map(Vec::as_slice).chain(args.iter().copied()).for_each(|part| {
        command.arg(part);
    });
    command
}

#[async_trait]
impl Store for Redis {
    async fn swap(&self, slot: &Slot, expected: Option<Version>, next: &Record, lifetime: Lifetime) -> Result<Swap, StoreError> {
        let Encoded { head, payload } = encode(next);
        let heeds_tombstone = matches!(next.state, State::InFlight { .. }) && lifetime.tombstone.is_some();
        let tombstone_ms = lifetime.tombstone.filter(|_| matches!(next.state, State::Completed { .. })).map(millis);
        let mut keys = vec![layout::record_key(slot), layout::due_key(slot.partition())];
        if heeds_tombstone || tombstone_ms.is_some() {
            keys.push(layout::tombstone_key(slot));
        }
        let expected = expected.map(|version| version.0.to_be_bytes());
        let expected: &[u8] = expected.as_ref().map_or(b"", |version| version);
        let (keep, member) = (millis(lifetime.keep), layout::member(slot));
        let answer = match (lifetime.due, tombstone_ms) {
            (Some(due), _) => {
                let args: [&[u8]; 6] = [expected, &keep, &member, &head, &millis(due), &payload];
                self.run(slot.partition(), &self.scripts.swap, &keys, &args).await?
            }
            (None, None) => {
                let value = layout::stamped(&head, self.now_ms(slot.partition()).await?, &payload);
                self.run(slot.partition(), &self.scripts.swap, &keys, &[expected, &keep, &member, &value]).await?
            }
            (None, Some(tombstone_ms)) => {
                let now_ms = self.now_ms(slot.partition()).await?;
                let value = layout::stamped(&head, now_ms, &payload);
                let expired = encode(&Record { state: State::Expired, ..next.clone() });
                let tombstone = layout::stamped(&expired.head, now_ms, &expired.payload);
                let args: [&[u8]; 7] = [expected, &keep, &member, &value, b"", &tombstone_ms, &tombstone];
                self.run(slot.partition(), &self.scripts.swap, &keys, &args).await?
            }
        };
        self.swapped(answer)
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let mut pipeline = redis::pipe();
        // The time comes first: a lease that is renewed in between must not look as if it were over.
        pipeline.cmd("TIME").cmd("GET").arg(layout::record_key(slot));
        if let Some(wait) = self.wait() {
            pipeline.add_command(wait);
        }
        let mut values = self.pipeline(slot.partition(), &pipeline).await?.into_iter();
        let (Some(time), Some(value)) = (values.next(), values.next()) else { return Err(unexpected()) };
        self.insist(values.next())?;
        held(value, time_ms(time)?)
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME").cmd("MGET").arg(layout::record_key(slot)).arg(layout::tombstone_key(slot));
        if let Some(wait) = self.wait() {
            pipeline.add_command(wait);
        }
        let mut values = self.pipeline(slot.partition(), &pipeline).await?.into_iter();
        let (Some(time), Some(Value::Array(found))) = (values.next(), values.next()) else { return Err(unexpected()) };
        self.insist(values.next())?;
        let first = found.into_iter().find(|value| *value != Value::Nil).unwrap_or(Value::Nil);
        held(first, time_ms(time)?)
    }

    async fn renew(&self, slot: &Slot, fence: Fence, lease: Duration, keep: Duration) -> Result<bool, StoreError> {
        // The end of the head of a record that is in flight under this fence.
        let mut running = [0; HEAD_BYTES - 8];
        running[..8].copy_from_slice(&fence.0.to_be_bytes());
        running[8] = layout::IN_FLIGHT;
        let keys = [layout::record_key(slot), layout::due_key(slot.partition())];
        let (lease, keep) = (millis(lease), millis(keep));
        let args: [&[u8]; 4] = [&running, &lease, &keep, &layout::member(slot)];
        Ok(self.run(slot.partition(), &self.scripts.renew, &keys, &args).await? == Value::Int(1))
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.overdue(limit).await
    }

    async fn list(&self, listing: Listing, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        match listing {
            Listing::Unsettled => self.list_unsettled(cursor, limit.max(1)).await,
            Listing::All => self.list_all(cursor, limit.max(1)).await,
        }
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.hub.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.servers.complete()?;
        let groups = self.servers.groups();
        // A write, because a replica, or a server that is out of memory, answers PING as well.
        let ping = async |group: &Group| {
            let partition = group.partitions.first().copied().filter(|_| self.servers.is_cluster());
            let mut set = redis::pipe();
            set.cmd("SET").arg(layout::ping_key(partition)).arg("").arg("PX").arg(PING_KEEP_MS);
            if let Some(wait) = self.wait() {
                set.add_command(wait);
            }
            self.insist(self.pipeline_to(group, &set).await?.pop())
        };
        try_join_all(groups.iter().map(ping)).await.map(drop)
    }

    async fn identities(&self) -> Result<Option<String>, StoreError> {
        let mut get = redis::cmd("GET");
        get.arg(layout::identities_key());
        let kept = self.command(layout::IDENTITIES_PARTITION, &get).await?;
        redis::from_redis_value(kept).map_err(|_| unexpected())
    }

    async fn set_identities(&self, expected: Option<&str>, next: &str) -> Result<bool, StoreError> {
        let args = [expected.unwrap_or_default().as_bytes(), next.as_bytes()];
        let keys = [layout::identities_key()];
        Ok(self.run(layout::IDENTITIES_PARTITION, &self.scripts.agree, &keys, &args).await? == Value::Int(1))
    }
}

fn array(answer: Value) -> Result<Vec<Value>, StoreError> {
    match answer {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected()),
    }
}

fn held(value: Value, now_ms: u64) -> Result<Option<Held>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(layout::read(bytes, now_ms)?)),
        _ => Err(unexpected()),
    }
}

/// Milliseconds since 1970 of an answer to TIME: seconds and microseconds, in text.
fn time_ms(answer: Value) -> Result<u64, StoreError> {
    let (seconds, micros): (u64, u64) = redis::from_redis_value(answer).map_err(|_| unexpected())?;
    Ok(seconds * 1000 + micros / 1000)
}

/// A span as the scripts take it. At least 1 ms: the server refuses to keep a key for none.
fn millis(span: Duration) -> Vec<u8> {
    let mut text = Vec::new();
    layout::decimal(&mut text, u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, MILLIS_MAX));
    text
}

/// About 3000 years: added to any time, it stays a whole number in Lua, whose integers end at 2^53.
const MILLIS_MAX: u64 = 100_000_000_000_000;

fn unexpected() -> StoreError {
    StoreError::MaybeApplied("the server gave an answer that this version doesn't know".into())
}

#[cfg(test)]
mod tests;
