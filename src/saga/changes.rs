//! What a write of a saga's record changes, for the event log and for sinks: the difference between
//! the record before it and the record after it.
//!
//! So each change of a status is in one event, also if another gateway wrote the record before, or
//! an operator has changed it meanwhile.

use super::document::SagaDocument;
use super::log::{
    ActionState, BackCause, CompensationState, SagaState, StepDirection, StepFailure, StepState,
};
use super::machine::failure;
use super::references::{StepOperation, step_operation};
use super::status::{SagaStatus, StepStatus, StuckReason, stuck_steps};
use crate::event::{ChangedSaga, ChangedStep, SagaFailureNote, StoppedStep};
use crate::gate::Gate;
use crate::record::AnnouncedState;

/// The statuses in a record: of the action and of the compensation of each step, and whether the
/// saga is stuck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SagaMark {
    steps: Vec<(StepStatus, Option<StepStatus>)>,
    is_stuck: bool,
}

impl SagaMark {
    /// Returns the statuses in the record of this state.
    pub fn of(log: &SagaState) -> SagaMark {
        let step = |state: &StepState| {
            (StepStatus::of_action(&state.action), StepStatus::of_compensation(&state.compensation))
        };
        SagaMark {
            steps: log.steps.iter().map(step).collect(),
            is_stuck: log.stuck_since_ms.is_some(),
        }
    }

    /// Returns the statuses before a saga of so many steps begins.
    fn before_the_start(steps: usize) -> SagaMark {
        SagaMark { steps: vec![(StepStatus::Pending, None); steps], is_stuck: false }
    }

    /// Returns what the record of this document changes; `None` if no status changes. `end` is the
    /// status of a saga that ends with this record.
    pub fn change(
        &self,
        gate: &Gate,
        document: &SagaDocument,
        now_ms: u64,
        end: Option<SagaStatus>,
    ) -> Option<ChangedSaga> {
        let status = end.unwrap_or_else(|| SagaStatus::of(&document.log));
        let is_stuck = status == SagaStatus::Stuck;
        let steps = self.changed_steps(gate, document);
        let mut events = Vec::new();
        events.extend((self.is_stuck && !is_stuck).then_some(AnnouncedState::SagaResumed));
        events.extend((!steps.is_empty()).then_some(AnnouncedState::SagaStep));
        events.extend(match status {
            SagaStatus::Stuck if !self.is_stuck => Some(AnnouncedState::SagaStuck),
            SagaStatus::Completed => Some(AnnouncedState::SagaCompleted),
            SagaStatus::Failed => Some(AnnouncedState::SagaFailed),
            _ => None,
        });
        let stuck = if is_stuck && !self.is_stuck {
            stopped_steps(gate, document, now_ms)
        } else {
            Vec::new()
        };
        let failed = status == SagaStatus::Failed;
        (!events.is_empty()).then(|| ChangedSaga {
            events: names(&events),
            status: status.name().to_owned(),
            steps,
            stuck,
            failure: failed.then(|| failure_note(document)).flatten(),
            decision: None,
        })
    }

    /// Returns what `note` returns for each action and compensation with another status.
    pub fn settled<T>(
        &self,
        document: &SagaDocument,
        note: impl Fn(usize, StepDirection) -> Option<T>,
    ) -> Vec<T> {
        let changed = self.changed(document).into_iter();
        changed.filter_map(|(step, direction, _)| note(step, direction)).collect()
    }

    /// Returns the actions and compensations with another status.
    fn changed(&self, document: &SagaDocument) -> Vec<(usize, StepDirection, StepStatus)> {
        let after = SagaMark::of(&document.log);
        let pairs = self.steps.iter().zip(&after.steps).enumerate();
        let of_step = |(step, (before, after)): (usize, (&(_, _), &(StepStatus, Option<_>)))| {
            let action = (before.0 != after.0).then_some((StepDirection::Action, after.0));
            let undone = after.1.filter(|_| before.1 != after.1);
            let undone = undone.map(|status| (StepDirection::Compensation, status));
            let changed = action.into_iter().chain(undone);
            changed.map(move |(direction, status)| (step, direction, status))
        };
        pairs.flat_map(of_step).collect()
    }

    fn changed_steps(&self, gate: &Gate, document: &SagaDocument) -> Vec<ChangedStep> {
        let changed = self.changed(document).into_iter();
        changed.filter_map(|changed| changed_step(gate, document, changed)).collect()
    }
}

/// Returns what the first record of a saga changes.
pub(super) fn started(gate: &Gate, document: &SagaDocument) -> ChangedSaga {
    let before = SagaMark::before_the_start(document.log.steps.len());
    ChangedSaga {
        events: names(&[AnnouncedState::SagaStarted]),
        status: SagaStatus::of(&document.log).name().to_owned(),
        steps: before.changed_steps(gate, document),
        ..ChangedSaga::default()
    }
}

fn names(events: &[AnnouncedState]) -> Vec<String> {
    events.iter().map(|event| event.name().to_owned()).collect()
}

fn changed_step(
    gate: &Gate,
    document: &SagaDocument,
    (step, direction, status): (usize, StepDirection, StepStatus),
) -> Option<ChangedStep> {
    let (planned, state) = (document.plan.steps.get(step)?, document.log.steps.get(step)?);
    let StepOperation { slot, attempts, .. } = step_operation(gate, document, step, direction);
    let why = match (direction, &state.action, &state.compensation) {
        (StepDirection::Action, ActionState::Failed { why, .. }, _)
        | (StepDirection::Compensation, _, CompensationState::Refused { why, .. }) => Some(why),
        _ => None,
    };
    let answered = match (direction, &state.action) {
        (StepDirection::Action, ActionState::Done { answer: Some(answer), .. }) => {
            Some(answer.status)
        }
        _ => why.and_then(StepFailure::status),
    };
    Some(ChangedStep {
        name: planned.name.clone(),
        direction: direction.name().to_owned(),
        status: status.name().to_owned(),
        attempts,
        operation: slot.map(|slot| slot.to_string()),
        upstream_status: answered,
        cause: why.map(|why| why.word().to_owned()),
    })
}

fn stopped_steps(gate: &Gate, document: &SagaDocument, now_ms: u64) -> Vec<StoppedStep> {
    let stuck = stuck_steps(&document.plan, &document.log, now_ms).into_iter();
    let stopped = stuck.filter_map(|stuck| {
        let planned = document.plan.steps.get(stuck.step)?;
        let operation = step_operation(gate, document, stuck.step, stuck.direction).slot;
        Some(StoppedStep {
            step: planned.name.clone(),
            direction: stuck.direction.name().to_owned(),
            cause: cause_of(&stuck.reason).to_owned(),
            operation: operation.map(|slot| slot.to_string()),
        })
    });
    stopped.collect()
}

fn cause_of(reason: &StuckReason) -> &'static str {
    match reason {
        StuckReason::Held => "held",
        StuckReason::Lost => "lost",
        StuckReason::Refused(_) => "refused",
        StuckReason::Retried => "retried",
        StuckReason::Unconfigured(_) => "unconfigured",
    }
}

fn failure_note(document: &SagaDocument) -> Option<SagaFailureNote> {
    let failure = failure(&document.log)?;
    let (cause, step) = match failure.cause {
        BackCause::Step { step } => ("step", document.plan.steps.get(step)),
        BackCause::Timeout { .. } => ("timeout", None),
        BackCause::Cancel { .. } => ("cancel", None),
    };
    Some(SagaFailureNote {
        cause: cause.to_owned(),
        step: step.map(|step| step.name.clone()),
        upstream_status: failure.why.and_then(StepFailure::status),
    })
}
