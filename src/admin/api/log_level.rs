//! `/v1/log-level`: returns and changes the filter of the process log at run time.

use axum::extract::rejection::JsonRejection;
use axum::{Extension, Json};

use super::refusals::{LogLevelChangeRefusals, LogLevelRefusals};
use crate::admin::auth::Operator;
use crate::admin::problem::AdminRefusal;
use crate::admin::view::LogLevelView;
use crate::telemetry::{FilterError, log_filter, set_log_filter};

/// Returns the filter of the process log.
#[utoipa::path(
    get, path = "/v1/log-level", operation_id = "show_log_level", tag = "process",
    responses((status = 200, body = LogLevelView, description = "The filter"), LogLevelRefusals),
)]
pub(super) async fn show() -> Result<Json<LogLevelView>, AdminRefusal> {
    log_filter()
        .map(|filter| Json(LogLevelView { filter }))
        .ok_or(AdminRefusal::LogLevel(FilterError::NotLogging))
}

/// Changes the filter of the process log, until the process ends.
#[utoipa::path(
    put, path = "/v1/log-level", operation_id = "change_log_level", tag = "process",
    request_body = LogLevelView,
    responses(
        (status = 200, body = LogLevelView, description = "The new filter"),
        LogLevelChangeRefusals,
    ),
)]
pub(super) async fn change(
    Extension(operator): Extension<Operator>,
    request: Result<Json<LogLevelView>, JsonRejection>,
) -> Result<Json<LogLevelView>, AdminRefusal> {
    let Json(LogLevelView { filter }) = request?;
    set_log_filter(&filter)?;
    // Logged at warn, because most filters let this level through, and a reader of the log must see
    // why lines are missing.
    tracing::warn!(operator = operator.0, filter, "log filter changed");
    show().await
}
