//! Getting in while secrets are rotated: an operation may lie under another secret than the one that writes.
//!
//! Danger: gateways whose secrets stand in another order claim other slots for the same request, and no single swap tells
//! them of each other. So each looks at the other slots again when its claim stands, before anything is sent: of two who
//! claim at once, at least one sees the other, and gives up.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::engine::{Admission, Asked, DuplicateRefusal, OnFailure, Policy, admit};
use crate::gate::claim::probe::Asker;
use crate::gate::claim::{Claimed, Entry, Unconfirmed};
use crate::gate::intake::RequestedOperation;
use crate::gate::payload::{BoxError, Payload};
use crate::gate::permits::Place;
use crate::gate::{Gate, ProtectedRoute, Refusal};
use crate::key::{Caller, Slot};
use crate::record::{Held, State};
use crate::store::StoreError;

impl Gate {
    /// [`Gate::admit`], with the operation looked up under all secrets. Where only one is configured it costs nothing.
    pub(in crate::gate) async fn admit_under_all_secrets<S, B, RB>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        operation: RequestedOperation,
        permit: Place,
        asker: &mut Asker<'_, S>,
    ) -> Result<Entry, Refusal>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        if operation.others.is_empty() {
            return self.admit(guarded, operation, permit, asker).await;
        }
        Box::pin(self.admit_where_it_lies(guarded, operation, permit, asker)).await
    }

    async fn admit_where_it_lies<S, B, RB>(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        operation: RequestedOperation,
        permit: Place,
        asker: &mut Asker<'_, S>,
    ) -> Result<Entry, Refusal>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        let policy = &guarded.route.policy;
        let operation = match self.where_it_lies(policy, operation).await {
            Ok(operation) => operation,
            // Nothing was seen of the operation.
            Err((_, StoreError::NotApplied(_) | StoreError::MaybeApplied(_)))
                if policy.on_failure == OnFailure::FailOpen =>
            {
                self.meter.store_errors.inc();
                return Ok(Entry::Unprotected);
            }
            Err((slot, error)) => return Err(self.store_failed(&slot, &error)),
        };
        let others = operation.others.clone();
        match self.admit(guarded, operation, permit, asker).await? {
            Entry::Run(claimed) => Box::pin(self.run_if_alone(guarded, claimed, &others)).await,
            other => Ok(other),
        }
    }

    /// The same request under the secret that its record was written under, if there is one already.
    pub(in crate::gate) async fn where_it_lies(
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

    /// The claim stands: it is used only if the operation is nowhere else, and else given up as never sent.
    async fn run_if_alone(
        self: &Arc<Self>,
        guarded: &Arc<ProtectedRoute>,
        claimed: Claimed,
        others: &[(Slot, Caller)],
    ) -> Result<Entry, Refusal> {
        let (policy, slot) = (&guarded.route.policy, claimed.slot);
        // Given up where it isn't said to be known: also when the client leaves while this looks.
        let own = Unconfirmed::new(self, guarded, &slot, claimed.claim.clone());
        let found = self
            .found_at(policy, others)
            .await
            .map_err(|(slot, error)| self.store_failed(&slot, &error))?;
        let Some((at, held)) = found else {
            own.known();
            return Ok(Entry::Run(claimed));
        };
        let (slot, caller) = others[at];
        match admit(Some(&held), &Asked { caller, ..claimed.asked }, policy) {
            Admission::Replay(reply) => Ok(Entry::Replay(slot, reply)),
            Admission::Refuse(refusal) => Err(Refusal::of_refusal(refusal, slot)),
            // Who claims there sees this claim perhaps, and gives up as well: the client's retry then finds one of them.
            _ => Err(Refusal::of_refusal(DuplicateRefusal::in_flight(policy), slot)),
        }
    }

    /// The first of these slots that holds more than a released marker. They are read at once.
    async fn found_at(
        &self,
        policy: &Policy,
        slots: &[(Slot, Caller)],
    ) -> Result<Option<(usize, Held)>, (Slot, StoreError)> {
        let reads = slots.iter().map(|(slot, _)| async move {
            let held = self.bars(policy, slot).await.map_err(|error| (*slot, error))?;
            Ok::<_, (Slot, StoreError)>(
                held.filter(|held| !matches!(held.record.state, State::Released)),
            )
        });
        let found = try_join_all(reads).await?;
        Ok(found.into_iter().enumerate().find_map(|(at, held)| Some((at, held?))))
    }

    /// What would stand in the way of a claim over nothing.
    pub(in crate::gate) async fn bars(
        &self,
        policy: &Policy,
        slot: &Slot,
    ) -> Result<Option<Held>, StoreError> {
        if policy.keeps_tombstones() {
            self.store.records.remains(slot).await
        } else {
            self.store.records.load(slot).await
        }
    }
}
