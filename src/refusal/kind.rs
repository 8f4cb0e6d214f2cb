//! The kinds of refusals and everything that is fixed for a kind: one exhaustive look-up for each
//! property.

use http::StatusCode;

use super::Refusal;
use crate::telemetry::Answer;

/// The kind of a [`Refusal`], without its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is documented at the refusal of the same name")]
pub enum RefusalKind {
    KeyMissing,
    KeyInvalid,
    ScopeMissing,
    ScopeRepeated,
    ScopeInvalid,
    /// A [`Refusal::ScopeInvalid`] of a token that has expired.
    ScopeExpired,
    ScopeUnavailable,
    KeyReused,
    InFlight,
    SagaStuck,
    SagaNotFound,
    Barred,
    OutcomeUncertain,
    ResponseNotStored,
    ResultExpired,
    NotSent,
    UpstreamUnreachable,
    UpstreamFailed,
    /// A [`Refusal::UpstreamFailed`] by a timeout.
    UpstreamTimedOut,
    StoreUnavailable,
    RecordUnreadable,
    Overloaded,
    QuotaReached,
    OutboxFull,
    PreconditionFailed,
    MergeConflict,
    PreconditionRequired,
    ConditionInvalid,
    ResourceBusy,
    ResourceUncertain,
    ResourceUnreadable,
    BodyTooLarge,
    UnsupportedEncoding,
    BodyUnreadable,
    BodyTimeout,
    BodyBroken,
    PathAmbiguous,
    MethodNotAllowed,
    HostInvalid,
    Malformed,
    HeaderTooLarge,
}

const READ_AGAIN: &str = "Read the resource again, and decide again what to change.";
const READ_FIRST: &str = "Read the resource, and send its ETag in If-Match.";
const CONDITION_FORMS: &str =
    "Send If-Match with the ETag of the version that was read, or If-None-Match: *.";
const SETTLE_EARLIER: &str =
    "Send the same request again later. An operator can settle the earlier write.";
const ASK_AS_BEGUN: &str = "Ask with the credentials of the request that began the saga. The state of a saga that has \
     ended is kept as long as its answer.";
const PATH_AS_DOCUMENTED: &str = "Send the path as it is documented: no path parameters, dot or empty segments or encoded \
     separators, in its letter case.";

impl Refusal {
    /// Returns the kind of this refusal.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Refusal::KeyMissing { .. } => RefusalKind::KeyMissing,
            Refusal::KeyInvalid { .. } => RefusalKind::KeyInvalid,
            Refusal::ScopeMissing { .. } => RefusalKind::ScopeMissing,
            Refusal::ScopeRepeated { .. } => RefusalKind::ScopeRepeated,
            Refusal::ScopeInvalid { expired: false } => RefusalKind::ScopeInvalid,
            Refusal::ScopeInvalid { expired: true } => RefusalKind::ScopeExpired,
            Refusal::ScopeUnavailable => RefusalKind::ScopeUnavailable,
            Refusal::KeyReused { .. } => RefusalKind::KeyReused,
            Refusal::InFlight { .. } => RefusalKind::InFlight,
            Refusal::SagaStuck { .. } => RefusalKind::SagaStuck,
            Refusal::SagaNotFound => RefusalKind::SagaNotFound,
            Refusal::Barred { .. } => RefusalKind::Barred,
            Refusal::OutcomeUncertain { .. } => RefusalKind::OutcomeUncertain,
            Refusal::ResponseNotStored { .. } => RefusalKind::ResponseNotStored,
            Refusal::ResultExpired { .. } => RefusalKind::ResultExpired,
            Refusal::NotSent { .. } => RefusalKind::NotSent,
            Refusal::UpstreamUnreachable { .. } => RefusalKind::UpstreamUnreachable,
            Refusal::UpstreamFailed { timed_out: false } => RefusalKind::UpstreamFailed,
            Refusal::UpstreamFailed { timed_out: true } => RefusalKind::UpstreamTimedOut,
            Refusal::StoreUnavailable { .. } => RefusalKind::StoreUnavailable,
            Refusal::RecordUnreadable { .. } => RefusalKind::RecordUnreadable,
            Refusal::Overloaded => RefusalKind::Overloaded,
            Refusal::QuotaReached { .. } => RefusalKind::QuotaReached,
            Refusal::OutboxFull { .. } => RefusalKind::OutboxFull,
            Refusal::PreconditionFailed { .. } => RefusalKind::PreconditionFailed,
            Refusal::MergeConflict { .. } => RefusalKind::MergeConflict,
            Refusal::PreconditionRequired => RefusalKind::PreconditionRequired,
            Refusal::ConditionInvalid { .. } => RefusalKind::ConditionInvalid,
            Refusal::ResourceBusy { .. } => RefusalKind::ResourceBusy,
            Refusal::ResourceUncertain { .. } => RefusalKind::ResourceUncertain,
            Refusal::ResourceUnreadable => RefusalKind::ResourceUnreadable,
            Refusal::BodyTooLarge { .. } => RefusalKind::BodyTooLarge,
            Refusal::UnsupportedEncoding => RefusalKind::UnsupportedEncoding,
            Refusal::BodyUnreadable => RefusalKind::BodyUnreadable,
            Refusal::BodyTimeout => RefusalKind::BodyTimeout,
            Refusal::BodyBroken => RefusalKind::BodyBroken,
            Refusal::PathAmbiguous => RefusalKind::PathAmbiguous,
            Refusal::MethodNotAllowed => RefusalKind::MethodNotAllowed,
            Refusal::HostInvalid => RefusalKind::HostInvalid,
            Refusal::Malformed { .. } => RefusalKind::Malformed,
            Refusal::HeaderTooLarge { .. } => RefusalKind::HeaderTooLarge,
        }
    }
}

impl RefusalKind {
    /// Returns the short name of the problem: the last part of the problem type, and the name in
    /// the event log. Clients match on it and readers of the log store it, so a name never changes.
    pub fn problem_name(self) -> &'static str {
        match self {
            RefusalKind::KeyMissing => "key-missing",
            RefusalKind::KeyInvalid => "key-invalid",
            RefusalKind::ScopeMissing => "scope-missing",
            RefusalKind::ScopeRepeated | RefusalKind::ScopeInvalid | RefusalKind::ScopeExpired => {
                "scope-invalid"
            }
            RefusalKind::ScopeUnavailable => "scope-unavailable",
            RefusalKind::KeyReused => "key-reused",
            RefusalKind::InFlight => "in-flight",
            RefusalKind::SagaStuck => "saga-stuck",
            RefusalKind::SagaNotFound => "saga-not-found",
            RefusalKind::Barred => "barred",
            RefusalKind::OutcomeUncertain => "outcome-uncertain",
            RefusalKind::ResponseNotStored => "response-not-stored",
            RefusalKind::ResultExpired => "result-expired",
            RefusalKind::NotSent => "not-sent",
            RefusalKind::UpstreamUnreachable => "upstream-unreachable",
            RefusalKind::UpstreamFailed | RefusalKind::UpstreamTimedOut => "upstream-failed",
            RefusalKind::StoreUnavailable | RefusalKind::RecordUnreadable => "store-unavailable",
            RefusalKind::Overloaded | RefusalKind::QuotaReached => "overloaded",
            RefusalKind::OutboxFull => "outbox-full",
            RefusalKind::PreconditionFailed => "precondition-failed",
            RefusalKind::MergeConflict => "merge-conflict",
            RefusalKind::PreconditionRequired => "precondition-required",
            RefusalKind::ConditionInvalid => "condition-invalid",
            RefusalKind::ResourceBusy => "resource-busy",
            RefusalKind::ResourceUncertain => "resource-uncertain",
            RefusalKind::ResourceUnreadable => "resource-unreadable",
            RefusalKind::BodyTooLarge => "body-too-large",
            RefusalKind::UnsupportedEncoding => "unsupported-encoding",
            RefusalKind::BodyUnreadable => "body-unreadable",
            RefusalKind::BodyTimeout | RefusalKind::BodyBroken => "body-incomplete",
            RefusalKind::PathAmbiguous => "path-ambiguous",
            RefusalKind::MethodNotAllowed => "method-not-allowed",
            RefusalKind::HostInvalid => "host-invalid",
            RefusalKind::Malformed => "request-malformed",
            RefusalKind::HeaderTooLarge => "header-too-large",
        }
    }

    /// Returns the status, unless the refusal or its route sets another: see [`Refusal::status`].
    pub fn status(self) -> StatusCode {
        match self {
            RefusalKind::KeyMissing
            | RefusalKind::KeyInvalid
            | RefusalKind::ScopeMissing
            | RefusalKind::ScopeRepeated
            | RefusalKind::BodyUnreadable
            | RefusalKind::BodyBroken
            | RefusalKind::PathAmbiguous
            | RefusalKind::HostInvalid
            | RefusalKind::ConditionInvalid
            | RefusalKind::Malformed => StatusCode::BAD_REQUEST,
            RefusalKind::ScopeInvalid | RefusalKind::ScopeExpired => StatusCode::UNAUTHORIZED,
            RefusalKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            RefusalKind::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            RefusalKind::InFlight
            | RefusalKind::SagaStuck
            | RefusalKind::Barred
            | RefusalKind::OutcomeUncertain
            | RefusalKind::ResponseNotStored
            | RefusalKind::ResourceBusy
            | RefusalKind::ResourceUncertain
            | RefusalKind::ResultExpired => StatusCode::CONFLICT,
            RefusalKind::SagaNotFound => StatusCode::NOT_FOUND,
            RefusalKind::PreconditionFailed | RefusalKind::MergeConflict => {
                StatusCode::PRECONDITION_FAILED
            }
            RefusalKind::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
            RefusalKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            RefusalKind::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            RefusalKind::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            RefusalKind::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            RefusalKind::UpstreamUnreachable
            | RefusalKind::UpstreamFailed
            | RefusalKind::ResourceUnreadable => StatusCode::BAD_GATEWAY,
            RefusalKind::ScopeUnavailable
            | RefusalKind::NotSent
            | RefusalKind::StoreUnavailable
            | RefusalKind::RecordUnreadable
            | RefusalKind::Overloaded
            | RefusalKind::QuotaReached
            | RefusalKind::OutboxFull => StatusCode::SERVICE_UNAVAILABLE,
            RefusalKind::UpstreamTimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Returns the title of the problem document.
    pub fn title(self) -> &'static str {
        match self {
            RefusalKind::KeyMissing => "An idempotency key is required",
            RefusalKind::KeyInvalid => "The idempotency key is not valid",
            RefusalKind::ScopeMissing | RefusalKind::ScopeRepeated => {
                "The owner of the idempotency key is not clear"
            }
            RefusalKind::ScopeInvalid | RefusalKind::ScopeExpired => {
                "The owner of the idempotency key is not proven"
            }
            RefusalKind::ScopeUnavailable => "Tokens can't be verified right now",
            RefusalKind::KeyReused => "The idempotency key was used before",
            RefusalKind::InFlight => "The first request is still being processed",
            RefusalKind::SagaStuck => "The first request began a saga that is stuck",
            RefusalKind::SagaNotFound => "The saga is not known",
            RefusalKind::Barred => "The step may not run",
            RefusalKind::OutcomeUncertain => "It is not known whether the request was executed",
            RefusalKind::ResponseNotStored => {
                "The request was executed, and its response was not kept"
            }
            RefusalKind::ResultExpired => {
                "The request was executed, and its result is no longer kept"
            }
            RefusalKind::NotSent => "The request was not sent",
            RefusalKind::UpstreamUnreachable => "The upstream cannot be reached",
            RefusalKind::UpstreamFailed | RefusalKind::UpstreamTimedOut => "The upstream failed",
            RefusalKind::StoreUnavailable => "Idempotency can't be guaranteed right now",
            RefusalKind::RecordUnreadable => "The record of this request can't be read",
            RefusalKind::Overloaded => "Too many requests at once",
            RefusalKind::QuotaReached => "Too many new operations",
            RefusalKind::OutboxFull => "Too many undelivered events",
            RefusalKind::PreconditionFailed => "The resource has another version",
            RefusalKind::MergeConflict => "The resource has changed in the same members",
            RefusalKind::PreconditionRequired => "A condition is required",
            RefusalKind::ConditionInvalid => "The condition is not valid",
            RefusalKind::ResourceBusy => "The resource is being written",
            RefusalKind::ResourceUncertain => {
                "It is not known whether an earlier write was executed"
            }
            RefusalKind::ResourceUnreadable => "The resource can't be read",
            RefusalKind::BodyTooLarge => "The request body is too large",
            RefusalKind::UnsupportedEncoding => "The request body can't be decoded",
            RefusalKind::BodyUnreadable => "The request body can't be read",
            RefusalKind::BodyTimeout | RefusalKind::BodyBroken => "The request body is incomplete",
            RefusalKind::PathAmbiguous => "The path can be read in two ways",
            RefusalKind::MethodNotAllowed => "The method is not forwarded",
            RefusalKind::HostInvalid => "The Host field is not valid",
            RefusalKind::Malformed => "The request is malformed",
            RefusalKind::HeaderTooLarge => "The header block is too large",
        }
    }

    /// Returns the advice to the client: whether it may send the same request again, and what to
    /// change.
    pub fn advice(self) -> &'static str {
        match self {
            RefusalKind::KeyMissing => {
                "Add it, and use the same one for every retry of this request."
            }
            RefusalKind::KeyInvalid => "Send one key, for example a UUID.",
            RefusalKind::ScopeMissing => "Add it: it names the account.",
            RefusalKind::ScopeRepeated => "Send it once.",
            RefusalKind::ScopeInvalid | RefusalKind::ScopeExpired => {
                "Get a new token, and send the same request with it."
            }
            RefusalKind::KeyReused => {
                "Use a new key for a new request; send a retry unchanged and with the same \
                 credentials."
            }
            RefusalKind::OutcomeUncertain => {
                "Don't repeat it under another key: ask the operator, who can settle the \
                 operation, or look the payment up."
            }
            RefusalKind::ResponseNotStored | RefusalKind::ResultExpired => {
                "Don't repeat it: look its result up."
            }
            RefusalKind::SagaStuck => {
                "Send the same request again later: an operator has to decide, or an upstream has \
                 to become available."
            }
            RefusalKind::SagaNotFound => ASK_AS_BEGUN,
            RefusalKind::Barred => "Don't send it again.",
            RefusalKind::NotSent => "Send the same request again.",
            RefusalKind::ScopeUnavailable
            | RefusalKind::InFlight
            | RefusalKind::UpstreamUnreachable
            | RefusalKind::StoreUnavailable
            | RefusalKind::ResourceBusy
            | RefusalKind::ResourceUnreadable
            | RefusalKind::Overloaded => "Send the same request again later.",
            RefusalKind::UpstreamFailed | RefusalKind::UpstreamTimedOut => {
                "The method is safe to repeat: send the same request again later."
            }
            RefusalKind::RecordUnreadable => {
                "Ask the operator; the same request may be sent again and will not run twice."
            }
            RefusalKind::QuotaReached | RefusalKind::OutboxFull => {
                "Send the same request again later; retries of answered requests still get their \
                 answers."
            }
            RefusalKind::PreconditionFailed | RefusalKind::MergeConflict => READ_AGAIN,
            RefusalKind::PreconditionRequired => READ_FIRST,
            RefusalKind::ConditionInvalid => CONDITION_FORMS,
            RefusalKind::ResourceUncertain => SETTLE_EARLIER,
            RefusalKind::BodyTooLarge => "Send a smaller one.",
            RefusalKind::UnsupportedEncoding => {
                "Send it in gzip, deflate, br or zstd, or without Content-Encoding."
            }
            RefusalKind::BodyUnreadable => {
                "Nothing was forwarded; send one JSON document (RFC 8259) in UTF-8, at most 128 \
                 levels deep."
            }
            RefusalKind::BodyTimeout | RefusalKind::BodyBroken => {
                "Nothing was forwarded; send the whole request again."
            }
            RefusalKind::PathAmbiguous => PATH_AS_DOCUMENTED,
            RefusalKind::MethodNotAllowed => "Use another method.",
            RefusalKind::HostInvalid => "Send exactly one Host field.",
            RefusalKind::Malformed => {
                "It may be an attack, or come from a broken client or proxy; an HTTP/1.1 \
                 connection is closed."
            }
            RefusalKind::HeaderTooLarge => "Send fewer and shorter fields.",
        }
    }

    /// Returns the label under which the metrics count the response.
    pub fn answer(self) -> Answer {
        match self {
            RefusalKind::KeyMissing => Answer::KeyMissing,
            RefusalKind::KeyInvalid => Answer::KeyInvalid,
            RefusalKind::ScopeMissing => Answer::ScopeMissing,
            RefusalKind::ScopeRepeated | RefusalKind::ScopeInvalid | RefusalKind::ScopeExpired => {
                Answer::ScopeInvalid
            }
            RefusalKind::ScopeUnavailable => Answer::ScopeUnavailable,
            RefusalKind::KeyReused => Answer::KeyReused,
            RefusalKind::InFlight => Answer::InFlight,
            RefusalKind::SagaStuck => Answer::SagaStuck,
            RefusalKind::OutcomeUncertain => Answer::Uncertain,
            RefusalKind::ResponseNotStored => Answer::ResponseNotStored,
            RefusalKind::ResultExpired => Answer::ResultExpired,
            RefusalKind::NotSent | RefusalKind::Barred => Answer::NotSent,
            RefusalKind::UpstreamUnreachable
            | RefusalKind::UpstreamFailed
            | RefusalKind::UpstreamTimedOut => Answer::UpstreamUnreachable,
            RefusalKind::StoreUnavailable | RefusalKind::RecordUnreadable => {
                Answer::StoreUnavailable
            }
            RefusalKind::Overloaded | RefusalKind::QuotaReached => Answer::Overloaded,
            RefusalKind::OutboxFull => Answer::OutboxFull,
            RefusalKind::PreconditionFailed | RefusalKind::MergeConflict => {
                Answer::PreconditionFailed
            }
            RefusalKind::PreconditionRequired => Answer::PreconditionRequired,
            RefusalKind::ResourceBusy => Answer::ResourceBusy,
            RefusalKind::ResourceUncertain => Answer::ResourceUncertain,
            RefusalKind::ResourceUnreadable => Answer::ResourceUnreadable,
            RefusalKind::BodyTooLarge => Answer::BodyTooLarge,
            RefusalKind::BodyUnreadable => Answer::BodyUnreadable,
            RefusalKind::BodyTimeout | RefusalKind::BodyBroken => Answer::BodyIncomplete,
            RefusalKind::UnsupportedEncoding
            | RefusalKind::PathAmbiguous
            | RefusalKind::MethodNotAllowed
            | RefusalKind::HostInvalid
            | RefusalKind::Malformed
            | RefusalKind::SagaNotFound
            | RefusalKind::ConditionInvalid
            | RefusalKind::HeaderTooLarge => Answer::BadRequest,
        }
    }

    /// Returns the metric label for an unidentified request of a shadow route that enforcing would
    /// have refused. Kinds that no such request can have share the label "refuse".
    pub fn would_refuse(self) -> &'static str {
        match self {
            RefusalKind::KeyMissing => "refuse_key_missing",
            RefusalKind::KeyInvalid => "refuse_key_invalid",
            RefusalKind::ScopeMissing => "refuse_scope_missing",
            RefusalKind::ScopeRepeated | RefusalKind::ScopeInvalid | RefusalKind::ScopeExpired => {
                "refuse_scope_invalid"
            }
            RefusalKind::ScopeUnavailable => "refuse_scope_unavailable",
            RefusalKind::UnsupportedEncoding => "refuse_unsupported_encoding",
            RefusalKind::BodyUnreadable => "refuse_body_unreadable",
            RefusalKind::KeyReused
            | RefusalKind::InFlight
            | RefusalKind::SagaStuck
            | RefusalKind::SagaNotFound
            | RefusalKind::Barred
            | RefusalKind::OutcomeUncertain
            | RefusalKind::ResponseNotStored
            | RefusalKind::ResultExpired
            | RefusalKind::NotSent
            | RefusalKind::UpstreamUnreachable
            | RefusalKind::UpstreamFailed
            | RefusalKind::UpstreamTimedOut
            | RefusalKind::StoreUnavailable
            | RefusalKind::RecordUnreadable
            | RefusalKind::Overloaded
            | RefusalKind::QuotaReached
            | RefusalKind::OutboxFull
            | RefusalKind::PreconditionFailed
            | RefusalKind::MergeConflict
            | RefusalKind::PreconditionRequired
            | RefusalKind::ConditionInvalid
            | RefusalKind::ResourceBusy
            | RefusalKind::ResourceUncertain
            | RefusalKind::ResourceUnreadable
            | RefusalKind::BodyTooLarge
            | RefusalKind::BodyTimeout
            | RefusalKind::BodyBroken
            | RefusalKind::PathAmbiguous
            | RefusalKind::MethodNotAllowed
            | RefusalKind::HostInvalid
            | RefusalKind::Malformed
            | RefusalKind::HeaderTooLarge => "refuse",
        }
    }

    /// Returns whether the event log records a duplicate, or an unidentified request, with this
    /// refusal. The other refusals are about the state of the gateway, its store or its upstream,
    /// or concern no operation.
    pub fn is_observed(self) -> bool {
        match self {
            RefusalKind::KeyMissing
            | RefusalKind::KeyInvalid
            | RefusalKind::ScopeMissing
            | RefusalKind::ScopeRepeated
            | RefusalKind::ScopeInvalid
            | RefusalKind::ScopeExpired
            | RefusalKind::KeyReused
            | RefusalKind::InFlight
            | RefusalKind::SagaStuck
            | RefusalKind::OutcomeUncertain
            | RefusalKind::ResponseNotStored
            | RefusalKind::ResultExpired
            | RefusalKind::UnsupportedEncoding
            | RefusalKind::BodyUnreadable => true,
            RefusalKind::ScopeUnavailable
            | RefusalKind::SagaNotFound
            | RefusalKind::Barred
            | RefusalKind::NotSent
            | RefusalKind::UpstreamUnreachable
            | RefusalKind::UpstreamFailed
            | RefusalKind::UpstreamTimedOut
            | RefusalKind::StoreUnavailable
            | RefusalKind::RecordUnreadable
            | RefusalKind::Overloaded
            | RefusalKind::QuotaReached
            | RefusalKind::OutboxFull
            | RefusalKind::PreconditionFailed
            | RefusalKind::MergeConflict
            | RefusalKind::PreconditionRequired
            | RefusalKind::ConditionInvalid
            | RefusalKind::ResourceBusy
            | RefusalKind::ResourceUncertain
            | RefusalKind::ResourceUnreadable
            | RefusalKind::BodyTooLarge
            | RefusalKind::BodyTimeout
            | RefusalKind::BodyBroken
            | RefusalKind::PathAmbiguous
            | RefusalKind::MethodNotAllowed
            | RefusalKind::HostInvalid
            | RefusalKind::Malformed
            | RefusalKind::HeaderTooLarge => false,
        }
    }
}
