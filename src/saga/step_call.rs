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
use super::step_route::{StepRouteError, bare_route, secret_fields, step_route};
use super::trace::SagaTrace;
use crate::gate::{CallOutcome, InternalCaller, InternalOperation, ProtectedRoute};

/// What is done with a step's operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepCall {
    /// It is called.
    Send {
        /// Whether the call never begins the operation.
        continues: bool,
        /// Whether the call only finds out what became of the operation.
        only_asks: bool,
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

/// What is done with an operation, ready for it.
enum Effect {
    Send { request: Request<Bytes>, continues: bool, only_asks: bool, renews: bool },
    Look(StepRouteError),
    Bar,
}

/// An operation that can be called or barred.
struct PreparedCall {
    gateway: Arc<dyn SagaGateway>,
    guarded: Arc<ProtectedRoute>,
    saga: String,
    key: StepKey,
    rules: AnswerRules,
    effect: Effect,
}

/// Calls or bars an operation of a saga. Its request continues `trace`.
///
/// If this gateway is not configured to call an operation that began earlier, it only looks at the
/// record: an operator may have settled the operation.
pub(super) fn carry_out(
    gateway: Arc<dyn SagaGateway>,
    document: &SagaDocument,
    id: &str,
    (step, direction, generation): (usize, StepDirection, u32),
    call: StepCall,
    trace: Option<&SagaTrace>,
) -> impl Future<Output = CarriedOut> + Send + use<> {
    let mut prepared = prepare(gateway, document, id, (step, direction, generation), call);
    if let (Ok(PreparedCall { gateway, effect: Effect::Send { request, .. }, .. }), Some(trace)) =
        (&mut prepared, trace)
    {
        let own = gateway.gate().entropy().next();
        let observers = gateway.observers();
        trace.enter(request, document, (step, direction, generation), (observers, own));
    }
    async move {
        match prepared {
            Ok(prepared) => prepared.carry_out().await,
            Err(outcome) => outcome.into(),
        }
    }
}

impl PreparedCall {
    async fn carry_out(self) -> CarriedOut {
        let PreparedCall { gateway, guarded, saga, key, rules, effect } = self;
        let gate = gateway.gate();
        let mut operation = InternalOperation {
            guarded: &guarded,
            caller: InternalCaller::Saga(&saga),
            key: key.as_str(),
            hops: 0,
            continues: false,
            only_asks: false,
        };
        match effect {
            Effect::Send { request, continues, only_asks, renews } => {
                (operation.continues, operation.only_asks) = (continues, only_asks);
                let outcome = gateway.call(operation, request).await;
                let is_renewed = match outcome {
                    CallOutcome::Uncertain { operation, .. } if renews => {
                        gate.keep_uncertain(&operation, &guarded.route.policy).await
                    }
                    _ => false,
                };
                CarriedOut { outcome: rules.outcome(&outcome), is_renewed }
            }
            Effect::Look(why) => match rules.outcome(&gate.look(operation).await) {
                StepOutcome::Uncertain { .. } | StepOutcome::InFlight { .. } => unconfigured(why),
                settled => settled,
            }
            .into(),
            Effect::Bar => rules.outcome(&gate.bar(operation).await).into(),
        }
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
    let bare_route = || bare_route(gate, plan, place, kept_for).map_err(unconfigured);
    let (guarded, effect) = match call {
        StepCall::Send { continues, only_asks, renews } => {
            let rendered = rendered(document, id, place)?;
            let route = step_route(gate, plan, place, kept_for, &*gateway);
            let secrets = request_in(planned, direction)
                .map_or(Ok(HeaderMap::new()), |it| secret_fields(&it.headers, &*gateway));
            match (route, secrets) {
                (Ok(route), Ok(secrets)) => {
                    let request = request(rendered, secrets).ok_or_else(|| invalid("malformed"))?;
                    (route, Effect::Send { request, continues, only_asks, renews })
                }
                (Err(why), _) | (_, Err(why)) if continues => (bare_route()?, Effect::Look(why)),
                (Err(why), _) | (_, Err(why)) => return Err(unconfigured(why)),
            }
        }
        StepCall::Bar => (bare_route()?, Effect::Bar),
    };
    let key = StepKey::new(document.log.instance, &planned.name, direction, generation);
    Ok(PreparedCall { guarded, saga: plan.saga.clone(), key, rules, effect, gateway })
}

/// Renders the request of an operation.
fn rendered(
    document: &SagaDocument,
    id: &str,
    (step, direction): (&Step, StepDirection),
) -> Result<RenderedRequest, StepOutcome> {
    let template = request_in(step, direction).ok_or_else(|| invalid("nothing to undo"))?;
    let keys = document.done_keys();
    request_of(template, &document.scope(id, &keys)).map_err(invalid)
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

fn invalid(why: impl ToString) -> StepOutcome {
    StepOutcome::Invalid { why: why.to_string() }
}

fn unconfigured(error: StepRouteError) -> StepOutcome {
    StepOutcome::Unconfigured { why: error.to_string() }
}
