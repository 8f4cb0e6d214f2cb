//! Observations: what may be lost, counted and kept beside the operations' events.

use std::collections::HashMap;

use bytes::Bytes;
use rusqlite::{Transaction, params};

use super::apply::Names;
use super::counts::{Counts, HOUR_MS, Tally};
use super::freshness::Generation;
use super::report::{REFUSE, REPLAY};
use super::{QueryError, ReadModel, stored, unstored};
use crate::event::{Observation, ObservationKind};
use crate::key::Slot;
use crate::store::log::{EntryId, member};

/// Observations of one operation that are kept with it: a client that retries for days must not fill the disk. All are counted.
const KEPT_PER_OPERATION: i64 = 200;

/// Names under which it is kept how far observations were read.
const READ_MS: &str = "observed_ms";
const READ_SEQ: &str = "observed_seq";

impl ReadModel {
    /// Applies batches of observations, in order, that were read for this generation. Those that were applied before are passed
    /// over, and so is what can't be read. Returns how many observations there were.
    ///
    /// # Errors
    /// Nothing was applied. All of it may be again, unless the file was [emptied](QueryError::Emptied).
    pub fn apply_observations(
        &self,
        generation: Generation,
        batches: &[(EntryId, Bytes)],
    ) -> Result<u64, QueryError> {
        self.writing(|transaction| {
            generation.check(transaction)?;
            let mut read = read_to(transaction)?;
            let mut noted = Noted {
                transaction,
                routes: Names::default(),
                counts: Counts::default(),
                shadows: HashMap::new(),
            };
            let mut observed = 0;
            for (id, batch) in batches {
                if *id <= read.unwrap_or_default() {
                    continue;
                }
                read = Some(*id);
                for (nth, observation) in
                    Observation::decode(batch).unwrap_or_default().iter().enumerate()
                {
                    observed += observation.requests();
                    noted.note(*id, nth, observation)?;
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
}

/// How far observations were applied.
pub(super) fn read_to(connection: &rusqlite::Connection) -> Result<Option<EntryId>, QueryError> {
    let (ms, seq) =
        (super::apply::meta(connection, READ_MS)?, super::apply::meta(connection, READ_SEQ)?);
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
    fn note(
        &mut self,
        id: EntryId,
        nth: usize,
        observation: &Observation,
    ) -> Result<(), QueryError> {
        let route = self.routes.number(self.transaction, &observation.route)?;
        let problem = observation.problem.as_deref();
        let count: fn(&mut Tally) -> &mut u64 = match (observation.kind, problem) {
            (ObservationKind::Replayed, _) => |tally| &mut tally.replayed,
            (ObservationKind::Waited, _) => |tally| &mut tally.waited,
            (ObservationKind::Refused, Some("key-reused")) => |tally| &mut tally.conflicts,
            (
                ObservationKind::Refused,
                Some("in-flight" | "outcome-uncertain" | "response-not-stored" | "result-expired"),
            ) => |tally| &mut tally.held,
            (ObservationKind::Refused, _) => |tally| &mut tally.refused,
            (ObservationKind::WouldReplay, _) => return self.shadow(route, REPLAY, observation),
            (ObservationKind::WouldRefuse, _) => return self.shadow(route, REFUSE, observation),
        };
        self.counts
            .count(route, observation.at_ms, |tally| *count(tally) += observation.requests());
        let Ok(slot) = Slot::from_reference(&observation.operation) else { return Ok(()) };
        self.keep(&member(&slot), id, nth, observation)
    }

    fn shadow(
        &mut self,
        route: i64,
        would: &'static str,
        observation: &Observation,
    ) -> Result<(), QueryError> {
        let scope = observation.scope.clone().unwrap_or_default();
        let problem = observation.problem.clone().unwrap_or_default();
        *self
            .shadows
            .entry((observation.at_ms / HOUR_MS, route, scope, would, problem))
            .or_default() += stored(observation.requests());
        Ok(())
    }

    /// Counts it with its operation, and keeps it for the timeline unless there are many.
    fn keep(
        &self,
        slot: &[u8],
        id: EntryId,
        nth: usize,
        observation: &Observation,
    ) -> Result<(), QueryError> {
        let mut count = self.transaction.prepare_cached(
            "INSERT INTO duplicates (slot, count, last_ms) VALUES (?1, ?3, ?2) \
             ON CONFLICT DO UPDATE SET count = count + excluded.count, last_ms = max(last_ms, excluded.last_ms)",
        )?;
        count.execute(params![
            slot,
            stored(observation.last_ms()),
            stored(observation.requests())
        ])?;
        // A storm that is told as one takes one place: what else happened to the operation is not to be left out for it.
        let mut insert = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO observations (slot, at_ms, ms, seq, nth, observation) SELECT ?1, ?2, ?3, ?4, ?5, ?6 \
             WHERE (SELECT count(*) FROM observations WHERE slot = ?1) < ?7",
        )?;
        // Numbers, texts and a closed set of words: there is nothing that can't be written.
        let text = serde_json::to_vec(observation).unwrap_or_default();
        insert.execute(params![
            slot,
            stored(observation.at_ms),
            stored(id.ms),
            stored(id.seq),
            nth as i64,
            text,
            KEPT_PER_OPERATION
        ])?;
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
