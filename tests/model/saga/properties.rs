//! Properties that must always hold, and states that must be reachable, because otherwise the
//! properties would be empty.

use onceward::saga::log::StepDirection;
use stateright::Property;

use super::protocol::{Bounds, Protocol};
use super::rules::{Rules, Shape};
use super::state::{End, Operation, SAGAS, SlotRecord, State};

/// An action and a compensation are executed at most once, under whatever keys.
pub const ONCE: &str = "no step runs twice";
/// A completed saga executed each action once and undid none. A failed saga undid each action that
/// was executed, and nothing lands afterwards.
pub const WHOLE: &str = "whole or undone";
/// No action is executed after the first undo.
pub const NOTHING_AFTER_UNDO: &str = "no action runs after the first undo";
/// No compensation is executed while an action is unsettled.
pub const NOT_IN_DOUBT: &str = "nothing is undone while an action is in doubt";
/// A compensation is executed after those of all later steps.
pub const IN_ORDER: &str = "actions are undone in reverse order";
/// A state in which nothing can happen has an ended saga.
pub const ENDS: &str = "a saga ends";

pub fn all(bounds: &Bounds) -> Vec<Property<Protocol>> {
    let mut all = vec![
        Property::always(ONCE, |protocol: &Protocol, state: &State| {
            steps(&protocol.rules).all(|(saga, step)| {
                let (action, compensation) = executions(state, saga, step);
                action <= 1 && compensation <= 1
            })
        }),
        Property::always(WHOLE, |protocol: &Protocol, state: &State| {
            steps(&protocol.rules).all(|(saga, step)| {
                let executed = executions(state, saga, step);
                match state.ends[usize::from(saga)] {
                    None => true,
                    Some(End::Completed) => executed == (1, 0),
                    Some(End::Failed) if protocol.rules.is_undoable(step) => {
                        executed.0 == executed.1
                    }
                    Some(End::Failed) => executed == (0, 0),
                }
            })
        }),
        Property::always(NOTHING_AFTER_UNDO, |_, state: &State| !state.violations.after_undo),
        Property::always(NOT_IN_DOUBT, |_, state: &State| !state.violations.in_doubt),
        Property::always(IN_ORDER, |_, state: &State| !state.violations.out_of_order),
        Property::eventually(ENDS, |_, state: &State| {
            state.ended(End::Completed) || state.ended(End::Failed)
        }),
        Property::sometimes("a saga is completed", |_, state: &State| state.ended(End::Completed)),
    ];
    let budget = bounds.budget;
    if budget.turns + budget.refusals > 0 && bounds.shape != Shape::Single {
        all.push(Property::sometimes("a saga is undone", |_, state: &State| {
            let is_undone = state.executions(0, 0, StepDirection::Compensation) == 1;
            state.ended(End::Failed) && is_undone
        }));
    }
    if budget.turns + budget.releases > 0 && bounds.shape != Shape::Single {
        all.push(Property::sometimes("a step is barred", |_, state: &State| {
            Operation::all(0).any(|operation| {
                state.slots[operation.index()].record == SlotRecord::Barred
                    && operation.direction == StepDirection::Action
            })
        }));
    }
    if budget.lives > 0 {
        let name = "nobody knows whether a step was executed";
        all.push(Property::sometimes(name, |protocol: &Protocol, state: &State| {
            let waiting = state.record.map(|of| protocol.rules.waiting(of.log, state.is_old));
            waiting.is_some_and(|waiting| waiting.iter().any(|waiting| waiting.is_lost))
        }));
    }
    if budget.sagas > 1 {
        all.push(Property::sometimes("a second saga is completed", |_, state: &State| {
            state.ends[1] == Some(End::Completed)
        }));
    }
    if budget.retries > 0 {
        let name = "a definite no is retried";
        all.push(Property::sometimes(name, |protocol: &Protocol, state: &State| {
            steps(&protocol.rules).any(|(saga, step)| {
                let direction = match protocol.rules.pivot() {
                    Some(_) => StepDirection::Action,
                    None => StepDirection::Compensation,
                };
                let operation = Operation { saga, step, direction, generation: 1 };
                state.slots[operation.index()].executed == 1
            })
        }));
    }
    all
}

fn steps(rules: &Rules) -> impl Iterator<Item = (u8, u8)> {
    let steps = rules.steps();
    (0..SAGAS as u8).flat_map(move |saga| (0..steps).map(move |step| (saga, step)))
}

/// Returns how often the action and the compensation of a step were executed.
fn executions(state: &State, saga: u8, step: u8) -> (u8, u8) {
    let of = |direction| state.executions(saga, step, direction);
    (of(StepDirection::Action), of(StepDirection::Compensation))
}
