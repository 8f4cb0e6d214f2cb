//! A store of records in Redis or Valkey servers (version 6 or newer), shared by any number of
//! gateways: one server, the primary that sentinels name, or a cluster.
//!
//! Danger: a confirmed write is only as safe as the server's settings make it. With replication, a
//! failover can lose an acknowledged write. A server that evicts keys, or doesn't persist them,
//! loses claims.
//!
//! From the top down: this file implements [`Records`] with the modules `write` (the rules of a
//! write), `swap` (one conditional write), `large` (reads), `listing`, `log`, `presence`, `copy`
//! and `recovery` (after a loss of records). `outbox` and `dead_letters` implement the parts of
//! these names; `outbox_counts` reads their counts, and `outbox_copy` copies them. They share
//! `client`, which sends commands through `servers`, `cluster` and `connection`. `layout` and
//! `outbox_names` have the names of the keys, `outbox_values` the stored forms of events.
//! `scripts/` has the scripts that the servers run.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use redis::Value;
use tokio_util::task::AbortOnDropHandle;

use self::answer::unexpected;
pub use self::client::Redis;
pub use self::copy::CopiedRedis;
pub use self::epochs::LOSS_PAUSE;
use self::listing::DueTimeIndex;
pub use self::options::{ConnectError, Endpoint, Features, RedisAck, RedisOptions};
pub use self::presence::Presence;
pub use self::recent_writes::{RECENT_WRITE_TTL, RecentWrites};
use self::replication_ack::probe_write;
pub use self::restore_decision::{RecentWrite, RestoreDecision};
use self::servers::ServerPartitions;
use self::swap::RecordWrite;
use self::time::millis;
pub use self::tracker::track;
pub use self::written_events::WrittenEvents;
use super::{
    DueSagas, Events, IdentityNotes, ListError, Listing, Note, Page, Records, StoreError, Swap,
    Watch,
};
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, State, Version, encode};
pub use crate::store::{Grade, Remark};

mod answer;
mod backoff;
mod breaker;
mod client;
mod cluster;
mod completed_hint;
mod connect;
mod connection;
mod copy;
mod dead_letters;
mod earlier_events;
mod epochs;
mod fault;
mod large;
mod layout;
mod lineage;
mod listing;
mod log;
mod loss;
mod options;
mod outbox;
mod outbox_contents;
mod outbox_copy;
mod outbox_counts;
mod outbox_names;
mod outbox_values;
mod partition_map;
mod preflight;
mod presence;
mod recent_writes;
mod recovery;
mod replication_ack;
mod restore_decision;
mod rights;
mod sentinel;
mod servers;
mod subscriber;
mod swap;
mod time;
mod tracker;
mod transport;
mod wakes;
mod write;
mod written_events;

impl Redis {
    /// Makes a store that connects in the background, for as long as it exists. This function
    /// succeeds even if a server is down; calls then fail. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// An option is invalid.
    pub fn connect(options: RedisOptions) -> Result<Arc<Redis>, ConnectError> {
        let store = Redis::without_recovery(options)?;
        // The store must exist before the task starts: the task ends when it finds no store.
        let lookup_wanted = store.connector.replaced.clone();
        let recovery = tokio::spawn(recovery::run(Arc::downgrade(&store), lookup_wanted));
        let _ = store.recovery.set(AbortOnDropHandle::new(recovery));
        let waking = outbox::wake_waiting(Arc::downgrade(&store), store.wakes.clone());
        let _ = store.waking.set(AbortOnDropHandle::new(tokio::spawn(waking)));
        Ok(store)
    }
}

#[async_trait]
impl Records for Redis {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        let deadline = self.deadline();
        let in_flight = matches!(next.state, State::InFlight { .. });
        if next.state.has_lease()
            && expected.is_none()
            && self.completed_hint.is_likely(slot)
            && let Some(current) = self.completed(slot, deadline).await?
        {
            return Ok(current);
        }
        let outbox = self.stamped_events(slot, events.outbox).await?;
        let (sent, events) = (events.outbox, WrittenEvents { log: (events.log)(), outbox });
        let encoded = encode(next);
        let write = RecordWrite { slot, expected, next, encoded, lifetime, events };
        let swapped = if in_flight {
            self.claim(write, deadline).await
        } else {
            self.change(write, deadline).await
        };
        let is_completed = match &swapped {
            Ok(Swap::Stored) => matches!(next.state, State::Completed { .. }),
            Ok(Swap::Stale(Some(held))) => matches!(held.record.state, State::Completed { .. }),
            Ok(Swap::Large(_) | Swap::Stale(None)) | Err(_) => false,
        };
        if is_completed {
            self.completed_hint.record(slot);
        }
        if !in_flight && matches!(swapped, Ok(Swap::Stored)) {
            self.hub.notify_unconfirmed(slot);
            for event in sent {
                self.wakes.send_unconfirmed(slot.partition(), &event.sink);
            }
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
        let partition = slot.partition();
        let keys = [
            self.names.record_key(slot),
            self.names.due_key(partition),
            self.names.sagas_key(partition),
        ];
        let owner = fence.0.to_be_bytes();
        let args: [&[u8]; 4] = [&owner, &millis(lease), &millis(keep), &layout::member(slot)];
        let before = self.epochs.current(partition);
        self.recent_writes.extend_lease(slot, fence, lease);
        let renewed =
            self.run(partition, &self.scripts.renew, (&keys, &args), None, self.deadline()).await?
                == Value::Int(1);
        let is_own = |recent: &RecentWrite| recent.fence() == fence;
        if !renewed
            && self.recent_writes.holds(slot, is_own)
            && self.may_have_lost(partition, before).await?
        {
            // The recovery will restore the claim.
            return Err(StoreError::NotApplied(
                "the store has lost the claim and other records".into(),
            ));
        }
        Ok(renewed)
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        Ok(self.overdue(DueTimeIndex::Unsettled, limit).await?.0)
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        let (slots, now_ms) = self.overdue(DueTimeIndex::Sagas, limit).await?;
        Ok(DueSagas { slots, now_ms })
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        match listing {
            Listing::Unsettled => {
                self.list_due(DueTimeIndex::Unsettled, cursor, limit.max(1)).await
            }
            Listing::Sagas => self.list_due(DueTimeIndex::Sagas, cursor, limit.max(1)).await,
            Listing::All => self.list_all(cursor, limit.max(1)).await,
        }
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.hub.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.servers.complete()?;
        let groups = self.servers.groups();
        // A write instead of PING: a replica, or a server that is out of memory, answers PING too.
        let ping = async |group: &ServerPartitions| {
            let partition = group.partitions.first().copied().filter(|_| self.servers.is_cluster());
            let mut set = redis::pipe();
            set.add_command(probe_write(&self.names, partition));
            if let Some(wait) = self.wait_command() {
                set.add_command(wait);
            }
            self.require_confirmed(self.pipeline_to(group, &set).await?.into_iter().nth(1))
        };
        try_join_all(groups.iter().map(ping)).await?;
        self.epochs.wait_for_all(self.deadline()).await
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
        // A caller reads notes before it uses the store. So this error keeps gateways away from an
        // unfinished copy.
        if copy.is_some() { Err(epochs::unfinished_copy()) } else { Ok(note) }
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
                &self.scripts.set_note,
                (&keys, &args),
                None,
                self.deadline(),
            )
            .await?;
        Ok(answer == Value::Int(1))
    }
}

#[cfg(test)]
mod tests;
