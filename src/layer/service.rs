//! The service that a layer makes: every request goes through the gate, streams through, or is
//! refused.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::echo::Echo;
use super::published::Published;
use super::respond::AnswerContext;
use super::{LayerState, trailers};
use crate::engine::Mode;
use crate::forwarding::{BoxError, UpstreamIndex};
use crate::gate::{
    AnswerBody, Answered, ProtectedRoute, UpstreamService, keep_identifying_fields,
    wants_protection,
};
use crate::http_message::{SilenceLimit, discard, read_whole};
use crate::refusal::Refusal;
use crate::telemetry::Answer;

/// A service that executes a request once per key. Cheap to clone where the service inside is.
#[derive(Clone)]
pub struct OncewardService<S> {
    state: Arc<LayerState>,
    inner: S,
}

/// The body of an answer: stored, or streaming through.
pub type OncewardBody<B> = AnswerBody<SilenceLimit<B>>;

/// The future of an answer.
pub type ResponseFuture<B> =
    Pin<Box<dyn Future<Output = Result<Response<OncewardBody<B>>, Infallible>> + Send>>;

impl<S> OncewardService<S> {
    pub(super) fn new(state: Arc<LayerState>, inner: S) -> OncewardService<S> {
        OncewardService { state, inner }
    }
}

impl<S, B> Service<Request<B>> for OncewardService<S>
where
    S: UpstreamService<B> + Clone,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<OncewardBody<S::ResponseBody>>;
    type Error = Infallible;
    type Future = ResponseFuture<S::ResponseBody>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The service inside is polled when there is a request to forward: a replay does not need
        // it.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.state.clone().answer(request, self.inner.clone())
    }
}

impl LayerState {
    /// Answers a request, from its fields to its response.
    ///
    /// Each of the ways has a future of its own, so that none holds memory for the state of
    /// another.
    fn answer<S, B>(
        self: Arc<Self>,
        mut request: Request<B>,
        inner: S,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        self.lookalikes.drop_from(request.headers_mut());
        let mut context = AnswerContext::of(&mut request, self.gate.entropy());
        let position = match self.routes.position(request.method(), request.uri().path()) {
            Ok(position) => position,
            Err(_) => return self.refuse(request, Refusal::PathAmbiguous, None, context),
        };
        let Some(guarded) = position.and_then(|at| self.guarded.get(at)).cloned() else {
            return self.answer_uncovered(request, inner, context);
        };
        request.extensions_mut().insert(UpstreamIndex(guarded.route.upstream));
        let policy = &guarded.route.policy;
        if policy.mode != Mode::Off {
            keep_identifying_fields(policy, request.headers_mut());
        }
        match policy.mode {
            Mode::Off => self.pass_covered(guarded, request, inner, context),
            Mode::Shadow => Box::pin(async move {
                self.vouch(&guarded, &mut request);
                let result = self.watch(&guarded, request, inner).await;
                Ok(self.respond(result, Some(&guarded), context))
            }),
            Mode::Enforce => {
                context.echo = Echo::of(policy, request.headers());
                self.vouch(&guarded, &mut request);
                match wants_protection(policy, request.headers(), request.extensions()) {
                    Ok(true) => self.protect(guarded, request, inner, context),
                    Ok(false) => self.pass_covered(guarded, request, inner, context),
                    Err(refusal) => self.refuse(request, refusal, Some(&guarded), context),
                }
            }
        }
    }

    /// Refuses a request before its body is read.
    fn refuse<B, RB>(
        &self,
        request: Request<B>,
        refusal: Refusal,
        guarded: Option<&ProtectedRoute>,
        context: AnswerContext,
    ) -> ResponseFuture<RB>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        RB: Send + 'static,
    {
        discard(request.into_body());
        Box::pin(ready(Ok(self.respond(Err(refusal), guarded, context))))
    }

    /// Answers a request that no route covers: with the published policy, or by passing it through.
    fn answer_uncovered<S, B>(
        self: Arc<Self>,
        request: Request<B>,
        inner: S,
        context: AnswerContext,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        if let Some(published) = self.published.as_ref().filter(|_| Published::is_asked(&request)) {
            let response = published.answer(request.method(), request.headers());
            discard(request.into_body());
            let answered = Answered { response, answer: Answer::Published };
            return Box::pin(ready(Ok(self.respond(Ok(answered), None, context))));
        }
        Box::pin(async move {
            let result = self.pass(request, inner, None, self.silence).await;
            Ok(self.respond(result, None, context))
        })
    }

    /// Passes a request of a route through without protection.
    fn pass_covered<S, B>(
        self: Arc<Self>,
        guarded: Arc<ProtectedRoute>,
        request: Request<B>,
        inner: S,
        context: AnswerContext,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let result = self.pass(request, inner, None, guarded.response_timeout).await;
            Ok(self.respond(result, Some(&guarded), context))
        })
    }

    /// Passes a request through the gate.
    fn protect<S, B>(
        self: Arc<Self>,
        guarded: Arc<ProtectedRoute>,
        request: Request<B>,
        inner: S,
        context: AnswerContext,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let parts = Box::new(parts);
        let announced = trailers::need_announcement(parts.version, &parts.headers);
        Box::pin(async move {
            let mut result = self.run_once(&guarded, parts, body, inner).await;
            result
                .iter_mut()
                .filter(|_| announced)
                .for_each(|answered| trailers::announce(&mut answered.response));
            Ok(self.respond(result, Some(&guarded), context))
        })
    }

    /// Reads the body and hands the request to the gate.
    async fn run_once<S, B>(
        &self,
        guarded: &Arc<ProtectedRoute>,
        parts: Box<Parts>,
        mut body: B,
        inner: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let mut hold = self.gate.budget().of_address(parts.extensions.get()).hold();
        let limit = self.gate.settings().request_body;
        let reserve = |bytes| hold.grow(bytes);
        match read_whole(&mut body, limit, self.body_timeout, reserve).await {
            Ok(bytes) => self.gate.handle(guarded, parts, bytes, hold, inner).await,
            Err(refusal) => {
                discard(body);
                Err(refusal)
            }
        }
    }

    /// Verifies the request's scope, once, before any of its body is kept.
    fn vouch<B>(&self, guarded: &ProtectedRoute, request: &mut Request<B>) {
        if let Some(scope) = self.gate.vouch(guarded, request.headers(), request.extensions()) {
            request.extensions_mut().insert(scope);
        }
    }
}
