//! The admin port: health, metrics, and the operations that an operator looks up and settles.
//!
//! Danger: whoever reaches this port can settle payments. It has a listener of its own, loopback by default; beyond
//! loopback it wants a bearer token, and on loopback it refuses what a web page could send in an operator's name.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::clock::Clock;
use crate::engine::{OnFailure, Policy};
use crate::gate::Gate;

mod auth;
pub mod client;
mod log;
mod log_level;
mod operations;
mod reload;
mod view;

pub use auth::{Access, Token};
pub use log_level::LogLevelView;
pub use reload::{ReloadAsked, Reloads};
pub use view::{BreakView, Listed, OperationView, ReleaseRequest, ResolveRequest, VerifiedView};

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
    /// Set when the process has begun to stop.
    pub draining: Arc<AtomicBool>,
    /// For the times that people see.
    pub clock: Clock,
    /// Where reloads are asked for.
    pub reloads: Reloads,
}

impl Admin {
    fn policy(&self, route: &str) -> &Policy {
        self.policies.get(route).unwrap_or(&self.fallback)
    }
}

/// The admin port's router.
pub fn router(admin: Admin) -> Router {
    let admin = Arc::new(admin);
    let operations = Router::new()
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{operation}", get(operations::show))
        .route("/v1/operations/{operation}/resolve", post(operations::resolve))
        .route("/v1/operations/{operation}/release", post(operations::release))
        .route("/v1/operations/{operation}/retry", post(operations::retry))
        .route("/v1/operations/{operation}/expire", post(operations::expire))
        .route("/v1/log/verify", get(log::verify_log))
        .route("/v1/log-level", get(log_level::show).put(log_level::change))
        .route("/v1/reload", post(reload::reload))
        .route_layer(middleware::from_fn_with_state(admin.clone(), auth::guard));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(operations)
        .fallback(|| async { view::problem(StatusCode::NOT_FOUND, "not-found", "there is nothing here") })
        .with_state(admin)
}

/// Ready to serve: not stopping, and the store answers or some route can do without it.
async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    if admin.draining.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match admin.gate.store().ping().await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => {
            let can_do_without = admin.policies.values().any(|policy| policy.on_failure == OnFailure::FailOpen);
            let (status, word) =
                if can_do_without { (StatusCode::OK, "degraded") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
            (status, format!("{word}: {error}\n")).into_response()
        }
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match admin.gate.meter().encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
