//! A saga as JSON, and the requests that change it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::rfc3339;
use crate::gate::{Gate, SagaStepSummary, SagaSummary};
use crate::key::Slot;
use crate::record::{Held, PrivateContent, State};
use crate::saga::document::SagaDocument;
use crate::saga::log::{
    ActionState, BackCause, CompensationState, SagaDecision, SagaState, StepDirection, StepFailure,
};
use crate::saga::plan::Compensation;
use crate::saga::references::{StepOperation, step_operation};
use crate::saga::status::{SagaStatus, StepStatus, StuckReason, StuckStep, stuck_steps};

/// One saga.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct SagaView {
    /// The id: the reference of the operation of the request that began it.
    pub id: String,
    /// The name of the saga in the configuration.
    pub name: String,
    /// `pending`, `running`, `compensating`, `stuck` or `ended`.
    pub status: String,
    /// The record's version, for `If-Match` of a decision.
    pub version: String,
    /// When it began (RFC 3339).
    pub started_at: String,
    /// When the record changed last (RFC 3339).
    pub changed_at: String,
    /// When the lease of its owner ends, if nothing renews it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lease_ends_at: Option<String>,
    /// Why it goes back: `timeout`, `cancel`, or the name of the step that failed, after `step `.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub back: Option<String>,
    /// When it began to go back (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub back_at: Option<String>,
    /// Since when it is stuck (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stuck_since: Option<String>,
    /// The steps that stop it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stuck: Vec<StuckStepView>,
    /// Ended: the status of its answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub answer_status: Option<u16>,
    /// Ended: `completed` or `failed`, if the record has a summary.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outcome: Option<String>,
    /// Ended: the final status of each step, if the record has a summary.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub step_summary: Vec<SagaStepSummaryView>,
    /// The steps, in the order of the configuration. A list does not have this member and the next
    /// one, and an ended saga has `step_summary` instead.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub steps: Vec<SagaStepView>,
    /// The decisions of operators, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub decisions: Vec<SagaDecisionView>,
    /// Why this gateway can't read the record, if so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unreadable: Option<String>,
}

/// A step of a saga that has ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct SagaStepSummaryView {
    /// The name.
    pub name: String,
    /// The final status, one of those of a step.
    pub status: String,
}

/// A step of a saga.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct SagaStepView {
    /// The name.
    pub name: String,
    /// `pending`, `running`, `retrying`, `done`, `failed`, `skipped`, `uncertain`, `undoing`,
    /// `undone`, `refused` or `barred`.
    pub status: String,
    /// The names of the steps that must be done or skipped before this one begins.
    #[serde(default)]
    pub after: Vec<String>,
    /// Whether the saga can only be completed once this step is done.
    #[serde(default)]
    pub pivot: bool,
    /// The number of attempts of the action.
    pub attempts: u32,
    /// The reference of the action's operation; absent if it was never sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<String>,
    /// The idempotency key of that operation, with which the called system knows it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// When the action began (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub began_at: Option<String>,
    /// When the action was settled or skipped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended_at: Option<String>,
    /// Why the action failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// The compensation; absent if the step has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub compensation: Option<SagaCompensationView>,
}

/// The compensation of a step.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct SagaCompensationView {
    /// `pending`, `undoing`, `uncertain`, `undone` or `refused`.
    pub status: String,
    /// The number of attempts.
    pub attempts: u32,
    /// The reference of its operation; absent if it was never sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<String>,
    /// The idempotency key of that operation, with which the called system knows it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// When it began (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub began_at: Option<String>,
    /// When it was settled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended_at: Option<String>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// A step that stops its saga.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct StuckStepView {
    /// The name of the step.
    pub step: String,
    /// `action` or `compensation`.
    pub direction: String,
    /// The reason.
    pub reason: String,
    /// The operation that an operator has to settle, if it is uncertain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<String>,
}

/// A decision of an operator.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct SagaDecisionView {
    /// When (RFC 3339).
    pub at: String,
    /// `retry`, `skip` or `cancel`.
    pub decision: String,
    /// The step; absent for the saga, or for all its stuck steps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<String>,
    /// The operator.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<String>,
    /// The reason.
    pub reason: String,
}

/// A page of sagas that have not ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct SagaListView {
    /// The sagas, in no particular order.
    pub sagas: Vec<SagaView>,
    /// The cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cursor: Option<String>,
}

/// A decision about a saga.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SagaDecisionRequest {
    /// The reason, for the event log and the saga's own log: required, at most 1024 bytes.
    #[serde(default)]
    pub reason: Option<String>,
    /// The name of the step. A skip needs it, a retry without it is for all stuck steps, and a
    /// cancel has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<String>,
}

impl SagaView {
    /// Creates the view of a stored saga, without its steps and decisions.
    pub(in crate::admin) fn listed(gate: &Gate, slot: &Slot, held: &Held) -> SagaView {
        let view = SagaView::of_record(slot, held);
        match document_of(held) {
            Ok(Some(document)) => view.with_log(gate, &document, held.now_ms),
            Ok(None) => view,
            Err(why) => SagaView { unreadable: Some(why.to_owned()), ..view },
        }
    }

    /// Creates the whole view of a stored saga.
    pub(in crate::admin) fn new(gate: &Gate, slot: &Slot, held: &Held) -> SagaView {
        let view = SagaView::listed(gate, slot, held);
        let Ok(Some(document)) = document_of(held) else { return view };
        let steps = 0..document.plan.steps.len().min(document.log.steps.len());
        SagaView {
            steps: steps.map(|step| step_view(gate, &document, step)).collect(),
            decisions: document
                .log
                .decisions
                .iter()
                .map(|decision| decision_view(&document, decision))
                .collect(),
            ..view
        }
    }

    fn of_record(slot: &Slot, held: &Held) -> SagaView {
        let record = &held.record;
        let mut view = SagaView {
            id: slot.to_string(),
            name: record.route.to_string(),
            status: "ended".to_owned(),
            version: record.version.0.to_string(),
            started_at: rfc3339(record.opened_unix_ms),
            changed_at: rfc3339(held.written_ms),
            ..SagaView::default()
        };
        match &record.state {
            State::Saga { phase, .. } => {
                view.status = phase.name().to_owned();
                view.lease_ends_at = Some(rfc3339(held.due_ms));
            }
            State::Completed { reply, .. } => view.answer_status = Some(reply.status.as_u16()),
            _ => {}
        }
        let summary = record.extras.saga.as_ref().map(|note| &note.summary);
        if let Some(summary) = summary.and_then(|summary| serde_json::from_slice(summary).ok()) {
            let SagaSummary { status, started_at, steps } = summary;
            (view.outcome, view.started_at) = (Some(status), started_at);
            let steps = steps.into_iter();
            view.step_summary = steps
                .map(|SagaStepSummary { name, status }| SagaStepSummaryView { name, status })
                .collect();
        }
        view
    }

    fn with_log(self, gate: &Gate, document: &SagaDocument, now_ms: u64) -> SagaView {
        let log = &document.log;
        let stuck = stuck_steps(&document.plan, log, now_ms);
        SagaView {
            status: SagaStatus::of(log).name().to_owned(),
            started_at: rfc3339(log.started_ms),
            back: log.back.map(|cause| cause_name(document, cause)),
            back_at: log.back.and_then(|cause| back_ms(log, cause)).map(rfc3339),
            stuck_since: log.stuck_since_ms.map(rfc3339),
            stuck: stuck.iter().map(|stuck| stuck_view(gate, document, stuck)).collect(),
            ..self
        }
    }
}

/// Returns the document of a saga that runs; `None` for any other record.
///
/// # Errors
/// Why this gateway can't read the record.
pub(in crate::admin) fn document_of(held: &Held) -> Result<Option<SagaDocument>, &'static str> {
    match &held.record.state {
        State::Saga { content: PrivateContent::Open(content), .. } => {
            let document = SagaDocument::decode(content);
            document.map(Some).map_err(|_| "a later version of the gateway wrote the record")
        }
        State::Saga { content: PrivateContent::Sealed(_), .. } => {
            Err("no key under [encryption] opens the record")
        }
        _ => Ok(None),
    }
}

fn step_name(document: &SagaDocument, step: usize) -> String {
    document.plan.steps.get(step).map(|step| step.name.clone()).unwrap_or_default()
}

fn cause_name(document: &SagaDocument, cause: BackCause) -> String {
    match cause {
        BackCause::Step { step } => format!("step {}", step_name(document, step)),
        BackCause::Timeout { .. } => "timeout".to_owned(),
        BackCause::Cancel { .. } => "cancel".to_owned(),
    }
}

/// Returns when a saga began to go back.
fn back_ms(log: &SagaState, cause: BackCause) -> Option<u64> {
    match cause {
        BackCause::Timeout { at_ms } | BackCause::Cancel { at_ms } => Some(at_ms),
        BackCause::Step { step } => match log.steps.get(step)?.action {
            ActionState::Failed { run, .. } => Some(run.ended_ms),
            _ => None,
        },
    }
}

fn step_view(gate: &Gate, document: &SagaDocument, step: usize) -> SagaStepView {
    let (planned, state) = (&document.plan.steps[step], &document.log.steps[step]);
    let StepOperation { slot, key, attempts, began_ms, ended_ms } =
        step_operation(gate, document, step, StepDirection::Action);
    SagaStepView {
        name: planned.name.clone(),
        status: StepStatus::of(state).name().to_owned(),
        after: planned.after.iter().map(|step| step_name(document, *step)).collect(),
        pivot: planned.pivot,
        attempts,
        operation: slot.map(|slot| slot.to_string()),
        key: key.map(|key| key.to_string()),
        began_at: began_ms.map(rfc3339),
        ended_at: ended_ms.map(rfc3339),
        why: match &state.action {
            ActionState::Failed { why, .. } => Some(describe(why)),
            _ => None,
        },
        compensation: match planned.compensation {
            Compensation::Request { .. } => Some(compensation_view(gate, document, step)),
            Compensation::None => None,
        },
    }
}

fn compensation_view(gate: &Gate, document: &SagaDocument, step: usize) -> SagaCompensationView {
    let state = &document.log.steps[step].compensation;
    let StepOperation { slot, key, attempts, began_ms, ended_ms } =
        step_operation(gate, document, step, StepDirection::Compensation);
    SagaCompensationView {
        status: StepStatus::of_compensation(state).unwrap_or(StepStatus::Pending).name().to_owned(),
        attempts,
        operation: slot.map(|slot| slot.to_string()),
        key: key.map(|key| key.to_string()),
        began_at: began_ms.map(rfc3339),
        ended_at: ended_ms.map(rfc3339),
        why: match state {
            CompensationState::Refused { why, .. } => Some(describe(why)),
            _ => None,
        },
    }
}

fn stuck_view(gate: &Gate, document: &SagaDocument, stuck: &StuckStep) -> StuckStepView {
    let StuckStep { step, direction, reason } = stuck;
    let run = document.log.steps.get(*step).and_then(|step| step.run(*direction));
    let is_uncertain = run.is_some_and(|run| run.is_uncertain());
    let is_held = is_uncertain && *reason != StuckReason::Lost;
    let operation = || step_operation(gate, document, *step, *direction).slot;
    StuckStepView {
        step: step_name(document, *step),
        direction: direction.name().to_owned(),
        reason: match reason {
            StuckReason::Held => {
                "uncertain whether it was executed: settle its operation, the saga then continues"
                    .to_owned()
            }
            StuckReason::Lost => {
                "it will never be known whether it was executed: retry or skip it".to_owned()
            }
            StuckReason::Refused(why) => format!("{}: retry or skip it", describe(why)),
            StuckReason::Retried => "tried again and again, and never executed".to_owned(),
            StuckReason::Unconfigured(why) if is_uncertain => {
                format!("uncertain whether it was executed, and {why}: settle its operation")
            }
            StuckReason::Unconfigured(why) => why.clone(),
        },
        operation: is_held.then(operation).flatten().map(|slot| slot.to_string()),
    }
}

fn decision_view(document: &SagaDocument, decision: &SagaDecision) -> SagaDecisionView {
    SagaDecisionView {
        at: rfc3339(decision.at_ms),
        decision: decision.kind.name().to_owned(),
        step: decision.step.map(|step| step_name(document, step)),
        by: decision.by.clone(),
        reason: decision.reason.clone(),
    }
}

/// Describes a definite no. The texts of templates are the configuration's, and contain no body.
fn describe(why: &StepFailure) -> String {
    match why {
        StepFailure::Status(status) => format!("refused with the status {status}"),
        StepFailure::Attempts { status: Some(status) } => {
            format!("no attempt was executed, the last status was {status}")
        }
        StepFailure::Attempts { status: None } => "no attempt reached the upstream".to_owned(),
        StepFailure::Unrendered(why) => format!("the request can't be rendered: {why}"),
        StepFailure::Condition(why) => format!("the condition is not a boolean: {why}"),
        StepFailure::Invalid(why) => format!("the gateway refuses the request: {why}"),
        StepFailure::Barred => "barred by another gateway".to_owned(),
    }
}
