//! The partitions that a relay owns, and the time for which it may begin attempts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::rules;
use crate::clock::Clock;
use crate::store::outbox::RelayFence;

/// The partitions of this process's relay. The tasks of the relay share it.
///
/// A relay has a term for as long as it renews its lease in time, and a fence for each term. If the
/// lease ends, other relays may have had its partitions meanwhile. So what began in an earlier term
/// changes nothing in a later one.
pub(super) struct Ownership {
    clock: Clock,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    fence: RelayFence,
    owned: BTreeSet<u16>,
    /// Owned partitions in which nothing may begin, because another relay gets them.
    leaving: BTreeSet<u16>,
    /// Attempts under way, by partition.
    running: BTreeMap<u16, usize>,
    /// Whether another relay took a partition.
    has_lost: bool,
    /// Number of changes of `owned` and `leaving`.
    changes: u64,
    lease_ms: u64,
    /// End of the lease, by [`Clock::boot_ms`]; `None` before the first renewal of the term.
    until_ms: Option<u64>,
}

/// An attempt under way. While it exists, its partition is not handed over.
pub(super) struct RunningAttempt {
    ownership: Arc<Ownership>,
    partition: u16,
    fence: RelayFence,
}

impl Ownership {
    /// Returns an ownership in its first term.
    pub fn new(clock: Clock, lease: Duration, fence: RelayFence) -> Arc<Ownership> {
        let (inner, changed) = (Mutex::new(Inner::of_term(fence, 0)), Notify::new());
        let ownership = Ownership { clock, inner, changed };
        ownership.set_lease(lease);
        Arc::new(ownership)
    }

    /// Changes the length of the lease, from the next renewal on.
    pub fn set_lease(&self, lease: Duration) {
        self.lock().lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    }

    /// Returns the length of the lease.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lock().lease_ms)
    }

    /// Returns the fence of the present term.
    pub fn fence(&self) -> RelayFence {
        self.lock().fence
    }

    /// Returns whether the lease has ended. A new term must begin before it is renewed.
    pub fn has_ended(&self) -> bool {
        rules::has_ended(self.clock.boot_ms(), self.lock().until_ms)
    }

    /// Begins a new term, without partitions. Returns the fence of the former one.
    pub fn begin_term(&self, fence: RelayFence) -> RelayFence {
        let mut inner = self.lock();
        let (former, lease_ms) = (inner.fence, inner.lease_ms);
        let (running, changes) = (std::mem::take(&mut inner.running), inner.changes + 1);
        *inner = Inner { running, changes, ..Inner::of_term(fence, lease_ms) };
        former
    }

    /// Renews the lease for a time. The store got the renewal at `from_ms` ([`Clock::boot_ms`]) or
    /// later, so its own lease ends later. Returns whether the lease had not ended meanwhile.
    #[must_use]
    pub fn renew(&self, from_ms: u64, lease: Duration) -> bool {
        let mut inner = self.lock();
        let is_in_time = !rules::has_ended(self.clock.boot_ms(), inner.until_ms);
        if is_in_time {
            let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            inner.until_ms = Some(from_ms.saturating_add(lease_ms));
        }
        is_in_time
    }

    /// Replaces the owned partitions, and those among them that another relay gets. Returns whether
    /// there is a new one.
    pub fn set(&self, owned: BTreeSet<u16>, leaving: BTreeSet<u16>) -> bool {
        let mut inner = self.lock();
        let has_new = owned
            .iter()
            .any(|partition| !inner.owned.contains(partition) || inner.leaving.contains(partition));
        if (&inner.owned, &inner.leaving) != (&owned, &leaving) {
            inner.changes += 1;
        }
        (inner.owned, inner.leaving) = (owned, leaving);
        has_new
    }

    /// Forgets a partition that another relay owns now.
    pub fn lose(&self, partition: u16) {
        let mut inner = self.lock();
        inner.owned.remove(&partition);
        inner.has_lost = true;
        inner.changes += 1;
    }

    /// Returns the number of changes of the partitions so far. While it stays the same, no other
    /// relay has owned a partition of this one.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Returns whether another relay took a partition since the last call.
    pub fn take_lost(&self) -> bool {
        std::mem::take(&mut self.lock().has_lost)
    }

    /// Returns whether the partition is owned.
    pub fn owns(&self, partition: u16) -> bool {
        self.lock().owned.contains(&partition)
    }

    /// Returns the number of owned partitions.
    pub fn count(&self) -> usize {
        self.lock().owned.len()
    }

    /// Returns whether an attempt may begin in a partition: at least a third of the lease must
    /// remain. A clock is used that also runs while the process is stopped.
    pub fn may_begin(&self, partition: u16) -> bool {
        let inner = self.lock();
        inner.owned.contains(&partition)
            && !inner.leaving.contains(&partition)
            && rules::may_begin(self.clock.boot_ms(), inner.until_ms, inner.lease_ms)
    }

    /// Begins an attempt, if one may begin.
    pub fn begin(self: &Arc<Self>, partition: u16) -> Option<RunningAttempt> {
        if !self.may_begin(partition) {
            return None;
        }
        let mut inner = self.lock();
        *inner.running.entry(partition).or_default() += 1;
        let fence = inner.fence;
        drop(inner);
        Some(RunningAttempt { ownership: self.clone(), partition, fence })
    }

    /// Returns whether an attempt is under way in a partition.
    pub fn is_running(&self, partition: u16) -> bool {
        self.lock().running.contains_key(&partition)
    }

    /// Waits until an attempt ends.
    pub async fn attempt_ended(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn of_term(fence: RelayFence, lease_ms: u64) -> Inner {
        Inner {
            fence,
            owned: BTreeSet::new(),
            leaving: BTreeSet::new(),
            running: BTreeMap::new(),
            has_lost: false,
            changes: 0,
            lease_ms,
            until_ms: None,
        }
    }
}

impl RunningAttempt {
    /// Returns the fence of the term in which the attempt began.
    pub fn fence(&self) -> RelayFence {
        self.fence
    }

    /// Returns whether the attempt may still send: its term continues, and a third of the lease
    /// remains.
    pub fn may_send(&self) -> bool {
        self.ownership.fence() == self.fence && self.ownership.may_begin(self.partition)
    }
}

impl Drop for RunningAttempt {
    fn drop(&mut self) {
        let mut inner = self.ownership.lock();
        if let Some(count) = inner.running.get_mut(&self.partition) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                inner.running.remove(&self.partition);
            }
        }
        drop(inner);
        self.ownership.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const FENCE: RelayFence = RelayFence(1);

    #[test]
    fn an_attempt_begins_only_in_an_owned_partition_and_while_a_third_of_the_lease_remains() {
        let (clock, time) = Clock::manual(5_000, 0);
        let ownership = Ownership::new(clock, LEASE, FENCE);
        assert!(ownership.renew(5_000, LEASE));
        assert!(ownership.set(BTreeSet::from([1, 2]), BTreeSet::from([2])));
        assert!(ownership.begin(3).is_none(), "not owned");
        assert!(ownership.begin(2).is_none(), "another relay gets it");
        time.pass_ms(20_000);
        let running = ownership.begin(1).unwrap();
        assert!(ownership.is_running(1) && running.may_send());
        time.pass_ms(1);
        assert!(ownership.begin(1).is_none() && !running.may_send());
        assert!(ownership.renew(25_001, LEASE));
        assert!(ownership.begin(1).is_some() && running.may_send());
        drop(running);
        assert!(!ownership.is_running(1));
        ownership.lose(1);
        assert!(ownership.begin(1).is_none());
    }

    #[test]
    fn after_its_lease_a_relay_begins_a_term_without_partitions_and_with_another_fence() {
        let (clock, time) = Clock::manual(5_000, 0);
        let ownership = Ownership::new(clock, LEASE, FENCE);
        assert!(ownership.renew(5_000, LEASE));
        ownership.set(BTreeSet::from([1]), BTreeSet::new());
        let running = ownership.begin(1).unwrap();
        time.pass_ms(30_000);
        assert!(ownership.has_ended() && !ownership.renew(35_000, LEASE));
        assert!(ownership.begin(1).is_none(), "a late renewal prolongs nothing");
        assert_eq!(ownership.begin_term(RelayFence(2)), FENCE);
        assert!(!ownership.has_ended() && ownership.renew(35_000, LEASE));
        assert!(ownership.begin(1).is_none(), "another relay may own it");
        ownership.set(BTreeSet::from([1]), BTreeSet::new());
        assert!(!running.may_send() && ownership.is_running(1));
        let next = ownership.begin(1).unwrap();
        assert_eq!((running.fence(), next.fence()), (FENCE, RelayFence(2)));
    }
}
