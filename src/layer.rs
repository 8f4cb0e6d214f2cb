//! The gate as a tower layer: put it around any service that forwards or handles payments.
//!
//! ```
//! use std::convert::Infallible;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use onceward::gate::Payload;
//! use onceward::layer::OncewardLayer;
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let charge = service_fn(|_: Request<Payload<Full<Bytes>>>| async {
//!     static CHARGES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
//!     let n = CHARGES.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
//!     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("charge {n}")))))
//! });
//! // Protects every POST and PATCH that carries an Idempotency-Key, in memory.
//! let service = OncewardLayer::in_memory()?.layer(charge);
//!
//! let ask = || Request::post("/payments").header("Idempotency-Key", "k1").body(Full::new(Bytes::new()));
//! let first = service.clone().oneshot(ask()?).await?;
//! let again = service.clone().oneshot(ask()?).await?;
//! assert_eq!(again.headers()["idempotent-replayed"], "true");
//! assert_eq!(first.into_body().collect().await?.to_bytes(), "charge 0");
//! assert_eq!(again.into_body().collect().await?.to_bytes(), "charge 0");
//! # Ok(()) }
//! ```
//!
//! The service learns through its error type what may be done after a failure: return
//! [`ForwardError::NeverSent`] only where nothing was done. Any other error leaves
//! the outcome uncertain.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tokio::time::sleep;
use tower_layer::Layer;
use tower_service::Service;

use crate::clock::Clock;
use crate::config::{Config, Faults, Overrides};
use crate::engine::{FingerprintRule, Mode, Outcome};
use crate::entropy::{Entropy, EntropyError};
use crate::gate::{
    AnswerBody, Answered, BoxError, BufferedRequest, Content, ForwardError, Gate, Hold, Identified,
    Intake, Movement, Payload, ProtectedRoute, Refusal, RequestContext, Requester, Settings,
    Stream, UpstreamService, identify_watched, keep_identifying_fields, reconcile,
};
use crate::proxy::{Lookalikes, Rejections, Silence, Target, discard, read_whole, trace_parent};
use crate::record::{Cause, Reply, ReplyBody};
use crate::route::{PatternError, Route, Routes};
use crate::store::memory::Memory;
use crate::telemetry::{Answer, Meter, RouteMeter, Trail, Work};
use crate::token::Keyring;

mod admission;
mod cors;
mod echo;
mod published;
mod respond;
mod trailers;
mod watched;

use admission::admit;
use echo::Echo;
use published::Published;
use respond::Followed;
use watched::{Watched, would_refuse};

/// Lays the gate around a service. Cheap to clone.
#[derive(Clone)]
pub struct OncewardLayer(Arc<Front>);

/// What stands before the gate: routes and limits.
struct Front {
    gate: Arc<Gate>,
    routes: Routes,
    guarded: Vec<Arc<ProtectedRoute>>,
    passed: RouteMeter,
    rejections: Rejections,
    lookalikes: Lookalikes,
    published: Option<Published>,
    body_timeout: Duration,
    silence: Duration,
}

/// How a layer is set up.
pub struct LayerSettings {
    /// The routes, each with the longest time from sending a request to the end of its response.
    pub routes: Vec<(Route, Duration)>,
    /// What tokens are verified with, by the name of the route whose scope is in one. Without its keys such a route refuses.
    pub keyrings: HashMap<String, Arc<Keyring>>,
    /// How problems are rendered.
    pub rejections: Rejections,
    /// Whether clients find the policy at `/.well-known/idempotency`, unless a route covers that.
    pub publish_policy: bool,
    /// How long a protected request's body may take to arrive.
    pub body_timeout: Duration,
    /// Longest silence of the service while it streams.
    pub silence: Duration,
}

/// The default layer can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A pattern is wrong.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// There is no randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The built-in defaults don't parse, which a test rules out.
    #[error(transparent)]
    Defaults(#[from] Faults),
}

impl OncewardLayer {
    /// Asks upstreams about uncertain operations for which no duplicate comes, for ever; where no route has a probe that
    /// may do so, it does nothing. `service` is what the layer is put around.
    pub async fn reconcile<S, B>(&self, service: S)
    where
        S: UpstreamService<B> + Clone,
    {
        let prepare = |guarded: &ProtectedRoute, request: &mut Request<Payload<B>>| {
            request.extensions_mut().insert(Target(guarded.route.upstream));
        };
        reconcile(self.0.gate.clone(), self.0.guarded.clone(), prepare, service).await;
    }

    /// A layer over a gate.
    pub fn new(gate: Arc<Gate>, settings: LayerSettings) -> Result<OncewardLayer, PatternError> {
        let routes = Routes::new(settings.routes.iter().map(|(route, _)| route.clone()))?;
        let guarded = routes.iter().zip(&settings.routes).map(|(route, (_, response_timeout))| {
            Arc::new(ProtectedRoute {
                meter: gate.meter().route(&route.policy.route),
                route: route.clone(),
                response_timeout: *response_timeout,
                keyring: settings.keyrings.get(&*route.policy.route).cloned(),
            })
        });
        Ok(OncewardLayer(Arc::new(Front {
            guarded: guarded.collect(),
            passed: gate.meter().route("-"),
            published: settings
                .publish_policy
                .then(|| Published::of(&routes, &settings.rejections)),
            rejections: settings.rejections,
            lookalikes: Lookalikes::new(routes.iter().map(|route| &route.policy)),
            body_timeout: settings.body_timeout,
            silence: settings.silence,
            routes,
            gate,
        })))
    }

    /// A layer with the default policy that keeps its records in memory: they are lost when the process ends.
    pub fn in_memory() -> Result<OncewardLayer, LayerError> {
        let clock = Clock::system();
        let store = Arc::new(Memory::new(clock.anchored()));
        let gate =
            Gate::new(store, clock, Entropy::from_system()?, Meter::new(), Settings::default());
        let defaults = Config::load(
            None,
            Overrides { upstream: Some("http://localhost".into()), ..Overrides::default() },
        )?;
        let timeout = defaults.upstream.response_timeout;
        let route = |route: crate::config::RouteConfig| {
            let crate::config::RouteConfig { paths, methods, policy, .. } = route;
            (Route { paths, methods, upstream: 0, policy }, timeout)
        };
        let settings = LayerSettings {
            routes: defaults.routes.into_iter().map(route).collect(),
            keyrings: HashMap::new(),
            rejections: Rejections::default(),
            publish_policy: false,
            body_timeout: defaults.limits.body_timeout,
            silence: timeout,
        };
        Ok(OncewardLayer::new(gate, settings)?)
    }
}

impl<S> Layer<S> for OncewardLayer {
    type Service = Once<S>;

    fn layer(&self, inner: S) -> Once<S> {
        Once { front: self.0.clone(), inner }
    }
}

/// A service whose requests run once per key. Cheap to clone where the service inside is.
#[derive(Clone)]
pub struct Once<S> {
    front: Arc<Front>,
    inner: S,
}

/// The body of an answer: stored, or streaming through.
pub type OnceBody<B> = AnswerBody<Silence<B>>;

/// An answer on its way.
pub type Answering<B> =
    Pin<Box<dyn Future<Output = Result<Response<OnceBody<B>>, Infallible>> + Send>>;

impl<S, B> Service<Request<B>> for Once<S>
where
    S: UpstreamService<B> + Clone,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<OnceBody<S::ResponseBody>>;
    type Error = Infallible;
    type Future = Answering<S::ResponseBody>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The service inside is asked when there is something to forward: a replay needs none of it.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.front.clone().answer(request, self.inner.clone())
    }
}

impl Front {
    /// Answers a request: read top to bottom, this is the whole way in and out.
    ///
    /// Each way has a future of its own, so that none carries what only another needs in memory.
    fn answer<S, B>(
        self: Arc<Self>,
        mut request: Request<B>,
        inner: S,
    ) -> Answering<S::ResponseBody>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        self.lookalikes.drop_from(request.headers_mut());
        let context = RequestContext::from_extensions(request.extensions());
        let trail = context.trail.clone();
        let origin = cors::asking_origin(request.headers());
        let trace = trace_parent(request.headers_mut(), self.gate.entropy(), trail.as_ref());
        let mut trace = Followed { trace, trail, origin, echo: None };
        let guarded = match self.routes.position(request.method(), request.uri().path()) {
            Ok(at) => at.and_then(|at| self.guarded.get(at)).cloned(),
            Err(_) => {
                discard(request.into_body());
                let response = self.respond(Err(Refusal::PathAmbiguous), None, trace);
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        let Some(guarded) = guarded else {
            if let Some(published) =
                self.published.as_ref().filter(|_| Published::is_asked(&request))
            {
                let response = published.answer(request.method(), request.headers());
                discard(request.into_body());
                let response =
                    self.respond(Ok(Answered { response, answer: Answer::Published }), None, trace);
                return Box::pin(std::future::ready(Ok(response)));
            }
            return Box::pin(async move {
                let result = self.pass(request, &context, inner, None, self.silence).await;
                Ok(self.respond(result, None, trace))
            });
        };
        request.extensions_mut().insert(Target(guarded.route.upstream));
        if guarded.route.policy.mode != Mode::Off {
            keep_identifying_fields(&guarded.route.policy, request.headers_mut());
        }
        match guarded.route.policy.mode {
            Mode::Off => Box::pin(async move {
                let result =
                    self.pass(request, &context, inner, None, guarded.response_timeout).await;
                Ok(self.respond(result, Some(&guarded), trace))
            }),
            Mode::Shadow => Box::pin(async move {
                let result = self.watch(&guarded, request, context, inner).await;
                Ok(self.respond(result, Some(&guarded), trace))
            }),
            Mode::Enforce => {
                trace.echo = Echo::of(&guarded.route.policy, request.headers());
                let intake = match self.gate.read_head(&guarded, request.headers(), &context) {
                    Ok(Some(intake)) => intake,
                    Ok(None) => {
                        return Box::pin(async move {
                            let timeout = guarded.response_timeout;
                            let result = self.pass(request, &context, inner, None, timeout).await;
                            Ok(self.respond(result, Some(&guarded), trace))
                        });
                    }
                    Err(problem) => {
                        discard(request.into_body());
                        let response = self.respond(Err(problem), Some(&guarded), trace);
                        return Box::pin(std::future::ready(Ok(response)));
                    }
                };
                let (parts, body) = request.into_parts();
                let announced = trailers::need_announcement(parts.version, &parts.headers);
                let head = Head { parts: Box::new(parts), intake, context };
                Box::pin(async move {
                    let mut result = self.protect(&guarded, head, body, inner).await;
                    result
                        .iter_mut()
                        .filter(|_| announced)
                        .for_each(|answered| trailers::announce(&mut answered.response));
                    Ok(self.respond(result, Some(&guarded), trace))
                })
            }
        }
    }

    /// Reads the body and passes the gate.
    async fn protect<S, B>(
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
        match read_whole(&mut body, self.gate.settings().request_body, self.body_timeout, &mut hold)
            .await
        {
            Ok(body) => {
                let request = BufferedRequest { parts, intake, body, hold, context };
                self.gate.handle(guarded, request, inner).await
            }
            Err(problem) => {
                discard(body);
                Err(problem)
            }
        }
    }

    /// Passes through, with a watcher at its side.
    async fn watch<S, B>(
        &self,
        guarded: &Arc<ProtectedRoute>,
        request: Request<B>,
        context: RequestContext,
        inner: S,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let verified = self.gate.verify_scope(guarded, request.headers(), &context);
        let (parts, body) = request.into_parts();
        let seen = Request::from_parts(parts.clone(), ()).into_parts().0;
        let watched = Watched::default();
        let (gate, route, place) = (self.gate.clone(), guarded.clone(), watched.clone());
        let room = self.gate.passing_room(context.address_share.as_ref());
        let limit = self.gate.settings().request_body;
        let copy = move |bytes: Option<Bytes>, mut room: Hold| {
            // What finds no room decoded counts as a body that was too large.
            let content = bytes.and_then(|bytes| {
                Content::read_at_once(&seen.headers, &bytes, limit, &mut room).ok()
            });
            let unfingerprinted = content.is_none();
            let mut policy = route.route.policy.clone();
            if unfingerprinted {
                policy.fingerprint = FingerprintRule::WithoutBody;
            }
            let content = content.unwrap_or_else(|| Bytes::new().into());
            let requester = Requester::from_head(&policy, &seen.headers, verified.as_ref());
            let hashing = &gate.settings().hashing;
            match identify_watched(&policy, hashing, &requester, &seen, &content) {
                Ok(Some(Identified { operation, .. })) => {
                    let bytes = (!unfingerprinted).then(|| content.bytes().clone());
                    place.put(gate.observe(&route, operation, seen, bytes, room));
                }
                Ok(None) => route.meter.count_shadow("pass"),
                Err(problem) => {
                    route.meter.count_shadow(would_refuse(&problem));
                    let tenant = requester.ok().map(|requester| requester.tenant());
                    gate.observe_unidentified(&policy, tenant, &seen.headers, &problem);
                }
            }
        };
        let copying: Copying = (limit, room, Box::new(copy));
        let result = self
            .pass(
                Request::from_parts(parts, body),
                &context,
                inner,
                Some(copying),
                guarded.response_timeout,
            )
            .await;
        watched.ended(match &result {
            Ok(answered) => Outcome::Answered(Arc::new(Reply {
                status: answered.response.status(),
                headers: answered.response.headers().clone(),
                body: ReplyBody::NotStored,
                trailers: None,
            })),
            Err(Refusal::UpstreamUnreachable { .. }) => Outcome::NeverSent,
            Err(_) => Outcome::InDoubt(Cause::Broken),
        });
        result
    }

    /// Streams through, whatever its size; the upstream's silence is bounded.
    async fn pass<S, B>(
        &self,
        request: Request<B>,
        context: &RequestContext,
        mut inner: S,
        copy: Option<Copying>,
        silence: Duration,
    ) -> Result<Answered<S::ResponseBody>, Refusal>
    where
        S: UpstreamService<B>,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (request, permit) = admit(&self.gate, context.address_share.as_ref(), request)?;
        let mut step = Trail::step(context.trail.as_ref(), Work::Forward);
        let idempotent = request.method().is_idempotent();
        let movement = (!request.body().is_end_stream()).then(Movement::begin);
        let request = request.map(|body| {
            let mut stream = Stream::new(body);
            if let Some(movement) = &movement {
                stream = stream.noting(movement.clone());
            }
            if let Some((limit, room, done)) = copy {
                stream = stream.copying(limit, room, done);
            }
            Payload::Stream(stream)
        });
        let sent = async {
            std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
            inner.call(request).await
        };
        let silent = async {
            match &movement {
                Some(movement) => movement.ceased(silence).await,
                None => sleep(silence).await,
            }
        };
        let sent = tokio::select! {
            biased;
            sent = sent => sent.map_err(|error| ForwardError::of(error.into())),
            () = silent => Err(ForwardError::TimedOut),
        };
        match sent {
            Ok(response) => {
                step.answered(response.status().as_u16());
                let response = response.map(|body| AnswerBody::stream(body).keeping(permit));
                Ok(Answered { response, answer: Answer::Passed })
            }
            Err(error) => {
                step.result("failed");
                Err(error.unprotected(idempotent))
            }
        }
    }
}

/// The head of a request that asks for protection.
struct Head {
    parts: Box<Parts>,
    intake: Intake,
    context: RequestContext,
}

/// A body's copy: up to how many bytes, in which room, and for whom.
type Copying = (usize, Hold, Box<dyn FnOnce(Option<Bytes>, Hold) + Send>);
