//! An operation by its key. Keys stand in bodies, never in URLs, which end up in logs and histories.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;
use serde::Deserialize;

use super::Admin;
use super::operations::shown;
use super::problem::Refusal;
use crate::key::Slot;
use crate::record::Held;

/// A key, and whose it is.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// The route's name.
    route: String,
    /// The key, as the client sends it; of a derived one the digest that the upstream gets.
    key: String,
    /// A value for each name that the route's scope has: its header fields; `iss` and the claim of a token; `subject` of a
    /// certificate (DER in base64).
    #[serde(default)]
    scope: BTreeMap<String, String>,
}

/// The operation under a key, as it is now. The key stands in the body and is hashed here.
#[utoipa::path(
    post, path = "/v1/operations/lookup", tag = "operations", request_body = LookupRequest,
    responses(
        (status = 200, body = super::view::OperationView, description = "The operation", headers(("ETag" = String, description = "The version, which a change names in `If-Match`"))),
        super::openapi::LookedUp,
    ),
)]
pub(super) async fn lookup(
    State(admin): State<Arc<Admin>>,
    sent: Result<Json<LookupRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(LookupRequest { route, key, scope }) = sent?;
    find_by_key(&admin, &route, &key, &scope).await.map(shown)
}

/// The operation under a key, as it is now.
pub(super) async fn find_by_key(
    admin: &Admin,
    route: &str,
    key: &str,
    scope: &BTreeMap<String, String>,
) -> Result<(Slot, Held), Refusal> {
    let policy = admin.policies.get(route).ok_or(Refusal::RouteUnknown)?;
    for slot in admin.gate.slots_of(policy, key, scope)? {
        if let Some(held) = admin.gate.store().load(&slot).await? {
            return Ok((slot, held));
        }
    }
    Err(Refusal::NothingUnderKey)
}
