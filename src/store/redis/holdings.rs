//! What this process wrote and the servers acknowledged, for as long as they may still forget it: claims under way, and
//! everything else of the last seconds.
//!
//! A server that fails over to a replica, or restarts from its disk, goes on without the last writes that it acknowledged. So
//! they are kept here, and written again when that happened. Bounded: in bytes, and in time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::key::{Slot, Space};
use crate::record::{Encoded, Fence, Lifetime, Version, head_fence, head_in_flight, head_version};

/// How long what is settled is held. Replicas are behind by less than a second unless something is wrong with them, and a
/// server that syncs its file every second loses two at most.
pub(super) const RECENT: Duration = Duration::from_secs(3);

/// Bytes held at most: some 4,000 operations, more than 1,000 a second for as long as they are held. Beyond, the oldest go
/// first. It is what writing them again may take, too: a few tenths of a second, in which new operations wait.
const BYTES_MAX: usize = 4 << 20;

/// What an entry takes beside its payload: itself, its places in the table and in the queue, and what those have to spare.
const ENTRY_BYTES: usize = 400;

/// A later change has a version so little further: versions of other operations in the slot are random.
const LATER_MAX: u64 = 16;

/// A record as it was acknowledged.
#[derive(Clone)]
pub(super) struct Holding {
    pub encoded: Encoded,
    pub lifetime: Lifetime,
    /// What was appended to the event log with it.
    pub event: Vec<u8>,
    until: Instant,
}

/// The holdings of a process.
#[derive(Default)]
pub(super) struct Holdings(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// While their lease runs, which renewals extend. As many as requests are under way: their own limit bounds them.
    claims: HashMap<Slot, Box<Holding>>,
    /// How many claims there may be until those whose lease is over are looked for.
    claims_until_swept: usize,
    settled: HashMap<Slot, Box<Holding>>,
    /// The settled ones in the order in which they end.
    ends: VecDeque<(Instant, Slot, Version)>,
    /// Of the settled ones.
    bytes: usize,
}

/// Claims below which none is looked for whose lease is over: those are few, and go when their operation is settled.
const CLAIMS_MIN: usize = 1024;

impl Holding {
    pub(super) fn version(&self) -> Version {
        head_version(&self.encoded.head)
    }

    pub(super) fn fence(&self) -> Fence {
        head_fence(&self.encoded.head)
    }

    /// Whether this is a later change of the record that has this version.
    pub(super) fn follows(&self, version: Version) -> bool {
        is_later(self.version(), version)
    }

    fn weight(&self) -> usize {
        ENTRY_BYTES + self.encoded.payload.len() + self.event.capacity()
    }
}

/// Whether a version is of a later change of the record that has the other one.
pub(super) fn is_later(version: Version, than: Version) -> bool {
    (1..=LATER_MAX).contains(&version.0.wrapping_sub(than.0))
}

impl Holdings {
    /// A write was acknowledged. Shadow records decide nothing and are not held.
    pub(super) fn acknowledged(&self, slot: &Slot, encoded: Encoded, lifetime: Lifetime, event: Vec<u8>) {
        if slot.space != Space::Enforced {
            return;
        }
        let now = Instant::now();
        let in_flight = head_in_flight(&encoded.head);
        let span = if in_flight { lifetime.due.unwrap_or(RECENT) } else { RECENT };
        let holding = Box::new(Holding { encoded, lifetime, event, until: now + span });
        let mut inner = self.lock();
        inner.forget(slot);
        if in_flight {
            inner.claims.insert(*slot, holding);
            inner.sweep(now);
        } else {
            inner.bytes += holding.weight();
            inner.ends.push_back((holding.until, *slot, holding.version()));
            inner.settled.insert(*slot, holding);
            inner.prune(now);
        }
    }

    /// A claim's lease was renewed.
    pub(super) fn renewed(&self, slot: &Slot, fence: Fence, lease: Duration) {
        if let Some(holding) = self.lock().claims.get_mut(slot).filter(|holding| holding.fence() == fence) {
            holding.until = Instant::now() + lease;
        }
    }

    /// The slot has another record.
    pub(super) fn superseded(&self, slot: &Slot) {
        self.lock().forget(slot);
    }

    /// Whether this very record is held.
    pub(super) fn holds(&self, slot: &Slot, is_it: impl Fn(&Holding) -> bool) -> bool {
        let inner = self.lock();
        inner.claims.get(slot).or_else(|| inner.settled.get(slot)).is_some_and(|holding| is_it(holding))
    }

    /// What is held of some partitions.
    pub(super) fn of(&self, partitions: &HashSet<u16>) -> Vec<(Slot, Holding)> {
        let now = Instant::now();
        let inner = self.lock();
        let all = inner.claims.iter().chain(&inner.settled);
        let standing = all.filter(|(slot, holding)| holding.until > now && partitions.contains(&slot.partition()));
        standing.map(|(slot, holding)| (*slot, Holding::clone(holding))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, slot: &Slot) {
        self.claims.remove(slot);
        self.forget_settled(slot);
    }

    /// Drops claims whose lease is over: those of attempts that ended without being settled.
    fn sweep(&mut self, now: Instant) {
        if self.claims.len() > self.claims_until_swept.max(CLAIMS_MIN) {
            self.claims.retain(|_, holding| holding.until > now);
            self.claims_until_swept = 2 * self.claims.len();
        }
    }

    /// Drops the settled ones that have ended, and the oldest while there are too many.
    fn prune(&mut self, now: Instant) {
        while let Some((end, slot, version)) = self.ends.front().copied() {
            if end > now && self.bytes <= BYTES_MAX {
                return;
            }
            self.ends.pop_front();
            if self.settled.get(&slot).is_some_and(|holding| holding.version() == version) {
                self.forget_settled(&slot);
            }
        }
    }

    fn forget_settled(&mut self, slot: &Slot) {
        if let Some(holding) = self.settled.remove(slot) {
            self.bytes -= holding.weight();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, State, encode};
    use crate::store::suite::{claim, completed, slot};

    const LEASE: Lifetime = Lifetime { keep: Duration::from_secs(600), due: Some(Duration::from_secs(30)), tombstone: None };
    const KEEP: Lifetime = Lifetime { due: None, ..LEASE };

    fn of(holdings: &Holdings, n: u64) -> Vec<Version> {
        let partitions = HashSet::from([slot(Space::Enforced, n).partition()]);
        holdings.of(&partitions).into_iter().map(|(_, holding)| holding.version()).collect()
    }

    fn keep(holdings: &Holdings, n: u64, record: &Record, lifetime: Lifetime) {
        holdings.acknowledged(&slot(Space::Enforced, n), encode(record), lifetime, Vec::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_held_while_its_lease_runs_and_a_result_for_seconds() {
        let holdings = Holdings::default();
        let running = claim(7, 1);
        keep(&holdings, 1, &running, LEASE);
        tokio::time::advance(Duration::from_secs(29)).await;
        holdings.renewed(&slot(Space::Enforced, 1), running.fence, Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(of(&holdings, 1), [running.version], "renewed");
        let result = Record { version: running.version.next(), ..completed(8) };
        keep(&holdings, 1, &result, KEEP);
        assert_eq!(of(&holdings, 1), [result.version], "the latest change alone");
        tokio::time::advance(RECENT).await;
        assert_eq!(of(&holdings, 1), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_has_a_bound_and_claims_are_not_crowded_out() {
        let holdings = Holdings::default();
        keep(&holdings, 0, &claim(1, 1), LEASE);
        let large = Encoded { payload: vec![0; 1 << 18].into(), ..encode(&completed(2)) };
        for n in 1..=40 {
            holdings.acknowledged(&slot(Space::Enforced, n), large.clone(), KEEP, Vec::new());
        }
        let inner = holdings.lock();
        assert!(inner.bytes <= BYTES_MAX && inner.settled.len() == 15, "{} in {} bytes", inner.settled.len(), inner.bytes);
        assert_eq!((inner.claims.len(), inner.ends.len()), (1, 15));
        assert!(inner.settled.contains_key(&slot(Space::Enforced, 40)), "the oldest went first");
    }

    #[tokio::test(start_paused = true)]
    async fn claims_whose_lease_is_over_are_looked_for_now_and_then() {
        let holdings = Holdings::default();
        for n in 0..=1024 {
            keep(&holdings, n, &claim(n, n), LEASE);
        }
        tokio::time::advance(Duration::from_secs(31)).await;
        for n in 2000..4100 {
            keep(&holdings, n, &claim(n, n), LEASE);
        }
        assert!(holdings.lock().claims.len() <= 2100);
    }

    #[test]
    fn only_a_later_change_of_the_same_record_follows() {
        let held = Holding { encoded: encode(&completed(1)), lifetime: KEEP, event: Vec::new(), until: Instant::now() };
        let version = held.version();
        let before = |n: u64| Version(version.0.wrapping_sub(n));
        assert!(held.follows(before(1)) && held.follows(before(2)));
        assert!(!held.follows(version) && !held.follows(version.next()) && !held.follows(before(LATER_MAX + 1)));
    }

    #[test]
    fn shadow_records_are_not_held() {
        let holdings = Holdings::default();
        holdings.acknowledged(&slot(Space::Shadow, 1), encode(&claim(1, 1)), LEASE, Vec::new());
        assert!(holdings.lock().claims.is_empty());
        assert!(matches!(claim(1, 1).state, State::InFlight { .. }));
    }
}
