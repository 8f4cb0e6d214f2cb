//! Properties that must always hold, and states that must be reachable, because otherwise the
//! properties would be empty.

use stateright::Property;

use crate::protocol::Protocol;
use crate::state::{OPERATOR, Stage, Stand, State, Wire};

/// The upstream acts at most once.
pub const ONCE: &str = "at most one execution";
/// All clients that get an answer get the same answer.
pub const ONE_ANSWER: &str = "all answers are equal";
/// An answer that a client has received is stored, and stays stored.
pub const STAYS: &str = "what was answered stays answered";
/// No answer is given to another caller.
pub const NO_STRANGER: &str = "no stranger gets an answer";
/// While its gateway lives, a claim that sent nothing leaves no unsettled record.
pub const UNSENT_IS_FREE: &str = "a claim that was never sent does not end uncertain";

pub fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ONCE, |_, state: &State| state.executions() <= 1),
        Property::always(ONE_ANSWER, |_, state: &State| !state.violations.two_answers),
        Property::always(STAYS, |_, state: &State| what_was_answered_is_stored(state)),
        Property::always(NO_STRANGER, |_, state: &State| !state.violations.stranger_answered),
        Property::always(UNSENT_IS_FREE, |_, state: &State| !unsent_is_owed(state)),
        Property::sometimes("a client is answered", |_, state: &State| state.answered.is_some()),
        Property::sometimes("a second request is sent", |_, state: &State| sent(state) > 1),
        Property::sometimes(
            "an outcome is uncertain though it was executed",
            |_, state: &State| {
                state.executions() == 1 && matches!(stand(state), Some(Stand::Uncertain(_)))
            },
        ),
        Property::sometimes("a marker stands", |_, state: &State| {
            stand(state) == Some(Stand::Released)
        }),
    ]
}

fn stand(state: &State) -> Option<Stand> {
    state.slot.map(|held| held.entry.stand)
}

fn sent(state: &State) -> usize {
    state.requests.iter().filter(|request| request.wire != Wire::Unsent).count()
}

fn what_was_answered_is_stored(state: &State) -> bool {
    state.answered.is_none_or(|answer| stand(state) == Some(Stand::Completed(answer)))
}

/// Whether an unsettled record is the fault of a finished request that sent nothing and lives. A
/// record that an attempt took over as uncertain stays uncertain.
fn unsent_is_owed(state: &State) -> bool {
    let Some(held) = &state.slot else { return false };
    let owed = matches!(held.entry.stand, Stand::InFlight(None) | Stand::Uncertain(None));
    if !owed || held.entry.fence == OPERATOR {
        return false;
    }
    let request = &state.requests[usize::from(held.entry.fence)];
    request.wire == Wire::Unsent && request.stage == Stage::Done && request.giving_up.is_none()
}
