//! The kinds of problems of the admin port, each with its type, status and meaning.

use axum::http::StatusCode;

/// The prefix of every problem's type.
pub(super) const TYPE_PREFIX: &str = "urn:onceward:problem:";

/// The kinds of problems; the name of each is the end of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProblemKind {
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
    SinkUnknown,
    DeadLetterUnknown,
    OutcomeExpired,
    SinkNotTestable,
    SagaUnknown,
    SagaEnded,
    SagaMoved,
    SagaDecisionDenied,
    ReloadRefused,
    ReloadUnavailable,
    LogLevelRefused,
    LogLevelUnavailable,
    EncryptionOff,
    LogOff,
    ReadModelOff,
    ReadModelUnavailable,
    StoreUnavailable,
}

impl ProblemKind {
    /// All kinds.
    #[cfg(test)]
    pub(super) const ALL: [ProblemKind; 36] = [
        ProblemKind::Unauthorized,
        ProblemKind::Forbidden,
        ProblemKind::NotFound,
        ProblemKind::MethodNotAllowed,
        ProblemKind::RequestInvalid,
        ProblemKind::BodyTooLarge,
        ProblemKind::RequestTimeout,
        ProblemKind::Overloaded,
        ProblemKind::StateUnknown,
        ProblemKind::RouteUnknown,
        ProblemKind::LookupInvalid,
        ProblemKind::IfMatchRequired,
        ProblemKind::IfMatchInvalid,
        ProblemKind::OperationUnknown,
        ProblemKind::OperationMoved,
        ProblemKind::InFlight,
        ProblemKind::OperationSettled,
        ProblemKind::OperationNotCompleted,
        ProblemKind::OutcomeUncertain,
        ProblemKind::SinkUnknown,
        ProblemKind::DeadLetterUnknown,
        ProblemKind::OutcomeExpired,
        ProblemKind::SinkNotTestable,
        ProblemKind::SagaUnknown,
        ProblemKind::SagaEnded,
        ProblemKind::SagaMoved,
        ProblemKind::SagaDecisionDenied,
        ProblemKind::ReloadRefused,
        ProblemKind::ReloadUnavailable,
        ProblemKind::LogLevelRefused,
        ProblemKind::LogLevelUnavailable,
        ProblemKind::EncryptionOff,
        ProblemKind::LogOff,
        ProblemKind::ReadModelOff,
        ProblemKind::ReadModelUnavailable,
        ProblemKind::StoreUnavailable,
    ];

    /// Returns the end of the problem's type.
    pub(super) fn name(self) -> &'static str {
        match self {
            ProblemKind::Unauthorized => "unauthorized",
            ProblemKind::Forbidden => "forbidden",
            ProblemKind::NotFound => "not-found",
            ProblemKind::MethodNotAllowed => "method-not-allowed",
            ProblemKind::RequestInvalid => "request-invalid",
            ProblemKind::BodyTooLarge => "body-too-large",
            ProblemKind::RequestTimeout => "request-timeout",
            ProblemKind::Overloaded => "overloaded",
            ProblemKind::StateUnknown => "state-unknown",
            ProblemKind::RouteUnknown => "route-unknown",
            ProblemKind::LookupInvalid => "lookup-invalid",
            ProblemKind::IfMatchRequired => "if-match-required",
            ProblemKind::IfMatchInvalid => "if-match-invalid",
            ProblemKind::OperationUnknown => "operation-unknown",
            ProblemKind::OperationMoved => "operation-moved",
            ProblemKind::InFlight => "in-flight",
            ProblemKind::OperationSettled => "operation-settled",
            ProblemKind::OperationNotCompleted => "operation-not-completed",
            ProblemKind::OutcomeUncertain => "outcome-uncertain",
            ProblemKind::SinkUnknown => "sink-unknown",
            ProblemKind::DeadLetterUnknown => "dead-letter-unknown",
            ProblemKind::OutcomeExpired => "outcome-expired",
            ProblemKind::SinkNotTestable => "sink-not-testable",
            ProblemKind::SagaUnknown => "saga-unknown",
            ProblemKind::SagaEnded => "saga-ended",
            ProblemKind::SagaMoved => "saga-moved",
            ProblemKind::SagaDecisionDenied => "saga-decision-denied",
            ProblemKind::ReloadRefused => "reload-refused",
            ProblemKind::ReloadUnavailable => "reload-unavailable",
            ProblemKind::LogLevelRefused => "log-level-refused",
            ProblemKind::LogLevelUnavailable => "log-level-unavailable",
            ProblemKind::EncryptionOff => "encryption-off",
            ProblemKind::LogOff => "log-off",
            ProblemKind::ReadModelOff => "read-model-off",
            ProblemKind::ReadModelUnavailable => "read-model-unavailable",
            ProblemKind::StoreUnavailable => "store-unavailable",
        }
    }

    /// Returns the status of the response.
    pub(super) fn status(self) -> StatusCode {
        match self {
            ProblemKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ProblemKind::Forbidden => StatusCode::FORBIDDEN,
            ProblemKind::NotFound
            | ProblemKind::RouteUnknown
            | ProblemKind::OperationUnknown
            | ProblemKind::SinkUnknown
            | ProblemKind::SagaUnknown
            | ProblemKind::DeadLetterUnknown => StatusCode::NOT_FOUND,
            ProblemKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ProblemKind::RequestInvalid
            | ProblemKind::StateUnknown
            | ProblemKind::LookupInvalid
            | ProblemKind::IfMatchInvalid
            | ProblemKind::LogLevelRefused => StatusCode::BAD_REQUEST,
            ProblemKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ProblemKind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            ProblemKind::Overloaded
            | ProblemKind::ReloadUnavailable
            | ProblemKind::LogLevelUnavailable
            | ProblemKind::ReadModelUnavailable
            | ProblemKind::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            ProblemKind::IfMatchRequired => StatusCode::PRECONDITION_REQUIRED,
            ProblemKind::OutcomeExpired
            | ProblemKind::SinkNotTestable
            | ProblemKind::SagaEnded
            | ProblemKind::SagaDecisionDenied => StatusCode::CONFLICT,
            ProblemKind::OperationMoved | ProblemKind::SagaMoved => StatusCode::PRECONDITION_FAILED,
            ProblemKind::InFlight
            | ProblemKind::OperationSettled
            | ProblemKind::OperationNotCompleted
            | ProblemKind::OutcomeUncertain
            | ProblemKind::ReloadRefused => StatusCode::CONFLICT,
            ProblemKind::EncryptionOff | ProblemKind::LogOff | ProblemKind::ReadModelOff => {
                StatusCode::NOT_IMPLEMENTED
            }
        }
    }

    /// Returns the meaning, for the OpenAPI document.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            ProblemKind::Unauthorized => "no valid token, or a web page sent it",
            ProblemKind::Forbidden => "the token's role is `read`",
            ProblemKind::NotFound => "no such path",
            ProblemKind::MethodNotAllowed => "the path does not take the method",
            ProblemKind::RequestInvalid => "a parameter, the cursor or the body can't be read",
            ProblemKind::BodyTooLarge => "the body is too large",
            ProblemKind::RequestTimeout => "its body did not arrive in time",
            ProblemKind::Overloaded => "too many requests are active on the admin port",
            ProblemKind::StateUnknown => "no such state",
            ProblemKind::RouteUnknown => "no route has this name",
            ProblemKind::LookupInvalid => "the route has no such key or scope",
            ProblemKind::IfMatchRequired => "a change without `If-Match`",
            ProblemKind::IfMatchInvalid => "`If-Match` is not one version",
            ProblemKind::OperationUnknown => "it never existed, or its retention is over",
            ProblemKind::OperationMoved => "it has changed since: read it again",
            ProblemKind::InFlight => "it is still running",
            ProblemKind::OperationSettled => "it is not uncertain",
            ProblemKind::OperationNotCompleted => "it has no result to expire",
            ProblemKind::OutcomeUncertain => {
                "too early: the lost request may still be executed; see `Retry-After`"
            }
            ProblemKind::SinkUnknown => "no sink has this name",
            ProblemKind::DeadLetterUnknown => {
                "it never existed, or was requeued or discarded meanwhile"
            }
            ProblemKind::OutcomeExpired => {
                "the call began, and nobody knows its outcome any more: send `again` on purpose"
            }
            ProblemKind::SinkNotTestable => "the sink calls an API: a test would be a real call",
            ProblemKind::SagaUnknown => "it never existed, or its retention is over",
            ProblemKind::SagaEnded => "the saga has ended",
            ProblemKind::SagaMoved => "it has changed since: read it again",
            ProblemKind::SagaDecisionDenied => {
                "the saga does not permit the decision now; the detail has the reason"
            }
            ProblemKind::ReloadRefused => "the configuration was refused; nothing has changed",
            ProblemKind::ReloadUnavailable => "it was not read; try again",
            ProblemKind::LogLevelRefused => "the filter can't be parsed",
            ProblemKind::LogLevelUnavailable => "the process logs nothing",
            ProblemKind::EncryptionOff => "it needs `[encryption]` with keys",
            ProblemKind::LogOff => "it needs `[log]` enabled",
            ProblemKind::ReadModelOff => "it needs `[log]` and `[read_model]` enabled at the start",
            ProblemKind::ReadModelUnavailable => "it can't be read; try again",
            ProblemKind::StoreUnavailable => "the store does not answer; try again",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_once() {
        for (at, kind) in ProblemKind::ALL.into_iter().enumerate() {
            assert_eq!(at, kind as usize, "{kind:?}");
            assert!(
                ProblemKind::ALL[..at].iter().all(|other| other.name() != kind.name()),
                "{kind:?}"
            );
        }
        assert_eq!(
            ProblemKind::ALL.last(),
            Some(&ProblemKind::StoreUnavailable),
            "the last of the enum"
        );
    }
}
