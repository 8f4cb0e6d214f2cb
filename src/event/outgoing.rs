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
    /// The new state.
    pub state: AnnouncedState,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The source of the result.
    pub settled_by: Option<&'static str>,
    /// The stored result; `None` if the change is no result.
    pub reply: Option<&'c Reply>,
}

/// Returns the events of a change: one for each rule that matches.
///
/// If the events together have more bytes than the operation's limit, they have no chosen members.
pub fn events_of(change: AnnouncedChange<'_>) -> Vec<OutgoingEvent> {
    let rules = &change.announcements.rules;
    let matching = || rules.iter().filter(|rule| rule.matches(change.state, change.status));
    let events: Vec<_> = matching().map(|rule| change.event(rule, Chosen::All)).collect();
    let bytes: u64 = events.iter().map(|event| event.content.len() as u64).sum();
    if bytes <= change.announcements.event_bytes {
        return events;
    }
    matching().map(|rule| change.event(rule, Chosen::LeftOut)).collect()
}

/// Whether an event has its chosen members.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chosen {
    All,
    LeftOut,
}

impl AnnouncedChange<'_> {
    fn event(&self, rule: &AnnouncedRule, members: Chosen) -> OutgoingEvent {
        let kind = rule.kind_of(self.state);
        let id = self.id(&kind);
        let operation = self.slot.to_string();
        let mut content = EventDraft::begin(ContentHead {
            closes: self.state == AnnouncedState::Completed,
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
        self.write_data(event.name("data"), &operation, &rule.members, members);
        OutgoingEvent { id, to: rule.to.clone(), content: content.into() }
    }

    fn write_data(
        &self,
        out: &mut Vec<u8>,
        operation: &str,
        members: &[AnnouncedMember],
        chosen: Chosen,
    ) {
        let mut data = Object::begin(out);
        data.text("operation", operation);
        data.text("route", &self.record.route);
        data.text("state", self.state.name());
        match self.status {
            Some(status) => data.number("status", status.into()),
            None => data.null("status"),
        }
        match self.settled_by {
            Some(settled_by) => data.text("settled_by", settled_by),
            None => data.null("settled_by"),
        }
        data.text("opened_at", &rfc3339(self.record.opened_unix_ms));
        if chosen == Chosen::LeftOut {
            if !members.is_empty() {
                data.name("truncated").extend_from_slice(b"true");
            }
            return;
        }
        let mut missing = BTreeMap::new();
        for AnnouncedMember { name, value } in members {
            match self.value(value) {
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

    fn value(&self, source: &MemberSource) -> Result<Bytes, MissingReason> {
        match source {
            MemberSource::Value(value) => Ok(Bytes::copy_from_slice(value.get().as_bytes())),
            MemberSource::Missing(reason) => Err(*reason),
            MemberSource::Response(pointer) => member_of(self.reply, pointer),
        }
    }

    /// Returns the id: equal for every sink and every delivery of the event, and for the same
    /// change written again.
    fn id(&self, kind: &str) -> String {
        let mut digest = Context::new(&SHA256);
        digest.update(self.slot.hash());
        digest.update(&self.record.version.0.to_be_bytes());
        digest.update(kind.as_bytes());
        let digest = digest.finish();
        format!("ev_{}", hex::encode(digest.as_ref().get(..ID_BYTES).unwrap_or_default()))
    }
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
