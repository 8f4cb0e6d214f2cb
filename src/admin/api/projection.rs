//! `/v1/projection`: the position of the read model, and its rebuild.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};

use super::refusals::{ProjectionRefusals, RebuildRefusals};
use crate::admin::auth::Operator;
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::ask;
use crate::admin::state::Admin;
use crate::admin::view::ProjectionView;
use crate::read_model::Freshness;

fn view(admin: &Admin, freshness: Freshness) -> Json<ProjectionView> {
    Json(ProjectionView::new(freshness, admin.clock.unix_ms()))
}

/// Returns the position of the read model.
#[utoipa::path(
    get, path = "/v1/projection", operation_id = "show_projection", tag = "read model",
    responses((status = 200, body = ProjectionView,
        description = "The position"), ProjectionRefusals),
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
) -> Result<Json<ProjectionView>, AdminRefusal> {
    let model = admin.read_model.as_ref().ok_or(AdminRefusal::ReadModelOff)?;
    Ok(view(&admin, model.freshness()))
}

/// Empties the read model and starts to rebuild it from the event log. Requests and the store's
/// records are not affected. Until the rebuild is complete, searches and statistics miss entries
/// that are not applied yet.
#[utoipa::path(
    post, path = "/v1/projection/rebuild", tag = "read model",
    responses((status = 202, body = ProjectionView,
        description = "The read model is empty and is being rebuilt"), RebuildRefusals),
)]
pub(super) async fn rebuild(
    State(admin): State<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<(axum::http::StatusCode, Json<ProjectionView>), AdminRefusal> {
    let freshness = ask(&admin, |model, _| model.clear().map(|()| model.freshness())).await?;
    tracing::warn!(
        operator = operator.0,
        "read model emptied by an operator: it is being rebuilt from the event log"
    );
    Ok((axum::http::StatusCode::ACCEPTED, view(&admin, freshness)))
}
