//! Reads of resources: the upstream gets a plain GET, and the gate makes the answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Body;

use super::respond::AnswerContext;
use super::service::{Head, ResponseFuture};
use super::{LayerState, cors};
use crate::engine::ResourceRule;
use crate::gate::{
    ProtectedRoute, RequestContext, ResourceRead, UpstreamService, require_condition,
};

impl LayerState {
    /// Answers a read of a resource. It has no key, and no record is made.
    pub(super) fn read_resource<S, B>(
        self: Arc<Self>,
        (guarded, rule): (Arc<ProtectedRoute>, Arc<ResourceRule>),
        mut request: Request<B>,
        context: RequestContext,
        inner: S,
        answer: AnswerContext,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        if !rule.makes_tags() {
            return self.pass_covered(guarded, request, context, inner, answer);
        }
        let read = match ResourceRead::prepare(&guarded.route.policy, &rule, &mut request) {
            Ok(read) => read,
            Err(refusal) => return self.refuse(request, refusal, Some(&guarded), answer),
        };
        Box::pin(async move {
            let timeout = guarded.response_timeout;
            let result = match self.pass(request, &context, inner, None, timeout).await {
                Ok(answered) => {
                    self.gate.answer_read(&guarded, &rule, read, answered, &context).await
                }
                refused => refused,
            };
            let mut response = self.respond(result, Some(&guarded), answer);
            // The upstream's own fields of a 200 don't expose the tag, which the upstream does not
            // know.
            if response.status() == StatusCode::OK {
                cors::expose_tag(response.headers_mut());
            }
            Ok(response)
        })
    }

    /// Answers a request of a route that has no key and needs none.
    pub(super) fn answer_unkeyed<S, B>(
        self: Arc<Self>,
        guarded: Arc<ProtectedRoute>,
        request: Request<B>,
        context: RequestContext,
        inner: S,
        answer: AnswerContext,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let Some(rule) = &guarded.route.policy.resource else {
            return self.pass_covered(guarded, request, context, inner, answer);
        };
        if let Err(refusal) = require_condition(rule, request.method(), request.headers()) {
            return self.refuse(request, refusal, Some(&guarded), answer);
        }
        let unkeyed = guarded.unkeyed.as_ref().filter(|_| ResourceRule::is_write(request.method()));
        let intake = unkeyed
            .map(|unkeyed| self.gate.read_unkeyed_head(unkeyed, request.headers(), &context));
        match intake {
            None => self.pass_covered(guarded, request, context, inner, answer),
            Some(Ok(intake)) => {
                let (parts, body) = request.into_parts();
                let head = Head { parts: Box::new(parts), intake, context };
                self.protect(guarded, head, body, inner, answer)
            }
            Some(Err(refusal)) => self.refuse(request, refusal, Some(&guarded), answer),
        }
    }
}

#[cfg(test)]
mod tests;
