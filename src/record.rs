//! The record: what is known about one operation, and the reply that its duplicates get.
//!
//! `absent -> in flight -> completed | uncertain | released`. A record says who asked (hashed), what for (hashed),
//! which attempt may still write to it (its fence) and which change it last saw (its version).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::key::{Caller, Fingerprint};

mod codec;

pub use codec::{
    CodecError, Encoded, HEAD_BYTES, decode, decode_reply, encode, encode_reply, head_completed,
    head_fence, head_in_flight, head_version,
};

/// Counts the changes of a record. Every change increments it; over nothing it starts at a random number, so that a
/// version is never written twice in a slot and an old attempt can't pass for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of the next change.
    pub fn next(self) -> Version {
        Version(self.0.wrapping_add(1))
    }

    /// One further than the next, for a change that another may be racing to make: what its own attempt writes at the same
    /// time has the next version, the same fence and perhaps the same state, and a store takes two such records for one.
    pub fn after_next(self) -> Version {
        self.next().next()
    }
}

/// Names one attempt to run an operation, at random. A write with an old fence changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence(pub u64);

/// What is known about one operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The change that wrote this.
    pub version: Version,
    /// The attempt that this belongs to.
    pub fence: Fence,
    /// The route's name; where it is no longer configured, the defaults apply.
    pub route: Arc<str>,
    /// What was asked for. `None` only on a released marker.
    pub fingerprint: Option<Fingerprint>,
    /// Who asked. `None` only on a released marker.
    pub caller: Option<Caller>,
    /// When the first attempt began, in ms since 1970 by its gateway's clock. For people; no rule reads it.
    pub opened_unix_ms: u64,
    /// While an outcome is owed, and only where stores seal it: the key as the upstream knows it, so that it can be asked
    /// without waiting for a duplicate.
    pub kept: Option<Bytes>,
    /// What else is kept, that no rule asks for.
    pub extras: Extras,
    /// Where the operation stands.
    pub state: State,
}

/// What is kept of an operation's first request for people. Gone with the caller and the fingerprint, and from tombstones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Digests of what the request is made of ([`crate::key::LeafDigests`]).
    pub leaves: Option<Bytes>,
    /// The span of a trace in which the attempt runs, or ran.
    pub span: Option<SpanId>,
}

/// A span, and the trace that it belongs to (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId {
    /// The trace's id.
    pub trace: [u8; 16],
    /// The span's own.
    pub span: [u8; 8],
}

/// Where an operation stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// An attempt is under way, under a lease.
    InFlight {
        /// When this attempt began from an uncertain record: since when that was so, in ms of the store's clock.
        /// Such an attempt never leaves less than uncertain.
        doubt_since_ms: Option<u64>,
    },
    /// Nobody knows whether the upstream acted.
    Uncertain {
        /// What happened.
        cause: Cause,
        /// Since when, in ms of the store's clock; `None`: since this was written. Only an attempt that provably did nothing
        /// gives an older time back.
        since_ms: Option<u64>,
        /// Where an operator has decided that the next duplicate runs: the fence of the lost attempt. That may still settle the
        /// operation before a duplicate runs, although the record carries the decision's own fence.
        retry: Option<Fence>,
    },
    /// Answered; duplicates get this reply.
    Completed {
        /// The reply: shared, because it goes to the store and to the client.
        reply: Arc<Reply>,
        /// Who settled it.
        by: Settler,
    },
    /// The attempt provably did nothing. A late claim under the same fence meets this marker and is refused.
    Released,
    /// The small tombstone that outlives a completed record.
    Expired,
}

/// Why an outcome is uncertain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The connection broke after a byte of the request was written.
    Broken,
    /// The upstream answered, and the answer can't be read. Versions that don't know it read [`Cause::Broken`].
    Unreadable(AnswerFault),
    /// The upstream didn't answer in time.
    TimedOut,
    /// The upstream answered with a status that doesn't say whether it acted. Below 100 it is gRPC's own.
    Status(u16),
    /// The gateway that ran it went silent until its lease ended.
    LeaseEnded,
    /// The gateway was stopped while the attempt was under way.
    Stopped,
    /// A later attempt did nothing, so that what the first one did is as unknown as before.
    NotRepeated,
}

/// What is wrong with an answer that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFault {
    /// Its head has more fields than are taken.
    TooManyFields,
    /// Its head is larger than is taken.
    HeadTooLarge,
    /// Its head is not well-formed HTTP.
    Malformed,
}

/// Who settled an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settler {
    /// The upstream's own answer.
    Upstream,
    /// An operator's decision.
    Operator,
    /// The upstream's answer to a question about it.
    Probe,
}

/// An answer: status, end-to-end header fields and body.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The status code.
    pub status: StatusCode,
    /// End-to-end fields, `Date` included.
    pub headers: HeaderMap,
    /// The body.
    pub body: ReplyBody,
    /// The fields behind the body (RFC 9110, section 6.5), where they are kept: of gRPC answers with a whole body. Empty beside
    /// a sealed body, which has them with it. Version 0.1.0 does not read records of such replies.
    pub trailers: Option<HeaderMap>,
}

/// A reply's body, as far as it was kept.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyBody {
    /// All of it.
    Whole(Bytes),
    /// Too large, an event stream or a switched protocol: streamed once, not kept.
    NotStored,
    /// Sealed, and the header fields with it. Only stores hold such replies; above them it means that the key is missing.
    Sealed(Bytes),
}

/// How long a record is to live. Durations: the store counts them by its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Until it disappears.
    pub keep: Duration,
    /// Until it is overdue and somebody has to look at it: the lease while in flight. `None` keeps it out of the index
    /// of unsettled records.
    pub due: Option<Duration>,
    /// With a result: until the tombstone that it leaves disappears, counted from now (so at least `keep`).
    /// With a claim, over nothing or over a marker: that a tombstone, if there is one, stands in its way.
    pub tombstone: Option<Duration>,
}

/// A record as the store holds it, with the store's times (ms since 1970 by the store's clock).
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The record.
    pub record: Record,
    /// When it was last changed. Of a settled record it may be off by what an answer of the store took.
    pub written_ms: u64,
    /// When somebody has to look at it again: the end of the lease while in flight; 0 where never.
    pub due_ms: u64,
    /// The store's time of this reading; of a settled record, whose age no rule asks for, as its earlier answers tell it.
    pub now_ms: u64,
}

impl Record {
    /// The small tombstone that outlives a result.
    pub fn tombstone(&self) -> Record {
        Record {
            route: self.route.clone(),
            kept: None,
            extras: Extras::default(),
            state: State::Expired,
            ..*self
        }
    }

    /// Whether an attempt may still settle this record, as far as fences decide: the record carries the attempt's fence, or
    /// an operator's retry names it.
    pub fn belongs_to(&self, attempt: Fence) -> bool {
        let named =
            matches!(self.state, State::Uncertain { retry: Some(lost), .. } if lost == attempt);
        self.fence == attempt || named
    }

    /// Whether both were written by the same call. Version, fence and state are enough, because no two different writes
    /// share them: an operator's decision has a fence of its own, an attempt writes each state once, and who writes under
    /// another's fence skips a version.
    pub fn is_same_write(&self, other: &Record) -> bool {
        self.version == other.version && self.is_same_state(other)
    }

    /// Whether both are of the same attempt and in the same state, in whatever versions.
    pub fn is_same_state(&self, other: &Record) -> bool {
        let state = |record: &Record| std::mem::discriminant(&record.state);
        (self.fence, state(self)) == (other.fence, state(other))
    }
}

impl Held {
    /// Whether an attempt's lease is over, by the store's own clock.
    pub fn lease_is_over(&self) -> bool {
        matches!(self.record.state, State::InFlight { .. }) && self.now_ms >= self.due_ms
    }
}

impl State {
    /// The state's name, as metrics, listings and the admin API write it.
    pub fn name(&self) -> &'static str {
        match self {
            State::InFlight { .. } => "in_flight",
            State::Uncertain { .. } => "uncertain",
            State::Completed { .. } => "completed",
            State::Released => "released",
            State::Expired => "expired",
        }
    }

    /// Whether an outcome is still owed.
    pub fn is_unsettled(&self) -> bool {
        matches!(self, State::InFlight { .. } | State::Uncertain { .. })
    }
}

impl Cause {
    /// The cause in words, for people.
    pub fn describe(&self) -> String {
        match self {
            Cause::Broken => {
                "the connection to the upstream broke after the request was sent".into()
            }
            Cause::Unreadable(fault) => fault.describe().into(),
            Cause::TimedOut => "the upstream did not answer in time".into(),
            Cause::Status(code @ ..100) => {
                format!(
                    "the upstream answered with the gRPC status {code}, which does not say whether it acted"
                )
            }
            Cause::Status(code) => {
                format!("the upstream answered {code}, which does not say whether it acted")
            }
            Cause::LeaseEnded => "the gateway that ran it went silent".into(),
            Cause::Stopped => "the gateway was stopped while the request was under way".into(),
            Cause::NotRepeated => {
                "a later attempt did nothing, and what the first one did is not known".into()
            }
        }
    }
}

impl AnswerFault {
    /// The fault in words, for people.
    pub fn describe(self) -> &'static str {
        match self {
            AnswerFault::TooManyFields => "the upstream's answer has more than 256 header fields",
            AnswerFault::HeadTooLarge => {
                "the header of the upstream's answer is too large (HTTP/1.1: 408 KiB, HTTP/2: 64 KiB)"
            }
            AnswerFault::Malformed => {
                "the header of the upstream's answer is not well-formed HTTP, or many times too large"
            }
        }
    }
}

#[cfg(test)]
mod tests;
