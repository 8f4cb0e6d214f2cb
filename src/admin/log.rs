//! The event log: whether it is what was written.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::Admin;
use super::problem::AdminRefusal;
use super::view::{BreakView, VerifiedView};
use crate::store::log::verify;

/// Entries that one answer looks at: a fraction of a second's work.
const ENTRIES: usize = 5000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyQuery {
    cursor: Option<String>,
}

/// Verifies a piece of the event log: each entry's link is computed anew.
#[utoipa::path(
    get, path = "/v1/log/verify", tag = "event log",
    params(("cursor" = Option<String>, Query, description = "Where to go on: the `cursor` of the piece before")),
    responses((status = 200, body = VerifiedView, description = "What was found"), super::openapi::Looked),
)]
pub(super) async fn verify_log(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<VerifyQuery>,
) -> Result<Json<VerifiedView>, AdminRefusal> {
    let from = query.cursor.as_deref().map(str::parse).transpose();
    let from = from.map_err(|error| AdminRefusal::Invalid(format!("cursor: {error}")))?;
    let progress = verify(&*admin.gate.store().log, from, ENTRIES).await?;
    // Entries of a time when it was on are verified all the same.
    if !admin.gate.event_log_enabled()
        && query.cursor.is_none()
        && progress.entries == 0
        && progress.breaks.is_empty()
    {
        return Err(AdminRefusal::LogOff);
    }
    let breaks = progress.breaks.iter().map(|at| BreakView {
        partition: at.partition,
        entry: at.id.to_string(),
        fault: at.fault.describe().to_owned(),
    });
    let cursor = progress.cursor.map(|cursor| cursor.to_string());
    Ok(Json(VerifiedView { entries: progress.entries, breaks: breaks.collect(), cursor }))
}
