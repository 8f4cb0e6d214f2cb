//! An operation as JSON, and the requests that change it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::rfc3339;
use crate::key::Slot;
use crate::record::{Held, ReplyBody, Settler, State};

/// One operation.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    /// The public reference.
    pub operation: String,
    /// `in_flight`, `uncertain`, `completed`, `released`, `expired`, `saga` or `barred`.
    pub state: String,
    /// The route's name.
    pub route: String,
    /// The record's version, for `If-Match` of a change.
    pub version: String,
    /// When the first attempt began (RFC 3339).
    pub opened_at: String,
    /// When the record changed last (RFC 3339).
    pub changed_at: String,
    /// In flight: when the attempt's lease ends, if nothing renews it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lease_ends_at: Option<String>,
    /// Uncertain: the reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
    /// Uncertain: an operator has decided that the next duplicate runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry: Option<bool>,
    /// Completed: the status of the result.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// Completed: the size of the result's body in bytes; absent if the body was not stored.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body_bytes: Option<usize>,
    /// Completed: the source of the result, `upstream`, `operator` or `probe`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub settled_by: Option<String>,
    /// The sink that called the operation. Absent for a client's operation, for a released one, and
    /// if no configured sink has the name. Only the answer about a single operation has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sink: Option<String>,
    /// The beginning of the scope's hash. Only the read model has this member and all members
    /// below.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<String>,
    /// The values of the fields that the route's configuration chooses.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub fields: BTreeMap<String, String>,
    /// The number of observed duplicates.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicates: Option<u64>,
    /// The upstream's response time, in ms.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream_ms: Option<u64>,
    /// The trace of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<String>,
}

/// A page of operations.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OperationListView {
    /// The operations.
    pub operations: Vec<OperationView>,
    /// The cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cursor: Option<String>,
    /// The source: `store` (current and unordered) or `read_model` (newest first).
    #[serde(default)]
    pub source: String,
    /// How far behind the read model is, in ms; absent if the read model was not used or the lag is
    /// unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ms: Option<u64>,
}

/// The result of an operation that was executed.
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
    /// The reason, for the event log: required, at most 1024 bytes.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A decision that needs only a reason: release, retry, expire.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionRequest {
    /// The reason, for the event log: required, at most 1024 bytes.
    #[serde(default)]
    pub reason: Option<String>,
}

impl OperationView {
    /// Creates the view of a stored operation.
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
            sink: None,
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
            State::Saga { .. } => view.lease_ends_at = Some(rfc3339(held.due_ms)),
            State::Released
            | State::Expired
            | State::Barred
            | State::Lock(_)
            | State::Review { .. }
            | State::Versions { .. } => {}
        }
        view
    }
}
