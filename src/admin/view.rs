//! What the admin API says and takes, as JSON. No key, header or body of a client is ever in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod logged;
mod report;
mod told;

pub use logged::{EventView, LoggedView};
pub use report::{ReportRowView, ReportView};
pub use told::{
    DifferenceView, HourView, LatencyView, MinuteView, MomentView, OverviewView, StatisticsView,
    TallyView, TimelineView,
};

use crate::clock::rfc3339;
use crate::key::Slot;
use crate::record::{Held, ReplyBody, Settler, State};

/// One operation.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    /// The public reference.
    pub operation: String,
    /// `in_flight`, `uncertain`, `completed`, `released` or `expired`.
    pub state: String,
    /// The route's name.
    pub route: String,
    /// The record's version: what a change names in `If-Match`.
    pub version: String,
    /// When the first attempt began (RFC 3339).
    pub opened_at: String,
    /// When it changed last.
    pub changed_at: String,
    /// Of an attempt: when its lease ends unless it is renewed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lease_ends_at: Option<String>,
    /// Of an uncertain outcome: what happened.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
    /// Of an uncertain outcome: an operator has decided that the next duplicate runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry: Option<bool>,
    /// Of a result: its status.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// Of a result: the bytes of its body; absent where it was not kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body_bytes: Option<usize>,
    /// Of a result: `upstream` or `operator`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub settled_by: Option<String>,
    /// Whose it is: the beginning of the scope's hash. This and what follows is told by the read model alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<String>,
    /// The fields that the route's configuration chooses.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub fields: BTreeMap<String, String>,
    /// Duplicates that were seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicates: Option<u64>,
    /// How long the upstream took, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream_ms: Option<u64>,
    /// The trace of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<String>,
}

/// A page of operations.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Listed {
    /// The operations.
    pub operations: Vec<OperationView>,
    /// Where the next page begins.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cursor: Option<String>,
    /// Who told: `store`, as it is now and in no order, or `read_model`, newest first.
    #[serde(default)]
    pub source: String,
    /// How far behind the read model is, in ms; absent: it was not asked, or nobody knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// It was executed, with this result.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// The status that duplicates get.
    pub status: u16,
    /// The header fields that duplicates get.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body that duplicates get, in base64.
    #[serde(default)]
    pub body_base64: String,
    /// Why, for the log: required, at most 1024 bytes.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A decision that needs no more than its reason: release, retry, expire.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// Why, for the log: required, at most 1024 bytes.
    #[serde(default)]
    pub reason: Option<String>,
}

impl OperationView {
    /// An operation as people see it.
    pub fn new(slot: &Slot, held: &Held) -> OperationView {
        let record = &held.record;
        let mut view = OperationView {
            operation: slot.to_string(),
            state: record.state.name().to_owned(),
            route: record.route.to_string(),
            version: record.version.0.to_string(),
            opened_at: rfc3339(record.opened_unix_ms),
            changed_at: rfc3339(held.written_ms),
            lease_ends_at: None,
            cause: None,
            retry: None,
            status: None,
            body_bytes: None,
            settled_by: None,
            scope: None,
            fields: BTreeMap::new(),
            duplicates: None,
            upstream_ms: None,
            trace: None,
        };
        match &record.state {
            State::InFlight { .. } => view.lease_ends_at = Some(rfc3339(held.due_ms)),
            State::Uncertain { cause, retry, .. } => {
                view.cause = Some(cause.describe());
                view.retry = retry.is_some().then_some(true);
            }
            State::Completed { reply, by } => {
                view.status = Some(reply.status.as_u16());
                view.body_bytes = match &reply.body {
                    ReplyBody::Whole(body) => Some(body.len()),
                    ReplyBody::NotStored | ReplyBody::Sealed(_) => None,
                };
                view.settled_by = Some(match by {
                    Settler::Upstream => "upstream".into(),
                    Settler::Operator => "operator".into(),
                    Settler::Probe => "probe".into(),
                });
            }
            State::Released | State::Expired => {}
        }
        view
    }
}

/// A piece of the event log that was verified.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct VerifiedView {
    /// Entries that were looked at.
    pub entries: usize,
    /// Where the log is not what was written.
    pub breaks: Vec<BreakView>,
    /// Where to go on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A place where the event log is not what was written.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BreakView {
    /// The partition.
    pub partition: u16,
    /// The entry's id.
    pub entry: String,
    /// What is wrong with it.
    pub fault: String,
}
