//! The contract between the gate and the service that forwards its requests: how forwarding fails,
//! and which upstream a request is for.

use crate::record::AnswerFault;
use crate::refusal::Refusal;

/// Any error of a body or a service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The upstream of a request, as an index into the configured ones. The layer puts it into the
/// request's extensions, where the forwarding service reads it; a request without one goes to the
/// first upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpstreamIndex(pub usize);

/// How forwarding failed. A service inside the gate returns this; any other error counts as
/// [`ForwardError::Broken`], because it does not state whether the request was executed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No byte of the request was written: refused, no route, TLS failure, or a pooled connection
    /// that was closed.
    #[error("the upstream cannot be reached: {0}")]
    NeverSent(String),
    /// The send rule failed before the first byte.
    #[error("the claim was too old to send on")]
    TooLate,
    /// The connection broke, or the answer was not HTTP, after a byte was written.
    #[error("the upstream broke off: {0}")]
    Broken(String),
    /// The upstream answered, and the answer can't be read: the reason, and the reader's error
    /// text.
    #[error("{fault}: {text}", fault = .0.describe(), text = .1)]
    Unreadable(AnswerFault, String),
    /// No answer in time, after a byte was written.
    #[error("the upstream did not answer in time")]
    TimedOut,
}

impl ForwardError {
    /// Returns the error of a service: itself if it is a `ForwardError`, else
    /// [`ForwardError::Broken`].
    pub fn of(error: BoxError) -> ForwardError {
        match error.downcast::<ForwardError>() {
            Ok(known) => *known,
            Err(error) => ForwardError::Broken(error.to_string()),
        }
    }

    /// Returns the refusal of a request that no key protects. `idempotent`: by its method (RFC
    /// 9110, section 9.2.2).
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
