//! What operators do: look an operation up, settle an uncertain one by hand, expire a result.

use super::Gate;
use crate::engine::{Decision, DecisionDenied, Policy, decide};
use crate::event::Context;
use crate::key::Slot;
use crate::record::{Fence, Held, Version};
use crate::store::{StoreError, Swap};

/// Why an operator's decision is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// There is no such operation.
    #[error("no operation has this reference: it never existed, or its retention is over")]
    Unknown,
    /// The record moved since the operator saw it.
    #[error("the operation has changed since you looked at it: look again, then decide")]
    Moved,
    /// The rules forbid it.
    #[error(transparent)]
    DecisionDenied(#[from] DecisionDenied),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Gate {
    /// Settles an uncertain operation by hand, or expires a result. `seen` is the version that the operator decided on;
    /// `by` says who decided, and why.
    pub async fn settle_by_hand(
        &self,
        slot: &Slot,
        decision: Decision,
        seen: Option<Version>,
        policy: &Policy,
        by: Context,
    ) -> Result<Held, OperatorError> {
        let held = self.store.records.load(slot).await?.ok_or(OperatorError::Unknown)?;
        if seen.is_some_and(|seen| seen != held.record.version) {
            return Err(OperatorError::Moved);
        }
        let next = decide(&held, decision, Fence(self.entropy.next()), policy)?;
        match self
            .write(slot, Some(held.record.version), (&next.record, next.lifetime), policy, || {
                by.clone()
            })
            .await?
        {
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
