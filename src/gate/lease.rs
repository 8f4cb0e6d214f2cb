//! The send rule: a claim is a permission to send that ends before its lease does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    withheld: AtomicBool,
}

impl SendRule {
    /// A rule for a claim whose command was sent at `from_ms` ([`Clock::boot_ms`]) or later.
    pub fn new(clock: Clock, from_ms: u64, lease: Duration) -> SendRule {
        let span_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX) / 3 * 2;
        let until_ms = AtomicU64::new(from_ms.saturating_add(span_ms));
        SendRule { clock, until_ms, span_ms, withheld: AtomicBool::new(false) }
    }

    /// Whether a byte may be written now.
    pub fn allows(&self) -> bool {
        self.clock.boot_ms() < self.until_ms.load(Ordering::Acquire)
    }

    /// Who forwards says that it still has the request, whole: it waits for a connection. An attempt that is given up then did
    /// nothing. Who says neither this nor [`SendRule::hand_over`] counts as having sent.
    pub fn withhold(&self) {
        self.withheld.store(true, Ordering::Release);
    }

    /// The request is given to a connection now: from here on nobody knows what of it was written.
    pub fn hand_over(&self) {
        self.withheld.store(false, Ordering::Release);
    }

    /// Whether who forwards still has the request.
    pub fn is_withheld(&self) -> bool {
        self.withheld.load(Ordering::Acquire)
    }

    /// A renewal that was sent at `from_ms` is confirmed.
    pub fn renewed(&self, from_ms: u64) {
        self.until_ms.fetch_max(from_ms.saturating_add(self.span_ms), Ordering::AcqRel);
    }
}
