//! Progress and freshness of the read model: how far the log was applied, and to which generation of the file.

use std::time::Duration;

use rusqlite::{Connection, Transaction};
use tokio::time::Instant;

use super::apply::{meta, position, set_meta};
use super::observe::read_to;
use super::{QueryError, ReadModel, lock, stored, unstored};
use crate::store::log::EntryId;
use crate::store::log::reader::Checkpoint;

/// Names of the values in the file.
pub(super) const GENERATION: &str = "generation";
const AS_OF_MS: &str = "as_of_ms";
const ENTRIES: &str = "entries";

/// Time between two writes of the progress to the file while the log has no new entries. Other processes read the age of the file
/// from it.
const WRITE_PERIOD: Duration = Duration::from_secs(1);

/// Age of the read model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freshness {
    /// Time up to which the model has all entries of the log, in ms since 1970; `None`: not known yet.
    pub as_of_ms: Option<u64>,
    /// Number of entries applied.
    pub entries: u64,
    /// Time since `as_of_ms` last changed, in ms, by a monotonic clock.
    pub unmoved_ms: u64,
}

impl Freshness {
    /// Returns the age, in ms; `None`: not known. It is at least `unmoved_ms`: otherwise the model would seem fresh after the wall
    /// clock was set back.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.as_of_ms.map(|as_of| now_ms.saturating_sub(as_of).max(self.unmoved_ms))
    }
}

/// Generation of the file. It changes each time the file is emptied. It is the fence of the model's position in the log.
///
/// Danger: entries that were read for one generation must not be applied to the next one. The position would move past entries
/// that the emptied file does not have, and they would be missing for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelGeneration(i64);

impl ModelGeneration {
    pub(super) fn read(connection: &Connection) -> Result<ModelGeneration, QueryError> {
        Ok(ModelGeneration(meta(connection, GENERATION)?.unwrap_or_default()))
    }

    /// Checks that the file still has this generation.
    pub(super) fn check(self, transaction: &Transaction<'_>) -> Result<(), QueryError> {
        if ModelGeneration::read(transaction)? == self { Ok(()) } else { Err(QueryError::Emptied) }
    }
}

/// How far the log was applied to the file.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelProgress {
    /// The position in the log, and the generation of the file.
    pub checkpoint: Checkpoint<ModelGeneration>,
    /// The last batch of observations applied.
    pub observed: EntryId,
}

/// The progress of the file as this process knows it, without reading the file.
pub(super) struct Known {
    generation: ModelGeneration,
    freshness: Freshness,
    /// When this process learned `as_of_ms`.
    learned: Instant,
    /// When this process last set `as_of_ms` itself.
    set: Option<Instant>,
    /// When this process last wrote `as_of_ms` to the file.
    written: Option<Instant>,
}

impl Known {
    pub fn read(connection: &Connection) -> Result<Known, QueryError> {
        let freshness = Freshness {
            as_of_ms: meta(connection, AS_OF_MS)?.map(unstored),
            entries: meta(connection, ENTRIES)?.map_or(0, unstored),
            unmoved_ms: 0,
        };
        let generation = ModelGeneration::read(connection)?;
        Ok(Known { generation, freshness, learned: Instant::now(), set: None, written: None })
    }

    /// Counts applied entries, in the transaction that applies them.
    pub fn count(transaction: &Transaction<'_>, entries: usize) -> Result<Known, QueryError> {
        let mut known = Known::read(transaction)?;
        known.freshness.entries += entries as u64;
        set_meta(transaction, ENTRIES, stored(known.freshness.entries))?;
        Ok(known)
    }
}

impl ReadModel {
    /// Returns the age of the model, as this process knows it from following the log or from [`ReadModel::refresh`].
    pub fn freshness(&self) -> Freshness {
        let known = lock(&self.known);
        let unmoved = known.freshness.as_of_ms.map_or(Duration::ZERO, |_| known.learned.elapsed());
        Freshness {
            unmoved_ms: u64::try_from(unmoved.as_millis()).unwrap_or(u64::MAX),
            ..known.freshness
        }
    }

    /// Reads the progress from the file, if another process follows the log.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn refresh(&self) -> Result<(), QueryError> {
        let _learning = lock(&self.learning);
        self.know(self.looking(Known::read)?);
        Ok(())
    }

    /// How far the log was applied to the file.
    ///
    /// # Errors
    /// It can't be read.
    pub fn progress(&self) -> Result<ModelProgress, QueryError> {
        let _learning = lock(&self.learning);
        let (known, progress) = self.looking(|connection| {
            let known = Known::read(connection)?;
            let observed = read_to(connection)?.unwrap_or_default();
            let progress = ModelProgress {
                checkpoint: Checkpoint { fence: known.generation, position: position(connection)? },
                observed,
            };
            Ok((known, progress))
        })?;
        self.know(known);
        Ok(progress)
    }

    /// Records that the model has all entries of the log up to a time (in ms since 1970), if the file still has this generation.
    /// The file is written only now and then.
    ///
    /// The last call wins, not the latest time: an earlier call may have used a wall clock that was ahead, and the model would seem
    /// fresh until that time.
    ///
    /// # Errors
    /// The file can't be written. This process uses the new time nevertheless.
    pub fn complete_until(
        &self,
        generation: ModelGeneration,
        as_of_ms: u64,
    ) -> Result<(), QueryError> {
        {
            let mut known = lock(&self.known);
            if known.generation != generation {
                return Ok(());
            }
            known.freshness.as_of_ms = Some(as_of_ms);
            known.learned = Instant::now();
            known.set = Some(known.learned);
            if known.written.is_some_and(|written| written.elapsed() < WRITE_PERIOD) {
                return Ok(());
            }
            known.written = Some(Instant::now());
        }
        self.writing(|transaction| {
            generation.check(transaction)?;
            set_meta(transaction, AS_OF_MS, stored(as_of_ms))
        })
    }

    /// Whether this process knows the file under this generation.
    pub(super) fn is_known(&self, generation: ModelGeneration) -> bool {
        lock(&self.known).generation == generation
    }

    /// Takes over the progress that was read from the file while [learning](ReadModel::learning). If this process set the time of
    /// the same generation a moment ago, that time stays: the file is not written every time.
    pub(super) fn know(&self, read: Known) {
        let mut known = lock(&self.known);
        if known.generation != read.generation {
            *known = read;
            return;
        }
        known.freshness.entries = read.freshness.entries;
        let is_stale = known.set.is_none_or(|set| set.elapsed() >= 2 * WRITE_PERIOD);
        if is_stale && known.freshness.as_of_ms != read.freshness.as_of_ms {
            known.freshness.as_of_ms = read.freshness.as_of_ms;
            known.learned = read.learned;
        }
    }
}
