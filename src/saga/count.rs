//! Counts what happens to a saga that this gateway runs.

use std::time::Duration;

use super::document::SagaDocument;
use super::log::{ActionState, CompensationState, StepState};
use super::status::StepStatus;
use crate::record::SagaPhase;
use crate::telemetry::{CountedSaga, SagaMeter};

/// The metrics of one saga. Each settled action and compensation is counted when it is written, so
/// it is counted once, also if another gateway continues the saga.
pub(super) struct SagaCount {
    meter: SagaMeter,
    gauges: CountedSaga,
    counted: Vec<SettledStep>,
}

/// The results of a step: of its action, and of its compensation. `None` before the result.
type SettledStep = (Option<&'static str>, Option<&'static str>);

impl SagaCount {
    /// Begins with a saga. The results in its record are counted already.
    pub fn new(meter: &SagaMeter, document: &SagaDocument) -> SagaCount {
        let mut gauges = meter.began();
        gauges.set_stuck(document.phase() == SagaPhase::Stuck);
        let counted = document.log.steps.iter().map(settled).collect();
        SagaCount { meter: meter.clone(), gauges, counted }
    }

    /// Counts the changes of a write.
    pub fn written(&mut self, document: &SagaDocument) {
        let saga = &document.plan.saga;
        self.gauges.set_stuck(document.phase() == SagaPhase::Stuck);
        let now: Vec<SettledStep> = document.log.steps.iter().map(settled).collect();
        for (before, now) in self.counted.iter().zip(&now) {
            if let (true, Some(result)) = (before.0 != now.0, now.0) {
                self.meter.step(saga, result);
            }
            if let (true, Some(result)) = (before.1 != now.1, now.1) {
                self.meter.compensation(saga, result);
            }
        }
        self.counted = now;
    }

    /// Counts the end, and the changes before it that were not written by themselves. `now_ms` is
    /// the store's time, as that of the start.
    pub fn ended(&mut self, document: &SagaDocument, completed: bool, now_ms: u64) {
        self.written(document);
        let status = if completed { "completed" } else { "failed" };
        let took = Duration::from_millis(now_ms.saturating_sub(document.log.started_ms));
        self.meter.ended(&document.plan.saga, status, took);
    }

    /// Counts an answer with the default body, because its template can't be rendered.
    pub fn unrendered(&self, document: &SagaDocument) {
        self.meter.unrendered(&document.plan.saga);
    }
}

fn settled(step: &StepState) -> SettledStep {
    let action = match &step.action {
        ActionState::Waiting | ActionState::Begun(_) => None,
        action => Some(StepStatus::of_action(action).name()),
    };
    let compensation = match &step.compensation {
        CompensationState::Waiting | CompensationState::Begun(_) => None,
        other => StepStatus::of_compensation(other).map(StepStatus::name),
    };
    (action, compensation)
}
