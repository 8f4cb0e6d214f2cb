//! The records of a saga's operations: bars over the slots of operations that were not executed,
//! and longer lives for those that are uncertain.

use std::sync::Arc;
use std::time::Duration;

use super::call::{CallOutcome, InternalOperation};
use super::claim::records::STORE_RETRY_AFTER;
use super::state::Gate;
use crate::engine::{Policy, bar, kept};
use crate::event::Context;
use crate::key::Slot;
use crate::record::{Fence, Held, ReplyBody, State, Version};
use crate::store::{Events, StoreError, Swap};

/// How often a bar reads a slot that changes all the time.
const LOOKS_MAX: usize = 8;

impl Gate {
    /// Bars an operation of the gateway itself: no later claim succeeds, also not the late claim of
    /// another gateway. Returns [`CallOutcome::Barred`], or the outcome that keeps the operation
    /// from being barred.
    pub async fn bar(self: &Arc<Self>, operation: InternalOperation<'_>) -> CallOutcome {
        let policy = &operation.guarded.route.policy;
        let unavailable = CallOutcome::StoreUnavailable { retry_after: STORE_RETRY_AFTER };
        // With several hashing secrets, a gateway may claim the operation in any of these slots.
        let slots = operation.slots(&self.settings.hashing);
        let mut barred = None;
        for slot in &slots {
            match self.bar_slot(slot, policy).await {
                Ok(None) => barred = Some(*slot),
                Ok(Some(outcome)) => return outcome,
                Err(_) => return unavailable,
            }
        }
        barred.map_or(unavailable, |operation| CallOutcome::Barred { operation })
    }

    /// Returns what the record of an operation of the gateway itself shows. Sends nothing.
    pub async fn look(&self, operation: InternalOperation<'_>) -> CallOutcome {
        let slots = operation.slots(&self.settings.hashing);
        let (first, mut was_released) = (slots.first().copied(), false);
        for slot in slots {
            match self.store.records.remains(&slot).await {
                Ok(None) => {}
                Ok(Some(held)) => match held.record.state {
                    State::Released => was_released = true,
                    State::Barred => return CallOutcome::Barred { operation: slot },
                    _ => return outcome_in(slot, Some(&held)),
                },
                Err(_) => return CallOutcome::StoreUnavailable { retry_after: STORE_RETRY_AFTER },
            }
        }
        match first {
            Some(operation) => CallOutcome::NothingToContinue { operation, was_released },
            None => CallOutcome::StoreUnavailable { retry_after: STORE_RETRY_AFTER },
        }
    }

    /// Writes the record of an uncertain operation anew, so that it lives its whole retention from
    /// now on. Returns whether it was written. It is no change of the operation, so it has no
    /// event.
    pub async fn keep_uncertain(&self, operation: &Slot, policy: &Policy) -> bool {
        let records = &self.store.records;
        let Ok(Some(held)) = records.load(operation).await else { return false };
        let Some(next) = kept(&held, policy) else { return false };
        let expected = Some(held.record.version);
        let written =
            records.write(operation, expected, &next.record, next.lifetime, Events::NONE).await;
        matches!(written, Ok(Swap::Stored))
    }

    /// Bars one slot. Returns the outcome in it, if that keeps it from being barred.
    async fn bar_slot(
        &self,
        slot: &Slot,
        policy: &Policy,
    ) -> Result<Option<CallOutcome>, StoreError> {
        let mut held = self.store.records.remains(slot).await?;
        for _ in 0..LOOKS_MAX {
            let over = held.as_ref().map(|held| &held.record);
            if over.is_some_and(|record| record.state == State::Barred) {
                return Ok(None);
            }
            let (fence, fresh) = (Fence(self.entropy.next()), Version(self.entropy.next()));
            let Some(next) = bar(over, fence, fresh, self.clock.unix_ms(), policy) else {
                return Ok(Some(outcome_in(*slot, held.as_ref())));
            };
            let expected = over.map(|record| record.version);
            match self.write(slot, expected, (&next).into(), policy, Context::default).await? {
                Swap::Stored => return Ok(None),
                Swap::Stale(current) => held = current,
                Swap::Large(_) => held = self.store.records.load(slot).await?,
            }
        }
        Ok(Some(CallOutcome::InFlight { operation: *slot, retry_after: STORE_RETRY_AFTER }))
    }
}

/// Returns the outcome of an operation that can't be barred.
fn outcome_in(operation: Slot, held: Option<&Held>) -> CallOutcome {
    let Some(held) = held else {
        return CallOutcome::InFlight { operation, retry_after: STORE_RETRY_AFTER };
    };
    match &held.record.state {
        State::Completed { reply, .. } if !matches!(reply.body, ReplyBody::Sealed(_)) => {
            CallOutcome::Answered { operation, reply: reply.clone(), replayed: true }
        }
        State::Completed { .. } => CallOutcome::StoreUnavailable { retry_after: STORE_RETRY_AFTER },
        State::Uncertain { .. } => CallOutcome::Uncertain { operation, retry_after: None },
        State::Expired => CallOutcome::Expired { operation },
        State::InFlight { .. }
        | State::Released
        | State::Saga { .. }
        | State::Barred
        | State::Lock(_)
        | State::Review { .. }
        | State::Versions { .. } => {
            let left = Duration::from_millis(held.due_ms.saturating_sub(held.now_ms));
            CallOutcome::InFlight { operation, retry_after: left.min(STORE_RETRY_AFTER) }
        }
    }
}
