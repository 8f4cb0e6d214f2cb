//! Observing: what was done with duplicates, told in batches to a log of its own.
//!
//! It may be lost, and is counted then: no request waits for it, and a duplicate writes nothing itself.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select;
use http::HeaderMap;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::engine::Policy;
use crate::event::{Difference, Observation, ObservationKind};
use crate::gate::background::event_log::{TRACE_DIGITS, trace_digits, trace_text};
use crate::gate::claim::Entry;
use crate::gate::{Gate, Refusal};
use crate::key::{Hashing, Slot, TenantId};

/// Observations that wait to be told: a fraction of a second of a storm of retries, 2 MB; 40 MB, if all were refused and each says
/// of as many places as possible that it differed there. As many may be in a teller's hands. What comes on top is lost.
const WAITING_MAX: usize = 8192;

/// Observations in one batch, some 130 KB at most times: a larger one would keep the store from other calls.
const BATCH: usize = 1024;

/// How long the first of a batch waits for more.
const PAUSE: Duration = Duration::from_millis(500);

/// One request, as it is noted while it is answered: without a text of its own, of which an [`Observation`] has five.
pub(in crate::gate) struct PendingObservation {
    pub kind: ObservationKind,
    pub at_ms: u64,
    pub slot: Option<Slot>,
    pub route: Arc<str>,
    pub whose: Option<[u8; 32]>,
    /// What that is marked with when it is told: a reload may rotate the secrets meanwhile.
    pub hashing: Hashing,
    pub status: Option<u16>,
    pub waited: Option<Duration>,
    pub problem: Option<&'static str>,
    pub differing: Vec<Difference>,
    pub trace: Option<[u8; TRACE_DIGITS]>,
}

/// What waits to be told.
#[derive(Default)]
pub(in crate::gate) struct ObservationBuffer {
    waiting: Mutex<Vec<PendingObservation>>,
    /// There is a whole batch.
    full: Notify,
}

impl ObservationBuffer {
    /// Notes what was seen; `false` where there is no room.
    fn note(&self, seen: PendingObservation) -> bool {
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING_MAX {
            return false;
        }
        waiting.push(seen);
        if waiting.len() == BATCH {
            drop(waiting);
            self.full.notify_one();
        }
        true
    }

    /// What waits, which is then in other hands.
    fn take(&self) -> Vec<PendingObservation> {
        let mut waiting = self.waiting();
        // Where there were some, there are going to be more; growing to them step by step takes as long as noting them.
        let room = if waiting.is_empty() { 0 } else { BATCH };
        std::mem::replace(&mut *waiting, Vec::with_capacity(room))
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<PendingObservation>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// Notes what became of a request that did not run. `waited`: how long it was held.
    pub(in crate::gate) fn observe_duplicate(
        &self,
        policy: &Policy,
        (whose, headers): (&[u8; 32], &HeaderMap),
        admitted: &Result<Entry, Refusal>,
        waited: Option<Duration>,
    ) {
        if !self.event_log_enabled() {
            return;
        }
        let (kind, slot, status, problem) = match admitted {
            Ok(Entry::Replay(slot, reply)) => {
                let kind = if waited.is_some() {
                    ObservationKind::Waited
                } else {
                    ObservationKind::Replayed
                };
                (kind, *slot, reply.status.as_u16(), None)
            }
            Ok(_) => return,
            Err(problem) => match (problem.operation(), refusal(problem, policy)) {
                (Some(slot), Some((status, name))) => {
                    (ObservationKind::Refused, slot, status, Some(name))
                }
                _ => return,
            },
        };
        self.note(PendingObservation {
            slot: Some(slot),
            status: Some(status),
            waited,
            problem,
            differing: admitted.as_ref().err().map(differing).unwrap_or_default(),
            ..self.pending_observation(kind, policy, Some(whose), headers)
        });
    }

    /// Notes that a request of what is only watched would have been refused, because it can't be told which operation it is.
    pub fn observe_unidentified(
        &self,
        policy: &Policy,
        tenant: Option<TenantId>,
        headers: &HeaderMap,
        problem: &Refusal,
    ) {
        if !self.event_log_enabled() {
            return;
        }
        let Some((status, name)) = refusal(problem, policy) else { return };
        let whose = tenant.as_ref().map(TenantId::as_bytes);
        let seen = self.pending_observation(ObservationKind::WouldRefuse, policy, whose, headers);
        self.note(PendingObservation { status: Some(status), problem: Some(name), ..seen });
    }

    /// What is known of any request: on which route it came, when, whose it is and in which trace.
    pub(in crate::gate) fn pending_observation(
        &self,
        kind: ObservationKind,
        policy: &Policy,
        whose: Option<&[u8; 32]>,
        headers: &HeaderMap,
    ) -> PendingObservation {
        PendingObservation {
            kind,
            at_ms: self.clock.unix_ms(),
            slot: None,
            route: policy.route.clone(),
            whose: whose.copied(),
            hashing: self.settings.hashing.clone(),
            status: None,
            waited: None,
            problem: None,
            differing: Vec::new(),
            trace: trace_digits(headers),
        }
    }

    /// Notes what was seen, if there is room.
    pub(in crate::gate) fn note(&self, seen: PendingObservation) {
        if !self.observed.note(seen) {
            self.meter.observations_lost.inc();
        }
    }

    /// Tells what was observed until the `end`, and then once more what waits: by ending it in the middle of a call, what it has
    /// taken would be lost.
    pub async fn export_observations(&self, end: &CancellationToken) {
        loop {
            let is_last = end.is_cancelled();
            // Where the time is over, there may be some all the same.
            let _ =
                timeout(PAUSE, select(pin!(self.observed.full.notified()), pin!(end.cancelled())))
                    .await;
            self.tell_waiting().await;
            if is_last {
                return;
            }
        }
    }

    /// Tells what waits to be told.
    pub(in crate::gate) async fn tell_waiting(&self) {
        let waiting = self.observed.take();
        for batch in waiting.chunks(BATCH) {
            if let Err(error) =
                self.store.log.observe(&Observation::encode(&observations(batch))).await
            {
                tracing::debug!(%error, "observations are lost");
                self.meter.observations_lost.inc_by(batch.len() as u64);
            }
        }
    }
}

/// Sightings as others read them. Those of a storm are alike but for when they came, and told as one.
fn observations(batch: &[PendingObservation]) -> Vec<Observation> {
    // Under a secret a mark takes longer than all the rest, and those of a batch are often of a few scopes.
    let mut marks = BTreeMap::new();
    let mut mark = |seen: &PendingObservation, whose| {
        marks
            .entry(whose)
            .or_insert_with_key(|whose| seen.hashing.tenant_mark(&TenantId::from_bytes(*whose)))
            .clone()
    };
    let mut told: Vec<Observation> = Vec::new();
    let mut places = BTreeMap::new();
    for seen in batch {
        let waited_ms =
            seen.waited.map(|waited| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let alike = (
            seen.slot,
            seen.kind,
            &seen.route,
            seen.whose,
            seen.status,
            seen.problem,
            &seen.differing,
        );
        if let Some(first) = places.get(&alike).and_then(|place: &usize| told.get_mut(*place)) {
            first.again(seen.at_ms, waited_ms);
            continue;
        }
        places.insert(alike, told.len());
        told.push(Observation {
            kind: seen.kind,
            at_ms: seen.at_ms,
            until_ms: None,
            times: None,
            operation: seen.slot.map(|slot| slot.to_string()).unwrap_or_default(),
            route: seen.route.to_string(),
            scope: seen.whose.map(|whose| mark(seen, whose)),
            status: seen.status,
            waited_ms,
            problem: seen.problem.map(str::to_owned),
            differing: seen.differing.clone(),
            trace: seen.trace.as_ref().map(trace_text),
        });
    }
    told
}

/// The refusal of a duplicate, or of one that can't be told to be one: its status and the problem's short name. `None`: it was
/// none, and says more of the gateway than of the request.
pub(in crate::gate) fn refusal(problem: &Refusal, policy: &Policy) -> Option<(u16, &'static str)> {
    Some(match problem {
        Refusal::KeyReused { .. } => (policy.mismatch_status.as_u16(), "key-reused"),
        Refusal::InFlight { .. } => (409, "in-flight"),
        Refusal::OutcomeUncertain { status: None, .. } => (409, "outcome-uncertain"),
        Refusal::ResponseNotStored { .. } => (409, "response-not-stored"),
        Refusal::ResultExpired { .. } => (409, "result-expired"),
        Refusal::KeyMissing { .. } => (400, "key-missing"),
        Refusal::KeyInvalid { .. } => (400, "key-invalid"),
        Refusal::ScopeMissing { .. } => (400, "scope-missing"),
        Refusal::ScopeInvalid { .. } => (401, "scope-invalid"),
        Refusal::ScopeRepeated { .. } => (400, "scope-invalid"),
        Refusal::UnsupportedEncoding => (415, "unsupported-encoding"),
        Refusal::BodyUnreadable => (400, "body-unreadable"),
        _ => return None,
    })
}

/// Where it differed, as far as that is told.
pub(in crate::gate) fn differing(problem: &Refusal) -> Vec<Difference> {
    let Refusal::KeyReused { explained: Some(explained), .. } = problem else { return Vec::new() };
    let places = explained.differing.iter().flatten();
    places.map(|pointer| Difference { pointer: pointer.clone() }).collect()
}
