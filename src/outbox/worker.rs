//! The worker of a sink: reads the events that are due, and makes attempts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::attempt::DeliveryAttempt;
use super::rate::Rate;
use super::shared::RelayShared;
use super::sink::Sink;
use crate::key::Slot;

/// Pause after a failed read of due events.
const READ_RETRY: Duration = Duration::from_secs(1);
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
    queue: std::collections::VecDeque<u16>,
    queued: BTreeSet<u16>,
    /// Times at which partitions are read again, and the same times by partition.
    timers: BTreeSet<(Instant, u16)>,
    timer_of: BTreeMap<u16, Instant>,
    attempts: JoinSet<bool>,
    /// The partition and operation of each attempt.
    running: HashMap<Id, (u16, Slot)>,
    busy: BTreeMap<u16, BTreeSet<Slot>>,
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
        self.attempts.len() < self.sink.settings.concurrency
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

    /// Reads partitions and begins attempts, as long as there is room.
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
            let room = self.sink.settings.concurrency - self.attempts.len();
            self.read(partition, room.min(allowed)).await;
        }
    }

    /// Reads a partition, and begins up to `room` attempts.
    async fn read(&mut self, partition: u16, room: usize) {
        if !self.shared.ownership.may_begin(partition) {
            if self.shared.ownership.owns(partition) {
                self.set_timer(partition, READ_RETRY);
            }
            return;
        }
        let busy = self.busy.get(&partition).map_or(0, BTreeSet::len);
        let limit = busy + room;
        let read_boot_ms = self.shared.clock.boot_ms();
        let read = self.shared.outbox.due_events(partition, self.sink.name(), limit).await;
        let due = match read {
            Ok(due) => due,
            Err(_) => return self.set_timer(partition, READ_RETRY),
        };
        let found = due.events.len();
        let mut begun = 0;
        for event in due.events {
            let slot = event.key.slot;
            let is_busy = self.busy.get(&partition).is_some_and(|slots| slots.contains(&slot));
            if is_busy || begun == room {
                continue;
            }
            let Some(running) = self.shared.ownership.begin(partition) else {
                return self.set_timer(partition, READ_RETRY);
            };
            let attempt = DeliveryAttempt {
                shared: self.shared.clone(),
                sink: self.sink.clone(),
                event,
                read_ms: due.now_ms,
                read_boot_ms,
                running,
            };
            let id = self.attempts.spawn(attempt.run()).id();
            self.running.insert(id, (partition, slot));
            self.busy.entry(partition).or_default().insert(slot);
            self.rate.use_one();
            begun += 1;
        }
        if begun > 0 && found == limit {
            // More may be due: in turn with the other partitions.
            self.enqueue(partition);
        } else if let Some(next_ms) = due.next_due_ms.filter(|_| found < limit) {
            let pause = Duration::from_millis(next_ms.saturating_sub(due.now_ms));
            self.set_timer(partition, pause);
        }
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
