//! Unconfirmed claims: gives up claims that may still arrive at the store. Otherwise their
//! operations would become uncertain.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::engine::{Claim, Outcome};
use crate::event::{ChangedSaga, Context};
use crate::gate::attempt::settle::UnsettledOutcome;
use crate::gate::record_change::RecordChange;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::key::Slot;
use crate::record::Lifetime;

/// A claim that is sent to the store and not yet answered. Dropping this value gives the claim up:
/// when a client leaves, its request is dropped at any point, and then nobody would run or settle
/// the claim.
pub(in crate::gate) struct UnconfirmedClaim<'g> {
    gate: &'g Arc<Gate>,
    guarded: &'g Arc<ProtectedRoute>,
    slot: &'g Slot,
    pub claim: Claim,
    /// The claim turn of the client's address. The turn is kept until the claim is given up,
    /// because the store may answer the claim until then, and the answer may be large. Otherwise a
    /// client that repeatedly claims and leaves could make the store send any number of answers at
    /// the same time.
    turn: Option<OwnedSemaphorePermit>,
    is_open: bool,
}

impl<'g> UnconfirmedClaim<'g> {
    pub fn new(
        gate: &'g Arc<Gate>,
        guarded: &'g Arc<ProtectedRoute>,
        slot: &'g Slot,
        claim: Claim,
        turn: Option<OwnedSemaphorePermit>,
    ) -> UnconfirmedClaim<'g> {
        UnconfirmedClaim { gate, guarded, slot, claim, turn, is_open: true }
    }

    /// Returns the write of the claim. A claim announces nothing, apart from the start of a saga.
    pub fn change<'c>(
        &'c self,
        lifetime: Lifetime,
        saga: Option<&'c ChangedSaga>,
    ) -> RecordChange<'c> {
        RecordChange { next: &self.claim.record, lifetime, announcement: None, saga }
    }

    /// Returns the claim, and does not give it up. Either the result of the claim is known, or the
    /// caller gives it up.
    pub fn close(mut self) -> Claim {
        self.is_open = false;
        self.claim.clone()
    }
}

impl Drop for UnconfirmedClaim<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.gate.give_up(*self.slot, self.claim.clone(), self.guarded, self.turn.take());
        }
    }
}

impl Gate {
    /// Releases a claim that may still arrive at the store. A background task tries until the store
    /// confirms the release.
    pub(super) fn give_up(
        self: &Arc<Self>,
        slot: Slot,
        claim: Claim,
        guarded: &Arc<ProtectedRoute>,
        turn: Option<OwnedSemaphorePermit>,
    ) {
        let Some(permit) = self.giving_up.take() else {
            tracing::warn!(
                operation = %slot,
                "claim not given up and may end uncertain: too many claims are being given up"
            );
            return;
        };
        let (outcome, event_context) = (Outcome::NeverSent, Context::default());
        let unsettled = UnsettledOutcome { slot, claim, known: None, outcome, event_context };
        self.settle_in_background(unsettled, guarded.clone(), (permit, turn));
    }
}
