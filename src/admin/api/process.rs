//! `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::admin::state::Admin;
use crate::engine::OnFailure;

/// Returns 200 while the process is alive.
#[utoipa::path(
    get, path = "/healthz", tag = "process",
    responses((status = 200, description = "The process lives"))
)]
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Returns whether the gateway can serve. It can unless it is stopping, or the store does not
/// answer and all routes need the store.
#[utoipa::path(
    get, path = "/readyz", tag = "process",
    responses(
        (status = 200, description = "It can serve; the text may be `degraded`"),
        (status = 503, description = "It can't serve, or is stopping"),
    ),
)]
pub(super) async fn ready(State(admin): State<Arc<Admin>>) -> Response {
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

/// Returns the metrics, in the OpenMetrics format.
#[utoipa::path(
    get, path = "/metrics", tag = "process",
    responses((status = 200, description = "OpenMetrics 1.0"))
)]
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
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
