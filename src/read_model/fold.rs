//! Folds events into the row of an operation. Each batch reads the row once, changes it in memory,
//! and writes it once.

use std::collections::BTreeMap;
use std::mem;

use rusqlite::{OptionalExtension, Transaction, params};

use super::error::QueryError;
use super::operation::{OperationState, StateTimes, kind_number, kind_of_number};
use super::values::{stored, unstored};
use crate::event::{Event, EventKind, Summary};

/// An operation, with the columns of its row.
#[derive(Debug, Clone)]
pub(super) struct Folded {
    pub id: i64,
    /// The route and state under which the file counts the operation; `None` for a new operation.
    pub counted: Option<(i64, OperationState)>,
    /// Whether the operation began, or began anew, in this batch. Then the columns that otherwise
    /// never change are written too.
    began: bool,
    changed: bool,
    route: i64,
    kind: EventKind,
    version: i64,
    fence: i64,
    status: Option<u16>,
    scope: Option<String>,
    cause: Option<String>,
    opened_ms: u64,
    began_ms: u64,
    changed_ms: u64,
    lease_ends_ms: Option<u64>,
    ends_ms: u64,
    gone_ms: u64,
    request_bytes: Option<u64>,
    response_bytes: Option<u64>,
    upstream_ms: Option<u64>,
    trace: Option<String>,
    /// Chosen fields of this batch, by name.
    fields: BTreeMap<String, String>,
}

/// An operation before an event.
pub(super) enum Before {
    /// A known operation.
    Known(Folded),
    /// A new operation, with this number.
    Unknown(i64),
}

impl Before {
    /// Returns whether the known operation is that of the event.
    pub fn has_same_operation(&self, event: &Event) -> bool {
        matches!(self, Before::Known(known) if known.opened_ms == event.opened_ms)
    }
}

impl Folded {
    /// Reads an operation from the file.
    pub fn load(transaction: &Transaction<'_>, slot: &[u8]) -> Result<Option<Folded>, QueryError> {
        let mut select = transaction.prepare_cached(
            "SELECT id, route, standing, kind, version, fence, status, scope, cause, opened_ms, \
             began_ms, changed_ms, lease_ends_ms, ends_ms, gone_ms, request_bytes, response_bytes, \
             upstream_ms, trace FROM operations WHERE slot = ?1",
        )?;
        let found = select.query_row([slot], |row| {
            let number = |at: usize| row.get::<_, i64>(at).map(unstored);
            let perhaps =
                |at: usize| row.get::<_, Option<i64>>(at).map(|number| number.map(unstored));
            let route = row.get(1)?;
            Ok(Folded {
                id: row.get(0)?,
                counted: Some((route, OperationState::of_number(row.get(2)?))),
                began: false,
                changed: false,
                route,
                kind: kind_of_number(row.get(3)?),
                version: row.get(4)?,
                fence: row.get(5)?,
                status: row.get(6)?,
                scope: row.get(7)?,
                cause: row.get(8)?,
                opened_ms: number(9)?,
                began_ms: number(10)?,
                changed_ms: number(11)?,
                lease_ends_ms: perhaps(12)?,
                ends_ms: number(13)?,
                gone_ms: number(14)?,
                request_bytes: perhaps(15)?,
                response_bytes: perhaps(16)?,
                upstream_ms: perhaps(17)?,
                trace: row.get(18)?,
                fields: BTreeMap::new(),
            })
        });
        Ok(found.optional()?)
    }

    /// Applies an event. [`Summary`] computes the state.
    pub fn after(before: Before, at_ms: u64, route: i64, mut event: Event) -> Folded {
        let (id, before) = match before {
            Before::Known(before) => (before.id, Some(before)),
            Before::Unknown(id) => (id, None),
        };
        // A claim of a free key opens the operation anew. A claim after an uncertain outcome, and a
        // saga that goes on, keep the opening time.
        let same = before.as_ref().filter(|before| {
            let opens =
                matches!(event.kind, EventKind::Claimed | EventKind::Saga | EventKind::Barred);
            !opens || before.opened_ms == event.opened_ms
        });
        let began = before.is_none() || same.is_none();
        let began_ms = match (same, event.kind) {
            (Some(same), _) => same.began_ms,
            (None, EventKind::Claimed | EventKind::Barred) => at_ms,
            // The event of the operation's beginning was trimmed from the log.
            (None, _) => at_ms.min(event.opened_ms),
        };
        let context = mem::take(&mut event.context);
        let mut fields = same.map(|same| same.fields.clone()).unwrap_or_default();
        fields.extend(context.fields);
        let scope =
            context.scope.or_else(|| before.as_ref().and_then(|before| before.scope.clone()));
        let summary = Summary { scope, changed_ms: at_ms, last: event };
        let ends_ms = summary.ends_ms();
        Folded {
            id,
            counted: before.as_ref().and_then(|before| before.counted),
            began: began || before.as_ref().is_some_and(|before| before.began),
            changed: true,
            route,
            kind: summary.last.kind,
            version: bits(&summary.last.version),
            fence: bits(&summary.last.fence),
            status: summary.last.status,
            opened_ms: summary.last.opened_ms,
            began_ms,
            changed_ms: at_ms,
            lease_ends_ms: summary.lease_ends_ms(),
            ends_ms,
            gone_ms: summary.tombstone_ends_ms().unwrap_or(0).max(ends_ms),
            request_bytes: context.request_bytes.or(same.and_then(|same| same.request_bytes)),
            response_bytes: summary.last.response_bytes,
            upstream_ms: context.upstream_ms.or(same.and_then(|same| same.upstream_ms)),
            trace: context.trace.or_else(|| same.and_then(|same| same.trace.clone())),
            fields,
            cause: summary.last.cause,
            scope: summary.scope,
        }
    }

    /// Identifies the last change by version, fence and kind.
    pub fn change(&self) -> (i64, i64, i64) {
        (self.version, self.fence, kind_number(self.kind))
    }

    /// Writes the row if it changed. Returns the route and state under which it is counted from now
    /// on.
    pub fn write(
        &self,
        transaction: &Transaction<'_>,
        slot: &[u8],
    ) -> Result<Option<(i64, OperationState)>, QueryError> {
        if !self.changed {
            return Ok(self.counted);
        }
        let times = StateTimes { kind: self.kind, ends_ms: self.ends_ms, gone_ms: self.gone_ms };
        let state = times.state(self.changed_ms);
        let next_ms = times.next_ms(self.changed_ms).map(stored);
        if self.began {
            self.insert(transaction, slot, state, next_ms)?;
        } else {
            self.update(transaction, state, next_ms)?;
        }
        self.write_fields(transaction)?;
        Ok(Some((self.route, state)))
    }

    fn insert(
        &self,
        transaction: &Transaction<'_>,
        slot: &[u8],
        state: OperationState,
        next_ms: Option<i64>,
    ) -> Result<(), QueryError> {
        if self.counted.is_some() {
            // Row and fields of the earlier operation under this key.
            transaction
                .prepare_cached("DELETE FROM operations WHERE id = ?1")?
                .execute([self.id])?;
            transaction
                .prepare_cached("DELETE FROM fields WHERE operation = ?1")?
                .execute([self.id])?;
        }
        let mut insert = transaction.prepare_cached(
            "INSERT INTO operations (id, slot, route, standing, next_ms, kind, version, fence, \
             status, scope, cause, opened_ms, began_ms, changed_ms, lease_ends_ms, ends_ms, \
             gone_ms, request_bytes, response_bytes, upstream_ms, trace) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, \
             ?18, ?19, ?20, ?21)",
        )?;
        insert.execute(params![
            self.id,
            slot,
            self.route,
            state.number(),
            next_ms,
            kind_number(self.kind),
            self.version,
            self.fence,
            self.status,
            self.scope,
            self.cause,
            stored(self.opened_ms),
            stored(self.began_ms),
            stored(self.changed_ms),
            self.lease_ends_ms.map(stored),
            stored(self.ends_ms),
            stored(self.gone_ms),
            self.request_bytes.map(stored),
            self.response_bytes.map(stored),
            self.upstream_ms.map(stored),
            self.trace,
        ])?;
        Ok(())
    }

    /// Updates the row. Columns that never change (slot, route, beginning) are not named, so that
    /// their indexes are not written.
    fn update(
        &self,
        transaction: &Transaction<'_>,
        state: OperationState,
        next_ms: Option<i64>,
    ) -> Result<(), QueryError> {
        let mut update = transaction.prepare_cached(
            "UPDATE operations SET standing = ?2, next_ms = ?3, kind = ?4, version = ?5, \
             fence = ?6, status = ?7, cause = ?8, opened_ms = ?9, changed_ms = ?10, \
             lease_ends_ms = ?11, ends_ms = ?12, gone_ms = ?13, request_bytes = ?14, \
             response_bytes = ?15, upstream_ms = ?16, trace = ?17 WHERE id = ?1",
        )?;
        update.execute(params![
            self.id,
            state.number(),
            next_ms,
            kind_number(self.kind),
            self.version,
            self.fence,
            self.status,
            self.cause,
            stored(self.opened_ms),
            stored(self.changed_ms),
            self.lease_ends_ms.map(stored),
            stored(self.ends_ms),
            stored(self.gone_ms),
            self.request_bytes.map(stored),
            self.response_bytes.map(stored),
            self.upstream_ms.map(stored),
            self.trace,
        ])?;
        let mut scope = transaction
            .prepare_cached("UPDATE operations SET scope = ?2 WHERE id = ?1 AND scope IS NOT ?2")?;
        scope.execute(params![self.id, self.scope])?;
        Ok(())
    }

    fn write_fields(&self, transaction: &Transaction<'_>) -> Result<(), QueryError> {
        if self.fields.is_empty() {
            return Ok(());
        }
        let mut insert_field = transaction.prepare_cached(
            "INSERT OR REPLACE INTO fields (operation, name, value, began_ms) \
             VALUES (?1, ?2, ?3, ?4)",
        )?;
        let mut insert_name =
            transaction.prepare_cached("INSERT OR IGNORE INTO field_names VALUES (?1)")?;
        for (name, value) in &self.fields {
            insert_field.execute(params![self.id, name, value, stored(self.began_ms)])?;
            insert_name.execute([name])?;
        }
        Ok(())
    }
}

/// Converts a version or fence, bit by bit. The result is only compared for equality.
fn bits(digits: &str) -> i64 {
    digits.parse::<u64>().unwrap_or(0).cast_signed()
}
