//! Records in Redis or Valkey servers (6 or newer), shared by any number of gateways: one server, the primary that sentinels
//! name, or a cluster.
//!
//! Danger: the server's settings decide what a promise is worth. Behind replication an acknowledged write can be lost in a
//! failover, and a server that evicts keys or doesn't persist forgets claims.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use redis::{Cmd, ErrorKind, Pipeline, ServerErrorKind, Value};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::confirm::Confirmation;
pub use self::copy::CopiedRedis;
use self::dial::Dialer;
pub use self::epoch::QUIET;
use self::epoch::{Epochs, Generation};
pub use self::holdings::{Assertion, Holding, Holdings, RECENT};
use self::layout::Names;
use self::link::{Ask, Failure};
pub use self::presence::Presence;
pub use self::rights::Features;
use self::servers::{Group, Servers, ask_whole};
use self::settled::Settled;
pub use self::survey::{Grade, Remark};
use self::time::{ServerTime, millis, time_ms};
pub use self::tracker::track;
use self::write::Change;
use super::{
    EventSource, Hub, IdentityNotes, ListError, Listing, Note, Page, Records, StoreError, Swap,
    Watch,
};
use crate::key::Slot;
use crate::record::{Fence, HEAD_BYTES, Held, Lifetime, Record, State, Version, encode};
use crate::store::large::Large;
use crate::telemetry::BreakerMeter;
use crate::tls::{ClientFiles, IdentityError, TrustError};

mod breaker;
mod confirm;
mod copy;
mod dial;
mod epoch;
mod fault;
mod holdings;
mod large;
mod layout;
mod link;
mod listing;
mod log;
mod presence;
mod rights;
mod sentinel;
mod servers;
mod settled;
mod subscriber;
mod survey;
mod time;
mod tracker;
mod write;

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
    /// The server's disk. Servers since 7.2 are made to say so, by a `WAITAOF` in the same places. Older ones answer after it
    /// if `appendfsync always` is set, which [`Redis::survey`] looks at.
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
    /// The certificate that is shown to servers of `rediss://`.
    pub client: Option<ClientFiles>,
    /// What calls wait for.
    pub ack: Ack,
    /// How long operations that the servers don't know are refused after they may have lost some: [`QUIET`] where none must
    /// run twice. Zero: not at all; what this process holds is written again all the same.
    pub quiet: Duration,
    /// Where it is counted whether calls are spared.
    pub breakers: BreakerMeter,
    /// What the names of all keys and channels begin with: 1 to 64 letters, digits, `_` or `-`. Stores of different namespaces
    /// have nothing in common.
    pub namespace: String,
    /// What else is used of the servers.
    pub features: Features,
}

impl fmt::Debug for Options {
    /// Without the URLs, which may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("timeout", &self.timeout)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

/// Options that lead nowhere. The texts never contain the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The URL is none of a Redis server.
    #[error(
        "the store's URL is not of the form redis://[user:password@]host[:port][/db], rediss://.. or unix:///path"
    )]
    Url,
    /// The namespace is not one.
    #[error("a namespace has 1 to 64 letters, digits, _ or -")]
    Namespace,
    /// The file can't be read.
    #[error("can't read the store's ca_file {}: {kind}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        kind: std::io::ErrorKind,
    },
    /// The certificate that is shown to the servers can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
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
    /// For tasks that outlive their caller.
    itself: Weak<Redis>,
    servers: Servers,
    /// Makes connections beside the shared ones.
    dialer: Dialer,
    names: Names,
    features: Features,
    timeout: Duration,
    ack: Ack,
    confirmation: Confirmation,
    hub: Hub,
    scripts: Scripts,
    time: ServerTime,
    epochs: Epochs,
    holdings: Holdings,
    settled: Settled,
    large: Large,
    /// Where the next [`Records::due`] begins, so that no partition starves behind others.
    next_partition: std::sync::atomic::AtomicU16,
    _subscriber: AbortOnDropHandle<()>,
    /// Finds out what claims go by; ends with the store.
    keeper: OnceLock<AbortOnDropHandle<()>>,
}

struct Scripts {
    read: Script,
    swap: Script,
    renew: Script,
    forget: Script,
    agree: Script,
    trim: Script,
    forget_observed: Script,
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
        let store = Redis::connect_without_epochs(options)?;
        // Only now: one that looks for a store that is not there yet takes it for one that is gone.
        let keeper =
            tokio::spawn(epoch::keep(Arc::downgrade(&store), store.dialer.replaced.clone()));
        let _ = store.keeper.set(AbortOnDropHandle::new(keeper));
        Ok(store)
    }

    /// The same, but nothing can be claimed, and no epoch is begun.
    fn connect_without_epochs(options: Options) -> Result<Arc<Redis>, ConnectError> {
        let dialer = Dialer::new(&options)?;
        let hub = Hub::remote();
        let wanted = dialer.replaced.clone();
        Ok(Arc::new_cyclic(|itself| Redis {
            itself: itself.clone(),
            confirmation: dialer.confirmation.clone(),
            servers: Servers::keep(dialer.clone()),
            dialer: dialer.clone(),
            names: dialer.names.clone(),
            features: options.features,
            timeout: options.timeout,
            ack: options.ack,
            hub: hub.clone(),
            scripts: Scripts {
                read: Script::new(include_str!("read.lua")),
                swap: Script::new(include_str!("swap.lua")),
                renew: Script::new(include_str!("renew.lua")),
                forget: Script::new(include_str!("forget.lua")),
                agree: Script::new(include_str!("agree.lua")),
                trim: Script::new(include_str!("trim.lua")),
                forget_observed: Script::new(include_str!("forget_observed.lua")),
            },
            time: ServerTime::new(),
            epochs: Epochs::new(wanted, options.quiet),
            holdings: Holdings::default(),
            settled: Settled::default(),
            large: Large::default(),
            next_partition: Default::default(),
            _subscriber: AbortOnDropHandle::new(tokio::spawn(subscriber::run(dialer, hub))),
            keeper: OnceLock::new(),
        }))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    async fn command(&self, partition: u16, command: &Cmd) -> Result<Value, StoreError> {
        Ok(self.servers.call(partition, Ask::One(command), None, self.deadline()).await?)
    }

    async fn pipeline(
        &self,
        partition: u16,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        array(self.servers.call(partition, Ask::Many(pipeline), None, self.deadline()).await?)
    }

    /// Sends commands to one server. What it doesn't hold (any more) is an error.
    async fn pipeline_to(
        &self,
        group: &Group,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        match ask_whole(&group.links, Ask::Many(pipeline), None, self.deadline()).await {
            Ok(values) => array(values),
            Err(failure) => {
                self.servers.suspect();
                Err(failure.into())
            }
        }
    }

    /// Runs a script with its keys and arguments; one that the server doesn't know (it restarted, or was told to forget it) is
    /// loaded first. `under`: see [`link::Links::call`].
    async fn run(
        &self,
        partition: u16,
        script: &Script,
        (keys, args): (&[Vec<u8>], &[&[u8]]),
        under: Option<Generation>,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let command = evaluate("EVALSHA", &script.digest, keys, args);
        match self.confirmed(partition, command, under, deadline).await {
            Err(Failure::Answered(error))
                if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {}
            done => return done,
        }
        // EVAL carries the text along, so nothing can come between loading and running. The server keeps it.
        let command = evaluate("EVAL", script.text, keys, args);
        self.confirmed(partition, command, under, deadline).await
    }

    /// Sends a command, and has its answer confirmed.
    async fn confirmed(
        &self,
        partition: u16,
        command: Cmd,
        under: Option<Generation>,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let Some([marker, wait]) = self.wait_behind(partition) else {
            return self.servers.call(partition, Ask::One(&command), under, deadline).await;
        };
        let mut pipeline = Pipeline::with_capacity(3);
        // The script may have found a record, and written nothing.
        pipeline.add_command(command).add_command(marker).add_command(wait);
        let answer = self.servers.call(partition, Ask::Many(&pipeline), under, deadline).await?;
        let mut values = array(answer).map_err(Failure::Refused)?;
        self.insist(values.pop()).map_err(Failure::Refused)?;
        values.into_iter().next().ok_or_else(|| Failure::Refused(unexpected()))
    }
}

impl Redis {
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
    let bytes =
        keys.iter().map(Vec::len).sum::<usize>() + args.iter().map(|arg| arg.len()).sum::<usize>();
    let mut command = Cmd::with_capacity(
        3 + keys.len() + args.len(),
        name.len() + script.len() + COUNT_BYTES + bytes,
    );
    command.arg(name).arg(script).arg(keys.len());
    keys.iter().map(Vec::as_slice).chain(args.iter().copied()).for_each(|part| {
        command.arg(part);
    });
    command
}

#[async_trait]
impl Records for Redis {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        event: EventSource<'_>,
    ) -> Result<Swap, StoreError> {
        let deadline = self.deadline();
        let in_flight = matches!(next.state, State::InFlight { .. });
        if in_flight
            && expected.is_none()
            && self.settled.knows(slot)
            && let Some(stands) = self.completed(slot, deadline).await?
        {
            return Ok(stands);
        }
        let change =
            Change { slot, expected, next, encoded: encode(next), lifetime, event: event() };
        let swapped = if in_flight {
            self.claim(change, deadline).await
        } else {
            self.change(change, deadline).await
        };
        let is_completed = match &swapped {
            Ok(Swap::Stored) => matches!(next.state, State::Completed { .. }),
            Ok(Swap::Stale(Some(held))) => matches!(held.record.state, State::Completed { .. }),
            Ok(Swap::Large(_)) => true,
            Ok(Swap::Stale(None)) | Err(_) => false,
        };
        if is_completed {
            self.settled.note(slot);
        }
        if !in_flight && matches!(swapped, Ok(Swap::Stored)) {
            self.hub.notify_unconfirmed(slot);
        }
        swapped
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.read(slot, false).await
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.read(slot, true).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        // The end of the head of a record that is in flight under this fence.
        let mut running = [0; HEAD_BYTES - 8];
        running[..8].copy_from_slice(&fence.0.to_be_bytes());
        running[8] = layout::IN_FLIGHT;
        let keys = [self.names.record_key(slot), self.names.due_key(slot.partition())];
        let args: [&[u8]; 4] = [&running, &millis(lease), &millis(keep), &layout::member(slot)];
        let partition = slot.partition();
        let before = self.epochs.current(partition);
        self.holdings.renewed(slot, fence, lease);
        let renewed =
            self.run(partition, &self.scripts.renew, (&keys, &args), None, self.deadline()).await?
                == Value::Int(1);
        let held = |holding: &Holding| holding.fence() == fence;
        if !renewed
            && self.holdings.holds(slot, held)
            && self.may_have_lost(partition, before).await?
        {
            // It is written again in a moment.
            return Err(StoreError::NotApplied("the store has lost the claim, with others".into()));
        }
        Ok(renewed)
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.overdue(limit).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
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
            set.add_command(confirm::marker(&self.names, partition));
            if let Some(wait) = self.wait() {
                set.add_command(wait);
            }
            self.insist(self.pipeline_to(group, &set).await?.into_iter().nth(1))
        };
        try_join_all(groups.iter().map(ping)).await?;
        self.epochs.all_standing(self.deadline()).await
    }
}

#[async_trait]
impl IdentityNotes for Redis {
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        let mut get = redis::cmd("MGET");
        get.arg(self.names.note_key(note)).arg(self.names.copy_key());
        let kept = self.command(layout::NOTES_PARTITION, &get).await?;
        let (note, copy): (Option<String>, Option<String>) =
            redis::from_redis_value(kept).map_err(|_| unexpected())?;
        // Whoever asks begins to use the store.
        if copy.is_some() { Err(copy::unfinished()) } else { Ok(note) }
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        let args = [expected.unwrap_or_default().as_bytes(), next.as_bytes()];
        let keys = [self.names.note_key(note)];
        let answer = self
            .run(
                layout::NOTES_PARTITION,
                &self.scripts.agree,
                (&keys, &args),
                None,
                self.deadline(),
            )
            .await?;
        Ok(answer == Value::Int(1))
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

fn unexpected() -> StoreError {
    StoreError::MaybeApplied("the server gave an answer that this version doesn't know".into())
}

#[cfg(test)]
mod tests;
