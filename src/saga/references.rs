//! The references of the operations of a saga's steps.

use super::document::SagaDocument;
use super::log::{ActionState, CompensationState, StepDirection};
use super::step_key::StepKey;
use super::step_route::step_route_name;
use crate::gate::{Gate, InternalCaller};
use crate::key::Slot;

/// An operation of a step, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepOperation {
    /// The operation, in the generation of its key that is current; `None` if no attempt was made.
    /// Its record is under another reference if an earlier hashing secret made it.
    pub slot: Option<Slot>,
    /// Its idempotency key, with which the called system knows it; `None` if no attempt was made.
    pub key: Option<StepKey>,
    /// The number of attempts, with the active one.
    pub attempts: u32,
    /// When it began, in ms since 1970; `None` if it has not begun.
    pub began_ms: Option<u64>,
    /// When it was settled, or the action was skipped.
    pub ended_ms: Option<u64>,
}

/// Returns the operation of a step in one direction, in one generation of its key.
pub(super) fn slot_of_step(
    gate: &Gate,
    document: &SagaDocument,
    step: &str,
    (direction, generation): (StepDirection, u32),
) -> Slot {
    let saga = &document.plan.saga;
    let route = step_route_name(saga, step, direction);
    let key = StepKey::new(document.log.instance, step, direction, generation);
    gate.slot_of_key(&route, InternalCaller::Saga(saga), key.as_str())
}

/// Returns the operation of a step in one direction.
pub fn step_operation(
    gate: &Gate,
    document: &SagaDocument,
    step: usize,
    direction: StepDirection,
) -> StepOperation {
    const NOT_BEGUN: StepOperation =
        StepOperation { slot: None, key: None, attempts: 0, began_ms: None, ended_ms: None };
    let steps = (document.plan.steps.get(step), document.log.steps.get(step));
    let (Some(planned), Some(state)) = steps else { return NOT_BEGUN };
    let slot = |generation| slot_of_step(gate, document, &planned.name, (direction, generation));
    let key =
        |generation| StepKey::new(document.log.instance, &planned.name, direction, generation);
    if let Some(run) = state.run(direction) {
        return StepOperation {
            slot: Some(slot(run.generation)),
            key: Some(key(run.generation)),
            attempts: run.attempts(),
            began_ms: Some(run.begun_ms),
            ended_ms: None,
        };
    }
    if let (StepDirection::Action, ActionState::Skipped { at_ms }) = (direction, &state.action) {
        return StepOperation { ended_ms: Some(*at_ms), ..NOT_BEGUN };
    }
    let ended = match (direction, &state.action, &state.compensation) {
        (
            StepDirection::Action,
            ActionState::Done { run, .. }
            | ActionState::Failed { run, .. }
            | ActionState::Barred { run },
            _,
        )
        | (
            StepDirection::Compensation,
            _,
            CompensationState::Undone { run, .. } | CompensationState::Refused { run, .. },
        ) => run,
        _ => return NOT_BEGUN,
    };
    // A bar has a record too, although no attempt was made.
    let is_barred = matches!(state.action, ActionState::Barred { .. });
    let has_record = ended.attempts > 0 || (is_barred && direction == StepDirection::Action);
    StepOperation {
        slot: has_record.then(|| slot(ended.generation)),
        key: (ended.attempts > 0).then(|| key(ended.generation)),
        attempts: ended.attempts,
        began_ms: Some(ended.begun_ms),
        ended_ms: Some(ended.ended_ms),
    }
}
