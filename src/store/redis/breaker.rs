//! A circuit breaker. It makes calls fail at once if the server accepts calls and does not answer
//! them.
//!
//! A call without a connection fails at once anyway. But a server that is stopped, or busy with a
//! long command, keeps its connections, and every call would wait for the whole timeout. After
//! [`UNANSWERED_MAX`] such calls in a row, the breaker opens. Then calls fail at once, as not
//! applied, because nothing was sent. From time to time, one call of any kind still goes through.
//! An answer to this call closes the breaker. Completions and renewals need no exception: their
//! callers repeat them until they are confirmed, so a later try goes through.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::jittered;
use crate::store::StoreError;
use crate::telemetry::{BreakerMeter, BreakerState};

/// Unanswered calls in a row that open the breaker.
const UNANSWERED_MAX: u32 = 5;

/// Longest time between two calls that go through; jittered, because many gateways call the same
/// server.
const OPEN_FOR: Duration = Duration::from_millis(500);

/// The breaker of one server.
pub(super) struct Breaker {
    phase: Mutex<BreakerPhase>,
    meter: BreakerMeter,
}

#[derive(Clone, Copy)]
enum BreakerPhase {
    /// Calls go through. Counts the unanswered calls in a row.
    Closed { unanswered: u32 },
    /// Calls fail until this time.
    Open { until: Instant },
    /// One call goes through, the others fail.
    HalfOpen,
}

impl BreakerPhase {
    fn metric(self) -> BreakerState {
        match self {
            BreakerPhase::Closed { .. } => BreakerState::Closed,
            BreakerPhase::Open { .. } => BreakerState::Open,
            BreakerPhase::HalfOpen => BreakerState::HalfOpen,
        }
    }
}

/// Permission for one call. Its owner reports how the call ended. Dropping the permission reports
/// nothing.
pub(super) struct BreakerPass<'b> {
    breaker: &'b Breaker,
    /// Whether this call goes through while others fail.
    is_probe: bool,
}

impl Breaker {
    /// Makes a closed breaker.
    pub(super) fn new(meter: BreakerMeter) -> Breaker {
        meter.begun();
        Breaker { phase: Mutex::new(BreakerPhase::Closed { unanswered: 0 }), meter }
    }

    /// Returns the permission for a call.
    ///
    /// # Errors
    /// The breaker is open; nothing was sent.
    pub(super) fn pass(&self) -> Result<BreakerPass<'_>, StoreError> {
        let mut phase = self.phase();
        match *phase {
            BreakerPhase::Closed { .. } => Ok(BreakerPass { breaker: self, is_probe: false }),
            BreakerPhase::Open { until } if until <= Instant::now() => {
                self.transition(&mut phase, BreakerPhase::HalfOpen);
                Ok(BreakerPass { breaker: self, is_probe: true })
            }
            BreakerPhase::Open { .. } | BreakerPhase::HalfOpen => Err(StoreError::NotApplied(
                "the breaker is open: the server did not answer the calls before this one".into(),
            )),
        }
    }

    fn transition(&self, phase: &mut BreakerPhase, next: BreakerPhase) {
        if phase.metric() != next.metric() {
            self.meter.turned(phase.metric(), next.metric());
        }
        *phase = next;
    }

    fn reopen(&self, phase: &mut BreakerPhase) {
        self.transition(phase, BreakerPhase::Open { until: Instant::now() + jittered(OPEN_FOR) });
    }

    /// A poisoned lock is harmless: every change is a single assignment.
    fn phase(&self) -> MutexGuard<'_, BreakerPhase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        let phase = *self.phase();
        self.meter.ended(phase.metric());
    }
}

impl BreakerPass<'_> {
    /// Reports an answer of any kind. An answer to a call from before the breaker opened counts
    /// too.
    pub(super) fn answered(mut self) {
        self.is_probe = false;
        let mut phase = self.breaker.phase();
        if !matches!(*phase, BreakerPhase::Closed { .. }) {
            tracing::info!("the store's server answers again");
        }
        self.breaker.transition(&mut phase, BreakerPhase::Closed { unanswered: 0 });
    }

    /// Reports that the server did not answer in time.
    pub(super) fn unanswered(self) {
        let mut phase = self.breaker.phase();
        if let BreakerPhase::Closed { unanswered } = *phase {
            *phase = BreakerPhase::Closed { unanswered: unanswered + 1 };
            if unanswered + 1 >= UNANSWERED_MAX {
                tracing::warn!(
                    calls = UNANSWERED_MAX,
                    "the store's server does not answer: calls fail at once, but for one at a time"
                );
                self.breaker.reopen(&mut phase);
            }
        }
    }
}

impl Drop for BreakerPass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            let mut phase = self.breaker.phase();
            // A late answer to another call may have closed the breaker.
            if let BreakerPhase::HalfOpen = *phase {
                self.breaker.reopen(&mut phase);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (Breaker, BreakerMeter) {
        let meter = BreakerMeter::default();
        let breaker = Breaker::new(meter.clone());
        (0..UNANSWERED_MAX).for_each(|_| breaker.pass().unwrap().unanswered());
        (breaker, meter)
    }

    fn is_open(breaker: &Breaker) -> bool {
        matches!(breaker.pass(), Err(StoreError::NotApplied(text)) if text.contains("breaker is open"))
    }

    #[tokio::test(start_paused = true)]
    async fn some_calls_without_an_answer_in_a_row_open_it() {
        let breaker = Breaker::new(BreakerMeter::default());
        for _ in 0..3 {
            (1..UNANSWERED_MAX).for_each(|_| breaker.pass().unwrap().unanswered());
            breaker.pass().unwrap().answered();
        }
        (0..UNANSWERED_MAX).for_each(|_| breaker.pass().unwrap().unanswered());
        assert!(is_open(&breaker));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_report_counts_for_nothing() {
        let breaker = Breaker::new(BreakerMeter::default());
        (0..UNANSWERED_MAX * 2).for_each(|_| drop(breaker.pass().unwrap()));
        assert!(!is_open(&breaker), "a server that is down, or a caller who left");
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_at_a_time_goes_through_and_its_answer_closes_it() {
        let (breaker, meter) = opened();
        assert!(is_open(&breaker), "not before it rested");
        tokio::time::advance(OPEN_FOR).await;
        let probe = breaker.pass().unwrap();
        assert_eq!(
            (meter.servers(BreakerState::HalfOpen), meter.servers(BreakerState::Open)),
            (1, 0)
        );
        assert!(is_open(&breaker));
        probe.unanswered();
        assert!(is_open(&breaker), "it rests again");
        tokio::time::advance(OPEN_FOR).await;
        breaker.pass().unwrap().answered();
        (0..10).for_each(|_| drop(breaker.pass().unwrap()));
        assert_eq!(meter.servers(BreakerState::Closed), 1);
        drop(breaker);
        assert_eq!(meter.servers(BreakerState::Closed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_lost_its_caller_makes_room_for_the_next() {
        let (breaker, _) = opened();
        tokio::time::advance(OPEN_FOR).await;
        drop(breaker.pass().unwrap());
        assert!(is_open(&breaker));
        tokio::time::advance(OPEN_FOR).await;
        assert!(breaker.pass().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_closes_it_as_well() {
        let breaker = Breaker::new(BreakerMeter::default());
        let slow = breaker.pass().unwrap();
        (0..UNANSWERED_MAX).for_each(|_| breaker.pass().unwrap().unanswered());
        tokio::time::advance(OPEN_FOR).await;
        let probe = breaker.pass().unwrap();
        slow.answered();
        drop(probe);
        assert!(!is_open(&breaker));
    }
}
