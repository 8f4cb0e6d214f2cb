//! The rules of a route for its events: what a claim stores as the publication of its operation.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::chosen::Side;
use super::redact::REDACTED;
use crate::key::{Pointer, with_values_replaced};
use crate::record::{
    AnnouncedMember, AnnouncedRule, AnnouncedState, Announcements, MemberSource, MissingReason,
    Publication, StatusClass, chosen_member,
};

/// Most publish rules of one route: each is stored with every operation of the route.
pub const PUBLISH_RULES_MAX: usize = 8;

/// The events that a route publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishRules {
    /// The `source` of the events (CloudEvents 1.0).
    pub source: String,
    /// Limit for the bytes of all events of one change.
    pub event_bytes: u64,
    /// The rules; at most [`PUBLISH_RULES_MAX`].
    pub rules: Vec<PublishRule>,
}

/// One event type that a route publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishRule {
    /// The states that make an event.
    pub on: Vec<AnnouncedState>,
    /// The statuses of a completed operation that make an event; empty for every status.
    pub statuses: Vec<StatusClass>,
    /// The names of the sinks.
    pub to: Vec<String>,
    /// The `type` of the event; `None` for `onceward.operation.<state>`.
    pub kind: Option<String>,
    /// The chosen members of the event's data.
    pub members: Vec<PublishedMember>,
}

/// A member that a rule chooses for the event's data.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedMember {
    /// Its name in the data.
    pub name: String,
    /// The body that has its value.
    pub side: Side,
    /// A JSON pointer (RFC 6901) to its value; empty for the whole document.
    pub pointer: String,
}

/// The request's body, for the members that an event takes from it.
#[derive(Debug, Clone, Copy)]
pub struct PublishedRequest<'r> {
    /// The body, decoded.
    pub content: &'r Bytes,
    /// Whether `content` is decoded; if not, no member can be read.
    pub is_decoded: bool,
    /// Members with values that are replaced, as in results.
    pub redact: &'r [Pointer],
    /// Number of events that led to the request.
    pub hops: u8,
}

impl PublishRules {
    /// Returns the publication of an operation that begins now.
    pub fn publication(&self, request: PublishedRequest<'_>) -> Publication {
        let uses_request = self.rules.iter().flat_map(|rule| &rule.members);
        let document = if uses_request.clone().any(|member| member.side == Side::Request) {
            request.document()
        } else {
            Err(MissingReason::Absent)
        };
        let member = |member: &PublishedMember| AnnouncedMember {
            name: member.name.clone(),
            value: match member.side {
                Side::Response => MemberSource::Response(member.pointer.clone()),
                Side::Request => request_member(&document, &member.pointer),
            },
        };
        let rule = |rule: &PublishRule| AnnouncedRule {
            on: rule.on.clone(),
            statuses: rule.statuses.clone(),
            to: rule.to.clone(),
            kind: rule.kind.clone(),
            members: rule.members.iter().map(member).collect(),
        };
        Publication::Open(Arc::new(Announcements {
            source: self.source.clone(),
            rules: self.rules.iter().map(rule).collect(),
            uncertain_announced: false,
            hops: request.hops,
            event_bytes: self.event_bytes,
        }))
    }
}

impl PublishedRequest<'_> {
    fn document(&self) -> Result<Bytes, MissingReason> {
        if !self.is_decoded {
            return Err(MissingReason::Encoded);
        }
        with_values_replaced(self.content, self.redact, REDACTED)
            .map_err(|_| MissingReason::NotJson)
    }
}

fn request_member(document: &Result<Bytes, MissingReason>, pointer: &str) -> MemberSource {
    let found = document.as_ref().map_err(|reason| *reason);
    let found = found.and_then(|document| chosen_member(document, pointer));
    let value = found.and_then(|value| {
        let text = String::from_utf8(value.to_vec()).map_err(|_| MissingReason::NotJson)?;
        RawValue::from_string(text).map_err(|_| MissingReason::NotJson)
    });
    value.map_or_else(MemberSource::Missing, MemberSource::Value)
}
