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
use super::step_route::{StepResources, StepRouteError, bar_route, secret_fields, step_route};
use super::trace::SagaTrace;
use crate::gate::{CallOutcome, InternalCaller, InternalOperation, ProtectedRoute};

/// What is done with a step's operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepCall {
    /// It is called.
    Send {
        /// Whether the call never begins the operation.
        continues: bool,
        /// Whether the record is written anew if the operation is uncertain.
        renews: bool,
    },
    /// It is barred.
    Bar,
}

/// What has become of an operation that was called or barred.
#[derive(Debug)]
pub(super) struct CarriedOut {
    pub outcome: StepOutcome,
    /// Whether its record was written anew.
    pub is_renewed: bool,
}

impl From<StepOutcome> for CarriedOut {
    fn from(outcome: StepOutcome) -> CarriedOut {
        CarriedOut { outcome, is_renewed: false }
    }
}

/// An operation that can be called or barred.
struct PreparedCall {
    gateway: Arc<dyn SagaGateway>,
    guarded: Arc<ProtectedRoute>,
    saga: String,
    key: StepKey,
    rules: AnswerRules,
    /// The request; `None` for a bar.
    request: Option<Request<Bytes>>,
    continues: bool,
    renews: bool,
}

/// Calls or bars an operation of a saga. Its request continues `trace`.
pub(super) fn carry_out(
    gateway: Arc<dyn SagaGateway>,
    document: &SagaDocument,
    id: &str,
    (step, direction, generation): (usize, StepDirection, u32),
    call: StepCall,
    trace: Option<&SagaTrace>,
) -> impl Future<Output = CarriedOut> + Send + use<> {
    let mut prepared = prepare(gateway, document, id, (step, direction, generation), call);
    if let (Ok(PreparedCall { gateway, request: Some(request), .. }), Some(trace)) =
        (&mut prepared, trace)
    {
        let own = gateway.gate().entropy().next();
        let observers = gateway.observers();
        trace.enter(request, document, (step, direction, generation), (observers, own));
    }
    async move {
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(outcome) => return outcome.into(),
        };
        let PreparedCall { gateway, guarded, saga, key, rules, request, continues, renews } =
            prepared;
        let operation = InternalOperation {
            guarded: &guarded,
            caller: InternalCaller::Saga(&saga),
            key: key.as_str(),
            hops: 0,
            continues,
        };
        let outcome = match request {
            Some(request) => gateway.call(operation, request).await,
            None => gateway.gate().bar(operation).await,
        };
        let is_renewed = match outcome {
            CallOutcome::Uncertain { operation, .. } if renews => {
                gateway.gate().keep_uncertain(&operation, &guarded.route.policy).await
            }
            _ => false,
        };
        CarriedOut { outcome: rules.outcome(&outcome), is_renewed }
    }
}

/// Prepares a call or a bar. A bar needs only the identity of the operation: it succeeds also on a
/// gateway that is not configured to call the step.
fn prepare(
    gateway: Arc<dyn SagaGateway>,
    document: &SagaDocument,
    id: &str,
    (step, direction, generation): (usize, StepDirection, u32),
    call: StepCall,
) -> Result<PreparedCall, StepOutcome> {
    let planned = document.plan.steps.get(step).ok_or_else(|| invalid("no such step"))?;
    let (plan, place) = (&document.plan, (planned, direction));
    let rules = AnswerRules::new(planned, direction).map_err(invalid)?;
    // As long as the log assumes, whatever the configuration has become.
    let kept_for = Duration::from_millis(document.log.record_life_ms);
    let gate = gateway.gate();
    let (guarded, request, continues, renews) = match call {
        StepCall::Send { continues, renews } => {
            let request = request(&*gateway, document, id, place)?;
            (step_route(gate, plan, place, kept_for, &*gateway), Some(request), continues, renews)
        }
        StepCall::Bar => (bar_route(gate, plan, place, kept_for), None, false, false),
    };
    let guarded = guarded.map_err(unconfigured)?;
    let key = StepKey::new(document.log.instance, &planned.name, direction, generation);
    let saga = plan.saga.clone();
    Ok(PreparedCall { guarded, saga, key, rules, request, continues, renews, gateway })
}

/// Renders the request of an operation.
fn request(
    resources: &dyn StepResources,
    document: &SagaDocument,
    id: &str,
    (step, direction): (&Step, StepDirection),
) -> Result<Request<Bytes>, StepOutcome> {
    let template = request_in(step, direction).ok_or_else(|| invalid("nothing to undo"))?;
    let keys = document.done_keys();
    let rendered = request_of(template, &document.scope(id, &keys)).map_err(invalid)?;
    let secrets = secret_fields(&template.headers, resources).map_err(unconfigured)?;
    rendered_request(rendered, secrets).ok_or_else(|| invalid("malformed"))
}

fn request_in(step: &Step, direction: StepDirection) -> Option<&StepRequest> {
    match (direction, &step.compensation) {
        (StepDirection::Action, _) => Some(&step.action),
        (StepDirection::Compensation, Compensation::Request { request, .. }) => Some(request),
        (StepDirection::Compensation, Compensation::None) => None,
    }
}

fn rendered_request(rendered: RenderedRequest, secrets: HeaderMap) -> Option<Request<Bytes>> {
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

fn invalid(why: impl ToString) -> StepOutcome {
    StepOutcome::Invalid { why: why.to_string() }
}

fn unconfigured(error: StepRouteError) -> StepOutcome {
    StepOutcome::Unconfigured { why: error.to_string() }
}
