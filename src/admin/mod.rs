//! The admin port: health, metrics, and the API and pages with which operators look up and settle
//! operations.
//!
//! Danger: whoever can use this port can settle payments. It has its own listener, which is on
//! loopback by default. If it is not on loopback, it requires a bearer token. On loopback, it
//! refuses requests that a web page could send in an operator's name.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

mod api;
mod auth;
pub mod client;
mod dead_letters;
mod decision;
mod guard;
mod guarded_body;
mod outbox;
mod page;
mod problem;
mod problem_kind;
mod queries;
mod reload;
mod saga_search;
mod sagas;
mod session;
mod sinks;
mod state;
mod view;

use api::PathAccess;
pub use auth::{Access, Token};
pub use guarded_body::with_guard;
use problem::{AdminRefusal, every_refusal_is_a_document};
pub use reload::{ReloadRequest, Reloads};
pub use session::{NoRandomness, Sessions};
pub use state::Admin;
pub use view::{
    BreakView, ChangedStepView, DeadLetterAttemptsView, DeadLetterCounts, DeadLetterListView,
    DeadLetterView, DecisionRequest, DifferenceView, DiscardedView, EventView, HourView,
    LatencyView, LogLevelView, LoggedView, LookupRequest, MinuteView, MomentView,
    OperationListView, OperationView, OverviewView, ProjectionView, ReasonRequest, ReportRowView,
    ReportView, RequeueOneRequest, RequeueRequest, RequeuedView, ResealRequest, ResealedView,
    ResolveRequest, SagaChangeView, SagaCompensationView, SagaDecisionRequest, SagaDecisionView,
    SagaFailureView, SagaListView, SagaStepSummaryView, SagaStepView, SagaView, ScopeRequest,
    ScopeView, SinkListView, SinkTestView, SinkView, StatisticsView, StoppedStepView,
    StuckStepView, TallyView, TimelineView, VerifiedView,
};

/// The longest duration of a request, including its body. It is longer than the limit of a reload.
const REQUEST_MAX: Duration = Duration::from_secs(45);

/// Middleware that ends a request after [`REQUEST_MAX`]. Otherwise clients that never send a body
/// could hold connections forever.
async fn limit_duration(request: Request, next: Next) -> Response {
    tokio::time::timeout(REQUEST_MAX, next.run(request))
        .await
        .unwrap_or_else(|_| AdminRefusal::TooSlow.into_response())
}

/// The maximum of active requests, except for health and readiness. With bodies of the largest
/// size, they need a quarter of a gigabyte.
const REQUESTS_MAX: usize = 128;

/// Paths of health checks. They have no limit of active requests.
const PROBED: [&str; 2] = ["/healthz", "/readyz"];

/// Middleware that limits active requests. A request counts until its response is sent.
async fn limit_requests(
    State(permits): State<Arc<Semaphore>>,
    request: Request,
    next: Next,
) -> Response {
    if PROBED.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let Ok(permit) = permits.try_acquire_owned() else { return AdminRefusal::Busy.into_response() };
    // The body owns the permit, so a client that does not read its response keeps the permit until
    // the connection ends.
    next.run(request).await.map(|body| with_guard(body, permit))
}

/// Returns the admin port's router.
pub fn router(admin: Admin) -> Router {
    let admin = Arc::new(admin);
    let mut router = Router::new();
    for (path, methods, access) in api::paths() {
        let methods = match access {
            PathAccess::Open => {
                methods.route_layer(middleware::from_fn_with_state(admin.clone(), guard::open))
            }
            PathAccess::Operators => {
                methods.route_layer(middleware::from_fn_with_state(admin.clone(), guard::guard))
            }
            PathAccess::Readers => {
                methods.route_layer(middleware::from_fn_with_state(admin.clone(), guard::readers))
            }
        };
        router = router.route(path, methods);
    }
    router
        .merge(page::router(&admin))
        .fallback(|| async { AdminRefusal::NotFound })
        .layer(middleware::from_fn_with_state(admin.clone(), guard::own_host))
        .layer(middleware::from_fn_with_state(
            Arc::new(Semaphore::new(REQUESTS_MAX)),
            limit_requests,
        ))
        .layer(middleware::from_fn(every_refusal_is_a_document))
        .layer(middleware::from_fn(limit_duration))
        .with_state(admin)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use axum::http::StatusCode;
    use axum::routing::post;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_not_waited_for() {
        let router: Router = Router::new()
            .route("/", post(|_: Bytes| async {}))
            .layer(middleware::from_fn(limit_duration));
        let never =
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let began = tokio::time::Instant::now();
        let answer = router.oneshot(Request::post("/").body(never).unwrap()).await.unwrap();
        assert_eq!((answer.status(), began.elapsed()), (StatusCode::REQUEST_TIMEOUT, REQUEST_MAX));
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
}
