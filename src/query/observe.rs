//! Observations: what may be lost, counted and kept beside the operations' events.

use std::collections::HashMap;

use bytes::Bytes;
use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use super::apply::Names;
use super::counts::{Counts, HOUR_MS, Tally};
use super::{QueryError, ReadModel, stored, unstored};
use crate::key::Slot;
use crate::store::log::{EntryId, member};

/// Observations of one operation that are kept with it: a client that retries for days must not fill the disk. All are counted.
const KEPT_PER_OPERATION: u64 = 200;

/// What was done with a duplicate, or would have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationKind {
    /// It got the stored answer.
    Replayed,
    /// It got it after waiting for it.
    Waited,
    /// It was refused.
    Refused,
    /// On a route that is only watched: it would have got the stored answer.
    WouldReplay,
    /// On a route that is only watched: it would have been refused.
    WouldRefuse,
}

/// Where a refused duplicate differed from the first request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The JSON pointer.
    pub pointer: String,
}

/// Something that happened to an operation without changing its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// What.
    pub kind: ObservationKind,
    /// When, in ms since 1970 by the gateway's clock.
    pub at_ms: u64,
    /// The operation's reference.
    pub operation: String,
    /// The route.
    pub route: String,
    /// Whose it is: the scope's hash, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How long it waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Why it was refused: the problem's short name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Where it differed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differing: Vec<Difference>,
    /// The request's trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// Names under which it is kept how far observations were read.
const READ_MS: &str = "observed_ms";
const READ_SEQ: &str = "observed_seq";

impl ReadModel {
    /// Applies batches of observations, in order. Those that were applied before are passed over, and so is what can't be read.
    /// Returns how many observations there were.
    ///
    /// # Errors
    /// Nothing was applied, and all of it may be again.
    pub fn apply_observations(&self, batches: &[(EntryId, Bytes)]) -> Result<usize, QueryError> {
        self.writing(|transaction| {
            let mut read = read_to(transaction)?;
            let mut noted = Noted { transaction, routes: Names::default(), counts: Counts::default(), shadows: HashMap::new() };
            let mut observed = 0;
            for (id, batch) in batches {
                if *id <= read.unwrap_or_default() {
                    continue;
                }
                read = Some(*id);
                let each: Vec<serde_json::Value> = serde_json::from_slice(batch).unwrap_or_default();
                for (nth, told) in each.into_iter().enumerate() {
                    if let Ok(observation) = serde_json::from_value(told) {
                        observed += 1;
                        noted.note(*id, nth, &observation)?;
                    }
                }
            }
            noted.write()?;
            if let Some(read) = read {
                super::apply::set_meta(transaction, READ_MS, stored(read.ms))?;
                super::apply::set_meta(transaction, READ_SEQ, stored(read.seq))?;
            }
            Ok(observed)
        })
    }

    /// How far observations were applied.
    ///
    /// # Errors
    /// It can't be read.
    pub fn observations_read(&self) -> Result<EntryId, QueryError> {
        self.reading(|connection| Ok(read_to(connection)?.unwrap_or_default()))
    }
}

fn read_to(connection: &rusqlite::Connection) -> Result<Option<EntryId>, QueryError> {
    let (ms, seq) = (super::apply::meta(connection, READ_MS)?, super::apply::meta(connection, READ_SEQ)?);
    Ok(ms.zip(seq).map(|(ms, seq)| EntryId { ms: unstored(ms), seq: unstored(seq) }))
}

/// Whose, on which route, when, and what would have been done.
type Shadow = (u64, i64, String, &'static str, String);

struct Noted<'t> {
    transaction: &'t Transaction<'t>,
    routes: Names,
    counts: Counts,
    shadows: HashMap<Shadow, i64>,
}

impl Noted<'_> {
    fn note(&mut self, id: EntryId, nth: usize, observation: &Observation) -> Result<(), QueryError> {
        let route = self.routes.number(self.transaction, &observation.route)?;
        let problem = observation.problem.as_deref();
        let count: fn(&mut Tally) -> &mut u64 = match (observation.kind, problem) {
            (ObservationKind::Replayed, _) => |tally| &mut tally.replayed,
            (ObservationKind::Waited, _) => |tally| &mut tally.waited,
            (ObservationKind::Refused, Some("key-reused")) => |tally| &mut tally.conflicts,
            (ObservationKind::Refused, Some("in-flight" | "outcome-uncertain" | "response-not-stored" | "result-expired")) => {
                |tally| &mut tally.held
            }
            (ObservationKind::Refused, _) => |tally| &mut tally.refused,
            (ObservationKind::WouldReplay, _) => return self.shadow(route, "replay", observation),
            (ObservationKind::WouldRefuse, _) => return self.shadow(route, "refuse", observation),
        };
        self.counts.count(route, observation.at_ms, |tally| *count(tally) += 1);
        let Ok(slot) = Slot::from_reference(&observation.operation) else { return Ok(()) };
        self.keep(&member(&slot), id, nth, observation)
    }

    fn shadow(&mut self, route: i64, would: &'static str, observation: &Observation) -> Result<(), QueryError> {
        let scope = observation.scope.clone().unwrap_or_default();
        let problem = observation.problem.clone().unwrap_or_default();
        *self.shadows.entry((observation.at_ms / HOUR_MS, route, scope, would, problem)).or_default() += 1;
        Ok(())
    }

    /// Counts it with its operation, and keeps it for the timeline unless there are many.
    fn keep(&self, slot: &[u8], id: EntryId, nth: usize, observation: &Observation) -> Result<(), QueryError> {
        let mut count = self.transaction.prepare_cached(
            "INSERT INTO duplicates (slot, count, last_ms) VALUES (?1, 1, ?2) \
             ON CONFLICT DO UPDATE SET count = count + 1, last_ms = max(last_ms, excluded.last_ms) RETURNING count",
        )?;
        let seen: i64 = count.query_row(params![slot, stored(observation.at_ms)], |row| row.get(0))?;
        if unstored(seen) > KEPT_PER_OPERATION {
            return Ok(());
        }
        let mut insert = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO observations (slot, at_ms, ms, seq, nth, observation) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        // Numbers, texts and a closed set of words: there is nothing that can't be written.
        let text = serde_json::to_vec(observation).unwrap_or_default();
        insert.execute(params![slot, stored(observation.at_ms), stored(id.ms), stored(id.seq), nth as i64, text])?;
        Ok(())
    }

    fn write(self) -> Result<(), QueryError> {
        self.counts.write(self.transaction)?;
        let mut add = self.transaction.prepare_cached(
            "INSERT INTO shadows (hour, route, scope, would, problem, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT DO UPDATE SET count = count + excluded.count",
        )?;
        for ((hour, route, scope, would, problem), count) in &self.shadows {
            add.execute(params![stored(*hour), route, scope, would, problem, count])?;
        }
        Ok(())
    }
}
