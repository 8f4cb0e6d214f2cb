//! How many new operations each scope may begin, so that a tenant who floods keys fills neither the store nor others' room.
//!
//! Counted by this gateway alone, in memory: a count that all gateways share would cost every first request another write.
//! Duplicates are never counted and never refused here: they are what the gateway is for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Slices that a retention is counted in. What was begun in a slice counts until it is a whole retention old, so that in no
/// retention more is begun than allowed; it may count for an eighth longer.
const SLICES: u64 = 8;
/// The slices of a whole retention, and the one that is running.
const COUNTS: usize = SLICES as usize + 1;

/// Scopes whose counts are remembered, twice at most: about 8 MiB. With more of them active, those that were quiet for
/// longest begin anew.
const SCOPES_MAX: usize = 32 * 1024;

/// How long a client is told to wait, at most and at least: a whole slice may be hours.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Counts new operations by route and scope.
pub(super) struct Quota {
    /// Per scope and retention; 0: unlimited.
    max: u64,
    counters: Arc<Mutex<Counters>>,
}

/// A route, and whose key it is.
type Whose = (Arc<str>, [u8; 32]);

/// Those that were used lately, and those before: when the first are too many they become the second, which are forgotten.
#[derive(Default)]
struct Counters {
    recent: HashMap<Whose, Counter>,
    earlier: HashMap<Whose, Counter>,
}

#[derive(Clone, Copy)]
struct Counter {
    /// The running slice.
    slice: u64,
    /// By slice, modulo their number.
    counts: [u32; COUNTS],
}

/// A new operation that counts for as long as this is kept, and for good once it has done something.
pub(super) struct Counted {
    quota: Arc<Quota>,
    whose: Whose,
    slice: u64,
    for_good: bool,
}

impl Quota {
    /// A quota of `max` new operations per scope and retention; 0 for none.
    pub fn new(max: usize) -> Arc<Quota> {
        Arc::new(Quota { max: max as u64, counters: Arc::default() })
    }

    /// The same with another limit: what was begun counts. What was begun without a limit does not.
    pub fn limited_to(&self, max: usize) -> Arc<Quota> {
        Arc::new(Quota { max: max as u64, counters: self.counters.clone() })
    }

    /// Whether there is room for one more; or else when to come back.
    pub fn room(&self, route: &Arc<str>, scope: &[u8; 32], retention: Duration, now_ms: u64) -> Result<(), Duration> {
        if self.max == 0 {
            return Ok(());
        }
        let slice_ms = slice_ms(retention);
        self.room_in(self.open().of(&(route.clone(), *scope)), slice_ms, now_ms)
    }

    /// Counts one more, or says when to come back. `None` where nothing is counted.
    pub fn take(
        self: &Arc<Quota>,
        route: &Arc<str>,
        scope: &[u8; 32],
        retention: Duration,
        now_ms: u64,
    ) -> Result<Option<Counted>, Duration> {
        if self.max == 0 {
            return Ok(None);
        }
        let slice_ms = slice_ms(retention);
        let (whose, slice) = ((route.clone(), *scope), now_ms / slice_ms);
        let mut counters = self.open();
        let counter = counters.of(&whose);
        self.room_in(counter, slice_ms, now_ms)?;
        counter.counts[place(slice)] = counter.counts[place(slice)].saturating_add(1);
        drop(counters);
        Ok(Some(Counted { quota: self.clone(), whose, slice, for_good: false }))
    }

    fn room_in(&self, counter: &mut Counter, slice_ms: u64, now_ms: u64) -> Result<(), Duration> {
        let slice = now_ms / slice_ms;
        counter.move_to(slice);
        if counter.sum() < self.max {
            return Ok(());
        }
        let wait_ms = counter.slices_until_room(slice).saturating_mul(slice_ms).saturating_sub(now_ms % slice_ms);
        Err(Duration::from_millis(wait_ms).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
    }

    /// The counters. A panic elsewhere can't leave them half changed: no code that can panic runs under the lock.
    fn open(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slice_ms(retention: Duration) -> u64 {
    u64::try_from(retention.as_millis()).unwrap_or(u64::MAX).div_ceil(SLICES).max(1)
}

fn place(slice: u64) -> usize {
    (slice % COUNTS as u64) as usize
}

impl Counters {
    fn of(&mut self, whose: &Whose) -> &mut Counter {
        if !self.recent.contains_key(whose) {
            if self.recent.len() >= SCOPES_MAX {
                self.earlier = std::mem::take(&mut self.recent);
            }
            let known = self.earlier.remove(whose).unwrap_or(Counter { slice: 0, counts: [0; COUNTS] });
            self.recent.insert(whose.clone(), known);
        }
        self.recent.entry(whose.clone()).or_insert(Counter { slice: 0, counts: [0; COUNTS] })
    }
}

impl Counter {
    /// Forgets what is older than a retention.
    fn move_to(&mut self, slice: u64) {
        let passed = slice.saturating_sub(self.slice).min(COUNTS as u64);
        (0..passed).for_each(|n| self.counts[place(slice - n)] = 0);
        self.slice = self.slice.max(slice);
    }

    fn sum(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// How many slices from now the oldest that counts is forgotten.
    fn slices_until_room(&self, slice: u64) -> u64 {
        let oldest = (0..COUNTS as u64).rev().find(|age| slice >= *age && self.counts[place(slice - age)] > 0);
        COUNTS as u64 - oldest.unwrap_or(0)
    }
}

impl Counted {
    /// It counts for the whole retention: something was done, or may have been.
    pub fn for_good(mut self) {
        self.for_good = true;
    }
}

impl Drop for Counted {
    /// What provably did nothing leaves no record to speak of.
    fn drop(&mut self) {
        if self.for_good {
            return;
        }
        let mut counters = self.quota.open();
        let counter = counters.of(&self.whose);
        if counter.slice.saturating_sub(self.slice) < COUNTS as u64 {
            let count = &mut counter.counts[place(self.slice)];
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const DAY_MS: u64 = 86_400_000;
    const ALICE: [u8; 32] = [1; 32];

    fn route(name: &str) -> Arc<str> {
        name.into()
    }

    /// Begins one operation that does something.
    fn begins(quota: &Arc<Quota>, scope: &[u8; 32], now_ms: u64) -> bool {
        quota.take(&route("payments"), scope, DAY, now_ms).map(|counted| counted.unwrap().for_good()).is_ok()
    }

    #[test]
    fn a_scope_begins_so_many_and_others_are_not_touched() {
        let quota = Quota::new(3);
        assert!((0..3).all(|_| begins(&quota, &ALICE, DAY_MS)));
        assert!((0..100).all(|_| !begins(&quota, &ALICE, DAY_MS)));
        assert!(quota.room(&route("payments"), &ALICE, DAY, DAY_MS).is_err());
        assert!((0..100).all(|_| quota.room(&route("payments"), &[2; 32], DAY, DAY_MS).is_ok()), "looking counts nothing");
        assert!(begins(&quota, &[2; 32], DAY_MS), "another scope");
        assert!(quota.take(&route("refunds"), &ALICE, DAY, DAY_MS).is_ok(), "another route");
    }

    #[test]
    fn in_no_retention_more_is_begun_than_allowed() {
        const MAX: usize = 10;
        let quota = Quota::new(MAX);
        let mut begun: Vec<u64> = Vec::new();
        // Somebody tries every 20 minutes for a week.
        for now_ms in (DAY_MS..8 * DAY_MS).step_by(20 * 60 * 1000) {
            if begins(&quota, &ALICE, now_ms) {
                begun.push(now_ms);
            }
            let alive = begun.iter().filter(|at| **at + DAY_MS > now_ms).count();
            assert!(alive <= MAX, "{alive} at {now_ms}");
        }
        assert!(begun.len() >= 6 * MAX, "and hardly less: {}", begun.len());
    }

    #[test]
    fn what_did_nothing_does_not_count() {
        let quota = Quota::new(1);
        for _ in 0..10 {
            drop(quota.take(&route("payments"), &ALICE, DAY, 0).unwrap());
        }
        assert!(begins(&quota, &ALICE, 0));
        assert!(!begins(&quota, &ALICE, 0));
        // What is given back after its slice was forgotten takes nothing from those that came later.
        let early = quota.take(&route("payments"), &[2; 32], DAY, 0).unwrap();
        assert!(begins(&quota, &[2; 32], 3 * DAY_MS));
        drop(early);
        assert!(!begins(&quota, &[2; 32], 3 * DAY_MS));
    }

    #[test]
    fn who_is_refused_is_told_when_to_come_back() {
        let quota = Quota::new(1);
        let refused = |now_ms| quota.take(&route("payments"), &ALICE, Duration::from_secs(80), now_ms).map(|_| ()).unwrap_err();
        quota.take(&route("payments"), &ALICE, Duration::from_secs(80), 5_000).unwrap().unwrap().for_good();
        assert_eq!(refused(5_000), RETRY_AFTER_MAX);
        assert_eq!(refused(60_000), Duration::from_secs(30), "nine slices of 10 s after 0");
        assert_eq!(refused(89_900), RETRY_AFTER_MIN);
        assert!(quota.take(&route("payments"), &ALICE, Duration::from_secs(80), 90_000).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_who_is_active_is_remembered() {
        let quota = Quota::new(1);
        assert!(begins(&quota, &ALICE, 0));
        for n in 0..3 * SCOPES_MAX as u64 {
            let mut scope = [9; 32];
            scope[..8].copy_from_slice(&n.to_be_bytes());
            assert!(begins(&quota, &scope, 0));
            if n % 1000 == 0 {
                assert!(!begins(&quota, &ALICE, 0), "after {n} others");
            }
        }
        let counters = quota.open();
        assert!(counters.recent.len() <= SCOPES_MAX && counters.earlier.len() <= SCOPES_MAX);
    }

    #[test]
    fn none_counts_nothing() {
        assert!(Quota::new(0).take(&route("payments"), &ALICE, DAY, 0).unwrap().is_none());
    }
}
