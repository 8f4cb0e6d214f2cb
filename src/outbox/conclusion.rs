//! What an attempt means for its event.

use std::time::Duration;

use bytes::Bytes;

use super::delivery::AttemptResult;
use crate::store::dead_letters::DeadLetterKind;

/// The beginning of the error of a dead letter: its call began, and nobody knows its outcome any
/// more.
pub const OUTCOME_EXPIRED: &str = "outcome-expired";

/// What an attempt means for its event.
#[derive(Debug, PartialEq)]
pub(super) enum Conclusion {
    /// The receiver has the event.
    Delivered,
    /// The receiver has the event, and refused it: another event about the refusal follows.
    Refused,
    /// The attempt failed. It is repeated by the sink's rule.
    Retry {
        /// What happened.
        report: FailureReport,
        /// How long the receiver wants to get nothing.
        retry_after: Option<Duration>,
    },
    /// The outcome is open. The event waits, and neither its attempts nor its age count.
    Wait {
        /// The pause until the next look.
        pause: Duration,
    },
    /// The event becomes a dead letter.
    Bury {
        /// Why.
        kind: DeadLetterKind,
        /// What happened.
        report: FailureReport,
    },
    /// The event does not wait any more, or this relay does not own the partition any more. It
    /// writes nothing.
    Gone,
    /// A store call failed, and nothing was sent. The event is due again.
    StoreAway,
}

/// What happened in a failed attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FailureReport {
    /// The status of the answer.
    pub status: Option<u16>,
    /// The first bytes of the answer.
    pub answer: Option<Bytes>,
    /// What happened, in words. It names no secret and no value of the event.
    pub error: Option<String>,
    /// Whether the gateway could not send it, and the receiver had no part in that.
    pub is_own: bool,
}

impl FailureReport {
    /// Returns the report of a failure of the gateway itself.
    pub fn of_own_error(error: String) -> FailureReport {
        FailureReport { is_own: true, ..FailureReport::of_error(error) }
    }

    /// Returns the report of a failure without an answer.
    pub fn of_error(error: String) -> FailureReport {
        FailureReport { error: Some(error), ..FailureReport::default() }
    }
}

impl Conclusion {
    /// Returns that the event can never be sent.
    pub fn unsendable(error: String) -> Conclusion {
        let report = FailureReport::of_error(error);
        Conclusion::Bury { kind: DeadLetterKind::Gateway, report }
    }

    /// Returns that a call began, and nobody can know its outcome any more.
    pub fn outcome_expired(operation: &str) -> Conclusion {
        Conclusion::unsendable(format!(
            "{OUTCOME_EXPIRED}: the call {operation} began, and its record is gone: look at the \
             called system, and requeue with --again only if it did not execute the call"
        ))
    }
}

impl From<AttemptResult> for Conclusion {
    fn from(result: AttemptResult) -> Conclusion {
        match result {
            AttemptResult::Delivered { .. } => Conclusion::Delivered,
            AttemptResult::Refused { status, answer, retry_after } => {
                let (status, answer) = (Some(status), Some(answer));
                Conclusion::Retry {
                    report: FailureReport { status, answer, ..FailureReport::default() },
                    retry_after,
                }
            }
            AttemptResult::Failed { error } => {
                Conclusion::Retry { report: FailureReport::of_error(error), retry_after: None }
            }
        }
    }
}
