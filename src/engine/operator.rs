//! What a lease's end and an operator's decision make of a record.

use std::sync::Arc;
use std::time::Duration;

use super::policy::Policy;
use super::probe::{doubt_since_ms, resting};
use super::redact::redacted;
use super::settle::{Next, released, result_lifetime, uncertain, unsettled};
use crate::record::{Cause, Fence, Held, Lifetime, Record, Reply, Settler, State};

/// What is decided about an operation: about an uncertain one, but for [`Decision::Expire`].
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It was executed, with this result: duplicates get it.
    Resolve(Arc<Reply>),
    /// The upstream says that it was executed, with this result.
    Found(Arc<Reply>),
    /// It was not executed: the key is free, for any request.
    Release,
    /// It was not executed: the next duplicate runs, and nothing else does.
    Retry,
    /// The result of a completed operation is not to be kept or given any more. A tombstone bars its key for as long as
    /// result and tombstone would have.
    Expire,
}

/// Why an operator's decision is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecisionDenied {
    /// It is still running.
    #[error("the operation is in flight: wait until it has settled or its lease has ended")]
    InFlight,
    /// It is settled.
    #[error("the operation is {0}: only uncertain operations can be settled by hand")]
    Settled(&'static str),
    /// It has no result.
    #[error("the operation is {0}: only the result of a completed operation can be expired")]
    NoResult(&'static str),
    /// The lost request may still sit in a queue.
    #[error("too early: the lost request may still be executed for another {} s", .wait.as_secs() + 1)]
    TooEarly {
        /// How long to wait.
        wait: Duration,
    },
}

/// What an operator's decision makes of a record. The new fence shuts out the attempt that was lost: if it still
/// comes back with an answer, it changes nothing. Only a retry lets it, until a duplicate runs.
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
                state: State::Completed { reply, by },
                ..record.clone()
            },
            lifetime: result_lifetime(policy),
        }
    };
    let rested =
        || resting(held, policy).map_or(Ok(()), |wait| Err(DecisionDenied::TooEarly { wait }));
    match decision {
        Decision::Resolve(reply) => Ok(completed(reply, Settler::Operator)),
        Decision::Found(reply) => Ok(completed(reply, Settler::Probe)),
        Decision::Release => rested().map(|()| released(fence, version, record, policy)),
        // Names the lost attempt: should that come back with the answer after all, before any duplicate runs, the answer is
        // the result. Under the lost attempt's own fence, a late "uncertain" of it could not be told from this decision.
        Decision::Retry => rested().map(|()| {
            let state =
                State::Uncertain { cause, since_ms: Some(doubt_since_ms(held)), retry: Some(lost) };
            unsettled(Record { version, fence, state, ..record.clone() }, policy)
        }),
        Decision::Expire => Err(DecisionDenied::NoResult(record.state.name())),
    }
}

/// A tombstone in the place of a result, until the time at which the key would have been new again: expiring is never a
/// permission to run, also where the policy keeps no tombstones of its own.
fn expired(held: &Held, fence: Fence, policy: &Policy) -> Next {
    let ends_ms = held.written_ms.saturating_add(millis(policy.retention + policy.tombstone));
    let left = Duration::from_millis(ends_ms.saturating_sub(held.now_ms));
    Next {
        record: Record { version: held.record.version.next(), fence, ..held.record.tombstone() },
        // Not less than a marker, where the policy was changed meanwhile to a time that is over already.
        lifetime: Lifetime {
            keep: left.max(policy.marker_retention()),
            due: None,
            tombstone: None,
        },
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What the end of a lease makes of a record: uncertain, never absent. `None` where the lease is not over.
pub fn expire(held: &Held, policy: &Policy) -> Option<Next> {
    let State::InFlight { .. } = &held.record.state else { return None };
    // Since now, also where the attempt began from an older doubt: its own request may sit in a queue.
    let record = &held.record;
    held.lease_is_over().then(|| {
        uncertain(
            record,
            record.fence,
            (Cause::LeaseEnded, None),
            record.version.after_next(),
            policy,
        )
    })
}
