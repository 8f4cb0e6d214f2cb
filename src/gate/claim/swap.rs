//! One try at a claim: a single swap in the store, and the ways in which it can end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::records::STORE_RETRY_AFTER;
use super::unconfirmed::UnconfirmedClaim;
use super::{AdmitResult, PendingAdmission};
use crate::engine::{Admission, Claim, ClaimOver, DuplicateRefusal, admit, claim};
use crate::event::Context;
use crate::gate::attempt::Claimed;
use crate::gate::send_rule::SendRule;
use crate::gate::shared_permit::SharedPermit;
use crate::gate::state::Gate;
use crate::record::{Fence, Held, Lifetime, Version};
use crate::refusal::Refusal;
use crate::store::{StoreError, Swap};
use crate::telemetry::{StoreCall, Timer, Trail, Work};

/// How long a claim waits for its turn among the claims of its address. A store that answers gives
/// a turn within milliseconds.
const TURN_MAX: Duration = Duration::from_millis(500);

/// The result of one try at a claim.
enum ClaimResult {
    /// The store has the claim.
    Confirmed(Claim, Arc<SendRule>),
    /// This record blocks the claim.
    Blocked(Option<Held>),
    /// Another record is stored there. The claim may still arrive, and is being given up.
    GivenUp(Option<Held>),
    /// Nothing is known. The claim may still arrive where it is given here.
    Unknown(Option<Claim>),
}

/// A claim with a lost answer, and the values to write it again.
struct UnansweredClaim<'g> {
    own: UnconfirmedClaim<'g>,
    over: ClaimOver,
    lifetime: Lifetime,
    rule: Arc<SendRule>,
}

impl Gate {
    /// Tries to claim the operation. Returns how the request is admitted, or the record that blocks
    /// it. `first_look`: no record of the operation was seen yet.
    pub(super) async fn claim(
        self: &Arc<Self>,
        pending: &mut PendingAdmission<'_>,
        over: ClaimOver,
        first_look: bool,
    ) -> Result<ControlFlow<AdmitResult, Option<Held>>, Refusal> {
        let (guarded, slot) = (pending.guarded, pending.slot);
        let policy = &guarded.route.policy;
        if over == ClaimOver::Nothing && pending.waiting.is_some() {
            // The record that it waited for is gone. Running now could repeat an operation with an
            // ended retention.
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
                Ok(ControlFlow::Break(AdmitResult::Run(Claimed {
                    slot,
                    asked,
                    claim,
                    rule,
                    permit,
                    quota_use,
                    event_context,
                })))
            }
            ClaimResult::Blocked(held) => Ok(ControlFlow::Continue(held)),
            ClaimResult::GivenUp(held) => {
                // The background task that gives the old claim up must not release the next claim.
                pending.asked.fence = Fence(self.entropy.next());
                Ok(ControlFlow::Continue(held))
            }
            // Only while no record was seen: a request must not run beside an operation that is
            // active or settled.
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

    /// Claims in one round trip, which returns the record that blocks the claim.
    async fn try_claim(
        self: &Arc<Self>,
        pending: &PendingAdmission<'_>,
        over: ClaimOver,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<ClaimResult, Refusal> {
        let PendingAdmission { guarded, slot, asked, details, .. } = pending;
        let policy = &guarded.route.policy;
        if let Err(retry_after) = self.check_quota(pending, over) {
            let held = Box::pin(self.record_instead_of_claim(pending, retry_after)).await?;
            return Ok(ClaimResult::Blocked(Some(held)));
        }
        let mut next =
            claim(asked, over, Version(self.entropy.next()), self.clock.unix_ms(), policy);
        next.record.kept = details.kept.clone();
        next.record.extras = details.extras.clone();
        // Counted from before the command leaves: the store's lease can only begin later.
        let from_ms = self.clock.boot_ms();
        let claim = Claim { fence: asked.fence, record: next.record };
        let own = UnconfirmedClaim::new(self, guarded, slot, claim, turn);
        let context = || self.claim_context(pending);
        let timer = Timer::start();
        let mut step = Trail::step(details.trail.as_ref(), Work::Claim);
        let swapped = self
            .write(slot, over.version(), &own.claim.record, next.lifetime, policy, context)
            .await;
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
            // Closed before the load, because the store has answered: there is nothing to give up
            // when the client leaves now.
            Ok(Swap::Large(_)) => {
                own.close();
                let held = Box::pin(self.store.records.load(slot))
                    .await
                    .map_err(|error| self.store_failed(slot, &error))?;
                Ok(ClaimResult::Blocked(held))
            }
            Err(StoreError::MaybeApplied(_)) => {
                let rule = rule();
                let unanswered = UnansweredClaim { own, over, lifetime: next.lifetime, rule };
                Box::pin(self.read_back(pending, unanswered)).await
            }
            Err(StoreError::NotApplied(why)) => {
                own.close();
                self.meter.store_errors.inc();
                tracing::debug!(operation = %slot, why, "claim not stored");
                Ok(ClaimResult::Unknown(None))
            }
            // A record exists: the request must not run, whatever the route does without a store.
            Err(error @ (StoreError::Corrupt(_) | StoreError::Unread(_))) => {
                own.close();
                Err(self.store_failed(slot, &error))
            }
        }
    }

    /// Reads a claim with a lost answer back. It is confirmed only if the record has its fence, and
    /// in time.
    async fn read_back(
        self: &Arc<Self>,
        pending: &PendingAdmission<'_>,
        unanswered: UnansweredClaim<'_>,
    ) -> Result<ClaimResult, Refusal> {
        self.meter.store_errors.inc();
        let (policy, slot) = (&pending.guarded.route.policy, &pending.slot);
        let UnansweredClaim { own, over, lifetime, rule } = unanswered;
        let held = match self.store.records.load(slot).await {
            Ok(held) => held,
            Err(error @ (StoreError::Corrupt(_) | StoreError::Unread(_))) => {
                return Err(self.store_failed(slot, &error));
            }
            Err(_) => return Ok(ClaimResult::Unknown(Some(own.close()))),
        };
        match admit(held.as_ref(), &pending.asked, policy) {
            // Written again, which changes nothing: after a loss a store may restore only writes
            // that it has confirmed.
            Admission::Run => {
                let context = || self.claim_context(pending);
                let record = &own.claim.record;
                match self.write(slot, over.version(), record, lifetime, policy, context).await {
                    Ok(Swap::Stored) if rule.allows() => {
                        Ok(ClaimResult::Confirmed(own.close(), rule))
                    }
                    _ => Ok(ClaimResult::Unknown(Some(own.close()))),
                }
            }
            // Nothing, or a marker: the claim may still arrive there.
            Admission::Claim(_) => Ok(ClaimResult::Unknown(Some(own.close()))),
            // The record that it claims over is still there.
            _ if over.version().is_some_and(|over| {
                held.as_ref().is_some_and(|held| held.record.version == over)
            }) =>
            {
                Ok(ClaimResult::Unknown(Some(own.close())))
            }
            // Another's record. The late claim is given up all the same: a marker may have replaced
            // that record when the claim arrives.
            _ => {
                drop(own);
                Ok(ClaimResult::GivenUp(held))
            }
        }
    }

    fn claim_context(&self, pending: &PendingAdmission<'_>) -> Context {
        let tenant_mark = self.settings.hashing.tenant_mark(&pending.tenant);
        pending.details.claim_context(tenant_mark)
    }
}
