//! What an attempt's outcome makes of the record.

use std::sync::Arc;

use super::admit::Asked;
use super::policy::{Policy, Verdict};
use crate::record::{Cause, Fence, Lifetime, Record, Reply, Settler, State, Version};

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

/// A claim that this process made, with the record as it wrote it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The attempt's fence.
    pub fence: Fence,
    /// The record as claimed.
    pub record: Record,
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

/// The record that claims an operation for one attempt. `version` is fresh: random over nothing, else the next one.
pub fn claim(asked: &Asked, version: Version, opened_unix_ms: u64, policy: &Policy) -> Next {
    Next {
        record: Record {
            version,
            fence: asked.fence,
            route: policy.route.clone(),
            fingerprint: Some(asked.fingerprint),
            caller: Some(asked.caller),
            opened_unix_ms,
            state: State::InFlight { doubt_since_ms: None },
        },
        lifetime: Lifetime {
            keep: policy.unsettled_retention,
            due: Some(policy.lease),
            tombstone: policy.keeps_tombstones().then_some(policy.retention + policy.tombstone),
        },
    }
}

/// Decides what an attempt's outcome makes of the record that is there now. Pure and total.
///
/// Only the attempt whose fence the record carries may change it, and only while it is unsettled: what an operator or
/// another attempt has settled may have been answered, and stays. `fresh` is used where a marker is written over nothing.
pub fn settle(current: Option<&Record>, claim: &Claim, outcome: &Outcome, policy: &Policy, fresh: Version) -> Settlement {
    let verdict = match outcome {
        Outcome::Answered(reply) => policy.statuses.verdict(reply.status, &reply.headers),
        Outcome::NeverSent => Verdict::Release,
        Outcome::InDoubt(_) => Verdict::Uncertain,
    };
    let Some(record) = current else {
        return match outcome {
            // The claim may still be on its way: the marker stands where it would land.
            Outcome::NeverSent => Settlement::Write(marker(claim, fresh, policy)),
            _ => Settlement::Stale,
        };
    };
    let own = record.fence == claim.fence;
    match (&record.state, verdict) {
        (State::InFlight { .. } | State::Uncertain { .. }, _) if !own => Settlement::Stale,
        (State::InFlight { doubt_since_ms } | State::Uncertain { since_ms: doubt_since_ms, .. }, verdict) => {
            let version = record.version.next();
            match (outcome, verdict) {
                (Outcome::Answered(reply), Verdict::Store) => Settlement::Write(completed(record, reply, version, policy)),
                (_, Verdict::Release) if doubt_since_ms.is_none() => Settlement::Write(marker(claim, version, policy)),
                (_, Verdict::Release) => {
                    Settlement::Write(uncertain(record, Cause::LeaseEnded, *doubt_since_ms, version, policy))
                }
                (Outcome::Answered(reply), Verdict::Uncertain) => {
                    Settlement::Write(uncertain(record, Cause::Status(reply.status.as_u16()), *doubt_since_ms, version, policy))
                }
                (Outcome::InDoubt(cause), _) => Settlement::Write(uncertain(record, *cause, *doubt_since_ms, version, policy)),
                (Outcome::NeverSent, _) => Settlement::Write(marker(claim, version, policy)),
            }
        }
        // A marker is written anew over any marker: the claim that is given up may name the version that stands there.
        (State::Released, Verdict::Release) if *outcome == Outcome::NeverSent => {
            Settlement::Write(marker(claim, record.version.next(), policy))
        }
        (State::Released, Verdict::Release) if own => Settlement::Done,
        (State::Released | State::Completed { .. } | State::Expired, _) => Settlement::Stale,
    }
}

fn completed(record: &Record, reply: &Arc<Reply>, version: Version, policy: &Policy) -> Next {
    let state = State::Completed { reply: reply.clone(), by: Settler::Upstream };
    Next { record: Record { version, state, ..record.clone() }, lifetime: result_lifetime(policy) }
}

/// An uncertain record: keeps fence, fingerprint and caller.
pub(super) fn uncertain(record: &Record, cause: Cause, since_ms: Option<u64>, version: Version, policy: &Policy) -> Next {
    let state = State::Uncertain { cause, since_ms };
    Next {
        record: Record { version, state, ..record.clone() },
        // Overdue only when it is about to disappear, so that the index of what is unsettled lists it until then.
        lifetime: Lifetime { keep: policy.unsettled_retention, due: Some(policy.unsettled_retention), tombstone: None },
    }
}

/// A released marker: the fence and a version of its own, no fingerprint, no caller.
fn marker(claim: &Claim, version: Version, policy: &Policy) -> Next {
    released(claim.fence, version, &claim.record, policy)
}

pub(super) fn released(fence: Fence, version: Version, record: &Record, policy: &Policy) -> Next {
    Next {
        record: Record { version, fence, fingerprint: None, caller: None, state: State::Released, ..record.clone() },
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
