//! The contract between the gate and the service that forwards its requests: how forwarding fails,
//! and which upstream a request is for.

use crate::record::AnswerFault;
use crate::refusal::Refusal;

/// Any error of a body or a service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The upstream of a request, as an index into the configured upstreams. The layer puts it into the
/// request's extensions, and the forwarding service reads it there. A request without an index goes
/// to the first upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpstreamIndex(pub usize);

/// How forwarding failed. The service inside the gate returns this error. Any other error counts as
/// [`ForwardError::Broken`], because it does not show whether the request was executed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No byte of the request was written: the connection was refused, there was no network route,
    /// TLS failed, or a pooled connection was closed.
    #[error("the upstream cannot be reached: {0}")]
    NeverSent(String),
    /// The send rule failed before the first byte.
    #[error("the claim was too old to send on")]
    TooLate,
    /// The connection broke, or the answer was not HTTP, after a byte was written.
    #[error("the upstream broke off: {0}")]
    Broken(String),
    /// The upstream answered, but the answer can't be read. Contains the reason and the error text
    /// of the reader.
    #[error("{fault}: {text}", fault = .0.describe(), text = .1)]
    Unreadable(AnswerFault, String),
    /// No answer in time, after a byte was written.
    #[error("the upstream did not answer in time")]
    TimedOut,
}

impl ForwardError {
    /// Converts the error of a service. A `ForwardError` stays as it is, and any other error
    /// becomes [`ForwardError::Broken`].
    pub fn of(error: BoxError) -> ForwardError {
        match error.downcast::<ForwardError>() {
            Ok(known) => *known,
            Err(error) => ForwardError::Broken(error.to_string()),
        }
    }

    /// Returns the refusal of a request that no key protects. `idempotent` is whether the method of
    /// the request is idempotent (RFC 9110, section 9.2.2).
    pub fn unprotected(self, idempotent: bool) -> Refusal {
        match self {
            ForwardError::NeverSent(_) | ForwardError::TooLate => {
                Refusal::UpstreamUnreachable { slot: None }
            }
            ForwardError::Broken(_) | ForwardError::Unreadable(..) | ForwardError::TimedOut
                if idempotent =>
            {
                Refusal::UpstreamFailed { timed_out: matches!(self, ForwardError::TimedOut) }
            }
            ForwardError::Broken(_) | ForwardError::Unreadable(..) => {
                Refusal::OutcomeUncertain { slot: None, status: Some(502), retry_after: None }
            }
            ForwardError::TimedOut => {
                Refusal::OutcomeUncertain { slot: None, status: Some(504), retry_after: None }
            }
        }
    }
}
