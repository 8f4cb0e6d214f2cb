//! Properties that must always hold, and states that must be reachable, because otherwise the
//! properties would be empty.

use stateright::Property;

use super::protocol::{Bounds, Protocol};
use super::rules::May;
use super::state::{Age, Attempt, Lease, OPERATIONS, Operation, Phase, Stage, Stand, State};

/// A write replaces exactly the version that it was compared with.
pub const NOT_LOST: &str = "no update is lost";
/// An operation is executed at most once.
pub const ONCE: &str = "at most one execution of an operation";
/// A released operation was not executed, and nothing of it can be.
pub const UNSENT: &str = "a released operation was not executed";
/// An operation holds the lock only until its lease has ended and it has rested.
pub const FREE_AGAIN: &str = "a lock is held no longer than its write may be executed";

pub fn all(bounds: &Bounds) -> Vec<Property<Protocol>> {
    let mut all = vec![
        Property::always(NOT_LOST, |_, state: &State| !state.is_lost_update),
        Property::always(ONCE, |_, state: &State| state.executed.iter().all(|times| *times <= 1)),
        Property::always(UNSENT, |protocol: &Protocol, state: &State| {
            operations().all(|operation| {
                let was_executed = state.executed[usize::from(operation)] > 0;
                stand(state, operation) != Some(Stand::Released)
                    || !(was_executed || protocol.is_queued(state, operation))
            })
        }),
        Property::always(FREE_AGAIN, is_free_again),
        Property::sometimes("both operations are executed", |_, state: &State| {
            state.executed == [1, 1]
        }),
        Property::sometimes("a write is executed after its lease has ended", |_, state: &State| {
            state.executed[0] == 1
                && state.operation(0).is_some_and(|held| held.lease == Lease::Ended)
                && stand(state, 0) == Some(Stand::InFlight(None))
        }),
        Property::sometimes("a write that died looking is released", |_, state: &State| {
            state.locks[0].is_some_and(|lock| lock.phase == Phase::Free)
                && stand(state, 0) == Some(Stand::Released)
        }),
        Property::sometimes("the lock of a lost write is taken over", |_, state: &State| {
            state.locks[0].is_some_and(|lock| lock.operation == 1 && lock.phase == Phase::Sent)
                && matches!(stand(state, 0), Some(Stand::Uncertain { age: Age::Rested, .. }))
        }),
    ];
    if bounds.forwards && bounds.has_condition[0] {
        let name = "an attempt from uncertain finds the work of an earlier one";
        all.push(Property::sometimes(name, |protocol: &Protocol, state: &State| {
            let finds = |attempt: &Attempt| {
                attempt.doubt.is_some()
                    && attempt.stage == Stage::Looking
                    && attempt.condition != state.version
            };
            state.executed == [1, 0] && protocol.attempts_of(0).any(|id| finds(&state.attempts[id]))
        }));
    }
    all
}

fn operations() -> impl Iterator<Item = Operation> {
    0..OPERATIONS as Operation
}

fn stand(state: &State, operation: Operation) -> Option<Stand> {
    state.operation(operation).map(|held| held.entry.stand)
}

/// Asks for one more writer, in every state. If the answer depends on a lease or a rest, it ends
/// with them, and a sweeper can mark what is overdue.
fn is_free_again(protocol: &Protocol, state: &State) -> bool {
    let Some(lock) = &state.locks[0] else { return true };
    let held = |operation| state.operation(operation);
    let new_writer = (OPERATIONS as Operation, 0, false);
    let may = protocol.rules.lock_admission(Some(lock), held, new_writer);
    let Some(holder) = held(lock.operation) else { return false };
    match may {
        May::Take(over) => over == Some(lock.version),
        May::Wait => holder.entry.stand.is_in_flight() && holder.lease == Lease::Runs,
        May::MarkOverdue => protocol.rules.expire(holder).is_some(),
        May::Refuse(_) => matches!(holder.entry.stand, Stand::Uncertain { age: Age::Fresh, .. }),
        May::End => false,
    }
}
