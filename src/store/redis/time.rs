//! The server's time, as far as its answers tell it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::layout;

/// The server's clock, carried on by the local one from the last answer that told the time. It stamps when a record was
/// settled, which people read and no rule does: leases are stamped by the server itself.
pub(super) struct ServerTime {
    start: Instant,
    /// The server's time at `start`, in ms since 1970; 0 until it is known.
    at_start_ms: AtomicU64,
}

impl ServerTime {
    pub(super) fn new() -> ServerTime {
        ServerTime { start: Instant::now(), at_start_ms: AtomicU64::new(0) }
    }

    /// An answer told the time, in ms since 1970.
    pub(super) fn set(&self, now_ms: u64) {
        self.at_start_ms.store(now_ms.saturating_sub(self.elapsed_ms()), Ordering::Relaxed);
    }

    /// The time, in ms since 1970, once an answer told it.
    pub(super) fn now_ms(&self) -> Option<u64> {
        let at_start_ms = self.at_start_ms.load(Ordering::Relaxed);
        (at_start_ms > 0).then(|| at_start_ms + self.elapsed_ms())
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A span as the scripts take it. At least 1 ms: no key is kept for none.
pub(super) fn millis(span: Duration) -> Vec<u8> {
    let mut text = Vec::new();
    layout::decimal(
        &mut text,
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, MILLIS_MAX),
    );
    text
}

/// About 3000 years: added to any time, it stays a whole number in Lua, whose integers end at 2^53.
const MILLIS_MAX: u64 = 100_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_an_answer_told_is_carried_on_by_the_local_clock() {
        let time = ServerTime::new();
        tokio::time::advance(Duration::from_millis(300)).await;
        assert_eq!(time.now_ms(), None, "nothing was told");
        time.set(10_000);
        assert_eq!(time.now_ms(), Some(10_000));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(time.now_ms(), Some(10_250));
        time.set(9_000);
        assert_eq!(time.now_ms(), Some(9_000), "the last answer counts");
    }
}
