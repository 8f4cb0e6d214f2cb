//! The outcomes of requests, as metrics count them.

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the values of the label `outcome`.
pub enum Answer {
    Executed,
    Replayed,
    Released,
    Uncertain,
    InFlight,
    KeyReused,
    KeyMissing,
    KeyInvalid,
    ScopeMissing,
    ScopeInvalid,
    ScopeUnavailable,
    ResponseNotStored,
    ResultExpired,
    NotSent,
    UpstreamUnreachable,
    StoreUnavailable,
    Overloaded,
    OutboxFull,
    BodyTooLarge,
    BodyIncomplete,
    BodyUnreadable,
    BadRequest,
    Passed,
    Published,
    Unprotected,
}

impl Answer {
    pub(super) const ALL: [Answer; 25] = [
        Answer::Executed,
        Answer::Replayed,
        Answer::Released,
        Answer::Uncertain,
        Answer::InFlight,
        Answer::KeyReused,
        Answer::KeyMissing,
        Answer::KeyInvalid,
        Answer::ScopeMissing,
        Answer::ScopeInvalid,
        Answer::ScopeUnavailable,
        Answer::ResponseNotStored,
        Answer::ResultExpired,
        Answer::NotSent,
        Answer::UpstreamUnreachable,
        Answer::StoreUnavailable,
        Answer::Overloaded,
        Answer::OutboxFull,
        Answer::BodyTooLarge,
        Answer::BodyIncomplete,
        Answer::BodyUnreadable,
        Answer::BadRequest,
        Answer::Passed,
        Answer::Published,
        Answer::Unprotected,
    ];

    /// Returns the label's value.
    pub fn name(self) -> &'static str {
        match self {
            Answer::Executed => "executed",
            Answer::Replayed => "replayed",
            Answer::Released => "released",
            Answer::Uncertain => "uncertain",
            Answer::InFlight => "in_flight",
            Answer::KeyReused => "key_reused",
            Answer::KeyMissing => "key_missing",
            Answer::KeyInvalid => "key_invalid",
            Answer::ScopeMissing => "scope_missing",
            Answer::ScopeInvalid => "scope_invalid",
            Answer::ScopeUnavailable => "scope_unavailable",
            Answer::ResponseNotStored => "response_not_stored",
            Answer::ResultExpired => "result_expired",
            Answer::NotSent => "not_sent",
            Answer::UpstreamUnreachable => "upstream_unreachable",
            Answer::StoreUnavailable => "store_unavailable",
            Answer::Overloaded => "overloaded",
            Answer::OutboxFull => "outbox_full",
            Answer::BodyTooLarge => "body_too_large",
            Answer::BodyIncomplete => "body_incomplete",
            Answer::BodyUnreadable => "body_unreadable",
            Answer::BadRequest => "bad_request",
            Answer::Passed => "passed",
            Answer::Published => "published",
            Answer::Unprotected => "unprotected",
        }
    }
}
