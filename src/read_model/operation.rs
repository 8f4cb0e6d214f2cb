//! Operations of the read model, and how time alone changes their state.

use std::fmt;
use std::str::FromStr;

use rusqlite::{Connection, Row};

use super::error::QueryError;
use super::values::unstored;
use crate::event::EventKind;
use crate::store::log::slot_of_member;

/// State of an operation. It follows from the last event and from time: a result is gone when its
/// retention is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperationState {
    /// An attempt is active.
    InFlight,
    /// It is unknown whether the upstream acted.
    Uncertain,
    /// The operation has a result.
    Completed,
    /// The attempt had no effect: the key is free.
    Released,
    /// The result is gone and a tombstone refuses duplicates.
    Expired,
    /// The store has no record and no tombstone of the operation any more: the key is new again.
    Gone,
    /// A saga runs.
    Saga,
    /// The operation of a saga's step may not run.
    Barred,
}

impl OperationState {
    /// All states, in the order of their numbers in the file.
    pub const ALL: [OperationState; 8] = [
        OperationState::InFlight,
        OperationState::Uncertain,
        OperationState::Completed,
        OperationState::Released,
        OperationState::Expired,
        OperationState::Gone,
        OperationState::Saga,
        OperationState::Barred,
    ];

    /// Returns the name. It is the name of the record's state while the record exists.
    pub fn name(self) -> &'static str {
        match self {
            OperationState::InFlight => "in_flight",
            OperationState::Uncertain => "uncertain",
            OperationState::Completed => "completed",
            OperationState::Released => "released",
            OperationState::Expired => "expired",
            OperationState::Gone => "gone",
            OperationState::Saga => "saga",
            OperationState::Barred => "barred",
        }
    }

    /// Returns the number in the file.
    pub(super) fn number(self) -> i64 {
        self as i64
    }

    pub(super) fn of_number(number: i64) -> OperationState {
        usize::try_from(number)
            .ok()
            .and_then(|at| OperationState::ALL.get(at))
            .copied()
            .unwrap_or(OperationState::Gone)
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that is not the name of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a state is one of in_flight, uncertain, completed, released, expired, saga, barred, gone")]
pub struct UnknownState;

impl FromStr for OperationState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<OperationState, UnknownState> {
        OperationState::ALL.into_iter().find(|state| state.name() == text).ok_or(UnknownState)
    }
}

/// Returns the state after an event, before time changes it.
pub(super) fn state_after(kind: EventKind) -> OperationState {
    match kind {
        EventKind::Claimed => OperationState::InFlight,
        EventKind::Uncertain | EventKind::Retried => OperationState::Uncertain,
        EventKind::Completed | EventKind::Resolved | EventKind::Found => OperationState::Completed,
        EventKind::Released => OperationState::Released,
        EventKind::Expired => OperationState::Expired,
        EventKind::Saga => OperationState::Saga,
        EventKind::Barred => OperationState::Barred,
    }
}

/// The kinds, in the order of their numbers in the file.
const KINDS: [EventKind; 10] = [
    EventKind::Claimed,
    EventKind::Completed,
    EventKind::Uncertain,
    EventKind::Released,
    EventKind::Resolved,
    EventKind::Found,
    EventKind::Retried,
    EventKind::Expired,
    EventKind::Saga,
    EventKind::Barred,
];

pub(super) fn kind_number(kind: EventKind) -> i64 {
    // A kind without a number would be read as uncertain, so that an operator looks at it.
    KINDS.iter().position(|known| *known == kind).map_or(-1, |at| at as i64)
}

pub(super) fn kind_of_number(number: i64) -> EventKind {
    usize::try_from(number)
        .ok()
        .and_then(|at| KINDS.get(at))
        .copied()
        .unwrap_or(EventKind::Uncertain)
}

/// Times at which the state of an operation changes by itself, by the store's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StateTimes {
    /// The kind of the last event.
    pub kind: EventKind,
    /// End of the record's retention.
    pub ends_ms: u64,
    /// End of the tombstone's retention, or of the record's retention if there is no tombstone.
    pub gone_ms: u64,
}

impl StateTimes {
    pub fn state(&self, now_ms: u64) -> OperationState {
        if now_ms >= self.gone_ms {
            OperationState::Gone
        } else if now_ms >= self.ends_ms {
            OperationState::Expired
        } else {
            state_after(self.kind)
        }
    }

    /// Returns the next time at which the state changes; `None`: never.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        [self.ends_ms, self.gone_ms].into_iter().filter(|at| *at > now_ms).min()
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The public reference.
    pub reference: String,
    /// The state at the requested time.
    pub state: OperationState,
    /// The kind of its last event.
    pub last: EventKind,
    /// The route.
    pub route: String,
    /// The scope's hash, shortened.
    pub scope: Option<String>,
    /// The record's version. Changes by operators must name it.
    pub version: u64,
    /// The fence of the last attempt or decision.
    pub fence: u64,
    /// The result's status.
    pub status: Option<u16>,
    /// The reason why its outcome is uncertain, for people.
    pub cause: Option<String>,
    /// Time when the first attempt began, by the gateway's clock.
    pub opened_ms: u64,
    /// Time when the operation began, by the store's clock. Searches sort and filter by this time.
    /// It is set anew if the key became new and is used again.
    pub began_ms: u64,
    /// Time of its last change, by the store's clock.
    pub changed_ms: u64,
    /// End of the record's retention, unless the record changes before.
    pub ends_ms: u64,
    /// End of the tombstone's retention, if the record leaves a tombstone.
    pub tombstone_ends_ms: Option<u64>,
    /// End of the lease of an operation in flight, as claimed. Renewals make no events.
    pub lease_ends_ms: Option<u64>,
    /// Whether the lease would have ended without renewals. Either it was renewed, or the operation
    /// will be marked uncertain soon.
    pub lease_over: bool,
    /// Bytes of the request's body.
    pub request_bytes: Option<u64>,
    /// Bytes of the result's body.
    pub response_bytes: Option<u64>,
    /// Response time of the upstream, in ms.
    pub upstream_ms: Option<u64>,
    /// The trace of the last attempt that had one.
    pub trace: Option<String>,
    /// The chosen fields, by name.
    pub fields: Vec<(String, String)>,
    /// Number of observed duplicates. Observations may be lost.
    pub duplicates: u64,
}

/// Columns that [`read`] expects a query to select, from the table `o`.
pub(super) const COLUMNS: &str = "o.id, o.slot, (SELECT name FROM routes WHERE id = o.route), \
     o.kind, o.scope, o.version, o.fence, o.status, o.cause, o.opened_ms, o.began_ms, \
     o.changed_ms, o.ends_ms, o.gone_ms, o.lease_ends_ms, o.request_bytes, o.response_bytes, \
     o.upstream_ms, o.trace, (SELECT count FROM duplicates WHERE slot = o.slot)";

/// Reads an operation and its number from a row. The chosen fields must be read separately.
pub(super) fn read(row: &Row<'_>, now_ms: u64) -> rusqlite::Result<(i64, Operation)> {
    let number = |at: usize| row.get::<_, i64>(at).map(unstored);
    let perhaps = |at: usize| row.get::<_, Option<i64>>(at).map(|number| number.map(unstored));
    let slot: Vec<u8> = row.get(1)?;
    let times = StateTimes {
        kind: kind_of_number(row.get(3)?),
        ends_ms: number(12)?,
        gone_ms: number(13)?,
    };
    let state = times.state(now_ms);
    let has_lease = matches!(state, OperationState::InFlight | OperationState::Saga);
    let lease_ends_ms = perhaps(14)?.filter(|_| has_lease);
    let operation = Operation {
        reference: slot_of_member(&slot).map(|slot| slot.to_string()).unwrap_or_default(),
        state,
        last: times.kind,
        route: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
        scope: row.get(4)?,
        version: row.get::<_, i64>(5)?.cast_unsigned(),
        fence: row.get::<_, i64>(6)?.cast_unsigned(),
        status: row.get(7)?,
        cause: row.get(8)?,
        opened_ms: number(9)?,
        began_ms: number(10)?,
        changed_ms: number(11)?,
        ends_ms: times.ends_ms,
        tombstone_ends_ms: Some(times.gone_ms).filter(|gone| *gone > times.ends_ms),
        lease_ends_ms,
        lease_over: lease_ends_ms.is_some_and(|ends| ends <= now_ms),
        request_bytes: perhaps(15)?,
        response_bytes: perhaps(16)?,
        upstream_ms: perhaps(17)?,
        trace: row.get(18)?,
        fields: Vec::new(),
        duplicates: perhaps(19)?.unwrap_or(0),
    };
    Ok((row.get(0)?, operation))
}

/// Reads the chosen fields of an operation.
pub(super) fn fields(
    connection: &Connection,
    id: i64,
) -> Result<Vec<(String, String)>, QueryError> {
    let mut select = connection
        .prepare_cached("SELECT name, value FROM fields WHERE operation = ?1 ORDER BY name")?;
    let found = select.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(found.collect::<Result<_, _>>()?)
}
