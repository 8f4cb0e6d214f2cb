//! Observations: the answers to duplicates, exported in batches to a log of their own.
//!
//! Observations may be lost, and losses are counted. No request waits for the export, and a
//! duplicate itself writes nothing to the store.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::select;
use http::HeaderMap;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::engine::Policy;
use crate::event::{Difference, Observation, ObservationKind};
use crate::gate::claim::AdmitResult;
use crate::gate::observation_buffer::{BATCH, PendingObservation};
use crate::gate::state::Gate;
use crate::gate::trace::{trace_digits, trace_text};
use crate::key::TenantId;
use crate::refusal::Refusal;

/// How long an incomplete batch waits for more observations.
const BATCH_WAIT: Duration = Duration::from_millis(500);

impl Gate {
    /// Records the answer to a request that did not run. `waited` is how long the request waited
    /// for the first one.
    pub(in crate::gate) fn observe_duplicate(
        &self,
        policy: &Policy,
        tenant: TenantId,
        headers: &HeaderMap,
        admitted: &Result<AdmitResult, Refusal>,
        waited: Option<Duration>,
    ) {
        if !self.event_log_enabled() {
            return;
        }
        let (kind, slot, status, problem) = match admitted {
            Ok(AdmitResult::Replay(slot, reply)) => {
                let kind = if waited.is_some() {
                    ObservationKind::Waited
                } else {
                    ObservationKind::Replayed
                };
                (kind, *slot, reply.status.as_u16(), None)
            }
            Ok(_) => return,
            Err(refusal) => match (refusal.operation(), refusal.observed(policy.mismatch_status)) {
                (Some(slot), Some((status, name))) => {
                    (ObservationKind::Refused, slot, status.as_u16(), Some(name))
                }
                (None, _) | (_, None) => return,
            },
        };
        self.add_observation(PendingObservation {
            slot: Some(slot),
            status: Some(status),
            waited,
            problem,
            differing: admitted.as_ref().err().map(differing).unwrap_or_default(),
            ..self.pending_observation(kind, policy, Some(tenant), headers)
        });
    }

    /// Records that enforcement would have refused a request of a shadow route, because the request
    /// does not identify its operation.
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
        let Some((status, name)) = problem.observed(policy.mismatch_status) else { return };
        let observation =
            self.pending_observation(ObservationKind::WouldRefuse, policy, tenant, headers);
        self.add_observation(PendingObservation {
            status: Some(status.as_u16()),
            problem: Some(name),
            ..observation
        });
    }

    /// Creates an observation with the properties that every request has: route, time, tenant and
    /// trace.
    pub(in crate::gate) fn pending_observation(
        &self,
        kind: ObservationKind,
        policy: &Policy,
        tenant: Option<TenantId>,
        headers: &HeaderMap,
    ) -> PendingObservation {
        PendingObservation {
            kind,
            at_ms: self.clock.unix_ms(),
            slot: None,
            route: policy.route.clone(),
            tenant,
            hashing: self.settings.hashing.clone(),
            status: None,
            waited: None,
            problem: None,
            differing: Vec::new(),
            trace: trace_digits(headers),
        }
    }

    /// Adds an observation to the buffer. If the buffer is full, counts the observation as lost.
    pub(in crate::gate) fn add_observation(&self, observation: PendingObservation) {
        if !self.observed.add(observation) {
            self.meter.observations_lost.inc();
        }
    }

    /// Exports observations until `end` is cancelled, and then once more. If this future is dropped
    /// during a store call, the observations of that call are lost.
    pub async fn export_observations(&self, end: &CancellationToken) {
        loop {
            let is_last = end.is_cancelled();
            let full = self.observed.batch_is_full.notified();
            // After the timeout the pending batch may be incomplete.
            let _ = timeout(BATCH_WAIT, select(pin!(full), pin!(end.cancelled()))).await;
            self.export_pending().await;
            if is_last {
                return;
            }
        }
    }

    /// Exports the pending observations.
    pub(in crate::gate) async fn export_pending(&self) {
        let pending = self.observed.take();
        for batch in pending.chunks(BATCH) {
            if let Err(error) =
                self.store.log.observe(&Observation::encode(&observations(batch))).await
            {
                tracing::debug!(%error, "observations lost");
                self.meter.observations_lost.inc_by(batch.len() as u64);
            }
        }
    }
}

/// Converts pending observations into stored ones. Observations that differ only in their times and
/// traces, as in a retry storm, become one.
fn observations(batch: &[PendingObservation]) -> Vec<Observation> {
    // Each mark is computed once, because computing a mark takes longer than all the rest. A batch
    // often has few tenants.
    let mut marks = BTreeMap::new();
    let mut mark = |pending: &PendingObservation, tenant: TenantId| {
        marks.entry(tenant).or_insert_with_key(|tenant| pending.hashing.tenant_mark(tenant)).clone()
    };
    let mut merged: Vec<Observation> = Vec::new();
    let mut positions = BTreeMap::new();
    for pending in batch {
        let waited_ms =
            pending.waited.map(|waited| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let group = (
            pending.slot,
            pending.kind,
            &pending.route,
            pending.tenant,
            pending.status,
            pending.problem,
            &pending.differing,
        );
        let first = positions.get(&group).and_then(|position: &usize| merged.get_mut(*position));
        if let Some(first) = first {
            first.again(pending.at_ms, waited_ms);
            continue;
        }
        positions.insert(group, merged.len());
        merged.push(Observation {
            kind: pending.kind,
            at_ms: pending.at_ms,
            until_ms: None,
            times: None,
            operation: pending.slot.map(|slot| slot.to_string()).unwrap_or_default(),
            route: pending.route.to_string(),
            scope: pending.tenant.map(|tenant| mark(pending, tenant)),
            status: pending.status,
            waited_ms,
            problem: pending.problem.map(str::to_owned),
            differing: pending.differing.clone(),
            trace: pending.trace.as_ref().map(trace_text),
        });
    }
    merged
}

/// Returns the differences that the refusal names.
pub(in crate::gate) fn differing(refusal: &Refusal) -> Vec<Difference> {
    let places = refusal.differing().iter();
    places.map(|pointer| Difference { pointer: pointer.clone() }).collect()
}
