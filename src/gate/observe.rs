//! Observing: what was done with duplicates, told in batches to a log of its own.
//!
//! It may be lost, and is counted then: no request waits for it, and a duplicate writes nothing itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::request::Parts;
use tokio::sync::mpsc;

use super::claim::Entry;
use super::identify::whose;
use super::tell::trace_of;
use super::{Gate, Problem};
use crate::engine::Policy;
use crate::event::{Difference, Observation, Seen};

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
    /// Notes what became of a request that did not run. `waited`: how long it was held.
    pub(super) fn note_duplicate(
        &self,
        policy: &Policy,
        (whose, headers): (&[u8; 32], &HeaderMap),
        admitted: &Result<Entry, Problem>,
        waited: Option<Duration>,
    ) {
        if !self.tells() {
            return;
        }
        let (kind, slot, status, problem) = match admitted {
            Ok(Entry::Replay(slot, reply)) => {
                let kind = if waited.is_some() { Seen::Waited } else { Seen::Replayed };
                (kind, *slot, reply.status.as_u16(), None)
            }
            Ok(_) => return,
            Err(problem) => match (problem.operation(), refusal(problem, policy)) {
                (Some(slot), Some((status, name))) => (Seen::Refused, slot, status, Some(name.to_owned())),
                _ => return,
            },
        };
        let seen = Observation {
            operation: slot.to_string(),
            status: Some(status),
            waited_ms: waited.map(|waited| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)),
            problem,
            differing: admitted.as_ref().err().map(differing).unwrap_or_default(),
            ..self.sighting(kind, policy, Some(whose), headers)
        };
        self.note(seen);
    }

    /// Notes that a request of what is only watched would have been refused, because it can't be told which operation it is.
    pub fn note_unidentified(&self, policy: &Policy, parts: &Parts, problem: &Problem) {
        if !self.tells() {
            return;
        }
        let Some((status, name)) = refusal(problem, policy) else { return };
        let whose = whose(policy, parts);
        let seen = self.sighting(Seen::WouldRefuse, policy, whose.as_ref(), &parts.headers);
        self.note(Observation { status: Some(status), problem: Some(name.to_owned()), ..seen });
    }

    /// What is known of any request: on which route it came, when, whose it is and in which trace.
    pub(super) fn sighting(&self, kind: Seen, policy: &Policy, whose: Option<&[u8; 32]>, headers: &HeaderMap) -> Observation {
        Observation {
            kind,
            at_ms: self.clock.unix_ms(),
            operation: String::new(),
            route: policy.route.to_string(),
            scope: whose.map(|whose| self.settings.hashing.scope_mark(whose)),
            status: None,
            waited_ms: None,
            problem: None,
            differing: Vec::new(),
            trace: trace_of(headers),
        }
    }

    /// Notes what was seen, if there is room.
    pub(super) fn note(&self, seen: Observation) {
        if self.observed.seen.try_send(seen).is_err() {
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

/// The refusal of a duplicate, or of one that can't be told to be one: its status and the problem's short name. `None`: it was
/// none, and says more of the gateway than of the request.
pub(super) fn refusal(problem: &Problem, policy: &Policy) -> Option<(u16, &'static str)> {
    Some(match problem {
        Problem::KeyReused { .. } => (policy.mismatch_status.as_u16(), "key-reused"),
        Problem::InFlight { .. } => (409, "in-flight"),
        Problem::OutcomeUncertain { status: None, .. } => (409, "outcome-uncertain"),
        Problem::ResponseNotStored { .. } => (409, "response-not-stored"),
        Problem::ResultExpired { .. } => (409, "result-expired"),
        Problem::KeyMissing { .. } => (400, "key-missing"),
        Problem::KeyInvalid { .. } => (400, "key-invalid"),
        Problem::ScopeMissing { .. } => (400, "scope-missing"),
        Problem::ScopeInvalid { .. } => (401, "scope-invalid"),
        Problem::UnsupportedEncoding => (415, "unsupported-encoding"),
        _ => return None,
    })
}

/// Where it differed, as far as that is told.
pub(super) fn differing(problem: &Problem) -> Vec<Difference> {
    let Problem::KeyReused { explained: Some(explained), .. } = problem else { return Vec::new() };
    let places = explained.differing.iter().flatten();
    places.map(|pointer| Difference { pointer: pointer.clone() }).collect()
}
