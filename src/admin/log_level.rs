//! `/v1/log-level`: what the process logs, looked up and changed while it runs.

use axum::extract::rejection::JsonRejection;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Operator;
use super::problem::AdminRefusal;
use crate::telemetry::{FilterError, log_filter, set_log_filter};

/// What is logged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLevelView {
    /// Levels by target, such as `info,onceward::store=debug`.
    pub filter: String,
}

/// What the process logs.
#[utoipa::path(
    get, path = "/v1/log-level", operation_id = "show_log_level", tag = "process",
    responses((status = 200, body = LogLevelView, description = "The filter"), super::openapi::LogLevel),
)]
pub(super) async fn show() -> Result<Json<LogLevelView>, AdminRefusal> {
    log_filter()
        .map(|filter| Json(LogLevelView { filter }))
        .ok_or(AdminRefusal::LogLevel(FilterError::NotLogging))
}

/// Changes what the process logs, until it ends.
#[utoipa::path(
    put, path = "/v1/log-level", operation_id = "change_log_level", tag = "process", request_body = LogLevelView,
    responses((status = 200, body = LogLevelView, description = "The filter as it is now"), super::openapi::LogLevelChanged),
)]
pub(super) async fn change(
    Extension(operator): Extension<Operator>,
    request: Result<Json<LogLevelView>, JsonRejection>,
) -> Result<Json<LogLevelView>, AdminRefusal> {
    let Json(LogLevelView { filter }) = request?;
    set_log_filter(&filter)?;
    // At a level that most filters let through: who reads the log later wonders where the rest is.
    tracing::warn!(operator = operator.0, filter, "what is logged was changed");
    show().await
}
