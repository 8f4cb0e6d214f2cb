//! `/v1/sagas`: lists and shows sagas, and takes operators' decisions about them.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;

use super::refusals::{SagaDecisionRefusals, SagaListRefusals, SagaShowRefusals};
use crate::admin::auth::Operator;
use crate::admin::problem::AdminRefusal;
use crate::admin::sagas::{SagaQuery, decide, saga, sagas};
use crate::admin::state::Admin;
use crate::admin::view::{SagaDecisionRequest, SagaListView, SagaView};
use crate::saga::log::SagaDecisionKind;

/// A body, or the reason why it can't be read.
type Sent = Result<Json<SagaDecisionRequest>, JsonRejection>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SagaListQuery {
    status: Option<String>,
    name: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Returns the sagas that have not ended, one page at a time, without their steps.
#[utoipa::path(
    get, path = "/v1/sagas", operation_id = "list_sagas", tag = "sagas",
    params(
        ("status" = Option<String>, Query,
            description = "`pending`, `running`, `compensating` or `stuck`"),
        ("name" = Option<String>, Query, description = "The name of the saga"),
        ("limit" = Option<usize>, Query,
            description = "Sagas per page: 1 to 200, default 100. A page may have fewer; only the \
                last page has no `cursor`"),
        ("cursor" = Option<String>, Query,
            description = "The `cursor` of the previous page, with the same parameters"),
    ),
    responses((status = 200, body = SagaListView, description = "A page of sagas"),
        SagaListRefusals),
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<SagaListQuery>,
) -> Result<Json<SagaListView>, AdminRefusal> {
    let SagaListQuery { status, name, limit, cursor } = query;
    sagas(&admin, SagaQuery { status, name, limit, cursor }).await.map(Json)
}

/// Returns a saga with its steps. After the end of the saga, only the
/// final status of each step is left.
#[utoipa::path(
    get, path = "/v1/sagas/{id}", operation_id = "show_saga", tag = "sagas",
    params(("id" = String, Path, description = "The id, `op_` and 40 hexadecimal digits")),
    responses(
        (
            status = 200, body = SagaView, description = "The saga",
            headers(("ETag" = String, description = "The version, for `If-Match` of a decision"))
        ),
        SagaShowRefusals,
    ),
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
) -> Result<Response, AdminRefusal> {
    saga(&admin, &id).await.map(shown)
}

/// Tries stuck steps again: the named step, or all. A step that was refused for good gets another
/// key; any other step keeps its key.
#[utoipa::path(
    post, path = "/v1/sagas/{id}/retry", operation_id = "retry_saga", tag = "sagas",
    request_body = SagaDecisionRequest,
    params(
        ("id" = String, Path, description = "The id"),
        ("If-Match" = String, Header,
            description = "The version that the decision is based on, from the saga's `ETag`"),
    ),
    responses(
        (
            status = 200, body = SagaView, description = "The changed saga",
            headers(("ETag" = String, description = "The version, for `If-Match` of a decision"))
        ),
        SagaDecisionRefusals,
    ),
)]
pub(super) async fn retry(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    sent: Sent,
) -> Result<Response, AdminRefusal> {
    let Json(request) = sent?;
    decide(&admin, &operator, &id, SagaDecisionKind::Retry, &headers, request).await.map(shown)
}

/// Records that a stuck step was done by hand. A compensation counts as undone then, and an action
/// as done.
#[utoipa::path(
    post, path = "/v1/sagas/{id}/skip", operation_id = "skip_saga", tag = "sagas",
    request_body = SagaDecisionRequest,
    params(
        ("id" = String, Path, description = "The id"),
        ("If-Match" = String, Header,
            description = "The version that the decision is based on, from the saga's `ETag`"),
    ),
    responses(
        (
            status = 200, body = SagaView, description = "The changed saga",
            headers(("ETag" = String, description = "The version, for `If-Match` of a decision"))
        ),
        SagaDecisionRefusals,
    ),
)]
pub(super) async fn skip(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    sent: Sent,
) -> Result<Response, AdminRefusal> {
    let Json(request) = sent?;
    decide(&admin, &operator, &id, SagaDecisionKind::Skip, &headers, request).await.map(shown)
}

/// Cancels a saga: no further step begins, and everything that was done is undone. If the saga goes
/// back already, nothing changes.
#[utoipa::path(
    post, path = "/v1/sagas/{id}/cancel", operation_id = "cancel_saga", tag = "sagas",
    request_body = SagaDecisionRequest,
    params(
        ("id" = String, Path, description = "The id"),
        ("If-Match" = String, Header,
            description = "The version that the decision is based on, from the saga's `ETag`"),
    ),
    responses(
        (
            status = 200, body = SagaView, description = "The changed saga",
            headers(("ETag" = String, description = "The version, for `If-Match` of a decision"))
        ),
        SagaDecisionRefusals,
    ),
)]
pub(super) async fn cancel(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    sent: Sent,
) -> Result<Response, AdminRefusal> {
    let Json(request) = sent?;
    decide(&admin, &operator, &id, SagaDecisionKind::Cancel, &headers, request).await.map(shown)
}

/// Returns a saga as JSON. Its version is the entity tag.
fn shown(view: SagaView) -> Response {
    let etag = format!("\"{}\"", view.version);
    ([(header::ETAG, etag)], Json(view)).into_response()
}
