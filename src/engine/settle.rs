//! What an attempt's outcome makes of the record.

use std::sync::Arc;

use super::admit::{Asked, ClaimOver};
use super::policy::Policy;
use super::statuses::Verdict;
use crate::record::{Cause, Extras, Fence, Lifetime, Record, Reply, Settler, State, Version};

/// How an attempt ended. Three things can have happened; a timeout is not a failure.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The upstream answered, and all of the answer (as far as it is kept) is here.
    Answered(Arc<Reply>),
    /// No byte of the request reached the upstream.
    NeverSent,
    /// It may or may not have acted.
    InDoubt(Cause),
}

impl Outcome {
    /// Whether the upstream provably did nothing.
    pub fn was_not_executed(&self, policy: &Policy) -> bool {
        matches!(Effect::of(self, false, policy), Effect::Nothing)
    }
}

/// A claim that this process made, with the record as it wrote it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The attempt's fence.
    pub fence: Fence,
    /// The record as claimed.
    pub record: Record,
}

impl Claim {
    /// Whether an outcome leaves the operation as uncertain as it was before this attempt.
    pub fn gives_doubt_back(&self, outcome: &Outcome, policy: &Policy) -> bool {
        self.doubt_since_ms().is_some()
            && matches!(Effect::of(outcome, true, policy), Effect::Nothing)
    }

    /// Since when the operation was uncertain that this attempt began from, in ms of the store's clock.
    pub fn doubt_since_ms(&self) -> Option<u64> {
        match self.record.state {
            State::InFlight { doubt_since_ms } => doubt_since_ms,
            _ => None,
        }
    }
}

/// A record to write, and how long it is to live.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    /// The record.
    pub record: Record,
    /// Its life, in durations: the store computes the deadlines by its own clock.
    pub lifetime: Lifetime,
}

/// What becomes of the record.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    /// Write this over the record that was looked at.
    Write(Next),
    /// It stands already as this outcome would leave it.
    Done,
    /// Another attempt, or an operator, has settled it: the outcome changes nothing.
    Stale,
}

/// The record that claims an operation for one attempt. `fresh` is a random version, used over nothing.
pub fn claim(
    asked: &Asked,
    over: ClaimOver,
    fresh: Version,
    now_unix_ms: u64,
    policy: &Policy,
) -> Next {
    let (doubt_since_ms, opened_unix_ms) = match over {
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
            extras: Extras::default(),
            state: State::InFlight { doubt_since_ms },
        },
        lifetime: Lifetime {
            keep: policy.unsettled_retention,
            due: Some(policy.lease),
            tombstone: policy.keeps_tombstones().then_some(policy.retention + policy.tombstone),
        },
    }
}

/// What an outcome says of the upstream's doing.
enum Effect<'o> {
    /// It acted, and this is the result.
    Result(&'o Arc<Reply>),
    /// It did nothing.
    Nothing,
    /// It may or may not have acted.
    Doubt(Cause),
}

/// Answers that say "not now" or "somebody else is at it". To a first request they are results like any other; to an
/// attempt from uncertain they may be about the first one.
const SAYS_NOTHING_OF_THE_FIRST: [u16; 3] = [409, 423, 425];

impl Effect<'_> {
    fn of<'o>(outcome: &'o Outcome, doubted: bool, policy: &Policy) -> Effect<'o> {
        match outcome {
            Outcome::NeverSent => Effect::Nothing,
            Outcome::InDoubt(cause) => Effect::Doubt(*cause),
            Outcome::Answered(reply)
                if doubted && SAYS_NOTHING_OF_THE_FIRST.contains(&reply.status.as_u16()) =>
            {
                Effect::Nothing
            }
            Outcome::Answered(reply) => match policy.statuses.verdict(reply.status, &reply.headers)
            {
                Verdict::Store => Effect::Result(reply),
                Verdict::Release => Effect::Nothing,
                Verdict::Uncertain => Effect::Doubt(Cause::Status(reply.status.as_u16())),
            },
        }
    }
}

/// Decides what an attempt's outcome makes of the record that is there now. Pure and total.
///
/// Only the attempt whose fence the record carries may change it, and only while it is unsettled: what an operator or
/// another attempt has settled may have been answered, and stays. An attempt that began from uncertain never leaves
/// less. `fresh` is used where a marker is written over nothing.
pub fn settle(
    current: Option<&Record>,
    claim: &Claim,
    outcome: &Outcome,
    policy: &Policy,
    fresh: Version,
) -> Settlement {
    let doubt_since_ms = claim.doubt_since_ms();
    let effect = Effect::of(outcome, doubt_since_ms.is_some(), policy);
    let gives_up = *outcome == Outcome::NeverSent;
    let Some(record) = current else {
        return match gives_up {
            // The claim may still be on its way: the marker stands where it would land.
            true => Settlement::Write(marker(claim, fresh, policy)),
            false => Settlement::Stale,
        };
    };
    let own = record.belongs_to(claim.fence);
    let version = record.version.next();
    match (&record.state, effect) {
        (State::InFlight { .. } | State::Uncertain { .. }, effect) if own => {
            let next = match (effect, doubt_since_ms) {
                (Effect::Result(reply), _) => {
                    completed(record, claim.fence, reply, version, policy)
                }
                (Effect::Nothing, None) => marker(claim, version, policy),
                (Effect::Nothing, since) => {
                    uncertain(record, claim.fence, (Cause::NotRepeated, since), version, policy)
                }
                // Since now: what is in doubt is this attempt's own request as well, and that may sit in a queue.
                (Effect::Doubt(cause), _) => {
                    uncertain(record, claim.fence, (cause, None), version, policy)
                }
            };
            // An attempt writes each outcome once, or a later version of it could be taken for what the sweeper writes.
            let stands = next.record == Record { version, ..record.clone() };
            if stands { Settlement::Done } else { Settlement::Write(next) }
        }
        // What it claimed over still stands, and the claim may yet arrive there: it must not meet the version it names.
        (State::Uncertain { .. }, Effect::Nothing)
            if gives_up && version == claim.record.version =>
        {
            let state = match record.state {
                State::Uncertain { cause, retry, .. } => {
                    State::Uncertain { cause, since_ms: doubt_since_ms, retry }
                }
                ref state => state.clone(),
            };
            Settlement::Write(unsettled(
                Record { version: record.version.after_next(), state, ..record.clone() },
                policy,
            ))
        }
        (State::InFlight { .. } | State::Uncertain { .. }, _) => Settlement::Stale,
        // A marker is written anew over any marker: the claim that is given up may name the version that stands there.
        (State::Released, Effect::Nothing) if gives_up && doubt_since_ms.is_none() => {
            Settlement::Write(marker(claim, version, policy))
        }
        (State::Released, Effect::Nothing) if own => Settlement::Done,
        (State::Released | State::Completed { .. } | State::Expired, _) => Settlement::Stale,
    }
}

/// Every write of an attempt carries the attempt's own fence, also over an operator's retry, whose fence is another.
fn completed(
    record: &Record,
    fence: Fence,
    reply: &Arc<Reply>,
    version: Version,
    policy: &Policy,
) -> Next {
    let state = State::Completed { reply: reply.clone(), by: Settler::Upstream };
    Next {
        record: Record { version, fence, kept: None, state, ..record.clone() },
        lifetime: result_lifetime(policy),
    }
}

/// An uncertain record under the fence of the attempt that is in doubt: keeps fingerprint and caller.
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
        // Overdue only when it is about to disappear, so that the index of what is unsettled lists it until then.
        lifetime: Lifetime {
            keep: policy.unsettled_retention,
            due: Some(policy.unsettled_retention),
            tombstone: None,
        },
    }
}

/// A released marker: the fence and a version of its own, no fingerprint, no caller.
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
            extras: Extras::default(),
            state: State::Released,
            ..record.clone()
        },
        lifetime: Lifetime { keep: policy.marker_retention(), due: None, tombstone: None },
    }
}

/// The life of a result.
pub(super) fn result_lifetime(policy: &Policy) -> Lifetime {
    Lifetime {
        keep: policy.retention,
        due: None,
        tombstone: policy.keeps_tombstones().then_some(policy.retention + policy.tombstone),
    }
}
