//! The send rule: a claim is a permission to send that ends before its lease does.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// Whether bytes of a request may still be written to the upstream.
///
/// At least a third of the lease must remain, by a local clock that runs on while the process is stopped, counted from
/// before the claim (or the last confirmed renewal) was sent. So a process that was stopped between its claim and its
/// first byte does not send on a claim that others already hold for lost.
#[derive(Debug)]
pub struct SendRule {
    clock: Clock,
    until_ms: AtomicU64,
    span_ms: u64,
    hands: AtomicU8,
}

/// In whose hands the request is: a connection's, as far as anybody knows; still who forwards it; nobody's, for good.
const GIVEN: u8 = 0;
const WITHHELD: u8 = 1;
const REVOKED: u8 = 2;

impl SendRule {
    /// A rule for a claim whose command was sent at `from_ms` ([`Clock::boot_ms`]) or later.
    pub fn new(clock: Clock, from_ms: u64, lease: Duration) -> SendRule {
        let span_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX) / 3 * 2;
        let until_ms = AtomicU64::new(from_ms.saturating_add(span_ms));
        SendRule { clock, until_ms, span_ms, hands: AtomicU8::new(GIVEN) }
    }

    /// Whether a byte may be written now.
    pub fn allows(&self) -> bool {
        self.hands.load(Ordering::Acquire) != REVOKED
            && self.clock.boot_ms() < self.until_ms.load(Ordering::Acquire)
    }

    /// Who forwards says that it still has the request, whole: it waits for a connection. Who says neither this nor
    /// [`SendRule::hand_over`] counts as having sent.
    pub fn withhold(&self) {
        let _ = self.hands.compare_exchange(GIVEN, WITHHELD, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The request is given to a connection now: from here on nobody knows what of it was written. `false`: it must not be any
    /// more, since the attempt was given up meanwhile.
    #[must_use]
    pub fn hand_over(&self) -> bool {
        self.hands.compare_exchange(WITHHELD, GIVEN, Ordering::AcqRel, Ordering::Acquire)
            != Err(REVOKED)
    }

    /// The attempt is given up: nothing of the request may be written from now on. `true`: who forwards still has the
    /// request, and never sends it.
    pub fn revoke(&self) -> bool {
        self.hands.swap(REVOKED, Ordering::AcqRel) == WITHHELD
    }

    /// A renewal that was sent at `from_ms` is confirmed.
    pub fn renewed(&self, from_ms: u64) {
        self.until_ms.fetch_max(from_ms.saturating_add(self.span_ms), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_while_it_is_withheld_is_never_sent_and_what_was_handed_over_may_have_been()
    {
        let rule =
            || SendRule::new(Clock::system(), Clock::system().boot_ms(), Duration::from_secs(60));
        let silent = rule();
        assert!(
            !silent.revoke() && !silent.hand_over() && !silent.allows(),
            "who says nothing counts as having sent"
        );
        let handed = rule();
        handed.withhold();
        assert!(handed.hand_over() && handed.allows());
        assert!(!handed.revoke() && !handed.allows(), "the rest of it is not sent");
        let kept = rule();
        kept.withhold();
        assert!(kept.revoke());
        kept.withhold();
        assert!(
            !kept.hand_over() && !kept.allows(),
            "however late who forwards finds a connection"
        );
    }
}
