//! The store's time between two reads of it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;

/// Estimates the store's time: the time of the last read, continued by the boot clock. All gateways
/// compute timeouts of sagas with it, whatever their wall clocks show. Each look for sagas to take
/// over reads the time.
pub(super) struct StoreTimeEstimate {
    clock: Clock,
    /// The store's time at the boot time 0, in ms; 0 before the first read.
    origin_ms: AtomicU64,
}

impl StoreTimeEstimate {
    pub(super) fn new(clock: Clock) -> StoreTimeEstimate {
        StoreTimeEstimate { clock, origin_ms: AtomicU64::new(0) }
    }

    /// Notes a time that the store returned just now.
    pub(super) fn note(&self, store_ms: u64) {
        let origin_ms = store_ms.saturating_sub(self.clock.boot_ms());
        self.origin_ms.store(origin_ms, Ordering::Relaxed);
    }

    /// Returns the store's time, in ms since 1970. Before the first read, this is the wall clock's.
    pub(super) fn now_ms(&self) -> u64 {
        match self.origin_ms.load(Ordering::Relaxed) {
            0 => self.clock.unix_ms(),
            origin_ms => origin_ms + self.clock.boot_ms(),
        }
    }
}
