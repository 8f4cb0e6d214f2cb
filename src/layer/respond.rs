//! The last step of every request: its result becomes a response, and is counted and logged.

use http::{HeaderMap, HeaderValue, Response};

use super::echo::Echo;
use super::{Front, OnceBody, cors};
use crate::gate::{Answered, ProtectedRoute, Refusal};
use crate::proxy::{Shape, Silence, TraceParent};
use crate::telemetry::{Answer, Trail};

/// What goes with a request until it is answered.
pub(super) struct Followed {
    /// Its place in a trace.
    pub trace: TraceParent,
    /// Where somebody wants to know of it.
    pub trail: Option<Trail>,
    /// Of the page that sent it.
    pub origin: Option<HeaderValue>,
    /// Its key, where the route echoes that.
    pub echo: Option<Echo>,
}

impl Front {
    /// Renders, counts and logs what became of a request. `guarded`: its route, if it has one.
    pub(super) fn respond<RB>(
        &self,
        result: Result<Answered<RB>, Refusal>,
        guarded: Option<&ProtectedRoute>,
        Followed { trace, trail, origin, echo }: Followed,
    ) -> Response<OnceBody<RB>> {
        let meter = guarded.map_or(&self.passed, |guarded| &guarded.meter);
        let route = guarded.map_or("-", |guarded| &guarded.route.policy.route);
        let note = |answer: Answer| {
            meter.count(answer);
            let route = guarded.map(|guarded| &guarded.route.policy.route);
            trail.iter().for_each(|trail| trail.answered(route, answer.name()));
        };
        let fit = |headers: &mut HeaderMap| {
            let rule = guarded.and_then(|guarded| guarded.route.policy.cors.as_ref());
            rule.into_iter().for_each(|rule| cors::fit(rule, origin.as_ref(), headers));
        };
        let mut response = match result {
            Ok(Answered { mut response, answer }) => {
                note(answer);
                if answer == Answer::Replayed {
                    fit(response.headers_mut());
                }
                tracing::debug!(
                    request_id = trace.trace_id(),
                    route,
                    outcome = answer.name(),
                    status = response.status().as_u16(),
                    "answered"
                );
                let silence = guarded.map_or(self.silence, |guarded| guarded.response_timeout);
                response.map(|body| body.map(|rest| Silence::new(rest, silence)))
            }
            Err(problem) => {
                let shape =
                    guarded.map_or_else(Shape::default, |guarded| Shape::of(&guarded.route.policy));
                let (mut response, answer) = self.rejections.render(&problem, shape);
                fit(response.headers_mut());
                note(answer);
                if matches!(problem, Refusal::OutcomeUncertain { status: None, .. }) {
                    meter.count_held();
                }
                let operation = problem.operation().map(|slot| slot.to_string());
                let (request_id, outcome, status) =
                    (trace.trace_id(), answer.name(), response.status().as_u16());
                tracing::info!(request_id, route, outcome, status, operation, "refused");
                response
            }
        };
        if let Some(echo) = echo {
            cors::expose(echo.name(), response.headers_mut());
            echo.put_on(response.headers_mut());
        }
        response
    }
}
