//! What changes the state of a saga, and how.

use super::change::{Happening, HappeningDenied, OperationPlace, StateChange};
use super::decide::{SagaTodo, deadline_ms, decide};
use super::operator::{retry, skip};
use super::run::{note_evidence, pivot_is_begun};
use super::settle::apply_outcome;
use super::turn::{begin_run, fail, turn_back};
use crate::saga::log::{
    ActionState, BackCause, EndedRun, SagaDecision, SagaDecisionKind, SagaEnd, SagaState,
    StepDirection, StepRun,
};
use crate::saga::plan::Plan;
use crate::saga::status::stuck_steps;

/// Applies a happening to the state, at `now_ms`.
///
/// Several happenings may be applied before one write. An outcome of another generation, or of an
/// operation that is settled, changes nothing.
///
/// # Errors
/// See [`HappeningDenied`].
pub fn apply(
    plan: &Plan,
    state: &mut SagaState,
    happening: Happening,
    now_ms: u64,
) -> Result<StateChange, HappeningDenied> {
    if state.end.is_some() {
        return match happening {
            Happening::Decided(_) => Err(HappeningDenied::Ended),
            _ => Ok(StateChange::Nothing),
        };
    }
    let change = match happening {
        Happening::Begun { step, direction } => begin(plan, state, step, direction, now_ms)?,
        Happening::Skipped { step } => {
            waiting(plan, state, step, StepDirection::Action, now_ms)?;
            state.steps[step].action = ActionState::Skipped { at_ms: now_ms };
            StateChange::Write
        }
        Happening::Unsendable { step, direction, why } => {
            waiting(plan, state, step, direction, now_ms)?;
            fail(plan, state, step, direction, EndedRun::never_begun(now_ms), why);
            StateChange::Write
        }
        Happening::Outcome { step, direction, generation, outcome, random } => {
            let place = OperationPlace { step, direction, generation };
            apply_outcome(plan, state, place, outcome, random, now_ms)
        }
        Happening::Renewed { step, direction } => renewed(state, step, direction, now_ms),
        Happening::TimePassed => StateChange::Nothing,
        Happening::Decided(decision) => decided(plan, state, decision, now_ms)?,
        Happening::Settled => settle(plan, state, now_ms)?,
    };
    Ok(change.max(pass_time(plan, state, now_ms)))
}

/// Applies what only depends on time: the timeout, and since when the saga is stuck.
fn pass_time(plan: &Plan, state: &mut SagaState, now_ms: u64) -> StateChange {
    let mut change = note_stuck(plan, state, now_ms);
    if deadline_ms(plan, state).is_some_and(|at_ms| now_ms >= at_ms) {
        turn_back(state, BackCause::Timeout { at_ms: now_ms }, now_ms);
        note_stuck(plan, state, now_ms);
        change = StateChange::Write;
    }
    change
}

fn note_stuck(plan: &Plan, state: &mut SagaState, now_ms: u64) -> StateChange {
    let is_stuck = !stuck_steps(plan, state, now_ms).is_empty();
    match state.stuck_since_ms {
        None if is_stuck => state.stuck_since_ms = Some(now_ms),
        Some(since_ms) if !is_stuck => {
            state.stuck_ms = state.stuck_ms.saturating_add(now_ms.saturating_sub(since_ms));
            state.stuck_since_ms = None;
        }
        _ => return StateChange::Nothing,
    }
    StateChange::Write
}

/// Checks that an operation may begin now.
fn waiting(
    plan: &Plan,
    state: &SagaState,
    step: usize,
    direction: StepDirection,
    now_ms: u64,
) -> Result<(), HappeningDenied> {
    if step >= state.steps.len() {
        return Err(HappeningDenied::NoSuchStep);
    }
    let begins = match direction {
        StepDirection::Action => SagaTodo::Begin { step },
        StepDirection::Compensation => SagaTodo::Compensate { step },
    };
    let may_begin = decide(plan, state, now_ms).todos.contains(&begins);
    may_begin.then_some(()).ok_or(HappeningDenied::NotNow)
}

fn begin(
    plan: &Plan,
    state: &mut SagaState,
    step: usize,
    direction: StepDirection,
    now_ms: u64,
) -> Result<StateChange, HappeningDenied> {
    waiting(plan, state, step, direction, now_ms)?;
    begin_run(&mut state.steps[step], direction, StepRun::new(0, now_ms));
    Ok(StateChange::Write)
}

fn renewed(
    state: &mut SagaState,
    step: usize,
    direction: StepDirection,
    now_ms: u64,
) -> StateChange {
    let life_ms = state.record_life_ms;
    let run = state.steps.get_mut(step).and_then(|step| step.run_mut(direction));
    let is_new = run.is_some_and(|run| note_evidence(run, life_ms, now_ms));
    if is_new { StateChange::Write } else { StateChange::Nothing }
}

fn decided(
    plan: &Plan,
    state: &mut SagaState,
    decision: SagaDecision,
    now_ms: u64,
) -> Result<StateChange, HappeningDenied> {
    match decision.kind {
        SagaDecisionKind::Cancel => {
            if state.back.is_some() {
                return Ok(StateChange::Nothing);
            }
            if pivot_is_begun(plan, state) {
                return Err(HappeningDenied::PivotBegun);
            }
            turn_back(state, BackCause::Cancel { at_ms: now_ms }, now_ms);
        }
        SagaDecisionKind::Retry => retry(plan, state, decision.step, now_ms)?,
        SagaDecisionKind::Skip => {
            skip(plan, state, decision.step.ok_or(HappeningDenied::NoSuchStep)?, now_ms)?;
        }
    }
    state.decided(SagaDecision { at_ms: now_ms, ..decision });
    Ok(StateChange::Write)
}

fn settle(plan: &Plan, state: &mut SagaState, now_ms: u64) -> Result<StateChange, HappeningDenied> {
    let todos = decide(plan, state, now_ms).todos;
    let at_ms = now_ms;
    state.end = if todos.contains(&SagaTodo::Settle { completed: true }) {
        Some(SagaEnd::Completed { at_ms })
    } else if todos.contains(&SagaTodo::Settle { completed: false }) {
        Some(SagaEnd::Failed { at_ms })
    } else {
        return Err(HappeningDenied::NotNow);
    };
    state.erase_answers();
    Ok(StateChange::Write)
}
