//! Operators' decisions and ended leases: how each changes a record.

use std::sync::Arc;
use std::time::Duration;

use super::policy::Policy;
use super::redact::redacted;
use super::settle::{Next, released, result_lifetime, uncertain, unsettled};
use super::uncertain::{resting, uncertain_since_ms};
use crate::record::{Cause, Fence, Held, Lifetime, Record, Reply, Settler, State};

/// A decision about an operation. All but [`Decision::Expire`] need an uncertain operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The operation was executed: duplicates get this result.
    Resolve(Arc<Reply>),
    /// A probe found that the operation was executed, with this result.
    Found(Arc<Reply>),
    /// The operation was not executed: the key is free, for any request.
    Release,
    /// A probe found that the operation was not executed: the key is free, for any request.
    NotFound,
    /// The operation was not executed: the next duplicate runs, but no other request.
    Retry,
    /// Deletes the result of a completed operation. A tombstone blocks the key for as long as the
    /// store would have kept the result and its tombstone.
    Expire,
}

/// Why a decision is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecisionDenied {
    /// An attempt is active.
    #[error("the operation is in flight: wait until it has settled or its lease has ended")]
    InFlight,
    /// The operation is settled.
    #[error("the operation is {0}: only uncertain operations can be settled by hand")]
    Settled(&'static str),
    /// The operation has no result.
    #[error("the operation is {0}: only the result of a completed operation can be expired")]
    NoResult(&'static str),
    /// The operation is a saga.
    #[error("the operation is a saga: decide with `onceward sagas`")]
    Saga,
    /// The lost request may still wait in a queue of the upstream.
    #[error(
        "too early: the lost request may still be executed for another {} s",
        .wait.as_secs() + 1
    )]
    TooEarly {
        /// How long to wait.
        wait: Duration,
    },
}

/// Returns the record after a decision. Pure and total.
///
/// The new fence shuts out the lost attempt: its late answer changes nothing. [`Decision::Retry`]
/// is the exception: the record also names the lost attempt. The late answer of that attempt is the
/// result if it arrives before a duplicate runs.
pub fn decide(
    held: &Held,
    decision: Decision,
    fence: Fence,
    policy: &Policy,
) -> Result<Next, DecisionDenied> {
    let record = &held.record;
    let version = record.version.next();
    let (cause, lost) = match &record.state {
        State::InFlight { .. } => return Err(DecisionDenied::InFlight),
        State::Saga { .. } => return Err(DecisionDenied::Saga),
        State::Completed { .. } if decision == Decision::Expire => {
            return Ok(expired(held, fence, policy));
        }
        State::Uncertain { cause, retry, .. } => (*cause, retry.unwrap_or(record.fence)),
        settled if decision == Decision::Expire => {
            return Err(DecisionDenied::NoResult(settled.name()));
        }
        settled => return Err(DecisionDenied::Settled(settled.name())),
    };
    let completed = |reply: Arc<Reply>, by| {
        let reply = Arc::new(redacted(Arc::unwrap_or_clone(reply), &policy.redact));
        Next {
            record: Record {
                version,
                fence,
                kept: None,
                publication: None,
                state: State::Completed { reply, by },
                ..record.clone()
            },
            lifetime: result_lifetime(policy),
            announcement: None,
        }
        .announced(record, None)
    };
    let rested =
        || resting(held, policy).map_or(Ok(()), |wait| Err(DecisionDenied::TooEarly { wait }));
    match decision {
        Decision::Resolve(reply) => Ok(completed(reply, Settler::Operator)),
        Decision::Found(reply) => Ok(completed(reply, Settler::Probe)),
        Decision::Release => rested().map(|()| {
            let next = released(fence, version, record, policy).announced(record, None);
            Next { lifetime: release_lifetime(policy), ..next }
        }),
        Decision::NotFound => {
            rested().map(|()| released(fence, version, record, policy).announced(record, None))
        }
        // The record names the lost attempt: a late answer is the result if it arrives before a
        // duplicate runs. If the record kept the lost attempt's own fence, a late "uncertain" of
        // that attempt would look like this decision.
        Decision::Retry => rested().map(|()| {
            let state = State::Uncertain {
                cause,
                since_ms: Some(uncertain_since_ms(held)),
                retry: Some(lost),
            };
            unsettled(Record { version, fence, state, ..record.clone() }, policy)
        }),
        Decision::Expire => Err(DecisionDenied::NoResult(record.state.name())),
    }
}

/// Returns a tombstone that replaces a result. The store keeps it until the time at which the key
/// would have become new. So the decision never permits a run, even if the policy keeps no
/// tombstones.
fn expired(held: &Held, fence: Fence, policy: &Policy) -> Next {
    let ends_ms = held.written_ms.saturating_add(millis(policy.retention + policy.tombstone));
    let left = Duration::from_millis(ends_ms.saturating_sub(held.now_ms));
    Next {
        record: Record { version: held.record.version.next(), fence, ..held.record.tombstone() },
        // At least as long as a marker: after a change of the policy, the end may be in the past.
        lifetime: Lifetime {
            keep: left.max(policy.marker_retention()),
            due: None,
            tombstone: None,
        },
        announcement: None,
    }
}

/// Returns how long the marker of an operator's release is kept: as long as an uncertain record. A
/// sink that called the operation may look late, for example after a pause, and an absent record
/// would hide the decision. Operators decide rarely, so these markers take little space.
fn release_lifetime(policy: &Policy) -> Lifetime {
    let keep = policy.unsettled_retention.max(policy.marker_retention());
    Lifetime { keep, due: None, tombstone: None }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the record after the end of its lease: uncertain, never absent. Returns `None` if the
/// lease has not ended.
pub fn expire(held: &Held, policy: &Policy) -> Option<Next> {
    let State::InFlight { .. } = &held.record.state else { return None };
    // Uncertain since now, also if the operation was uncertain before this attempt: the attempt's
    // own request may wait in a queue of the upstream.
    let record = &held.record;
    held.lease_is_over().then(|| {
        uncertain(
            record,
            record.fence,
            (Cause::LeaseEnded, None),
            record.version.after_next(),
            policy,
        )
        .announced(record, None)
    })
}
