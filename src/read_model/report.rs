//! What enforcing would have done on routes that are only watched, by route and client.

use rusqlite::params;

use super::counts::HOUR_MS;
use super::{QueryError, ReadModel, stored, unstored};

/// Rows of a report, at most: those with the most requests. One per route, client and reason.
const ROWS_MAX: i64 = 10_000;

/// The words of what would have been done, in the file.
pub(super) const REPLAY: &str = "replay";
pub(super) const REFUSE: &str = "refuse";

/// What enforcing would have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// From when on, in ms since 1970: counted by whole hours.
    pub since_ms: u64,
    /// By route and client, those with the most requests first.
    pub rows: Vec<ReportRow>,
    /// Whether there are more rows.
    pub cut: bool,
    /// Requests that would have got the stored answer, also those of rows that are cut.
    pub replayed: u64,
    /// Requests that would have been refused, likewise.
    pub refused: u64,
}

/// What enforcing would have done with requests of one client on one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// The route.
    pub route: String,
    /// The client: its scope's hash, shortened, which is one for all where the route has no scope; `None`: the request had none.
    pub scope: Option<String>,
    /// Whether they would have been refused; else they would have got the stored answer.
    pub refused: bool,
    /// Why they would have been refused: the problem's short name.
    pub problem: Option<String>,
    /// How many.
    pub requests: u64,
}

impl ReadModel {
    /// What enforcing would have done since then, on routes that are only watched.
    ///
    /// # Errors
    /// It can't be read.
    pub fn report(&self, since_ms: u64) -> Result<Report, QueryError> {
        self.reading(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT r.name, s.scope, s.would, s.problem, sum(s.count) AS requests FROM shadows s JOIN routes r ON r.id = s.route \
                 WHERE s.hour >= ?1 GROUP BY s.route, s.scope, s.would, s.problem \
                 ORDER BY requests DESC, r.name, s.scope, s.would, s.problem LIMIT ?2",
            )?;
            let rows = select.query_map(params![stored(since_ms / HOUR_MS), ROWS_MAX + 1], |row| {
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
                let mut sum = connection
                    .prepare_cached("SELECT coalesce(sum(count), 0) FROM shadows WHERE hour >= ?1 AND would = ?2")?;
                Ok(sum.query_row(params![stored(since_ms / HOUR_MS), would], |row| row.get(0)).map(unstored)?)
            };
            let (replayed, refused) = (total(REPLAY)?, total(REFUSE)?);
            Ok(Report { since_ms: since_ms / HOUR_MS * HOUR_MS, rows, cut, replayed, refused })
        })
    }
}
