//! The state of a saga, at `/.well-known/onceward/sagas/{id}`.
//!
//! Danger: the path has no key, so the reference alone would open the state to anybody who reads a
//! log. Only the caller and the scope of the saga's request get it. Everybody else gets the answer
//! for a saga that does not exist.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;

use super::LayerState;
use super::respond::AnswerContext;
use super::service::ResponseFuture;
use super::tagged::TaggedDocument;
use crate::gate::{
    AnswerBody, Answered, ClientPreference, ProtectedRoute, RequestContext, SagaLookup, SagaReport,
};
use crate::http_message::discard;
use crate::key::Slot;
use crate::refusal::{Refusal, SAGAS_PATH};
use crate::telemetry::Answer;

/// The state is for one client, and changes.
const NO_STORE: HeaderValue = HeaderValue::from_static("private, no-store");

impl LayerState {
    /// Returns whether a request is for the state of a saga. Without sagas, the path belongs to the
    /// upstream.
    pub(super) fn is_for_saga_report<B>(&self, request: &Request<B>) -> bool {
        request.uri().path().starts_with(SAGAS_PATH)
            && matches!(*request.method(), Method::GET | Method::HEAD)
            && self.guarded.iter().any(|guarded| guarded.saga.is_some())
    }

    /// Answers a request for the state of a saga.
    pub(super) fn answer_saga_report<B, RB>(
        self: Arc<Self>,
        request: Request<B>,
        context: RequestContext,
        answer: AnswerContext,
    ) -> ResponseFuture<RB>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        RB: Send + 'static,
    {
        let (parts, body) = request.into_parts();
        discard(body);
        Box::pin(async move {
            let (result, guarded) = match self.saga_report(&parts, &context).await {
                Ok((guarded, response)) => {
                    (Ok(Answered { response, answer: Answer::Published }), Some(guarded))
                }
                Err(refusal) => (Err(refusal), None),
            };
            let mut response = self.respond(result, guarded.as_deref(), answer);
            // Refusals too: a cached 404 would hide a saga that begins later.
            response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
            Ok(response)
        })
    }

    async fn saga_report<RB>(
        &self,
        parts: &Parts,
        context: &RequestContext,
    ) -> Result<(Arc<ProtectedRoute>, Response<AnswerBody<RB>>), Refusal> {
        let id = parts.uri.path().strip_prefix(SAGAS_PATH);
        let slot = id.and_then(|id| Slot::from_reference(id).ok()).ok_or(Refusal::SagaNotFound)?;
        let headers = &parts.headers;
        let wait = ClientPreference::of(headers).wait;
        let lookup = SagaLookup { slot, headers, context, wait };
        let document =
            |report: &SagaReport| TaggedDocument::new("saga report", report.body.clone());
        let is_known = |report: &SagaReport| document(report).is_known(headers);
        let route_of = |name: &str| self.saga_route(name);
        let (guarded, report) = self.gate.saga_report(lookup, route_of, is_known).await?;
        Ok((guarded, document(&report).answer(&parts.method, headers, NO_STORE)))
    }

    fn saga_route(&self, name: &str) -> Option<Arc<ProtectedRoute>> {
        let mut sagas = self.guarded.iter().filter(|guarded| guarded.saga.is_some());
        sagas.find(|guarded| *guarded.route.policy.route == *name).cloned()
    }
}

#[cfg(test)]
mod tests;
