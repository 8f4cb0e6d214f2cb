//! Counters by route and minute, and by route and hour. Every change updates them, so that no query
//! must scan operations.

use std::collections::HashMap;

use rusqlite::types::ToSql;
use rusqlite::{Row, Transaction};

use super::error::QueryError;
use super::values::{stored, unstored};
use crate::event::EventKind;

/// Upper bounds of the latency buckets, in ms. One more bucket counts the longer times.
pub const LATENCY_BOUNDS_MS: [u64; 9] = [10, 25, 50, 100, 250, 500, 1000, 2500, 10_000];

const BUCKETS: usize = LATENCY_BOUNDS_MS.len() + 1;

/// A minute, in ms.
pub(super) const MINUTE_MS: u64 = 60_000;
/// An hour, in ms.
pub(super) const HOUR_MS: u64 = 60 * MINUTE_MS;

/// Response times of upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// Number of answers.
    pub count: u64,
    /// Sum of the times, in ms.
    pub sum_ms: u64,
    /// The longest time, in ms.
    pub max_ms: u64,
    /// Number of answers by bucket of [`LATENCY_BOUNDS_MS`].
    pub buckets: [u64; BUCKETS],
}

impl Latency {
    fn observe(&mut self, ms: u64) {
        self.count += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
        self.max_ms = self.max_ms.max(ms);
        let bucket = LATENCY_BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.buckets[bucket] += 1;
    }

    /// Returns the bound, in ms, within which this share (0 to 1) of answers came; `None` if there
    /// were no answers.
    pub fn quantile_ms(&self, share: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let wanted = (share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64;
        let mut total = 0;
        let bounds =
            LATENCY_BOUNDS_MS.into_iter().map(|bound| bound.min(self.max_ms)).chain([self.max_ms]);
        let mut kept = self.buckets.iter().zip(bounds).filter_map(|(count, bound)| {
            total += count;
            (total >= wanted).then_some(bound)
        });
        kept.next()
    }
}

/// Counts of a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Attempts that began.
    pub attempts: u64,
    /// Attempts with an answer that became the result.
    pub executed: u64,
    /// Attempts that provably had no effect.
    pub released: u64,
    /// Outcomes that became uncertain.
    pub uncertain: u64,
    /// Uncertain outcomes that an operator or a probe decided, and results that an operator
    /// expired.
    pub decided: u64,
    /// Duplicates that were replayed at once.
    pub replayed: u64,
    /// Duplicates that waited for the answer.
    pub waited: u64,
    /// Duplicates that were refused because their request differs from the first one with the key.
    pub conflicts: u64,
    /// Duplicates that were refused because there was no result to give: in flight, uncertain, not
    /// stored, expired.
    pub held: u64,
    /// Other requests that were refused.
    pub refused: u64,
    /// Response times of the upstream.
    pub latency: Latency,
}

impl Tally {
    /// Returns the number of requests with a key that were answered.
    pub fn requests(&self) -> u64 {
        self.attempts + self.replayed + self.waited + self.conflicts + self.held + self.refused
    }

    /// Returns the number of duplicates that did not reach the upstream.
    pub fn prevented(&self) -> u64 {
        self.replayed + self.waited + self.held
    }

    /// Counts a change. `is_first`: no earlier change of its operation is known. The further
    /// changes of a saga that runs, and bars, are not counted.
    pub(super) fn changed(&mut self, kind: EventKind, is_first: bool) {
        let counter = match kind {
            EventKind::Claimed => &mut self.attempts,
            EventKind::Saga if is_first => &mut self.attempts,
            EventKind::Saga | EventKind::Barred => return,
            EventKind::Completed => &mut self.executed,
            EventKind::Released => &mut self.released,
            EventKind::Uncertain => &mut self.uncertain,
            EventKind::Resolved | EventKind::Found | EventKind::Retried | EventKind::Expired => {
                &mut self.decided
            }
        };
        *counter += 1;
    }

    /// Counts a response time of the upstream.
    pub(super) fn took(&mut self, ms: u64) {
        self.latency.observe(ms);
    }

    /// Adds the counts of another route or time.
    pub fn add(&mut self, other: &Tally) {
        self.counters_mut()
            .into_iter()
            .zip(other.counters())
            .for_each(|(counter, more)| *counter += more);
        let (latency, more) = (&mut self.latency, &other.latency);
        latency.count += more.count;
        latency.sum_ms = latency.sum_ms.saturating_add(more.sum_ms);
        latency.max_ms = latency.max_ms.max(more.max_ms);
        latency.buckets.iter_mut().zip(more.buckets).for_each(|(bucket, more)| *bucket += more);
    }

    fn counters_mut(&mut self) -> [&mut u64; COUNTERS.len()] {
        [
            &mut self.attempts,
            &mut self.executed,
            &mut self.released,
            &mut self.uncertain,
            &mut self.decided,
            &mut self.replayed,
            &mut self.waited,
            &mut self.conflicts,
            &mut self.held,
            &mut self.refused,
        ]
    }

    fn counters(&self) -> [u64; COUNTERS.len()] {
        let mut copy = *self;
        copy.counters_mut().map(|counter| *counter)
    }

    /// Returns all numbers, in the order of [`columns`].
    fn numbers(&self) -> Vec<i64> {
        let latency = &self.latency;
        let times = [latency.count, latency.sum_ms, latency.max_ms];
        self.counters().into_iter().chain(times).chain(latency.buckets).map(stored).collect()
    }

    /// Reads the columns named by [`columns`], beginning at column `from`.
    pub(super) fn read(row: &Row<'_>, from: usize) -> rusqlite::Result<Tally> {
        let mut at = from;
        let mut next = || {
            at += 1;
            row.get::<_, i64>(at - 1).map(unstored)
        };
        let mut tally = Tally::default();
        for counter in tally.counters_mut() {
            *counter = next()?;
        }
        tally.latency.count = next()?;
        tally.latency.sum_ms = next()?;
        tally.latency.max_ms = next()?;
        for bucket in &mut tally.latency.buckets {
            *bucket = next()?;
        }
        Ok(tally)
    }
}

const COUNTERS: [&str; 10] = [
    "attempts",
    "executed",
    "released",
    "uncertain",
    "decided",
    "replayed",
    "waited",
    "conflicts",
    "held",
    "refused",
];

const LATENCY_MAX: &str = "latency_max";

/// Returns the columns of a tally.
pub(super) fn columns() -> Vec<String> {
    let times = ["latency_count", "latency_sum", LATENCY_MAX].into_iter().map(str::to_owned);
    let buckets = (0..BUCKETS).map(|bucket| format!("latency_{bucket}"));
    COUNTERS.into_iter().map(str::to_owned).chain(times).chain(buckets).collect()
}

/// Returns the columns for a query with groups, each as a sum, or as the maximum for the longest
/// time.
pub(super) fn sums() -> String {
    let sum = |column: String| {
        if column == LATENCY_MAX { format!("max({column})") } else { format!("sum({column})") }
    };
    columns().into_iter().map(sum).collect::<Vec<_>>().join(", ")
}

/// Returns the table's definition. `span` is 0 for minutes and 1 for hours; `start` is the number
/// of the span since 1970.
pub(super) fn table() -> String {
    let columns = columns()
        .into_iter()
        .map(|column| format!("{column} INTEGER NOT NULL"))
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "CREATE TABLE counts (span INTEGER NOT NULL, start INTEGER NOT NULL, \
         route INTEGER NOT NULL, {columns}, PRIMARY KEY (span, start, route)) WITHOUT ROWID"
    )
}

/// Lengths of the spans, in ms, by number.
pub(super) const SPANS_MS: [u64; 2] = [MINUTE_MS, HOUR_MS];

/// Key of a row of the table: span, start, route.
type CountKey = (usize, u64, i64);

/// Counts to be added to the table.
#[derive(Default)]
pub(super) struct Counts(HashMap<CountKey, Tally>);

impl Counts {
    /// Applies `count` to the minute and the hour of this time, for one route.
    pub(super) fn count(&mut self, route: i64, at_ms: u64, count: impl Fn(&mut Tally)) {
        for (span, length_ms) in SPANS_MS.into_iter().enumerate() {
            count(self.0.entry((span, at_ms / length_ms, route)).or_default());
        }
    }

    pub(super) fn write(&self, transaction: &Transaction<'_>) -> Result<(), QueryError> {
        let columns = columns();
        let add = |column: &String| match column.as_str() {
            LATENCY_MAX => format!("{column} = max({column}, excluded.{column})"),
            _ => format!("{column} = {column} + excluded.{column}"),
        };
        let sql = format!(
            "INSERT INTO counts (span, start, route, {}) VALUES (?, ?, ?{}) \
             ON CONFLICT DO UPDATE SET {}",
            columns.join(", "),
            ", ?".repeat(columns.len()),
            columns.iter().map(add).collect::<Vec<_>>().join(", "),
        );
        let mut insert = transaction.prepare_cached(&sql)?;
        for ((span, start, route), tally) in &self.0 {
            let key = [*span as i64, stored(*start), *route];
            let numbers = key.into_iter().chain(tally.numbers()).collect::<Vec<_>>();
            insert.execute(
                numbers.iter().map(|number| number as &dyn ToSql).collect::<Vec<_>>().as_slice(),
            )?;
        }
        Ok(())
    }
}
