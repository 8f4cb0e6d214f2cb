//! Belief: decides what the answer to a probe changes.
//!
//! Danger: an "absent" that is believed too early runs a request twice, because the lost request
//! may still wait in a queue of the upstream.

use super::admit::{Admission, ClaimOver, DuplicateRefusal};
use super::operator::{Decision, decide};
use super::policy::{Policy, RETRY_AFTER_MAX};
use super::probe::Finding;
use super::settle::Next;
use super::uncertain::resting;
use crate::record::{Fence, Held, State};

/// What follows from a finding.
#[derive(Debug, Clone, PartialEq)]
pub enum Belief {
    /// Write this record: it has the result.
    Write(Next),
    /// Continue with the duplicate in this way.
    Admit(Admission),
}

/// Decides what a finding means for the duplicate that waits for it. Pure and total.
///
/// `held` is the record as it was read before the probe was sent. An "absent" counts only if the
/// operation had rested long enough by then: the lost request may have waited in a queue while the
/// upstream looked.
pub fn believe(held: &Held, finding: Finding, fence: Fence, policy: &Policy) -> Belief {
    let State::Uncertain { .. } = &held.record.state else {
        return Belief::Admit(Admission::Wait);
    };
    let refuse = |retry_after| {
        Belief::Admit(Admission::Refuse(DuplicateRefusal::uncertain(Some(retry_after))))
    };
    match finding {
        Finding::Found(reply) => match decide(held, Decision::Found(reply), fence, policy) {
            Ok(next) => Belief::Write(next),
            Err(_) => refuse(RETRY_AFTER_MAX),
        },
        Finding::Unclear => refuse(RETRY_AFTER_MAX),
        Finding::Absent => match resting(held, policy) {
            Some(wait) => refuse(wait),
            None => Belief::Admit(Admission::Claim(ClaimOver::over_uncertain(held))),
        },
    }
}

/// Decides what a finding changes if no duplicate waits for it. An "absent" that counts frees the
/// key. Returns `None` if nothing changes. Pure and total.
pub fn believe_in_background(
    held: &Held,
    finding: Finding,
    fence: Fence,
    policy: &Policy,
) -> Option<Next> {
    let decision = match finding {
        Finding::Found(reply) => Decision::Found(reply),
        Finding::Absent => Decision::NotFound,
        Finding::Unclear => return None,
    };
    decide(held, decision, fence, policy).ok()
}
