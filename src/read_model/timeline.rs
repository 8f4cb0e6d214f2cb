//! The timeline of an operation: its events, and the duplicates that were observed.

use rusqlite::{Connection, OptionalExtension};

use super::error::QueryError;
use super::model::ReadModel;
use super::operation::Operation;
use super::operation::{COLUMNS, fields, read};
use super::values::unstored;
use crate::event::{Event, Observation};
use crate::key::Slot;
use crate::store::log::member;

/// Most events of a timeline. Older events are left out: an operation that is retried for a month
/// has thousands of events.
const EVENTS_MAX: i64 = 1000;

/// An operation and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The operation.
    pub operation: Operation,
    /// Its history, the oldest first. It includes earlier operations under the same key, as far as
    /// the log reaches back.
    pub moments: Vec<Moment>,
    /// Whether moments are left out: the first events, or the last duplicates.
    pub cut: bool,
}

/// A moment of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Time in ms since 1970: by the store's clock for a change, by the gateway's clock for an
    /// observation.
    pub at_ms: u64,
    /// The change or observation.
    pub detail: MomentDetail,
}

/// A change or observation of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MomentDetail {
    /// Its record changed.
    Changed(Event),
    /// A duplicate was observed.
    Observed(Observation),
}

impl ReadModel {
    /// Returns an operation by its reference, with its state at `now_ms`, and its timeline. `None`
    /// if no entry of the operation was applied.
    ///
    /// # Errors
    /// The file can't be read.
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
            let (observed, requests) = observations(connection, &slot)?;
            let cut = moments.len() as i64 == EVENTS_MAX || requests < operation.duplicates;
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
            moments.push(Moment { at_ms, detail: MomentDetail::Changed(event) });
        }
    }
    moments.reverse();
    Ok(moments)
}

/// Returns the observations, and the number of requests observed.
fn observations(connection: &Connection, slot: &[u8]) -> Result<(Vec<Moment>, u64), QueryError> {
    let mut select = connection.prepare_cached(
        "SELECT observation FROM observations WHERE slot = ?1 ORDER BY at_ms, ms, seq, nth",
    )?;
    let rows = select.query_map([slot], |row| row.get::<_, Vec<u8>>(0))?;
    let (mut moments, mut requests) = (Vec::new(), 0);
    for row in rows {
        if let Ok(observation) = serde_json::from_slice::<Observation>(&row?) {
            requests += observation.requests();
            moments.push(Moment {
                at_ms: observation.at_ms,
                detail: MomentDetail::Observed(observation),
            });
        }
    }
    Ok((moments, requests))
}
