//! The operations: list, look up, settle by hand.

use std::str::FromStr;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;

use super::Admin;
use super::auth::Operator;
use super::view::{Listed, OperationView, ReleaseRequest, ResolveRequest, problem};
use crate::engine::{Decision, Denied};
use crate::event::Context;
use crate::gate::OperatorError;
use crate::key::Slot;
use crate::record::{Held, Reply, ReplyBody, Version};
use crate::store::Listing;

/// Operations on a page, at most and if nothing is asked for.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;

/// Fields that belong to a connection or to the framing of a message, which no stored reply has.
const FRAMING: [HeaderName; 7] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    state: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Query(query): Query<ListQuery>) -> Response {
    let listing = match query.state.as_deref() {
        None | Some("completed" | "released" | "expired") => Listing::All,
        Some("in_flight" | "uncertain") => Listing::Unsettled,
        Some(_) => {
            let detail = "state is one of in_flight, uncertain, completed, released, expired";
            return problem(StatusCode::BAD_REQUEST, "state-unknown", detail);
        }
    };
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let page = match admin.gate.store().list(listing, query.cursor.as_deref(), limit).await {
        Ok(page) => page,
        Err(error) => return problem(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", &error.to_string()),
    };
    let wanted = |view: &OperationView| query.state.as_ref().is_none_or(|state| view.state == *state);
    let views = page.records.iter().map(|(slot, held)| OperationView::new(slot, held));
    Json(Listed { operations: views.filter(wanted).collect(), cursor: page.cursor }).into_response()
}

pub(super) async fn show(State(admin): State<Arc<Admin>>, Path(operation): Path<String>) -> Response {
    match find(&admin, &operation).await {
        Ok((slot, held)) => shown(&slot, &held),
        Err(refusal) => refusal,
    }
}

pub(super) async fn resolve(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    request: Result<Json<ResolveRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, "request-invalid", &rejection.body_text()),
    };
    match reply(&admin, &request) {
        Ok(reply) => settle(&admin, &operation, &operator, &headers, Decision::Resolve(Arc::new(reply)), request.reason).await,
        Err(detail) => problem(StatusCode::BAD_REQUEST, "request-invalid", &detail),
    }
}

pub(super) async fn retry(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    request: Result<Json<ReleaseRequest>, JsonRejection>,
) -> Response {
    match request {
        Ok(Json(request)) => settle(&admin, &operation, &operator, &headers, Decision::Retry, request.reason).await,
        Err(rejection) => problem(StatusCode::BAD_REQUEST, "request-invalid", &rejection.body_text()),
    }
}

pub(super) async fn release(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    request: Result<Json<ReleaseRequest>, JsonRejection>,
) -> Response {
    match request {
        Ok(Json(request)) => settle(&admin, &operation, &operator, &headers, Decision::Release, request.reason).await,
        Err(rejection) => problem(StatusCode::BAD_REQUEST, "request-invalid", &rejection.body_text()),
    }
}

pub(super) async fn expire(
    State(admin): State<Arc<Admin>>,
    Path(operation): Path<String>,
    Extension(operator): Extension<Operator>,
    headers: HeaderMap,
    request: Result<Json<ReleaseRequest>, JsonRejection>,
) -> Response {
    match request {
        Ok(Json(request)) => settle(&admin, &operation, &operator, &headers, Decision::Expire, request.reason).await,
        Err(rejection) => problem(StatusCode::BAD_REQUEST, "request-invalid", &rejection.body_text()),
    }
}

/// The reply that an operator states, with a date and a media type where none is given.
fn reply(admin: &Admin, request: &ResolveRequest) -> Result<Reply, String> {
    let status = StatusCode::from_u16(request.status).ok().filter(|status| status.as_u16() >= 200);
    let status = status.ok_or("status is a final HTTP status: 200 to 599")?;
    let body = BASE64.decode(&request.body_base64).map_err(|error| format!("body_base64 is not base64: {error}"))?;
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let name = HeaderName::from_str(name).map_err(|_| format!("`{name}` is not a header name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| format!("the value of {name} is not a header value"))?;
        if FRAMING.contains(&name) {
            return Err(format!("{name} can't be stated: framing is computed from the body"));
        }
        headers.append(name, value);
    }
    if !body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        let kind = if json { "application/json" } else { "text/plain; charset=utf-8" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    if !headers.contains_key(header::DATE) {
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_millis(admin.clock.unix_ms());
        if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
            headers.insert(header::DATE, date);
        }
    }
    Ok(Reply { status, headers, body: ReplyBody::Whole(Bytes::from(body)) })
}

async fn settle(
    admin: &Admin,
    operation: &str,
    operator: &Operator,
    headers: &HeaderMap,
    decision: Decision,
    reason: Option<String>,
) -> Response {
    let seen = match headers.get(header::IF_MATCH).map(parse_version) {
        None => None,
        Some(Some(version)) => Some(version),
        Some(None) => return problem(StatusCode::BAD_REQUEST, "if-match-invalid", "If-Match is a version in double quotes"),
    };
    let (slot, held) = match find(admin, operation).await {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let word = match decision {
        Decision::Resolve(_) | Decision::Found(_) => "resolved",
        Decision::Release => "released",
        Decision::Retry => "let run again",
        Decision::Expire => "expired",
    };
    let by = Context { operator: Some(operator.0.clone()), reason: reason.clone(), ..Context::default() };
    match admin.gate.settle_by_hand(&slot, decision, seen, admin.policy(&held.record.route), by).await {
        Ok(held) => {
            let reason = reason.unwrap_or_default();
            tracing::info!(operation = %slot, route = %held.record.route, operator = operator.0, reason, "{word} by hand");
            shown(&slot, &held)
        }
        Err(error) => denied(&error),
    }
}

fn denied(error: &OperatorError) -> Response {
    let (status, kind) = match error {
        OperatorError::Unknown => (StatusCode::NOT_FOUND, "operation-unknown"),
        OperatorError::Moved => (StatusCode::PRECONDITION_FAILED, "operation-moved"),
        OperatorError::Denied(Denied::InFlight) => (StatusCode::CONFLICT, "in-flight"),
        OperatorError::Denied(Denied::Settled(_)) => (StatusCode::CONFLICT, "operation-settled"),
        OperatorError::Denied(Denied::NoResult(_)) => (StatusCode::CONFLICT, "operation-not-completed"),
        OperatorError::Denied(Denied::TooEarly { .. }) => (StatusCode::CONFLICT, "outcome-uncertain"),
        OperatorError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
    };
    let mut response = problem(status, kind, &error.to_string());
    if let OperatorError::Denied(Denied::TooEarly { wait }) = error {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    }
    response
}

async fn find(admin: &Admin, operation: &str) -> Result<(Slot, Held), Response> {
    let unknown = |detail: &str| problem(StatusCode::NOT_FOUND, "operation-unknown", detail);
    let slot = Slot::from_reference(operation).map_err(|error| unknown(&error.to_string()))?;
    match admin.gate.store().load(&slot).await {
        Ok(Some(held)) => Ok((slot, held)),
        Ok(None) => Err(unknown(&OperatorError::Unknown.to_string())),
        Err(error) => Err(problem(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", &error.to_string())),
    }
}

fn shown(slot: &Slot, held: &Held) -> Response {
    let etag = format!("\"{}\"", held.record.version.0);
    ([(header::ETAG, etag)], Json(OperationView::new(slot, held))).into_response()
}

fn parse_version(value: &HeaderValue) -> Option<Version> {
    let text = value.to_str().ok()?.trim().strip_prefix('"')?.strip_suffix('"')?;
    text.parse().ok().map(Version)
}
