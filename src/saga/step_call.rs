//! The call of a step's operation, and its bar.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Uri};

use super::document::SagaDocument;
use super::gateway::SagaGateway;
use super::log::StepDirection;
use super::outcome::{AnswerRules, StepOutcome};
use super::plan::{Compensation, Step, StepRequest};
use super::render::{RenderedRequest, request_of};
use super::step_key::StepKey;
use super::step_route::{StepRouteError, secret_fields, step_route};
use super::trace::SagaTrace;
use crate::gate::{InternalCaller, InternalOperation, ProtectedRoute};

/// What is done with a step's operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepCall {
    /// It is called.
    Send {
        /// Whether the call never begins the operation.
        continues: bool,
    },
    /// It is barred.
    Bar,
}

/// An operation that can be called or barred.
struct PreparedCall {
    gateway: Arc<dyn SagaGateway>,
    guarded: Arc<ProtectedRoute>,
    saga: String,
    key: StepKey,
    request: Request<Bytes>,
    rules: AnswerRules,
}

/// Calls or bars an operation of a saga. Its request continues `trace`.
pub(super) fn carry_out(
    gateway: Arc<dyn SagaGateway>,
    document: &SagaDocument,
    id: &str,
    (step, direction, generation): (usize, StepDirection, u32),
    call: StepCall,
    trace: Option<&SagaTrace>,
) -> impl Future<Output = StepOutcome> + Send + use<> {
    let mut prepared = prepare(gateway, document, id, (step, direction, generation));
    if let (Ok(PreparedCall { gateway, request, .. }), Some(trace)) = (&mut prepared, trace) {
        let own = gateway.gate().entropy().next();
        let observers = gateway.observers();
        trace.enter(request, document, (step, direction, generation), (observers, own));
    }
    async move {
        let PreparedCall { gateway, guarded, saga, key, request, rules } = match prepared {
            Ok(prepared) => prepared,
            Err(outcome) => return outcome,
        };
        let mut operation = InternalOperation {
            guarded: &guarded,
            caller: InternalCaller::Saga(&saga),
            key: key.as_str(),
            hops: 0,
            continues: false,
        };
        let outcome = match call {
            StepCall::Send { continues } => {
                operation.continues = continues;
                gateway.call(operation, request).await
            }
            StepCall::Bar => gateway.gate().bar(operation).await,
        };
        rules.outcome(&outcome)
    }
}

fn prepare(
    gateway: Arc<dyn SagaGateway>,
    document: &SagaDocument,
    id: &str,
    (step, direction, generation): (usize, StepDirection, u32),
) -> Result<PreparedCall, StepOutcome> {
    let invalid = |why: String| StepOutcome::Invalid { why };
    let planned = document.plan.steps.get(step).ok_or_else(|| invalid("no such step".into()))?;
    let template =
        request_in(planned, direction).ok_or_else(|| invalid("nothing to undo".into()))?;
    let keys = document.done_keys();
    let rendered = request_of(template, &document.scope(id, &keys))
        .map_err(|error| invalid(error.to_string()))?;
    let resources = &*gateway;
    let secrets = secret_fields(&template.headers, resources).map_err(unconfigured)?;
    let place = (planned, direction);
    // As long as the log assumes, whatever the configuration has become.
    let kept_for = Duration::from_millis(document.log.record_life_ms);
    let guarded = step_route(gateway.gate(), &document.plan, place, kept_for, resources)
        .map_err(unconfigured)?;
    let request = request(rendered, secrets).ok_or_else(|| invalid("malformed".into()))?;
    let rules = AnswerRules::new(planned, direction).map_err(|error| invalid(error.to_string()))?;
    let key = StepKey::new(document.log.instance, &planned.name, direction, generation);
    Ok(PreparedCall { guarded, saga: document.plan.saga.clone(), key, request, rules, gateway })
}

fn request_in(step: &Step, direction: StepDirection) -> Option<&StepRequest> {
    match (direction, &step.compensation) {
        (StepDirection::Action, _) => Some(&step.action),
        (StepDirection::Compensation, Compensation::Request { request, .. }) => Some(request),
        (StepDirection::Compensation, Compensation::None) => None,
    }
}

fn request(rendered: RenderedRequest, secrets: HeaderMap) -> Option<Request<Bytes>> {
    let RenderedRequest { method, target, headers, body } = rendered;
    let target: Uri = target.parse().ok()?;
    // A whole address would choose another host.
    let is_path = target.scheme().is_none() && target.path().starts_with('/');
    let mut request = Request::new(Bytes::from(body.clone().unwrap_or_default()));
    *request.method_mut() = method.parse().ok()?;
    *request.uri_mut() = is_path.then_some(target)?;
    if body.is_some() {
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    for (name, value) in headers {
        request.headers_mut().insert(HeaderName::try_from(name).ok()?, value.try_into().ok()?);
    }
    request.headers_mut().extend(secrets);
    Some(request)
}

fn unconfigured(error: StepRouteError) -> StepOutcome {
    StepOutcome::Unconfigured { why: error.to_string() }
}
