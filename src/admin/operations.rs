//! The operations, as JSON: list, look up, settle by hand.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;

use super::Admin;
use super::auth::Operator;
use super::change::{Change, Reason, find, stated};
use super::problem::Refusal;
use super::view::{Listed, OperationView, ReleaseRequest, ResolveRequest};
use crate::engine::Decision;
use crate::key::Slot;
use crate::record::Held;
use crate::store::Listing;

/// Operations on a page, at most and if nothing is asked for.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;

/// A body as it was sent: why it can't be read is told after what is asked first.
type Sent<T> = Result<Json<T>, JsonRejection>;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    state: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Query(query): Query<ListQuery>) -> Result<Json<Listed>, Refusal> {
    let listing = match query.state.as_deref() {
        None | Some("completed" | "released" | "expired") => Listing::All,
        Some("in_flight" | "uncertain") => Listing::Unsettled,
        Some(_) => return Err(Refusal::StateUnknown),
    };
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let page = admin.gate.store().list(listing, query.cursor.as_deref(), limit).await?;
    let wanted = |view: &OperationView| query.state.as_ref().is_none_or(|state| view.state == *state);
    let views = page.records.iter().map(|(slot, held)| OperationView::new(slot, held));
    Ok(Json(Listed { operations: views.filter(wanted).collect(), cursor: page.cursor }))
}

pub(super) async fn show(State(admin): State<Arc<Admin>>, Path(operation): Path<String>) -> Result<Response, Refusal> {
    find(&admin, &operation).await.map(shown)
}

pub(super) async fn resolve(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ResolveRequest>,
) -> Result<Response, Refusal> {
    let change = Change::of(&admin, &operation, &headers).await?;
    let Json(request) = sent?;
    let decision = Decision::Resolve(Arc::new(stated(admin.clock.unix_ms(), &request)?));
    let reason = Reason::parse(request.reason.as_deref())?;
    change.make(&admin, &operator, decision, reason).await.map(shown)
}

pub(super) async fn retry(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ReleaseRequest>,
) -> Result<Response, Refusal> {
    decide(state, operation, operator, &headers, sent, Decision::Retry).await
}

pub(super) async fn release(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ReleaseRequest>,
) -> Result<Response, Refusal> {
    decide(state, operation, operator, &headers, sent, Decision::Release).await
}

pub(super) async fn expire(
    state: State<Arc<Admin>>,
    operation: Path<String>,
    operator: Extension<Operator>,
    headers: HeaderMap,
    sent: Sent<ReleaseRequest>,
) -> Result<Response, Refusal> {
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
) -> Result<Response, Refusal> {
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
