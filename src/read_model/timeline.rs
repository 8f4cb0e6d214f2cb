//! One operation from its beginning to now: its events, and the duplicates that were observed.

use rusqlite::{Connection, OptionalExtension};

use super::operation::{COLUMNS, fields, read};
use super::{Operation, QueryError, ReadModel, unstored};
use crate::event::{Event, Observation};
use crate::key::Slot;
use crate::store::log::member;

/// Events of one operation that are read, the newest: one that is tried again for a month has thousands.
const EVENTS_MAX: i64 = 1000;

/// An operation and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// Where it stands.
    pub operation: Operation,
    /// What happened, the oldest first; also to what the key named before, as far as the log tells.
    pub moments: Vec<Moment>,
    /// Whether there is more than is told here: the first events, or the last duplicates.
    pub cut: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// When, in ms since 1970: of a change by the store's clock, of an observation by the gateway's.
    pub at_ms: u64,
    /// What.
    pub what: What,
}

/// What happened to an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Its record changed.
    Changed(Event),
    /// A duplicate came.
    Observed(Observation),
}

impl ReadModel {
    /// An operation by its reference, as it stands at `now_ms`, with its timeline. `None`: the log told nothing of it, or not yet.
    ///
    /// # Errors
    /// It can't be read.
    pub fn timeline(&self, reference: &str, now_ms: u64) -> Result<Option<Timeline>, QueryError> {
        let Ok(slot) = Slot::from_reference(reference) else { return Ok(None) };
        let slot = member(&slot);
        self.reading(|connection| {
            let mut select = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM operations o WHERE o.slot = ?1"))?;
            let found = select.query_row([&slot[..]], |row| read(row, now_ms)).optional()?;
            let Some((id, mut operation)) = found else { return Ok(None) };
            operation.fields = fields(connection, id)?;
            let mut moments = changes(connection, id)?;
            let (observed, told) = observations(connection, &slot)?;
            let cut = moments.len() as i64 == EVENTS_MAX || told < operation.duplicates;
            moments.extend(observed);
            moments.sort_by_key(|moment| moment.at_ms);
            Ok(Some(Timeline { operation, moments, cut }))
        })
    }
}

fn changes(connection: &Connection, id: i64) -> Result<Vec<Moment>, QueryError> {
    let mut select = connection.prepare_cached(
        "SELECT ms, event FROM events WHERE operation = ?1 ORDER BY ms DESC, seq DESC LIMIT ?2",
    )?;
    let rows = select.query_map([id, EVENTS_MAX], |row| {
        Ok((unstored(row.get(0)?), row.get::<_, Vec<u8>>(1)?))
    })?;
    let mut moments = Vec::new();
    for row in rows {
        let (at_ms, event) = row?;
        if let Ok(event) = Event::decode(&event) {
            moments.push(Moment { at_ms, what: What::Changed(event) });
        }
    }
    moments.reverse();
    Ok(moments)
}

/// What was observed, and how many requests that were.
fn observations(connection: &Connection, slot: &[u8]) -> Result<(Vec<Moment>, u64), QueryError> {
    let mut select = connection.prepare_cached(
        "SELECT observation FROM observations WHERE slot = ?1 ORDER BY at_ms, ms, seq, nth",
    )?;
    let rows = select.query_map([slot], |row| row.get::<_, Vec<u8>>(0))?;
    let (mut moments, mut requests) = (Vec::new(), 0);
    for row in rows {
        if let Ok(observation) = serde_json::from_slice::<Observation>(&row?) {
            requests += observation.requests();
            moments.push(Moment { at_ms: observation.at_ms, what: What::Observed(observation) });
        }
    }
    Ok((moments, requests))
}
