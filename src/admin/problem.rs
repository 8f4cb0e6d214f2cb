//! The refusals of the admin port. Each is a problem document (RFC 9457) with type, status and
//! advice.

use axum::extract::Request;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::problem_kind::{ProblemKind, TYPE_PREFIX};
use crate::engine::DecisionDenied;
use crate::event::REASON_BYTES_MAX;
use crate::gate::{LookupError, OperatorError};
use crate::outbox::NotTestable;
use crate::outbox::states::SinkStateError;
use crate::read_model::QueryError;
use crate::store::dead_letters::MalformedDeadLetterId;
use crate::store::{ListError, StoreError};
use crate::telemetry::FilterError;

/// The longest part of a text of the framework that is used as detail, in bytes.
const DETAIL_BYTES_MAX: usize = 1024;

/// The reason why a request to the admin port is refused. Except after a timeout, a refused request
/// has changed nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminRefusal {
    /// The request has no token, or an unknown one.
    #[error("a valid bearer token is required")]
    TokenMissing,
    /// A web page sent the request, or the request's host name may have been rebound to this
    /// machine.
    #[error("requests from web pages, or for other host names, need a token")]
    FromPage,
    /// The token's role does not allow the request.
    #[error("this token may read, but not change anything")]
    ReadOnly,
    /// There is no such path.
    #[error("there is nothing here")]
    NotFound,
    /// The path does not have this method.
    #[error("this path does not take that method: the Allow field lists the methods it takes")]
    Method,
    /// The request can't be parsed.
    #[error("{0}")]
    Invalid(String),
    /// The body is too large.
    #[error("the body is larger than this path accepts")]
    TooLarge,
    /// The request did not finish in time.
    #[error(
        "the request timed out, usually because its body did not arrive: check what was done \
         before you send it again"
    )]
    TooSlow,
    /// Too many requests are active.
    #[error(
        "too many requests are active on the admin port; health and readiness are still answered"
    )]
    Busy,
    /// The state is unknown.
    #[error(
        "state must be in_flight, uncertain, completed, released, expired, saga or barred; in the \
         read model also gone"
    )]
    StateUnknown,
    /// The route is unknown.
    #[error("no route has this name: use the name from the configuration")]
    RouteUnknown,
    /// The key or the scope of a look-up does not fit the route.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// There is no operation under this key.
    #[error(
        "no operation is stored under this key: it was never used on this route in this scope, or \
         its retention is over"
    )]
    NothingUnderKey,
    /// The change has no `If-Match`.
    #[error(
        "a change must name the version it was decided on: send If-Match with the ETag of the \
         operation as you read it"
    )]
    VersionMissing,
    /// `If-Match` is not a version.
    #[error("If-Match must be one version in double quotes, as in the operation's ETag")]
    VersionInvalid,
    /// The reference of the operation is malformed.
    #[error("{0}")]
    Reference(#[from] crate::key::ReferenceError),
    /// There is no such sink.
    #[error(
        "no sink has this name: the configuration does not name it, and nothing waits for it; \
         `onceward sinks list` shows the names"
    )]
    SinkUnknown,
    /// Something waits for a sink that the configuration does not name, so it has no receiver.
    #[error(
        "the configuration does not name this sink, so there is no receiver to test: name it under \
         [[sinks]], and reload"
    )]
    SinkNotConfigured,
    /// There is no such dead letter.
    #[error(
        "there is no dead letter with this id: it never existed, or was requeued or discarded \
         meanwhile"
    )]
    DeadLetterUnknown,
    /// A call began, and nobody knows its outcome any more.
    #[error(
        "the call of this dead letter began, and its record is gone (outcome-expired): a requeue \
         could execute it twice. Look at the called system. If it did not execute the call, \
         requeue with `again` (`onceward dead-letters requeue --again`); if it did, discard the \
         dead letter"
    )]
    OutcomeExpired,
    /// There is no such saga.
    #[error(
        "no saga has this id: it never existed, or its retention is over; `onceward sagas list` \
         shows those that run"
    )]
    SagaUnknown,
    /// The saga has ended.
    #[error("the saga has ended: nothing is left to decide")]
    SagaEnded,
    /// The saga has changed since the operator looked at it.
    #[error("the saga has changed since you looked at it: look again, then decide")]
    SagaMoved,
    /// The rules of sagas deny the decision.
    #[error("{0}")]
    SagaDecisionDenied(String),
    /// A sink that calls an API can't be tested.
    #[error(transparent)]
    NotTestable(#[from] NotTestable),
    /// The id of the dead letter is malformed.
    #[error(transparent)]
    DeadLetterId(#[from] MalformedDeadLetterId),
    /// The state of a sink was not read or changed.
    #[error(transparent)]
    SinkState(#[from] SinkStateError),
    /// The configuration was refused.
    #[error("{0}")]
    ReloadRefused(String),
    /// The configuration was not read.
    #[error("{0}")]
    ReloadUnavailable(&'static str),
    /// The read model has no event of the operation.
    #[error(
        "the event log has no entry of this operation: it is older than the log, or newer than the \
         read model, or never existed"
    )]
    NoEvents,
    /// The log filter was not changed.
    #[error(transparent)]
    LogLevel(#[from] FilterError),
    /// There are no keys to seal anything with.
    #[error("nothing is sealed: the configuration has no keys under [encryption]")]
    EncryptionOff,
    /// The event log is disabled.
    #[error("the event log is off: set enabled = true under [log]")]
    LogOff,
    /// There is no read model.
    #[error(
        "this needs the read model: set enabled = true under [log], keep it so under [read_model], \
         and restart the gateway"
    )]
    ReadModelOff,
    /// The read model failed.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The task that queried the read model ended without a result.
    #[error("the read model did not answer: try again")]
    Unanswered,
    /// The store could not be read.
    #[error("{}", describe_read_error(.0))]
    StoreRead(#[from] StoreError),
    /// The store could not list records.
    #[error("{}", describe_list_error(.0))]
    StoreListing(#[from] ListError),
    /// The decision was not applied.
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

impl AdminRefusal {
    /// Returns the refusal of a change that has no reason, or a reason that is too long for the
    /// event log.
    pub(super) fn reason() -> AdminRefusal {
        AdminRefusal::Invalid(format!(
            "reason is required: why the change is made, in 1 to {REASON_BYTES_MAX} bytes of text"
        ))
    }

    /// Returns the kind of the problem.
    pub(super) fn kind(&self) -> ProblemKind {
        match self {
            AdminRefusal::TokenMissing | AdminRefusal::FromPage => ProblemKind::Unauthorized,
            AdminRefusal::ReadOnly => ProblemKind::Forbidden,
            AdminRefusal::NotFound => ProblemKind::NotFound,
            AdminRefusal::Method => ProblemKind::MethodNotAllowed,
            AdminRefusal::Invalid(_) => ProblemKind::RequestInvalid,
            AdminRefusal::TooLarge => ProblemKind::BodyTooLarge,
            AdminRefusal::TooSlow => ProblemKind::RequestTimeout,
            AdminRefusal::Busy => ProblemKind::Overloaded,
            AdminRefusal::StateUnknown => ProblemKind::StateUnknown,
            AdminRefusal::RouteUnknown => ProblemKind::RouteUnknown,
            AdminRefusal::Lookup(_) => ProblemKind::LookupInvalid,
            AdminRefusal::VersionMissing => ProblemKind::IfMatchRequired,
            AdminRefusal::VersionInvalid => ProblemKind::IfMatchInvalid,
            AdminRefusal::ReloadRefused(_) => ProblemKind::ReloadRefused,
            AdminRefusal::ReloadUnavailable(_) => ProblemKind::ReloadUnavailable,
            AdminRefusal::LogLevel(FilterError::NotLogging) => ProblemKind::LogLevelUnavailable,
            AdminRefusal::LogLevel(FilterError::TooLong | FilterError::Malformed { .. }) => {
                ProblemKind::LogLevelRefused
            }
            AdminRefusal::EncryptionOff => ProblemKind::EncryptionOff,
            AdminRefusal::LogOff => ProblemKind::LogOff,
            AdminRefusal::ReadModelOff => ProblemKind::ReadModelOff,
            AdminRefusal::Query(QueryError::Cursor) => ProblemKind::RequestInvalid,
            AdminRefusal::Query(_) | AdminRefusal::Unanswered => ProblemKind::ReadModelUnavailable,
            AdminRefusal::Reference(_) | AdminRefusal::NothingUnderKey | AdminRefusal::NoEvents => {
                ProblemKind::OperationUnknown
            }
            AdminRefusal::SinkUnknown | AdminRefusal::SinkNotConfigured => ProblemKind::SinkUnknown,
            AdminRefusal::DeadLetterUnknown | AdminRefusal::DeadLetterId(_) => {
                ProblemKind::DeadLetterUnknown
            }
            AdminRefusal::OutcomeExpired => ProblemKind::OutcomeExpired,
            AdminRefusal::SagaUnknown => ProblemKind::SagaUnknown,
            AdminRefusal::SagaEnded => ProblemKind::SagaEnded,
            AdminRefusal::SagaMoved => ProblemKind::SagaMoved,
            AdminRefusal::SagaDecisionDenied(_) => ProblemKind::SagaDecisionDenied,
            AdminRefusal::NotTestable(_) => ProblemKind::SinkNotTestable,
            AdminRefusal::SinkState(_) => ProblemKind::StoreUnavailable,
            AdminRefusal::StoreListing(ListError::Cursor) => ProblemKind::RequestInvalid,
            AdminRefusal::StoreRead(_) | AdminRefusal::StoreListing(ListError::Store(_)) => {
                ProblemKind::StoreUnavailable
            }
            AdminRefusal::Operator(error) => match error {
                OperatorError::Unknown => ProblemKind::OperationUnknown,
                OperatorError::Moved => ProblemKind::OperationMoved,
                OperatorError::DecisionDenied(DecisionDenied::InFlight) => ProblemKind::InFlight,
                OperatorError::DecisionDenied(
                    DecisionDenied::Settled(_) | DecisionDenied::Saga,
                ) => ProblemKind::OperationSettled,
                OperatorError::DecisionDenied(DecisionDenied::NoResult(_)) => {
                    ProblemKind::OperationNotCompleted
                }
                OperatorError::DecisionDenied(DecisionDenied::TooEarly { .. }) => {
                    ProblemKind::OutcomeUncertain
                }
                OperatorError::Store(_) => ProblemKind::StoreUnavailable,
            },
        }
    }

    /// Returns the status of the response.
    pub(super) fn status(&self) -> StatusCode {
        self.kind().status()
    }
}

/// Describes a failed read of the store. The store's own text is about writes, and would mislead
/// people.
pub(super) fn describe_read_error(error: &StoreError) -> String {
    match error {
        StoreError::NotApplied(why) | StoreError::MaybeApplied(why) => {
            format!("the store does not answer: {why}")
        }
        StoreError::Unread(_) | StoreError::Corrupt(_) => error.to_string(),
    }
}

/// Describes a failed listing in the same way.
fn describe_list_error(error: &ListError) -> String {
    match error {
        ListError::Store(error) => describe_read_error(error),
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

fn document(kind: ProblemKind, detail: &str) -> Response {
    let status = kind.status();
    let body = json!({
        "type": format!("{TYPE_PREFIX}{}", kind.name()),
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

/// Middleware that turns the framework's own refusals (of a query, a path or a method) into problem
/// documents.
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

    #[tokio::test]
    async fn a_refusal_has_its_type_advice_and_the_time_to_come_back() {
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
