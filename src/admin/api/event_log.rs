//! `GET /v1/log/verify`: verifies the links of the event log.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::refusals::VerifyRefusals;
use crate::admin::problem::AdminRefusal;
use crate::admin::state::Admin;
use crate::admin::view::{BreakView, VerifiedView};
use crate::store::log::verify;

/// Entries verified per response. This takes a fraction of a second.
const ENTRIES: usize = 5000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyQuery {
    cursor: Option<String>,
}

/// Verifies a part of the event log: recomputes the link of each entry.
#[utoipa::path(
    get, path = "/v1/log/verify", tag = "event log",
    params(("cursor" = Option<String>, Query, description = "The `cursor` of the previous part")),
    responses((status = 200, body = VerifiedView, description = "The result"), VerifyRefusals),
)]
pub(super) async fn verify_log(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<VerifyQuery>,
) -> Result<Json<VerifiedView>, AdminRefusal> {
    let from = query.cursor.as_deref().map(str::parse).transpose();
    let from = from.map_err(|error| AdminRefusal::Invalid(format!("cursor: {error}")))?;
    let progress = verify(&*admin.gate.store().log, from, ENTRIES).await?;
    // If the log is disabled now, older entries can still be verified.
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
