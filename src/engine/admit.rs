//! Admission: decides what a request may do, given the record of its operation.

use std::sync::Arc;
use std::time::Duration;

use super::policy::{OnInFlight, OnMismatch, OnUncertain, Policy, RETRY_AFTER_MAX};
use super::uncertain::uncertain_since_ms;
use crate::key::{Caller, Fingerprint};
use crate::record::{Fence, Held, Reply, ReplyBody, SagaPhase, State, Version};

/// The part of a request that the rules compare with a record.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest {
    /// Who sends the request.
    pub caller: Caller,
    /// The hash of the request's content.
    pub fingerprint: Fingerprint,
    /// The fence of this request's claim. Repeated writes of one claim have the same fence. After
    /// the gateway gave up a claim, the next claim needs a new fence.
    pub fence: Fence,
}

/// What a request may do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// The request's own claim is stored: send the request, if the send rule allows.
    Run,
    /// No attempt is active: claim the operation.
    Claim(ClaimOver),
    /// The outcome is uncertain: probe the upstream first.
    Probe,
    /// Answer with the stored reply.
    Replay(Arc<Reply>),
    /// Another attempt is active: wait for its outcome.
    Wait,
    /// The lease of the active attempt has ended: mark the operation uncertain, then call [`admit`]
    /// again.
    MarkUncertain,
    /// Answer with a refusal.
    Refuse(DuplicateRefusal),
}

/// What a claim replaces in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimOver {
    /// An empty slot.
    Nothing,
    /// The released marker of another attempt.
    Marker(Version),
    /// An uncertain operation, for one more attempt.
    Uncertain {
        /// The version that the claim replaces.
        version: Version,
        /// Time at which the operation became uncertain, in ms of the store's clock.
        since_ms: u64,
        /// Start of the first attempt, in ms since 1970 by the clock of its gateway.
        opened_unix_ms: u64,
    },
}

impl ClaimOver {
    /// Returns the version that the claim's write expects; `None` for an empty slot.
    pub fn version(self) -> Option<Version> {
        match self {
            ClaimOver::Nothing => None,
            ClaimOver::Marker(version) | ClaimOver::Uncertain { version, .. } => Some(version),
        }
    }

    /// Returns the claim over an uncertain record.
    pub(super) fn over_uncertain(held: &Held) -> ClaimOver {
        let record = &held.record;
        ClaimOver::Uncertain {
            version: record.version,
            since_ms: uncertain_since_ms(held),
            opened_unix_ms: record.opened_unix_ms,
        }
    }
}

/// Why a duplicate is refused, given the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateRefusal {
    /// Another caller used the key, or the same caller used it for another request.
    KeyReused,
    /// The first request is still running.
    InFlight {
        /// How long the client waits before it sends the same request again.
        retry_after: Duration,
        /// Whether the first request began a saga.
        saga: bool,
    },
    /// The first request began a saga that a person has to decide about, or that waits for an
    /// upstream.
    SagaStuck,
    /// The operation of a saga's step may not run. Only the gateway's own calls get this refusal.
    Barred,
    /// It is unknown whether the first request was executed.
    OutcomeUncertain {
        /// How long the client waits before it sends the same request again; `None` if an operator
        /// has to decide first.
        retry_after: Option<Duration>,
    },
    /// The first request was answered, and its response was not stored.
    ResponseNotStored {
        /// The original status.
        status: u16,
    },
    /// The stored response is encrypted, and this gateway has no encryption key.
    Unreadable,
    /// The retention of the result has ended.
    ResultExpired,
    /// The request's claim was given up before anything was sent.
    NotSent,
}

/// Decides what a request may do. Pure and total: every state has an answer.
///
/// The caller is compared first. So another caller learns nothing about the record, not even its
/// state.
pub fn admit(current: Option<&Held>, asked: &ClaimRequest, policy: &Policy) -> Admission {
    let Some(held) = current else { return Admission::Claim(ClaimOver::Nothing) };
    let record = &held.record;
    if record.caller.is_some_and(|caller| caller != asked.caller) {
        return Admission::Refuse(DuplicateRefusal::KeyReused);
    }
    let differs = record.fingerprint.is_some_and(|fingerprint| fingerprint != asked.fingerprint);
    // Under "supersede" the fingerprint is part of the slot, so a record normally has the
    // fingerprint of the request. If it differs anyway, the request is refused.
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
        // A marker with this request's fence shows that the request's own claim was given up. A
        // claim may replace only the marker of another attempt.
        State::Released if record.fence == asked.fence => {
            Admission::Refuse(DuplicateRefusal::NotSent)
        }
        State::Released => Admission::Claim(ClaimOver::Marker(record.version)),
        State::Expired => Admission::Refuse(DuplicateRefusal::ResultExpired),
        State::Saga { .. } if record.fence == asked.fence => Admission::Run,
        State::Saga { phase: SagaPhase::Stuck, .. } => {
            Admission::Refuse(DuplicateRefusal::SagaStuck)
        }
        // A saga with an ended lease waits for a gateway that takes it over. Its outcome is not in
        // doubt: the log shows it.
        State::Saga { .. } => match policy.on_in_flight {
            OnInFlight::Wait => Admission::Wait,
            OnInFlight::Reject => Admission::Refuse(DuplicateRefusal::saga_in_flight(policy)),
        },
        State::Barred => Admission::Refuse(DuplicateRefusal::Barred),
        // Resources have slots of their own.
        State::Lock(_) | State::Review { .. } | State::Versions { .. } => {
            Admission::Refuse(DuplicateRefusal::Unreadable)
        }
    }
}

impl DuplicateRefusal {
    /// Refuses a duplicate of an operation that is uncertain.
    pub fn uncertain(retry_after: Option<Duration>) -> DuplicateRefusal {
        DuplicateRefusal::OutcomeUncertain { retry_after }
    }

    /// Refuses a duplicate while the first request runs.
    pub fn in_flight(policy: &Policy) -> DuplicateRefusal {
        let retry_after = policy.lease.min(RETRY_AFTER_MAX);
        DuplicateRefusal::InFlight { retry_after, saga: false }
    }

    /// Refuses a duplicate while the saga of the first request runs.
    pub fn saga_in_flight(policy: &Policy) -> DuplicateRefusal {
        let retry_after = policy.lease.min(RETRY_AFTER_MAX);
        DuplicateRefusal::InFlight { retry_after, saga: true }
    }
}
