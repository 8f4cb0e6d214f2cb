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
//! let request = || {
//!     Request::post("/payments").header("Idempotency-Key", "k1").body(Full::new(Bytes::new()))
//! };
//! let first = service.clone().oneshot(request()?).await?;
//! let again = service.clone().oneshot(request()?).await?;
//! assert_eq!(again.headers()["idempotent-replayed"], "true");
//! assert_eq!(first.into_body().collect().await?.to_bytes(), "charge 0");
//! assert_eq!(again.into_body().collect().await?.to_bytes(), "charge 0");
//! # Ok(()) }
//! ```
//!
//! The service's error decides how the gate continues after a failure: return
//! [`ForwardError::NeverSent`] only if nothing was done. Any other error leaves the outcome
//! uncertain.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tower_layer::Layer;

use crate::clock::Clock;
use crate::engine::OnStale;
use crate::entropy::{Entropy, EntropyError};
#[cfg(doc)]
use crate::forwarding::ForwardError;
use crate::forwarding::UpstreamIndex;
use crate::gate::{Gate, Payload, ProtectedRoute, Settings, UpstreamService, reconcile};
use crate::refusal::RefusalRenderer;
use crate::route::{PatternError, Routes};
use crate::store::memory::Memory;
use crate::telemetry::{Meter, RouteMeter};
use lookalike::Lookalikes;
use published::Published;

mod cors;
mod echo;
mod internal;
mod lookalike;
mod pass_through;
mod published;
mod resource;
mod respond;
mod saga_report;
mod service;
mod settings;
mod shadow;
mod tagged;
mod trace_context;
mod trailers;

pub use internal::{RoutedCall, UnroutedCall};
pub use respond::OncewardBody;
pub use service::{OncewardService, ResponseFuture};
pub use settings::LayerSettings;

/// Puts the gate around a service. Cheap to clone.
#[derive(Clone)]
pub struct OncewardLayer(Arc<LayerState>);

/// The state that all services of a layer share: the gate, its routes and limits.
struct LayerState {
    gate: Arc<Gate>,
    routes: Routes,
    /// The routes as the gate runs them, in the order of `routes`.
    guarded: Vec<Arc<ProtectedRoute>>,
    /// The metrics of requests that no route covers.
    uncovered: RouteMeter,
    renderer: RefusalRenderer,
    lookalikes: Lookalikes,
    published: Option<Published>,
    body_timeout: Duration,
    silence: Duration,
}

/// Why the default layer can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A path pattern is not valid.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The system has no randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl OncewardLayer {
    /// Builds a layer over a gate.
    ///
    /// # Errors
    /// A path pattern of a route is not valid.
    pub fn new(gate: Arc<Gate>, settings: LayerSettings) -> Result<OncewardLayer, PatternError> {
        let routes = Routes::new(settings.routes.iter().map(|(route, _)| route.clone()))?;
        let guarded = routes.iter().zip(&settings.routes).map(|(route, (_, response_timeout))| {
            let meter = gate.meter().route(&route.policy.route);
            if let Some(rule) = route.policy.resource.as_ref().filter(|rule| rule.makes_tags()) {
                meter.resources.show_untagged();
                match rule.on_stale {
                    OnStale::Reject => {}
                    OnStale::Overwrite => meter.resources.show_overwrites(),
                    OnStale::Merge => meter.resources.show_merges(),
                }
            }
            let guarded = ProtectedRoute {
                meter,
                route: route.clone(),
                response_timeout: *response_timeout,
                keyring: settings.keyrings.get(&*route.policy.route).cloned(),
                saga: settings.sagas.get(&*route.policy.route).cloned(),
                unkeyed: None,
            };
            Arc::new(guarded.with_unkeyed())
        });
        Ok(OncewardLayer(Arc::new(LayerState {
            guarded: guarded.collect(),
            uncovered: gate.meter().route("-"),
            published: settings.publish_policy.then(|| Published::of(&routes, &settings.renderer)),
            renderer: settings.renderer,
            lookalikes: Lookalikes::new(routes.iter().map(|route| &route.policy)),
            body_timeout: settings.body_timeout,
            silence: settings.silence,
            routes,
            gate,
        })))
    }

    /// Builds a layer with the default policy that keeps its records in memory: they are lost when
    /// the process ends.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn in_memory() -> Result<OncewardLayer, LayerError> {
        let clock = Clock::system();
        let store = Arc::new(Memory::new(clock.anchored()));
        let gate =
            Gate::new(store, clock, Entropy::from_system()?, Meter::new(), Settings::default());
        Ok(OncewardLayer::new(gate, LayerSettings::standard())?)
    }

    /// Probes upstreams for the outcome of uncertain operations, without waiting for duplicates.
    /// Runs until the future is dropped, and does nothing if no route has a background probe.
    /// `service` is the service inside the layer.
    pub async fn reconcile<S, B>(&self, service: S)
    where
        S: UpstreamService<B> + Clone,
    {
        let prepare = |guarded: &ProtectedRoute, request: &mut Request<Payload<B>>| {
            request.extensions_mut().insert(UpstreamIndex(guarded.route.upstream));
        };
        reconcile(self.0.gate.clone(), self.0.guarded.clone(), prepare, service).await;
    }
}

impl<S> Layer<S> for OncewardLayer {
    type Service = OncewardService<S>;

    fn layer(&self, inner: S) -> OncewardService<S> {
        OncewardService::new(self.0.clone(), inner)
    }
}
