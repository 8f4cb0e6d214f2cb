//! What a lease's end and an operator's decision make of a record.

use std::sync::Arc;
use std::time::Duration;

use super::policy::Policy;
use super::settle::{Next, released, result_lifetime, uncertain};
use crate::record::{Cause, Fence, Held, Record, Reply, Settler, State};

/// What an operator decides about an uncertain operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It was executed, with this result: duplicates get it.
    Resolve(Arc<Reply>),
    /// It was not executed: the next duplicate runs.
    Release,
}

/// Why an operator's decision is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is still running.
    #[error("the operation is in flight: wait until it has settled or its lease has ended")]
    InFlight,
    /// It is settled.
    #[error("the operation is {0}: only uncertain operations can be settled by hand")]
    Settled(&'static str),
    /// The lost request may still sit in a queue.
    #[error("too early to release: the lost request may still be executed for another {} s", .wait.as_secs() + 1)]
    TooEarly {
        /// How long to wait.
        wait: Duration,
    },
}

/// What an operator's decision makes of a record. The new fence shuts out the attempt that was lost: if it still
/// comes back with an answer, it changes nothing.
pub fn decide(held: &Held, decision: Decision, fence: Fence, policy: &Policy) -> Result<Next, Denied> {
    let record = &held.record;
    let version = record.version.next();
    let since_ms = match &record.state {
        State::InFlight { .. } => return Err(Denied::InFlight),
        State::Uncertain { since_ms, .. } => since_ms.unwrap_or(held.written_ms),
        settled => return Err(Denied::Settled(settled.name())),
    };
    match decision {
        Decision::Resolve(reply) => {
            let state = State::Completed { reply, by: Settler::Operator };
            Ok(Next { record: Record { version, fence, state, ..record.clone() }, lifetime: result_lifetime(policy) })
        }
        Decision::Release => {
            let rest = Duration::from_millis(held.now_ms.saturating_sub(since_ms));
            match policy.uncertain_after.checked_sub(rest) {
                Some(wait) if !wait.is_zero() => Err(Denied::TooEarly { wait }),
                _ => Ok(released(fence, version, record, policy)),
            }
        }
    }
}

/// What the end of a lease makes of a record: uncertain, never absent. `None` where the lease is not over.
pub fn expire(held: &Held, policy: &Policy) -> Option<Next> {
    let State::InFlight { doubt_since_ms } = &held.record.state else { return None };
    held.lease_is_over().then(|| uncertain(&held.record, Cause::LeaseEnded, *doubt_since_ms, held.record.version.next(), policy))
}
