//! Applying the log: entries and how far they go in one transaction, so that nothing is applied twice or left out.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension, Transaction, params};

use super::counts::Counts;
use super::fold::{Before, Folded};
use super::freshness::{Generation, Known};
use super::operation::State;
use super::{QueryError, ReadModel, lock, schema, stored, unstored};
use crate::event::Event;
use crate::key::Slot;
use crate::store::log::{EntryId, LogEntry, Position, member};

/// What applying came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Entries that were new.
    pub entries: usize,
    /// Those of them that this version can't read. They are passed over.
    pub unknown: usize,
}

/// Names and their numbers in the file.
#[derive(Default)]
pub(super) struct Names(HashMap<String, i64>);

impl Names {
    /// The number of a route's name, which gets one if it has none.
    pub fn number(&mut self, transaction: &Transaction<'_>, name: &str) -> Result<i64, QueryError> {
        if let Some(number) = self.0.get(name) {
            return Ok(*number);
        }
        transaction
            .prepare_cached("INSERT OR IGNORE INTO routes (name) VALUES (?1)")?
            .execute([name])?;
        let mut select = transaction.prepare_cached("SELECT id FROM routes WHERE name = ?1")?;
        let number = select.query_row([name], |row| row.get(0))?;
        self.0.insert(name.to_owned(), number);
        Ok(number)
    }
}

impl ReadModel {
    /// Applies entries of the log, in order within each partition, that were read for this generation. Those that were applied
    /// before are passed over.
    ///
    /// # Errors
    /// Nothing was applied. All of it may be again, unless the file was [emptied](QueryError::Emptied): they lie behind entries
    /// then that it no longer has.
    pub fn apply(
        &self,
        generation: Generation,
        entries: &[LogEntry],
    ) -> Result<Applied, QueryError> {
        let _learning = lock(&self.learning);
        let (applied, known) = self.writing(|transaction| {
            generation.check(transaction)?;
            let mut batch = Batch::begin(transaction)?;
            for entry in entries {
                batch.apply(entry)?;
            }
            let applied = batch.end()?;
            Ok((applied, Known::count(transaction, applied.entries)?))
        })?;
        self.know(known);
        Ok(applied)
    }

    /// What the log knows its projector by: the same for as long as the file is there.
    ///
    /// # Errors
    /// It can't be read.
    pub fn reader_name(&self) -> Result<String, QueryError> {
        self.reading(schema::reader)
    }
}

pub(super) fn position(connection: &rusqlite::Connection) -> Result<Position, QueryError> {
    let mut select = connection.prepare_cached("SELECT partition, ms, seq FROM positions")?;
    let found = select.query_map([], |row| {
        Ok((row.get(0)?, EntryId { ms: unstored(row.get(1)?), seq: unstored(row.get(2)?) }))
    })?;
    Ok(Position(found.collect::<Result<_, _>>()?))
}

struct Batch<'t> {
    transaction: &'t Transaction<'t>,
    position: Position,
    moved: HashSet<u16>,
    operations: HashMap<Slot, Folded>,
    next_id: i64,
    routes: Names,
    counts: Counts,
    applied: Applied,
}

impl<'t> Batch<'t> {
    fn begin(transaction: &'t Transaction<'t>) -> Result<Batch<'t>, QueryError> {
        let last: Option<i64> =
            transaction.query_row("SELECT max(id) FROM operations", [], |row| row.get(0))?;
        Ok(Batch {
            transaction,
            // From the file, not from memory: another process may have applied more.
            position: position(transaction)?,
            moved: HashSet::new(),
            operations: HashMap::new(),
            next_id: last.unwrap_or(0) + 1,
            routes: Names::default(),
            counts: Counts::default(),
            applied: Applied::default(),
        })
    }

    fn apply(&mut self, entry: &LogEntry) -> Result<(), QueryError> {
        if entry.id <= self.position.of(entry.partition) {
            return Ok(());
        }
        self.position.advance(entry);
        self.moved.insert(entry.partition);
        self.applied.entries += 1;
        let Ok(event) = Event::decode(&entry.event) else {
            // A later version's, or somebody's who wrote into the log.
            self.applied.unknown += 1;
            return Ok(());
        };
        let route = self.routes.number(self.transaction, &event.route)?;
        let before = match self.operations.remove(&entry.slot) {
            Some(known) => Before::Known(known),
            None => match Folded::load(self.transaction, &member(&entry.slot))? {
                Some(known) => Before::Known(known),
                None => {
                    self.next_id += 1;
                    Before::Unknown(self.next_id - 1)
                }
            },
        };
        let (kind, upstream_ms) = (event.kind, event.context.upstream_ms);
        let folded = Folded::after(before, entry.id.ms, route, event);
        if self.keep(&folded, entry)? {
            self.counts.count(route, entry.id.ms, |tally| {
                tally.changed(kind);
                if let Some(ms) = upstream_ms {
                    tally.took(ms);
                }
            });
        }
        self.operations.insert(entry.slot, folded);
        Ok(())
    }

    /// Keeps an event, as it was told, for the timeline of the operation that it has changed. Returns whether it is new. After a
    /// failover gateways tell again what the server may have lost: that says where the operation stands, and since when, but
    /// it did not happen twice.
    fn keep(&self, changed: &Folded, entry: &LogEntry) -> Result<bool, QueryError> {
        let mut insert = self.transaction.prepare_cached(
            "INSERT OR IGNORE INTO events (operation, version, fence, kind, ms, seq, event) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        let (version, fence, kind) = changed.change();
        let id = entry.id;
        let inserted = insert.execute(params![
            changed.id,
            version,
            fence,
            kind,
            stored(id.ms),
            stored(id.seq),
            &*entry.event
        ])?;
        Ok(inserted == 1)
    }

    fn end(self) -> Result<Applied, QueryError> {
        let mut standings = Standings::default();
        for (slot, folded) in &self.operations {
            let now = folded.write(self.transaction, &member(slot))?;
            standings.moved(folded.counted, now);
        }
        standings.write(self.transaction)?;
        self.counts.write(self.transaction)?;
        let mut mark = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO positions (partition, ms, seq) VALUES (?1, ?2, ?3)",
        )?;
        for partition in &self.moved {
            let at = self.position.of(*partition);
            mark.execute(params![partition, stored(at.ms), stored(at.seq)])?;
        }
        Ok(self.applied)
    }
}

/// By how much the numbers of operations by route and state change.
#[derive(Default)]
pub(super) struct Standings(HashMap<(i64, State), i64>);

impl Standings {
    /// An operation went from one place to another.
    pub fn moved(&mut self, from: Option<(i64, State)>, to: Option<(i64, State)>) {
        if from == to {
            return;
        }
        for (place, change) in [(from, -1), (to, 1)] {
            if let Some(place) = place {
                *self.0.entry(place).or_default() += change;
            }
        }
    }

    pub fn write(&self, transaction: &Transaction<'_>) -> Result<(), QueryError> {
        let mut add = transaction.prepare_cached(
            "INSERT INTO standings (standing, route, count) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO UPDATE SET count = count + excluded.count",
        )?;
        for ((route, state), change) in &self.0 {
            add.execute(params![state.number(), route, change])?;
        }
        Ok(())
    }
}

/// A value that is kept once.
pub(super) fn meta(
    connection: &rusqlite::Connection,
    name: &str,
) -> Result<Option<i64>, QueryError> {
    let mut select = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    Ok(select.query_row([name], |row| row.get(0)).optional()?)
}

pub(super) fn set_meta(
    transaction: &Transaction<'_>,
    name: &str,
    value: i64,
) -> Result<(), QueryError> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])?;
    Ok(())
}
