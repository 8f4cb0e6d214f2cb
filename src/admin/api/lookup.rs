//! `/v1/operations/lookup` finds an operation by its key. `/v1/scope` returns the mark of a
//! client's scope.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;

use super::operations::shown;
use super::refusals::{LookupRefusals, ScopeRefusals};
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::{find_by_key, mark_of};
use crate::admin::state::Admin;
use crate::admin::view::{LookupRequest, OperationView, ScopeRequest, ScopeView};

/// Returns the current state of the operation under a key. The key is sent in the body and is
/// hashed here.
#[utoipa::path(
    post, path = "/v1/operations/lookup", tag = "operations", request_body = LookupRequest,
    responses(
        (
            status = 200, body = OperationView, description = "The operation",
            headers(("ETag" = String, description = "The version, for `If-Match` of a change"))
        ),
        LookupRefusals,
    ),
)]
pub(super) async fn lookup(
    State(admin): State<Arc<Admin>>,
    sent: Result<Json<LookupRequest>, JsonRejection>,
) -> Result<Response, AdminRefusal> {
    let Json(LookupRequest { route, key, path, scope }) = sent?;
    find_by_key(&admin, &route, (&key, &path), &scope).await.map(|found| shown(&admin, found))
}

/// Returns the mark of a client's scope. The client's credentials are sent in the body and are
/// hashed here.
#[utoipa::path(
    post, path = "/v1/scope", tag = "operations", request_body = ScopeRequest,
    responses((status = 200, body = ScopeView, description = "The mark"), ScopeRefusals),
)]
pub(super) async fn scope(
    State(admin): State<Arc<Admin>>,
    sent: Result<Json<ScopeRequest>, JsonRejection>,
) -> Result<Json<ScopeView>, AdminRefusal> {
    let Json(ScopeRequest { route, scope }) = sent?;
    Ok(Json(ScopeView { scope: mark_of(&admin, &route, &scope)? }))
}
