//! The service that a layer makes. It hands each request to the gate, passes it through without
//! protection, or refuses it.

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
use super::respond::{AnswerContext, OncewardBody};
use super::{LayerState, trailers};
use crate::engine::{Mode, ResourceRule};
use crate::forwarding::{BoxError, UpstreamIndex};
use crate::gate::{
    Answered, BufferedRequest, Intake, ProtectedRoute, RequestContext, UpstreamService,
    keep_identifying_fields,
};
use crate::http_message::{discard, read_whole};
use crate::refusal::Refusal;
use crate::telemetry::Answer;

/// A service that executes a request once per key. Cheap to clone if the service inside is cheap to
/// clone.
#[derive(Clone)]
pub struct OncewardService<S> {
    state: Arc<LayerState>,
    inner: S,
}

/// The head of a request that the gate protects.
pub(super) struct Head {
    pub parts: Box<Parts>,
    pub intake: Intake,
    pub context: RequestContext,
}

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
    /// Each way to answer has its own future, so that no future holds memory for the state of
    /// another way.
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
        let context = RequestContext::from_extensions(request.extensions());
        let mut answer = AnswerContext::of(&mut request, self.gate.entropy(), &context);
        if self.is_for_saga_report(&request) {
            return self.answer_saga_report(request, context, answer);
        }
        let position = match self.routes.position(request.method(), request.uri().path()) {
            Ok(position) => position,
            Err(_) => return self.refuse(request, Refusal::PathAmbiguous, None, answer),
        };
        let Some(guarded) = position.and_then(|at| self.guarded.get(at)).cloned() else {
            return self.answer_uncovered(request, context, inner, answer);
        };
        request.extensions_mut().insert(UpstreamIndex(guarded.route.upstream));
        let policy = &guarded.route.policy;
        if policy.mode != Mode::Off {
            keep_identifying_fields(policy, request.headers_mut());
        }
        match policy.mode {
            Mode::Off => self.pass_covered(guarded, request, context, inner, answer),
            Mode::Shadow => Box::pin(async move {
                let result = self.watch(&guarded, request, context, inner).await;
                Ok(self.respond(result, Some(&guarded), answer))
            }),
            Mode::Enforce => {
                if let Some(rule) = &policy.resource
                    && ResourceRule::is_read(request.method())
                {
                    let of = (guarded.clone(), rule.clone());
                    return self.read_resource(of, request, context, inner, answer);
                }
                answer.echo = Echo::of(policy, request.headers());
                match self.gate.read_head(&guarded, request.headers(), &context) {
                    Ok(Some(intake)) => {
                        let (parts, body) = request.into_parts();
                        let head = Head { parts: Box::new(parts), intake, context };
                        self.protect(guarded, head, body, inner, answer)
                    }
                    Ok(None) => self.answer_unkeyed(guarded, request, context, inner, answer),
                    Err(refusal) => self.refuse(request, refusal, Some(&guarded), answer),
                }
            }
        }
    }

    /// Refuses a request before its body is read.
    pub(super) fn refuse<B, RB>(
        &self,
        request: Request<B>,
        refusal: Refusal,
        guarded: Option<&ProtectedRoute>,
        answer: AnswerContext,
    ) -> ResponseFuture<RB>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        RB: Send + 'static,
    {
        discard(request.into_body());
        Box::pin(ready(Ok(self.respond(Err(refusal), guarded, answer))))
    }

    /// Answers a request that no route covers: with the published policy, or by passing it through.
    fn answer_uncovered<S, B>(
        self: Arc<Self>,
        request: Request<B>,
        context: RequestContext,
        inner: S,
        answer: AnswerContext,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        if let Some(published) = self.published.as_ref().filter(|_| Published::is_asked(&request)) {
            let response = published.answer(request.method(), request.headers());
            discard(request.into_body());
            let answered = Answered { response, answer: Answer::Published };
            return Box::pin(ready(Ok(self.respond(Ok(answered), None, answer))));
        }
        Box::pin(async move {
            let result = self.pass(request, &context, inner, None, self.silence).await;
            Ok(self.respond(result, None, answer))
        })
    }

    /// Passes a request of a route through without protection.
    pub(super) fn pass_covered<S, B>(
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
        Box::pin(async move {
            let timeout = guarded.response_timeout;
            let result = self.pass(request, &context, inner, None, timeout).await;
            Ok(self.respond(result, Some(&guarded), answer))
        })
    }

    /// Passes a request through the gate.
    pub(super) fn protect<S, B>(
        self: Arc<Self>,
        guarded: Arc<ProtectedRoute>,
        head: Head,
        body: B,
        inner: S,
        answer: AnswerContext,
    ) -> ResponseFuture<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let announced = trailers::need_announcement(head.parts.version, &head.parts.headers);
        Box::pin(async move {
            let mut result = self.run_once(&guarded, head, body, inner).await;
            result
                .iter_mut()
                .filter(|_| announced)
                .for_each(|answered| trailers::announce(&mut answered.response));
            Ok(self.respond(result, Some(&guarded), answer))
        })
    }

    /// Reads the body and hands the request to the gate.
    async fn run_once<S, B>(
        &self,
        guarded: &Arc<ProtectedRoute>,
        head: Head,
        mut body: B,
        inner: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let Head { parts, intake, context } = head;
        let mut hold = self.gate.budget().of_address(context.address_share.as_ref()).hold();
        let limit = self.gate.settings().request_body;
        let reserve = |bytes| hold.grow(bytes);
        match read_whole(&mut body, limit, self.body_timeout, reserve).await {
            Ok(body) => {
                let request = BufferedRequest { parts, intake, body, hold, context };
                self.gate.handle(guarded, request, inner).await
            }
            Err(refusal) => {
                discard(body);
                Err(refusal)
            }
        }
    }
}
