//! The last step of every request: the layer makes a response from the result, counts it and logs
//! it.

use http::{HeaderMap, HeaderValue, Request, Response};

use super::echo::Echo;
use super::trace_context::TraceParent;
use super::{LayerState, cors};
use crate::entropy::Entropy;
use crate::gate::{AnswerBody, Answered, ProtectedRoute, RequestContext};
use crate::http_message::SilenceLimit;
use crate::refusal::{Refusal, RefusalStyle};
use crate::telemetry::{Answer, Trail};

/// The body of an answer: stored, or streaming through.
pub type OncewardBody<B> = AnswerBody<SilenceLimit<B>>;

/// The parts of a request that its response needs.
pub(super) struct AnswerContext {
    /// The trace that the request belongs to.
    pub trace: TraceParent,
    /// The request's trail, if an exporter is enabled.
    pub trail: Option<Trail>,
    /// The origin of the page that sent the request.
    pub origin: Option<HeaderValue>,
    /// The request's key, where the route echoes it.
    pub echo: Option<Echo>,
}

impl AnswerContext {
    /// Takes the context from a request, and continues its trace or begins one.
    pub fn of<B>(
        request: &mut Request<B>,
        entropy: &Entropy,
        context: &RequestContext,
    ) -> AnswerContext {
        let trail = context.trail.clone();
        let origin = cors::asking_origin(request.headers());
        let trace = TraceParent::of(request.headers_mut(), entropy, trail.as_ref());
        AnswerContext { trace, trail, origin, echo: None }
    }
}

impl LayerState {
    /// Renders, counts and logs the result of a request. `guarded` is the route that covers the
    /// request, if there is one.
    pub(super) fn respond<RB>(
        &self,
        result: Result<Answered<RB>, Refusal>,
        guarded: Option<&ProtectedRoute>,
        AnswerContext { trace, trail, origin, echo }: AnswerContext,
    ) -> Response<OncewardBody<RB>> {
        let meter = guarded.map_or(&self.uncovered, |guarded| &guarded.meter);
        let route = guarded.map_or("-", |guarded| &guarded.route.policy.route);
        let count = |answer: Answer| {
            meter.count(answer);
            let route = guarded.map(|guarded| &guarded.route.policy.route);
            trail.iter().for_each(|trail| trail.answered(route, answer.name()));
        };
        let fit_origin = |headers: &mut HeaderMap| {
            let rule = guarded.and_then(|guarded| guarded.route.policy.cors.as_ref());
            rule.into_iter().for_each(|rule| cors::fit(rule, origin.as_ref(), headers));
        };
        let mut response = match result {
            Ok(Answered { mut response, answer }) => {
                count(answer);
                if matches!(
                    answer,
                    Answer::Replayed | Answer::InFlight | Answer::Published | Answer::NotModified
                ) {
                    fit_origin(response.headers_mut());
                }
                tracing::debug!(
                    request_id = trace.trace_id(),
                    route,
                    outcome = answer.name(),
                    status = response.status().as_u16(),
                    "answered"
                );
                let silence = guarded.map_or(self.silence, |guarded| guarded.response_timeout);
                response.map(|body| body.map(|rest| SilenceLimit::new(rest, silence)))
            }
            Err(refusal) => {
                let style = guarded
                    .map_or_else(RefusalStyle::default, |it| RefusalStyle::of(&it.route.policy));
                let (mut response, answer) = self.renderer.render(&refusal, style);
                fit_origin(response.headers_mut());
                count(answer);
                if matches!(refusal, Refusal::OutcomeUncertain { status: None, .. }) {
                    meter.count_held();
                }
                let operation = refusal.operation().map(|slot| slot.to_string());
                let (request_id, outcome, status) =
                    (trace.trace_id(), answer.name(), response.status().as_u16());
                tracing::info!(request_id, route, outcome, status, operation, "refused");
                response.map(AnswerBody::whole)
            }
        };
        if let Some(echo) = echo {
            cors::expose(echo.name(), response.headers_mut());
            echo.put_on(response.headers_mut());
        }
        response
    }
}
