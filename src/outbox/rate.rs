//! The rate of a sink: attempts per second of all gateways together, in proportion to the
//! partitions that a gateway has.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket that holds the attempts of one second.
pub(super) struct Rate {
    /// Attempts per second of all gateways; 0: no limit.
    per_second: u32,
    tokens: f64,
    at: Instant,
    /// Attempts per second of this gateway, at the last look.
    own: f64,
}

impl Rate {
    pub fn new(per_second: u32) -> Rate {
        Rate { per_second, tokens: 1.0, at: Instant::now(), own: f64::from(per_second) }
    }

    /// Returns the number of attempts that may begin now. This gateway has `share` of `total`
    /// partitions.
    pub fn allowed(&mut self, share: usize, total: u16) -> usize {
        if self.per_second == 0 {
            return usize::MAX;
        }
        let now = Instant::now();
        let passed = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.own = f64::from(self.per_second) * share as f64 / f64::from(total.max(1));
        self.tokens = (self.tokens + passed * self.own).min(self.own.max(1.0));
        self.tokens as usize
    }

    /// Uses one of the allowed attempts.
    pub fn use_one(&mut self) {
        self.tokens -= 1.0;
    }

    /// Returns the time at which the next attempt may begin; `None` without a limit.
    pub fn next(&self) -> Option<Instant> {
        if self.per_second == 0 || self.own <= 0.0 {
            return None;
        }
        let missing = (1.0 - self.tokens).max(0.0);
        Some(self.at + Duration::from_secs_f64(missing / self.own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gateway_gets_its_share_and_at_most_a_second_at_once() {
        let mut rate = Rate::new(100);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(rate.allowed(64, 256), 25);
        (0..25).for_each(|_| rate.use_one());
        assert_eq!(rate.allowed(64, 256), 0);
        let next = rate.next().unwrap();
        assert_eq!(next - Instant::now(), Duration::from_millis(40));
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(rate.allowed(64, 256), 10);
    }

    #[test]
    fn without_a_limit_everything_may_begin() {
        let mut rate = Rate::new(0);
        assert_eq!((rate.allowed(1, 256), rate.next()), (usize::MAX, None));
    }
}
