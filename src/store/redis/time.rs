//! The server's time, estimated from its last answer with a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::layout;

/// An estimate of the server's clock: the time in its last answer, plus the local time since then.
/// Settled records get this estimate as their time of settlement. Only people read that time, and
/// no rule depends on it. The server itself stamps leases.
pub(super) struct ServerTime {
    start: Instant,
    /// The server's time at `start`, in ms since 1970; 0 until it is known.
    at_start_ms: AtomicU64,
}

impl ServerTime {
    pub(super) fn new() -> ServerTime {
        ServerTime { start: Instant::now(), at_start_ms: AtomicU64::new(0) }
    }

    /// Sets the time from an answer, in ms since 1970.
    pub(super) fn set(&self, now_ms: u64) {
        self.at_start_ms.store(now_ms.saturating_sub(self.elapsed_ms()), Ordering::Relaxed);
    }

    /// Returns the time in ms since 1970; `None` before the first answer with a time.
    pub(super) fn now_ms(&self) -> Option<u64> {
        let at_start_ms = self.at_start_ms.load(Ordering::Relaxed);
        (at_start_ms > 0).then(|| at_start_ms + self.elapsed_ms())
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Formats a span in the form that the scripts take. At least 1 ms, because a key can't expire
/// after 0 ms.
pub(super) fn millis(span: Duration) -> Vec<u8> {
    let mut text = Vec::new();
    layout::decimal(
        &mut text,
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, MILLIS_MAX),
    );
    text
}

/// About 3000 years. The sum of this span and any time is exact in Lua, where integers are exact up
/// to 2^53.
const MILLIS_MAX: u64 = 100_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_local_clock_continues_the_time_of_the_last_answer() {
        let time = ServerTime::new();
        tokio::time::advance(Duration::from_millis(300)).await;
        assert_eq!(time.now_ms(), None, "before the first answer");
        time.set(10_000);
        assert_eq!(time.now_ms(), Some(10_000));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(time.now_ms(), Some(10_250));
        time.set(9_000);
        assert_eq!(time.now_ms(), Some(9_000), "the last answer counts");
    }
}
