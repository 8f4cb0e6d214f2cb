//! Events: each describes one change of a record, and is written in the same step as the record.
//!
//! The events of an operation, folded in order, give its record's state ([`Summary::fold`]).
//! Operators may read events, so an event contains no key, no body and no credentials.
//!
//! Events are JSON, because other programs read them too. New versions add members, and never
//! change or remove one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::json::{Object, texts};
use crate::record::{Lifetime, Record, ReplyBody, Settler, State};

mod content;
mod json;
mod observation;
mod outgoing;
mod saga;

pub use content::{ContentHead, EventDraft, HOPS_MAX, MalformedEvent, finished};
pub use observation::{Difference, Observation, ObservationKind};
pub use outgoing::{
    AnnouncedChange, EVENT_MEDIA_TYPE, OutgoingEvent, RESERVED_MEMBERS, SAGA_MEMBER, events_of,
};
pub use saga::{ChangedSaga, ChangedStep, SagaFailureNote, StoppedStep};

/// Longest reason of an operator, in bytes. Longer reasons are cut, because otherwise the event
/// could be too long to be read.
pub const REASON_BYTES_MAX: usize = 1024;

/// Initial capacity for an event without long fields: growing the buffer step by step would take a
/// third of the writing time.
const USUAL_BYTES: usize = 384;

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An attempt began.
    Claimed,
    /// The upstream's answer is the result.
    Completed,
    /// It is unknown whether the upstream executed the operation.
    Uncertain,
    /// The attempt provably did nothing: the key is free.
    Released,
    /// An operator set the result.
    Resolved,
    /// The upstream's answer to a probe is the result.
    Found,
    /// An operator lets the next duplicate run.
    Retried,
    /// An operator ended the retention of the result.
    Expired,
    /// A saga began, went on or changed its owner.
    Saga,
    /// The operation of a saga's step may not run.
    Barred,
}

impl EventKind {
    /// Returns the name in events.
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
            EventKind::Saga => "saga",
            EventKind::Barred => "barred",
        }
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Kind of the change.
    pub kind: EventKind,
    /// The version that the change wrote, in decimal digits: some JSON parsers can't read such
    /// large numbers.
    pub version: String,
    /// The fence of the attempt or decision, in decimal digits.
    pub fence: String,
    /// The route.
    pub route: String,
    /// When the first attempt began, in ms since 1970 by its gateway's clock.
    pub opened_ms: u64,
    /// How long the record is kept from this change on, in ms.
    pub keep_ms: u64,
    /// How long a tombstone is kept from this change on, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone_ms: Option<u64>,
    /// Duration of the lease of the attempt, or of the saga's owner, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// Status of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the result's body, if it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
    /// Description of the cause of an uncertain outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The phase of a saga.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Data of the gateway that is not in the record.
    #[serde(flatten)]
    pub context: Context,
}

/// Data of a gateway about a change that is not in the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The mark of the tenant: all operations of one tenant have the same mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Id of the request's trace, in 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Bytes of the request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// Time from sending the request to the end of its response, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_ms: Option<u64>,
    /// Body members that the route's configuration chooses, by their configured names. Members of
    /// the request are in the claim's event, members of the response in the completion's event.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// The operator of a decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The operator's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The tag of the version that a write on a resource overwrote, although the writer named
    /// another version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overwrote: Option<String>,
    /// What the change changed in a saga. The record has it too, but sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saga: Option<Box<ChangedSaga>>,
}

/// The bytes are not a known event.
#[derive(Debug, thiserror::Error)]
#[error("an entry of the event log is not an event that this version can read: {0}")]
pub struct EventDecodeError(#[from] serde_json::Error);

impl Event {
    /// Creates the event of a change that wrote `next` with this lifetime.
    pub fn of(next: &Record, lifetime: Lifetime, mut context: Context) -> Event {
        let (mut status, mut response_bytes, mut cause, mut saga_phase) = (None, None, None, None);
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
            State::Saga { phase, .. } => {
                saga_phase = Some(phase.name().to_owned());
                EventKind::Saga
            }
            State::Barred => EventKind::Barred,
            // These are written without an event.
            State::Lock(_) | State::Review { .. } | State::Versions { .. } => EventKind::Released,
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
            // In the lifetime of a claim, `tombstone` is not a time to keep a tombstone: see
            // [`Lifetime`].
            tombstone_ms: lifetime.tombstone.filter(|_| status.is_some()).map(millis),
            lease_ms: lifetime.due.filter(|_| next.state.has_lease()).map(millis),
            status,
            response_bytes,
            cause,
            phase: saga_phase,
            context,
        }
    }

    /// Encodes the event. The output equals that of [`Serialize`], in a third of its time.
    pub fn encode(&self) -> Vec<u8> {
        let Event { kind, version, fence, route, opened_ms, keep_ms, tombstone_ms, .. } = self;
        let Event { lease_ms, status, response_bytes, cause, phase, context, .. } = self;
        let Context { scope, trace, request_bytes, upstream_ms, fields, operator, reason, .. } =
            context;
        let Context { overwrote, saga, .. } = context;
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
        event.text_if("phase", phase.as_deref());
        event.text_if("scope", scope.as_deref());
        event.text_if("trace", trace.as_deref());
        event.number_if("request_bytes", *request_bytes);
        event.number_if("upstream_ms", *upstream_ms);
        if !fields.is_empty() {
            texts(event.name("fields"), fields);
        }
        event.text_if("operator", operator.as_deref());
        event.text_if("reason", reason.as_deref());
        event.text_if("overwrote", overwrote.as_deref());
        if let Some(saga) = saga {
            // Writing these types to memory can't fail.
            serde_json::to_writer(event.name("saga"), saga).unwrap_or_default();
        }
        event.end();
        encoded
    }

    /// Decodes an event. Unknown members are ignored.
    ///
    /// # Errors
    /// The bytes are not a known event.
    pub fn decode(bytes: &[u8]) -> Result<Event, EventDecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// The state of an operation, computed from its events alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The last event.
    pub last: Event,
    /// Time of the last event, in ms since 1970 by the store's clock.
    pub changed_ms: u64,
    /// The mark of the tenant, from the last event that has one.
    pub scope: Option<String>,
}

impl Summary {
    /// Folds an operation's events in order, each with the time of its entry. `None` without
    /// events.
    pub fn fold(events: impl IntoIterator<Item = (u64, Event)>) -> Option<Summary> {
        events.into_iter().fold(None, |before: Option<Summary>, (at_ms, event)| {
            Some(Summary::after(before, at_ms, event))
        })
    }

    /// Adds one event to a summary.
    pub fn after(before: Option<Summary>, at_ms: u64, event: Event) -> Summary {
        let scope = event.context.scope.clone().or_else(|| before.and_then(|before| before.scope));
        Summary { last: event, changed_ms: at_ms, scope }
    }

    /// Returns the name of the record's state, equal to [`State::name`].
    pub fn state(&self) -> &'static str {
        match self.last.kind {
            EventKind::Claimed => "in_flight",
            EventKind::Uncertain | EventKind::Retried => "uncertain",
            EventKind::Completed | EventKind::Resolved | EventKind::Found => "completed",
            EventKind::Released => "released",
            EventKind::Expired => "expired",
            EventKind::Saga => "saga",
            EventKind::Barred => "barred",
        }
    }

    /// Returns the end of the active attempt's lease as it is without renewals, because renewals
    /// write no events.
    pub fn lease_ends_ms(&self) -> Option<u64> {
        self.last.lease_ms.map(|lease| self.changed_ms.saturating_add(lease))
    }

    /// Returns the time when the record disappears, by the store's clock. A record in flight may
    /// live longer.
    pub fn ends_ms(&self) -> u64 {
        self.changed_ms.saturating_add(self.last.keep_ms)
    }

    /// Returns the time when the record's tombstone disappears.
    pub fn tombstone_ends_ms(&self) -> Option<u64> {
        self.last.tombstone_ms.map(|span| self.changed_ms.saturating_add(span))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
