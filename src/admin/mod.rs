//! The admin port: health, metrics, and the operations that an operator looks up and settles.
//!
//! Danger: whoever reaches this port can settle payments. It has a listener of its own, loopback by default; beyond
//! loopback it wants a bearer token, and on loopback it refuses what a web page could send in an operator's name.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::engine::{OnFailure, Policy};
use crate::gate::Gate;
use crate::read_model::ReadModel;

mod auth;
mod change;
pub mod client;
mod held_body;
mod log;
mod log_level;
mod lookup;
mod model;
mod openapi;
mod operations;
mod page;
mod problem;
mod projection;
mod reload;
mod tail;
mod view;

use auth::Operator;
pub use auth::{Access, Token};
pub use held_body::holding;
pub use log_level::LogLevelView;
pub use lookup::{ScopeRequest, ScopeView};
pub use page::{NoRandomness, Sessions};
use problem::{AdminRefusal, every_refusal_is_a_document};
pub use projection::ProjectionView;
pub use reload::{ReloadAsked, Reloads};
pub use view::{
    BreakView, DifferenceView, EventView, HourView, LatencyView, Listed, LoggedView, MinuteView,
    MomentView, OperationView, OverviewView, ReleaseRequest, ReportRowView, ReportView,
    ResolveRequest, StatisticsView, TallyView, TimelineView, VerifiedView,
};

/// What the admin port serves from.
pub struct Admin {
    /// The gate, with its store and metrics.
    pub gate: Arc<Gate>,
    /// The policies of the configured routes, by name.
    pub policies: HashMap<String, Policy>,
    /// The policy of records whose route is no longer configured.
    pub fallback: Policy,
    /// Who may come in.
    pub access: Access,
    /// Whether the port is on loopback: nobody from elsewhere then has a reason to ask for it by another name.
    pub on_loopback: bool,
    /// Set when the process has begun to stop.
    pub draining: Arc<AtomicBool>,
    /// For the times that people see, and how long sessions last.
    pub clock: Clock,
    /// Who is signed in to the page: for as long as the process lives, under whatever configuration.
    pub sessions: Arc<Sessions>,
    /// Where reloads are asked for.
    pub reloads: Reloads,
    /// What is searched, where there is one.
    pub read_model: Option<Arc<ReadModel>>,
}

impl Admin {
    fn policy(&self, route: &str) -> &Policy {
        self.policies.get(route).unwrap_or(&self.fallback)
    }
}

/// A path, what it does, and whom it does it for.
type Served = (&'static str, MethodRouter<Arc<Admin>>, Door);

/// Who may come in by a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Anybody: it tells nothing of any operation.
    Open,
    /// Who may read; and operate, for whatever is no GET.
    ProtectedRoute,
    /// Who may read, whatever the method: it looks, though what it is told stands in a body.
    Readers,
}

/// All paths of the API.
fn api() -> Vec<Served> {
    use Door::{Open, ProtectedRoute, Readers};
    vec![
        ("/healthz", get(alive), Open),
        ("/readyz", get(ready), Open),
        ("/metrics", get(metrics), Open),
        ("/v1/openapi.json", get(openapi::document), Open),
        ("/v1/operations", get(operations::list), ProtectedRoute),
        ("/v1/operations/lookup", post(lookup::lookup), Readers),
        ("/v1/scope", post(lookup::scope), Readers),
        ("/v1/operations/{operation}", get(operations::show), ProtectedRoute),
        ("/v1/operations/{operation}/timeline", get(model::timeline), ProtectedRoute),
        ("/v1/operations/{operation}/resolve", post(operations::resolve), ProtectedRoute),
        ("/v1/operations/{operation}/release", post(operations::release), ProtectedRoute),
        ("/v1/operations/{operation}/retry", post(operations::retry), ProtectedRoute),
        ("/v1/operations/{operation}/expire", post(operations::expire), ProtectedRoute),
        ("/v1/statistics", get(model::statistics), ProtectedRoute),
        ("/v1/overview", get(model::overview), ProtectedRoute),
        ("/v1/report", get(model::report), ProtectedRoute),
        ("/v1/projection", get(projection::show), ProtectedRoute),
        ("/v1/projection/rebuild", post(projection::rebuild), ProtectedRoute),
        ("/v1/log", get(tail::tail), ProtectedRoute),
        ("/v1/log/verify", get(log::verify_log), ProtectedRoute),
        ("/v1/log-level", get(log_level::show).put(log_level::change), ProtectedRoute),
        ("/v1/reload", post(reload::reload), ProtectedRoute),
    ]
}

#[cfg(test)]
fn paths() -> impl Iterator<Item = &'static str> {
    api().into_iter().map(|(path, ..)| path)
}

/// Longest time for one request, its body included: longer than a reload may take.
const REQUEST_MAX: Duration = Duration::from_secs(45);

/// Lets go of a request that does not come to its end, so that bodies that never come hold no connections.
async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(REQUEST_MAX, next.run(request))
        .await
        .unwrap_or_else(|_| AdminRefusal::TooSlow.into_response())
}

/// Most requests at once, other than for health and readiness. With the largest bodies that are taken they hold a quarter of a
/// gigabyte.
const REQUESTS_MAX: usize = 128;

/// Paths that orchestrators probe. They are answered however many other requests are under way.
const PROBED: [&str; 2] = ["/healthz", "/readyz"];

/// Bounds requests, until their answers are sent.
async fn within_places(
    State(places): State<Arc<Semaphore>>,
    request: Request,
    next: Next,
) -> Response {
    if PROBED.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let Ok(place) = places.try_acquire_owned() else { return AdminRefusal::Busy.into_response() };
    // The body owns the place: whoever takes no answer keeps it, until the connection ends.
    next.run(request).await.map(|body| holding(body, place))
}

/// The admin port's router.
pub fn router(admin: Admin) -> Router {
    let admin = Arc::new(admin);
    let mut router = Router::new();
    for (path, methods, door) in api() {
        let methods = match door {
            Door::Open => {
                methods.route_layer(middleware::from_fn_with_state(admin.clone(), auth::open))
            }
            Door::ProtectedRoute => {
                methods.route_layer(middleware::from_fn_with_state(admin.clone(), auth::guard))
            }
            Door::Readers => {
                methods.route_layer(middleware::from_fn_with_state(admin.clone(), auth::readers))
            }
        };
        router = router.route(path, methods);
    }
    router
        .merge(page::router(&admin))
        .fallback(|| async { AdminRefusal::NotFound })
        .layer(middleware::from_fn_with_state(admin.clone(), auth::own_host))
        .layer(middleware::from_fn_with_state(
            Arc::new(Semaphore::new(REQUESTS_MAX)),
            within_places,
        ))
        .layer(middleware::from_fn(every_refusal_is_a_document))
        .layer(middleware::from_fn(in_time))
        .with_state(admin)
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "process", responses((status = 200, description = "It does")))]
async fn alive() -> &'static str {
    "ok\n"
}

/// Ready to serve: not stopping, and the store answers or some route can do without it.
#[utoipa::path(
    get, path = "/readyz", tag = "process",
    responses((status = 200, description = "It can serve; perhaps `degraded`"), (status = 503, description = "It can't, or is about to end")),
)]
async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    if admin.draining.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match admin.gate.store().records.ping().await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => {
            let can_do_without =
                admin.policies.values().any(|policy| policy.on_failure == OnFailure::FailOpen);
            let (status, word) = if can_do_without {
                (StatusCode::OK, "degraded")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready")
            };
            (status, format!("{word}: {error}\n")).into_response()
        }
    }
}

/// Metrics, in the OpenMetrics format.
#[utoipa::path(get, path = "/metrics", tag = "process", responses((status = 200, description = "OpenMetrics 1.0")))]
async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    if let Some(model) = &admin.read_model {
        let freshness = model.freshness();
        let lag = freshness.lag_ms(admin.clock.unix_ms()).map(Duration::from_millis);
        admin.gate.meter().projection.set(lag, freshness.entries);
    }
    match admin.gate.meter().encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_not_waited_for() {
        let router: Router =
            Router::new().route("/", post(|_: Bytes| async {})).layer(middleware::from_fn(in_time));
        let never =
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let began = tokio::time::Instant::now();
        let answer = router.oneshot(Request::post("/").body(never).unwrap()).await.unwrap();
        assert_eq!((answer.status(), began.elapsed()), (StatusCode::REQUEST_TIMEOUT, REQUEST_MAX));
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
}
