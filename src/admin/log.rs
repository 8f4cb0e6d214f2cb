//! The event log: whether it is what was written.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Admin;
use super::view::{BreakView, VerifiedView, problem};
use crate::store::log::verify;

/// Entries that one answer looks at: a fraction of a second's work.
const ENTRIES: usize = 5000;

#[derive(Debug, Deserialize)]
pub(super) struct VerifyQuery {
    cursor: Option<String>,
}

pub(super) async fn verify_log(State(admin): State<Arc<Admin>>, Query(query): Query<VerifyQuery>) -> Response {
    let from = match query.cursor.as_deref().map(str::parse).transpose() {
        Ok(from) => from,
        Err(error) => return problem(StatusCode::BAD_REQUEST, "request-invalid", &format!("cursor: {error}")),
    };
    match verify(admin.gate.store().log(), from, ENTRIES).await {
        Ok(progress) => {
            let breaks = progress.breaks.iter().map(|at| BreakView {
                partition: at.partition,
                entry: at.id.to_string(),
                fault: at.fault.describe().to_owned(),
            });
            let cursor = progress.cursor.map(|cursor| cursor.to_string());
            Json(VerifiedView { entries: progress.entries, breaks: breaks.collect(), cursor }).into_response()
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", &error.to_string()),
    }
}
