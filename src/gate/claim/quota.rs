//! The quota of a claim: whether its tenant may begin another operation.

use std::sync::Arc;
use std::time::Duration;

use super::{PendingAdmission, Sender};
use crate::engine::{Claim, ClaimOver};
use crate::gate::quota::QuotaUse;
use crate::gate::state::Gate;
use crate::record::{Held, State};
use crate::refusal::Refusal;

/// Delay that a client is asked for while a sink is full. Its backlog shrinks only after the
/// receiver is back, or after an operator's decision.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(30);

impl Gate {
    /// Checks that a new operation may begin: its tenant's quota is not used up, no sink that gets
    /// its events is full, and a saga has a place on this gateway.
    ///
    /// # Errors
    /// Returns the refusal of a new operation. A duplicate is answered by its record nevertheless.
    pub(super) fn check_room(
        &self,
        pending: &PendingAdmission<'_>,
        over: ClaimOver,
    ) -> Result<(), Refusal> {
        if let Some(Err(refusal)) = &pending.details.saga {
            return Err(refusal.clone());
        }
        self.check_quota(pending, over)
            .map_err(|retry_after| Refusal::QuotaReached { retry_after })?;
        match &pending.guarded.route.policy.publish {
            Some(rules) if is_counted(pending, over) && self.full_sinks.has_any_of(rules) => {
                Err(Refusal::OutboxFull { retry_after: FULL_RETRY_AFTER })
            }
            _ => Ok(()),
        }
    }

    /// Checks that the tenant may begin another operation. A new attempt of an uncertain operation
    /// does not count as a new operation.
    ///
    /// # Errors
    /// Returns how long to wait, if the quota is used up.
    fn check_quota(&self, pending: &PendingAdmission<'_>, over: ClaimOver) -> Result<(), Duration> {
        if !is_counted(pending, over) {
            return Ok(());
        }
        let route = &pending.guarded.route.policy.route;
        self.quota.check(route, pending.tenant, self.clock.boot_ms())
    }

    /// Counts a confirmed claim against its tenant's quota. If other claims have used up the quota
    /// since the check, gives this claim up.
    pub(super) fn use_quota(
        self: &Arc<Self>,
        pending: &PendingAdmission<'_>,
        claim: &Claim,
        over: ClaimOver,
    ) -> Result<Option<QuotaUse>, Refusal> {
        if !is_counted(pending, over) {
            return Ok(None);
        }
        let policy = &pending.guarded.route.policy;
        let now_ms = self.clock.boot_ms();
        self.quota.take(&policy.route, pending.tenant, policy.retention, now_ms).map_err(
            |retry_after| {
                self.give_up(pending.slot, claim.clone(), pending.guarded, None);
                Refusal::QuotaReached { retry_after }
            },
        )
    }

    /// Returns the record of the operation, for a request that may not begin a new operation. The
    /// request may be a duplicate, and then the record decides its answer.
    pub(super) async fn record_instead_of_claim(
        &self,
        pending: &PendingAdmission<'_>,
        refusal: Refusal,
    ) -> Result<Held, Refusal> {
        let (policy, slot) = (&pending.guarded.route.policy, &pending.slot);
        let held = self
            .blocking_record(policy, slot)
            .await
            .map_err(|error| self.store_failed(slot, &error))?;
        held.filter(|held| !matches!(held.record.state, State::Released)).ok_or(refusal)
    }
}

/// Returns whether a claim counts against a quota.
fn is_counted(pending: &PendingAdmission<'_>, over: ClaimOver) -> bool {
    let is_new = match over {
        ClaimOver::Nothing | ClaimOver::Marker(_) => true,
        ClaimOver::Uncertain { .. } => false,
    };
    is_new && pending.sender == Sender::Client
}
