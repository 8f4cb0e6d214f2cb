//! The trace of a saga: a span for the saga, and below it one for each action and compensation.
//!
//! The ids of the spans follow from the saga, not from the gateway. So the spans of a saga are one
//! tree, also if another gateway continues it: each gateway exports the steps that it settles, and
//! the last one exports the saga. All times are the store's.

use http::Request;
use http::header::HeaderValue;

use super::changes::SagaMark;
use super::document::SagaDocument;
use super::log::{
    ActionState, CompensationState, EndedRun, SagaInstance, StepDirection, StepFailure, StepState,
};
use super::status::{SagaStatus, StepStatus};
use super::step_route::step_route_name;
use crate::hex;
use crate::http_message::TRACEPARENT;
use crate::key::PartHasher;
use crate::record::SpanId;
use crate::telemetry::{InternalSpan, Observers};

/// An operation of a step: the step, the direction and the generation.
type Operation = (usize, StepDirection, u32);

/// The trace that a saga belongs to.
#[derive(Debug, Clone)]
pub(super) struct SagaTrace {
    /// The `traceparent` of the request that began the saga. Its span stands for forwarding the
    /// request, and so for the saga.
    traceparent: String,
    /// The exported span of that request; `None` if the trace is not exported.
    request: Option<SpanId>,
}

impl SagaTrace {
    /// Returns the trace of a saga. `request` is the exported span of its request.
    pub fn of(document: &SagaDocument, request: Option<SpanId>) -> Option<SagaTrace> {
        let traceparent = document.request.traceparent.clone()?;
        Some(SagaTrace { traceparent, request })
    }

    /// Adds the trace to the request of an operation. `own` is a random number. Where spans are
    /// exported, the upstream gets the span of forwarding as its parent, and else the saga's.
    pub fn enter<B>(
        &self,
        request: &mut Request<B>,
        document: &SagaDocument,
        (step, direction, generation): Operation,
        (observers, own): (&Observers, u64),
    ) {
        let span = document
            .plan
            .steps
            .get(step)
            .map(|step| span_of(document.log.instance, &step.name, direction, generation));
        let entered = self.request.zip(span).and_then(|(SpanId { trace, .. }, span)| {
            let (trail, forward) = observers.begin_below(trace, span, own)?;
            request.extensions_mut().insert(trail);
            Some(format!("00-{}-{}-01", hex::encode(&trace), hex::encode(&forward)))
        });
        let text = entered.unwrap_or_else(|| self.traceparent.clone());
        if let Ok(value) = HeaderValue::try_from(text) {
            request.headers_mut().insert(TRACEPARENT, value);
        }
    }

    /// Exports what a write settles: each action and compensation with a result that the record had
    /// not before, and the saga if it ends with this status at `now_ms`.
    pub fn export(
        &self,
        observers: &Observers,
        document: &SagaDocument,
        before: &SagaMark,
        end: Option<(&str, SagaStatus, u64)>,
    ) {
        let Some(SpanId { trace, span: request }) = self.request else { return };
        let Some(saga) = self.saga_span() else { return };
        let name = &document.plan.saga;
        let mut spans = before.settled(document, |step, direction| {
            let planned = document.plan.steps.get(step)?;
            let settled = Settled::of(document.log.steps.get(step)?, direction)?;
            let id = (document.log.instance, &*planned.name, direction, settled.run.generation);
            let verb = match direction {
                StepDirection::Action => "step",
                StepDirection::Compensation => "undo",
            };
            let is_no = matches!(settled.status, StepStatus::Failed | StepStatus::Refused);
            let mut span = InternalSpan::new((trace, span_of(id.0, id.1, id.2, id.3), Some(saga)));
            span.named(format!("{verb} {}", planned.name))
                .lasted(settled.run.begun_ms, settled.run.ended_ms)
                .text("onceward.route", &step_route_name(name, &planned.name, direction))
                .text("onceward.direction", direction.name())
                .text("onceward.outcome", settled.status.name())
                .number("onceward.attempts", settled.run.attempts.into());
            if let Some(status) = settled.upstream_status {
                span.number("http.response.status_code", status.into());
            }
            if is_no {
                span.failed();
            }
            Some(span)
        });
        if let Some((id, status, now_ms)) = end {
            let mut span = InternalSpan::new((trace, saga, Some(request)));
            span.named(format!("saga {name}"))
                .lasted(document.log.started_ms, now_ms)
                .text("onceward.route", name)
                .text("onceward.operation", id)
                .text("onceward.outcome", status.name());
            if status == SagaStatus::Failed {
                span.failed();
            }
            spans.push(span);
        }
        observers.export(spans);
    }

    /// Returns the saga's own span.
    fn saga_span(&self) -> Option<[u8; 8]> {
        let digits = self.traceparent.get(36..52)?;
        Some(u64::from_str_radix(digits, 16).ok()?.to_be_bytes())
    }
}

/// Returns the span of an operation of a step: the same on every gateway.
fn span_of(
    instance: SagaInstance,
    step: &str,
    direction: StepDirection,
    generation: u32,
) -> [u8; 8] {
    let mut hasher = PartHasher::new("saga-span");
    hasher.part(&instance.0).part(step.as_bytes()).part(direction.name().as_bytes());
    hasher.part(&generation.to_be_bytes());
    let hash = hasher.finish();
    let mut span = [0; 8];
    span.copy_from_slice(&hash[..8]);
    // An id of all zeros is invalid.
    span[7] |= 1;
    span
}

/// A settled operation of a step.
struct Settled {
    run: EndedRun,
    status: StepStatus,
    upstream_status: Option<u16>,
}

impl Settled {
    fn of(step: &StepState, direction: StepDirection) -> Option<Settled> {
        let (run, status, upstream_status) = match (direction, &step.action, &step.compensation) {
            (StepDirection::Action, ActionState::Done { run, answer }, _) => {
                (run, StepStatus::Done, answer.as_ref().map(|answer| answer.status))
            }
            (StepDirection::Action, ActionState::Failed { run, why }, _) => {
                (run, StepStatus::Failed, StepFailure::status(why))
            }
            (StepDirection::Action, ActionState::Barred { run }, _) => {
                (run, StepStatus::Barred, None)
            }
            (StepDirection::Compensation, _, CompensationState::Undone { run, .. }) => {
                (run, StepStatus::Undone, None)
            }
            (StepDirection::Compensation, _, CompensationState::Refused { run, why }) => {
                (run, StepStatus::Refused, StepFailure::status(why))
            }
            _ => return None,
        };
        Some(Settled { run: *run, status, upstream_status })
    }
}
