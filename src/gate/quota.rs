//! Quotas limit how many new operations each tenant may begin. Otherwise a tenant with a flood of
//! new keys could fill the store and the memory that other tenants need.
//!
//! Each gateway counts for itself, in memory. A count that all gateways share would cost one more
//! write for every first request. Quotas never count and never refuse duplicates, because answering
//! them is the gateway's purpose.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::key::TenantId;

/// Number of slices of a retention. An operation counts for its own whole retention, until its
/// record ends, so that no retention contains more operations than allowed. The operation may count
/// for an eighth of the retention longer.
const SLICES: u64 = 8;

/// Maximum number of slices of one tenant. One retention needs nine slices. The others are for
/// operations from before a reload that changed the retention.
const SLICES_MAX: usize = 32;

/// Maximum number of tenants in each of the two generations of counters, which take about 20 MiB
/// together. If more tenants are active, the counters of the tenants that were idle longest start
/// again at zero.
const TENANTS_MAX: usize = 32 * 1024;

/// Bounds of the `Retry-After` that a client gets. The end of the oldest slice may be hours away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Counts new operations by route and tenant.
pub(super) struct Quota {
    /// Maximum operations per tenant and retention; `None` means no limit.
    max: Option<u64>,
    /// Whether operations are counted: there is a limit, or a reload has removed one.
    counts: bool,
    counters: Arc<Mutex<Counters>>,
}

/// A route's name and a tenant.
type QuotaKey = (Arc<str>, TenantId);

/// Two generations of counters. When the recent generation is full, it becomes the earlier one, and
/// the previous earlier one is dropped.
#[derive(Default)]
struct Counters {
    recent: HashMap<QuotaKey, Counter>,
    earlier: HashMap<QuotaKey, Counter>,
}

/// The slices of one tenant, sorted by the time at which they end (in ms). Each slice keeps its
/// end, so a reload that changes the retention does not affect earlier operations.
#[derive(Clone, Default)]
struct Counter(Vec<Slice>);

#[derive(Clone, Copy)]
struct Slice {
    ends_ms: u64,
    count: u32,
}

/// One operation's use of its tenant's quota. Dropping an unconfirmed use takes the count back.
pub(super) struct QuotaUse {
    quota: Arc<Quota>,
    key: QuotaKey,
    ends_ms: u64,
    is_confirmed: bool,
}

impl Quota {
    /// Creates a quota of `max` new operations per tenant and retention; 0 means no limit.
    pub fn new(max: usize) -> Arc<Quota> {
        Quota::counting(max, false, Arc::default())
    }

    /// Returns the same quota under another limit. Earlier operations still count, even those that
    /// began while a reload had removed the limit. Operations from before the first limit do not
    /// count.
    pub fn limited_to(&self, max: usize) -> Arc<Quota> {
        Quota::counting(max, self.counts, self.counters.clone())
    }

    fn counting(max: usize, counted: bool, counters: Arc<Mutex<Counters>>) -> Arc<Quota> {
        let max = (max > 0).then_some(max as u64);
        Arc::new(Quota { max, counts: counted || max.is_some(), counters })
    }

    /// Checks that the tenant may begin another operation.
    ///
    /// # Errors
    /// Returns how long to wait, if the quota is used up.
    pub fn check(&self, route: &Arc<str>, tenant: TenantId, now_ms: u64) -> Result<(), Duration> {
        if self.max.is_none() {
            return Ok(());
        }
        self.check_counter(self.lock().counter(&(route.clone(), tenant)), now_ms)
    }

    /// Counts another operation. Returns `None` if operations are not counted.
    ///
    /// # Errors
    /// Returns how long to wait, if the quota is used up.
    pub fn take(
        self: &Arc<Quota>,
        route: &Arc<str>,
        tenant: TenantId,
        retention: Duration,
        now_ms: u64,
    ) -> Result<Option<QuotaUse>, Duration> {
        if !self.counts {
            return Ok(None);
        }
        let key = (route.clone(), tenant);
        let mut counters = self.lock();
        let counter = counters.counter(&key);
        self.check_counter(counter, now_ms)?;
        let ends_ms = ends_ms(retention, now_ms);
        counter.add(ends_ms);
        drop(counters);
        Ok(Some(QuotaUse { quota: self.clone(), key, ends_ms, is_confirmed: false }))
    }

    fn check_counter(&self, counter: &mut Counter, now_ms: u64) -> Result<(), Duration> {
        counter.forget(now_ms);
        if self.max.is_none_or(|max| counter.sum() < max) {
            return Ok(());
        }
        let wait_ms = counter.0.first().map_or(0, |slice| slice.ends_ms.saturating_sub(now_ms));
        Err(Duration::from_millis(wait_ms).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
    }

    /// Locks the counters. A poisoned lock is safe to use, because no code that can panic runs
    /// under this lock.
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when an operation that begins now stops counting, in ms: a whole retention after the end
/// of the current slice.
fn ends_ms(retention: Duration, now_ms: u64) -> u64 {
    let slice_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX).div_ceil(SLICES).max(1);
    (now_ms / slice_ms).saturating_add(SLICES + 1).saturating_mul(slice_ms)
}

impl Counters {
    fn counter(&mut self, key: &QuotaKey) -> &mut Counter {
        if !self.recent.contains_key(key) {
            if self.recent.len() >= TENANTS_MAX {
                self.earlier = std::mem::take(&mut self.recent);
            }
            let known = self.earlier.remove(key).unwrap_or_default();
            self.recent.insert(key.clone(), known);
        }
        self.recent.entry(key.clone()).or_default()
    }
}

impl Counter {
    /// Drops the slices that have ended.
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

    /// If many reloads have made too many slices, merges the two slices with the nearest ends. The
    /// operations of the earlier slice then count a little longer.
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

    /// Takes back the count of one operation that did nothing, if its slice still exists.
    fn take_back(&mut self, ends_ms: u64) {
        if let Ok(at) = self.0.binary_search_by_key(&ends_ms, |slice| slice.ends_ms) {
            self.0[at].count = self.0[at].count.saturating_sub(1);
            if self.0[at].count == 0 {
                self.0.remove(at);
            }
        }
    }
}

impl QuotaUse {
    /// Counts the operation for its whole retention, because the upstream acted or may have acted.
    pub fn confirm(mut self) {
        self.is_confirmed = true;
    }
}

impl Drop for QuotaUse {
    /// Takes the count back if the upstream provably did nothing. Such an operation leaves only a
    /// short-lived marker.
    fn drop(&mut self) {
        if self.is_confirmed {
            return;
        }
        let mut counters = self.quota.lock();
        counters.counter(&self.key).take_back(self.ends_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const DAY_MS: u64 = 86_400_000;
    const ALICE: TenantId = TenantId::from_bytes([1; 32]);
    const BOB: TenantId = TenantId::from_bytes([2; 32]);

    fn route(name: &str) -> Arc<str> {
        name.into()
    }

    /// Begins one operation and confirms its count. Returns whether the quota allowed it.
    fn begins(quota: &Arc<Quota>, tenant: TenantId, now_ms: u64) -> bool {
        quota
            .take(&route("payments"), tenant, DAY, now_ms)
            .map(|used| used.unwrap().confirm())
            .is_ok()
    }

    #[test]
    fn a_tenant_begins_as_many_operations_as_allowed_and_other_tenants_are_not_affected() {
        let quota = Quota::new(3);
        assert!((0..3).all(|_| begins(&quota, ALICE, DAY_MS)));
        assert!((0..100).all(|_| !begins(&quota, ALICE, DAY_MS)));
        assert!(quota.check(&route("payments"), ALICE, DAY_MS).is_err());
        assert!(
            (0..100).all(|_| quota.check(&route("payments"), BOB, DAY_MS).is_ok()),
            "a check counts nothing"
        );
        assert!(begins(&quota, BOB, DAY_MS), "another tenant");
        assert!(quota.take(&route("refunds"), ALICE, DAY, DAY_MS).is_ok(), "another route");
    }

    #[test]
    fn no_more_operations_begin_within_a_retention_than_allowed() {
        const MAX: usize = 10;
        let quota = Quota::new(MAX);
        let mut begun: Vec<u64> = Vec::new();
        // A client tries every 20 minutes for a week.
        for now_ms in (DAY_MS..8 * DAY_MS).step_by(20 * 60 * 1000) {
            if begins(&quota, ALICE, now_ms) {
                begun.push(now_ms);
            }
            let alive = begun.iter().filter(|at| **at + DAY_MS > now_ms).count();
            assert!(alive <= MAX, "{alive} at {now_ms}");
        }
        assert!(begun.len() >= 6 * MAX, "the quota allows nearly its limit: {}", begun.len());
    }

    #[test]
    fn an_operation_that_did_nothing_does_not_count() {
        let quota = Quota::new(1);
        for _ in 0..10 {
            drop(quota.take(&route("payments"), ALICE, DAY, 0).unwrap());
        }
        assert!(begins(&quota, ALICE, 0));
        assert!(!begins(&quota, ALICE, 0));
        // An operation that is taken back after its slice was dropped does not reduce the count of
        // later operations.
        let early = quota.take(&route("payments"), BOB, DAY, 0).unwrap();
        assert!(begins(&quota, BOB, 3 * DAY_MS));
        drop(early);
        assert!(!begins(&quota, BOB, 3 * DAY_MS));
    }

    #[test]
    fn a_refused_tenant_gets_the_time_after_which_to_retry() {
        let quota = Quota::new(1);
        let refused = |now_ms| {
            quota
                .take(&route("payments"), ALICE, Duration::from_secs(80), now_ms)
                .map(|_| ())
                .unwrap_err()
        };
        quota
            .take(&route("payments"), ALICE, Duration::from_secs(80), 5_000)
            .unwrap()
            .unwrap()
            .confirm();
        assert_eq!(refused(5_000), RETRY_AFTER_MAX);
        assert_eq!(refused(60_000), Duration::from_secs(30), "nine slices of 10 s after 0");
        assert_eq!(refused(89_900), RETRY_AFTER_MIN);
        assert!(quota.take(&route("payments"), ALICE, Duration::from_secs(80), 90_000).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_the_counts_of_active_tenants_are_kept() {
        let quota = Quota::new(1);
        assert!(begins(&quota, ALICE, 0));
        for n in 0..3 * TENANTS_MAX as u64 {
            let mut tenant = [9; 32];
            tenant[..8].copy_from_slice(&n.to_be_bytes());
            assert!(begins(&quota, TenantId::from_bytes(tenant), 0));
            if n % 1000 == 0 {
                assert!(!begins(&quota, ALICE, 0), "after {n} others");
            }
        }
        let counters = quota.lock();
        assert!(counters.recent.len() <= TENANTS_MAX && counters.earlier.len() <= TENANTS_MAX);
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        assert!(Quota::new(0).take(&route("payments"), ALICE, DAY, 0).unwrap().is_none());
    }

    /// The limit and the retention of one configuration, with the counts of earlier configurations.
    struct Settings {
        quota: Arc<Quota>,
        retention: Duration,
    }

    impl Settings {
        fn reloaded(&self, max: usize, retention: Duration) -> Settings {
            Settings { quota: self.quota.limited_to(max), retention }
        }

        fn begins(&self, now_ms: u64) -> bool {
            let taken = self.quota.take(&route("payments"), ALICE, self.retention, now_ms);
            taken.map(|used| used.into_iter().for_each(QuotaUse::confirm)).is_ok()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const HOUR_MS: u64 = 3_600_000;
    /// The clock of a host that has run for a year.
    const UPTIME_MS: u64 = 365 * DAY_MS;

    #[test]
    fn after_a_reload_with_a_longer_retention_earlier_operations_keep_their_retention() {
        let before = Settings { quota: Quota::new(2), retention: HOUR };
        assert!(before.begins(UPTIME_MS) && before.begins(UPTIME_MS) && !before.begins(UPTIME_MS));
        let after = before.reloaded(2, DAY);
        assert!(!after.begins(UPTIME_MS + HOUR_MS - 1), "its record is still there");
        let later = UPTIME_MS + HOUR_MS * 9 / 8;
        assert!(after.begins(later) && after.begins(later) && !after.begins(later));
        assert!(!after.begins(later + DAY_MS - 1) && after.begins(later + DAY_MS * 9 / 8));
    }

    #[test]
    fn after_a_reload_with_a_shorter_retention_operations_count_as_long_as_their_records() {
        let before = Settings { quota: Quota::new(2), retention: DAY };
        assert!(before.begins(UPTIME_MS));
        let after = before.reloaded(2, HOUR);
        assert!(after.begins(UPTIME_MS + HOUR_MS) && !after.begins(UPTIME_MS + HOUR_MS));
        assert!(
            after.begins(UPTIME_MS + 3 * HOUR_MS),
            "the operation under the new retention has ended"
        );
        assert!(!after.begins(UPTIME_MS + 3 * HOUR_MS));
        let later = UPTIME_MS + DAY_MS * 9 / 8;
        assert!(after.begins(later) && after.begins(later) && !after.begins(later));
    }

    #[test]
    fn a_limit_that_is_raised_lowered_removed_or_added_still_counts_earlier_operations() {
        let first = Settings { quota: Quota::new(2), retention: DAY };
        assert!(first.begins(0) && first.begins(0) && !first.begins(0));
        let raised = first.reloaded(3, DAY);
        assert!(raised.begins(0) && !raised.begins(0));
        let lowered = raised.reloaded(1, DAY);
        assert!(!lowered.begins(0));
        let removed = lowered.reloaded(0, DAY);
        assert!((0..10).all(|_| removed.begins(1)));
        let added = removed.reloaded(13, DAY);
        assert!(!added.begins(2), "operations without a limit count after an earlier limit");
        assert!(added.begins(2 * DAY_MS));
        let never = Settings { quota: Quota::new(0), retention: DAY };
        assert!(
            never.begins(0) && never.reloaded(1, DAY).begins(0),
            "before the first limit nothing is counted"
        );
    }

    #[test]
    fn an_operation_that_did_nothing_is_taken_back_exactly_once_after_any_reload() {
        for (old, new) in [(DAY, DAY / 24), (DAY / 24, DAY), (DAY, DAY)] {
            let before = Settings { quota: Quota::new(2), retention: old };
            let now_ms = 365 * DAY_MS + 1;
            let running = before.quota.take(&route("payments"), ALICE, old, now_ms).unwrap();
            let after = before.reloaded(2, new);
            assert!(after.begins(now_ms) && !after.begins(now_ms));
            drop(running);
            assert!(after.begins(now_ms) && !after.begins(now_ms), "{old:?} {new:?}");
        }
    }

    #[test]
    fn after_any_reload_the_limit_holds_and_ended_operations_stop_counting_in_time() {
        const MAX: usize = 10;
        let retentions = [DAY, DAY / 24, DAY * 7, DAY / 3, DAY * 2];
        for every in [50, 997] {
            let mut settings = Settings { quota: Quota::new(MAX), retention: DAY };
            // The start and the retention of each operation, in ms.
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
    fn many_reloads_leave_few_slices_and_lose_no_count() {
        let mut settings = Settings { quota: Quota::new(1000), retention: DAY };
        for n in 0..500 {
            settings = settings.reloaded(1000, DAY + Duration::from_secs(n * 97));
            assert!(settings.begins(UPTIME_MS + n));
        }
        let mut counters = settings.quota.lock();
        let counter = counters.counter(&(route("payments"), ALICE));
        assert_eq!((counter.0.len(), counter.sum()), (SLICES_MAX, 500));
    }
}
