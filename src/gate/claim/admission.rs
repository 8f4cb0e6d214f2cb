//! Admission: decides from the operation's record whether a request runs, is answered, waits, or
//! needs a probe first.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::probe::ProbeResult;
use super::records::STORE_RETRY_AFTER;
use super::{AdmitResult, ClaimDetails, IncomingRequest, PendingAdmission};
use crate::engine::{
    Admission, ClaimOver, ClaimRequest, DuplicateRefusal, OnUncertain, Policy, PublishedRequest,
    admit,
};
use crate::gate::explain::{key_reused, leaves};
use crate::gate::intake::RequestedOperation;
use crate::gate::intake::upstream_key::key_for_upstream;
use crate::gate::permits::Permit;
use crate::gate::prefer::ClientPreference;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::gate::upstream_service::UpstreamService;
use crate::record::{Extras, Fence, Held, SagaNote, SpanId};
use crate::refusal::Refusal;
use crate::telemetry::{Trail, Work};

/// How often a request may read a record that keeps changing, before the gate refuses the request.
/// This prevents a livelock. Real races need far fewer reads.
const LOOKS_MAX: usize = 32;

impl Gate {
    /// Claims an operation, or decides how the request is answered instead.
    pub(super) async fn admit<S, B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        operation: RequestedOperation,
        permit: Permit,
        request: &mut IncomingRequest<'_, S>,
    ) -> Result<AdmitResult, Refusal>
    where
        S: UpstreamService<B>,
    {
        let policy = &guarded.route.policy;
        let mut pending = self.begin_admission(guarded, operation, permit, request);
        let slot = pending.slot;
        let mut admission = Admission::Claim(ClaimOver::Nothing);
        // The uncertain record that a probe asks about.
        let mut uncertain: Option<Held> = None;
        if pending.sender.continues() {
            let held = self.blocking_record(policy, &slot).await;
            let held = held.map_err(|error| self.store_failed(&slot, &error))?;
            admission = decided(&mut pending, held.as_ref(), request)?;
            uncertain = held.filter(|_| admission == Admission::Probe);
        }
        for look in 0..LOOKS_MAX {
            let held = match admission {
                Admission::Claim(ClaimOver::Nothing | ClaimOver::Marker(_))
                    if pending.sender.continues() =>
                {
                    let was_released = admission != Admission::Claim(ClaimOver::Nothing);
                    return Ok(AdmitResult::NothingToContinue { slot, was_released });
                }
                Admission::Claim(ClaimOver::Uncertain { .. })
                    if pending.sender.only_asks()
                        && !matches!(policy.on_uncertain, OnUncertain::Forward) =>
                {
                    return Err(Refusal::of_refusal(DuplicateRefusal::uncertain(None), slot));
                }
                Admission::Claim(over) => {
                    pending.details.saga = self.new_saga(guarded, &slot, request);
                    match self.claim(&mut pending, over, look == 0).await? {
                        ControlFlow::Break(admitted) => return Ok(admitted),
                        ControlFlow::Continue(held) => {
                            pending.details.saga = None;
                            held
                        }
                    }
                }
                Admission::Run => {
                    return Err(Refusal::StoreUnavailable { retry_after: STORE_RETRY_AFTER });
                }
                Admission::Replay(reply) => return Ok(AdmitResult::Replay(slot, reply)),
                Admission::Refuse(refusal) => return Err(Refusal::of_refusal(refusal, slot)),
                Admission::MarkUncertain => Box::pin(self.mark_overdue(&slot, policy))
                    .await
                    .map_err(|error| self.store_failed(&slot, &error))?,
                Admission::Probe => {
                    match Box::pin(self.probe(&mut pending, uncertain.take(), request)).await? {
                        ProbeResult::Found(reply) => return Ok(AdmitResult::Replay(slot, reply)),
                        ProbeResult::Decided(decided) => {
                            admission = decided;
                            continue;
                        }
                        ProbeResult::Changed(held) => held,
                    }
                }
                // The gateway's own calls do not wait: the permits for waiting are only for
                // clients.
                Admission::Wait if pending.sender.is_gateway() => {
                    return Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot));
                }
                Admission::Wait => Box::pin(self.wait(&mut pending, request)).await?,
            };
            admission = decided(&mut pending, held.as_ref(), request)?;
            uncertain = held.filter(|_| admission == Admission::Probe);
        }
        Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot))
    }

    /// Prepares the admission of an identified request.
    fn begin_admission<'r, S>(
        &self,
        guarded: &'r Arc<ProtectedRoute>,
        mut operation: RequestedOperation,
        permit: Permit,
        request: &IncomingRequest<'r, S>,
    ) -> PendingAdmission<'r> {
        let mut details = self.claim_details(&guarded.route.policy, &mut operation, request);
        details.extras.saga = guarded.saga.as_ref().map(|_| SagaNote {
            tenant_mark: self.settings.hashing.tenant_mark(&operation.tenant).into(),
            summary: Bytes::new(),
        });
        details.may_be_elsewhere = !operation.others.is_empty();
        let RequestedOperation { slot, caller, fingerprint, tenant, .. } = operation;
        PendingAdmission {
            guarded,
            sender: request.sender,
            slot,
            tenant,
            asked: ClaimRequest { caller, fingerprint, fence: Fence(self.entropy.next()) },
            details,
            current_publication: None,
            permit: Some(permit),
            address: request.context.address_share.as_ref(),
            waiting: None,
        }
    }

    fn claim_details<'r, S>(
        &self,
        policy: &Policy,
        operation: &mut RequestedOperation,
        request: &IncomingRequest<'r, S>,
    ) -> ClaimDetails<'r> {
        let IncomingRequest { parts, key, request_bytes, context, resource, .. } = *request;
        let trail = context.trail.clone();
        if let Some(trail) = &trail {
            let tenant_mark = self.settings.hashing.tenant_mark(&operation.tenant);
            trail.identified(operation.slot.to_string(), tenant_mark);
        }
        let kept = match &policy.on_uncertain {
            OnUncertain::Probe(probe) if probe.background => {
                Some(key_for_upstream(policy, key).into_owned().into())
            }
            _ => None,
        };
        let span = trail.as_ref().and_then(Trail::span).map(|(trace, span)| SpanId { trace, span });
        let extras = Extras {
            leaves: leaves(&self.entropy, policy, request.compared()),
            span,
            saga: None,
            resource,
        };
        let fields = std::mem::take(&mut operation.fields);
        let publication = policy.publish.as_ref().map(|rules| {
            rules.publication(PublishedRequest {
                content: request.content,
                is_decoded: request.is_decoded,
                redact: &policy.redact,
                hops: request.sender.hops(),
            })
        });
        let headers = &parts.headers;
        ClaimDetails {
            saga: None,
            may_be_elsewhere: false,
            kept,
            publication,
            extras,
            trail,
            fields,
            headers,
            request_bytes,
        }
    }

    /// Probes the upstream about an uncertain operation.
    async fn probe<S, B>(
        &self,
        pending: &mut PendingAdmission<'_>,
        uncertain: Option<Held>,
        request: &mut IncomingRequest<'_, S>,
    ) -> Result<ProbeResult, Refusal>
    where
        S: UpstreamService<B>,
    {
        let (Some(held), OnUncertain::Probe(probe)) =
            (uncertain, &pending.guarded.route.policy.on_uncertain)
        else {
            return Err(Refusal::of_refusal(DuplicateRefusal::uncertain(None), pending.slot));
        };
        // A probe needs a permit like any other request to the upstream.
        pending.permit = Some(pending.take_permit(self)?);
        let (guarded, slot, asked) = (pending.guarded, &pending.slot, &pending.asked);
        self.probe_for_duplicate(guarded, probe, slot, asked, &held, request).await
    }

    /// Waits until the record no longer makes the request wait. Adds the time to `request.waited`.
    async fn wait<S>(
        &self,
        pending: &mut PendingAdmission<'_>,
        request: &mut IncomingRequest<'_, S>,
    ) -> Result<Option<Held>, Refusal> {
        // A waiting duplicate runs nothing, so other requests get its permit.
        pending.permit = None;
        let PendingAdmission { guarded, slot, asked, details, waiting, address, .. } = pending;
        let policy = &guarded.route.policy;
        let waiting = match waiting {
            Some(waiting) => waiting,
            none => {
                let wait = guarded
                    .saga
                    .as_ref()
                    .and_then(|_| ClientPreference::of(&request.parts.headers).longest_wait());
                none.insert(self.begin_to_wait(guarded, slot, *address, wait)?)
            }
        };
        let _step = Trail::step(details.trail.as_ref(), Work::Wait);
        let began = Instant::now();
        let found = self.wait_for_change(waiting, policy, slot, asked).await;
        *request.waited.get_or_insert_default() += began.elapsed();
        found
    }
}

/// Decides what the request may do, given the record that was found.
fn decided<S>(
    pending: &mut PendingAdmission<'_>,
    held: Option<&Held>,
    request: &IncomingRequest<'_, S>,
) -> Result<Admission, Refusal> {
    let policy = &pending.guarded.route.policy;
    let admission = admit(held, &pending.asked, policy);
    pending.current_publication = held.and_then(|held| held.record.publication.clone());
    match (&admission, held) {
        (Admission::Replay(_), Some(held)) => pending.details.link_to(held),
        (Admission::Refuse(DuplicateRefusal::KeyReused), held) => {
            let compared = request.compared();
            return Err(key_reused(policy, pending.slot, &pending.asked, held, compared));
        }
        _ => {}
    }
    Ok(admission)
}
