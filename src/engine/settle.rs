//! Settlement: decides how an attempt's outcome changes the record.

use std::sync::Arc;

use http::StatusCode;

use super::admit::{ClaimOver, ClaimRequest};
use super::announce::{Announcement, announce};
use super::policy::Policy;
use super::statuses::Verdict;
use crate::record::{Cause, Extras, Fence, Lifetime, Record, Reply, Settler, State, Version};

/// How an attempt ended. After a timeout the outcome is in doubt: the upstream may have executed
/// the request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The upstream answered. The body was read to its end, unless the status is uncertain or the
    /// body is streamed.
    Answered(Arc<Reply>),
    /// No byte of the request reached the upstream.
    NeverSent,
    /// The upstream may or may not have executed the request.
    InDoubt(Cause),
}

impl Outcome {
    /// Returns whether the upstream provably did nothing.
    pub fn was_not_executed(&self, policy: &Policy) -> bool {
        matches!(Effect::of(self, false, policy), Effect::Nothing)
    }
}

/// A claim of this process, with the record that it wrote.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The attempt's fence.
    pub fence: Fence,
    /// The record as claimed.
    pub record: Record,
}

impl Claim {
    /// Returns whether this outcome makes the operation uncertain again: the attempt began from an
    /// uncertain operation, and the upstream did nothing. The operation then counts as uncertain
    /// since the original time.
    pub fn restores_uncertainty(&self, outcome: &Outcome, policy: &Policy) -> bool {
        self.uncertain_since_ms().is_some()
            && matches!(Effect::of(outcome, true, policy), Effect::Nothing)
    }

    /// For an attempt that began from an uncertain operation, returns when the operation became
    /// uncertain, in ms of the store's clock.
    pub fn uncertain_since_ms(&self) -> Option<u64> {
        match self.record.state {
            State::InFlight { uncertain_since_ms } => uncertain_since_ms,
            _ => None,
        }
    }
}

/// A record to write, and how long to keep it.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    /// The record.
    pub record: Record,
    /// How long the store keeps the record. The store computes the times by its own clock.
    pub lifetime: Lifetime,
    /// The change as the operation's sinks are notified of it.
    pub announcement: Option<Announcement>,
}

impl Next {
    /// Adds what the change announces: see [`announce`].
    pub(super) fn announced(mut self, before: &Record, answered: Option<StatusCode>) -> Next {
        self.announcement = announce(&mut self.record, before, answered);
        self
    }
}

/// What a settlement does with the record.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    /// Write this record in place of the record that was read.
    Write(Next),
    /// The record already has the state that this outcome leads to. Write nothing.
    Done,
    /// Another attempt or an operator has settled the operation: the outcome changes nothing.
    Stale,
}

/// Returns the record that claims an operation for one attempt. `fresh` is a random version for an
/// empty slot.
pub fn claim(
    asked: &ClaimRequest,
    over: ClaimOver,
    fresh: Version,
    now_unix_ms: u64,
    policy: &Policy,
) -> Next {
    let (uncertain_since_ms, opened_unix_ms) = match over {
        ClaimOver::Uncertain { since_ms, opened_unix_ms, .. } => (Some(since_ms), opened_unix_ms),
        ClaimOver::Nothing | ClaimOver::Marker(_) => (None, now_unix_ms),
    };
    Next {
        record: Record {
            version: over.version().map_or(fresh, Version::next),
            fence: asked.fence,
            route: policy.route.clone(),
            fingerprint: Some(asked.fingerprint),
            caller: Some(asked.caller),
            opened_unix_ms,
            kept: None,
            publication: None,
            extras: Extras::default(),
            state: State::InFlight { uncertain_since_ms },
        },
        lifetime: Lifetime {
            keep: policy.unsettled_retention,
            due: Some(policy.lease),
            tombstone: policy.keeps_tombstones().then_some(policy.retention + policy.tombstone),
        },
        announcement: None,
    }
}

/// What the upstream did, if the outcome shows it.
enum Effect<'o> {
    /// It executed the request, with this result.
    Result(&'o Arc<Reply>),
    /// It did nothing.
    Nothing,
    /// It may or may not have executed the request.
    Unknown(Cause),
}

/// Statuses that mean "not now" or "another request is active". For a first attempt they are
/// results. For an attempt that began from an uncertain operation, the upstream may mean the first
/// attempt: the operation stays uncertain.
const UNCLEAR_AFTER_UNCERTAIN: [u16; 3] = [409, 423, 425];

impl Effect<'_> {
    fn of<'o>(outcome: &'o Outcome, was_uncertain: bool, policy: &Policy) -> Effect<'o> {
        match outcome {
            Outcome::NeverSent => Effect::Nothing,
            Outcome::InDoubt(cause) => Effect::Unknown(*cause),
            Outcome::Answered(reply)
                if was_uncertain && UNCLEAR_AFTER_UNCERTAIN.contains(&reply.status.as_u16()) =>
            {
                Effect::Nothing
            }
            Outcome::Answered(reply) => match policy.statuses.verdict(reply.status, &reply.headers)
            {
                Verdict::Store => Effect::Result(reply),
                Verdict::Release => Effect::Nothing,
                Verdict::Uncertain => Effect::Unknown(Cause::Status(reply.status.as_u16())),
            },
        }
    }
}

/// Decides how an attempt's outcome changes the current record. Pure and total.
///
/// Only an attempt that the record belongs to may settle the record, and only while the record is
/// unsettled. A settled result stays, because a client may have got it. If an attempt began from an
/// uncertain operation and was not executed, the operation is uncertain again, never free. If an
/// attempt gives up a claim that may still arrive, it changes the version of the record that the
/// claim would replace, so that the late claim fails. `fresh` is the version of a marker in an
/// empty slot.
pub fn settle(
    current: Option<&Record>,
    claim: &Claim,
    outcome: &Outcome,
    policy: &Policy,
    fresh: Version,
) -> Settlement {
    let uncertain_since_ms = claim.uncertain_since_ms();
    let effect = Effect::of(outcome, uncertain_since_ms.is_some(), policy);
    let gives_up = *outcome == Outcome::NeverSent;
    let answered = match outcome {
        Outcome::Answered(reply) => Some(reply.status),
        Outcome::NeverSent | Outcome::InDoubt(_) => None,
    };
    let Some(record) = current else {
        return match gives_up {
            // The claim may still arrive at the store: the marker in its slot refuses it.
            true => Settlement::Write(marker(claim, fresh, policy)),
            false => Settlement::Stale,
        };
    };
    let own = record.belongs_to(claim.fence);
    let version = record.version.next();
    match (&record.state, effect) {
        (State::InFlight { .. } | State::Uncertain { .. }, effect) if own => {
            let next = match (effect, uncertain_since_ms) {
                (Effect::Result(reply), _) => {
                    completed(record, claim.fence, reply, version, policy)
                }
                (Effect::Nothing, None) => marker(claim, version, policy),
                (Effect::Nothing, since) => {
                    uncertain(record, claim.fence, (Cause::NotRepeated, since), version, policy)
                }
                // Uncertain since now: this attempt's own request is in doubt too, and may wait in
                // a queue of the upstream.
                (Effect::Unknown(cause), _) => {
                    uncertain(record, claim.fence, (cause, None), version, policy)
                }
            };
            // An attempt writes each outcome once. A second write under the next version could be
            // taken for a write of the sweeper.
            let stands = next.record == Record { version, ..record.clone() };
            if stands {
                Settlement::Done
            } else {
                Settlement::Write(next.announced(record, answered))
            }
        }
        // The claim may still arrive, and the record that it would replace is still there. A new
        // version of that record makes the claim fail.
        (State::Uncertain { .. }, Effect::Nothing)
            if gives_up && version == claim.record.version =>
        {
            let state = match record.state {
                State::Uncertain { cause, retry, .. } => {
                    State::Uncertain { cause, since_ms: uncertain_since_ms, retry }
                }
                ref state => state.clone(),
            };
            Settlement::Write(unsettled(
                Record { version: record.version.after_next(), state, ..record.clone() },
                policy,
            ))
        }
        (State::InFlight { .. } | State::Uncertain { .. }, _) => Settlement::Stale,
        // A new marker replaces any marker, because the given-up claim may expect the version of
        // the old marker.
        (State::Released, Effect::Nothing) if gives_up && uncertain_since_ms.is_none() => {
            Settlement::Write(marker(claim, version, policy))
        }
        (State::Released, Effect::Nothing) if own => Settlement::Done,
        (State::Released | State::Completed { .. } | State::Expired, _) => Settlement::Stale,
        // A claim that was not confirmed in time. Nobody runs the saga yet. A later version means
        // that a duplicate was accepted, or that an operator has decided: a gateway takes the saga
        // over when the lease ends.
        (State::Saga { .. }, Effect::Nothing)
            if own && gives_up && record.version == claim.record.version =>
        {
            Settlement::Write(marker(claim, version, policy).announced(record, None))
        }
        // A bar stays, because the saga has gone back. A saga has an owner of its own.
        (State::Saga { .. } | State::Barred, _) => Settlement::Stale,
        (State::Lock(_) | State::Review { .. } | State::Versions { .. }, _) => Settlement::Stale,
    }
}

/// Returns the completed record. It has the attempt's own fence, also if an operator's retry gave
/// the record another fence.
pub(super) fn completed(
    record: &Record,
    fence: Fence,
    reply: &Arc<Reply>,
    version: Version,
    policy: &Policy,
) -> Next {
    let state = State::Completed { reply: reply.clone(), by: Settler::Upstream };
    Next {
        record: Record { version, fence, kept: None, publication: None, state, ..record.clone() },
        lifetime: result_lifetime(policy),
        announcement: None,
    }
}

/// Returns an uncertain record under the fence of the attempt in doubt. Keeps fingerprint and
/// caller.
pub(super) fn uncertain(
    record: &Record,
    fence: Fence,
    (cause, since_ms): (Cause, Option<u64>),
    version: Version,
    policy: &Policy,
) -> Next {
    let state = State::Uncertain { cause, since_ms, retry: None };
    unsettled(Record { version, fence, state, ..record.clone() }, policy)
}

pub(super) fn unsettled(record: Record, policy: &Policy) -> Next {
    Next {
        record,
        // The record is due only when its retention ends. Until then the index of unsettled records
        // lists it.
        lifetime: Lifetime {
            keep: policy.unsettled_retention,
            due: Some(policy.unsettled_retention),
            tombstone: None,
        },
        announcement: None,
    }
}

/// Returns a released marker. It has the attempt's fence, a new version, no fingerprint and no
/// caller.
fn marker(claim: &Claim, version: Version, policy: &Policy) -> Next {
    released(claim.fence, version, &claim.record, policy)
}

pub(super) fn released(fence: Fence, version: Version, record: &Record, policy: &Policy) -> Next {
    Next {
        record: Record {
            version,
            fence,
            fingerprint: None,
            caller: None,
            kept: None,
            publication: None,
            extras: Extras::default(),
            state: State::Released,
            ..record.clone()
        },
        lifetime: Lifetime { keep: policy.marker_retention(), due: None, tombstone: None },
        announcement: None,
    }
}

/// Returns how long a result is kept.
pub(super) fn result_lifetime(policy: &Policy) -> Lifetime {
    Lifetime {
        keep: policy.retention,
        due: None,
        tombstone: policy.keeps_tombstones().then_some(policy.retention + policy.tombstone),
    }
}
