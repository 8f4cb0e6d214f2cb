//! Why the admin port refuses: a closed set of problem documents (RFC 9457), each with its type, its status and what to do.

use axum::extract::Request;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::engine::Denied;
use crate::event::REASON_BYTES_MAX;
use crate::gate::{LookupError, OperatorError};
use crate::store::StoreError;

/// What a problem's type begins with.
pub(super) const TYPE_PREFIX: &str = "urn:onceward:problem:";

/// Longest detail that is taken over from a text that was not written here, in bytes.
const DETAIL_BYTES_MAX: usize = 1024;

/// Why a request to the admin port is refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// No token, or one that is not known.
    #[error("a valid bearer token is required")]
    TokenMissing,
    /// A page sent it, or a name that may have been rebound to this machine.
    #[error("requests from web pages, or for other host names, need a token")]
    FromPage,
    /// The token's role does not allow it.
    #[error("this token may read, and not change anything")]
    ReadOnly,
    /// No such path.
    #[error("there is nothing here")]
    NotFound,
    /// No such method on this path.
    #[error("this path does not take that method: the Allow field says which it takes")]
    Method,
    /// It can't be understood.
    #[error("{0}")]
    Invalid(String),
    /// Its body is too large.
    #[error("the body is larger than this path takes")]
    TooLarge,
    /// A state that is none.
    #[error("state is one of in_flight, uncertain, completed, released, expired")]
    StateUnknown,
    /// A route that is none.
    #[error("no route has this name: it has to be as in the configuration")]
    RouteUnknown,
    /// Nothing can be looked up by this.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Nothing is there.
    #[error("nothing lies under this key: it never came on this route in this scope, or its retention is over")]
    NothingUnderKey,
    /// A change that does not say what it changes.
    #[error("a change names the version it was decided on: send If-Match with the ETag of the operation as you saw it")]
    VersionMissing,
    /// That is no version.
    #[error("If-Match is one version in double quotes, as the operation's ETag has it")]
    VersionInvalid,
    /// That is no reference of an operation.
    #[error("{0}")]
    Reference(#[from] crate::key::ReferenceError),
    /// The configuration was not taken.
    #[error("{0}")]
    ReloadRefused(String),
    /// The configuration was not read.
    #[error("{0}")]
    ReloadUnavailable(&'static str),
    /// The decision was not carried out.
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

impl Refusal {
    /// A change without a reason, or with one that the event log would cut.
    pub(super) fn reason() -> Refusal {
        Refusal::Invalid(format!("reason is required: why this is done, in 1 to {REASON_BYTES_MAX} bytes of text"))
    }

    /// The status, and the end of the problem's type.
    pub(super) fn class(&self) -> (StatusCode, &'static str) {
        match self {
            Refusal::TokenMissing | Refusal::FromPage => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Refusal::ReadOnly => (StatusCode::FORBIDDEN, "forbidden"),
            Refusal::NotFound => (StatusCode::NOT_FOUND, "not-found"),
            Refusal::Method => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed"),
            Refusal::Invalid(_) => (StatusCode::BAD_REQUEST, "request-invalid"),
            Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large"),
            Refusal::StateUnknown => (StatusCode::BAD_REQUEST, "state-unknown"),
            Refusal::RouteUnknown => (StatusCode::NOT_FOUND, "route-unknown"),
            Refusal::Lookup(_) => (StatusCode::BAD_REQUEST, "lookup-invalid"),
            Refusal::ReloadRefused(_) => (StatusCode::CONFLICT, "reload-refused"),
            Refusal::ReloadUnavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "reload-unavailable"),
            Refusal::VersionMissing => (StatusCode::PRECONDITION_REQUIRED, "if-match-required"),
            Refusal::VersionInvalid => (StatusCode::BAD_REQUEST, "if-match-invalid"),
            Refusal::Reference(_) | Refusal::NothingUnderKey | Refusal::Operator(OperatorError::Unknown) => {
                (StatusCode::NOT_FOUND, "operation-unknown")
            }
            Refusal::Operator(OperatorError::Moved) => (StatusCode::PRECONDITION_FAILED, "operation-moved"),
            Refusal::Operator(OperatorError::Denied(denied)) => (StatusCode::CONFLICT, denied_kind(denied)),
            Refusal::Operator(OperatorError::Store(_)) => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
        }
    }
}

fn denied_kind(denied: &Denied) -> &'static str {
    match denied {
        Denied::InFlight => "in-flight",
        Denied::Settled(_) => "operation-settled",
        Denied::NoResult(_) => "operation-not-completed",
        Denied::TooEarly { .. } => "outcome-uncertain",
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        Refusal::Operator(error.into())
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Refusal {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
            _ => Refusal::Invalid(rejection.body_text()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, kind) = self.class();
        let mut response = document(status, kind, &self.to_string());
        match &self {
            Refusal::TokenMissing => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Refusal::Operator(OperatorError::Denied(Denied::TooEarly { wait })) => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            }
            _ => {}
        }
        response
    }
}

fn document(status: StatusCode, kind: &str, detail: &str) -> Response {
    let body = json!({
        "type": format!("{TYPE_PREFIX}{kind}"),
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

/// Makes problem documents of the refusals that the framework words itself: of a query, a path or a method.
pub(super) async fn every_refusal_is_a_document(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let worded = kind.is_some_and(|kind| kind == b"application/problem+json" || kind.starts_with(b"text/html"));
    if !status.is_client_error() || worded {
        return response;
    }
    let (parts, body) = response.into_parts();
    let detail = axum::body::to_bytes(body, DETAIL_BYTES_MAX).await.unwrap_or_default();
    let mut refused = match status {
        StatusCode::METHOD_NOT_ALLOWED => Refusal::Method,
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
        StatusCode::NOT_FOUND => Refusal::NotFound,
        _ => Refusal::Invalid(String::from_utf8_lossy(&detail).into_owned()),
    }
    .into_response();
    if let Some(allowed) = parts.headers.get(header::ALLOW) {
        refused.headers_mut().insert(header::ALLOW, allowed.clone());
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_says_its_type_what_to_do_and_when_to_come_back() {
        let early = Denied::TooEarly { wait: std::time::Duration::from_millis(4200) };
        let response = Refusal::Operator(early.into()).into_response();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (409, &HeaderValue::from(5)));
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["type"], &body["status"]), (&"urn:onceward:problem:outcome-uncertain".into(), &409.into()));
        assert!(body["detail"].as_str().unwrap().contains("another 5 s"), "{body}");
    }
}
