//! The publication of an operation: which events its changes make, and for which sinks.
//!
//! The claim stores it, and every later change of the operation uses the stored one. So an
//! operation publishes what its route's configuration demanded when it began, whichever gateway
//! and whichever configuration settles it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::key::{Pointer, value};

/// Deepest nesting of a chosen member. With a deeper one, the templates of calls could not read the
/// event: they read 64 levels, and the member is in `data`, in the event.
pub const MEMBER_DEPTH_MAX: usize = 62;

/// The publication as a record has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Publication {
    /// Readable. Shared, because a claim and its changes copy the record several times.
    Open(Arc<Announcements>),
    /// Sealed. Only stores contain such publications. Above them it means that the key is missing,
    /// and the record must not be changed: its event would be lost.
    Sealed(Bytes),
}

/// What an operation announces, in the form that is stored (JSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcements {
    /// The `source` of the events (CloudEvents 1.0).
    pub source: String,
    /// The rules of the route at the time of the claim.
    pub rules: Vec<AnnouncedRule>,
    /// Whether an event that the operation is uncertain was written. An operation announces that
    /// once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncertain_announced: bool,
    /// Number of events that led to this operation: 0 for a client's request.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hops: u8,
    /// Limit for the bytes of all events of one change. Above it, they have no chosen members.
    pub event_bytes: u64,
}

/// What is announced: a state of an operation, or an event of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnnouncedState {
    /// The operation has a stored answer. A saga has one when it ends, in either way.
    Completed,
    /// It is unknown whether the operation was executed.
    Uncertain,
    /// The operation was not executed, and its key is free.
    Released,
    /// A saga began.
    #[serde(rename = "saga.started")]
    SagaStarted,
    /// Steps of a saga have a new status.
    #[serde(rename = "saga.step")]
    SagaStep,
    /// A saga waits for a person.
    #[serde(rename = "saga.stuck")]
    SagaStuck,
    /// A saga that waited for a person goes on.
    #[serde(rename = "saga.resumed")]
    SagaResumed,
    /// A saga ended: every step was executed or skipped.
    #[serde(rename = "saga.completed")]
    SagaCompleted,
    /// A saga ended: everything that was executed is undone.
    #[serde(rename = "saga.failed")]
    SagaFailed,
}

/// One rule: an event of one type, for some sinks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnouncedRule {
    /// The states that make an event.
    pub on: Vec<AnnouncedState>,
    /// The statuses of a completed operation that make an event; empty for every status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<StatusClass>,
    /// The names of the sinks.
    pub to: Vec<String>,
    /// The `type` of the event; `None` for `onceward.operation.<state>`, and for
    /// `onceward.saga.<event>`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The chosen members of the event's data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<AnnouncedMember>,
}

/// A status, or a class of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum StatusClass {
    /// One status code.
    Code(u16),
    /// The codes `100 * n` to `100 * n + 99`.
    Class(u8),
}

/// A chosen member of an event's data.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnouncedMember {
    /// Its name.
    pub name: String,
    /// Its value, or the place of its value.
    pub value: MemberSource,
}

/// The value of a chosen member, or its place.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberSource {
    /// A value of the request, as the request has it (JSON).
    Value(Box<RawValue>),
    /// The request has no such value.
    Missing(MissingReason),
    /// A JSON pointer (RFC 6901) into the response; empty for the whole document.
    Response(String),
}

/// Why a chosen member has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingReason {
    /// The document has no such member.
    Absent,
    /// The body is not JSON, or is JSON that two parsers may read differently. That includes a
    /// member that is nested deeper than [`MEMBER_DEPTH_MAX`], because parsers have limits.
    NotJson,
    /// The body has a content coding, such as gzip.
    Encoded,
    /// The body was not stored.
    NotStored,
}

/// A text that is neither a status code nor a class of statuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a status: write a code (`404`) or a class (`4xx`)")]
pub struct InvalidStatusClass(pub String);

impl Announcements {
    /// Encodes the announcements as they are stored.
    pub fn encode(&self) -> Bytes {
        // Writing these types to memory can't fail: every map key is a string.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Decodes the output of [`Announcements::encode`]; `None` for anything else, also for members
    /// that this version does not read.
    pub fn decode(text: &[u8]) -> Option<Announcements> {
        serde_json::from_slice(text).ok()
    }
}

impl AnnouncedState {
    /// What routes to upstreams announce.
    pub const OF_ROUTES: [AnnouncedState; 3] =
        [AnnouncedState::Completed, AnnouncedState::Uncertain, AnnouncedState::Released];

    /// What sagas announce. A saga is never uncertain or released: its steps are.
    pub const OF_SAGAS: [AnnouncedState; 7] = [
        AnnouncedState::Completed,
        AnnouncedState::SagaStarted,
        AnnouncedState::SagaStep,
        AnnouncedState::SagaStuck,
        AnnouncedState::SagaResumed,
        AnnouncedState::SagaCompleted,
        AnnouncedState::SagaFailed,
    ];

    /// Returns the event of a saga with this name.
    pub fn of_name(name: &str) -> Option<AnnouncedState> {
        let mut events = AnnouncedState::OF_SAGAS.into_iter().filter(|state| state.is_of_saga());
        events.find(|state| state.name() == name)
    }

    /// Returns whether it is an event of a saga.
    pub fn is_of_saga(self) -> bool {
        !AnnouncedState::OF_ROUTES.contains(&self)
    }

    /// Returns whether the operation has an answer for the client after the change.
    pub fn has_answer(self) -> bool {
        use AnnouncedState::{Completed, SagaCompleted, SagaFailed};
        matches!(self, Completed | SagaCompleted | SagaFailed)
    }

    /// Returns the name in configurations and events.
    pub fn name(self) -> &'static str {
        match self {
            AnnouncedState::Completed => "completed",
            AnnouncedState::Uncertain => "uncertain",
            AnnouncedState::Released => "released",
            AnnouncedState::SagaStarted => "saga.started",
            AnnouncedState::SagaStep => "saga.step",
            AnnouncedState::SagaStuck => "saga.stuck",
            AnnouncedState::SagaResumed => "saga.resumed",
            AnnouncedState::SagaCompleted => "saga.completed",
            AnnouncedState::SagaFailed => "saga.failed",
        }
    }
}

impl AnnouncedRule {
    /// Returns whether the rule makes an event of a change to this state. `status` is the status of
    /// a completed operation.
    pub fn matches(&self, state: AnnouncedState, status: Option<u16>) -> bool {
        let has_status = |status| self.statuses.iter().any(|class| class.contains(status));
        self.on.contains(&state)
            && (state != AnnouncedState::Completed
                || self.statuses.is_empty()
                || status.is_some_and(has_status))
    }

    /// Returns the `type` of the rule's event about this state.
    pub fn kind_of(&self, state: AnnouncedState) -> String {
        let of = if state.is_of_saga() { "" } else { "operation." };
        self.kind.clone().unwrap_or_else(|| format!("onceward.{of}{}", state.name()))
    }
}

impl StatusClass {
    /// Returns whether a status is in the class.
    pub fn contains(self, status: u16) -> bool {
        match self {
            StatusClass::Code(code) => code == status,
            StatusClass::Class(class) => status / 100 == u16::from(class),
        }
    }

    /// Returns whether some status is in both classes.
    pub fn overlaps(self, other: StatusClass) -> bool {
        match (self, other) {
            (StatusClass::Code(code), other) | (other, StatusClass::Code(code)) => {
                other.contains(code)
            }
            (StatusClass::Class(class), StatusClass::Class(other)) => class == other,
        }
    }
}

impl From<StatusClass> for String {
    fn from(class: StatusClass) -> String {
        match class {
            StatusClass::Code(code) => code.to_string(),
            StatusClass::Class(class) => format!("{class}xx"),
        }
    }
}

impl TryFrom<String> for StatusClass {
    type Error = InvalidStatusClass;

    fn try_from(text: String) -> Result<StatusClass, InvalidStatusClass> {
        let code = || text.parse().ok().filter(|code| text.len() == 3 && (100..600).contains(code));
        let class = match text.strip_suffix("xx").map(str::parse) {
            Some(Ok(class @ 1..=5)) => Some(StatusClass::Class(class)),
            Some(_) => None,
            None => code().map(StatusClass::Code),
        };
        class.ok_or(InvalidStatusClass(text))
    }
}

/// Compares values as texts: [`RawValue`] has no comparison of its own.
impl PartialEq for MemberSource {
    fn eq(&self, other: &MemberSource) -> bool {
        match (self, other) {
            (MemberSource::Value(value), MemberSource::Value(other)) => value.get() == other.get(),
            (MemberSource::Missing(reason), MemberSource::Missing(other)) => reason == other,
            (MemberSource::Response(pointer), MemberSource::Response(other)) => pointer == other,
            _ => false,
        }
    }
}

impl PartialEq for AnnouncedMember {
    fn eq(&self, other: &AnnouncedMember) -> bool {
        (&self.name, &self.value) == (&other.name, &other.value)
    }
}

impl MissingReason {
    /// Returns the reason's name in events.
    pub fn name(self) -> &'static str {
        match self {
            MissingReason::Absent => "absent",
            MissingReason::NotJson => "not-json",
            MissingReason::Encoded => "encoded",
            MissingReason::NotStored => "not-stored",
        }
    }
}

/// Returns the value under a JSON pointer, as the document has it. An empty pointer means the whole
/// document; `null` is a value.
///
/// # Errors
/// The document is no clear JSON, or has no such value.
pub fn chosen_member(document: &Bytes, pointer: &str) -> Result<Bytes, MissingReason> {
    let parsed = Pointer::parse(pointer);
    if parsed.is_none() && !pointer.is_empty() {
        return Err(MissingReason::Absent);
    }
    match value(document, parsed.as_ref()) {
        Ok(Some(value)) if depth(&value) <= MEMBER_DEPTH_MAX => Ok(value),
        Ok(None) => Err(MissingReason::Absent),
        Ok(Some(_)) | Err(_) => Err(MissingReason::NotJson),
    }
}

/// Returns the number of levels of a JSON text: 0 for a text or a number.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest): (usize, usize) = (0, 0);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'{' | b'[' if !is_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn is_zero(number: &u8) -> bool {
    *number == 0
}
