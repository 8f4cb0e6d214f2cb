//! The overview. It is made from counters only, so its cost does not depend on the number of
//! operations.

use rusqlite::{Connection, OptionalExtension, params};

use super::counts::{HOUR_MS, MINUTE_MS, Tally, columns, sums};
use super::error::QueryError;
use super::freshness::Freshness;
use super::model::ReadModel;
use super::operation::OperationState;
use super::values::{stored, unstored};

/// Minutes of the series.
const SERIES_MINUTES: u64 = 60;
/// Minutes of a day.
const DAY_MINUTES: u64 = 24 * 60;

/// Numbers of the two spans in the table of counters.
const MINUTES: usize = 0;
const HOURS: usize = 1;

/// The overview of all routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// The requested time.
    pub now_ms: u64,
    /// The last 60 minutes, including the current one.
    pub hour: Tally,
    /// The last 24 hours.
    pub day: Tally,
    /// Number of active attempts, by the log.
    pub in_flight: u64,
    /// Number of uncertain outcomes, which an operator must look up.
    pub uncertain: u64,
    /// Time when the oldest uncertain operation began.
    pub oldest_uncertain_ms: Option<u64>,
    /// The last 60 minutes one by one, the oldest first, including empty ones.
    pub series: Vec<MinuteRow>,
    /// The age of these figures.
    pub freshness: Freshness,
}

/// Counts of a minute, on all routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinuteRow {
    /// Beginning, in ms since 1970.
    pub start_ms: u64,
    /// The counts.
    pub tally: Tally,
}

/// Counts of an hour, on a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HourRow {
    /// Beginning, in ms since 1970.
    pub start_ms: u64,
    /// The route.
    pub route: String,
    /// The counts.
    pub tally: Tally,
}

impl ReadModel {
    /// Returns the overview at `now_ms`.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn overview(&self, now_ms: u64) -> Result<Overview, QueryError> {
        let freshness = self.freshness();
        let last = now_ms / MINUTE_MS;
        let mut overview = self.reading(|connection| {
            let first = last.saturating_sub(SERIES_MINUTES - 1);
            let series = minutes(connection, first, last)?;
            let mut hour = Tally::default();
            series.iter().for_each(|minute| hour.add(&minute.tally));
            Ok(Overview {
                now_ms,
                hour,
                day: sum(connection, last.saturating_sub(DAY_MINUTES - 1), last)?,
                in_flight: count_in(connection, OperationState::InFlight)?,
                uncertain: count_in(connection, OperationState::Uncertain)?,
                oldest_uncertain_ms: oldest(connection, OperationState::Uncertain)?,
                series,
                freshness,
            })
        })?;
        // Reports the age from before the read. If the file was emptied meanwhile, the age is not
        // known.
        overview.freshness =
            std::cmp::min_by_key(freshness, self.freshness(), |known| known.as_of_ms);
        Ok(overview)
    }

    /// Returns the counts of a span of time, by hour and route, the oldest first. Hours are whole:
    /// the first one contains `from_ms`, the last one contains `until_ms` or ends with it.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn statistics(&self, from_ms: u64, until_ms: u64) -> Result<Vec<HourRow>, QueryError> {
        self.reading(|connection| {
            let mut select = connection.prepare_cached(&format!(
                "SELECT c.start, r.name, {} FROM counts c JOIN routes r ON r.id = c.route \
                 WHERE c.span = ?1 AND c.start >= ?2 AND c.start < ?3 ORDER BY c.start, r.name",
                columns().join(", ")
            ))?;
            let range = params![
                HOURS as i64,
                stored(from_ms / HOUR_MS),
                stored(until_ms.div_ceil(HOUR_MS))
            ];
            let rows = select.query_map(range, |row| {
                let start_ms = unstored(row.get(0)?).saturating_mul(HOUR_MS);
                Ok(HourRow { start_ms, route: row.get(1)?, tally: Tally::read(row, 2)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// Returns every minute from the first to the last.
fn minutes(connection: &Connection, first: u64, last: u64) -> Result<Vec<MinuteRow>, QueryError> {
    let mut series: Vec<MinuteRow> = (first..=last)
        .map(|minute| MinuteRow {
            start_ms: minute.saturating_mul(MINUTE_MS),
            tally: Tally::default(),
        })
        .collect();
    let mut select = connection.prepare_cached(&format!(
        "SELECT start, {} FROM counts WHERE span = ?1 AND start BETWEEN ?2 AND ?3 GROUP BY start",
        sums()
    ))?;
    let mut rows = select.query(params![MINUTES as i64, stored(first), stored(last)])?;
    while let Some(row) = rows.next()? {
        let at = usize::try_from(unstored(row.get(0)?) - first).unwrap_or(usize::MAX);
        if let Some(minute) = series.get_mut(at) {
            minute.tally = Tally::read(row, 1)?;
        }
    }
    Ok(series)
}

fn sum(connection: &Connection, first: u64, last: u64) -> Result<Tally, QueryError> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT {} FROM counts WHERE span = ?1 AND start BETWEEN ?2 AND ?3 HAVING count(*) > 0",
        sums()
    ))?;
    let range = params![MINUTES as i64, stored(first), stored(last)];
    Ok(select.query_row(range, |row| Tally::read(row, 0)).optional()?.unwrap_or_default())
}

fn count_in(connection: &Connection, state: OperationState) -> Result<u64, QueryError> {
    let mut select = connection
        .prepare_cached("SELECT coalesce(sum(count), 0) FROM standings WHERE standing = ?1")?;
    Ok(select.query_row([state.number()], |row| row.get(0)).map(unstored)?)
}

fn oldest(connection: &Connection, state: OperationState) -> Result<Option<u64>, QueryError> {
    let mut select = connection.prepare_cached(
        "SELECT began_ms FROM operations INDEXED BY operations_by_state WHERE standing = ?1 \
         ORDER BY began_ms LIMIT 1",
    )?;
    Ok(select.query_row([state.number()], |row| row.get(0)).optional()?.map(unstored))
}
