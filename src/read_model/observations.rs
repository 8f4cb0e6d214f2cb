//! Applies observations of duplicates: counts them, and stores some beside the events of their
//! operations.

use std::collections::HashMap;

use bytes::Bytes;
use rusqlite::{Transaction, params};

use super::apply::RouteNumbers;
use super::counts::{Counts, HOUR_MS, Tally};
use super::error::QueryError;
use super::freshness::{ModelGeneration, observed as last_observed, set_observed};
use super::model::ReadModel;
use super::report::{REFUSE, REPLAY};
use super::values::stored;
use crate::event::{Observation, ObservationKind};
use crate::key::Slot;
use crate::store::log::{EntryId, member};

/// Limit for the observations stored per operation: a client that retries for days must not fill
/// the disk. All observations are counted.
const KEPT_PER_OPERATION: i64 = 200;

impl ReadModel {
    /// Applies batches of observations that were read for this generation, in order. Skips batches
    /// that were applied before, and malformed ones. Returns the number of requests observed.
    ///
    /// # Errors
    /// Nothing was applied. The call may be repeated, unless the file was
    /// [emptied](QueryError::Emptied).
    pub fn apply_observations(
        &self,
        generation: ModelGeneration,
        batches: &[(EntryId, Bytes)],
    ) -> Result<u64, QueryError> {
        self.writing(|transaction| {
            generation.check(transaction)?;
            let mut read = last_observed(transaction)?;
            let mut applied = ObservationBatch {
                transaction,
                routes: RouteNumbers::default(),
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
                    applied.add(*id, nth, observation)?;
                }
            }
            applied.write()?;
            if let Some(read) = read {
                set_observed(transaction, read)?;
            }
            Ok(observed)
        })
    }
}

/// Key of a count on shadow routes: hour, route, scope, effect of enforcing, problem.
type ShadowKey = (u64, i64, String, &'static str, String);

struct ObservationBatch<'t> {
    transaction: &'t Transaction<'t>,
    routes: RouteNumbers,
    counts: Counts,
    shadows: HashMap<ShadowKey, i64>,
}

impl ObservationBatch<'_> {
    fn add(
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

    /// Counts an observation with its operation, and stores it for the timeline unless there are
    /// many.
    fn keep(
        &self,
        slot: &[u8],
        id: EntryId,
        nth: usize,
        observation: &Observation,
    ) -> Result<(), QueryError> {
        let mut count = self.transaction.prepare_cached(
            "INSERT INTO duplicates (slot, count, last_ms) VALUES (?1, ?3, ?2) \
             ON CONFLICT DO UPDATE SET count = count + excluded.count, \
             last_ms = max(last_ms, excluded.last_ms)",
        )?;
        count.execute(params![
            slot,
            stored(observation.last_ms()),
            stored(observation.requests())
        ])?;
        // Repeated requests that are one observation take one row, so that they don't displace
        // other observations.
        let mut insert = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO observations (slot, at_ms, ms, seq, nth, observation) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6 \
             WHERE (SELECT count(*) FROM observations WHERE slot = ?1) < ?7",
        )?;
        // Encoding can't fail: an observation has only numbers, texts and enums.
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
            "INSERT INTO shadows (hour, route, scope, would, problem, count) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT DO UPDATE SET count = count + excluded.count",
        )?;
        for ((hour, route, scope, would, problem), count) in &self.shadows {
            add.execute(params![stored(*hour), route, scope, would, problem, count])?;
        }
        Ok(())
    }
}
