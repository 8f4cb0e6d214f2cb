//! `/v1/log-level`: what the process logs, looked up and changed while it runs.

use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::auth::Operator;
use super::view::problem;
use crate::telemetry::{FilterError, log_filter, set_log_filter};

/// What is logged.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogLevelView {
    /// Levels by target, such as `info,onceward::store=debug`.
    pub filter: String,
}

pub(super) async fn show() -> Response {
    match log_filter() {
        Some(filter) => Json(LogLevelView { filter }).into_response(),
        None => refused(&FilterError::NotLogging),
    }
}

pub(super) async fn change(
    Extension(operator): Extension<Operator>,
    request: Result<Json<LogLevelView>, JsonRejection>,
) -> Response {
    let Json(LogLevelView { filter }) = match request {
        Ok(request) => request,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, "request-invalid", &rejection.body_text()),
    };
    match set_log_filter(&filter) {
        Ok(()) => {
            // At a level that most filters let through: who reads the log later wonders where the rest is.
            tracing::warn!(operator = operator.0, filter, "what is logged was changed");
            show().await
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &FilterError) -> Response {
    let status = match error {
        FilterError::NotLogging => StatusCode::SERVICE_UNAVAILABLE,
        FilterError::TooLong | FilterError::Unclear { .. } => StatusCode::BAD_REQUEST,
    };
    problem(status, "log-level-refused", &error.to_string())
}
