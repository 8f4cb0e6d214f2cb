//! Shadow mode: determines what enforcement would have done, without refusing, delaying or storing
//! any answer.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use tokio::sync::oneshot;

use crate::engine::{
    Admission, Claim, ClaimOver, ClaimRequest, DuplicateRefusal, OnUncertain, Outcome, Policy,
    admit, claim,
};
use crate::event::{Context, ObservationKind};
use crate::gate::attempt::settle::SettleResult;
use crate::gate::background::observations::differing;
use crate::gate::budget::Hold;
use crate::gate::explain::{ComparedRequest, key_reused, leaves};
use crate::gate::intake::RequestedOperation;
use crate::gate::observation_buffer::PendingObservation;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::key::Slot;
use crate::record::{Cause, Extras, Fence, Held, Version};
use crate::refusal::Refusal;
use crate::store::Swap;

/// Watches a request in shadow mode, from the end of its body to the head of its answer.
pub struct ShadowObserver(oneshot::Sender<Outcome>);

/// A copy of a watched request, for an explanation of a refusal.
struct WatchedRequest {
    parts: Parts,
    content: Bytes,
    /// The memory of the body, taken from the common budget.
    _room: Hold,
}

impl WatchedRequest {
    fn compared(&self) -> ComparedRequest<'_> {
        ComparedRequest { parts: &self.parts, content: &self.content }
    }
}

/// A watched request for an operation that already had a record.
struct Duplicate<'w> {
    slot: Slot,
    asked: &'w ClaimRequest,
    held: Option<&'w Held>,
    /// The request, if the route explains refusals and the body was not too large.
    request: Option<&'w WatchedRequest>,
}

impl Gate {
    /// Starts to watch a request, in a task for which the request never waits. `content` is the
    /// decoded body; `None` if the body was too large. `room` is the memory of `content`. Returns
    /// `None` if too many requests are being watched.
    pub fn observe(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        operation: RequestedOperation,
        parts: Parts,
        content: Option<Bytes>,
        room: Hold,
    ) -> Option<ShadowObserver> {
        // Without this limit many tasks could wait for a slow store.
        let permit = self.watched.take()?;
        let (outcome, answered) = oneshot::channel();
        let (gate, watched) = (self.clone(), guarded.clone());
        let pending_observation = self.event_log_enabled().then(|| {
            self.pending_observation(
                ObservationKind::WouldReplay,
                &guarded.route.policy,
                Some(operation.tenant),
                &parts.headers,
            )
        });
        let request = content
            .filter(|_| guarded.route.policy.explain)
            .map(|content| WatchedRequest { parts, content, _room: room });
        self.tasks.spawn(async move {
            let _permit = permit;
            let policy = &watched.route.policy;
            let Ok(operation) = gate.under_stored_secret(policy, operation).await else {
                return watched.meter.count_shadow("unknown");
            };
            let RequestedOperation { slot, caller, fingerprint, .. } = operation;
            let asked = ClaimRequest { caller, fingerprint, fence: Fence(gate.entropy.next()) };
            let mut next = claim(
                &asked,
                ClaimOver::Nothing,
                Version(gate.entropy.next()),
                gate.clock.unix_ms(),
                policy,
            );
            let leaves = request
                .as_ref()
                .and_then(|request| leaves(&gate.entropy, policy, request.compared()));
            next.record.extras = Extras { leaves, ..Extras::default() };
            let own = Claim { fence: asked.fence, record: next.record };
            let swapped =
                match gate.store.records.swap(&slot, None, &own.record, next.lifetime).await {
                    Ok(Swap::Large(_)) => gate.store.records.load(&slot).await.map(Swap::Stale),
                    swapped => swapped,
                };
            match swapped {
                Ok(Swap::Stored) => {
                    watched.meter.count_shadow("execute");
                    drop(request);
                    let outcome = answered.await.unwrap_or(Outcome::InDoubt(Cause::Broken));
                    let _: SettleResult =
                        gate.settle(&slot, &own, &outcome, policy, &Context::default()).await;
                }
                Ok(Swap::Stale(held)) => {
                    let admission = admit(held.as_ref(), &asked, policy);
                    watched.meter.count_shadow(would(&admission));
                    if let Some(pending_observation) = pending_observation {
                        let duplicate = Duplicate {
                            slot,
                            asked: &asked,
                            held: held.as_ref(),
                            request: request.as_ref(),
                        };
                        gate.note_watched(policy, pending_observation, &duplicate, &admission);
                    }
                }
                Ok(Swap::Large(_)) | Err(_) => watched.meter.count_shadow("unknown"),
            }
        });
        Some(ShadowObserver(outcome))
    }

    /// Records what enforcement would have done with a duplicate. Records nothing if enforcement
    /// would have run the request, or probed the upstream.
    fn note_watched(
        &self,
        policy: &Policy,
        pending_observation: PendingObservation,
        duplicate: &Duplicate<'_>,
        admission: &Admission,
    ) {
        let Duplicate { slot, asked, held, request } = *duplicate;
        let pending_observation = PendingObservation { slot: Some(slot), ..pending_observation };
        let refused = match (admission, request) {
            (Admission::Replay(reply), _) => {
                return self.add_observation(PendingObservation {
                    status: Some(reply.status.as_u16()),
                    ..pending_observation
                });
            }
            // A record in shadow mode has no body. Enforcement would have replayed the answer.
            (Admission::Refuse(DuplicateRefusal::ResponseNotStored { status }), _) => {
                return self.add_observation(PendingObservation {
                    status: Some(*status),
                    ..pending_observation
                });
            }
            (Admission::Wait, _) => return self.add_observation(pending_observation),
            (Admission::Refuse(DuplicateRefusal::KeyReused), Some(request)) => {
                key_reused(policy, slot, asked, held, request.compared())
            }
            (Admission::Refuse(refusal), _) => Refusal::of_refusal(*refusal, slot),
            (Admission::MarkUncertain, _) if matches!(policy.on_uncertain, OnUncertain::Hold) => {
                Refusal::of_refusal(DuplicateRefusal::uncertain(None), slot)
            }
            (
                Admission::Run | Admission::Claim(_) | Admission::Probe | Admission::MarkUncertain,
                _,
            ) => return,
        };
        let Some((status, name)) = refused.observed(policy.mismatch_status) else { return };
        self.add_observation(PendingObservation {
            kind: ObservationKind::WouldRefuse,
            status: Some(status.as_u16()),
            problem: Some(name),
            differing: differing(&refused),
            ..pending_observation
        });
    }
}

impl ShadowObserver {
    /// Reports the outcome of the request. The body of the answer is not kept.
    pub fn ended(self, outcome: Outcome) {
        // The send fails if the task had nothing to settle and has ended.
        let _ = self.0.send(outcome);
    }
}

/// Returns what enforcement would have done with a request, as a metric's label.
fn would(admission: &Admission) -> &'static str {
    match admission {
        Admission::Run | Admission::Claim(_) => "execute",
        Admission::Replay(_) => "replay",
        Admission::Wait => "wait",
        Admission::MarkUncertain | Admission::Refuse(DuplicateRefusal::OutcomeUncertain { .. }) => {
            "hold"
        }
        Admission::Probe => "probe",
        Admission::Refuse(DuplicateRefusal::KeyReused) => "refuse_key_reused",
        Admission::Refuse(DuplicateRefusal::InFlight { .. }) => "refuse_in_flight",
        // A record in shadow mode has no body. Enforcement would have replayed the answer.
        Admission::Refuse(DuplicateRefusal::ResponseNotStored { .. }) => "replay",
        Admission::Refuse(DuplicateRefusal::Unreadable) => "refuse_unreadable",
        Admission::Refuse(DuplicateRefusal::ResultExpired) => "refuse_result_expired",
        Admission::Refuse(DuplicateRefusal::NotSent) => "execute",
        // No route in shadow mode has such records.
        Admission::Refuse(DuplicateRefusal::SagaStuck | DuplicateRefusal::Barred) => "refuse",
    }
}
