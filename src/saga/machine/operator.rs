//! The decisions of operators about stuck steps.

use super::change::HappeningDenied;
use super::turn::begin_run;
use crate::saga::log::{
    ActionState, CompensationState, GivenUp, RunStanding, SagaState, StepDirection, StepFailure,
    StepRun,
};
use crate::saga::plan::Plan;
use crate::saga::status::{is_barred, is_endless};

/// How a step waits for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitingStep {
    /// It could not be sent, so its key is unused.
    Unsent(StepDirection),
    /// It has a definite no, in this generation.
    Refused(StepDirection, u32),
    /// It is begun, and was not executed so far, or nobody knows.
    Begun(StepDirection),
}

/// Tries a step again; `None`: all steps that wait for a decision. Only a definite no gets another
/// key: any other operation could be executed twice under another key.
pub(super) fn retry(
    plan: &Plan,
    state: &mut SagaState,
    step: Option<usize>,
    now_ms: u64,
) -> Result<(), HappeningDenied> {
    let all = 0..state.steps.len();
    let steps = match step {
        Some(step) => vec![(step, waiting_step(plan, state, step)?)],
        None => all
            .clone()
            .filter_map(|step| Some((step, waiting_step(plan, state, step).ok()?)))
            .collect(),
    };
    if steps.is_empty() {
        let mut denied = all.filter_map(|step| waiting_step(plan, state, step).err());
        let is_held = denied.any(|denied| denied == HappeningDenied::OperationHeld);
        return Err(if is_held {
            HappeningDenied::OperationHeld
        } else {
            HappeningDenied::NotStuck
        });
    }
    for (step, waiting) in steps {
        let of_step = &mut state.steps[step];
        match waiting {
            WaitingStep::Unsent(StepDirection::Action) => of_step.action = ActionState::Waiting,
            WaitingStep::Unsent(StepDirection::Compensation) => {
                of_step.compensation = CompensationState::Waiting;
            }
            WaitingStep::Refused(direction, generation) => {
                let run = StepRun::new(generation.saturating_add(1), now_ms);
                begin_run(of_step, direction, run);
            }
            WaitingStep::Begun(direction) => {
                let Some(run) = of_step.run_mut(direction) else { continue };
                if run.standing == RunStanding::Lost {
                    // The operator vouches that it was not executed.
                    (run.standing, run.known_ms) = (RunStanding::NotExecuted, now_ms);
                }
                run.due_ms = now_ms;
            }
        }
    }
    Ok(())
}

/// Notes that an operator executes a step by hand. An operation that may still be executed is
/// barred first, or it could be executed beside the operator's.
pub(super) fn skip(
    plan: &Plan,
    state: &mut SagaState,
    step: usize,
    now_ms: u64,
) -> Result<(), HappeningDenied> {
    let waiting = waiting_step(plan, state, step)?;
    let of_step = &mut state.steps[step];
    match waiting {
        WaitingStep::Begun(direction) => {
            if let Some(run) = of_step.run_mut(direction) {
                // The operator vouches for the outcome, so the bar needs no record.
                (run.standing, run.known_ms) = (RunStanding::NotExecuted, now_ms);
                run.given_up = Some(GivenUp::ByHand);
                run.due_ms = now_ms;
            }
        }
        WaitingStep::Unsent(_) | WaitingStep::Refused(..) => {
            match (&of_step.action, &of_step.compensation) {
                (_, CompensationState::Refused { run, .. }) => {
                    of_step.compensation = CompensationState::Undone { run: *run, by_hand: true };
                }
                (ActionState::Failed { run, .. }, _) => {
                    of_step.action = ActionState::Done { run: *run, answer: None };
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn waiting_step(
    plan: &Plan,
    state: &SagaState,
    step: usize,
) -> Result<WaitingStep, HappeningDenied> {
    let of_step = state.steps.get(step).ok_or(HappeningDenied::NoSuchStep)?;
    let (action, compensation) = (StepDirection::Action, StepDirection::Compensation);
    let (direction, run) = match (&of_step.action, &of_step.compensation) {
        (ActionState::Begun(run), _) => (action, run),
        (ActionState::Failed { run, why }, _) if state.back.is_none() => {
            return Ok(refused(action, run.generation, why));
        }
        (_, CompensationState::Begun(run)) => (compensation, run),
        (_, CompensationState::Refused { run, why }) => {
            return Ok(refused(compensation, run.generation, why));
        }
        _ => return Err(HappeningDenied::NotStuck),
    };
    let waits = match run.standing {
        RunStanding::Asking
        | RunStanding::Held
        | RunStanding::Unconfigured { is_uncertain: true, .. } => {
            return Err(HappeningDenied::OperationHeld);
        }
        RunStanding::Lost | RunStanding::Unconfigured { .. } => true,
        RunStanding::NotExecuted => {
            is_endless(plan, state, direction) && !is_barred(state, direction, run)
        }
        RunStanding::UnderWay => false,
    };
    waits.then_some(WaitingStep::Begun(direction)).ok_or(HappeningDenied::NotStuck)
}

fn refused(direction: StepDirection, generation: u32, why: &StepFailure) -> WaitingStep {
    match why {
        StepFailure::Unrendered(_) | StepFailure::Condition(_) => WaitingStep::Unsent(direction),
        StepFailure::Status(_)
        | StepFailure::Attempts { .. }
        | StepFailure::Invalid(_)
        | StepFailure::Barred => WaitingStep::Refused(direction, generation),
    }
}
