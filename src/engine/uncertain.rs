//! How long an operation has been uncertain.

use std::time::Duration;

use super::policy::Policy;
use super::settle::{Next, unsettled};
use crate::record::{Held, Record, State};

/// Returns how long an uncertain operation must still rest before it may be released; `None` when
/// it has rested for `uncertain_after`.
pub(super) fn resting(held: &Held, policy: &Policy) -> Option<Duration> {
    let rest = Duration::from_millis(held.now_ms.saturating_sub(uncertain_since_ms(held)));
    policy.uncertain_after.checked_sub(rest).filter(|wait| !wait.is_zero())
}

/// Returns the record of an uncertain operation with a whole retention from now on; `None` for every
/// other record. It stays uncertain since the same time.
///
/// The version skips one: the attempt in doubt may be writing its outcome at the same time.
pub fn kept(held: &Held, policy: &Policy) -> Option<Next> {
    let State::Uncertain { cause, retry, .. } = held.record.state else { return None };
    let state = State::Uncertain { cause, since_ms: Some(uncertain_since_ms(held)), retry };
    let version = held.record.version.after_next();
    Some(unsettled(Record { version, state, ..held.record.clone() }, policy))
}

/// Returns when an operation became uncertain, in ms of the store's clock.
pub(super) fn uncertain_since_ms(held: &Held) -> u64 {
    match &held.record.state {
        State::Uncertain { since_ms: Some(since_ms), .. } => *since_ms,
        _ => held.written_ms,
    }
}
