//! The outcome of a step's operation, in the terms of the machine.

use std::time::Duration;

use http::HeaderMap;
use http::header::{ETAG, LOCATION};

use super::kept::KeptAnswer;
use super::log::StepDirection;
use super::plan::{Compensation, Step};
use crate::engine::{StatusRules, StatusRulesError, Verdict};
use crate::gate::CallOutcome;
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;

/// The outcome of a call, of a look, or of a bar that was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepOutcome {
    /// The upstream executed it, or nothing is left to undo.
    Success(KeptAnswer),
    /// The upstream refused it for good.
    Failure {
        /// The status.
        status: u16,
    },
    /// The attempt was provably not executed: a release status, or a failed connection.
    NotExecuted {
        /// The status; `None` for a failed connection.
        status: Option<u16>,
    },
    /// A probe or an operator found that it was not executed.
    Released,
    /// It has no record. Only a call that continues an operation, or a look, has this outcome.
    Absent,
    /// This gateway did not call it now: it is overloaded, ends, or has no store.
    Busy {
        /// Pause before the next call, in ms.
        retry_after_ms: u64,
    },
    /// Another attempt is active.
    InFlight {
        /// Pause before the next call, in ms.
        retry_after_ms: u64,
    },
    /// It is unknown whether it was executed.
    Uncertain {
        /// Pause before the next call, in ms; `None` if an operator has to settle it.
        retry_after_ms: Option<u64>,
    },
    /// It will never be known: its answer is gone, or its record is that of another request.
    Lost,
    /// It is barred: by this call, or before.
    Barred,
    /// The gate refuses the request, whatever the upstream does. Nothing was sent now.
    Invalid {
        /// The reason, without any part of the request.
        why: String,
    },
    /// The gateway's configuration lacks something that the call needs. Nothing was sent now.
    Unconfigured {
        /// What is missing, by name.
        why: String,
    },
}

/// What the stored answers of a step mean, in one direction.
#[derive(Debug, Clone)]
pub struct AnswerRules(StatusRules);

impl AnswerRules {
    /// Creates the rules from the plan. A status that counts as gone is no failure.
    ///
    /// # Errors
    /// A text is not a status, or is in two lists.
    pub fn new(step: &Step, direction: StepDirection) -> Result<AnswerRules, StatusRulesError> {
        let sending = &step.sending;
        let (mut success, mut failure) = (sending.success.clone(), sending.failure.clone());
        if let (StepDirection::Compensation, Compensation::Request { gone, .. }) =
            (direction, &step.compensation)
        {
            success.extend(gone.iter().filter(|status| !sending.success.contains(status)).cloned());
            failure.retain(|status| !gone.contains(status));
        }
        StatusRules::new(&success, &failure, &[]).map(AnswerRules)
    }

    /// Returns the outcome of a call. It is never [`StepOutcome::Barred`]: only the record of an
    /// operation shows a bar.
    ///
    /// A stored answer with a status in no list is a success: only a probe or an operator settles
    /// an operation with such a status, and both found that it was executed.
    pub fn outcome(&self, call: &CallOutcome) -> StepOutcome {
        match call {
            CallOutcome::Answered { reply, .. } => self.answered(reply),
            CallOutcome::Released { reply, .. } => {
                StepOutcome::NotExecuted { status: Some(reply.status.as_u16()) }
            }
            CallOutcome::NotSent { refusal, retryable } => not_sent(refusal, *retryable),
            CallOutcome::InFlight { retry_after, .. } => {
                StepOutcome::InFlight { retry_after_ms: millis(*retry_after) }
            }
            CallOutcome::Uncertain { retry_after, .. } => {
                StepOutcome::Uncertain { retry_after_ms: retry_after.map(millis) }
            }
            CallOutcome::Expired { .. } => StepOutcome::Lost,
            CallOutcome::NothingToContinue { was_released: true, .. } => StepOutcome::Released,
            CallOutcome::NothingToContinue { was_released: false, .. } => StepOutcome::Absent,
            CallOutcome::StoreUnavailable { retry_after } => {
                StepOutcome::Busy { retry_after_ms: millis(*retry_after) }
            }
            CallOutcome::Barred { .. } => StepOutcome::Barred,
            CallOutcome::Draining => StepOutcome::Busy { retry_after_ms: BUSY_PAUSE_MS },
        }
    }

    /// Returns what a stored answer means.
    pub fn answered(&self, reply: &Reply) -> StepOutcome {
        match self.0.verdict(reply.status, &reply.headers) {
            Verdict::Release => StepOutcome::Failure { status: reply.status.as_u16() },
            Verdict::Store | Verdict::Uncertain => StepOutcome::Success(KeptAnswer::of(reply)),
        }
    }
}

/// Pause before the next call if this gateway could not make one, in ms.
const BUSY_PAUSE_MS: u64 = 1_000;

impl KeptAnswer {
    /// Creates the answer as a saga keeps it, without a body that is not stored.
    pub fn of(reply: &Reply) -> KeptAnswer {
        let body = match &reply.body {
            ReplyBody::Whole(body) => Some(body.clone()),
            ReplyBody::NotStored | ReplyBody::Sealed(_) => None,
        };
        let (location, etag) = (field(&reply.headers, LOCATION), field(&reply.headers, ETAG));
        KeptAnswer { status: reply.status.as_u16(), body, location, etag }
    }
}

fn field(headers: &HeaderMap, name: http::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn not_sent(refusal: &Refusal, retryable: bool) -> StepOutcome {
    match refusal {
        Refusal::UpstreamUnreachable { .. } => StepOutcome::NotExecuted { status: None },
        _ if retryable => StepOutcome::Busy { retry_after_ms: BUSY_PAUSE_MS },
        // The operation began with another form of the request. Its outcome is not this request's.
        Refusal::KeyReused { .. } => StepOutcome::Lost,
        _ => StepOutcome::Invalid { why: refusal.kind().problem_name().to_owned() },
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
