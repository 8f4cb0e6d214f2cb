//! Operators' decisions about sagas that run.

use super::changes::SagaMark;
use super::document::SagaDocument;
use super::log::{SagaDecision, SagaDecisionKind};
use super::machine::{Happening, HappeningDenied, StateChange, apply};
use super::status::SagaStatus;
use crate::engine::Policy;
use crate::event::Context;
use crate::gate::{Gate, NextSaga, SagaDecisionError};
use crate::key::Slot;
use crate::record::{Held, Version};

/// A decision, as an operator sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorDecision {
    /// The decision.
    pub kind: SagaDecisionKind,
    /// The name of the step; `None` for the saga, or for all its stuck steps.
    pub step: Option<String>,
    /// The operator's name.
    pub by: String,
    /// The operator's reason.
    pub reason: String,
}

impl SagaDecisionKind {
    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            SagaDecisionKind::Cancel => "cancel",
            SagaDecisionKind::Retry => "retry",
            SagaDecisionKind::Skip => "skip",
        }
    }
}

/// Why the rules of sagas deny a decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeniedDecision {
    /// A later version wrote the record.
    #[error("this gateway can't read the saga's record: a later version wrote it")]
    Unreadable,
    /// The plan has no step with this name.
    #[error("the saga has no step {0}")]
    NoSuchStep(String),
    /// The state of the saga does not permit it.
    #[error(transparent)]
    NotNow(#[from] HappeningDenied),
}

/// The decisions that the state of a saga permits now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PermittedDecisions {
    /// Whether a cancel changes something.
    pub cancel: bool,
    /// The steps that can be retried or skipped, by their positions in the plan.
    pub steps: Vec<usize>,
}

/// Returns the decisions that [`decide_saga`] would carry out at `now_ms`.
pub fn permitted_decisions(document: &SagaDocument, now_ms: u64) -> PermittedDecisions {
    let SagaDocument { plan, log, .. } = document;
    let is_permitted = |kind, step| {
        let decision = SagaDecision { at_ms: now_ms, kind, step, by: None, reason: String::new() };
        let change = apply(plan, &mut log.clone(), Happening::Decided(decision), now_ms);
        change.is_ok_and(|change| change != StateChange::Nothing)
    };
    let steps = 0..plan.steps.len();
    PermittedDecisions {
        cancel: is_permitted(SagaDecisionKind::Cancel, None),
        steps: steps.filter(|step| is_permitted(SagaDecisionKind::Skip, Some(*step))).collect(),
    }
}

/// Applies an operator's decision to a saga that runs, if its record still has this version. A
/// cancel of a saga that goes back changes nothing.
///
/// # Errors
/// See [`SagaDecisionError`].
pub async fn decide_saga(
    gate: &Gate,
    slot: &Slot,
    expected: Version,
    policy: &Policy,
    decision: &OperatorDecision,
) -> Result<Held, SagaDecisionError<DeniedDecision>> {
    let event_context = Context {
        operator: Some(decision.by.clone()),
        reason: Some(decision.reason.clone()),
        ..Context::default()
    };
    gate.decide_saga(slot, expected, policy, event_context, |content, now_ms| {
        decided(gate, content, decision, now_ms)
    })
    .await
}

/// Returns the changed content; `None` if the decision changes nothing.
fn decided(
    gate: &Gate,
    content: &[u8],
    decision: &OperatorDecision,
    now_ms: u64,
) -> Result<Option<NextSaga>, DeniedDecision> {
    let mut document = SagaDocument::decode(content).map_err(|_| DeniedDecision::Unreadable)?;
    let before = SagaMark::of(&document.log);
    let OperatorDecision { kind, step, by, reason } = decision;
    let position = |name: &String| {
        let found = document.plan.steps.iter().position(|step| step.name == *name);
        found.ok_or_else(|| DeniedDecision::NoSuchStep(name.clone()))
    };
    let decision = SagaDecision {
        at_ms: now_ms,
        kind: *kind,
        step: step.as_ref().map(position).transpose()?,
        by: Some(by.clone()),
        reason: reason.clone(),
    };
    let happening = Happening::Decided(decision);
    let change = apply(&document.plan, &mut document.log, happening, now_ms)?;
    if change == StateChange::Nothing {
        return Ok(None);
    }
    let content = document.encode().map_err(|_| DeniedDecision::Unreadable)?;
    let mut change = before.change(gate, &document, now_ms, None).unwrap_or_default();
    change.status = SagaStatus::of(&document.log).name().to_owned();
    change.decision = Some(match step {
        Some(step) => format!("{} {step}", kind.name()),
        None => kind.name().to_owned(),
    });
    let (phase, content) = (document.phase(), content.into());
    Ok(Some(NextSaga { phase, content, change: Some(change) }))
}
