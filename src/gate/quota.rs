//! How many new operations each scope may begin, so that a tenant who floods keys fills neither the store nor others' room.
//!
//! Counted by this gateway alone, in memory: a count that all gateways share would cost every first request another write.
//! Duplicates are never counted and never refused here: they are what the gateway is for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Slices that a retention is counted in. What is begun counts for a whole retention, its own: until its record ends, so that in
/// no retention more is begun than allowed. It may count for an eighth longer.
const SLICES: u64 = 8;

/// Most slices that one scope has: nine under one retention, and room for what was begun under others before a reload.
const SLICES_MAX: usize = 32;

/// Scopes whose counts are remembered, twice at most: about 20 MiB. With more of them active, those that were quiet for
/// longest begin anew.
const SCOPES_MAX: usize = 32 * 1024;

/// How long a client is told to wait, at most and at least: a whole slice may be hours.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Counts new operations by route and scope.
pub(super) struct Quota {
    /// Per scope and retention; `None`: unlimited.
    max: Option<u64>,
    /// Whether operations are counted: where there is a limit, and where there was one before a reload took it away.
    counts: bool,
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

/// Counts of one scope, by the moment at which they end (in ms), in that order. So a reload that changes the retention
/// changes nothing for what was begun before it.
#[derive(Clone, Default)]
struct Counter(Vec<Slice>);

#[derive(Clone, Copy)]
struct Slice {
    ends_ms: u64,
    count: u32,
}

/// A new operation that counts for as long as this is kept, and for good once it has done something.
pub(super) struct Counted {
    quota: Arc<Quota>,
    whose: Whose,
    ends_ms: u64,
    for_good: bool,
}

impl Quota {
    /// A quota of `max` new operations per scope and retention; 0 for none.
    pub fn new(max: usize) -> Arc<Quota> {
        Quota::counting(max, false, Arc::default())
    }

    /// The same with another limit: what was begun counts, also while a reload had taken the limit away. What was begun
    /// before the first limit does not.
    pub fn limited_to(&self, max: usize) -> Arc<Quota> {
        Quota::counting(max, self.counts, self.counters.clone())
    }

    fn counting(max: usize, counted: bool, counters: Arc<Mutex<Counters>>) -> Arc<Quota> {
        let max = (max > 0).then_some(max as u64);
        Arc::new(Quota { max, counts: counted || max.is_some(), counters })
    }

    /// Whether there is room for one more; or else when to come back.
    pub fn room(&self, route: &Arc<str>, scope: &[u8; 32], now_ms: u64) -> Result<(), Duration> {
        if self.max.is_none() {
            return Ok(());
        }
        self.room_in(self.open().of(&(route.clone(), *scope)), now_ms)
    }

    /// Counts one more, or says when to come back. `None` where nothing is counted.
    pub fn take(
        self: &Arc<Quota>,
        route: &Arc<str>,
        scope: &[u8; 32],
        retention: Duration,
        now_ms: u64,
    ) -> Result<Option<Counted>, Duration> {
        if !self.counts {
            return Ok(None);
        }
        let whose = (route.clone(), *scope);
        let mut counters = self.open();
        let counter = counters.of(&whose);
        self.room_in(counter, now_ms)?;
        let ends_ms = ends_ms(retention, now_ms);
        counter.add(ends_ms);
        drop(counters);
        Ok(Some(Counted { quota: self.clone(), whose, ends_ms, for_good: false }))
    }

    fn room_in(&self, counter: &mut Counter, now_ms: u64) -> Result<(), Duration> {
        counter.forget(now_ms);
        if self.max.is_none_or(|max| counter.sum() < max) {
            return Ok(());
        }
        let wait_ms = counter.0.first().map_or(0, |slice| slice.ends_ms.saturating_sub(now_ms));
        Err(Duration::from_millis(wait_ms).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
    }

    /// The counters. A panic elsewhere can't leave them half changed: no code that can panic runs under the lock.
    fn open(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When something ends to count that is begun now, in ms: a whole retention after the end of the running slice.
fn ends_ms(retention: Duration, now_ms: u64) -> u64 {
    let slice_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX).div_ceil(SLICES).max(1);
    (now_ms / slice_ms).saturating_add(SLICES + 1).saturating_mul(slice_ms)
}

impl Counters {
    fn of(&mut self, whose: &Whose) -> &mut Counter {
        if !self.recent.contains_key(whose) {
            if self.recent.len() >= SCOPES_MAX {
                self.earlier = std::mem::take(&mut self.recent);
            }
            let known = self.earlier.remove(whose).unwrap_or_default();
            self.recent.insert(whose.clone(), known);
        }
        self.recent.entry(whose.clone()).or_default()
    }
}

impl Counter {
    /// Forgets what has ended.
    fn forget(&mut self, now_ms: u64) {
        let ended = self.0.partition_point(|slice| slice.ends_ms <= now_ms);
        self.0.drain(..ended);
    }

    fn sum(&self) -> u64 {
        self.0.iter().map(|slice| u64::from(slice.count)).sum()
    }

    fn add(&mut self, ends_ms: u64) {
        match self.0.binary_search_by_key(&ends_ms, |slice| slice.ends_ms) {
            Ok(at) => self.0[at].count = self.0[at].count.saturating_add(1),
            Err(at) => {
                self.0.insert(at, Slice { ends_ms, count: 1 });
                self.merge_nearest();
            }
        }
    }

    /// After many reloads there may be too many slices: the two that end nearest to each other become one. What is in the
    /// earlier one counts a little longer.
    fn merge_nearest(&mut self) {
        if self.0.len() <= SLICES_MAX {
            return;
        }
        let gap = |at: &usize| self.0[at + 1].ends_ms - self.0[*at].ends_ms;
        if let Some(at) = (0..self.0.len() - 1).min_by_key(gap) {
            let earlier = self.0.remove(at);
            self.0[at].count = self.0[at].count.saturating_add(earlier.count);
        }
    }

    /// Takes one back that did nothing, if its slice is still there.
    fn take_back(&mut self, ends_ms: u64) {
        if let Ok(at) = self.0.binary_search_by_key(&ends_ms, |slice| slice.ends_ms) {
            self.0[at].count = self.0[at].count.saturating_sub(1);
            if self.0[at].count == 0 {
                self.0.remove(at);
            }
        }
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
        counters.of(&self.whose).take_back(self.ends_ms);
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
        quota
            .take(&route("payments"), scope, DAY, now_ms)
            .map(|counted| counted.unwrap().for_good())
            .is_ok()
    }

    #[test]
    fn a_scope_begins_so_many_and_others_are_not_touched() {
        let quota = Quota::new(3);
        assert!((0..3).all(|_| begins(&quota, &ALICE, DAY_MS)));
        assert!((0..100).all(|_| !begins(&quota, &ALICE, DAY_MS)));
        assert!(quota.room(&route("payments"), &ALICE, DAY_MS).is_err());
        assert!(
            (0..100).all(|_| quota.room(&route("payments"), &[2; 32], DAY_MS).is_ok()),
            "looking counts nothing"
        );
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
        let refused = |now_ms| {
            quota
                .take(&route("payments"), &ALICE, Duration::from_secs(80), now_ms)
                .map(|_| ())
                .unwrap_err()
        };
        quota
            .take(&route("payments"), &ALICE, Duration::from_secs(80), 5_000)
            .unwrap()
            .unwrap()
            .for_good();
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

    /// Limit and retention of one configuration, over the counts of those before.
    struct Settings {
        quota: Arc<Quota>,
        retention: Duration,
    }

    impl Settings {
        fn reloaded(&self, max: usize, retention: Duration) -> Settings {
            Settings { quota: self.quota.limited_to(max), retention }
        }

        fn begins(&self, now_ms: u64) -> bool {
            let taken = self.quota.take(&route("payments"), &ALICE, self.retention, now_ms);
            taken.map(|counted| counted.into_iter().for_each(Counted::for_good)).is_ok()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const HOUR_MS: u64 = 3_600_000;
    /// A host that runs for a year.
    const UPTIME_MS: u64 = 365 * DAY_MS;

    #[test]
    fn after_a_reload_with_a_longer_retention_what_was_begun_counts_for_its_own_and_no_longer() {
        let before = Settings { quota: Quota::new(2), retention: HOUR };
        assert!(before.begins(UPTIME_MS) && before.begins(UPTIME_MS) && !before.begins(UPTIME_MS));
        let after = before.reloaded(2, DAY);
        assert!(!after.begins(UPTIME_MS + HOUR_MS - 1), "its record is still there");
        let later = UPTIME_MS + HOUR_MS * 9 / 8;
        assert!(after.begins(later) && after.begins(later) && !after.begins(later));
        assert!(!after.begins(later + DAY_MS - 1) && after.begins(later + DAY_MS * 9 / 8));
    }

    #[test]
    fn after_a_reload_with_a_shorter_retention_what_was_begun_counts_as_long_as_its_record_is_there()
     {
        let before = Settings { quota: Quota::new(2), retention: DAY };
        assert!(before.begins(UPTIME_MS));
        let after = before.reloaded(2, HOUR);
        assert!(after.begins(UPTIME_MS + HOUR_MS) && !after.begins(UPTIME_MS + HOUR_MS));
        assert!(
            after.begins(UPTIME_MS + 3 * HOUR_MS),
            "the one that was begun under the new retention has ended"
        );
        assert!(!after.begins(UPTIME_MS + 3 * HOUR_MS));
        let later = UPTIME_MS + DAY_MS * 9 / 8;
        assert!(after.begins(later) && after.begins(later) && !after.begins(later));
    }

    #[test]
    fn a_limit_that_is_raised_lowered_removed_and_added_goes_on_from_what_was_begun() {
        let first = Settings { quota: Quota::new(2), retention: DAY };
        assert!(first.begins(0) && first.begins(0) && !first.begins(0));
        let raised = first.reloaded(3, DAY);
        assert!(raised.begins(0) && !raised.begins(0));
        let lowered = raised.reloaded(1, DAY);
        assert!(!lowered.begins(0));
        let removed = lowered.reloaded(0, DAY);
        assert!((0..10).all(|_| removed.begins(1)));
        let added = removed.reloaded(13, DAY);
        assert!(!added.begins(2), "what was begun without a limit counts, once there was one");
        assert!(added.begins(2 * DAY_MS));
        let never = Settings { quota: Quota::new(0), retention: DAY };
        assert!(
            never.begins(0) && never.reloaded(1, DAY).begins(0),
            "before the first limit nothing is counted"
        );
    }

    #[test]
    fn what_did_nothing_is_taken_back_after_any_reload_and_once() {
        for (old, new) in [(DAY, DAY / 24), (DAY / 24, DAY), (DAY, DAY)] {
            let before = Settings { quota: Quota::new(2), retention: old };
            let now_ms = 365 * DAY_MS + 1;
            let running = before.quota.take(&route("payments"), &ALICE, old, now_ms).unwrap();
            let after = before.reloaded(2, new);
            assert!(after.begins(now_ms) && !after.begins(now_ms));
            drop(running);
            assert!(after.begins(now_ms) && !after.begins(now_ms), "{old:?} {new:?}");
        }
    }

    #[test]
    fn under_any_reloads_no_more_is_alive_than_allowed_and_room_comes_back_in_time() {
        const MAX: usize = 10;
        let retentions = [DAY, DAY / 24, DAY * 7, DAY / 3, DAY * 2];
        for every in [50, 997] {
            let mut settings = Settings { quota: Quota::new(MAX), retention: DAY };
            // When each began, and its retention.
            let mut begun: Vec<(u64, u64)> = Vec::new();
            for (step, now_ms) in
                (UPTIME_MS..UPTIME_MS + 60 * DAY_MS).step_by(20 * 60 * 1000).enumerate()
            {
                if step % every == 0 {
                    settings = settings.reloaded(MAX, retentions[step / every % retentions.len()]);
                }
                let alive = |eighths: u64| {
                    begun.iter().filter(|(at, ms)| at + ms * eighths / 8 > now_ms).count()
                };
                let (now, with_a_slice_more) = (alive(8), alive(9));
                if settings.begins(now_ms) {
                    assert!(now < MAX, "{now} at {now_ms}");
                    begun.push((now_ms, settings.retention.as_millis() as u64));
                } else {
                    assert!(
                        with_a_slice_more >= MAX,
                        "refused at {now_ms} for {with_a_slice_more}"
                    );
                }
            }
            assert!(begun.len() > 10 * MAX);
        }
    }

    #[test]
    fn many_reloads_leave_few_slices_and_forget_nothing() {
        let mut settings = Settings { quota: Quota::new(1000), retention: DAY };
        for n in 0..500 {
            settings = settings.reloaded(1000, DAY + Duration::from_secs(n * 97));
            assert!(settings.begins(UPTIME_MS + n));
        }
        let mut counters = settings.quota.open();
        let counter = counters.of(&(route("payments"), ALICE));
        assert_eq!((counter.0.len(), counter.sum()), (SLICES_MAX, 500));
    }
}
