//! The store's client: its connections, its scripts, and the state that all its operations share.

use std::sync::atomic::AtomicU16;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use redis::{Cmd, ErrorKind, Pipeline, ServerErrorKind, Value};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::answer::{array, time_ms, unexpected};
use super::completed_hint::CompletedHint;
use super::connect::Connector;
use super::connection::{CallError, Commands};
use super::epochs::EpochTable;
use super::layout::KeyNames;
use super::lineage::LineageId;
use super::options::{ConnectError, Features, RedisAck, RedisOptions};
use super::recent_writes::RecentWrites;
use super::replication_ack::{Confirmation, probe_write};
use super::servers::{ServerPartitions, Servers};
use super::subscriber;
use super::time::ServerTime;
use super::wakes::OutboxWakes;
use crate::store::large::Large;
use crate::store::{Hub, StoreError};

/// A store in Redis servers. Dropping it closes its connections.
pub struct Redis {
    /// For tasks that outlive their caller.
    pub(super) itself: Weak<Redis>,
    pub(super) servers: Servers,
    /// Opens connections beside the shared ones.
    pub(super) connector: Connector,
    pub(super) names: KeyNames,
    pub(super) features: Features,
    pub(super) timeout: Duration,
    pub(super) ack: RedisAck,
    confirmation: Confirmation,
    pub(super) hub: Hub,
    pub(super) wakes: OutboxWakes,
    pub(super) scripts: Scripts,
    pub(super) time: ServerTime,
    pub(super) epochs: EpochTable,
    pub(super) recent_writes: RecentWrites,
    pub(super) completed_hint: CompletedHint,
    pub(super) large: Large,
    /// The partition at which the next [`crate::store::Records::due`] starts. It changes with each
    /// call, so that no partition starves.
    pub(super) next_partition: AtomicU16,
    _subscriber: AbortOnDropHandle<()>,
    /// The task of [`super::recovery`], which ends with the store.
    pub(super) recovery: OnceLock<AbortOnDropHandle<()>>,
    /// The task that wakes relays after a subscription began, which ends with the store.
    pub(super) waking: OnceLock<AbortOnDropHandle<()>>,
}

/// The scripts that the servers run.
pub(super) struct Scripts {
    pub(super) read: Script,
    pub(super) claim: Script,
    pub(super) change: Script,
    /// The same, for changes with events for sinks.
    pub(super) change_and_send: Script,
    /// The change script with the conditions of a claim.
    pub(super) guarded_change: Script,
    pub(super) guarded_change_and_send: Script,
    pub(super) renew: Script,
    pub(super) forget: Script,
    pub(super) set_note: Script,
    pub(super) trim: Script,
    pub(super) outbox_attend: Script,
    pub(super) outbox_leave: Script,
    pub(super) outbox_own: Script,
    pub(super) outbox_due: Script,
    pub(super) outbox_postpone: Script,
    pub(super) outbox_keep: Script,
    pub(super) outbox_remove: Script,
    pub(super) outbox_bury: Script,
    pub(super) outbox_requeue: Script,
    pub(super) outbox_restore: Script,
    pub(super) outbox_discard: Script,
    pub(super) outbox_replace: Script,
    pub(super) outbox_replace_dead: Script,
    pub(super) forget_observed: Script,
}

pub(super) struct Script {
    pub(super) text: &'static str,
    /// The SHA-1 of the text, under which the server caches the script.
    digest: String,
}

impl Script {
    fn new(text: &'static str) -> Script {
        Script { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }
}

const CHANGE: &str = concat!("local outbox_count = 0\n", include_str!("scripts/change.lua"));
const CHANGE_AND_SEND: &str = concat!(
    include_str!("scripts/outbox_counts.lua"),
    include_str!("scripts/outbox_insert.lua"),
    "local outbox_count = tonumber(ARGV[6])\n",
    include_str!("scripts/change.lua")
);
const GUARDED_CHANGE: &str = concat!(
    include_str!("scripts/guard.lua"),
    "local outbox_count = 0\n",
    include_str!("scripts/change.lua")
);
const GUARDED_CHANGE_AND_SEND: &str = concat!(
    include_str!("scripts/outbox_counts.lua"),
    include_str!("scripts/outbox_insert.lua"),
    include_str!("scripts/guard.lua"),
    "local outbox_count = tonumber(ARGV[6])\n",
    include_str!("scripts/change.lua")
);

impl Scripts {
    fn new() -> Scripts {
        Scripts {
            read: Script::new(include_str!("scripts/read.lua")),
            claim: Script::new(include_str!("scripts/claim.lua")),
            change: Script::new(CHANGE),
            change_and_send: Script::new(CHANGE_AND_SEND),
            guarded_change: Script::new(GUARDED_CHANGE),
            guarded_change_and_send: Script::new(GUARDED_CHANGE_AND_SEND),
            renew: Script::new(include_str!("scripts/renew.lua")),
            forget: Script::new(include_str!("scripts/forget.lua")),
            set_note: Script::new(include_str!("scripts/set_note.lua")),
            trim: Script::new(include_str!("scripts/trim.lua")),
            outbox_attend: Script::new(include_str!("scripts/outbox_attend.lua")),
            outbox_leave: Script::new(include_str!("scripts/outbox_leave.lua")),
            outbox_own: Script::new(include_str!("scripts/outbox_own.lua")),
            outbox_due: Script::new(include_str!("scripts/outbox_due.lua")),
            outbox_postpone: Script::new(concat!(
                include_str!("scripts/outbox_take.lua"),
                include_str!("scripts/outbox_postpone.lua")
            )),
            outbox_keep: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_take.lua"),
                include_str!("scripts/outbox_keep.lua")
            )),
            outbox_remove: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_take.lua"),
                include_str!("scripts/outbox_remove.lua")
            )),
            outbox_bury: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_take.lua"),
                include_str!("scripts/outbox_bury.lua")
            )),
            outbox_requeue: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_insert.lua"),
                include_str!("scripts/outbox_requeue.lua")
            )),
            outbox_restore: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_insert.lua"),
                include_str!("scripts/outbox_restore.lua")
            )),
            outbox_discard: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_discard.lua")
            )),
            outbox_replace: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_replace.lua")
            )),
            outbox_replace_dead: Script::new(concat!(
                include_str!("scripts/outbox_counts.lua"),
                include_str!("scripts/outbox_replace_dead.lua")
            )),
            forget_observed: Script::new(include_str!("scripts/forget_observed.lua")),
        }
    }
}

impl Redis {
    /// Makes a store that connects in the background. It neither reads nor begins epochs, so it
    /// can't claim.
    pub(super) fn without_recovery(options: RedisOptions) -> Result<Arc<Redis>, ConnectError> {
        let connector = Connector::new(&options)?;
        let (hub, wakes) = (Hub::remote(), OutboxWakes::new());
        let lookup_wanted = connector.replaced.clone();
        Ok(Arc::new_cyclic(|itself| Redis {
            itself: itself.clone(),
            confirmation: connector.confirmation.clone(),
            servers: Servers::open(connector.clone()),
            connector: connector.clone(),
            names: connector.names.clone(),
            features: options.features,
            timeout: options.timeout,
            ack: options.ack,
            hub: hub.clone(),
            wakes: wakes.clone(),
            scripts: Scripts::new(),
            time: ServerTime::new(),
            epochs: EpochTable::new(lookup_wanted, options.loss_pause),
            recent_writes: RecentWrites::default(),
            completed_hint: CompletedHint::default(),
            large: Large::default(),
            next_partition: AtomicU16::default(),
            _subscriber: AbortOnDropHandle::new(tokio::spawn(subscriber::run(
                connector, hub, wakes,
            ))),
            recovery: OnceLock::new(),
            waking: OnceLock::new(),
        }))
    }

    /// Returns the deadline of a call that starts now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends a command about a partition to its server.
    pub(super) async fn command(&self, partition: u16, command: &Cmd) -> Result<Value, StoreError> {
        Ok(self.servers.call(partition, Commands::One(command), None, self.deadline()).await?)
    }

    /// Sends commands about a partition to its server.
    pub(super) async fn pipeline(
        &self,
        partition: u16,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        array(self.servers.call(partition, Commands::Many(pipeline), None, self.deadline()).await?)
    }

    /// Sends commands to one server.
    ///
    /// # Errors
    /// A command fails, for example because the server doesn't hold its partition any more.
    pub(super) async fn pipeline_to(
        &self,
        group: &ServerPartitions,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        match group.server.call_strict(Commands::Many(pipeline), None, self.deadline()).await {
            Ok(values) => array(values),
            Err(error) => {
                self.servers.mark_stale();
                Err(error.into())
            }
        }
    }

    /// Runs a script with its keys and arguments. If the server lacks the script, after a restart
    /// or a flush of its scripts, the script is sent in full. With a `lineage`, sends nothing to a
    /// server of another lineage.
    pub(super) async fn run(
        &self,
        partition: u16,
        script: &Script,
        (keys, args): (&[Vec<u8>], &[&[u8]]),
        lineage: Option<LineageId>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let command = evaluate("EVALSHA", &script.digest, keys, args);
        match self.call_confirmed(partition, command, lineage, deadline).await {
            Err(CallError::Redis(error))
                if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {}
            done => return done,
        }
        // EVAL loads and runs the script in one step, and the server keeps it. With SCRIPT LOAD, a
        // flush could come between the two steps.
        let command = evaluate("EVAL", script.text, keys, args);
        self.call_confirmed(partition, command, lineage, deadline).await
    }

    /// Sends a command, and waits for the confirmation that the options require.
    pub(super) async fn call_confirmed(
        &self,
        partition: u16,
        command: Cmd,
        lineage: Option<LineageId>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let Some([probe, wait]) = self.wait_commands(partition) else {
            return self.servers.call(partition, Commands::One(&command), lineage, deadline).await;
        };
        let mut pipeline = Pipeline::with_capacity(3);
        // The probe comes before the wait, because the script may have written nothing.
        pipeline.add_command(command).add_command(probe).add_command(wait);
        let answer =
            self.servers.call(partition, Commands::Many(&pipeline), lineage, deadline).await?;
        let mut values = array(answer).map_err(CallError::Store)?;
        self.require_confirmed(values.pop()).map_err(CallError::Store)?;
        values.into_iter().next().ok_or_else(|| CallError::Store(unexpected()))
    }

    /// Returns the command that confirms the writes before it.
    pub(super) fn wait_command(&self) -> Option<Cmd> {
        self.confirmation.wait_command()
    }

    /// Returns the commands that confirm a call which may only have read. On servers since 7.2, a
    /// connection can wait only for its own writes. The probe is such a write. It is newer than all
    /// writes of other connections that the call has read.
    pub(super) fn wait_commands(&self, partition: u16) -> Option<[Cmd; 2]> {
        let wait = self.wait_command()?;
        let partition = Some(partition).filter(|_| self.servers.is_cluster());
        Some([probe_write(&self.names, partition), wait])
    }

    /// Checks the answer to [`Redis::wait_command`].
    ///
    /// # Errors
    /// The call was not confirmed, and may have been applied.
    pub(super) fn require_confirmed(&self, answer: Option<Value>) -> Result<(), StoreError> {
        self.confirmation.require_confirmed(answer)
    }

    /// Returns the server's time in ms since 1970. Asks the server only if no earlier answer had
    /// the time.
    pub(super) async fn now_ms(&self, partition: u16) -> Result<u64, StoreError> {
        if let Some(now_ms) = self.time.now_ms() {
            return Ok(now_ms);
        }
        let now_ms = time_ms(self.command(partition, &redis::cmd("TIME")).await?)?;
        self.time.set(now_ms);
        Ok(now_ms)
    }
}

/// Makes a command that runs a script. Allocates its memory in one step, because each request makes
/// two such commands.
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
