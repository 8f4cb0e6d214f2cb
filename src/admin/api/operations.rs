//! `/v1/operations`: lists, shows and settles operations.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::refusals::{ChangeRefusals, ListRefusals, ShowRefusals};
use crate::admin::auth::Operator;
use crate::admin::decision::{OperatorChange, Reason, entered_reply, find};
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::{filter, from_store, lag_ms, search};
use crate::admin::state::Admin;
use crate::admin::view::{DecisionRequest, OperationListView, OperationView, ResolveRequest};
use crate::engine::Decision;
use crate::key::Slot;
use crate::record::Held;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

/// Operations per page: the maximum, and the default.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;

/// A body, or the reason why it can't be read. The handler first reports faults of the operation
/// and its version.
type Sent<T> = Result<Json<T>, JsonRejection>;

/// Returns operations, one page at a time.
///
/// Without filters, or with `state` alone, the operations come from the store, unordered and in
/// their current state. With any other filter, or with `source=read_model`, they come from the read
/// model, newest first. The read model is some moments behind.
#[utoipa::path(
    get, path = "/v1/operations", tag = "operations",
    params(
        ("state" = Option<String>, Query,
            description = "`in_flight`, `uncertain`, `completed`, `released`, `expired`, `saga`, \
                `barred`; in the read model also `gone`"),
        ("route" = Option<String>, Query, description = "The route's name"),
        ("status" = Option<u16>, Query, description = "The status of the result"),
        ("scope" = Option<String>, Query,
            description = "The scope's mark, as operations and `POST /v1/scope` show it; \
                several separated by commas"),
        ("field.NAME" = Option<String>, Query,
            description = "The value of the chosen field NAME; at most one such field"),
        ("text" = Option<String>, Query,
            description = "A reference, a scope, or the value of any chosen field"),
        ("from" = Option<String>, Query, description = "Opened at this time or later (RFC 3339)"),
        ("until" = Option<String>, Query, description = "Opened before this time"),
        ("limit" = Option<usize>, Query,
            description = "Operations per page: 1 to 1000, default 100. A page may have fewer; \
                only the last page has no `cursor`"),
        ("cursor" = Option<String>, Query,
            description = "The `cursor` of the previous page, with the same parameters"),
        ("source" = Option<String>, Query, description = "`store` or `read_model`"),
    ),
    responses((status = 200, body = OperationListView,
        description = "A page of operations"), ListRefusals),
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Query(mut pairs): Query<Vec<(String, String)>>,
) -> Result<Json<OperationListView>, AdminRefusal> {
    let mut names = BTreeSet::new();
    if let Some((twice, _)) = pairs.iter().find(|(name, _)| !names.insert(name.clone())) {
        return Err(AdminRefusal::Invalid(format!("{twice} is given more than once")));
    }
    let mut take = |name: &str| {
        let at = pairs.iter().position(|(other, _)| other == name)?;
        Some(pairs.remove(at).1)
    };
    let (limit, cursor, source) = (take("limit"), take("cursor"), take("source"));
    let limit = limit.map(|limit| limit.parse::<usize>()).transpose();
    let limit = limit
        .map_err(|_| AdminRefusal::Invalid("limit must be a number".to_owned()))?
        .unwrap_or(PAGE)
        .clamp(1, PAGE_MAX);
    let only_state = pairs.iter().all(|(name, _)| name == "state");
    match source.as_deref() {
        Some("store") | None if only_state => {
            let state = pairs.first().map(|(_, state)| state.as_str());
            from_store(&admin, state, cursor.as_deref(), limit).await.map(Json)
        }
        Some("read_model") | None => {
            let filter = filter(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
            let (operations, cursor) = search(&admin, filter, cursor, limit).await?;
            Ok(Json(OperationListView {
                operations,
                cursor,
                source: "read_model".to_owned(),
                lag_ms: lag_ms(&admin),
            }))
        }
        Some("store") => Err(AdminRefusal::Invalid(
            "the store lists by state alone: omit source to search by more".to_owned(),
        )),
        Some(_) => Err(AdminRefusal::Invalid("source must be store or read_model".to_owned())),
    }
}

/// Returns the current state of one operation, from the store.
#[utoipa::path(
    get, path = "/v1/operations/{operation}", operation_id = "show_operation", tag = "operations",
    params(("operation" = String, Path,
        description = "The reference, `op_` and 40 hexadecimal digits")),
    responses(
        (
            status = 200, body = OperationView, description = "The operation",
            headers(("ETag" = String, description = "The version, for `If-Match` of a change"))
        ),
        ShowRefusals,
    ),
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
) -> Result<Response, AdminRefusal> {
    find(&admin, &operation).await.map(|found| shown(&admin, found))
}

/// Records that an uncertain operation was executed. Duplicates get this response.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/resolve", tag = "operations",
    request_body = ResolveRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header,
            description = "The version that the decision is based on, from the operation's \
                `ETag`"),
    ),
    responses(
        (
            status = 200, body = OperationView, description = "The changed operation",
            headers(("ETag" = String, description = "The version, for `If-Match` of a change"))
        ),
        ChangeRefusals,
    ),
)]
pub(super) async fn resolve(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ResolveRequest>,
) -> Result<Response, AdminRefusal> {
    let change = OperatorChange::of(&admin, &operation, &headers).await?;
    let Json(request) = sent?;
    let decision = Decision::Resolve(Arc::new(entered_reply(admin.clock.unix_ms(), &request)?));
    let reason = Reason::parse(request.reason.as_deref())?;
    let changed = change.apply(&admin, &operator, decision, reason).await?;
    Ok(shown(&admin, changed))
}

/// Records that an uncertain operation was not executed, and lets its next duplicate run.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/retry", tag = "operations",
    request_body = DecisionRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header,
            description = "The version that the decision is based on, from the operation's \
                `ETag`"),
    ),
    responses(
        (
            status = 200, body = OperationView, description = "The changed operation",
            headers(("ETag" = String, description = "The version, for `If-Match` of a change"))
        ),
        ChangeRefusals,
    ),
)]
pub(super) async fn retry(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<DecisionRequest>,
) -> Result<Response, AdminRefusal> {
    decide(state, operation, operator, &headers, sent, Decision::Retry).await
}

/// Records that an uncertain operation was not executed, and frees its key.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/release", tag = "operations",
    request_body = DecisionRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header,
            description = "The version that the decision is based on, from the operation's \
                `ETag`"),
    ),
    responses(
        (
            status = 200, body = OperationView, description = "The changed operation",
            headers(("ETag" = String, description = "The version, for `If-Match` of a change"))
        ),
        ChangeRefusals,
    ),
)]
pub(super) async fn release(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<DecisionRequest>,
) -> Result<Response, AdminRefusal> {
    decide(state, operation, operator, &headers, sent, Decision::Release).await
}

/// Deletes the result of a completed operation. Its duplicates are refused and never run.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/expire", tag = "operations",
    request_body = DecisionRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header,
            description = "The version that the decision is based on, from the operation's \
                `ETag`"),
    ),
    responses(
        (
            status = 200, body = OperationView, description = "The changed operation",
            headers(("ETag" = String, description = "The version, for `If-Match` of a change"))
        ),
        ChangeRefusals,
    ),
)]
pub(super) async fn expire(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<DecisionRequest>,
) -> Result<Response, AdminRefusal> {
    decide(state, operation, operator, &headers, sent, Decision::Expire).await
}

/// Applies a decision that needs only a reason.
async fn decide(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: &HeaderMap,
    sent: Sent<DecisionRequest>,
    decision: Decision,
) -> Result<Response, AdminRefusal> {
    let change = OperatorChange::of(&admin, &operation, headers).await?;
    let Json(request) = sent?;
    let reason = Reason::parse(request.reason.as_deref())?;
    let changed = change.apply(&admin, &operator, decision, reason).await?;
    Ok(shown(&admin, changed))
}

/// Returns an operation as JSON. Its version is the entity tag.
pub(super) fn shown(admin: &Admin, (slot, held): (Slot, Held)) -> Response {
    let etag = format!("\"{}\"", held.record.version.0);
    let sink = admin.calling_sink(&held.record);
    let view = OperationView { sink, ..OperationView::new(&slot, &held) };
    ([(header::ETAG, etag)], Json(view)).into_response()
}
