//! Shadow mode: what enforcing would have done, without refusing, waiting or keeping anything from anybody.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use tokio::sync::oneshot;

use super::budget::Hold;
use super::{Gate, ProtectedRoute, Refusal};
use crate::engine::{
    Admission, Asked, Claim, ClaimOver, DuplicateRefusal, OnUncertain, Outcome, Policy, admit,
    claim,
};
use crate::event::{Context, ObservationKind};
use crate::gate::attempt::settle::SettleResult;
use crate::gate::background::observations::{PendingObservation, differing, refusal};
use crate::gate::intake::identify::Identified;
use crate::key::{Slot, TenantId};
use crate::record::{Cause, Extras, Fence, Held, Version};
use crate::store::Swap;

/// A watched request, from the end of its body to the head of its answer.
pub struct Observation(oneshot::Sender<Outcome>);

/// A watched request whose operation was there before.
struct Duplicate<'w> {
    slot: Slot,
    asked: &'w Asked,
    held: Option<&'w Held>,
    /// The request, where it may be told in which places it differs from the first one.
    request: Option<&'w (Parts, Bytes)>,
}

impl Gate {
    /// Begins to watch a request. Nothing here is awaited by the request itself. `body`: `None` where it was too large.
    pub fn observe(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        identified: Identified,
        parts: Parts,
        body: Option<Bytes>,
        room: Hold,
    ) -> Option<Observation> {
        // Watching must not pile up behind a slow store, so it has a place only while there is one.
        let permit = self.watched.take()?;
        let (outcome, answered) = oneshot::channel();
        let (gate, watched) = (self.clone(), guarded.clone());
        let pending_observation = self.event_log_enabled().then(|| {
            self.pending_observation(
                ObservationKind::WouldReplay,
                &guarded.route.policy,
                Some(TenantId::from_bytes(identified.whose)),
                &parts.headers,
            )
        });
        let request = body.filter(|_| guarded.route.policy.explain).map(|body| (parts, body));
        let room = request.is_some().then_some(room);
        self.tasks.spawn(async move {
            let _held = (permit, room);
            let policy = &watched.route.policy;
            let Ok(identified) = gate.under_stored_secret(policy, identified).await else {
                return watched.meter.count_shadow("unknown");
            };
            let slot = identified.slot;
            let asked = Asked {
                caller: identified.caller,
                fingerprint: identified.fingerprint,
                fence: Fence(gate.entropy.next()),
            };
            let mut next = claim(
                &asked,
                ClaimOver::Nothing,
                Version(gate.entropy.next()),
                gate.clock.unix_ms(),
                policy,
            );
            let leaves =
                request.as_ref().and_then(|(parts, body)| gate.leaves(policy, parts, body));
            next.record.extras = Extras { leaves, span: None };
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
        Some(Observation(outcome))
    }

    /// Notes what enforcing would have done with a duplicate. One that it would have run, or asked the upstream about, is none.
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
            // A watched record never keeps a body, so this is what would have been replayed.
            (Admission::Refuse(DuplicateRefusal::ResponseNotStored { status }), _) => {
                return self.add_observation(PendingObservation {
                    status: Some(*status),
                    ..pending_observation
                });
            }
            (Admission::Wait, _) => return self.add_observation(pending_observation),
            (Admission::Refuse(DuplicateRefusal::KeyReused), Some((parts, body))) => {
                self.key_reused(policy, slot, asked, held, (parts, body))
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
        let Some((status, name)) = refusal(&refused, policy) else { return };
        self.add_observation(PendingObservation {
            kind: ObservationKind::WouldRefuse,
            status: Some(status),
            problem: Some(name),
            differing: differing(&refused),
            ..pending_observation
        });
    }
}

impl Observation {
    /// Tells how the request ended. Bodies are not kept.
    pub fn ended(self, outcome: Outcome) {
        // The watcher is gone where it had nothing to settle.
        let _ = self.0.send(outcome);
    }
}

/// What enforcing would have done with a duplicate.
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
        // A shadow record never keeps a body, so this is what enforcing would have replayed.
        Admission::Refuse(DuplicateRefusal::ResponseNotStored { .. }) => "replay",
        Admission::Refuse(DuplicateRefusal::Unreadable) => "refuse_unreadable",
        Admission::Refuse(DuplicateRefusal::ResultExpired) => "refuse_result_expired",
        Admission::Refuse(DuplicateRefusal::NotSent) => "execute",
    }
}
