//! An operation by its key, and a client's operations by what it is known by. Both stand in bodies, never in URLs, which end up
//! in logs and histories.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::Admin;
use super::operations::shown;
use super::problem::AdminRefusal;
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
    /// The path of the request, where the route has `identity = ["path"]`.
    #[serde(default)]
    path: String,
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
) -> Result<Response, AdminRefusal> {
    let Json(LookupRequest { route, key, path, scope }) = sent?;
    find_by_key(&admin, &route, (&key, &path), &scope).await.map(shown)
}

/// Whose operations are wanted.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScopeRequest {
    /// The route's name.
    pub route: String,
    /// A value for each name that the route's scope has, as in a lookup. Of a route without a scope: the field by which it tells
    /// clients apart, such as `authorization`.
    pub scope: BTreeMap<String, String>,
}

/// By what a client's operations are found.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
pub struct ScopeView {
    /// What `scope` of `GET /v1/operations` takes to list them, and what `scope` of each of them is one of: as a rule one mark;
    /// several, with commas between them, after a rotation of hashing secrets.
    pub scope: String,
}

/// By what a client's operations are found: the mark of its scope. What it is known by stands in the body and is hashed here.
#[utoipa::path(
    post, path = "/v1/scope", tag = "operations", request_body = ScopeRequest,
    responses((status = 200, body = ScopeView, description = "The mark"), super::openapi::Scoped),
)]
pub(super) async fn scope(
    State(admin): State<Arc<Admin>>,
    sent: Result<Json<ScopeRequest>, JsonRejection>,
) -> Result<Json<ScopeView>, AdminRefusal> {
    let Json(ScopeRequest { route, scope }) = sent?;
    Ok(Json(ScopeView { scope: mark_of(&admin, &route, &scope)? }))
}

/// The mark of a scope, or several with commas between them.
pub(super) fn mark_of(
    admin: &Admin,
    route: &str,
    said: &BTreeMap<String, String>,
) -> Result<String, AdminRefusal> {
    let policy = admin.policies.get(route).ok_or(AdminRefusal::RouteUnknown)?;
    Ok(admin.gate.tenant_marks(policy, said)?.join(","))
}

/// The operation under a key, on a path where the route tells paths apart, as it is now.
pub(super) async fn find_by_key(
    admin: &Admin,
    route: &str,
    (key, path): (&str, &str),
    scope: &BTreeMap<String, String>,
) -> Result<(Slot, Held), AdminRefusal> {
    let policy = admin.policies.get(route).ok_or(AdminRefusal::RouteUnknown)?;
    for slot in admin.gate.slots_of(policy, key, path, scope)? {
        if let Some(held) = admin.gate.store().records.load(&slot).await? {
            return Ok((slot, held));
        }
    }
    Err(AdminRefusal::NothingUnderKey)
}
