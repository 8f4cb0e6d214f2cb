//! One try at a claim: a single swap in the store, and its possible results.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::records::STORE_RETRY_AFTER;
use super::unconfirmed::UnconfirmedClaim;
use super::{AdmitResult, PendingAdmission};
use crate::engine::{
    Admission, Claim, ClaimOver, DuplicateRefusal, admit, claim, publication_of_claim, saga_claim,
};
use crate::event::{ChangedSaga, Context};
use crate::gate::attempt::Claimed;
use crate::gate::send_rule::SendRule;
use crate::gate::shared_permit::SharedPermit;
use crate::gate::state::Gate;
use crate::record::{Fence, Held, Lifetime, PrivateContent, Version};
use crate::refusal::Refusal;
use crate::store::{StoreError, Swap};
use crate::telemetry::{StoreCall, Timer, Trail, Work};

/// Maximum time that a claim waits for its turn among the claims of its address. If the store
/// answers, a turn becomes free within milliseconds.
const TURN_MAX: Duration = Duration::from_millis(500);

/// The result of one try at a claim.
enum ClaimResult {
    /// The store has the claim.
    Confirmed(Claim, Arc<SendRule>),
    /// This record blocks the claim.
    Blocked(Option<Held>),
    /// The slot has another record. The claim may still arrive at the store, and is being given up.
    GivenUp(Option<Held>),
    /// The claim is not confirmed. `Some`: the claim may be stored, or may still arrive. `None`:
    /// the claim was not stored.
    Unknown(Option<Claim>),
}

/// A claim with a lost answer, and the values to write it again.
struct UnansweredClaim<'g> {
    own: UnconfirmedClaim<'g>,
    over: ClaimOver,
    lifetime: Lifetime,
    rule: Arc<SendRule>,
    started: Option<ChangedSaga>,
}

impl Gate {
    /// Tries to claim the operation. Returns how the request is admitted, or the record that blocks
    /// the claim. `first_look` means that no record of the operation was seen yet.
    pub(super) async fn claim(
        self: &Arc<Self>,
        pending: &mut PendingAdmission<'_>,
        over: ClaimOver,
        first_look: bool,
    ) -> Result<ControlFlow<AdmitResult, Option<Held>>, Refusal> {
        let (guarded, slot) = (pending.guarded, pending.slot);
        let policy = &guarded.route.policy;
        if over == ClaimOver::Nothing && pending.waiting.is_some() {
            // The record that the request waited for is gone, perhaps because its retention has
            // ended. A new attempt could repeat the operation.
            return Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot));
        }
        let permit = pending.take_permit(self)?;
        let turn = match pending.address {
            Some(address) => {
                timeout(TURN_MAX, address.turn()).await.map_err(|_| Refusal::Overloaded)?
            }
            None => None,
        };
        match self.try_claim(pending, over, turn).await? {
            ClaimResult::Confirmed(claim, rule) => {
                let quota_use = self.use_quota(pending, &claim, over)?;
                let event_context = if self.event_log_enabled() {
                    pending.details.outcome_context()
                } else {
                    Context::default()
                };
                let permit = SharedPermit::new(permit);
                let asked = pending.asked;
                let saga = pending.details.saga.take().and_then(Result::ok);
                Ok(ControlFlow::Break(AdmitResult::Run(Claimed {
                    slot,
                    asked,
                    claim,
                    rule,
                    permit,
                    quota_use,
                    event_context,
                    saga,
                })))
            }
            ClaimResult::Blocked(held) => Ok(ControlFlow::Continue(held)),
            ClaimResult::GivenUp(held) => {
                // The next claim needs a new fence. Otherwise the background task that gives up the
                // old claim could release the next one.
                pending.asked.fence = Fence(self.entropy.next());
                Ok(ControlFlow::Continue(held))
            }
            // Only while no record was seen. A request must not run if its operation may be active
            // or settled.
            ClaimResult::Unknown(_)
                if first_look && pending.sender.passes_without_store(policy) =>
            {
                Ok(ControlFlow::Break(AdmitResult::Unprotected))
            }
            ClaimResult::Unknown(own) => {
                own.into_iter().for_each(|own| self.give_up(slot, own, guarded, None));
                Err(Refusal::StoreUnavailable { retry_after: STORE_RETRY_AFTER })
            }
        }
    }

    /// Claims in one round trip. If a record blocks the claim, the same round trip returns this
    /// record.
    async fn try_claim(
        self: &Arc<Self>,
        pending: &PendingAdmission<'_>,
        over: ClaimOver,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<ClaimResult, Refusal> {
        let PendingAdmission { guarded, slot, asked, details, .. } = pending;
        let policy = &guarded.route.policy;
        if let Err(refusal) = self.check_room(pending, over) {
            let held = Box::pin(self.record_instead_of_claim(pending, refusal)).await?;
            return Ok(ClaimResult::Blocked(Some(held)));
        }
        let (fresh, now_unix_ms) = (Version(self.entropy.next()), self.clock.unix_ms());
        let mut next = match &details.saga {
            // A claim that may have to be given up begins as that of an attempt. If its gateway
            // dies, its lease ends and nothing runs; a saga would be taken over.
            Some(Ok(saga)) if !details.may_be_elsewhere => {
                let content = PrivateContent::Open(saga.content.clone());
                saga_claim(asked, over, fresh, now_unix_ms, policy, content)
            }
            Some(_) | None => claim(asked, over, fresh, now_unix_ms, policy),
        };
        next.record.kept = details.kept.clone();
        next.record.extras = details.extras.clone();
        let current = pending.current_publication.as_ref();
        next.record.publication = publication_of_claim(over, current, details.publication.as_ref());
        let started = self.started_saga(pending, next.record.publication.is_some());
        // The send rule counts from before the command is sent, so the store's lease can only begin
        // later.
        let from_ms = self.clock.boot_ms();
        let claim = Claim { fence: asked.fence, record: next.record };
        let own = UnconfirmedClaim::new(self, guarded, slot, claim, turn);
        let context = || self.claim_context(pending);
        let timer = Timer::start();
        let mut step = Trail::step(details.trail.as_ref(), Work::Claim);
        let change = own.change(next.lifetime, started.as_ref());
        let swapped = self.write(slot, over.version(), change, policy, context).await;
        timer.stop(self.meter.store(StoreCall::Claim));
        step.result(match &swapped {
            Ok(Swap::Stored) => "stored",
            Ok(Swap::Stale(_) | Swap::Large(_)) => "stale",
            Err(_) => "failed",
        });
        drop(step);
        let rule = || Arc::new(SendRule::new(self.clock.clone(), from_ms, policy.lease));
        match swapped {
            Ok(Swap::Stored) => Ok(ClaimResult::Confirmed(own.close(), rule())),
            Ok(Swap::Stale(held)) => {
                own.close();
                Ok(ClaimResult::Blocked(held))
            }
            // Closed before the load: the store has answered, so nothing has to be given up if the
            // client leaves now.
            Ok(Swap::Large(_)) => {
                own.close();
                let held = Box::pin(self.store.records.load(slot))
                    .await
                    .map_err(|error| self.store_failed(slot, &error))?;
                Ok(ClaimResult::Blocked(held))
            }
            Err(StoreError::MaybeApplied(_)) => {
                let rule = rule();
                let lifetime = next.lifetime;
                let unanswered = UnansweredClaim { own, over, lifetime, rule, started };
                Box::pin(self.read_back(pending, unanswered)).await
            }
            Err(StoreError::NotApplied(why)) => {
                own.close();
                self.meter.store_errors.inc();
                tracing::debug!(operation = %slot, why, "claim not stored");
                Ok(ClaimResult::Unknown(None))
            }
            // A record exists, so the request must not run, even if the route runs requests without
            // a store.
            Err(error @ (StoreError::Corrupt(_) | StoreError::Unread(_))) => {
                own.close();
                Err(self.store_failed(slot, &error))
            }
        }
    }

    /// Reads the slot after the answer to a claim was lost. The claim is confirmed only if the
    /// record has the claim's fence, and if there still is time to send.
    async fn read_back(
        self: &Arc<Self>,
        pending: &PendingAdmission<'_>,
        unanswered: UnansweredClaim<'_>,
    ) -> Result<ClaimResult, Refusal> {
        self.meter.store_errors.inc();
        let (policy, slot) = (&pending.guarded.route.policy, &pending.slot);
        let UnansweredClaim { own, over, lifetime, rule, started } = unanswered;
        let held = match self.store.records.load(slot).await {
            Ok(held) => held,
            Err(error @ (StoreError::Corrupt(_) | StoreError::Unread(_))) => {
                return Err(self.store_failed(slot, &error));
            }
            Err(_) => return Ok(ClaimResult::Unknown(Some(own.close()))),
        };
        match admit(held.as_ref(), &pending.asked, policy) {
            // The claim is written again, which changes nothing in the record. A store that loses
            // data may restore only the writes that it has confirmed.
            Admission::Run => {
                let context = || self.claim_context(pending);
                let change = own.change(lifetime, started.as_ref());
                match self.write(slot, over.version(), change, policy, context).await {
                    Ok(Swap::Stored) if rule.allows() => {
                        Ok(ClaimResult::Confirmed(own.close(), rule))
                    }
                    _ => Ok(ClaimResult::Unknown(Some(own.close()))),
                }
            }
            // The slot is empty or has a marker, so the claim may still arrive there.
            Admission::Claim(_) => Ok(ClaimResult::Unknown(Some(own.close()))),
            // The slot still has the record that the claim would replace.
            _ if over.version().is_some_and(|over| {
                held.as_ref().is_some_and(|held| held.record.version == over)
            }) =>
            {
                Ok(ClaimResult::Unknown(Some(own.close())))
            }
            // The slot has the record of another attempt. The late claim is given up nevertheless,
            // because a marker may have replaced that record when the claim arrives.
            _ => {
                drop(own);
                Ok(ClaimResult::GivenUp(held))
            }
        }
    }

    /// Returns what a claim changes that begins a saga; `None` if nobody needs to know.
    fn started_saga(
        &self,
        pending: &PendingAdmission<'_>,
        is_published: bool,
    ) -> Option<ChangedSaga> {
        if !is_published && !self.event_log_enabled() {
            return None;
        }
        match (&pending.guarded.saga, &pending.details.saga) {
            (Some(runner), Some(Ok(saga))) if !pending.details.may_be_elsewhere => {
                runner.started(&saga.content)
            }
            _ => None,
        }
    }

    fn claim_context(&self, pending: &PendingAdmission<'_>) -> Context {
        let tenant_mark = self.settings.hashing.tenant_mark(&pending.tenant);
        pending.details.claim_context(tenant_mark)
    }
}
