//! How long an operation has been uncertain.

use std::time::Duration;

use super::policy::Policy;
use crate::record::{Held, State};

/// Returns how long an uncertain operation must still rest before it may be released; `None` when
/// it has rested for `uncertain_after`.
pub(super) fn resting(held: &Held, policy: &Policy) -> Option<Duration> {
    let rest = Duration::from_millis(held.now_ms.saturating_sub(uncertain_since_ms(held)));
    policy.uncertain_after.checked_sub(rest).filter(|wait| !wait.is_zero())
}

/// Returns when an operation became uncertain, in ms of the store's clock.
pub(super) fn uncertain_since_ms(held: &Held) -> u64 {
    match &held.record.state {
        State::Uncertain { since_ms: Some(since_ms), .. } => *since_ms,
        _ => held.written_ms,
    }
}
