//! What clients read about a saga.

use std::time::Duration;

use super::document::SagaDocument;
use super::gateway::SagaGateway;
use super::log::StepDirection;
use super::plan::Step;
use super::status::{SagaStatus, StepStatus, StuckReason, stuck_steps};
use super::step_key::StepKey;
use super::step_route::step_route;
use crate::clock::rfc3339;
use crate::gate::{InternalCaller, InternalOperation, SagaStepSummary, SagaSummary};
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
pub(super) fn held_operation(
    gateway: &dyn SagaGateway,
    document: &SagaDocument,
    now_ms: u64,
) -> Option<Slot> {
    let SagaDocument { plan, log, .. } = document;
    let mut stuck = stuck_steps(plan, log, now_ms).into_iter();
    let held = stuck.find(|stuck| stuck.reason == StuckReason::Held)?;
    let generation = log.run(held.step, held.direction)?.generation;
    operation_of(gateway, document, plan.steps.get(held.step)?, (held.direction, generation))
}

/// Returns the operation of a step; `None` if this gateway is not configured to call it.
fn operation_of(
    gateway: &dyn SagaGateway,
    document: &SagaDocument,
    step: &Step,
    (direction, generation): (StepDirection, u32),
) -> Option<Slot> {
    let plan = &document.plan;
    let kept_for = Duration::from_millis(document.log.record_life_ms);
    let guarded = step_route(gateway.gate(), plan, (step, direction), kept_for, gateway).ok()?;
    let key = StepKey::new(document.log.instance, &step.name, direction, generation);
    Some(gateway.gate().slot_of_call(&InternalOperation {
        guarded: &guarded,
        caller: InternalCaller::Saga(&plan.saga),
        key: key.as_str(),
        hops: 0,
        continues: true,
    }))
}
