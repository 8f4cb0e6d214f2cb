//! The worker of a sink: reads the events that are due, and makes attempts.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::attempt::DeliveryAttempt;
use super::call::only_looks;
use super::due_buffer::{BufferedEvents, DueBuffer};
use super::rate::Rate;
use super::shared::RelayShared;
use super::sink::{Sink, SinkChannel};
use crate::key::Slot;
use crate::store::StoreError;
use crate::store::outbox::WaitingEvent;

/// Pause after a failed read of due events.
const READ_RETRY: Duration = Duration::from_secs(1);
/// Fewest events that a read asks for beyond those that begin at once. A read costs a round trip,
/// and hardly more with a few small events.
const AHEAD_MIN: usize = 8;
/// Longest time until a partition is read again. The store's clock and this one may differ, so a
/// long timer would be late.
const TIMER_MAX: Duration = Duration::from_secs(60);

/// The partitions that a worker should read. Other tasks add to it.
#[derive(Default)]
pub(super) struct ReadyPartitions {
    partitions: Mutex<BTreeSet<u16>>,
    added: Notify,
}

impl ReadyPartitions {
    /// Adds partitions, and wakes the worker.
    pub fn add(&self, partitions: impl IntoIterator<Item = u16>) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).extend(partitions);
        self.added.notify_one();
    }

    fn take(&self) -> BTreeSet<u16> {
        std::mem::take(&mut *self.partitions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The worker of a sink.
pub(super) struct Worker {
    shared: Arc<RelayShared>,
    sink: Arc<Sink>,
    ready: Arc<ReadyPartitions>,
    rate: Rate,
    /// Partitions to read, in turn.
    queue: VecDeque<u16>,
    queued: BTreeSet<u16>,
    /// Times at which partitions are read again, and the same times by partition.
    timers: BTreeSet<(Instant, u16)>,
    timer_of: BTreeMap<u16, Instant>,
    attempts: JoinSet<bool>,
    /// The partition and operation of each attempt.
    running: HashMap<Id, (u16, Slot)>,
    busy: BTreeMap<u16, BTreeSet<Slot>>,
    /// Events that were read, and are attempted when there is room.
    buffer: DueBuffer,
}

/// Due events of a partition, of operations without an attempt under way.
struct Batch {
    buffered: BufferedEvents,
    /// Whether the partition must be read again after these events.
    has_more: bool,
    /// How long until the next event is due, if none is before.
    next_due: Option<Duration>,
}

impl Worker {
    pub fn new(shared: Arc<RelayShared>, sink: Arc<Sink>, ready: Arc<ReadyPartitions>) -> Worker {
        Worker {
            rate: Rate::new(sink.settings.rate),
            shared,
            sink,
            ready,
            queue: Default::default(),
            queued: BTreeSet::new(),
            timers: BTreeSet::new(),
            timer_of: BTreeMap::new(),
            attempts: JoinSet::new(),
            running: HashMap::new(),
            busy: BTreeMap::new(),
            buffer: DueBuffer::default(),
        }
    }

    /// Delivers until `stop`. Returns when the last attempt has ended.
    pub async fn run(mut self, stop: CancellationToken) {
        let ready = self.ready.clone();
        loop {
            let next = self.next_time();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                () = ready.added.notified() => {
                    for partition in ready.take() {
                        self.enqueue(partition);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            self.enqueue_timers();
            self.begin_attempts(&stop).await;
        }
        while let Some(ended) = self.attempts.join_next_with_id().await {
            self.ended(ended);
        }
    }

    /// Returns the time at which there is something to do, if nothing happens before.
    fn next_time(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let may_begin = !self.queue.is_empty() && self.has_room() && !self.is_paused();
        let turn = may_begin.then(|| self.rate.next()).flatten();
        timer.into_iter().chain(turn).min()
    }

    fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Returns the number of attempts that may begin beside those under way.
    fn room(&self) -> usize {
        self.sink.settings.concurrency.saturating_sub(self.attempts.len())
    }

    /// Returns whether an attempt of the event only looks at a call that began.
    fn only_looks(&self, event: &WaitingEvent) -> bool {
        matches!(self.sink.channel, SinkChannel::Calls(_)) && only_looks(event)
    }

    fn is_paused(&self) -> bool {
        self.shared.states().of(self.sink.name()).pause.is_some()
    }

    fn enqueue(&mut self, partition: u16) {
        if self.queued.insert(partition) {
            self.queue.push_back(partition);
        }
    }

    fn enqueue_timers(&mut self) {
        let now = Instant::now();
        while let Some((_, partition)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.drop_timer(partition);
            self.enqueue(partition);
        }
    }

    fn ended(&mut self, ended: Result<(Id, bool), tokio::task::JoinError>) {
        let (id, is_owner) = match &ended {
            Ok((id, is_owner)) => (*id, *is_owner),
            Err(panicked) => (panicked.id(), true),
        };
        let Some((partition, slot)) = self.running.remove(&id) else { return };
        if let Some(slots) = self.busy.get_mut(&partition) {
            slots.remove(&slot);
            if slots.is_empty() {
                self.busy.remove(&partition);
            }
        }
        if !is_owner {
            self.shared.ownership.lose(partition);
        }
        match ended {
            Ok(_) => self.enqueue(partition),
            // An event that makes an attempt panic must not keep the worker busy.
            Err(_) => self.set_timer(partition, READ_RETRY),
        }
    }

    /// Begins attempts in the queued partitions, as long as there is room.
    async fn begin_attempts(&mut self, stop: &CancellationToken) {
        while self.has_room() && !self.is_paused() && !stop.is_cancelled() {
            let share = self.shared.ownership.count();
            let total = self.shared.outbox.partition_count();
            let allowed = self.rate.allowed(share, total);
            if allowed == 0 {
                return;
            }
            let Some(partition) = self.queue.pop_front() else { return };
            self.queued.remove(&partition);
            self.begin_in(partition, allowed).await;
        }
    }

    /// Begins attempts in a partition, with the events that were read before, or else with those of
    /// a new read: as many as there is room for, and at most `allowed` that may send.
    async fn begin_in(&mut self, partition: u16, mut allowed: usize) {
        let ownership = &self.shared.ownership;
        if !ownership.may_begin(partition) {
            if ownership.owns(partition) {
                self.set_timer(partition, READ_RETRY);
            }
            return;
        }
        let now_boot_ms = self.shared.clock.boot_ms();
        let batch = match self.buffer.take(partition, now_boot_ms, ownership.changes()) {
            Some(buffered) => Ok(Batch { buffered, has_more: true, next_due: None }),
            None => self.read(partition, self.room().min(allowed)).await,
        };
        let Ok(Batch { mut buffered, has_more, next_due }) = batch else {
            return self.set_timer(partition, READ_RETRY);
        };
        while self.has_room()
            && let Some(event) = buffered.events.pop_front()
        {
            // A look at a call sends nothing to the receiver, so the rate does not limit it.
            let sends = !self.only_looks(&event);
            if sends && allowed == 0 {
                buffered.events.push_front(event);
                break;
            }
            if !self.begin(partition, event, &buffered) {
                return self.set_timer(partition, READ_RETRY);
            }
            if sends {
                allowed -= 1;
                self.rate.use_one();
            }
        }
        let is_left = !buffered.events.is_empty();
        self.buffer.put(partition, buffered);
        if is_left || has_more {
            // In turn with the other partitions.
            self.enqueue(partition);
        } else if let Some(pause) = next_due {
            self.set_timer(partition, pause);
        }
    }

    /// Reads a partition: enough events for `room` attempts, and as many again as are under way.
    async fn read(&self, partition: u16, room: usize) -> Result<Batch, StoreError> {
        let none = BTreeSet::new();
        let busy = self.busy.get(&partition).unwrap_or(&none);
        // The store returns the events under way, too. Each read returns at least as many others,
        // so the cost of an attempt does not depend on the number of attempts under way.
        let limit = busy.len() + room + busy.len().max(AHEAD_MIN);
        let ownership = self.shared.ownership.changes();
        let read_boot_ms = self.shared.clock.boot_ms();
        let due = self.shared.outbox.due_events(partition, self.sink.name(), limit).await?;
        let has_more = due.events.len() == limit;
        let pause = |next_ms: u64| Duration::from_millis(next_ms.saturating_sub(due.now_ms));
        let next_due = due.next_due_ms.map(pause);
        let is_free = |event: &WaitingEvent| !busy.contains(&event.key.slot);
        let events = due.events.into_iter().filter(is_free).collect();
        let buffered = BufferedEvents { events, read_ms: due.now_ms, read_boot_ms, ownership };
        Ok(Batch { buffered, has_more, next_due })
    }

    /// Begins an attempt. Returns whether one may begin.
    fn begin(&mut self, partition: u16, event: WaitingEvent, from: &BufferedEvents) -> bool {
        let Some(running) = self.shared.ownership.begin(partition) else { return false };
        let slot = event.key.slot;
        let attempt = DeliveryAttempt {
            shared: self.shared.clone(),
            sink: self.sink.clone(),
            event,
            read_ms: from.read_ms,
            read_boot_ms: from.read_boot_ms,
            running,
        };
        let id = self.attempts.spawn(attempt.run()).id();
        self.running.insert(id, (partition, slot));
        self.busy.entry(partition).or_default().insert(slot);
        true
    }

    /// Sets the time at which a partition is read again, in place of an earlier one.
    fn set_timer(&mut self, partition: u16, pause: Duration) {
        self.drop_timer(partition);
        let at = Instant::now() + pause.min(TIMER_MAX);
        self.timers.insert((at, partition));
        self.timer_of.insert(partition, at);
    }

    fn drop_timer(&mut self, partition: u16) {
        if let Some(at) = self.timer_of.remove(&partition) {
            self.timers.remove(&(at, partition));
        }
    }
}
