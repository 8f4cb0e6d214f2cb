//! The changes that several happenings lead to.

use super::change::{OperationPlace, StateChange};
use crate::saga::log::{
    ActionState, BackCause, CompensationState, EndedRun, GivenUp, RunStanding, SagaState,
    StepDirection, StepFailure, StepRun, StepState,
};
use crate::saga::plan::Plan;
use crate::saga::status::{PivotState, is_barred};

/// Begins an operation.
pub(super) fn begin_run(step: &mut StepState, direction: StepDirection, run: StepRun) {
    match direction {
        StepDirection::Action => step.action = ActionState::Begun(run),
        StepDirection::Compensation => step.compensation = CompensationState::Begun(run),
    }
}

/// Applies a definite no: the saga goes back, unless it does already or has passed its pivot.
pub(super) fn fail(
    plan: &Plan,
    state: &mut SagaState,
    step: usize,
    direction: StepDirection,
    run: EndedRun,
    why: StepFailure,
) {
    let Some(of_step) = state.steps.get_mut(step) else { return };
    match direction {
        StepDirection::Compensation => {
            of_step.compensation = CompensationState::Refused { run, why };
        }
        StepDirection::Action => {
            of_step.action = ActionState::Failed { run, why };
            if PivotState::of(plan, state) != PivotState::Passed {
                turn_back(state, BackCause::Step { step }, run.ended_ms);
            }
        }
    }
}

/// Turns the saga back, if it goes forward. Nothing waits for a pause any more.
pub(super) fn turn_back(state: &mut SagaState, cause: BackCause, now_ms: u64) {
    if state.back.is_some() {
        return;
    }
    state.back = Some(cause);
    for step in &mut state.steps {
        if let Some(run) = step.run_mut(StepDirection::Action)
            && let RunStanding::NotExecuted | RunStanding::Unconfigured { .. } = run.standing
        {
            run.due_ms = now_ms;
        }
    }
}

/// Applies that an operation is barred: it is final that it was not executed.
pub(super) fn barred(
    plan: &Plan,
    state: &mut SagaState,
    place: OperationPlace,
    now_ms: u64,
) -> StateChange {
    let OperationPlace { step, direction, .. } = place;
    let Some(run) = state.run(step, direction) else { return StateChange::Nothing };
    let (ended, given_up) = (run.ended(now_ms, false), run.given_up.clone());
    let was_barred = is_barred(state, direction, run);
    let of_step = &mut state.steps[step];
    match (given_up, direction) {
        (Some(GivenUp::ByHand), StepDirection::Action) => {
            of_step.action = ActionState::Done { run: ended, answer: None };
        }
        (Some(GivenUp::ByHand), StepDirection::Compensation) => {
            of_step.compensation = CompensationState::Undone { run: ended, by_hand: true };
        }
        (Some(GivenUp::Refused(why)), _) => fail(plan, state, step, direction, ended, why),
        (None, StepDirection::Action) if was_barred => {
            of_step.action = ActionState::Barred { run: ended };
        }
        (None, _) => fail(plan, state, step, direction, ended, StepFailure::Barred),
    }
    StateChange::Write
}
