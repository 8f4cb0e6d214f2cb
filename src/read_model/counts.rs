//! Counters by route and minute, and by route and hour, kept with every change, so that nobody has to scan operations.

use std::collections::HashMap;

use rusqlite::types::ToSql;
use rusqlite::{Row, Transaction};

use super::{QueryError, stored, unstored};
use crate::event::EventKind;

/// Upper bounds of the buckets of a latency, in ms; a last bucket has what is above.
pub const LATENCY_BOUNDS_MS: [u64; 9] = [10, 25, 50, 100, 250, 500, 1000, 2500, 10_000];

const BUCKETS: usize = LATENCY_BOUNDS_MS.len() + 1;

/// A minute and an hour, in ms.
pub(super) const MINUTE_MS: u64 = 60_000;
pub(super) const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How long upstreams took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// Answers that were timed.
    pub count: u64,
    /// All their times together, in ms.
    pub sum_ms: u64,
    /// The longest, in ms.
    pub max_ms: u64,
    /// How many took so long, by [`LATENCY_BOUNDS_MS`].
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

    /// The bound, in ms, that this share (0 to 1) of answers kept; `None` without any.
    pub fn quantile_ms(&self, share: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let wanted = (share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64;
        let mut seen = 0;
        let bounds =
            LATENCY_BOUNDS_MS.into_iter().map(|bound| bound.min(self.max_ms)).chain([self.max_ms]);
        let mut kept = self.buckets.iter().zip(bounds).filter_map(|(count, bound)| {
            seen += count;
            (seen >= wanted).then_some(bound)
        });
        kept.next()
    }
}

/// What happened in a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Attempts that began.
    pub attempts: u64,
    /// Attempts whose answer became the result.
    pub executed: u64,
    /// Attempts that provably did nothing.
    pub released: u64,
    /// Outcomes that became uncertain.
    pub uncertain: u64,
    /// Uncertain outcomes that an operator or a probe decided, and results that an operator expired.
    pub decided: u64,
    /// Duplicates that got the stored answer at once.
    pub replayed: u64,
    /// Duplicates that waited for it.
    pub waited: u64,
    /// Duplicates that were refused because they were other requests than the first with the key.
    pub conflicts: u64,
    /// Duplicates that were refused because there was no result to give: in flight, uncertain, not stored, expired.
    pub held: u64,
    /// What else was refused.
    pub refused: u64,
    /// How long the upstream took.
    pub latency: Latency,
}

impl Tally {
    /// Requests with a key that were answered.
    pub fn requests(&self) -> u64 {
        self.attempts + self.replayed + self.waited + self.conflicts + self.held + self.refused
    }

    /// Duplicates that did not reach the upstream.
    pub fn prevented(&self) -> u64 {
        self.replayed + self.waited + self.held
    }

    /// Counts a change.
    pub(super) fn changed(&mut self, kind: EventKind) {
        let counter = match kind {
            EventKind::Claimed => &mut self.attempts,
            EventKind::Completed => &mut self.executed,
            EventKind::Released => &mut self.released,
            EventKind::Uncertain => &mut self.uncertain,
            EventKind::Resolved | EventKind::Found | EventKind::Retried | EventKind::Expired => {
                &mut self.decided
            }
        };
        *counter += 1;
    }

    /// Counts how long the upstream took.
    pub(super) fn took(&mut self, ms: u64) {
        self.latency.observe(ms);
    }

    /// Adds what happened elsewhere, or at another time.
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

    /// All numbers, in the order of [`columns`].
    fn numbers(&self) -> Vec<i64> {
        let latency = &self.latency;
        let times = [latency.count, latency.sum_ms, latency.max_ms];
        self.counters().into_iter().chain(times).chain(latency.buckets).map(stored).collect()
    }

    /// Reads what [`columns`] names, from a column of a row on.
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

/// The columns of a tally.
pub(super) fn columns() -> Vec<String> {
    let times = ["latency_count", "latency_sum", LATENCY_MAX].into_iter().map(str::to_owned);
    let buckets = (0..BUCKETS).map(|bucket| format!("latency_{bucket}"));
    COUNTERS.into_iter().map(str::to_owned).chain(times).chain(buckets).collect()
}

/// The columns, each summed up over what a query groups.
pub(super) fn sums() -> String {
    let sum = |column: String| {
        if column == LATENCY_MAX { format!("max({column})") } else { format!("sum({column})") }
    };
    columns().into_iter().map(sum).collect::<Vec<_>>().join(", ")
}

/// The table: `span` is 0 for minutes and 1 for hours, `start` which one since 1970.
pub(super) fn table() -> String {
    let columns = columns()
        .into_iter()
        .map(|column| format!("{column} INTEGER NOT NULL"))
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "CREATE TABLE counts (span INTEGER NOT NULL, start INTEGER NOT NULL, route INTEGER NOT NULL, {columns}, \
         PRIMARY KEY (span, start, route)) WITHOUT ROWID"
    )
}

/// How long a row of the table is, in ms, by its `span`.
pub(super) const SPANS_MS: [u64; 2] = [MINUTE_MS, HOUR_MS];

/// Which row of the table is meant: span, start, route.
type At = (usize, u64, i64);

/// What is to be added to the table.
#[derive(Default)]
pub(super) struct Counts(HashMap<At, Tally>);

impl Counts {
    /// Counts something that happened on a route at a time.
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
            "INSERT INTO counts (span, start, route, {}) VALUES (?, ?, ?{}) ON CONFLICT DO UPDATE SET {}",
            columns.join(", "),
            ", ?".repeat(columns.len()),
            columns.iter().map(add).collect::<Vec<_>>().join(", "),
        );
        let mut insert = transaction.prepare_cached(&sql)?;
        for ((span, start, route), tally) in &self.0 {
            let place = [*span as i64, stored(*start), *route];
            let numbers = place.into_iter().chain(tally.numbers()).collect::<Vec<_>>();
            insert.execute(
                numbers.iter().map(|number| number as &dyn ToSql).collect::<Vec<_>>().as_slice(),
            )?;
        }
        Ok(())
    }
}
