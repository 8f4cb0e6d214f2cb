//! The requests that find an operation by its key, and the mark of a client's scope. Keys and
//! credentials are in bodies and never in URLs, because logs and histories contain URLs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A key, with its route and scope.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// The route's name.
    pub route: String,
    /// The key as the client sends it. For a derived key, the digest that the upstream receives.
    pub key: String,
    /// The path of the request, if the route has `identity = ["path"]`.
    #[serde(default)]
    pub path: String,
    /// A value for each name of the route's scope. The names are header fields, or `iss` and the
    /// claim of a token, or `subject` of a certificate (DER in base64).
    #[serde(default)]
    pub scope: BTreeMap<String, String>,
}

/// A client, by its scope on a route.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScopeRequest {
    /// The route's name.
    pub route: String,
    /// A value for each name of the route's scope, as in a look-up. For a route without a scope,
    /// the field that distinguishes its clients, such as `authorization`.
    pub scope: BTreeMap<String, String>,
}

/// The mark of a client's operations.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
pub struct ScopeView {
    /// The client's mark. Operations of the client have it as their `scope`, and `GET
    /// /v1/operations?scope=` lists them. During a rotation of hashing secrets there are several
    /// marks, separated by commas.
    pub scope: String,
}
