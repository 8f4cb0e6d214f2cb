//! The operations, as JSON: list, look up, settle by hand.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Admin;
use super::auth::Operator;
use super::change::{Change, Reason, find, stated};
use super::model::{filter, lag_ms, search};
use super::problem::AdminRefusal;
use super::view::{Listed, OperationView, ReleaseRequest, ResolveRequest};
use crate::engine::Decision;
use crate::key::Slot;
use crate::record::Held;
use crate::store::Listing;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

/// Operations on a page, at most and if nothing is asked for.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;

/// A body as it was sent: why it can't be read is told after what is asked first.
type Sent<T> = Result<Json<T>, JsonRejection>;

/// Operations, a page at a time.
///
/// By state alone they come from the store: as they are now, in no order. By anything else, or with `source=read_model`, they
/// come from the read model: newest first, and some moments behind.
#[utoipa::path(
    get, path = "/v1/operations", tag = "operations",
    params(
        ("state" = Option<String>, Query, description = "`in_flight`, `uncertain`, `completed`, `released`, `expired`; of the read model also `gone`"),
        ("route" = Option<String>, Query, description = "The route's name"),
        ("status" = Option<u16>, Query, description = "The status of the result"),
        ("scope" = Option<String>, Query, description = "The scope's mark, as operations show it and `POST /v1/scope` tells it; several with commas between them"),
        ("field.NAME" = Option<String>, Query, description = "The value of the chosen field NAME; one of them"),
        ("text" = Option<String>, Query, description = "A reference, a scope, or the value of any chosen field"),
        ("from" = Option<String>, Query, description = "Begun then or later (RFC 3339)"),
        ("until" = Option<String>, Query, description = "Begun before then"),
        ("limit" = Option<usize>, Query, description = "At most so many: 1 to 1000, otherwise 100. Only a page without a `cursor` is the last, also where it has fewer"),
        ("cursor" = Option<String>, Query, description = "Where the page begins: the `cursor` of the one before, with the same parameters"),
        ("source" = Option<String>, Query, description = "`store` or `read_model`"),
    ),
    responses((status = 200, body = Listed, description = "A page of operations"), super::openapi::Listing),
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Query(mut pairs): Query<Vec<(String, String)>>,
) -> Result<Json<Listed>, AdminRefusal> {
    let mut names = BTreeSet::new();
    if let Some((twice, _)) = pairs.iter().find(|(name, _)| !names.insert(name.clone())) {
        return Err(AdminRefusal::Invalid(format!("{twice} is there more than once")));
    }
    let mut take = |name: &str| {
        let at = pairs.iter().position(|(other, _)| other == name)?;
        Some(pairs.remove(at).1)
    };
    let (limit, cursor, source) = (take("limit"), take("cursor"), take("source"));
    let limit = limit.map(|limit| limit.parse::<usize>()).transpose();
    let limit = limit
        .map_err(|_| AdminRefusal::Invalid("limit is a number".to_owned()))?
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
            Ok(Json(Listed {
                operations,
                cursor,
                source: "read_model".to_owned(),
                lag_ms: lag_ms(&admin),
            }))
        }
        Some("store") => Err(AdminRefusal::Invalid(
            "the store lists by state alone: leave source away to search by more".to_owned(),
        )),
        Some(_) => Err(AdminRefusal::Invalid("source is store or read_model".to_owned())),
    }
}

/// A page of what is in the store.
pub(super) async fn from_store(
    admin: &Admin,
    state: Option<&str>,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Listed, AdminRefusal> {
    let listing = match state {
        None | Some("completed" | "released" | "expired") => Listing::All,
        Some("in_flight" | "uncertain") => Listing::Unsettled,
        Some(_) => return Err(AdminRefusal::StateUnknown),
    };
    let page = admin.gate.store().records.list(listing, cursor, limit).await?;
    let wanted = |view: &OperationView| state.is_none_or(|state| view.state == state);
    let views = page.records.iter().map(|(slot, held)| OperationView::new(slot, held));
    let operations = views.filter(wanted).collect();
    Ok(Listed { operations, cursor: page.cursor, source: "store".to_owned(), lag_ms: None })
}

/// One operation, as it is now: from the store.
#[utoipa::path(
    get, path = "/v1/operations/{operation}", operation_id = "show_operation", tag = "operations",
    params(("operation" = String, Path, description = "The reference, `op_` and 40 hexadecimal digits")),
    responses(
        (status = 200, body = OperationView, description = "The operation", headers(("ETag" = String, description = "The version, which a change names in `If-Match`"))),
        super::openapi::Found,
    ),
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
) -> Result<Response, AdminRefusal> {
    find(&admin, &operation).await.map(shown)
}

/// States the result of an uncertain operation: it was executed, and duplicates get this answer.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/resolve", tag = "operations", request_body = ResolveRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header, description = "The version that was seen, as the operation's `ETag` has it"),
    ),
    responses(
        (status = 200, body = OperationView, description = "The operation as it is now", headers(("ETag" = String, description = "The version, which a change names in `If-Match`"))),
        super::openapi::Changed,
    ),
)]
pub(super) async fn resolve(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ResolveRequest>,
) -> Result<Response, AdminRefusal> {
    let change = Change::of(&admin, &operation, &headers).await?;
    let Json(request) = sent?;
    let decision = Decision::Resolve(Arc::new(stated(admin.clock.unix_ms(), &request)?));
    let reason = Reason::parse(request.reason.as_deref())?;
    change.make(&admin, &operator, decision, reason).await.map(shown)
}

/// States that an uncertain operation was not executed, and lets its next duplicate run.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/retry", tag = "operations", request_body = ReleaseRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header, description = "The version that was seen, as the operation's `ETag` has it"),
    ),
    responses(
        (status = 200, body = OperationView, description = "The operation as it is now", headers(("ETag" = String, description = "The version, which a change names in `If-Match`"))),
        super::openapi::Changed,
    ),
)]
pub(super) async fn retry(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ReleaseRequest>,
) -> Result<Response, AdminRefusal> {
    decide(state, operation, operator, &headers, sent, Decision::Retry).await
}

/// States that an uncertain operation was not executed, and frees its key.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/release", tag = "operations", request_body = ReleaseRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header, description = "The version that was seen, as the operation's `ETag` has it"),
    ),
    responses(
        (status = 200, body = OperationView, description = "The operation as it is now", headers(("ETag" = String, description = "The version, which a change names in `If-Match`"))),
        super::openapi::Changed,
    ),
)]
pub(super) async fn release(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ReleaseRequest>,
) -> Result<Response, AdminRefusal> {
    decide(state, operation, operator, &headers, sent, Decision::Release).await
}

/// Throws the result of a completed operation away. Its duplicates are refused, and never run.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/expire", tag = "operations", request_body = ReleaseRequest,
    params(
        ("operation" = String, Path, description = "The reference"),
        ("If-Match" = String, Header, description = "The version that was seen, as the operation's `ETag` has it"),
    ),
    responses(
        (status = 200, body = OperationView, description = "The operation as it is now", headers(("ETag" = String, description = "The version, which a change names in `If-Match`"))),
        super::openapi::Changed,
    ),
)]
pub(super) async fn expire(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ReleaseRequest>,
) -> Result<Response, AdminRefusal> {
    decide(state, operation, operator, &headers, sent, Decision::Expire).await
}

/// A decision that needs no more than its reason.
async fn decide(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: &HeaderMap,
    sent: Sent<ReleaseRequest>,
    decision: Decision,
) -> Result<Response, AdminRefusal> {
    let change = Change::of(&admin, &operation, headers).await?;
    let Json(request) = sent?;
    let reason = Reason::parse(request.reason.as_deref())?;
    change.make(&admin, &operator, decision, reason).await.map(shown)
}

/// An operation, with its version as entity tag.
pub(super) fn shown((slot, held): (Slot, Held)) -> Response {
    let etag = format!("\"{}\"", held.record.version.0);
    ([(header::ETAG, etag)], Json(OperationView::new(&slot, &held))).into_response()
}
