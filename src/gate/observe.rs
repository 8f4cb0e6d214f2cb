//! Observing: what was done with duplicates, told in batches to a log of its own.
//!
//! It may be lost, and is counted then: no request waits for it, and a duplicate writes nothing itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::claim::Entry;
use super::{Gate, Problem};
use crate::engine::Policy;
use crate::event::{Difference, Observation, Seen};
use crate::key::Slot;

/// Observations that wait to be told: a second of a storm of retries. What comes on top is lost.
const WAITING_MAX: usize = 8192;

/// Observations in one batch.
const BATCH: usize = 256;

/// Between two batches that were not full: what comes meanwhile is told together.
const PAUSE: Duration = Duration::from_millis(500);

/// What waits to be told.
pub(super) struct Observed {
    seen: mpsc::Sender<Observation>,
    told: Mutex<Option<mpsc::Receiver<Observation>>>,
}

impl Observed {
    /// Nothing yet.
    pub fn new() -> Arc<Observed> {
        let (seen, told) = mpsc::channel(WAITING_MAX);
        Arc::new(Observed { seen, told: Mutex::new(Some(told)) })
    }
}

impl Gate {
    /// Notes what became of a request that did not run.
    pub(super) fn note_duplicate(&self, policy: &Policy, whose: &[u8; 32], admitted: &Result<Entry, Problem>) {
        if self.settings.log_keep.is_none() {
            return;
        }
        let (kind, slot, status, problem) = match admitted {
            Ok(Entry::Replay(slot, reply)) => (Seen::Replayed, *slot, reply.status.as_u16(), None),
            Ok(_) => return,
            Err(problem) => match refusal(problem, policy) {
                Some((slot, status, name)) => (Seen::Refused, slot, status, Some(name.to_owned())),
                None => return,
            },
        };
        let observation = Observation {
            kind,
            at_ms: self.clock.unix_ms(),
            operation: slot.to_string(),
            route: policy.route.to_string(),
            scope: Some(self.settings.hashing.scope_mark(whose)),
            status: Some(status),
            waited_ms: None,
            problem,
            differing: admitted.as_ref().err().map(differing).unwrap_or_default(),
            trace: None,
        };
        if self.observed.seen.try_send(observation).is_err() {
            self.meter.observations_lost.inc();
        }
    }

    /// Tells what was observed, for as long as it is let. A second call has nothing to tell.
    pub async fn tell_observations(&self) {
        let told = self.observed.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut told) = told else { return };
        let mut batch = Vec::with_capacity(BATCH);
        while told.recv_many(&mut batch, BATCH).await > 0 {
            if let Err(error) = self.store.log().observe(&Observation::encode(&batch)).await {
                tracing::debug!(%error, "observations are lost");
                self.meter.observations_lost.inc_by(batch.len() as u64);
            }
            if batch.len() < BATCH {
                tokio::time::sleep(PAUSE).await;
            }
            batch.clear();
        }
    }
}

/// The refusal of a duplicate: its operation, its status and the problem's short name. `None`: it was none.
fn refusal(problem: &Problem, policy: &Policy) -> Option<(Slot, u16, &'static str)> {
    let name = match problem {
        Problem::KeyReused { slot, .. } => return Some((*slot, policy.mismatch_status.as_u16(), "key-reused")),
        Problem::InFlight { .. } => "in-flight",
        Problem::OutcomeUncertain { status: None, .. } => "outcome-uncertain",
        Problem::ResponseNotStored { .. } => "response-not-stored",
        Problem::ResultExpired { .. } => "result-expired",
        _ => return None,
    };
    Some((problem.operation()?, 409, name))
}

/// Where it differed, as far as that is told.
fn differing(problem: &Problem) -> Vec<Difference> {
    let Problem::KeyReused { explained: Some(explained), .. } = problem else { return Vec::new() };
    let places = explained.differing.iter().flatten();
    places.map(|pointer| Difference { pointer: pointer.clone() }).collect()
}
