//! What clients read about a saga.

use super::document::SagaDocument;
use super::references::slot_of_step;
use super::status::{SagaStatus, StepStatus, StuckReason, stuck_steps};
use crate::clock::rfc3339;
use crate::gate::{Gate, SagaStepSummary, SagaSummary};
use crate::key::Slot;

/// Returns the state of a saga. `status` replaces the status of a saga that is about to end.
pub(super) fn summary(document: &SagaDocument, status: Option<SagaStatus>) -> SagaSummary {
    let SagaDocument { plan, log, .. } = document;
    let steps = plan.steps.iter().zip(&log.steps).map(|(step, state)| SagaStepSummary {
        name: step.name.clone(),
        status: StepStatus::of(state).name().to_owned(),
    });
    SagaSummary {
        status: status.unwrap_or_else(|| SagaStatus::of(log)).name().to_owned(),
        started_at: rfc3339(log.started_ms),
        steps: steps.collect(),
    }
}

/// Returns the operation of the first step that an operator has to settle.
pub(super) fn held_operation(gate: &Gate, document: &SagaDocument, now_ms: u64) -> Option<Slot> {
    let SagaDocument { plan, log, .. } = document;
    let mut stuck = stuck_steps(plan, log, now_ms).into_iter();
    let held = stuck.find(|stuck| stuck.reason == StuckReason::Held)?;
    let generation = log.run(held.step, held.direction)?.generation;
    let step = plan.steps.get(held.step)?;
    Some(slot_of_step(gate, document, &step.name, (held.direction, generation)))
}
