//! Operators' decisions: settle an uncertain operation by hand, or expire a result.

use super::state::Gate;
use crate::engine::{Decision, DecisionDenied, Policy, decide};
use crate::event::Context;
use crate::key::Slot;
use crate::record::{Fence, Held, Version};
use crate::store::{StoreError, Swap};

/// Why an operator's decision has no effect.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No record has this reference.
    #[error("no operation has this reference: it never existed, or its retention is over")]
    Unknown,
    /// The record has changed since the operator looked at it.
    #[error("the operation has changed since you looked at it: look again, then decide")]
    Moved,
    /// The rules forbid the decision.
    #[error(transparent)]
    DecisionDenied(#[from] DecisionDenied),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Gate {
    /// Settles an uncertain operation by hand, or expires a result. `expected` is the version that
    /// the operator decided on; `event_context` names the operator and the reason.
    ///
    /// # Errors
    /// The operation is unknown or has changed, the rules forbid the decision, or the store failed.
    pub async fn settle_by_hand(
        &self,
        slot: &Slot,
        decision: Decision,
        expected: Option<Version>,
        policy: &Policy,
        event_context: Context,
    ) -> Result<Held, OperatorError> {
        let held = self.store.records.load(slot).await?.ok_or(OperatorError::Unknown)?;
        if expected.is_some_and(|expected| expected != held.record.version) {
            return Err(OperatorError::Moved);
        }
        let next = decide(&held, decision, Fence(self.entropy.next()), policy)?;
        let context = || event_context.clone();
        let expected = Some(held.record.version);
        match self.write(slot, expected, (&next).into(), policy, context).await? {
            Swap::Stored => Ok(Held {
                record: next.record,
                written_ms: held.now_ms,
                due_ms: 0,
                now_ms: held.now_ms,
            }),
            Swap::Stale(_) | Swap::Large(_) => Err(OperatorError::Moved),
        }
    }
}
