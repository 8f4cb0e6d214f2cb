//! What a request may do, given the record of its operation.

use std::sync::Arc;
use std::time::Duration;

use super::policy::{OnInFlight, OnMismatch, OnUncertain, Policy};
use crate::key::{Caller, Fingerprint};
use crate::record::{Fence, Held, Reply, ReplyBody, State, Version};

/// What a request says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Who asks.
    pub caller: Caller,
    /// For what.
    pub fingerprint: Fingerprint,
    /// The fence that this request claims under, through all its tries until it gives a claim up: the next has another.
    pub fence: Fence,
}

/// What a request may do.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// The claim under its own fence stands: send, if the send rule holds.
    Run,
    /// Nobody is at it: claim, naming this version (`None`: over nothing).
    Claim(Option<Version>),
    /// Answer with the stored reply.
    Replay(Arc<Reply>),
    /// Another attempt is under way: wait for it.
    Wait,
    /// The lease of the attempt under way is over: mark it uncertain, then ask again.
    MarkUncertain,
    /// Answer with a refusal.
    Refuse(Refusal),
}

/// Why a request is refused, on account of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The key was used by another caller, or for another request.
    KeyReused,
    /// The first request is still running.
    InFlight {
        /// A hint when to come back.
        retry_after: Duration,
    },
    /// Nobody knows whether the first request was executed.
    OutcomeUncertain,
    /// The first request succeeded with a response that wasn't kept.
    ResponseNotStored {
        /// The original status.
        status: u16,
    },
    /// The result was kept as long as promised, and is gone.
    ResultExpired,
    /// The claim was given up before anything was sent.
    NotSent,
}

/// How long a client should wait before it asks again for a running request, at most: long enough not to hammer,
/// short enough that a payment page does not stall.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);

/// Decides what a request may do. Pure and total: every state has an answer.
///
/// The caller is compared before anything else, so that nothing about a record, not even its state, leaves to a stranger.
pub fn admit(current: Option<&Held>, asked: &Asked, policy: &Policy) -> Admission {
    let Some(held) = current else { return Admission::Claim(None) };
    let record = &held.record;
    if record.caller.is_some_and(|caller| caller != asked.caller) {
        return Admission::Refuse(Refusal::KeyReused);
    }
    let differs = record.fingerprint.is_some_and(|fingerprint| fingerprint != asked.fingerprint);
    // Under "supersede" another fingerprint has a record of its own, so a difference here is a refusal as well.
    if differs && policy.on_mismatch != OnMismatch::Replay {
        return Admission::Refuse(Refusal::KeyReused);
    }
    match &record.state {
        State::InFlight { .. } if record.fence == asked.fence => Admission::Run,
        State::InFlight { .. } if held.lease_is_over() => Admission::MarkUncertain,
        State::InFlight { .. } => match policy.on_in_flight {
            OnInFlight::Wait => Admission::Wait,
            OnInFlight::Reject => Admission::Refuse(Refusal::in_flight(policy)),
        },
        State::Uncertain { .. } => match policy.on_uncertain {
            OnUncertain::Hold => Admission::Refuse(Refusal::OutcomeUncertain),
        },
        State::Completed { reply, .. } => match &reply.body {
            ReplyBody::Whole(_) => Admission::Replay(reply.clone()),
            ReplyBody::NotStored => Admission::Refuse(Refusal::ResponseNotStored { status: reply.status.as_u16() }),
        },
        // Its own marker says that this claim was given up; only another's may be replaced, by naming its version.
        State::Released if record.fence == asked.fence => Admission::Refuse(Refusal::NotSent),
        State::Released => Admission::Claim(Some(record.version)),
        State::Expired => Admission::Refuse(Refusal::ResultExpired),
    }
}

impl Refusal {
    /// The refusal of a duplicate while the first request runs.
    pub fn in_flight(policy: &Policy) -> Refusal {
        Refusal::InFlight { retry_after: policy.lease.min(RETRY_AFTER_MAX) }
    }
}
