//! Events: what every change of a record says of itself, written in the same step as the record.
//!
//! Folded in order, the events of an operation give its record's state ([`Summary::fold`]). An event tells nothing that may
//! not be read by operators: no key, no body, no credentials.
//!
//! Events are JSON, because others read them too. Members are added, never changed or taken away.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::json::{Object, texts};
use crate::record::{Lifetime, Record, ReplyBody, Settler, State};

mod json;
mod observation;

pub use observation::{Difference, Observation, ObservationKind};

/// Longest reason of an operator that is kept, in bytes: longer ones are cut, or an event would be too long to be read.
pub const REASON_BYTES_MAX: usize = 1024;

/// Room for an event without long fields: growing to it step by step takes a third of the time that writing it does.
const USUAL_BYTES: usize = 384;

/// What happened to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An attempt began.
    Claimed,
    /// The upstream's answer is the result.
    Completed,
    /// Nobody knows whether the upstream acted.
    Uncertain,
    /// The attempt provably did nothing: the key is free.
    Released,
    /// An operator said what the result is.
    Resolved,
    /// The upstream told, when it was asked, what the result is.
    Found,
    /// An operator lets the next duplicate run.
    Retried,
    /// An operator ended the retention of the result.
    Expired,
}

impl EventKind {
    /// Its name in an event.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Claimed => "claimed",
            EventKind::Completed => "completed",
            EventKind::Uncertain => "uncertain",
            EventKind::Released => "released",
            EventKind::Resolved => "resolved",
            EventKind::Found => "found",
            EventKind::Retried => "retried",
            EventKind::Expired => "expired",
        }
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The version that the change wrote, in decimal digits: too large a number for some readers of JSON.
    pub version: String,
    /// The attempt or decision, in decimal digits.
    pub fence: String,
    /// The route.
    pub route: String,
    /// When the first attempt began, in ms since 1970 by its gateway's clock.
    pub opened_ms: u64,
    /// How long the record is kept from this change on, in ms.
    pub keep_ms: u64,
    /// How long a tombstone stands from this change on, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone_ms: Option<u64>,
    /// How long the attempt's lease is, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// The result's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the result's body, where it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
    /// Why the outcome is uncertain, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What the gateway knew beside the record.
    #[serde(flatten)]
    pub context: Context,
}

/// What a gateway knows of a change beside the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The scope's hash, shortened: operations of one tenant have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The trace that the request belongs to: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Bytes of the request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// From sending the request to the end of its response, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_ms: Option<u64>,
    /// Members of the request's or the response's body that the route's configuration names, by their name there. Those of the
    /// request are told with the claim, those of the response with the completion.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// Who decided, of an operator's decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Bytes that are no event.
#[derive(Debug, thiserror::Error)]
#[error("an entry of the event log is no event that this version knows: {0}")]
pub struct EventDecodeError(#[from] serde_json::Error);

impl Event {
    /// What a change says of itself: it wrote `next`, to live so long.
    pub fn of(next: &Record, lifetime: Lifetime, mut context: Context) -> Event {
        let (mut status, mut response_bytes, mut cause) = (None, None, None);
        let kind = match &next.state {
            State::InFlight { .. } => EventKind::Claimed,
            State::Uncertain { cause: why, retry, .. } => {
                cause = Some(why.describe());
                if retry.is_some() { EventKind::Retried } else { EventKind::Uncertain }
            }
            State::Completed { reply, by } => {
                status = Some(reply.status.as_u16());
                if let ReplyBody::Whole(body) = &reply.body {
                    response_bytes = Some(body.len() as u64);
                }
                match by {
                    Settler::Upstream => EventKind::Completed,
                    Settler::Operator => EventKind::Resolved,
                    Settler::Probe => EventKind::Found,
                }
            }
            State::Released => EventKind::Released,
            State::Expired => EventKind::Expired,
        };
        if let Some(reason) = &mut context.reason {
            let fits = (0..=REASON_BYTES_MAX).rev().find(|at| reason.is_char_boundary(*at));
            reason.truncate(if reason.len() > REASON_BYTES_MAX {
                fits.unwrap_or(0)
            } else {
                reason.len()
            });
        }
        Event {
            kind,
            version: next.version.0.to_string(),
            fence: next.fence.0.to_string(),
            route: next.route.to_string(),
            opened_ms: next.opened_unix_ms,
            keep_ms: millis(lifetime.keep),
            // With a claim it says something else: that a tombstone stands in its way.
            tombstone_ms: lifetime.tombstone.filter(|_| status.is_some()).map(millis),
            lease_ms: lifetime.due.filter(|_| kind == EventKind::Claimed).map(millis),
            status,
            response_bytes,
            cause,
            context,
        }
    }

    /// As it is appended: what [`Serialize`] writes, in a third of its time.
    pub fn encode(&self) -> Vec<u8> {
        let Event { kind, version, fence, route, opened_ms, keep_ms, tombstone_ms, .. } = self;
        let Event { lease_ms, status, response_bytes, cause, context, .. } = self;
        let Context { scope, trace, request_bytes, upstream_ms, fields, operator, reason } =
            context;
        let mut encoded = Vec::with_capacity(USUAL_BYTES);
        let mut event = Object::begin(&mut encoded);
        event.text("kind", kind.name());
        event.text("version", version);
        event.text("fence", fence);
        event.text("route", route);
        event.number("opened_ms", *opened_ms);
        event.number("keep_ms", *keep_ms);
        event.number_if("tombstone_ms", *tombstone_ms);
        event.number_if("lease_ms", *lease_ms);
        event.number_if("status", status.map(u64::from));
        event.number_if("response_bytes", *response_bytes);
        event.text_if("cause", cause.as_deref());
        event.text_if("scope", scope.as_deref());
        event.text_if("trace", trace.as_deref());
        event.number_if("request_bytes", *request_bytes);
        event.number_if("upstream_ms", *upstream_ms);
        if !fields.is_empty() {
            texts(event.name("fields"), fields);
        }
        event.text_if("operator", operator.as_deref());
        event.text_if("reason", reason.as_deref());
        event.end();
        encoded
    }

    /// Reads one. Members that this version doesn't know are passed over.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> Result<Event, EventDecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Where an operation stands, told by its events alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The last event.
    pub last: Event,
    /// When that was, in ms since 1970 by the store's clock.
    pub changed_ms: u64,
    /// Whose it is, as the last event that knew it said.
    pub scope: Option<String>,
}

impl Summary {
    /// Folds an operation's events, in order, each with the time of its entry. `None` without any.
    pub fn fold(events: impl IntoIterator<Item = (u64, Event)>) -> Option<Summary> {
        events.into_iter().fold(None, |before: Option<Summary>, (at_ms, event)| {
            Some(Summary::after(before, at_ms, event))
        })
    }

    /// What one more event makes of it.
    pub fn after(before: Option<Summary>, at_ms: u64, event: Event) -> Summary {
        let scope = event.context.scope.clone().or_else(|| before.and_then(|before| before.scope));
        Summary { last: event, changed_ms: at_ms, scope }
    }

    /// The name of the record's state, as [`State::name`] has it.
    pub fn state(&self) -> &'static str {
        match self.last.kind {
            EventKind::Claimed => "in_flight",
            EventKind::Uncertain | EventKind::Retried => "uncertain",
            EventKind::Completed | EventKind::Resolved | EventKind::Found => "completed",
            EventKind::Released => "released",
            EventKind::Expired => "expired",
        }
    }

    /// When the lease of the attempt under way ends unless it was renewed, which no event tells of.
    pub fn lease_ends_ms(&self) -> Option<u64> {
        self.last.lease_ms.map(|lease| self.changed_ms.saturating_add(lease))
    }

    /// When the record is gone, by the store's clock; of one in flight not before that.
    pub fn ends_ms(&self) -> u64 {
        self.changed_ms.saturating_add(self.last.keep_ms)
    }

    /// When the tombstone that it leaves is gone.
    pub fn tombstone_ends_ms(&self) -> Option<u64> {
        self.last.tombstone_ms.map(|span| self.changed_ms.saturating_add(span))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
