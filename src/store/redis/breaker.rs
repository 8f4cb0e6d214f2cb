//! Spares calls the wait for a server that takes them and does not answer.
//!
//! Who finds no connection fails at once anyway. But a server that is stopped, or busy with something long, keeps its
//! connections, and every call would wait for the whole timeout. After a few of them in a row calls fail at once, as not
//! applied: nothing was sent. One at a time still goes through, any of them, and an answer to it ends this. Completions and
//! renewals are no exception: they are said again until they are confirmed, so that one of the next goes through.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::link::jittered;
use crate::store::StoreError;
use crate::telemetry::{BreakerMeter, BreakerState};

/// Calls without an answer, in a row, after which the others are spared.
const UNANSWERED_MAX: u32 = 5;

/// Between two calls that go through, at most: jittered, since many gateways ask the same server.
const REST: Duration = Duration::from_millis(500);

/// Watches over the calls to one server.
pub(super) struct Breaker {
    state: Mutex<State>,
    meter: BreakerMeter,
}

#[derive(Clone, Copy)]
enum State {
    /// Calls go through; so many in a row were not answered.
    Closed { unanswered: u32 },
    /// Calls fail, until then.
    Open { until: Instant },
    /// One goes through, the others fail.
    HalfOpen,
}

impl State {
    fn named(self) -> BreakerState {
        match self {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen => BreakerState::HalfOpen,
        }
    }
}

/// Leave to make one call. Whoever has it says how the call ended; one that is dropped says nothing.
pub(super) struct Pass<'b> {
    breaker: &'b Breaker,
    /// It is the one that goes through while others fail.
    is_probe: bool,
}

impl Breaker {
    /// Lets calls through.
    pub(super) fn new(meter: BreakerMeter) -> Breaker {
        meter.begun();
        Breaker { state: Mutex::new(State::Closed { unanswered: 0 }), meter }
    }

    /// Whether a call may be made.
    ///
    /// # Errors
    /// It is spared: nothing was sent.
    pub(super) fn pass(&self) -> Result<Pass<'_>, StoreError> {
        let mut state = self.state();
        match *state {
            State::Closed { .. } => Ok(Pass { breaker: self, is_probe: false }),
            State::Open { until } if until <= Instant::now() => {
                self.turn(&mut state, State::HalfOpen);
                Ok(Pass { breaker: self, is_probe: true })
            }
            State::Open { .. } | State::HalfOpen => Err(StoreError::NotApplied(
                "the breaker is open: the server did not answer the calls before this one".into(),
            )),
        }
    }

    fn turn(&self, state: &mut State, next: State) {
        if state.named() != next.named() {
            self.meter.turned(state.named(), next.named());
        }
        *state = next;
    }

    fn rest(&self, state: &mut State) {
        self.turn(state, State::Open { until: Instant::now() + jittered(REST) });
    }

    /// A panic leaves it whole: every change is a single assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        let state = *self.state();
        self.meter.ended(state.named());
    }
}

impl Pass<'_> {
    /// The server answered, with whatever. Also what was asked before the others were spared counts.
    pub(super) fn answered(mut self) {
        self.is_probe = false;
        let mut state = self.breaker.state();
        if !matches!(*state, State::Closed { .. }) {
            tracing::info!("the store's server answers again");
        }
        self.breaker.turn(&mut state, State::Closed { unanswered: 0 });
    }

    /// It did not answer in time.
    pub(super) fn unanswered(self) {
        let mut state = self.breaker.state();
        if let State::Closed { unanswered } = *state {
            *state = State::Closed { unanswered: unanswered + 1 };
            if unanswered + 1 >= UNANSWERED_MAX {
                tracing::warn!(
                    calls = UNANSWERED_MAX,
                    "the store's server does not answer: calls fail at once, but for one at a time"
                );
                self.breaker.rest(&mut state);
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            let mut state = self.breaker.state();
            // Another's late answer may have closed it.
            if let State::HalfOpen = *state {
                self.breaker.rest(&mut state);
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
    async fn a_call_that_says_nothing_counts_for_nothing() {
        let breaker = Breaker::new(BreakerMeter::default());
        (0..UNANSWERED_MAX * 2).for_each(|_| drop(breaker.pass().unwrap()));
        assert!(!is_open(&breaker), "a server that is down, or a caller who left");
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_at_a_time_goes_through_and_its_answer_closes_it() {
        let (breaker, meter) = opened();
        assert!(is_open(&breaker), "not before it rested");
        tokio::time::advance(REST).await;
        let probe = breaker.pass().unwrap();
        assert_eq!(
            (meter.servers(BreakerState::HalfOpen), meter.servers(BreakerState::Open)),
            (1, 0)
        );
        assert!(is_open(&breaker));
        probe.unanswered();
        assert!(is_open(&breaker), "it rests again");
        tokio::time::advance(REST).await;
        breaker.pass().unwrap().answered();
        (0..10).for_each(|_| drop(breaker.pass().unwrap()));
        assert_eq!(meter.servers(BreakerState::Closed), 1);
        drop(breaker);
        assert_eq!(meter.servers(BreakerState::Closed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_leaves_makes_room_for_the_next() {
        let (breaker, _) = opened();
        tokio::time::advance(REST).await;
        drop(breaker.pass().unwrap());
        assert!(is_open(&breaker));
        tokio::time::advance(REST).await;
        assert!(breaker.pass().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_closes_it_as_well() {
        let breaker = Breaker::new(BreakerMeter::default());
        let slow = breaker.pass().unwrap();
        (0..UNANSWERED_MAX).for_each(|_| breaker.pass().unwrap().unanswered());
        tokio::time::advance(REST).await;
        let probe = breaker.pass().unwrap();
        slow.answered();
        drop(probe);
        assert!(!is_open(&breaker));
    }
}
