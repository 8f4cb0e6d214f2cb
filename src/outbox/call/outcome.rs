//! What the outcome of a call means for its event: pure functions.

use std::time::Duration;

use bytes::Bytes;

use super::note::CallNote;
use crate::gate::CallOutcome;
use crate::outbox::conclusion::{Conclusion, FailureReport};
use crate::outbox::delivery::ANSWER_KEPT_MAX;
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::store::dead_letters::DeadLetterKind;

/// Pauses between two looks at an operation without an outcome: the shortest and the longest. An
/// operator may settle the operation at any time.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(30);
/// The pause is this part of the event's age, between the two.
const LOOKS_PER_AGE: u32 = 8;

/// Pause after a call that a shutdown prevented. Another gateway takes over sooner or later.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);

/// What an outcome means for the event and for the note.
#[derive(Debug, PartialEq)]
pub(super) struct CallConclusion {
    pub conclusion: Conclusion,
    pub change: NoteChange,
}

/// A change of the note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoteChange {
    /// None: the round began.
    Keep,
    /// The operation was not executed.
    TakeBack,
    /// The gateway refused the call, before it looked for the operation.
    Refuse,
    /// The outcome can't be known any more.
    Expire,
}

/// Returns whether nothing was sent, so that a round that this call began did not begin.
pub(super) fn is_never_sent(outcome: &CallOutcome) -> bool {
    match outcome {
        CallOutcome::NotSent { .. }
        | CallOutcome::StoreUnavailable { .. }
        | CallOutcome::Draining => true,
        CallOutcome::Answered { .. }
        | CallOutcome::Released { .. }
        | CallOutcome::InFlight { .. }
        | CallOutcome::Uncertain { .. }
        | CallOutcome::Expired { .. }
        | CallOutcome::Barred { .. }
        | CallOutcome::NothingToContinue { .. } => false,
    }
}

/// Returns what an outcome means. `continues`: the call looked at an operation that began earlier.
/// `age` is the time since the change that the event is about.
pub(super) fn concluded(
    outcome: &CallOutcome,
    note: &CallNote,
    continues: bool,
    age: Duration,
) -> CallConclusion {
    // A look that failed shows nothing about the operation, which still waits for its outcome.
    if continues && is_never_sent(outcome) {
        return CallConclusion { conclusion: waiting(None, age), change: NoteChange::Keep };
    }
    let (conclusion, change) = match outcome {
        CallOutcome::Answered { reply, .. } => (answered(reply, note), NoteChange::Keep),
        CallOutcome::Released { reply, .. } => {
            let report = answer_report(reply, note);
            (Conclusion::Retry { report, retry_after: None }, NoteChange::TakeBack)
        }
        CallOutcome::NotSent { refusal, retryable } => {
            let error = format!("{}: {refusal}", refusal.kind().problem_name());
            let report = match refusal {
                Refusal::UpstreamUnreachable { .. } => FailureReport::of_error(error),
                _ => FailureReport::of_own_error(error),
            };
            let conclusion = match retryable {
                true => Conclusion::Retry { report, retry_after: None },
                false => Conclusion::Bury { kind: DeadLetterKind::Gateway, report },
            };
            let change = match refusal {
                // There is a record under the key.
                Refusal::KeyReused { .. } => NoteChange::TakeBack,
                _ if *retryable => NoteChange::TakeBack,
                _ => NoteChange::Refuse,
            };
            (conclusion, change)
        }
        CallOutcome::StoreUnavailable { .. } => {
            let report =
                FailureReport::of_own_error("not sent: the store is unavailable".to_owned());
            (Conclusion::Retry { report, retry_after: None }, NoteChange::TakeBack)
        }
        CallOutcome::InFlight { retry_after, .. } => {
            (waiting(Some(*retry_after), age), NoteChange::Keep)
        }
        CallOutcome::Uncertain { retry_after, .. } => {
            (waiting(*retry_after, age), NoteChange::Keep)
        }
        // Another gateway makes the call.
        CallOutcome::Draining => (Conclusion::Wait { pause: DRAIN_PAUSE }, NoteChange::TakeBack),
        CallOutcome::NothingToContinue { was_released: true, .. } => {
            let report = FailureReport::of_error(format!("{} was not executed", note.operation));
            (Conclusion::Retry { report, retry_after: None }, NoteChange::TakeBack)
        }
        // `Barred` does not occur: only the operations of sagas are barred.
        CallOutcome::Expired { .. }
        | CallOutcome::Barred { .. }
        | CallOutcome::NothingToContinue { .. } => {
            (Conclusion::outcome_expired(&note.operation), NoteChange::Expire)
        }
    };
    CallConclusion { conclusion, change }
}

/// Returns the pause until the next look. It grows with the age of the event, so that the outcome
/// of a recent event is seen soon, and many old ones cost little.
pub(super) fn waiting(retry_after: Option<Duration>, age: Duration) -> Conclusion {
    let longest = (age / LOOKS_PER_AGE).clamp(LOOK_MIN, LOOK_MAX);
    Conclusion::Wait { pause: retry_after.unwrap_or(longest).clamp(LOOK_MIN, longest) }
}

/// Returns what a stored answer means.
pub(super) fn answered(reply: &Reply, note: &CallNote) -> Conclusion {
    let status = reply.status.as_u16();
    let is_announced = note.announced.iter().any(|class| class.contains(status));
    match status / 100 {
        2 => Conclusion::Delivered,
        // The event about the refusal begins the compensation.
        4 if is_announced => Conclusion::Refused,
        _ => {
            let report = answer_report(reply, note);
            Conclusion::Bury { kind: DeadLetterKind::Receiver, report }
        }
    }
}

fn answer_report(reply: &Reply, note: &CallNote) -> FailureReport {
    let body = match &reply.body {
        ReplyBody::Whole(body) => body.slice(..body.len().min(ANSWER_KEPT_MAX)),
        ReplyBody::NotStored | ReplyBody::Sealed(_) => Bytes::new(),
    };
    FailureReport {
        status: Some(reply.status.as_u16()),
        answer: Some(body),
        error: Some(format!("the answer to {}", note.operation)),
        is_own: false,
    }
}
