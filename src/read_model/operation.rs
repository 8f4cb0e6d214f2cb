//! An operation as the read model knows it, and what time alone makes of its state.

use std::fmt;
use std::str::FromStr;

use rusqlite::{Connection, Row};

use super::{QueryError, unstored};
use crate::event::EventKind;
use crate::store::log::slot_of_member;

/// Where an operation stands. Its last event says so, and then time: a result is gone when its retention is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// An attempt is under way.
    InFlight,
    /// Nobody knows whether the upstream acted.
    Uncertain,
    /// There is a result.
    Completed,
    /// Nothing was done: the key is free.
    Released,
    /// The result is gone and a tombstone refuses duplicates.
    Expired,
    /// Nothing is left in the store: the key is new again.
    Gone,
}

impl State {
    /// All of them, in the order of their numbers in the file.
    pub const ALL: [State; 6] = [
        State::InFlight,
        State::Uncertain,
        State::Completed,
        State::Released,
        State::Expired,
        State::Gone,
    ];

    /// Its name, which is that of the record's state where there still is a record.
    pub fn name(self) -> &'static str {
        match self {
            State::InFlight => "in_flight",
            State::Uncertain => "uncertain",
            State::Completed => "completed",
            State::Released => "released",
            State::Expired => "expired",
            State::Gone => "gone",
        }
    }

    /// Its number in the file.
    pub(super) fn number(self) -> i64 {
        self as i64
    }

    pub(super) fn of_number(number: i64) -> State {
        usize::try_from(number)
            .ok()
            .and_then(|at| State::ALL.get(at))
            .copied()
            .unwrap_or(State::Gone)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a state is one of in_flight, uncertain, completed, released, expired, gone")]
pub struct NoState;

impl FromStr for State {
    type Err = NoState;

    fn from_str(text: &str) -> Result<State, NoState> {
        State::ALL.into_iter().find(|state| state.name() == text).ok_or(NoState)
    }
}

/// What the last event makes of an operation, before time does anything to it.
pub(super) fn told(kind: EventKind) -> State {
    match kind {
        EventKind::Claimed => State::InFlight,
        EventKind::Uncertain | EventKind::Retried => State::Uncertain,
        EventKind::Completed | EventKind::Resolved | EventKind::Found => State::Completed,
        EventKind::Released => State::Released,
        EventKind::Expired => State::Expired,
    }
}

/// The kinds, in the order of their numbers in the file.
const KINDS: [EventKind; 8] = [
    EventKind::Claimed,
    EventKind::Completed,
    EventKind::Uncertain,
    EventKind::Released,
    EventKind::Resolved,
    EventKind::Found,
    EventKind::Retried,
    EventKind::Expired,
];

pub(super) fn kind_number(kind: EventKind) -> i64 {
    // One that isn't there would be read as uncertain, which is what somebody looks at.
    KINDS.iter().position(|known| *known == kind).map_or(-1, |at| at as i64)
}

pub(super) fn kind_of_number(number: i64) -> EventKind {
    usize::try_from(number)
        .ok()
        .and_then(|at| KINDS.get(at))
        .copied()
        .unwrap_or(EventKind::Uncertain)
}

/// When an operation's state changes by itself, by the store's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Course {
    /// The last event.
    pub kind: EventKind,
    /// When the record is gone.
    pub ends_ms: u64,
    /// When nothing is left, no tombstone either.
    pub gone_ms: u64,
}

impl Course {
    pub fn state(&self, now_ms: u64) -> State {
        if now_ms >= self.gone_ms {
            State::Gone
        } else if now_ms >= self.ends_ms {
            State::Expired
        } else {
            told(self.kind)
        }
    }

    /// When the state that it has then changes next; `None`: never.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        [self.ends_ms, self.gone_ms].into_iter().filter(|at| *at > now_ms).min()
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The public reference.
    pub reference: String,
    /// Where it stands at the time that was asked for.
    pub state: State,
    /// Its last event.
    pub last: EventKind,
    /// The route.
    pub route: String,
    /// Whose it is: the scope's hash, shortened.
    pub scope: Option<String>,
    /// The record's version: what an operator's change names.
    pub version: u64,
    /// The last attempt or decision.
    pub fence: u64,
    /// The result's status.
    pub status: Option<u16>,
    /// Why its outcome is uncertain, in words.
    pub cause: Option<String>,
    /// When the first attempt began, by its gateway's clock.
    pub opened_ms: u64,
    /// When it began by the store's clock: what searches go and cut by. A key that is new again begins anew.
    pub began_ms: u64,
    /// When it changed last, by the store's clock.
    pub changed_ms: u64,
    /// When its record is gone unless it changes.
    pub ends_ms: u64,
    /// When the tombstone that it leaves is gone, where it leaves one.
    pub tombstone_ends_ms: Option<u64>,
    /// Of one in flight: when its lease ends, unless it was renewed, which no event tells of.
    pub lease_ends_ms: Option<u64>,
    /// The lease as it was claimed is over: it was renewed, or is about to be marked uncertain.
    pub lease_over: bool,
    /// Bytes of the request's body.
    pub request_bytes: Option<u64>,
    /// Bytes of the result's body.
    pub response_bytes: Option<u64>,
    /// How long the upstream took.
    pub upstream_ms: Option<u64>,
    /// The trace of the last attempt that told one.
    pub trace: Option<String>,
    /// The chosen fields, by name.
    pub fields: Vec<(String, String)>,
    /// Duplicates of its key that were seen, as far as observations tell.
    pub duplicates: u64,
}

/// What [`read`] expects a query to select, from the table `o`.
pub(super) const COLUMNS: &str = "o.id, o.slot, (SELECT name FROM routes WHERE id = o.route), o.kind, o.scope, o.version, o.fence, \
     o.status, o.cause, o.opened_ms, o.began_ms, o.changed_ms, o.ends_ms, o.gone_ms, o.lease_ends_ms, o.request_bytes, \
     o.response_bytes, o.upstream_ms, o.trace, (SELECT count FROM duplicates WHERE slot = o.slot)";

/// An operation of a row, and its number. Its fields are still to be read.
pub(super) fn read(row: &Row<'_>, now_ms: u64) -> rusqlite::Result<(i64, Operation)> {
    let number = |at: usize| row.get::<_, i64>(at).map(unstored);
    let perhaps = |at: usize| row.get::<_, Option<i64>>(at).map(|number| number.map(unstored));
    let slot: Vec<u8> = row.get(1)?;
    let course =
        Course { kind: kind_of_number(row.get(3)?), ends_ms: number(12)?, gone_ms: number(13)? };
    let state = course.state(now_ms);
    let lease_ends_ms = perhaps(14)?.filter(|_| state == State::InFlight);
    let operation = Operation {
        reference: slot_of_member(&slot).map(|slot| slot.to_string()).unwrap_or_default(),
        state,
        last: course.kind,
        route: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
        scope: row.get(4)?,
        version: row.get::<_, i64>(5)?.cast_unsigned(),
        fence: row.get::<_, i64>(6)?.cast_unsigned(),
        status: row.get(7)?,
        cause: row.get(8)?,
        opened_ms: number(9)?,
        began_ms: number(10)?,
        changed_ms: number(11)?,
        ends_ms: course.ends_ms,
        tombstone_ends_ms: Some(course.gone_ms).filter(|gone| *gone > course.ends_ms),
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

/// The chosen fields of an operation.
pub(super) fn fields(
    connection: &Connection,
    id: i64,
) -> Result<Vec<(String, String)>, QueryError> {
    let mut select = connection
        .prepare_cached("SELECT name, value FROM fields WHERE operation = ?1 ORDER BY name")?;
    let found = select.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(found.collect::<Result<_, _>>()?)
}
