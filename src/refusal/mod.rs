//! A refusal: the reason why a request gets neither the upstream's response nor a stored reply.
//!
//! The set is closed. [`RefusalKind`] has one exhaustive look-up for each property of a refusal, so
//! a new reason does not compile before its name, status, advice, metric and vendor codes are
//! decided. `http` renders refusals as problem documents, `vendor_errors` in the formats of payment
//! vendors.

// A look-up with a wildcard arm would classify a new reason silently.
#![warn(clippy::wildcard_enum_match_arm)]

mod body_kind;
mod explanation;
mod failed_condition;
mod http;
mod key_fault;
mod kind;
mod malformation;
mod vendor_errors;

use std::time::Duration;

use ::http::StatusCode;

use crate::engine::{DuplicateRefusal, EntityTag, InvalidCondition};
use crate::key::Slot;
pub use body_kind::BodyKind;
pub use explanation::Explanation;
pub use failed_condition::FailedCondition;
pub use http::{ALLOWED_METHODS, RefusalRenderer, RefusalStyle, SAGAS_PATH, saga_location};
pub use key_fault::KeyFault;
pub use kind::RefusalKind;
pub use malformation::Malformation;

/// Why a request is answered neither by the upstream nor with a stored reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key, or a part of a derived key, is missing.
    #[error(
        "{what} is required and missing{}",
        .body.map(|kind| format!("; {kind}")).unwrap_or_default()
    )]
    KeyMissing {
        /// The missing part, in words.
        what: String,
        /// The kind of the body that was searched for the key; `None` if the body was not read for
        /// it.
        body: Option<BodyKind>,
    },
    /// The key is malformed.
    #[error("the idempotency key {why}")]
    KeyInvalid {
        /// The fault of the key.
        why: KeyFault,
    },
    /// A part of the request that the scope is computed from is missing.
    #[error("{what}, which names the owner of this request, is missing")]
    ScopeMissing {
        /// The missing part, in words.
        what: String,
    },
    /// The request has more than one value of the scope's header field, or of the cookie for the
    /// scope or the caller.
    #[error("{what}, which names the owner of this request, is given more than once")]
    ScopeRepeated {
        /// The repeated part, in words.
        what: String,
    },
    /// The token with the scope has expired or is not valid.
    #[error(
        "the token, which names the owner of this key, {}",
        if *.expired { "has expired" } else { "is not valid" }
    )]
    ScopeInvalid {
        /// Whether the token has expired. Clients get no more detail: it would help only those who
        /// forge tokens.
        expired: bool,
    },
    /// The keys that verify tokens are not loaded yet.
    #[error(
        "the token, which names the owner of this key, cannot be verified yet; \
         nothing was sent to the upstream"
    )]
    ScopeUnavailable,
    /// The key was used for another request, or by another caller.
    #[error("this idempotency key was already used for another request, or by another caller")]
    KeyReused {
        /// The operation.
        slot: Slot,
        /// Facts about the first request, if it had the same caller and the route explains
        /// refusals.
        explained: Option<Box<Explanation>>,
    },
    /// The first request is still running.
    #[error("the first request with this key is still being processed")]
    InFlight {
        /// The operation.
        slot: Slot,
        /// How long to wait before the next try.
        retry_after: Duration,
        /// Whether the operation is a saga. The response then has its location.
        saga: bool,
    },
    /// The saga of the first request waits for a person, or for an upstream.
    #[error("the saga that the first request with this key began is stuck")]
    SagaStuck {
        /// The saga.
        slot: Slot,
        /// The operation of the step that the saga waits for; `None` if it is not known.
        held: Option<Slot>,
    },
    /// The client asks for a saga that does not exist, or for the saga of another client.
    #[error("there is no saga with this id")]
    SagaNotFound,
    /// The operation of a saga's step may not run. No client's request gets this refusal.
    #[error("the saga of this step has gone back")]
    Barred {
        /// The operation.
        slot: Slot,
    },
    /// The upstream may or may not have executed the request.
    #[error("it is not known whether the upstream executed this request")]
    OutcomeUncertain {
        /// The operation; `None` for an unprotected request with a method that is not idempotent.
        slot: Option<Slot>,
        /// The status, if the refusal comes from the attempt itself: the upstream's own status, or
        /// 502 or 504 from the gateway. `None` for a duplicate, which gets 409.
        status: Option<u16>,
        /// How long to wait before sending the same request again; `None` if the client must not
        /// send it again.
        retry_after: Option<Duration>,
    },
    /// The first request was answered, and the response was not stored.
    #[error("the first request was answered with status {status}, and that response was not kept")]
    ResponseNotStored {
        /// The operation.
        slot: Slot,
        /// The original status.
        status: u16,
    },
    /// The result was kept for its retention and is gone.
    #[error("the result of this key was kept for as long as promised, and is gone")]
    ResultExpired {
        /// The operation.
        slot: Slot,
    },
    /// The attempt was given up before its first byte was sent.
    #[error("the request was not sent to the upstream, because its claim had grown too old")]
    NotSent {
        /// The operation.
        slot: Slot,
    },
    /// No connection to the upstream.
    #[error("the upstream cannot be reached; nothing was sent to it")]
    UpstreamUnreachable {
        /// The operation, if a key protects it.
        slot: Option<Slot>,
    },
    /// An unprotected request with an idempotent method failed after it was sent.
    #[error("the upstream broke off or did not answer in time")]
    UpstreamFailed {
        /// Whether the failure was a timeout.
        timed_out: bool,
    },
    /// The store does not answer.
    #[error("the store of idempotency records is unavailable; nothing was sent to the upstream")]
    StoreUnavailable {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// The record exists and can't be read: it is neither replayed nor run again.
    #[error("the stored record of this request cannot be read; nothing was sent to the upstream")]
    RecordUnreadable {
        /// The operation.
        slot: Slot,
    },
    /// A limit is reached.
    #[error("too many requests at once")]
    Overloaded,
    /// The tenant has begun as many operations as its quota allows.
    #[error(
        "as many new operations were begun as one account may begin; \
         nothing was sent to the upstream"
    )]
    QuotaReached {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// A sink of the route has as many events as it may have.
    #[error(
        "as many events wait for a receiver of this route as may wait; \
         nothing was sent to the upstream"
    )]
    OutboxFull {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// The condition of the request is false for the current version of the resource.
    #[error("{why}")]
    PreconditionFailed {
        /// The tag of the current version.
        current: Option<EntityTag>,
        /// The condition that is false.
        why: FailedCondition,
    },
    /// Another write has changed members that this patch changes.
    #[error(
        "the resource has changed, also in members that this patch changes; the write was not sent \
         to the upstream"
    )]
    MergeConflict {
        /// The tag of the current version.
        current: EntityTag,
        /// Pointers to these members.
        members: Vec<String>,
    },
    /// A write on a resource has no condition.
    #[error(
        "a write on this resource needs If-Match with the tag of the version that it changes, or \
         If-None-Match: * to create it; nothing was sent to the upstream"
    )]
    PreconditionRequired,
    /// The condition of a write can't be evaluated.
    #[error("the request {why}; nothing was sent to the upstream")]
    ConditionInvalid {
        /// The fault.
        why: InvalidCondition,
    },
    /// Another write holds the lock of the resource.
    #[error("another write on this resource is being executed; nothing was sent to the upstream")]
    ResourceBusy {
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// The outcome of an earlier write on the resource is not known, and it may still be executed.
    #[error(
        "the outcome of an earlier write on this resource is not known, and it may still be \
         executed; nothing was sent to the upstream"
    )]
    ResourceUncertain {
        /// The operation of the earlier write.
        slot: Slot,
        /// How long to wait before the next try.
        retry_after: Duration,
    },
    /// The current version of the resource can't be read.
    #[error(
        "the current version of the resource cannot be read and compared; the write was not sent"
    )]
    ResourceUnreadable,
    /// The request body is too large to be protected.
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The key is in the body, and the content coding of the body can't be decoded.
    #[error(
        "the idempotency key is read from the request body, and its Content-Encoding is unknown, \
         broken, or too large when decoded"
    )]
    UnsupportedEncoding,
    /// The key is in the body, which claims to be JSON and can't be read as JSON.
    #[error(
        "the idempotency key is read from the request body, and the body can't be read as JSON"
    )]
    BodyUnreadable,
    /// The request body did not arrive in time.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The request body broke off.
    #[error("the request body broke off")]
    BodyBroken,
    /// An upstream could read the path as another path.
    #[error(
        "the path can be read as the path of another, protected resource (path parameters, dot or \
         empty segments, encoded separators, letter case)"
    )]
    PathAmbiguous,
    /// The gateway does not forward this method.
    #[error("the method is not forwarded")]
    MethodNotAllowed,
    /// The `Host` field is missing, repeated, malformed, or differs from the host of the target.
    #[error(
        "the request needs exactly one well-formed Host field, and no other host in its target"
    )]
    HostInvalid,
    /// The request's bytes are not HTTP, or two parsers could interpret them differently.
    #[error("{why}")]
    Malformed {
        /// The fault of the bytes.
        why: Malformation,
    },
    /// The header block is too large, or has too many or too long fields.
    #[error("the header block is larger than {limit} bytes, or has too many or too long fields")]
    HeaderTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

impl From<InvalidCondition> for Refusal {
    fn from(why: InvalidCondition) -> Refusal {
        Refusal::ConditionInvalid { why }
    }
}

impl From<Malformation> for Refusal {
    fn from(why: Malformation) -> Refusal {
        Refusal::Malformed { why }
    }
}

impl Refusal {
    /// Returns the refusal of a duplicate, with the operation it concerns.
    pub(crate) fn of_refusal(refusal: DuplicateRefusal, slot: Slot) -> Refusal {
        match refusal {
            DuplicateRefusal::KeyReused => Refusal::KeyReused { slot, explained: None },
            DuplicateRefusal::InFlight { retry_after, saga } => {
                Refusal::InFlight { slot, retry_after, saga }
            }
            DuplicateRefusal::SagaStuck => Refusal::SagaStuck { slot, held: None },
            DuplicateRefusal::Barred => Refusal::Barred { slot },
            DuplicateRefusal::OutcomeUncertain { retry_after } => {
                Refusal::OutcomeUncertain { slot: Some(slot), status: None, retry_after }
            }
            DuplicateRefusal::ResponseNotStored { status } => {
                Refusal::ResponseNotStored { slot, status }
            }
            DuplicateRefusal::Unreadable => Refusal::RecordUnreadable { slot },
            DuplicateRefusal::ResultExpired => Refusal::ResultExpired { slot },
            DuplicateRefusal::NotSent => Refusal::NotSent { slot },
        }
    }

    /// Returns the operation that the refusal concerns, if it is known.
    pub fn operation(&self) -> Option<Slot> {
        match self {
            Refusal::KeyReused { slot, .. }
            | Refusal::InFlight { slot, .. }
            | Refusal::SagaStuck { slot, .. }
            | Refusal::Barred { slot }
            | Refusal::ResponseNotStored { slot, .. }
            | Refusal::ResultExpired { slot }
            | Refusal::RecordUnreadable { slot }
            | Refusal::ResourceUncertain { slot, .. }
            | Refusal::NotSent { slot } => Some(*slot),
            Refusal::OutcomeUncertain { slot, .. } | Refusal::UpstreamUnreachable { slot } => *slot,
            Refusal::KeyMissing { .. }
            | Refusal::KeyInvalid { .. }
            | Refusal::ScopeMissing { .. }
            | Refusal::ScopeRepeated { .. }
            | Refusal::ScopeInvalid { .. }
            | Refusal::ScopeUnavailable
            | Refusal::UpstreamFailed { .. }
            | Refusal::StoreUnavailable { .. }
            | Refusal::Overloaded
            | Refusal::QuotaReached { .. }
            | Refusal::OutboxFull { .. }
            | Refusal::SagaNotFound
            | Refusal::PreconditionFailed { .. }
            | Refusal::MergeConflict { .. }
            | Refusal::PreconditionRequired
            | Refusal::ConditionInvalid { .. }
            | Refusal::ResourceBusy { .. }
            | Refusal::ResourceUnreadable
            | Refusal::BodyTooLarge { .. }
            | Refusal::UnsupportedEncoding
            | Refusal::BodyUnreadable
            | Refusal::BodyTimeout
            | Refusal::BodyBroken
            | Refusal::PathAmbiguous
            | Refusal::MethodNotAllowed
            | Refusal::HostInvalid
            | Refusal::Malformed { .. }
            | Refusal::HeaderTooLarge { .. } => None,
        }
    }

    /// Returns the saga that the refusal concerns.
    pub fn saga(&self) -> Option<Slot> {
        let (Refusal::InFlight { slot, saga: true, .. } | Refusal::SagaStuck { slot, .. }) = self
        else {
            return None;
        };
        Some(*slot)
    }

    /// Returns the status of the response. `mismatch_status` is the route's status for a reused
    /// key.
    pub fn status(&self, mismatch_status: StatusCode) -> StatusCode {
        if matches!(self, Refusal::KeyReused { .. }) {
            return mismatch_status;
        }
        if let Refusal::OutcomeUncertain { status: Some(status), .. } = self
            && let Ok(status) = StatusCode::from_u16(*status)
        {
            return status;
        }
        self.kind().status()
    }

    /// Returns the status and the problem name that the event log records for a refused duplicate,
    /// or for a request that could not be identified. `None` where the refusal is about the gateway
    /// rather than about the request.
    pub fn observed(&self, mismatch_status: StatusCode) -> Option<(StatusCode, &'static str)> {
        // An attempt's own uncertain outcome is an event of its operation already.
        let is_an_attempt = matches!(self, Refusal::OutcomeUncertain { status: Some(_), .. });
        let kind = self.kind();
        (kind.is_observed() && !is_an_attempt)
            .then(|| (self.status(mismatch_status), kind.problem_name()))
    }

    /// Returns the places where the request differs from the first one with its key, as far as the
    /// client may know.
    pub fn differing(&self) -> &[String] {
        let Refusal::KeyReused { explained: Some(explained), .. } = self else { return &[] };
        explained.differing.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
