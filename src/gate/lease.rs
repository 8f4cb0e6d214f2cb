//! The send rule: a claim is a permission to send that ends before its lease does.

use std::sync::atomic::{AtomicU64, Ordering};
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
}

impl SendRule {
    /// A rule for a claim whose command was sent at `from_ms` ([`Clock::boot_ms`]) or later.
    pub fn new(clock: Clock, from_ms: u64, lease: Duration) -> SendRule {
        let span_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX) / 3 * 2;
        SendRule { clock, until_ms: AtomicU64::new(from_ms.saturating_add(span_ms)), span_ms }
    }

    /// Whether a byte may be written now.
    pub fn allows(&self) -> bool {
        self.clock.boot_ms() < self.until_ms.load(Ordering::Acquire)
    }

    /// A renewal that was sent at `from_ms` is confirmed.
    pub fn renewed(&self, from_ms: u64) {
        self.until_ms.fetch_max(from_ms.saturating_add(self.span_ms), Ordering::AcqRel);
    }
}
