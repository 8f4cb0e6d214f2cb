//! Pauses between attempts. They grow, and have random lengths: otherwise many gateways would retry
//! at the same moments.

use std::time::Duration;

/// The first pause between two attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest pause. A gateway finds a restarted server within about this time.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The pauses of one series of attempts.
#[derive(Default)]
pub(super) struct ReconnectBackoff(u32);

impl ReconnectBackoff {
    /// Waits for the next pause.
    pub(super) async fn wait(&mut self) {
        let longest = BACKOFF_MIN.saturating_mul(1 << self.0.min(5)).min(BACKOFF_MAX);
        self.0 = self.0.saturating_add(1);
        tokio::time::sleep(jittered(longest)).await;
    }
}

/// Returns a random span between half of `longest` and `longest`.
pub(super) fn jittered(longest: Duration) -> Duration {
    // If the system gives no random number, the span is `longest`.
    let share = getrandom::u32().unwrap_or(u32::MAX);
    longest.mul_f64(0.5 + 0.5 * f64::from(share) / f64::from(u32::MAX))
}
