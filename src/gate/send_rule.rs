//! The send rule: a claim permits sending only for the first two thirds of its lease.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// Decides whether bytes of a request may still be written to the upstream.
///
/// At least a third of the lease must remain. The lease is counted from the moment before the
/// claim, or its last confirmed renewal, was sent to the store. The rule uses a local clock that
/// also runs while the process is stopped. Otherwise a process that was stopped between its claim
/// and its first byte could send a request after its lease has ended for all other gateways.
#[derive(Debug)]
pub struct SendRule {
    clock: Clock,
    until_ms: AtomicU64,
    span_ms: u64,
    custody: AtomicU8,
}

/// A connection may have the request.
const HANDED_OVER: u8 = 0;
/// The forwarding service still has the whole request.
const WITHHELD: u8 = 1;
/// The attempt is given up.
const REVOKED: u8 = 2;

impl SendRule {
    /// Creates the rule of a claim. The store got the claim at `from_ms` ([`Clock::boot_ms`]) or
    /// later.
    pub fn new(clock: Clock, from_ms: u64, lease: Duration) -> SendRule {
        let span_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX) / 3 * 2;
        let until_ms = AtomicU64::new(from_ms.saturating_add(span_ms));
        SendRule { clock, until_ms, span_ms, custody: AtomicU8::new(HANDED_OVER) }
    }

    /// Returns whether a byte may be written now.
    pub fn allows(&self) -> bool {
        self.custody.load(Ordering::Acquire) != REVOKED
            && self.clock.boot_ms() < self.until_ms.load(Ordering::Acquire)
    }

    /// Returns how much of the lease is left, at least.
    pub fn lease_left(&self) -> Duration {
        let last_third_ms = self.span_ms / 2;
        let until_ms = self.until_ms.load(Ordering::Acquire).saturating_add(last_third_ms);
        Duration::from_millis(until_ms.saturating_sub(self.clock.boot_ms()))
    }

    /// Records that the forwarding service still has the whole request, because it waits for a
    /// connection. If the service calls neither this method nor [`SendRule::hand_over`], the
    /// request counts as sent.
    pub fn withhold(&self) {
        let _ = self.custody.compare_exchange(
            HANDED_OVER,
            WITHHELD,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// Records that a connection gets the request now. From now on any part of the request may have
    /// been written. Returns `false` if the attempt was given up meanwhile: then the request must
    /// not be sent.
    #[must_use]
    pub fn hand_over(&self) -> bool {
        self.custody.compare_exchange(WITHHELD, HANDED_OVER, Ordering::AcqRel, Ordering::Acquire)
            != Err(REVOKED)
    }

    /// Gives the attempt up: no byte may be written from now on. Returns `true` if the forwarding
    /// service still has the whole request: then the request is never sent.
    pub fn revoke(&self) -> bool {
        self.custody.swap(REVOKED, Ordering::AcqRel) == WITHHELD
    }

    /// Extends the time for sending, after a confirmed renewal that was sent at `from_ms`.
    pub fn renewed(&self, from_ms: u64) {
        self.until_ms.fetch_max(from_ms.saturating_add(self.span_ms), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_withheld_request_that_is_given_up_is_never_sent_and_a_handed_over_one_may_be_sent() {
        let rule =
            || SendRule::new(Clock::system(), Clock::system().boot_ms(), Duration::from_secs(60));
        let silent = rule();
        assert!(
            !silent.revoke() && !silent.hand_over() && !silent.allows(),
            "a request that was never withheld counts as sent"
        );
        let handed = rule();
        handed.withhold();
        assert!(handed.hand_over() && handed.allows());
        assert!(!handed.revoke() && !handed.allows(), "the rest of it is not sent");
        let kept = rule();
        kept.withhold();
        assert!(kept.revoke());
        kept.withhold();
        assert!(!kept.hand_over() && !kept.allows(), "a later connection can not send it");
    }
}
