//! The outbox in Redis: events of a partition, by sink and operation. The change script writes them
//! in the same step as their record.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use redis::Value;
use tokio::sync::broadcast;
use tokio::time::sleep;

use super::answer::{array, time_ms, unexpected};
use super::client::{Redis, Script};
use super::connection::CallError;
use super::layout::member;
use super::outbox_names::RELAYS_PARTITION;
use super::outbox_values as values;
use super::time::millis;
use super::wakes::{self, OutboxWakes};
use super::written_events::{StampedEvent, StampedEvents};
use crate::key::{PARTITIONS, Slot};
use crate::store::StoreError;
use crate::store::dead_letters::{Burial, DeadLetterId};
use crate::store::outbox::{
    DeliveryAttempts, DueEvents, EventContent, EventKey, Outbox, OutboxEvent, OutboxWake,
    RelayFence, SinkBacklog, WaitingEvent,
};

/// The message after which every relay attends at once, because one of them left. No event has this
/// partition.
const LEFT: (u16, &str) = (OutboxWake::LEFT, "");

/// Pause before the backlogs are read again after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

impl Redis {
    /// Returns the events of a change with the present time.
    pub(super) async fn stamped_events(
        &self,
        slot: &Slot,
        events: &[OutboxEvent],
    ) -> Result<StampedEvents, StoreError> {
        if events.is_empty() {
            return Ok(StampedEvents::default());
        }
        let changed_ms = self.now_ms(slot.partition()).await?;
        let stamped = |event: &OutboxEvent| StampedEvent { changed_ms, event: event.clone() };
        Ok(StampedEvents(events.iter().map(stamped).collect()))
    }

    /// Runs a script of the outbox.
    pub(super) async fn run_outbox(
        &self,
        partition: u16,
        script: &Script,
        keys: &[Vec<u8>],
        args: &[&[u8]],
    ) -> Result<Value, CallError> {
        self.run(partition, script, (keys, args), None, self.deadline()).await
    }

    /// Writes events again that a server may have lost, without their record. Events that wait
    /// already stay as they are.
    pub(super) async fn restore_events(
        &self,
        slot: &Slot,
        events: &StampedEvents,
    ) -> Result<(), StoreError> {
        let mut keys = Vec::new();
        let args = events.script_args(&self.names, slot, &mut keys);
        if args.is_empty() {
            return Ok(());
        }
        let operation = member(slot);
        let mut all: Vec<&[u8]> = vec![&operation];
        all.extend(args.iter().map(Vec::as_slice));
        self.run_outbox(slot.partition(), &self.scripts.outbox_restore, &keys, &all).await?;
        Ok(())
    }

    /// Returns the keys of the scripts that change a waiting event.
    fn event_keys(&self, event: &EventKey) -> Vec<Vec<u8>> {
        let (partition, sink, names) = (event.slot.partition(), &event.sink, &self.names);
        vec![
            names.outbox_owner_key(partition),
            names.outbox_due_key(partition, sink),
            names.outbox_events_key(partition, sink),
            names.outbox_attempts_key(partition, sink),
            names.outbox_old_key(partition, sink),
        ]
    }
}

/// Wakes the relays of this process for everything that waits, whenever a subscription begins: the
/// wake-ups before it were missed. Ends with the store.
pub(super) async fn wake_waiting(store: Weak<Redis>, wakes: OutboxWakes) {
    loop {
        wakes.begun().await;
        loop {
            let Some(store) = store.upgrade() else { return };
            match store.backlog().await {
                Ok(backlog) => {
                    for waiting in backlog.iter().filter(|waiting| waiting.waiting > 0) {
                        wakes.send(waiting.partition, &waiting.sink);
                    }
                    break;
                }
                Err(error) => tracing::debug!(%error, "the waiting events were not counted"),
            }
            drop(store);
            sleep(RETRY_PAUSE).await;
        }
    }
}

#[async_trait]
impl Outbox for Redis {
    fn partition_count(&self) -> u16 {
        PARTITIONS
    }

    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        let (fence, lease) = (fence_bytes(relay), millis(lease));
        let keys = [self.names.outbox_relays_key()];
        let script = &self.scripts.outbox_attend;
        let answer = self.run_outbox(RELAYS_PARTITION, script, &keys, &[&fence, &lease]).await?;
        let relays = array(answer)?.iter().map(fence_of).collect::<Option<Vec<_>>>();
        let mut relays = relays.ok_or_else(unexpected)?;
        relays.sort_unstable();
        Ok(relays)
    }

    async fn leave(&self, relay: RelayFence) -> Result<(), StoreError> {
        let (channel, message) = (self.names.outbox_channel(), wakes::message(LEFT.0, LEFT.1));
        let keys = [self.names.outbox_relays_key()];
        let args: [&[u8]; 3] = [&fence_bytes(relay), &channel, &message];
        self.run_outbox(RELAYS_PARTITION, &self.scripts.outbox_leave, &keys, &args).await?;
        Ok(())
    }

    async fn own_partition(
        &self,
        partition: u16,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError> {
        let keys = [self.names.outbox_owner_key(partition)];
        let (fence, over) = (fence_bytes(fence), over.map(fence_bytes));
        let args: [&[u8]; 2] = [&fence, over.as_ref().map_or(&b""[..], |over| over)];
        is_done(self.run_outbox(partition, &self.scripts.outbox_own, &keys, &args).await)
    }

    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        let mut owners = vec![None; usize::from(PARTITIONS)];
        let owner_key = |partition| self.names.outbox_owner_key(partition);
        for (partition, owner) in self.of_each_partition(owner_key).await? {
            if let Some(found) = owners.get_mut(usize::from(partition)) {
                *found = Some(fence_of(&Value::BulkString(owner)).ok_or_else(unexpected)?);
            }
        }
        Ok(owners)
    }

    async fn due_events(
        &self,
        partition: u16,
        sink: &str,
        limit: usize,
    ) -> Result<DueEvents, StoreError> {
        let names = &self.names;
        let keys = [
            names.outbox_due_key(partition, sink),
            names.outbox_events_key(partition, sink),
            names.outbox_attempts_key(partition, sink),
        ];
        let limit = limit.to_string();
        let args: [&[u8]; 1] = [limit.as_bytes()];
        due_of(sink, self.run_outbox(partition, &self.scripts.outbox_due, &keys, &args).await?)
    }

    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        let (partition, keys) = (event.slot.partition(), self.event_keys(event));
        let (operation, order) = (member(&event.slot), event.order.encode());
        let (attempts, pause) = (values::attempts(attempts), millis(pause));
        let (fence, round) = (fence_bytes(fence), round.to_string());
        let (sink, round) = (event.sink.as_bytes(), round.as_bytes());
        let args: [&[u8]; 7] = [&fence, &operation, &order, sink, round, &attempts, &pause];
        is_done(self.run_outbox(partition, &self.scripts.outbox_postpone, &keys, &args).await)
    }

    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError> {
        let (operation, order) = (member(&event.slot), event.order.encode());
        let (fence, round) = (fence_bytes(fence), round.to_string());
        let (sink, round, content) = (event.sink.as_bytes(), round.as_bytes(), content.encode());
        let args: [&[u8]; 6] = [&fence, &operation, &order, sink, round, &content];
        let (partition, mut keys) = (event.slot.partition(), self.event_keys(event));
        keys.push(self.names.outbox_counts_key(partition));
        is_done(self.run_outbox(partition, &self.scripts.outbox_keep, &keys, &args).await)
    }

    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        let (operation, order) = (member(&event.slot), event.order.encode());
        let (fence, round) = (fence_bytes(fence), round.to_string());
        let sink = event.sink.as_bytes();
        let args: [&[u8]; 5] = [&fence, &operation, &order, sink, round.as_bytes()];
        let (partition, mut keys) = (event.slot.partition(), self.event_keys(event));
        keys.push(self.names.outbox_counts_key(partition));
        let script = &self.scripts.outbox_remove;
        let is_owner = is_done(self.run_outbox(partition, script, &keys, &args).await)?;
        if is_owner {
            self.recent_writes.remove_delivered(event);
        }
        Ok(is_owner)
    }

    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        let (partition, mut keys) = (event.slot.partition(), self.event_keys(event));
        keys.extend([
            self.names.outbox_counts_key(partition),
            self.names.outbox_dead_key(partition),
            self.names.outbox_dead_at_key(partition),
        ]);
        let (operation, order) = (member(&event.slot), event.order.encode());
        let (id, ending) = (DeadLetterId::of(event), values::letter_ending(&event.sink, burial));
        let round = round.to_string();
        let args: [&[u8]; 8] = [
            &fence_bytes(fence),
            &operation,
            &order,
            event.sink.as_bytes(),
            round.as_bytes(),
            id.as_bytes(),
            values::kind(burial.kind),
            &ending,
        ];
        is_done(self.run_outbox(partition, &self.scripts.outbox_bury, &keys, &args).await)
    }

    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        self.counted_backlog().await
    }

    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        partitions: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        self.oldest_written_ms(sink, partitions).await
    }

    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError> {
        let (partition, operation) = (slot.partition(), member(slot));
        let mut get = redis::cmd("HGET");
        get.arg(self.names.outbox_events_key(partition, sink)).arg(&operation);
        let events = match self.command(partition, &get).await? {
            Value::Nil => return Ok(Vec::new()),
            Value::BulkString(events) => values::waiting_events(sink, slot, &events),
            _ => return Err(unexpected()),
        };
        if events.is_empty() {
            return Ok(events);
        }
        let mut get = redis::cmd("HMGET");
        get.arg(self.names.outbox_attempts_key(partition, sink));
        for event in &events {
            get.arg([&operation[..], &event.key.order.encode()].concat());
        }
        let attempts = array(self.command(partition, &get).await?)?;
        let with_attempts =
            |(event, attempts)| WaitingEvent { attempts: values::attempts_of(attempts), ..event };
        Ok(events.into_iter().zip(&attempts).map(with_attempts).collect())
    }

    fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.wakes.receive()
    }
}

fn fence_bytes(fence: RelayFence) -> [u8; 8] {
    fence.0.to_be_bytes()
}

fn fence_of(value: &Value) -> Option<RelayFence> {
    let Value::BulkString(fence) = value else { return None };
    Some(RelayFence(u64::from_be_bytes(fence.as_slice().try_into().ok()?)))
}

/// Returns whether a script did what it was called for.
pub(super) fn is_done(answer: Result<Value, CallError>) -> Result<bool, StoreError> {
    match answer? {
        Value::Int(done) => Ok(done == 1),
        _ => Err(unexpected()),
    }
}

/// Decodes the answer of the script that reads due events.
fn due_of(sink: &str, answer: Value) -> Result<DueEvents, StoreError> {
    let mut parts = array(answer)?.into_iter();
    let mut next = || parts.next().ok_or_else(unexpected);
    let now_ms = time_ms(Value::Array(vec![next()?, next()?]))?;
    let next_due_ms = match next()? {
        Value::Nil => None,
        // A score: a number with a fraction or an exponent, if it is large.
        due_ms => Some(redis::from_redis_value::<f64>(due_ms).map_err(|_| unexpected())? as u64),
    };
    let rest: Vec<Value> = parts.collect();
    let read = rest.chunks_exact(4).map(|parts| values::waiting_event(sink, parts));
    let events = read.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    Ok(DueEvents { events, next_due_ms, now_ms })
}
