//! Operators' decisions about sagas that run.

use bytes::Bytes;

use super::protected_route::NextSaga;
use super::record_change::RecordChange;
use super::state::Gate;
use crate::engine::{Policy, saga_decision};
use crate::event::Context;
use crate::key::Slot;
use crate::record::{Held, PrivateContent, State, Version};
use crate::store::{StoreError, Swap};

/// Why an operator's decision about a saga has no effect. `E` is why the rules of sagas deny it.
#[derive(Debug, thiserror::Error)]
pub enum SagaDecisionError<E> {
    /// No record has this reference.
    #[error("no saga has this id: it never existed, or its retention is over")]
    Unknown,
    /// The record is that of an ended saga, or of an operation that is no saga.
    #[error("the record is not that of a saga that runs")]
    NotRunning,
    /// The record has changed since the operator looked at it.
    #[error("the saga has changed since you looked at it: look again, then decide")]
    Moved,
    /// No configured key opens the record.
    #[error("this gateway has no key that opens the saga's record")]
    Sealed,
    /// The rules of sagas deny it.
    #[error("{0}")]
    Denied(E),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Gate {
    /// Changes a saga that runs, on behalf of an operator. `expected` is the version that the
    /// operator decided on; `event_context` names the operator and the reason. `change` gets the
    /// content and the store's time, in ms since 1970. It returns the changed content, or `None` if
    /// the decision changes nothing.
    ///
    /// The owner of the saga keeps it, and continues from the changed content.
    ///
    /// # Errors
    /// See [`SagaDecisionError`].
    pub async fn decide_saga<E>(
        &self,
        slot: &Slot,
        expected: Version,
        policy: &Policy,
        event_context: Context,
        change: impl FnOnce(&Bytes, u64) -> Result<Option<NextSaga>, E>,
    ) -> Result<Held, SagaDecisionError<E>> {
        let Some(held) = self.store.records.load(slot).await? else {
            return Err(SagaDecisionError::Unknown);
        };
        let State::Saga { content, .. } = &held.record.state else {
            return Err(SagaDecisionError::NotRunning);
        };
        if held.record.version != expected {
            return Err(SagaDecisionError::Moved);
        }
        let PrivateContent::Open(content) = content else { return Err(SagaDecisionError::Sealed) };
        let changed = change(content, held.now_ms).map_err(SagaDecisionError::Denied)?;
        let Some(NextSaga { phase, content, change }) = changed else { return Ok(held) };
        let random = self.entropy.next();
        let next = saga_decision(&held, phase, PrivateContent::Open(content), random, policy);
        let context = || event_context.clone();
        let write = RecordChange { saga: change.as_ref(), ..(&next).into() };
        match self.write(slot, Some(expected), write, policy, context).await? {
            Swap::Stored => Ok(Held { record: next.record, written_ms: held.now_ms, ..held }),
            Swap::Stale(_) | Swap::Large(_) => Err(SagaDecisionError::Moved),
        }
    }
}
