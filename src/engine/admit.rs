//! What a request may do, given the record of its operation.

use std::sync::Arc;
use std::time::Duration;

use super::policy::{OnInFlight, OnMismatch, OnUncertain, Policy};
use super::probe::doubt_since_ms;
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
    /// Nobody is at it: claim, over what is there.
    Claim(ClaimOver),
    /// The outcome is uncertain: ask the upstream first.
    Probe,
    /// Answer with the stored reply.
    Replay(Arc<Reply>),
    /// Another attempt is under way: wait for it.
    Wait,
    /// The lease of the attempt under way is over: mark it uncertain, then ask again.
    MarkUncertain,
    /// Answer with a refusal.
    Refuse(DuplicateRefusal),
}

/// What a claim is made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimOver {
    /// Nothing.
    Nothing,
    /// Another's released marker.
    Marker(Version),
    /// An uncertain operation, which is tried once more.
    Uncertain {
        /// The version that is replaced.
        version: Version,
        /// Since when it is uncertain, in ms of the store's clock.
        since_ms: u64,
        /// When its first attempt began, in ms since 1970 by that gateway's clock.
        opened_unix_ms: u64,
    },
}

impl ClaimOver {
    /// The version that the claim names.
    pub fn version(self) -> Option<Version> {
        match self {
            ClaimOver::Nothing => None,
            ClaimOver::Marker(version) | ClaimOver::Uncertain { version, .. } => Some(version),
        }
    }

    pub(super) fn over_uncertain(held: &Held) -> ClaimOver {
        let record = &held.record;
        ClaimOver::Uncertain {
            version: record.version,
            since_ms: doubt_since_ms(held),
            opened_unix_ms: record.opened_unix_ms,
        }
    }
}

/// Why a request is refused, on account of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateRefusal {
    /// The key was used by another caller, or for another request.
    KeyReused,
    /// The first request is still running.
    InFlight {
        /// A hint when to come back.
        retry_after: Duration,
    },
    /// Nobody knows whether the first request was executed.
    OutcomeUncertain {
        /// When the same request may be sent again; `None` where an operator has to decide.
        retry_after: Option<Duration>,
    },
    /// The first request succeeded with a response that wasn't kept.
    ResponseNotStored {
        /// The original status.
        status: u16,
    },
    /// The result is sealed, and this gateway has no key at all.
    Unreadable,
    /// The result was kept as long as promised, and is gone.
    ResultExpired,
    /// The claim was given up before anything was sent.
    NotSent,
}

/// Decides what a request may do. Pure and total: every state has an answer.
///
/// The caller is compared before anything else, so that nothing about a record, not even its state, leaves to a stranger.
pub fn admit(current: Option<&Held>, asked: &Asked, policy: &Policy) -> Admission {
    let Some(held) = current else { return Admission::Claim(ClaimOver::Nothing) };
    let record = &held.record;
    if record.caller.is_some_and(|caller| caller != asked.caller) {
        return Admission::Refuse(DuplicateRefusal::KeyReused);
    }
    let differs = record.fingerprint.is_some_and(|fingerprint| fingerprint != asked.fingerprint);
    // Under "supersede" another fingerprint has a record of its own, so a difference here is a refusal as well.
    if differs && policy.on_mismatch != OnMismatch::Replay {
        return Admission::Refuse(DuplicateRefusal::KeyReused);
    }
    match &record.state {
        State::InFlight { .. } if record.fence == asked.fence => Admission::Run,
        State::InFlight { .. } if held.lease_is_over() => Admission::MarkUncertain,
        State::InFlight { .. } => match policy.on_in_flight {
            OnInFlight::Wait => Admission::Wait,
            OnInFlight::Reject => Admission::Refuse(DuplicateRefusal::in_flight(policy)),
        },
        State::Uncertain { retry: Some(_), .. } => {
            Admission::Claim(ClaimOver::over_uncertain(held))
        }
        State::Uncertain { .. } => match &policy.on_uncertain {
            OnUncertain::Hold => Admission::Refuse(DuplicateRefusal::uncertain(None)),
            OnUncertain::Forward => Admission::Claim(ClaimOver::over_uncertain(held)),
            OnUncertain::Probe(_) => Admission::Probe,
        },
        State::Completed { reply, .. } => match &reply.body {
            ReplyBody::Whole(_) => Admission::Replay(reply.clone()),
            ReplyBody::Sealed(_) => Admission::Refuse(DuplicateRefusal::Unreadable),
            ReplyBody::NotStored => Admission::Refuse(DuplicateRefusal::ResponseNotStored {
                status: reply.status.as_u16(),
            }),
        },
        // Its own marker says that this claim was given up; only another's may be replaced, by naming its version.
        State::Released if record.fence == asked.fence => {
            Admission::Refuse(DuplicateRefusal::NotSent)
        }
        State::Released => Admission::Claim(ClaimOver::Marker(record.version)),
        State::Expired => Admission::Refuse(DuplicateRefusal::ResultExpired),
    }
}

impl DuplicateRefusal {
    /// How long a client should wait before it asks again, at most: long enough not to hammer, short enough that a
    /// payment page does not stall.
    pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);

    /// The refusal of a duplicate whose first request may or may not have been executed.
    pub fn uncertain(retry_after: Option<Duration>) -> DuplicateRefusal {
        DuplicateRefusal::OutcomeUncertain { retry_after }
    }

    /// The refusal of a duplicate while the first request runs.
    pub fn in_flight(policy: &Policy) -> DuplicateRefusal {
        DuplicateRefusal::InFlight {
            retry_after: policy.lease.min(DuplicateRefusal::RETRY_AFTER_MAX),
        }
    }
}
