//! Upkeep: moves operations to the states that time brings, and removes old ones.

use std::time::Duration;

use rusqlite::{Transaction, params};

use super::apply::StateCounts;
use super::counts::{HOUR_MS, MINUTE_MS, SPANS_MS};
use super::error::QueryError;
use super::model::ReadModel;
use super::operation::{OperationState, StateTimes, kind_of_number};
use super::values::{stored, unstored};

/// Operations per step. A step takes some ten milliseconds, during which no entries are applied.
const STEP: usize = 1000;

/// How long the counts by minute are kept: the day of the overview, and an hour more.
const MINUTES_KEPT_MS: u64 = 25 * HOUR_MS;

impl ReadModel {
    /// Moves some operations to the state that time has brought. Returns whether there may be more.
    ///
    /// # Errors
    /// Nothing was changed.
    pub fn turn(&self, now_ms: u64) -> Result<bool, QueryError> {
        self.writing(|transaction| {
            let mut select = transaction.prepare_cached(
                "SELECT id, route, standing, kind, ends_ms, gone_ms \
                 FROM operations INDEXED BY operations_by_next \
                 WHERE next_ms <= ?1 ORDER BY next_ms LIMIT ?2",
            )?;
            let due = select.query_map(params![stored(now_ms), STEP as i64], |row| {
                let times = StateTimes {
                    kind: kind_of_number(row.get(3)?),
                    ends_ms: unstored(row.get(4)?),
                    gone_ms: unstored(row.get(5)?),
                };
                Ok((row.get(0)?, row.get(1)?, OperationState::of_number(row.get(2)?), times))
            })?;
            let due: Vec<(i64, i64, OperationState, StateTimes)> = due.collect::<Result<_, _>>()?;
            let mut set = transaction.prepare_cached(
                "UPDATE operations SET standing = ?2, next_ms = ?3 WHERE id = ?1",
            )?;
            let mut standings = StateCounts::default();
            for (id, route, standing, times) in &due {
                let now = times.state(now_ms);
                set.execute(params![id, now.number(), times.next_ms(now_ms).map(stored)])?;
                standings.moved(Some((*route, *standing)), Some((*route, now)));
            }
            standings.write(transaction)?;
            Ok(due.len() == STEP)
        })
    }

    /// Removes some operations, duplicates and counters that are older than `keep`. Operations are
    /// removed only if the store has nothing left of them. Returns whether there may be more.
    ///
    /// # Errors
    /// Nothing was removed.
    pub fn retire(&self, now_ms: u64, keep: Duration) -> Result<bool, QueryError> {
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        let before = now_ms.saturating_sub(keep_ms);
        self.writing(|transaction| {
            let operations = retire_operations(transaction, before)?;
            let duplicates = retire_duplicates(transaction, before)?;
            let kept = [before.max(now_ms.saturating_sub(MINUTES_KEPT_MS)), before];
            for (span, (length_ms, before)) in SPANS_MS.into_iter().zip(kept).enumerate() {
                let mut delete = transaction
                    .prepare_cached("DELETE FROM counts WHERE span = ?1 AND start < ?2")?;
                delete.execute([span as i64, stored(before / length_ms)])?;
            }
            transaction
                .prepare_cached("DELETE FROM shadows WHERE hour < ?1")?
                .execute([stored(before / HOUR_MS)])?;
            Ok(operations == STEP || duplicates == STEP)
        })
    }
}

fn retire_operations(transaction: &Transaction<'_>, before: u64) -> Result<usize, QueryError> {
    // Each call also reads operations that began before this time and changed after it. There are
    // few of them.
    let mut select = transaction.prepare_cached(
        "SELECT id, route FROM operations INDEXED BY operations_by_state \
         WHERE standing = ?1 AND began_ms < ?2 AND changed_ms < ?2 ORDER BY began_ms LIMIT ?3",
    )?;
    let found = select
        .query_map(params![OperationState::Gone.number(), stored(before), STEP as i64], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<Result<Vec<(i64, i64)>, _>>()?;
    let mut standings = StateCounts::default();
    for (id, route) in &found {
        transaction.prepare_cached("DELETE FROM events WHERE operation = ?1")?.execute([id])?;
        transaction.prepare_cached("DELETE FROM fields WHERE operation = ?1")?.execute([id])?;
        transaction.prepare_cached("DELETE FROM operations WHERE id = ?1")?.execute([id])?;
        standings.moved(Some((*route, OperationState::Gone)), None);
    }
    standings.write(transaction)?;
    Ok(found.len())
}

fn retire_duplicates(transaction: &Transaction<'_>, before: u64) -> Result<usize, QueryError> {
    let mut select = transaction.prepare_cached(
        "SELECT slot FROM duplicates INDEXED BY duplicates_by_time WHERE last_ms < ?1 \
         ORDER BY last_ms LIMIT ?2",
    )?;
    let found = select
        .query_map(params![stored(before), STEP as i64], |row| row.get(0))?
        .collect::<Result<Vec<Vec<u8>>, _>>()?;
    for slot in &found {
        transaction.prepare_cached("DELETE FROM observations WHERE slot = ?1")?.execute([slot])?;
        transaction.prepare_cached("DELETE FROM duplicates WHERE slot = ?1")?.execute([slot])?;
    }
    Ok(found.len())
}

/// Time between two calls of [`ReadModel::retire`].
pub(super) const RETIRE_PERIOD: Duration = Duration::from_millis(MINUTE_MS);
