//! `/v1/projection`: how far the read model is, and having it built anew.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Admin;
use super::auth::Operator;
use super::model::ask;
use super::problem::AdminRefusal;
use crate::clock::rfc3339;
use crate::read_model::Freshness;

/// How far the read model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectionView {
    /// Entries of the event log that it was built of.
    pub entries: u64,
    /// It holds all that was told until then (RFC 3339); absent: nothing is known of that yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub as_of: Option<String>,
    /// How long ago that was, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

fn view(admin: &Admin, freshness: Freshness) -> Json<ProjectionView> {
    Json(ProjectionView {
        entries: freshness.entries,
        as_of: freshness.as_of_ms.map(rfc3339),
        lag_ms: freshness.lag_ms(admin.clock.unix_ms()),
    })
}

/// How far the read model is.
#[utoipa::path(
    get, path = "/v1/projection", operation_id = "show_projection", tag = "read model",
    responses((status = 200, body = ProjectionView, description = "How far it is"), super::openapi::Projection),
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
) -> Result<Json<ProjectionView>, AdminRefusal> {
    let model = admin.read_model.as_ref().ok_or(AdminRefusal::ReadModelOff)?;
    Ok(view(&admin, model.freshness()))
}

/// Empties the read model: it is built anew from the event log at once, which takes a while. No request is concerned, and
/// neither are the store's records. Until it is done, searches and statistics miss what was not applied yet.
#[utoipa::path(
    post, path = "/v1/projection/rebuild", tag = "read model",
    responses((status = 202, body = ProjectionView, description = "It is empty, and being built anew"), super::openapi::Rebuilt),
)]
pub(super) async fn rebuild(
    State(admin): State<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<(axum::http::StatusCode, Json<ProjectionView>), AdminRefusal> {
    let freshness = ask(&admin, |model, _| model.clear().map(|()| model.freshness())).await?;
    tracing::warn!(
        operator = operator.0,
        "the read model was emptied by hand: it is built anew from the event log"
    );
    Ok((axum::http::StatusCode::ACCEPTED, view(&admin, freshness)))
}
