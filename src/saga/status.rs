//! The status of a saga and of its steps, in the words that clients and operators read.

use serde::{Deserialize, Serialize};

use super::log::{
    ActionState, CompensationState, RunStanding, SagaEnd, SagaState, StepDirection, StepFailure,
    StepRun, StepState,
};
use super::plan::Plan;

/// Time from the beginning of an operation that is tried without end, after which it counts as
/// stuck, in ms. An upstream that is down longer needs a person.
pub const STUCK_AFTER_MS: u64 = 15 * 60 * 1000;

/// The status of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SagaStatus {
    /// No step has begun.
    Pending,
    /// It goes forward.
    Running,
    /// It goes back.
    Compensating,
    /// An operator has to decide, or the configuration lacks something.
    Stuck,
    /// Every action was executed or skipped.
    Completed,
    /// Every action that was executed is undone.
    Failed,
}

/// The status of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Not begun.
    Pending,
    /// The action is under way.
    Running,
    /// The action was not executed so far, and is sent again.
    Retrying,
    /// The action was executed.
    Done,
    /// The action was refused for good.
    Failed,
    /// The condition was false.
    Skipped,
    /// It is unknown whether the operation was executed.
    Uncertain,
    /// The compensation is under way.
    Undoing,
    /// The action is undone.
    Undone,
    /// The compensation was refused for good.
    Refused,
    /// The action was not executed, and never will be.
    Barred,
}

/// A step that stops its saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckStep {
    /// The step.
    pub step: usize,
    /// The direction of its operation.
    pub direction: StepDirection,
    /// The reason.
    pub reason: StuckReason,
}

/// Why a step stops its saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StuckReason {
    /// The operation is uncertain. An operator settles the operation; the saga then continues.
    Held,
    /// Nobody will ever know whether the operation was executed. An operator retries or skips.
    Lost,
    /// A definite no where the saga can't go back. An operator retries or skips.
    Refused(StepFailure),
    /// The operation is sent again and again, and never executed.
    Retried,
    /// The gateway's configuration lacks this.
    Unconfigured(String),
}

/// How far the pivot of a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PivotState {
    /// Not begun, or failed, or the plan has no pivot.
    Before,
    /// Begun, and not settled.
    Begun,
    /// Passed: the saga can only go forward.
    Passed,
}

impl SagaStatus {
    /// Returns the status of a saga.
    pub fn of(state: &SagaState) -> SagaStatus {
        let is_untouched = |step: &StepState| step.action == ActionState::Waiting;
        match state {
            SagaState { end: Some(SagaEnd::Completed { .. }), .. } => SagaStatus::Completed,
            SagaState { end: Some(SagaEnd::Failed { .. }), .. } => SagaStatus::Failed,
            SagaState { stuck_since_ms: Some(_), .. } => SagaStatus::Stuck,
            SagaState { back: Some(_), .. } => SagaStatus::Compensating,
            state if state.steps.iter().all(is_untouched) => SagaStatus::Pending,
            _ => SagaStatus::Running,
        }
    }

    /// Returns the word.
    pub fn name(self) -> &'static str {
        match self {
            SagaStatus::Pending => "pending",
            SagaStatus::Running => "running",
            SagaStatus::Compensating => "compensating",
            SagaStatus::Stuck => "stuck",
            SagaStatus::Completed => "completed",
            SagaStatus::Failed => "failed",
        }
    }
}

impl StepStatus {
    /// Returns the status of a step.
    pub fn of(step: &StepState) -> StepStatus {
        StepStatus::of_compensation(&step.compensation)
            .unwrap_or_else(|| StepStatus::of_action(&step.action))
    }

    /// Returns the status of an action, whatever became of its compensation.
    pub fn of_action(action: &ActionState) -> StepStatus {
        match action {
            ActionState::Waiting => StepStatus::Pending,
            ActionState::Skipped { .. } => StepStatus::Skipped,
            ActionState::Begun(run) if run.is_uncertain() => StepStatus::Uncertain,
            ActionState::Begun(run) if run.standing == RunStanding::UnderWay => StepStatus::Running,
            ActionState::Begun(_) => StepStatus::Retrying,
            ActionState::Done { .. } => StepStatus::Done,
            ActionState::Failed { .. } => StepStatus::Failed,
            ActionState::Barred { .. } => StepStatus::Barred,
        }
    }

    /// Returns the status of a compensation; `None` if it has not begun.
    pub fn of_compensation(compensation: &CompensationState) -> Option<StepStatus> {
        match compensation {
            CompensationState::Waiting => None,
            CompensationState::Begun(run) if run.is_uncertain() => Some(StepStatus::Uncertain),
            CompensationState::Begun(_) => Some(StepStatus::Undoing),
            CompensationState::Undone { .. } => Some(StepStatus::Undone),
            CompensationState::Refused { .. } => Some(StepStatus::Refused),
        }
    }

    /// Returns the word.
    pub fn name(self) -> &'static str {
        match self {
            StepStatus::Pending => "pending",
            StepStatus::Running => "running",
            StepStatus::Retrying => "retrying",
            StepStatus::Done => "done",
            StepStatus::Failed => "failed",
            StepStatus::Skipped => "skipped",
            StepStatus::Uncertain => "uncertain",
            StepStatus::Undoing => "undoing",
            StepStatus::Undone => "undone",
            StepStatus::Refused => "refused",
            StepStatus::Barred => "barred",
        }
    }
}

impl PivotState {
    pub(super) fn of(plan: &Plan, state: &SagaState) -> PivotState {
        let pivot = plan.steps.iter().zip(&state.steps).find(|(step, _)| step.pivot);
        match pivot.map(|(_, state)| &state.action) {
            Some(ActionState::Begun(_)) => PivotState::Begun,
            // Steps after the pivot need no compensation, so the same holds if it was skipped.
            Some(ActionState::Done { .. } | ActionState::Skipped { .. }) => PivotState::Passed,
            Some(
                ActionState::Waiting | ActionState::Failed { .. } | ActionState::Barred { .. },
            )
            | None => PivotState::Before,
        }
    }
}

/// Returns the steps that stop the saga at `now_ms`. Empty: the saga is not stuck.
pub fn stuck_steps(plan: &Plan, state: &SagaState, now_ms: u64) -> Vec<StuckStep> {
    if state.end.is_some() {
        return Vec::new();
    }
    let mut stuck = Vec::new();
    for (step, of_step) in state.steps.iter().enumerate() {
        let mut add = |direction, reason: Option<StuckReason>| {
            stuck.extend(reason.map(|reason| StuckStep { step, direction, reason }));
        };
        let of_run = |direction, run| stuck_run(plan, state, direction, run, now_ms);
        let action = StepDirection::Action;
        match &of_step.action {
            ActionState::Begun(run) => add(action, of_run(action, run)),
            ActionState::Failed { why, .. } if state.back.is_none() => {
                add(action, Some(StuckReason::Refused(why.clone())));
            }
            _ => {}
        }
        let compensation = StepDirection::Compensation;
        match &of_step.compensation {
            CompensationState::Begun(run) => add(compensation, of_run(compensation, run)),
            CompensationState::Refused { why, .. } => {
                add(compensation, Some(StuckReason::Refused(why.clone())));
            }
            CompensationState::Waiting | CompensationState::Undone { .. } => {}
        }
    }
    stuck
}

fn stuck_run(
    plan: &Plan,
    state: &SagaState,
    direction: StepDirection,
    run: &StepRun,
    now_ms: u64,
) -> Option<StuckReason> {
    match &run.standing {
        RunStanding::Held => Some(StuckReason::Held),
        RunStanding::Lost => Some(StuckReason::Lost),
        RunStanding::Unconfigured { why, .. } => Some(StuckReason::Unconfigured(why.clone())),
        RunStanding::NotExecuted => {
            let is_old = stuck_at_ms(plan, state, direction, run).is_some_and(|at| now_ms >= at);
            is_old.then_some(StuckReason::Retried)
        }
        // It is still asked about. But a person can find out, too.
        RunStanding::Asking if now_ms >= run.begun_ms.saturating_add(STUCK_AFTER_MS) => {
            Some(StuckReason::Held)
        }
        RunStanding::UnderWay | RunStanding::Asking => None,
    }
}

/// Returns when an operation without an outcome counts as stuck; `None` if it is neither asked
/// about nor tried without end.
pub(super) fn stuck_at_ms(
    plan: &Plan,
    state: &SagaState,
    direction: StepDirection,
    run: &StepRun,
) -> Option<u64> {
    let is_tried = run.standing == RunStanding::NotExecuted && !is_barred(state, direction, run);
    let is_endless = is_tried && is_endless(plan, state, direction);
    let counts = is_endless || run.standing == RunStanding::Asking;
    counts.then(|| run.begun_ms.saturating_add(STUCK_AFTER_MS))
}

/// Returns whether the operations of this direction are tried without end.
pub(super) fn is_endless(plan: &Plan, state: &SagaState, direction: StepDirection) -> bool {
    direction == StepDirection::Compensation || PivotState::of(plan, state) == PivotState::Passed
}

/// Returns whether an operation is barred as soon as nothing of it is under way or uncertain.
pub(super) fn is_barred(state: &SagaState, direction: StepDirection, run: &StepRun) -> bool {
    run.given_up.is_some() || (direction == StepDirection::Action && state.back.is_some())
}
