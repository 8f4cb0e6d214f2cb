//! Progress and freshness of the read model: how far the log was applied, and to which generation
//! of the file.

use rusqlite::{Connection, Transaction};
use tokio::time::Instant;

use super::error::QueryError;
use super::values::{meta, set_meta, stored, unstored};
use crate::store::log::reader::Checkpoint;
use crate::store::log::{EntryId, Position};

/// Names of the values in the file.
pub(super) const GENERATION: &str = "generation";
pub(super) const AS_OF_MS: &str = "as_of_ms";
const ENTRIES: &str = "entries";

/// Age of the read model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freshness {
    /// Time up to which the model has all entries of the log, in ms since 1970; `None`: not known
    /// yet.
    pub as_of_ms: Option<u64>,
    /// Number of entries applied.
    pub entries: u64,
    /// Time since `as_of_ms` last changed, in ms, by a monotonic clock.
    pub unmoved_ms: u64,
}

impl Freshness {
    /// Returns the age, in ms; `None`: not known. It is at least `unmoved_ms`: otherwise the model
    /// would seem fresh after the wall clock was set back.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.as_of_ms.map(|as_of| now_ms.saturating_sub(as_of).max(self.unmoved_ms))
    }
}

/// Generation of the file. It changes each time the file is emptied. It is the fence of the model's
/// position in the log.
///
/// Danger: entries that were read for one generation must not be applied to the next one. The
/// position would move past entries that the emptied file does not have, and they would be missing
/// for ever.
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

/// Progress of the file, as this process last read or set it.
pub(super) struct Known {
    pub generation: ModelGeneration,
    pub freshness: Freshness,
    /// When this process learned `as_of_ms`.
    pub learned: Instant,
    /// When this process last set `as_of_ms` itself.
    pub set: Option<Instant>,
    /// When this process last wrote `as_of_ms` to the file.
    pub written: Option<Instant>,
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

/// Names of the last batch of observations that was applied.
const READ_MS: &str = "observed_ms";
const READ_SEQ: &str = "observed_seq";

impl ModelProgress {
    /// Reads how far the log was applied.
    pub(super) fn read(connection: &Connection) -> Result<ModelProgress, QueryError> {
        let fence = ModelGeneration::read(connection)?;
        let checkpoint = Checkpoint { fence, position: position(connection)? };
        Ok(ModelProgress { checkpoint, observed: observed(connection)?.unwrap_or_default() })
    }
}

/// Reads the position in the log.
pub(super) fn position(connection: &Connection) -> Result<Position, QueryError> {
    let mut select = connection.prepare_cached("SELECT partition, ms, seq FROM positions")?;
    let found = select.query_map([], |row| {
        Ok((row.get(0)?, EntryId { ms: unstored(row.get(1)?), seq: unstored(row.get(2)?) }))
    })?;
    Ok(Position(found.collect::<Result<_, _>>()?))
}

/// Reads the last batch of observations that was applied; `None`: there was none.
pub(super) fn observed(connection: &Connection) -> Result<Option<EntryId>, QueryError> {
    let (ms, seq) = (meta(connection, READ_MS)?, meta(connection, READ_SEQ)?);
    Ok(ms.zip(seq).map(|(ms, seq)| EntryId { ms: unstored(ms), seq: unstored(seq) }))
}

/// Writes the last batch of observations that was applied.
pub(super) fn set_observed(transaction: &Transaction<'_>, id: EntryId) -> Result<(), QueryError> {
    set_meta(transaction, READ_MS, stored(id.ms))?;
    set_meta(transaction, READ_SEQ, stored(id.seq))
}
