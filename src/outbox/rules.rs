//! The rules of attempts: when one may begin, and what follows it. Pure functions.

use std::time::Duration;

use super::settings::RetryRule;
use crate::store::outbox::DeliveryAttempts;

/// Fewest attempts before an event is buried for its age. So a whole backlog is not buried
/// unattempted after a time without relays.
const BURIED_FOR_AGE_ATTEMPTS_MIN: u32 = 5;

/// Age of an event from which its first attempt is counted before it begins. Younger events are
/// attempted with one store call less.
const COUNTED_AFTER: Duration = Duration::from_secs(5);

/// Longest wait that a receiver can demand, whatever the retry rule. A longer wait is of no use:
/// the operator would take the sink for broken.
const PAUSE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A failed attempt.
#[derive(Debug, Clone, Copy)]
pub struct FailedAttempt {
    /// The attempts so far, with the failed one.
    pub attempts: DeliveryAttempts,
    /// Time at which the sink was last resumed, in ms since 1970; 0: never.
    pub resumed_ms: u64,
    /// The store's time, in ms since 1970.
    pub now_ms: u64,
    /// How long the receiver wants to get nothing.
    pub retry_after: Option<Duration>,
    /// A random number for the length of the pause.
    pub random: u64,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Another attempt after a pause.
    Retry {
        /// The pause.
        pause: Duration,
    },
    /// The event becomes a dead letter.
    Bury,
}

/// Returns whether an attempt may begin at `now_ms`: at least a third of the relay's lease must
/// remain. `until_ms` is the end of the lease; `None` before the first renewal.
pub fn may_begin(now_ms: u64, until_ms: Option<u64>, lease_ms: u64) -> bool {
    until_ms.is_some_and(|until_ms| now_ms.saturating_add(lease_ms / 3) <= until_ms)
}

/// Returns whether the lease of a relay has ended at `now_ms`. If so, it must begin a new term.
pub fn has_ended(now_ms: u64, until_ms: Option<u64>) -> bool {
    until_ms.is_some_and(|until_ms| now_ms >= until_ms)
}

/// Returns whether an attempt is counted in the store before it begins. `count` includes the
/// attempt, and `age` is the age of the event.
///
/// A retry is counted. So an event that brings the process down is buried one day, and not tried
/// for ever. A first attempt is counted only if the event is old: the process may have gone down in
/// an earlier first attempt.
pub fn is_counted_before(count: u32, age: Duration) -> bool {
    count > 1 || age > COUNTED_AFTER
}

/// Returns the time until a counted attempt is repeated if nothing is known about its end: its
/// timeout, and the longest pause after it.
pub fn counted_pause(rule: &RetryRule, timeout: Duration, count: u32) -> Duration {
    timeout.saturating_add(longest_pause(rule, count))
}

/// Returns what follows a failed attempt.
///
/// The age of an event counts from its first attempt or from the last time that its sink was
/// resumed, whichever is later.
pub fn next_step(rule: &RetryRule, failed: &FailedAttempt) -> NextStep {
    let DeliveryAttempts { count, first_ms } = failed.attempts;
    let age_ms = failed.now_ms.saturating_sub(first_ms.max(failed.resumed_ms));
    let is_old = Duration::from_millis(age_ms) >= rule.age && count >= BURIED_FOR_AGE_ATTEMPTS_MIN;
    if is_old || (rule.attempts > 0 && count >= rule.attempts) {
        return NextStep::Bury;
    }
    let longest = longest_pause(rule, count);
    let drawn = longest.mul_f64(failed.random as f64 / u64::MAX as f64);
    let demanded = failed.retry_after.unwrap_or_default().min(rule.max);
    NextStep::Retry { pause: drawn.max(demanded).min(PAUSE_MAX) }
}

/// Returns the longest pause after the `count`-th attempt: the first one's, doubled with each
/// attempt, up to the maximum.
pub fn longest_pause(rule: &RetryRule, count: u32) -> Duration {
    let doublings = count.saturating_sub(1).min(u32::BITS - 1);
    rule.first.saturating_mul(1 << doublings).min(rule.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RetryRule = RetryRule {
        first: Duration::from_secs(5),
        max: Duration::from_secs(3600),
        attempts: 0,
        age: Duration::from_secs(100),
    };
    const FIRST_MS: u64 = 1_000_000;

    fn failed(count: u32, after_s: u64) -> FailedAttempt {
        FailedAttempt {
            attempts: DeliveryAttempts { count, first_ms: FIRST_MS },
            resumed_ms: 0,
            now_ms: FIRST_MS + after_s * 1000,
            retry_after: None,
            random: u64::MAX,
        }
    }

    fn retry(seconds: u64) -> NextStep {
        NextStep::Retry { pause: Duration::from_secs(seconds) }
    }

    #[test]
    fn an_attempt_begins_while_a_third_of_the_lease_remains() {
        let begins = [(20_000, true), (20_001, false), (30_000, false)];
        for (now_ms, expected) in begins {
            assert_eq!(may_begin(now_ms, Some(30_000), 30_000), expected, "at {now_ms}");
        }
        assert!(!may_begin(0, None, 30_000), "before the first renewal");
        let ends = [(29_999, false), (30_000, true)];
        for (now_ms, expected) in ends {
            assert_eq!(has_ended(now_ms, Some(30_000)), expected, "at {now_ms}");
        }
        assert!(!has_ended(u64::MAX, None), "before the first renewal");
    }

    #[test]
    fn retries_and_first_attempts_of_old_events_are_counted_before() {
        let old = Duration::from_millis(5_001);
        let counted = [(1, COUNTED_AFTER, false), (1, old, true), (2, Duration::ZERO, true)];
        for (count, age, expected) in counted {
            assert_eq!(is_counted_before(count, age), expected, "{count} at {age:?}");
        }
        let pause = counted_pause(&RULE, Duration::from_secs(15), 2);
        assert_eq!(pause, Duration::from_secs(25), "its timeout and the longest pause");
    }

    #[test]
    fn the_longest_pause_doubles_up_to_the_maximum() {
        for (count, seconds) in [(1, 5), (2, 10), (3, 20), (10, 2560), (11, 3600), (4000, 3600)] {
            assert_eq!(next_step(&RULE, &failed(count, 0)), retry(seconds), "after {count}");
        }
        let at_once = FailedAttempt { random: 0, ..failed(1, 0) };
        assert_eq!(next_step(&RULE, &at_once), retry(0), "pauses are spread from zero");
    }

    #[test]
    fn a_receiver_makes_a_pause_longer_up_to_the_maximum_and_never_shorter() {
        for (demanded, seconds) in [(60, 60), (1, 5), (100_000, 3600)] {
            let retry_after = Some(Duration::from_secs(demanded));
            let failed = FailedAttempt { retry_after, ..failed(1, 0) };
            assert_eq!(next_step(&RULE, &failed), retry(seconds), "demands {demanded} s");
        }
    }

    #[test]
    fn an_event_is_buried_for_age_only_after_five_attempts() {
        assert_eq!(next_step(&RULE, &failed(4, 1_000_000)), retry(40));
        assert_eq!(next_step(&RULE, &failed(5, 99)), retry(80));
        assert_eq!(next_step(&RULE, &failed(5, 100)), NextStep::Bury);
    }

    #[test]
    fn age_counts_from_the_last_resume() {
        let resumed =
            |after_s| FailedAttempt { resumed_ms: FIRST_MS + 1_000_000, ..failed(9, after_s) };
        assert_eq!(next_step(&RULE, &resumed(1_099)), retry(1280));
        assert_eq!(next_step(&RULE, &resumed(1_100)), NextStep::Bury);
    }

    #[test]
    fn a_clock_that_jumped_back_buries_nothing() {
        let failed = FailedAttempt { now_ms: 5, ..failed(9, 0) };
        assert_eq!(next_step(&RULE, &failed), retry(1280));
    }

    #[test]
    fn a_limit_of_attempts_buries_before_age_does() {
        let rule = RetryRule { attempts: 3, ..RULE };
        assert_eq!(next_step(&rule, &failed(2, 0)), retry(10));
        assert_eq!(next_step(&rule, &failed(3, 0)), NextStep::Bury);
    }
}
