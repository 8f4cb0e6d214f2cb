//! `POST /v1/reload`: requests a reload of the configuration.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::json;

use super::refusals::ReloadRefusals;
use crate::admin::auth::Operator;
use crate::admin::problem::AdminRefusal;
use crate::admin::state::Admin;

/// The longest wait for a reload. A reload may have to query the store, and to read files of keys
/// and certificates.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Reads the configuration again and applies it.
#[utoipa::path(
    post, path = "/v1/reload", tag = "process",
    responses((status = 200, description = "The configuration is in force"), ReloadRefusals),
)]
pub(super) async fn reload(
    State(admin): State<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<serde_json::Value>, AdminRefusal> {
    let result = admin.reloads.request(operator.0).ok_or(AdminRefusal::ReloadUnavailable(
        "other reload requests are queued, or the process is about to end",
    ))?;
    match tokio::time::timeout(ANSWER_MAX, result).await {
        Ok(Ok(Ok(()))) => Ok(Json(json!({ "result": "applied" }))),
        Ok(Ok(Err(faults))) => Err(AdminRefusal::ReloadRefused(faults.join("; "))),
        Ok(Err(_)) | Err(_) => Err(AdminRefusal::ReloadUnavailable(
            "the configuration was not read in time; onceward_config_reloads_total shows the \
             result",
        )),
    }
}
