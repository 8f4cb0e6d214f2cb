//! Events for sinks, as CloudEvents 1.0 in the JSON event format.
//!
//! An event is written in the same step as the record, and delivered later. Its bytes are fixed
//! when it is written: every delivery of an event has the same content. Only the time of the change
//! is missing then, because the store's clock decides it: [`EventDraft`] adds it.

use std::collections::BTreeMap;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::content::{ContentHead, EventDraft};
use super::json::Object;
use super::saga::ChangedSaga;
use crate::clock::rfc3339;
use crate::hex;
use crate::key::Slot;
use crate::record::{
    AnnouncedMember, AnnouncedRule, AnnouncedState, Announcements, MemberSource, MissingReason,
    Record, Reply, ReplyBody, chosen_member,
};

/// Media type of an event.
pub const EVENT_MEDIA_TYPE: &str = "application/cloudevents+json";

/// Members of an event's data that a rule can't choose as a name.
pub const RESERVED_MEMBERS: [&str; 9] = [
    "operation",
    "route",
    "state",
    "status",
    "settled_by",
    "opened_at",
    "closed_at",
    "missing",
    "truncated",
];

/// The member of an event's data that has what changed in a saga. Rules of sagas can't choose it as
/// a name.
pub const SAGA_MEMBER: &str = "saga";

/// Bytes of the digest in an event's id.
const ID_BYTES: usize = 16;

/// Digits of a `sequence`: enough for every version, so that sequences compare as texts.
const SEQUENCE_DIGITS: usize = 20;

/// An event without the time of its change, and the sinks that get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingEvent {
    /// The `id`.
    pub id: String,
    /// The names of the sinks.
    pub to: Vec<String>,
    /// The content for [`EventDraft`].
    pub content: Bytes,
}

/// The part of a change that its events contain.
#[derive(Debug, Clone, Copy)]
pub struct AnnouncedChange<'c> {
    /// The operation.
    pub slot: &'c Slot,
    /// The record that the change writes.
    pub record: &'c Record,
    /// The rules of the operation.
    pub announcements: &'c Announcements,
    /// What the change is, in the order of its events. Only a change of a saga is several things.
    pub states: &'c [AnnouncedState],
    /// The status of the answer.
    pub status: Option<u16>,
    /// The source of the result.
    pub settled_by: Option<&'static str>,
    /// The stored result; `None` if the change is no result.
    pub reply: Option<&'c Reply>,
    /// What changed in the saga; `None` for other operations.
    pub saga: Option<&'c ChangedSaga>,
}

/// Returns the events of a change: for each of its states, one for each rule that matches.
///
/// If the events together have more bytes than the operation's limit, they have no chosen members.
pub fn events_of(change: AnnouncedChange<'_>) -> Vec<OutgoingEvent> {
    let rules = &change.announcements.rules;
    let events = |members: Chosen| -> Vec<OutgoingEvent> {
        let of_state = |state: &AnnouncedState| {
            let state = *state;
            let matching = rules.iter().filter(move |rule| rule.matches(state, change.status));
            matching.map(move |rule| change.event(rule, state, members))
        };
        change.states.iter().flat_map(of_state).collect()
    };
    let all = events(Chosen::All);
    let bytes: u64 = all.iter().map(|event| event.content.len() as u64).sum();
    if bytes <= change.announcements.event_bytes { all } else { events(Chosen::LeftOut) }
}

/// Whether an event has its chosen members.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chosen {
    All,
    LeftOut,
}

impl AnnouncedChange<'_> {
    fn event(&self, rule: &AnnouncedRule, state: AnnouncedState, members: Chosen) -> OutgoingEvent {
        let kind = rule.kind_of(state);
        let id = self.id(&kind, state);
        let operation = self.slot.to_string();
        let mut content = EventDraft::begin(ContentHead {
            closes: state.has_answer(),
            hops: self.announcements.hops,
        });
        let mut event = Object::begin(&mut content);
        event.text("specversion", "1.0");
        event.text("id", &id);
        event.text("source", &self.announcements.source);
        event.text("type", &kind);
        event.text("subject", &operation);
        event.text("datacontenttype", "application/json");
        event.text("partitionkey", &operation);
        let sequence = self.record.version.0;
        event.text("sequence", &format!("{sequence:0SEQUENCE_DIGITS$}"));
        if let Some(span) = &self.record.extras.span {
            let (trace, span) = (hex::encode(&span.trace), hex::encode(&span.span));
            event.text("traceparent", &format!("00-{trace}-{span}-01"));
        }
        // Neither object ends here: `EventDraft` does that.
        self.write_data(event.name("data"), &operation, state, (&rule.members, members));
        OutgoingEvent { id, to: rule.to.clone(), content: content.into() }
    }

    fn write_data(
        &self,
        out: &mut Vec<u8>,
        operation: &str,
        state: AnnouncedState,
        (members, chosen): (&[AnnouncedMember], Chosen),
    ) {
        let saga = self.saga.filter(|_| state.is_of_saga());
        let mut data = Object::begin(out);
        data.text("operation", operation);
        data.text("route", &self.record.route);
        data.text("state", saga.map_or(state.name(), |saga| &saga.status));
        // A step of a saga has no answer for the client, although it may come with the saga's end.
        match self.status.filter(|_| state.has_answer() || !state.is_of_saga()) {
            Some(status) => data.number("status", status.into()),
            None => data.null("status"),
        }
        match self.settled_by.filter(|_| !state.is_of_saga()) {
            Some(settled_by) => data.text("settled_by", settled_by),
            None => data.null("settled_by"),
        }
        data.text("opened_at", &rfc3339(self.record.opened_unix_ms));
        if let Some(saga) = saga {
            write_saga(data.name(SAGA_MEMBER), saga);
        }
        if chosen == Chosen::LeftOut {
            if !members.is_empty() {
                data.name("truncated").extend_from_slice(b"true");
            }
            return;
        }
        let mut missing = BTreeMap::new();
        for AnnouncedMember { name, value } in members {
            match self.value(value, state) {
                Ok(value) => data.any_name(name).extend_from_slice(&value),
                Err(reason) => {
                    missing.insert(name.clone(), reason.name().to_owned());
                }
            }
        }
        if !missing.is_empty() {
            super::json::texts(data.name("missing"), &missing);
        }
    }

    fn value(&self, source: &MemberSource, of: AnnouncedState) -> Result<Bytes, MissingReason> {
        match source {
            MemberSource::Value(value) => Ok(Bytes::copy_from_slice(value.get().as_bytes())),
            MemberSource::Missing(reason) => Err(*reason),
            MemberSource::Response(pointer) => {
                member_of(self.reply.filter(|_| of.has_answer()), pointer)
            }
        }
    }

    /// Returns the id: equal for every sink and every delivery of the event, and for the same
    /// change written again.
    fn id(&self, kind: &str, state: AnnouncedState) -> String {
        let mut digest = Context::new(&SHA256);
        digest.update(self.slot.hash());
        digest.update(&self.record.version.0.to_be_bytes());
        digest.update(kind.as_bytes());
        // A change of a saga may make several events of the type that a rule gives them.
        if state.is_of_saga() {
            digest.update(state.name().as_bytes());
        }
        let digest = digest.finish();
        format!("ev_{}", hex::encode(digest.as_ref().get(..ID_BYTES).unwrap_or_default()))
    }
}

/// Writes what changed in a saga: steps, the reasons of a stop and of a failure, and the decision
/// of an operator.
fn write_saga(out: &mut Vec<u8>, saga: &ChangedSaga) {
    let ChangedSaga { events: _, status: _, steps, stuck, failure, decision } = saga;
    let mut data = Object::begin(out);
    // Writing these types to memory can't fail.
    serde_json::to_writer(data.name("steps"), steps).unwrap_or_default();
    if !stuck.is_empty() {
        serde_json::to_writer(data.name("stuck"), stuck).unwrap_or_default();
    }
    if let Some(failure) = failure {
        serde_json::to_writer(data.name("failure"), failure).unwrap_or_default();
    }
    data.text_if("decision", decision.as_deref());
    data.end();
}

/// Returns the member of a stored result.
fn member_of(reply: Option<&Reply>, pointer: &str) -> Result<Bytes, MissingReason> {
    // A state without a result has no such member.
    let reply = reply.ok_or(MissingReason::Absent)?;
    let ReplyBody::Whole(body) = &reply.body else { return Err(MissingReason::NotStored) };
    if is_encoded(reply) {
        return Err(MissingReason::Encoded);
    }
    chosen_member(body, pointer)
}

fn is_encoded(reply: &Reply) -> bool {
    let codings = reply.headers.get_all(http::header::CONTENT_ENCODING);
    let is_identity = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    !codings.iter().all(|coding| is_identity(coding.as_bytes()))
}
