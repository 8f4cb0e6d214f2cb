//! Takes the lock of a resource in the store, and marks it as sent.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::resource_turns::ResourceTurn;
use super::state::Gate;
use crate::engine::{
    LockAdmission, LockRequest, Next, Policy, RETRY_AFTER_MAX, lock_admission, lock_holder,
    sent_lock, taken_lock,
};
use crate::key::Slot;
use crate::record::{Held, LockPhase, Record, State, Version};
use crate::refusal::Refusal;
use crate::store::{Events, StoreError, Swap, Watch};

/// How often a write may find another lock in the slot, before it is refused.
const LOOKS_MAX: usize = 32;

/// Time between two looks at a lock while no notification of a change arrives.
const POLL: Duration = Duration::from_secs(1);

/// The lock of a resource, as this process has written it.
pub(super) struct HeldLock {
    resource: Slot,
    record: Record,
    turn: ResourceTurn,
    /// Longest time until the write has an outcome.
    busy: Duration,
}

/// The times of a write.
#[derive(Debug, Clone, Copy)]
pub(super) struct LockTimes {
    /// When the write stops waiting for the lock.
    pub until: Instant,
    /// Longest time from now until the write has an outcome.
    pub busy: Duration,
}

impl HeldLock {
    /// Returns whether the write counts as sent already.
    fn is_sent(&self) -> bool {
        matches!(&self.record.state, State::Lock(lock) if lock.phase == LockPhase::Sent)
    }

    /// Ends the write. `is_settled` is whether its operation is settled: the lock is then free.
    pub fn end(self, is_settled: bool) {
        self.turn.end(is_settled.then_some(self.record.version));
    }
}

impl Gate {
    /// Takes the lock of a resource for a write. Waits until no other write holds it.
    ///
    /// # Errors
    /// [`Refusal::ResourceBusy`], [`Refusal::ResourceUncertain`], or the store failed.
    pub(super) async fn take_lock(
        &self,
        policy: &Policy,
        resource: &Slot,
        request: &LockRequest,
        times: LockTimes,
    ) -> Result<HeldLock, Refusal> {
        let turn = self.resource_turns.turn(resource, times.until).await;
        let mut turn = turn.ok_or_else(busy)?;
        let mut over = turn.take_free_version();
        let mut watch = None;
        for _ in 0..LOOKS_MAX {
            let (fresh, now_unix_ms) = (Version(self.entropy.next()), self.clock.unix_ms());
            let next = taken_lock(request, over, fresh, now_unix_ms, policy, times.busy);
            match self.write_lock(resource, over, &next).await? {
                Swap::Stored => {
                    let (resource, record) = (*resource, next.record);
                    return Ok(HeldLock { resource, record, turn, busy: times.busy });
                }
                Swap::Stale(lock) => {
                    over =
                        self.free_lock(policy, resource, request, lock, times, &mut watch).await?;
                }
                // A lock is never large.
                Swap::Large(_) => break,
            }
        }
        Err(busy())
    }

    /// Waits until nobody holds the lock. Returns the version in its slot.
    async fn free_lock(
        &self,
        policy: &Policy,
        resource: &Slot,
        request: &LockRequest,
        mut lock: Option<Held>,
        times: LockTimes,
        watch: &mut Option<(Slot, Watch)>,
    ) -> Result<Option<Version>, Refusal> {
        for _ in 0..LOOKS_MAX {
            let holder = match lock_holder(lock.as_ref()) {
                Some(operation) => self.load_for_lock(&operation).await?,
                None => None,
            };
            match lock_admission(lock.as_ref(), holder.as_ref(), request) {
                LockAdmission::Take(over) => return Ok(over),
                LockAdmission::Lost => return Err(busy()),
                LockAdmission::Uncertain { operation: slot, rest } => {
                    let retry_after = rest.min(UNCERTAIN_RETRY_MAX);
                    return Err(Refusal::ResourceUncertain { slot, retry_after });
                }
                LockAdmission::MarkOverdue(operation) => {
                    Box::pin(self.mark_overdue(&operation, policy))
                        .await
                        .map_err(|error| self.store_failed(&operation, &error))?;
                }
                LockAdmission::Wait(operation) => {
                    if !self.wait_for_holder(operation, times.until, watch).await {
                        return Err(busy());
                    }
                }
            }
            lock = self.load_for_lock(resource).await?;
        }
        Err(busy())
    }

    /// Waits until the record of the operation may have changed. Returns `false` when the time is
    /// over.
    async fn wait_for_holder(
        &self,
        operation: Slot,
        until: Instant,
        watch: &mut Option<(Slot, Watch)>,
    ) -> bool {
        let watch = match watch {
            Some((watched, watch)) if *watched == operation => watch,
            other => &mut other.insert((operation, self.store.records.watch(&operation))).1,
        };
        let poll = Instant::now() + self.entropy.jitter(POLL);
        tokio::select! {
            biased;
            changed = timeout_at(until, watch.changed()) => changed.is_ok(),
            () = sleep_until(poll) => Instant::now() < until,
        }
    }

    /// Marks a lock as sent. From now on the write may be sent, and the lock is held until its
    /// operation is settled.
    ///
    /// # Errors
    /// Another write has taken the lock, or the store failed. Nothing may be sent.
    pub(super) async fn mark_sent(
        &self,
        policy: &Policy,
        held: &mut HeldLock,
    ) -> Result<(), Refusal> {
        if held.is_sent() {
            return Ok(());
        }
        let next = sent_lock(&held.record, policy, held.busy).ok_or_else(busy)?;
        match self.write_lock(&held.resource, Some(held.record.version), &next).await? {
            Swap::Stored => {
                held.record = next.record;
                Ok(())
            }
            Swap::Stale(_) | Swap::Large(_) => Err(busy()),
        }
    }

    /// Writes a lock. A write with a lost answer is written once more, which changes nothing if
    /// the first one has arrived.
    async fn write_lock(
        &self,
        resource: &Slot,
        expected: Option<Version>,
        next: &Next,
    ) -> Result<Swap, Refusal> {
        let Next { record, lifetime, .. } = next;
        let write =
            || self.store.records.write(resource, expected, record, *lifetime, Events::NONE);
        let written = match write().await {
            Err(StoreError::MaybeApplied(_)) => {
                self.meter.store_errors.inc();
                write().await
            }
            written => written,
        };
        written.map_err(|error| self.store_failed(resource, &error))
    }

    async fn load_for_lock(&self, slot: &Slot) -> Result<Option<Held>, Refusal> {
        let loaded = self.store.records.load(slot).await;
        loaded.map_err(|error| self.store_failed(slot, &error))
    }
}

/// Longest time for which the client of a write waits for an earlier write that is uncertain.
const UNCERTAIN_RETRY_MAX: Duration = Duration::from_secs(60);

/// Returns the refusal of a write while another write holds the lock.
pub(super) fn busy() -> Refusal {
    Refusal::ResourceBusy { retry_after: RETRY_AFTER_MAX }
}
