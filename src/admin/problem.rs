//! Why the admin port refuses: a closed set of problem documents (RFC 9457), each with its type, its status and what to do.

use axum::extract::Request;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::engine::DecisionDenied;
use crate::event::REASON_BYTES_MAX;
use crate::gate::{LookupError, OperatorError};
use crate::read_model::QueryError;
use crate::store::{ListError, StoreError};
use crate::telemetry::FilterError;

/// What a problem's type begins with.
pub(super) const TYPE_PREFIX: &str = "urn:onceward:problem:";

/// Longest detail that is taken over from a text that was not written here, in bytes.
const DETAIL_BYTES_MAX: usize = 1024;

/// Why a request to the admin port is refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminRefusal {
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
    /// It did not come to its end.
    #[error(
        "this took too long, as a rule because the body did not come: look what was done before you ask again"
    )]
    TooSlow,
    /// Too many requests are under way.
    #[error(
        "too many requests are under way on the admin port: health and readiness are answered all the same"
    )]
    Busy,
    /// A state that is none.
    #[error(
        "state is one of in_flight, uncertain, completed, released, expired; of the read model also gone"
    )]
    StateUnknown,
    /// A route that is none.
    #[error("no route has this name: it has to be as in the configuration")]
    RouteUnknown,
    /// Nothing can be looked up by this.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Nothing is there.
    #[error(
        "nothing lies under this key: it never came on this route in this scope, or its retention is over"
    )]
    NothingUnderKey,
    /// A change that does not say what it changes.
    #[error(
        "a change names the version it was decided on: send If-Match with the ETag of the operation as you saw it"
    )]
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
    /// Nothing is told of an operation.
    #[error(
        "the event log tells nothing of it: it is older than the log, or a moment too young, or there never was one"
    )]
    Untold,
    /// What is logged was not changed.
    #[error(transparent)]
    LogLevel(#[from] FilterError),
    /// There is no event log to read.
    #[error("the event log is off: set enabled = true under [log]")]
    LogOff,
    /// There is no read model to ask.
    #[error(
        "this needs the read model: set enabled = true under [log], leave it so under [read_model], and start the gateway again"
    )]
    ReadModelOff,
    /// The read model does not answer.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Nothing came back from the thread that asked it.
    #[error("the read model did not answer: ask again")]
    Unanswered,
    /// The store was asked, and did not tell.
    #[error("{}", unread(.0))]
    Unread(#[from] StoreError),
    /// The store was asked for a page of a listing, and did not give it.
    #[error("{}", unlisted(.0))]
    Listed(#[from] ListError),
    /// The decision was not carried out.
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

impl AdminRefusal {
    /// A change without a reason, or with one that the event log would cut.
    pub(super) fn reason() -> AdminRefusal {
        AdminRefusal::Invalid(format!(
            "reason is required: why this is done, in 1 to {REASON_BYTES_MAX} bytes of text"
        ))
    }

    /// What kind of problem it is.
    pub(super) fn kind(&self) -> Kind {
        match self {
            AdminRefusal::TokenMissing | AdminRefusal::FromPage => Kind::Unauthorized,
            AdminRefusal::ReadOnly => Kind::Forbidden,
            AdminRefusal::NotFound => Kind::NotFound,
            AdminRefusal::Method => Kind::MethodNotAllowed,
            AdminRefusal::Invalid(_) => Kind::RequestInvalid,
            AdminRefusal::TooLarge => Kind::BodyTooLarge,
            AdminRefusal::TooSlow => Kind::RequestTimeout,
            AdminRefusal::Busy => Kind::Overloaded,
            AdminRefusal::StateUnknown => Kind::StateUnknown,
            AdminRefusal::RouteUnknown => Kind::RouteUnknown,
            AdminRefusal::Lookup(_) => Kind::LookupInvalid,
            AdminRefusal::VersionMissing => Kind::IfMatchRequired,
            AdminRefusal::VersionInvalid => Kind::IfMatchInvalid,
            AdminRefusal::ReloadRefused(_) => Kind::ReloadRefused,
            AdminRefusal::ReloadUnavailable(_) => Kind::ReloadUnavailable,
            AdminRefusal::LogLevel(FilterError::NotLogging) => Kind::LogLevelUnavailable,
            AdminRefusal::LogLevel(FilterError::TooLong | FilterError::Unclear { .. }) => {
                Kind::LogLevelRefused
            }
            AdminRefusal::LogOff => Kind::LogOff,
            AdminRefusal::ReadModelOff => Kind::ReadModelOff,
            AdminRefusal::Query(QueryError::Cursor) => Kind::RequestInvalid,
            AdminRefusal::Query(_) | AdminRefusal::Unanswered => Kind::ReadModelUnavailable,
            AdminRefusal::Reference(_) | AdminRefusal::NothingUnderKey | AdminRefusal::Untold => {
                Kind::OperationUnknown
            }
            AdminRefusal::Listed(ListError::Cursor) => Kind::RequestInvalid,
            AdminRefusal::Unread(_) | AdminRefusal::Listed(ListError::Store(_)) => {
                Kind::StoreUnavailable
            }
            AdminRefusal::Operator(error) => match error {
                OperatorError::Unknown => Kind::OperationUnknown,
                OperatorError::Moved => Kind::OperationMoved,
                OperatorError::DecisionDenied(DecisionDenied::InFlight) => Kind::InFlight,
                OperatorError::DecisionDenied(DecisionDenied::Settled(_)) => Kind::OperationSettled,
                OperatorError::DecisionDenied(DecisionDenied::NoResult(_)) => {
                    Kind::OperationNotCompleted
                }
                OperatorError::DecisionDenied(DecisionDenied::TooEarly { .. }) => {
                    Kind::OutcomeUncertain
                }
                OperatorError::Store(_) => Kind::StoreUnavailable,
            },
        }
    }

    /// The status that it is answered with.
    pub(super) fn status(&self) -> StatusCode {
        self.kind().status()
    }
}

/// The kinds of problems: the ends of their types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestInvalid,
    BodyTooLarge,
    RequestTimeout,
    Overloaded,
    StateUnknown,
    RouteUnknown,
    LookupInvalid,
    IfMatchRequired,
    IfMatchInvalid,
    OperationUnknown,
    OperationMoved,
    InFlight,
    OperationSettled,
    OperationNotCompleted,
    OutcomeUncertain,
    ReloadRefused,
    ReloadUnavailable,
    LogLevelRefused,
    LogLevelUnavailable,
    LogOff,
    ReadModelOff,
    ReadModelUnavailable,
    StoreUnavailable,
}

impl Kind {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Kind; 27] = [
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::RequestInvalid,
        Kind::BodyTooLarge,
        Kind::RequestTimeout,
        Kind::Overloaded,
        Kind::StateUnknown,
        Kind::RouteUnknown,
        Kind::LookupInvalid,
        Kind::IfMatchRequired,
        Kind::IfMatchInvalid,
        Kind::OperationUnknown,
        Kind::OperationMoved,
        Kind::InFlight,
        Kind::OperationSettled,
        Kind::OperationNotCompleted,
        Kind::OutcomeUncertain,
        Kind::ReloadRefused,
        Kind::ReloadUnavailable,
        Kind::LogLevelRefused,
        Kind::LogLevelUnavailable,
        Kind::LogOff,
        Kind::ReadModelOff,
        Kind::ReadModelUnavailable,
        Kind::StoreUnavailable,
    ];

    /// The end of the problem's type.
    pub(super) fn name(self) -> &'static str {
        self.described().1
    }

    /// The status of the answer.
    pub(super) fn status(self) -> StatusCode {
        self.described().0
    }

    /// What it means.
    pub(super) fn meaning(self) -> &'static str {
        self.described().2
    }

    fn described(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Kind::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "no valid token, or a web page sent it")
            }
            Kind::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "the token's role is `read`"),
            Kind::NotFound => (StatusCode::NOT_FOUND, "not-found", "no such path"),
            Kind::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "not on this path")
            }
            Kind::RequestInvalid => (
                StatusCode::BAD_REQUEST,
                "request-invalid",
                "a parameter, the cursor or the body can't be read",
            ),
            Kind::BodyTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the body is too large")
            }
            Kind::RequestTimeout => {
                (StatusCode::REQUEST_TIMEOUT, "request-timeout", "its body did not come in time")
            }
            Kind::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "too many requests are under way on the admin port",
            ),
            Kind::StateUnknown => (StatusCode::BAD_REQUEST, "state-unknown", "no such state"),
            Kind::RouteUnknown => {
                (StatusCode::NOT_FOUND, "route-unknown", "no route has this name")
            }
            Kind::LookupInvalid => {
                (StatusCode::BAD_REQUEST, "lookup-invalid", "the route has no such key or scope")
            }
            Kind::IfMatchRequired => (
                StatusCode::PRECONDITION_REQUIRED,
                "if-match-required",
                "a change without `If-Match`",
            ),
            Kind::IfMatchInvalid => {
                (StatusCode::BAD_REQUEST, "if-match-invalid", "`If-Match` is not one version")
            }
            Kind::OperationUnknown => (
                StatusCode::NOT_FOUND,
                "operation-unknown",
                "there never was one, or its retention is over",
            ),
            Kind::OperationMoved => (
                StatusCode::PRECONDITION_FAILED,
                "operation-moved",
                "it has changed since: look again",
            ),
            Kind::InFlight => (StatusCode::CONFLICT, "in-flight", "it is still running"),
            Kind::OperationSettled => {
                (StatusCode::CONFLICT, "operation-settled", "it is not uncertain")
            }
            Kind::OperationNotCompleted => {
                (StatusCode::CONFLICT, "operation-not-completed", "it has no result to expire")
            }
            Kind::OutcomeUncertain => (
                StatusCode::CONFLICT,
                "outcome-uncertain",
                "too early: the lost request may still be executed; see `Retry-After`",
            ),
            Kind::ReloadRefused => (
                StatusCode::CONFLICT,
                "reload-refused",
                "the configuration can't be taken; nothing has changed",
            ),
            Kind::ReloadUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "reload-unavailable",
                "it was not read; ask again",
            ),
            Kind::LogLevelRefused => {
                (StatusCode::BAD_REQUEST, "log-level-refused", "that is no filter")
            }
            Kind::LogLevelUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "log-level-unavailable",
                "the process logs nothing",
            ),
            Kind::LogOff => (StatusCode::NOT_IMPLEMENTED, "log-off", "it needs `[log]` enabled"),
            Kind::ReadModelOff => (
                StatusCode::NOT_IMPLEMENTED,
                "read-model-off",
                "it needs `[log]` and `[read_model]` enabled since the start",
            ),
            Kind::ReadModelUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "read-model-unavailable",
                "it can't be read; ask again",
            ),
            Kind::StoreUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "store-unavailable",
                "the store does not answer; ask again",
            ),
        }
    }
}

/// Why the store did not tell what it was asked. Its own words are of writes, and would have people look for one.
pub(super) fn unread(error: &StoreError) -> String {
    match error {
        StoreError::NotApplied(why) | StoreError::MaybeApplied(why) => {
            format!("the store does not answer: {why}")
        }
        StoreError::Unread(_) | StoreError::Corrupt(_) => error.to_string(),
    }
}

/// Why there is no page of a listing, in the same way.
fn unlisted(error: &ListError) -> String {
    match error {
        ListError::Store(error) => unread(error),
        ListError::Cursor => error.to_string(),
    }
}

impl From<JsonRejection> for AdminRefusal {
    fn from(rejection: JsonRejection) -> AdminRefusal {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => AdminRefusal::TooLarge,
            _ => AdminRefusal::Invalid(rejection.body_text()),
        }
    }
}

impl IntoResponse for AdminRefusal {
    fn into_response(self) -> Response {
        let mut response = document(self.kind(), &self.to_string());
        match &self {
            AdminRefusal::TokenMissing => {
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            AdminRefusal::Operator(OperatorError::DecisionDenied(DecisionDenied::TooEarly {
                wait,
            })) => {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            }
            _ => {}
        }
        response
    }
}

fn document(kind: Kind, detail: &str) -> Response {
    let status = kind.status();
    let body = json!({
        "type": format!("{TYPE_PREFIX}{}", kind.name()),
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
    let worded = kind
        .is_some_and(|kind| kind == b"application/problem+json" || kind.starts_with(b"text/html"));
    if !status.is_client_error() || worded {
        return response;
    }
    let (parts, body) = response.into_parts();
    let detail = axum::body::to_bytes(body, DETAIL_BYTES_MAX).await.unwrap_or_default();
    let mut refused = match status {
        StatusCode::METHOD_NOT_ALLOWED => AdminRefusal::Method,
        StatusCode::PAYLOAD_TOO_LARGE => AdminRefusal::TooLarge,
        StatusCode::NOT_FOUND => AdminRefusal::NotFound,
        _ => AdminRefusal::Invalid(String::from_utf8_lossy(&detail).into_owned()),
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

    #[test]
    fn every_kind_is_listed_once() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(at, kind as usize, "{kind:?}");
            assert!(Kind::ALL[..at].iter().all(|other| other.name() != kind.name()), "{kind:?}");
        }
        assert_eq!(Kind::ALL.last(), Some(&Kind::StoreUnavailable), "the last of the enum");
    }

    #[tokio::test]
    async fn a_refusal_says_its_type_what_to_do_and_when_to_come_back() {
        let early = DecisionDenied::TooEarly { wait: std::time::Duration::from_millis(4200) };
        let response = AdminRefusal::Operator(early.into()).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (409, &HeaderValue::from(5))
        );
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&body["type"], &body["status"]),
            (&"urn:onceward:problem:outcome-uncertain".into(), &409.into())
        );
        assert!(body["detail"].as_str().unwrap().contains("another 5 s"), "{body}");
    }
}
