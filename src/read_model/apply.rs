//! Applies entries of the log. Entries and position are written in one transaction, so that no
//! entry is applied twice or skipped.

use std::collections::{HashMap, HashSet};

use rusqlite::{Transaction, params};

use super::counts::Counts;
use super::error::QueryError;
use super::fold::{Before, Folded};
use super::freshness::{Known, ModelGeneration, position};
use super::model::{ReadModel, lock};
use super::operation::OperationState;
use super::schema;
use super::values::stored;
use crate::event::Event;
use crate::key::Slot;
use crate::store::log::{LogEntry, Position, member};

/// Result of applying entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Number of entries that were new.
    pub entries: usize,
    /// Number of new entries that this version can't decode. They are skipped.
    pub unknown: usize,
}

/// Numbers of routes in the file, by name.
#[derive(Default)]
pub(super) struct RouteNumbers(HashMap<String, i64>);

impl RouteNumbers {
    /// Returns the number of a route. A new route gets one.
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
    /// Applies entries of the log that were read for this generation, in order within each
    /// partition. Skips entries that were applied before.
    ///
    /// # Errors
    /// Nothing was applied. The call may be repeated, unless the file was
    /// [emptied](QueryError::Emptied): then earlier entries must be applied first.
    pub fn apply(
        &self,
        generation: ModelGeneration,
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

    /// Returns the name under which the model's projectors mark their position in the log. The name
    /// is the same for as long as the file exists.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn reader_name(&self) -> Result<String, QueryError> {
        self.reading(schema::reader)
    }
}

struct Batch<'t> {
    transaction: &'t Transaction<'t>,
    position: Position,
    moved: HashSet<u16>,
    operations: HashMap<Slot, Folded>,
    next_id: i64,
    routes: RouteNumbers,
    counts: Counts,
    applied: Applied,
}

impl<'t> Batch<'t> {
    fn begin(transaction: &'t Transaction<'t>) -> Result<Batch<'t>, QueryError> {
        let last: Option<i64> =
            transaction.query_row("SELECT max(id) FROM operations", [], |row| row.get(0))?;
        Ok(Batch {
            transaction,
            // The position is from the file, because another process may have applied more entries.
            position: position(transaction)?,
            moved: HashSet::new(),
            operations: HashMap::new(),
            next_id: last.unwrap_or(0) + 1,
            routes: RouteNumbers::default(),
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
            // A later version or another program wrote the event.
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
        let is_first = !before.has_same_operation(&event);
        let folded = Folded::after(before, entry.id.ms, route, event);
        if self.keep(&folded, entry)? {
            self.counts.count(route, entry.id.ms, |tally| {
                tally.changed(kind, is_first);
                if let Some(ms) = upstream_ms {
                    tally.took(ms);
                }
            });
        }
        self.operations.insert(entry.slot, folded);
        Ok(())
    }

    /// Stores an event for the timeline of its operation. Returns whether the change is new. After
    /// a failover, gateways write again the changes that the server may have lost. Such an event
    /// has the current state, but must not be counted twice.
    fn keep(&self, changed: &Folded, entry: &LogEntry) -> Result<bool, QueryError> {
        let mut insert = self.transaction.prepare_cached(
            "INSERT OR IGNORE INTO events (operation, version, fence, kind, ms, seq, event) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
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
        let mut standings = StateCounts::default();
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

/// Changes of the numbers of operations, by route and state.
#[derive(Default)]
pub(super) struct StateCounts(HashMap<(i64, OperationState), i64>);

impl StateCounts {
    /// Counts an operation that changed its route or state.
    pub fn moved(
        &mut self,
        from: Option<(i64, OperationState)>,
        to: Option<(i64, OperationState)>,
    ) {
        if from == to {
            return;
        }
        for (group, change) in [(from, -1), (to, 1)] {
            if let Some(group) = group {
                *self.0.entry(group).or_default() += change;
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
