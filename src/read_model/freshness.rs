//! How far the file is, and which building of it: whoever follows the log for it, and whoever shows what it says, goes by that.

use std::time::Duration;

use rusqlite::{Connection, Transaction};
use tokio::time::Instant;

use super::apply::{meta, position, set_meta};
use super::observe::read_to;
use super::{QueryError, ReadModel, lock, stored, unstored};
use crate::store::log::{EntryId, Position};

/// Names under which it is kept.
pub(super) const GENERATION: &str = "generation";
const AS_OF_MS: &str = "as_of_ms";
const ENTRIES: &str = "entries";

/// Between two words to the file of how far it is while nothing happens: other processes show how old it is by that.
const TELL_PERIOD: Duration = Duration::from_secs(1);

/// How far the read model is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freshness {
    /// It holds all that was told until then, in ms since 1970; `None`: nothing is known of that yet.
    pub as_of_ms: Option<u64>,
    /// Entries of the log that it was built of.
    pub entries: u64,
    /// For how long nothing else was known of that, in ms, by a clock that nobody sets.
    pub unmoved_ms: u64,
}

impl Freshness {
    /// How long ago that was, in ms; `None`: nobody knows. Not less than nothing else was known: by a wall clock that was set back
    /// since, it would be fresh until that comes there again.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.as_of_ms.map(|as_of| now_ms.saturating_sub(as_of).max(self.unmoved_ms))
    }
}

/// Which building of the file: another one after each emptying.
///
/// Danger: what was read from the log for one must not be applied to the next. Its position would be moved past entries that the
/// emptied file no longer has, and they would be missing for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(i64);

impl Generation {
    pub(super) fn read(connection: &Connection) -> Result<Generation, QueryError> {
        Ok(Generation(meta(connection, GENERATION)?.unwrap_or_default()))
    }

    /// Whether the file is still of this generation.
    pub(super) fn check(self, transaction: &Transaction<'_>) -> Result<(), QueryError> {
        if Generation::read(transaction)? == self { Ok(()) } else { Err(QueryError::Emptied) }
    }
}

/// Where the file is.
#[derive(Debug, Clone, PartialEq)]
pub struct Reached {
    /// Which building it is.
    pub generation: Generation,
    /// How far the log was applied to it.
    pub position: Position,
    /// How far observations were.
    pub observed: EntryId,
}

/// What a process knows of the file without reading it.
pub(super) struct Known {
    generation: Generation,
    freshness: Freshness,
    /// When this process learned until when all is in.
    learned: Instant,
    /// When this process last said until when all is in, and when it last told the file.
    said: Option<Instant>,
    told: Option<Instant>,
}

impl Known {
    pub fn read(connection: &Connection) -> Result<Known, QueryError> {
        let freshness = Freshness {
            as_of_ms: meta(connection, AS_OF_MS)?.map(unstored),
            entries: meta(connection, ENTRIES)?.map_or(0, unstored),
            unmoved_ms: 0,
        };
        let generation = Generation::read(connection)?;
        Ok(Known { generation, freshness, learned: Instant::now(), said: None, told: None })
    }

    /// Counts entries that were applied.
    pub fn count(transaction: &Transaction<'_>, entries: usize) -> Result<Known, QueryError> {
        let mut known = Known::read(transaction)?;
        known.freshness.entries += entries as u64;
        set_meta(transaction, ENTRIES, stored(known.freshness.entries))?;
        Ok(known)
    }
}

impl ReadModel {
    /// How far it is behind: as this process last learned, by following the log or by [`ReadModel::refresh`].
    pub fn freshness(&self) -> Freshness {
        let known = lock(&self.known);
        let unmoved = known.freshness.as_of_ms.map_or(Duration::ZERO, |_| known.learned.elapsed());
        Freshness {
            unmoved_ms: u64::try_from(unmoved.as_millis()).unwrap_or(u64::MAX),
            ..known.freshness
        }
    }

    /// Learns from the file how far it is: where another process follows the log for it.
    ///
    /// # Errors
    /// It can't be read.
    pub fn refresh(&self) -> Result<(), QueryError> {
        let _learning = lock(&self.learning);
        self.know(self.looking(Known::read)?);
        Ok(())
    }

    /// Where the file is.
    ///
    /// # Errors
    /// It can't be read.
    pub fn reached(&self) -> Result<Reached, QueryError> {
        let _learning = lock(&self.learning);
        let (known, reached) = self.looking(|connection| {
            let known = Known::read(connection)?;
            let observed = read_to(connection)?.unwrap_or_default();
            let reached =
                Reached { generation: known.generation, position: position(connection)?, observed };
            Ok((known, reached))
        })?;
        self.know(known);
        Ok(reached)
    }

    /// Notes that the file, if it is still of this generation, holds all that was told until then (ms since 1970). The file itself
    /// learns of it now and then. The last word counts, not the latest time: that may be of a wall clock that was ahead, and
    /// what is shown would be young until it comes.
    ///
    /// # Errors
    /// The file can't be written; this process knows it nevertheless.
    pub fn told_until(&self, generation: Generation, as_of_ms: u64) -> Result<(), QueryError> {
        {
            let mut known = lock(&self.known);
            if known.generation != generation {
                return Ok(());
            }
            known.freshness.as_of_ms = Some(as_of_ms);
            known.learned = Instant::now();
            known.said = Some(known.learned);
            if known.told.is_some_and(|told| told.elapsed() < TELL_PERIOD) {
                return Ok(());
            }
            known.told = Some(Instant::now());
        }
        self.writing(|transaction| {
            generation.check(transaction)?;
            set_meta(transaction, AS_OF_MS, stored(as_of_ms))
        })
    }

    /// Whether what is known is of this generation.
    pub(super) fn is_known(&self, generation: Generation) -> bool {
        lock(&self.known).generation == generation
    }

    /// Takes over what the file says, which was looked at while [learning](ReadModel::learning). What this process has said of
    /// the same building a moment ago stays: the file is not told every time.
    pub(super) fn know(&self, read: Known) {
        let mut known = lock(&self.known);
        if known.generation != read.generation {
            *known = read;
            return;
        }
        known.freshness.entries = read.freshness.entries;
        let heard = known.said.is_none_or(|said| said.elapsed() >= 2 * TELL_PERIOD);
        if heard && known.freshness.as_of_ms != read.freshness.as_of_ms {
            known.freshness.as_of_ms = read.freshness.as_of_ms;
            known.learned = read.learned;
        }
    }
}
