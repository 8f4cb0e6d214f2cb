//! The shadow report: the effects that enforcing would have had on shadow routes, by route and
//! client.

use rusqlite::params;

use super::counts::HOUR_MS;
use super::error::QueryError;
use super::model::ReadModel;
use super::values::{stored, unstored};

/// Most rows of a report. The rows with the fewest requests are left out. There is one row per
/// route, client and reason.
const ROWS_MAX: i64 = 10_000;

/// Names of the effects in the file.
pub(super) const REPLAY: &str = "replay";
pub(super) const REFUSE: &str = "refuse";

/// Effects that enforcing would have had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowReport {
    /// Beginning of the report, in ms since 1970: a whole hour.
    pub since_ms: u64,
    /// Rows by route and client. Those with the most requests come first.
    pub rows: Vec<ReportRow>,
    /// Whether rows are left out.
    pub cut: bool,
    /// Number of requests that would have been replayed, including rows that are left out.
    pub replayed: u64,
    /// Number of requests that would have been refused, including rows that are left out.
    pub refused: u64,
}

/// Effects that enforcing would have had for one client on one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// The route.
    pub route: String,
    /// The client: its scope's hash, shortened. All clients of a route without a scope have the
    /// same hash. `None` if the request had no scope.
    pub scope: Option<String>,
    /// Whether the requests would have been refused; otherwise they would have been replayed.
    pub refused: bool,
    /// The reason of the refusal: the problem's short name.
    pub problem: Option<String>,
    /// Number of requests.
    pub requests: u64,
}

impl ReadModel {
    /// Returns the effects that enforcing would have had on shadow routes since `since_ms`.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn report(&self, since_ms: u64) -> Result<ShadowReport, QueryError> {
        self.reading(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT r.name, s.scope, s.would, s.problem, sum(s.count) AS requests \
                 FROM shadows s JOIN routes r ON r.id = s.route WHERE s.hour >= ?1 \
                 GROUP BY s.route, s.scope, s.would, s.problem \
                 ORDER BY requests DESC, r.name, s.scope, s.would, s.problem LIMIT ?2",
            )?;
            let rows =
                select.query_map(params![stored(since_ms / HOUR_MS), ROWS_MAX + 1], |row| {
                    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
                    Ok(ReportRow {
                        route: row.get(0)?,
                        scope: filled(row.get(1)?),
                        refused: row.get::<_, String>(2)? == REFUSE,
                        problem: filled(row.get(3)?),
                        requests: unstored(row.get(4)?),
                    })
                })?;
            let mut rows = rows.collect::<Result<Vec<_>, _>>()?;
            let cut = rows.len() as i64 > ROWS_MAX;
            rows.truncate(ROWS_MAX as usize);
            let total = |would: &str| -> Result<u64, QueryError> {
                let mut sum = connection.prepare_cached(
                    "SELECT coalesce(sum(count), 0) FROM shadows WHERE hour >= ?1 \
                     AND would = ?2",
                )?;
                Ok(sum
                    .query_row(params![stored(since_ms / HOUR_MS), would], |row| row.get(0))
                    .map(unstored)?)
            };
            let (replayed, refused) = (total(REPLAY)?, total(REFUSE)?);
            Ok(ShadowReport {
                since_ms: since_ms / HOUR_MS * HOUR_MS,
                rows,
                cut,
                replayed,
                refused,
            })
        })
    }
}
