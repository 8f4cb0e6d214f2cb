//! What becomes of an uncertain operation: how long it rests, how the upstream is asked, and what its answer is worth.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::admit::{Admission, ClaimOver, DuplicateRefusal};
use super::operator::{Decision, decide};
use super::policy::Policy;
use super::settle::Next;
use super::statuses::{StatusRules, Verdict};
use crate::key::path::fill;
use crate::key::{Pointer, element};
use crate::record::{Fence, Held, Reply, ReplyBody, State};

/// How an upstream is asked what became of an operation.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The method; a safe one.
    pub method: Method,
    /// The path, which has the key where [`Probe::KEY`] stands.
    pub path: String,
    /// Which statuses mean found (store), which absent (release); any other says nothing.
    pub statuses: StatusRules,
    /// The member of a found answer that is the operation; without it, the answer says absent.
    pub found_if: Option<Pointer>,
    /// The status of the result, if not the answer's own.
    pub map_status: Option<StatusCode>,
    /// What identifies the gateway to the upstream. Empty: the duplicate's own credentials are used.
    pub headers: HeaderMap,
    /// Whether it also asks without a duplicate: with fields of its own, and where stores seal the key that is kept for it.
    pub background: bool,
}

/// What an upstream said of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// It was executed, with this result.
    Found(Arc<Reply>),
    /// It knows nothing of it.
    Absent,
    /// It can't be told.
    Unclear,
}

/// What a finding makes of the record that was looked at before the upstream was asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Belief {
    /// Write the result.
    Write(Next),
    /// Do this.
    Admit(Admission),
}

/// Fields that describe the whole answer, and not the element of it that is the result.
const OF_THE_WHOLE: [HeaderName; 6] = [
    ETAG,
    LAST_MODIFIED,
    CONTENT_RANGE,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
];

impl Probe {
    /// Stands for the key in the path.
    pub const KEY: &str = "{key}";

    /// Returns the path, with a key filled in, that asks about one operation. `None` where the key can't be one segment of
    /// it under every folding: such a request could reach another resource, and must not be sent.
    pub fn path_for(&self, key: &str) -> Option<String> {
        fill(&self.path, Probe::KEY, key)
    }

    /// Reads an upstream's answer. Only what says so plainly is taken for found or absent: a page that isn't JSON where
    /// a member is wanted says nothing.
    pub fn finding(&self, reply: Reply) -> Finding {
        match self.statuses.verdict(reply.status, &reply.headers) {
            Verdict::Uncertain => Finding::Unclear,
            Verdict::Release => Finding::Absent,
            Verdict::Store => match (&self.found_if, &reply.body) {
                (None, _) => Finding::Found(Arc::new(self.result(reply))),
                (Some(_), ReplyBody::NotStored | ReplyBody::Sealed(_)) => Finding::Unclear,
                (Some(_), ReplyBody::Whole(_)) if reply.headers.contains_key(CONTENT_ENCODING) => {
                    Finding::Unclear
                }
                (Some(pointer), ReplyBody::Whole(body)) => match element(body, pointer) {
                    Err(_) => Finding::Unclear,
                    Ok(None) => Finding::Absent,
                    Ok(Some(element)) => {
                        let mut reply = Reply { body: ReplyBody::Whole(element), ..reply };
                        for name in &OF_THE_WHOLE {
                            reply.headers.remove(name);
                        }
                        Finding::Found(Arc::new(self.result(reply)))
                    }
                },
            },
        }
    }

    fn result(&self, reply: Reply) -> Reply {
        Reply { status: self.map_status.unwrap_or(reply.status), ..reply }
    }
}

/// Decides what a finding is worth. Pure and total.
///
/// `held` is the record as it was before the upstream was asked. An "absent" counts only if the operation had rested long
/// enough by then: the lost request may have sat in a queue while the upstream looked.
pub fn believe(held: &Held, finding: Finding, fence: Fence, policy: &Policy) -> Belief {
    let State::Uncertain { .. } = &held.record.state else {
        return Belief::Admit(Admission::Wait);
    };
    match finding {
        Finding::Found(reply) => match decide(held, Decision::Found(reply), fence, policy) {
            Ok(next) => Belief::Write(next),
            Err(_) => Belief::Admit(Admission::Refuse(DuplicateRefusal::uncertain(Some(
                DuplicateRefusal::RETRY_AFTER_MAX,
            )))),
        },
        Finding::Unclear => Belief::Admit(Admission::Refuse(DuplicateRefusal::uncertain(Some(
            DuplicateRefusal::RETRY_AFTER_MAX,
        )))),
        Finding::Absent => Belief::Admit(match resting(held, policy) {
            Some(wait) => Admission::Refuse(DuplicateRefusal::uncertain(Some(wait))),
            None => Admission::Claim(ClaimOver::over_uncertain(held)),
        }),
    }
}

/// Decides what a finding is worth where no duplicate waits to run: an "absent" that counts frees the key. `None`: nothing
/// changes.
pub fn believe_unasked(
    held: &Held,
    finding: Finding,
    fence: Fence,
    policy: &Policy,
) -> Option<Next> {
    let decision = match finding {
        Finding::Found(reply) => Decision::Found(reply),
        Finding::Absent => Decision::Release,
        Finding::Unclear => return None,
    };
    decide(held, decision, fence, policy).ok()
}

/// How long an uncertain operation has to rest yet; `None` when it has rested enough.
pub(super) fn resting(held: &Held, policy: &Policy) -> Option<Duration> {
    let rest = Duration::from_millis(held.now_ms.saturating_sub(doubt_since_ms(held)));
    policy.uncertain_after.checked_sub(rest).filter(|wait| !wait.is_zero())
}

/// Since when an operation is uncertain, in ms of the store's clock.
pub(super) fn doubt_since_ms(held: &Held) -> u64 {
    match &held.record.state {
        State::Uncertain { since_ms: Some(since_ms), .. } => *since_ms,
        _ => held.written_ms,
    }
}
