//! Properties that must always hold, and states that must be reachable, because otherwise the
//! properties would be empty.

use stateright::Property;

use super::protocol::{Bounds, Protocol};
use super::rules::May;
use super::state::{Age, Lease, OPERATIONS, Operation, Phase, Stand, State, Wire};

/// A write replaces exactly the version that it was compared with.
pub const NOT_LOST: &str = "no update is lost";
/// An operation is executed at most once.
pub const ONCE: &str = "at most one execution of an operation";
/// A released operation was not executed, and nothing of it can be.
pub const UNSENT: &str = "a released operation was not executed";
/// While no attempt of it is active, an operation holds the lock only until its lease has ended and
/// it has rested.
pub const FREE_AGAIN: &str = "a lock is held no longer than its write may be executed";

pub fn all(bounds: &Bounds) -> Vec<Property<Protocol>> {
    let mut all = vec![
        Property::always(NOT_LOST, |_, state: &State| !state.is_lost_update),
        Property::always(ONCE, |_, state: &State| state.executed.iter().all(|times| *times <= 1)),
        Property::always(UNSENT, |protocol: &Protocol, state: &State| {
            operations().all(|operation| {
                stand(state, operation) != Some(Stand::Released)
                    || (state.executed[usize::from(operation)] == 0
                        && !protocol.is_queued(state, operation))
            })
        }),
        Property::always(FREE_AGAIN, is_free_again),
        Property::sometimes("both operations are executed", |_, state: &State| {
            state.executed == [1, 1]
        }),
        Property::sometimes(
            "an operation is executed after its lease has ended",
            |_, state: &State| {
                let operation = state.operation(0);
                state.executed[0] == 1
                    && operation.is_some_and(|held| held.lease == Lease::Ended)
                    && stand(state, 0).is_some_and(|stand| matches!(stand, Stand::Uncertain { .. }))
            },
        ),
        Property::sometimes("a write that died looking is released", |_, state: &State| {
            let is_free = |lock: &super::state::Lock| lock.phase == Phase::Free;
            state.locks[0].as_ref().is_some_and(is_free) && stand(state, 0) == Some(Stand::Released)
        }),
        Property::sometimes("the lock of a lost write is taken over", |_, state: &State| {
            state.locks[0].is_some_and(|lock| lock.operation == 1 && lock.phase == Phase::Sent)
                && matches!(stand(state, 0), Some(Stand::Uncertain { age: Age::Rested, .. }))
        }),
    ];
    if bounds.again() {
        all.push(Property::sometimes(
            "an operation is uncertain again after its comparison",
            |protocol: &Protocol, state: &State| {
                protocol.attempts_of(0).any(|id| {
                    let attempt = &state.attempts[id];
                    attempt.doubt.is_some()
                        && attempt.wire == Wire::Unsent
                        && !attempt.is_active()
                        && attempt.seen != attempt.condition
                        && matches!(
                            stand(state, 0),
                            Some(Stand::Uncertain { is_given: true, retry: None, .. })
                        )
                })
            },
        ));
    }
    all
}

fn operations() -> impl Iterator<Item = Operation> {
    0..OPERATIONS as Operation
}

fn stand(state: &State, operation: Operation) -> Option<Stand> {
    state.operation(operation).map(|held| held.entry.stand)
}

/// Asks for one more writer, after every step. If the answer depends on a lease or a rest, it ends
/// with them: a sweeper marks what is overdue.
fn is_free_again(protocol: &Protocol, state: &State) -> bool {
    let Some(lock) = &state.locks[0] else { return true };
    let held = |operation| state.operation(operation);
    let (holder, new_writer) = (held(lock.operation), (OPERATIONS as Operation, 0, false));
    match protocol.rules.lock_admission(Some(lock), held, new_writer) {
        May::Take(over) => over == Some(lock.version),
        May::Wait => {
            holder.is_some_and(|held| held.entry.stand.is_in_flight() && held.lease == Lease::Runs)
        }
        May::MarkOverdue => holder.is_some_and(|held| protocol.rules.expire(held).is_some()),
        May::Refuse(_) => holder.is_some_and(|held| {
            matches!(held.entry.stand, Stand::Uncertain { age: Age::Fresh, .. })
        }),
    }
}
