//! Admission while hashing secrets are rotated: an operation's record may be stored under another
//! secret than new records.
//!
//! Danger: two gateways may have the secrets in different orders. Then they claim different slots
//! for the same request, and no single swap shows one gateway the claim of the other. So each
//! gateway reads the other slots again after its claim is confirmed, and before anything is sent.
//! If two gateways claim at the same time, at least one of them finds the other claim, and gives
//! up.

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::unconfirmed::UnconfirmedClaim;
use super::{AdmitResult, IncomingRequest};
use crate::engine::{Admission, ClaimRequest, DuplicateRefusal, Policy, admit};
use crate::gate::attempt::Claimed;
use crate::gate::intake::RequestedOperation;
use crate::gate::permits::Permit;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::gate::upstream_service::UpstreamService;
use crate::key::{Caller, Slot};
use crate::record::{Held, State};
use crate::refusal::Refusal;
use crate::store::StoreError;

impl Gate {
    /// Admits a request like [`Gate::admit`], but first looks up the operation under all secrets.
    /// The look-up costs nothing if only one secret is configured.
    pub(in crate::gate) async fn admit_under_all_secrets<S, B>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        operation: RequestedOperation,
        permit: Permit,
        request: &mut IncomingRequest<'_, S>,
    ) -> Result<AdmitResult, Refusal>
    where
        S: UpstreamService<B>,
    {
        if operation.others.is_empty() {
            return self.admit(guarded, operation, permit, request).await;
        }
        Box::pin(self.admit_under_stored_secret(guarded, operation, permit, request)).await
    }

    async fn admit_under_stored_secret<S, B>(
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
        let operation = match self.under_stored_secret(policy, operation).await {
            Ok(operation) => operation,
            // No record of the operation was seen.
            Err((_, StoreError::NotApplied(_) | StoreError::MaybeApplied(_)))
                if request.sender.passes_without_store(policy) =>
            {
                self.meter.store_errors.inc();
                return Ok(AdmitResult::Unprotected);
            }
            Err((slot, error)) => return Err(self.store_failed(&slot, &error)),
        };
        let others = operation.others.clone();
        match self.admit(guarded, operation, permit, request).await? {
            AdmitResult::Run(claimed) => {
                Box::pin(self.run_if_alone(guarded, claimed, &others)).await
            }
            other => Ok(other),
        }
    }

    /// If the operation already has a record under another secret, returns the operation with its
    /// slot and caller under that secret.
    pub(in crate::gate) async fn under_stored_secret(
        &self,
        policy: &Policy,
        mut operation: RequestedOperation,
    ) -> Result<RequestedOperation, (Slot, StoreError)> {
        if let Some((at, _)) = self.found_at(policy, &operation.others).await? {
            let RequestedOperation { slot, caller, others, .. } = &mut operation;
            std::mem::swap(slot, &mut others[at].0);
            std::mem::swap(caller, &mut others[at].1);
        }
        Ok(operation)
    }

    /// Runs a confirmed claim only if no other slot has a record of the operation. Otherwise gives
    /// the claim up as never sent.
    async fn run_if_alone(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        claimed: Claimed,
        others: &[(Slot, Caller)],
    ) -> Result<AdmitResult, Refusal> {
        let (policy, slot) = (&guarded.route.policy, claimed.slot);
        // Dropping `own` gives the claim up, for example if the client leaves during the look-up.
        let own = UnconfirmedClaim::new(self, guarded, &slot, claimed.claim.clone(), None);
        let found = self
            .found_at(policy, others)
            .await
            .map_err(|(slot, error)| self.store_failed(&slot, &error))?;
        let Some((at, held)) = found else {
            own.close();
            return Ok(AdmitResult::Run(claimed));
        };
        let (slot, caller) = others[at];
        match admit(Some(&held), &ClaimRequest { caller, ..claimed.asked }, policy) {
            Admission::Replay(reply) => Ok(AdmitResult::Replay(slot, reply)),
            Admission::Refuse(refusal) => Err(Refusal::of_refusal(refusal, slot)),
            _ if matches!(held.record.state, State::Saga { .. }) => {
                Err(Refusal::of_refusal(DuplicateRefusal::saga_in_flight(policy), slot))
            }
            // The other gateway may have found this claim and given up as well. A retry of the
            // client then finds at most one of the two claims.
            _ => Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot)),
        }
    }

    /// Returns the index and the record of the first slot with a record other than a released
    /// marker. All slots are read at the same time.
    async fn found_at(
        &self,
        policy: &Policy,
        slots: &[(Slot, Caller)],
    ) -> Result<Option<(usize, Held)>, (Slot, StoreError)> {
        let reads = slots.iter().map(|(slot, _)| async move {
            let held = self.blocking_record(policy, slot).await.map_err(|error| (*slot, error))?;
            Ok::<_, (Slot, StoreError)>(
                held.filter(|held| !matches!(held.record.state, State::Released)),
            )
        });
        let found = try_join_all(reads).await?;
        Ok(found.into_iter().enumerate().find_map(|(at, held)| Some((at, held?))))
    }
}
