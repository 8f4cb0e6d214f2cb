//! The record: the stored state of one operation, and the reply for its duplicates.
//!
//! `absent -> in flight -> completed | uncertain | released`, and `absent -> saga -> completed`. A
//! record contains a hash of the caller, the fingerprint, the fence of the attempt that may still
//! write to the record, and the version, which is the number of the last change.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::key::{Caller, Fingerprint, Slot};

mod codec;
mod publication;

pub use codec::{
    CodecError, Encoded, HEAD_BYTES, decode, decode_reply, encode, encode_reply, head_completed,
    head_fence, head_has_lease, head_in_flight, head_is_saga, head_may_be_large, head_version,
};
pub use publication::{
    AnnouncedMember, AnnouncedRule, AnnouncedState, Announcements, InvalidStatusClass,
    MEMBER_DEPTH_MAX, MemberSource, MissingReason, Publication, StatusClass, chosen_member,
};

/// Distinguishes the changes of a record. Each change writes another version, mostly the next
/// number. In an empty slot it starts at a random number, so that a slot never has the same version
/// twice and an old attempt can't be confused with a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of the next change.
    pub fn next(self) -> Version {
        Version(self.0.wrapping_add(1))
    }

    /// The version after the next one, for a change that races with the active attempt. The
    /// attempt's own write has the next version. If both writes had equal versions, fences and
    /// states, a store would treat them as one write.
    pub fn after_next(self) -> Version {
        self.next().next()
    }

    /// A later version, for a change that keeps the fence of an owner that may write several
    /// versions meanwhile. `random` makes the version differ from these versions, and from that of
    /// another such change. Otherwise a store would treat two of them as one write.
    ///
    /// It is at most [`Version::SKIPPED_MAX`] higher, so that it still shows which change is later.
    pub fn skip(self, random: u64) -> Version {
        Version(self.0.wrapping_add(Version::SKIPPED_MIN + random % Version::SKIPPED_RANGE))
    }

    /// Highest difference that [`Version::skip`] makes.
    pub const SKIPPED_MAX: u64 = Version::SKIPPED_MIN + Version::SKIPPED_RANGE;

    /// More than an owner writes while an operator's change is on its way.
    const SKIPPED_MIN: u64 = 1 << 10;

    const SKIPPED_RANGE: u64 = 1 << 20;
}

/// Random id of one attempt to run an operation, or of one decision by an operator or a probe. A
/// write with an old fence changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence(pub u64);

/// The stored state of one operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The version that the last change wrote.
    pub version: Version,
    /// The attempt that the record belongs to.
    pub fence: Fence,
    /// The route's name. If no configured route has this name, the default policy applies to the
    /// record.
    pub route: Arc<str>,
    /// The fingerprint of the request. `None` only on a released marker.
    pub fingerprint: Option<Fingerprint>,
    /// The caller of the request. `None` only on a released marker.
    pub caller: Option<Caller>,
    /// When the first attempt began, in ms since 1970 by its gateway's clock: for people, and to
    /// recognise an operation after a loss of records.
    pub opened_unix_ms: u64,
    /// The upstream's form of the key, for background probes. Kept only while the outcome is
    /// unknown, and only in stores that seal it.
    pub kept: Option<Bytes>,
    /// The events that the operation's changes make. Only unsettled records have one: a settled
    /// record makes no more events.
    pub publication: Option<Publication>,
    /// Data that no rule reads.
    pub extras: Extras,
    /// The state.
    pub state: State,
}

/// Data about the first request, for people. Released markers and tombstones do not have this data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Digests of the request's members ([`crate::key::LeafDigests`]).
    pub leaves: Option<Bytes>,
    /// The trace span of the attempt.
    pub span: Option<SpanId>,
    /// What the client of a saga may see of it; `None` for other operations.
    pub saga: Option<SagaNote>,
    /// The slot of the resource that the attempt locks before it sends anything; `None` for
    /// requests that take no lock.
    pub resource: Option<Slot>,
}

/// Facts about a saga for its client, in the clear. They outlive the saga's content, until the
/// retention of its answer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SagaNote {
    /// The mark of the saga's tenant ([`crate::key::Hashing::tenant_mark`]). Only requests of this
    /// tenant may read the state of the saga.
    pub tenant_mark: Arc<str>,
    /// The final state of the steps, as JSON; empty while the saga runs.
    pub summary: Bytes,
}

/// A span, and its trace (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId {
    /// The trace's id.
    pub trace: [u8; 16],
    /// The span's id.
    pub span: [u8; 8],
}

/// The state of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// An attempt is active, under a lease.
    InFlight {
        /// For an attempt that began from an uncertain record: the time at which the record became
        /// uncertain, in ms of the store's clock. Such an attempt completes the operation or leaves
        /// it uncertain, and never releases it.
        uncertain_since_ms: Option<u64>,
    },
    /// It is unknown whether the upstream executed the operation.
    Uncertain {
        /// The reason.
        cause: Cause,
        /// The time at which the operation became uncertain, in ms of the store's clock. `None`
        /// means the time of this version's write. Later versions of the record keep this time,
        /// unless a later attempt, which sent the request again, is in doubt too.
        since_ms: Option<u64>,
        /// If an operator has decided that the next duplicate runs: the fence of the lost attempt,
        /// which is the attempt with the unknown outcome. The lost attempt may still settle the
        /// operation before a duplicate runs, although the record has the fence of the decision.
        retry: Option<Fence>,
    },
    /// The operation is answered. Duplicates get this reply.
    Completed {
        /// The reply. Shared, because it goes to the store and to the client.
        reply: Arc<Reply>,
        /// The source of the result.
        by: Settler,
    },
    /// The attempt provably did nothing. The marker refuses a late claim under the same fence.
    Released,
    /// The tombstone: a small record that outlives a completed one.
    Expired,
    /// A saga runs, in the slot of its client's request. Its owner has a lease, and writes each
    /// progress under its fence. The saga ends as a completed record.
    Saga {
        /// The phase, which no key seals: admission and lists need it.
        phase: SagaPhase,
        /// The plan, the request and the log.
        content: PrivateContent,
    },
    /// The operation of a saga's step may not run: the saga goes back, and the step was not begun.
    /// The record refuses every claim of the slot.
    Barred,
    /// The lock of a resource, in the resource's own slot. The record has the fence of the attempt
    /// that holds the lock.
    Lock(Lock),
    /// The request waits for a person's decision, or has one.
    Review {
        /// How far the review is.
        stage: ReviewStage,
        /// The request, and what it is in conflict with.
        content: PrivateContent,
    },
    /// The last versions of a resource, in a slot beside that of its lock.
    Versions {
        /// The tags, with the digests of the members.
        content: PrivateContent,
    },
}

/// The lock of a resource: one write at a time looks at the current version and is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// What its holder does.
    pub phase: LockPhase,
    /// The operation of the write that holds it. The lock is held for as long as the outcome of
    /// that operation may still be open: its lease is that of the operation's attempt.
    pub operation: Slot,
    /// How long the write may still be executed after its outcome became uncertain, in ms.
    pub rest_ms: u64,
}

/// What the holder of a lock does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockPhase {
    /// Nobody holds the lock.
    Free,
    /// It compares the current version. Nothing was sent.
    Looking,
    /// The write may have been sent.
    Sent,
}

/// How far a review is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReviewStage {
    /// A person has to decide.
    Pending,
    /// The next duplicate runs.
    Accepted,
    /// The request never runs.
    Rejected,
}

/// The phase of a saga that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SagaPhase {
    /// Its steps run.
    Running,
    /// Its steps are undone.
    Compensating,
    /// A person has to decide, or an upstream has to become available.
    Stuck,
}

/// Content of a record that stores seal, and do not read: the plan, the request and the log of a
/// saga, the request of a review, the versions of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateContent {
    /// The plain text.
    Open(Bytes),
    /// The sealed text. Outside a store, a sealed content means that the encryption key is missing:
    /// this gateway can't read it.
    Sealed(Bytes),
}

impl SagaPhase {
    /// Returns the phase's name in lists and events.
    pub fn name(self) -> &'static str {
        match self {
            SagaPhase::Running => "running",
            SagaPhase::Compensating => "compensating",
            SagaPhase::Stuck => "stuck",
        }
    }
}

/// The reason for an uncertain outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The connection broke after a byte of the request was written.
    Broken,
    /// The upstream's answer can't be parsed. Older releases read this cause as [`Cause::Broken`].
    Unreadable(AnswerFault),
    /// The upstream didn't answer in time.
    TimedOut,
    /// The upstream's status doesn't show whether it executed the operation. Numbers below 100 are
    /// gRPC statuses.
    Status(u16),
    /// The gateway of the attempt stopped renewing the lease.
    LeaseEnded,
    /// The gateway was stopped during the attempt.
    Stopped,
    /// A later attempt did nothing, so the outcome of the first attempt is still unknown.
    NotRepeated,
}

/// The reason why an answer can't be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFault {
    /// The head has more fields than the limit.
    TooManyFields,
    /// The head is larger than the limit.
    HeadTooLarge,
    /// The head is not well-formed HTTP.
    Malformed,
}

/// The source of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settler {
    /// The upstream's own answer.
    Upstream,
    /// An operator's decision.
    Operator,
    /// The upstream's answer to a probe.
    Probe,
}

/// A stored answer: status, end-to-end header fields and body.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The status code.
    pub status: StatusCode,
    /// End-to-end fields, including `Date`.
    pub headers: HeaderMap,
    /// The body.
    pub body: ReplyBody,
    /// Trailers (RFC 9110, section 6.5), which are kept for gRPC answers with a whole body. Empty
    /// if the body is sealed: the sealed body then contains the trailers. Version 0.1.0 can't read
    /// records with trailers.
    pub trailers: Option<HeaderMap>,
}

/// The stored part of a reply's body.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyBody {
    /// The whole body.
    Whole(Bytes),
    /// No body: it was too large, an event stream or a switched protocol, and was streamed once.
    NotStored,
    /// A sealed body with its header fields. Only stores contain such replies. Outside a store, a
    /// sealed body means that the encryption key is missing.
    Sealed(Bytes),
}

/// The lifetime of a record, as durations: the store computes times by its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Time until the record disappears.
    pub keep: Duration,
    /// Time until the record is due for a check: for a record in flight or a saga, the lease.
    /// `None` keeps the record out of the index of unsettled records, and out of that of sagas.
    pub due: Option<Duration>,
    /// For a result: the time from now until its tombstone disappears, which is at least `keep`.
    /// For a claim over an empty slot or a marker: if this is set, an existing tombstone refuses
    /// the claim.
    pub tombstone: Option<Duration>,
}

/// A stored record, with times in ms since 1970 by the store's clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The record.
    pub record: Record,
    /// The time of the last change. For a settled record, this time may be inexact by up to the
    /// duration of a store call.
    pub written_ms: u64,
    /// The time of the next check: for a record in flight or a saga, the end of the lease. 0 means
    /// never.
    pub due_ms: u64,
    /// The store's time at this read. For a settled record it may be an estimate from earlier
    /// answers of the store, because no answer to a client depends on the record's age.
    pub now_ms: u64,
}

impl Record {
    /// Returns the content of a saga that is not sealed; `None` for every other record.
    pub fn saga_content(&self) -> Option<&Bytes> {
        match &self.state {
            State::Saga { content: PrivateContent::Open(content), .. } => Some(content),
            _ => None,
        }
    }

    /// Returns the tombstone of a completed record.
    pub fn tombstone(&self) -> Record {
        Record {
            route: self.route.clone(),
            kept: None,
            publication: None,
            extras: Extras::default(),
            state: State::Expired,
            ..*self
        }
    }

    /// Returns whether the attempt with this fence may still settle the record: the record has the
    /// fence, or an operator's retry names the fence.
    pub fn belongs_to(&self, attempt: Fence) -> bool {
        let named =
            matches!(self.state, State::Uncertain { retry: Some(lost), .. } if lost == attempt);
        self.fence == attempt || named
    }

    /// Returns whether both records were written by the same call. Comparing version, fence and
    /// state is enough, because two different writes never share all three: an operator's decision
    /// has its own fence, an attempt writes each state once, the owner of a saga writes each
    /// version once, and a write under another attempt's fence skips a version.
    pub fn is_same_write(&self, other: &Record) -> bool {
        self.version == other.version && self.is_same_state(other)
    }

    /// Returns whether both records have the same attempt and state, in any version.
    pub fn is_same_state(&self, other: &Record) -> bool {
        let state = |record: &Record| std::mem::discriminant(&record.state);
        (self.fence, state(self)) == (other.fence, state(other))
    }
}

impl Held {
    /// Returns whether the lease of the attempt, or of the saga's owner, has ended by the store's
    /// clock.
    pub fn lease_is_over(&self) -> bool {
        self.record.state.has_lease() && self.now_ms >= self.due_ms
    }
}

impl State {
    /// Returns the state's name in metrics, lists and the admin API.
    pub fn name(&self) -> &'static str {
        match self {
            State::InFlight { .. } => "in_flight",
            State::Uncertain { .. } => "uncertain",
            State::Completed { .. } => "completed",
            State::Released => "released",
            State::Expired => "expired",
            State::Saga { .. } => "saga",
            State::Barred => "barred",
            State::Lock(_) => "lock",
            State::Review { .. } => "review",
            State::Versions { .. } => "versions",
        }
    }

    /// Returns whether the outcome is still open.
    pub fn is_unsettled(&self) -> bool {
        matches!(
            self,
            State::InFlight { .. }
                | State::Uncertain { .. }
                | State::Saga { .. }
                | State::Review { stage: ReviewStage::Pending | ReviewStage::Accepted, .. }
        )
    }

    /// Returns whether a process holds the record under a lease: an attempt, or a saga's owner.
    pub fn has_lease(&self) -> bool {
        matches!(self, State::InFlight { .. } | State::Saga { .. })
    }
}

impl Cause {
    /// Describes the cause for people.
    pub fn describe(&self) -> String {
        match self {
            Cause::Broken => {
                "the connection to the upstream broke after the request was sent".into()
            }
            Cause::Unreadable(fault) => fault.describe().into(),
            Cause::TimedOut => "the upstream did not answer in time".into(),
            Cause::Status(code @ ..100) => {
                format!(
                    "the upstream answered with the gRPC status {code}, which does not say whether \
                     it acted"
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
    /// Describes the fault for people.
    pub fn describe(self) -> &'static str {
        match self {
            AnswerFault::TooManyFields => "the upstream's answer has more than 256 header fields",
            AnswerFault::HeadTooLarge => {
                "the header of the upstream's answer is too large (HTTP/1.1: 408 KiB, HTTP/2: 64 \
                 KiB)"
            }
            AnswerFault::Malformed => {
                "the header of the upstream's answer is not well-formed HTTP, or many times too \
                 large"
            }
        }
    }
}

#[cfg(test)]
mod tests;
