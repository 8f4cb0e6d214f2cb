//! Properties that must always hold, and states that must be reachable, because otherwise the
//! properties would be empty.

use stateright::Property;

use super::protocol::{Bounds, Protocol};
use super::state::{EVENTS, State};

/// An event is sent only if its change is stored for good, or written again after a loss.
pub const NO_EVENT_ALONE: &str = "no event without its change";
/// Each change that is stored has an event that waits, is dead or was delivered.
pub const NO_CHANGE_ALONE: &str = "no change without its event";
/// An attempt begins only for the first event of an operation that waits.
pub const IN_ORDER: &str = "attempts begin in order";
/// An operation has one attempt under way at a sink, while the relay of the attempt has a lease.
pub const ONE_AT_A_TIME: &str = "one attempt under way at a time";
/// A relay that lost the partition removes, postpones and buries nothing.
pub const ONLY_THE_OWNER: &str = "only the owner changes events";
/// An event is buried for its age only after five attempts, and if the first one is so old.
pub const NOT_TOO_EARLY: &str = "no burial for age before five attempts and the age";
/// An event has one id and one content in all attempts and rounds.
pub const ONE_CONTENT: &str = "one id and one content";
/// An event leaves a round only if it was attempted in it, and as delivered only if the receiver
/// took it.
pub const SENT_AGAIN: &str = "a requeued event is really sent again";

pub fn all(bounds: &Bounds) -> Vec<Property<Protocol>> {
    let mut all = vec![
        Property::always(NO_EVENT_ALONE, |_, state: &State| {
            (0..EVENTS).all(|event| !state.ways[event].sent || is_kept(state, event))
        }),
        Property::always(NO_CHANGE_ALONE, |_, state: &State| {
            (0..usize::from(state.store.version)).all(|event| has_event(state, event))
        }),
        Property::always(IN_ORDER, |_, state: &State| !state.violations.out_of_order),
        Property::always(ONE_AT_A_TIME, |_, state: &State| !state.violations.two_at_once),
        Property::always(ONLY_THE_OWNER, |_, state: &State| {
            !state.violations.changed_without_owning
        }),
        Property::always(NOT_TOO_EARLY, |_, state: &State| !state.violations.buried_too_early),
        Property::always(ONE_CONTENT, |_, state: &State| !state.violations.other_content),
        Property::always(SENT_AGAIN, |_, state: &State| !state.violations.not_sent_again),
        Property::sometimes("an event is delivered", |_, state: &State| {
            state.ways[0].ended && state.ways[0].taken != 0
        }),
        Property::sometimes("an event is buried", |_, state: &State| state.store.dead[0].is_some()),
    ];
    if bounds.budget.requeues > 0 {
        all.push(Property::sometimes("a requeued event is delivered", |_, state: &State| {
            state.ways[0].ended && state.ways[0].taken & 2 != 0
        }));
    }
    all
}

/// Whether the change of an event is stored, or its gateway still writes it again.
fn is_kept(state: &State, event: usize) -> bool {
    usize::from(state.store.version) > event || state.gateway_lives
}

fn has_event(state: &State, event: usize) -> bool {
    state.store.waiting[event].is_some()
        || state.store.dead[event].is_some()
        || state.ways[event].ended
        || (state.owes_event && state.gateway_lives)
}
