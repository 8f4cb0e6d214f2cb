//! The tables of the event log: one partition. Entries are appended in the transaction that writes
//! the record.

use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use redb::{
    ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};

use super::layout::META;
use crate::key::Slot;
use crate::store::log::{
    Ends, EntryId, LINK_BYTES, Link, LogEntry, MEMBER_BYTES, Mark, OBSERVED_BYTES_MAX,
    OBSERVED_ENTRY_BYTES, Trimmed, member, slot_of_member,
};

/// Bytes of an entry's id. It is big-endian, so the table is in the order of ids.
const ID_BYTES: usize = 16;
/// Bytes of an id and its link.
const MARK_BYTES: usize = ID_BYTES + LINK_BYTES;
/// Bytes of a reader's mark: the id of the last entry read, and the time of the mark.
const READER_BYTES: usize = ID_BYTES + 8;

/// Entries: id -> member, link and event.
const EVENTS: TableDefinition<&[u8; ID_BYTES], &[u8]> = TableDefinition::new("events");
/// Ends of the log: [`LAST`] or [`TRIMMED`] -> an id and its link.
const MARKS: TableDefinition<&str, &[u8; MARK_BYTES]> = TableDefinition::new("event_marks");
/// Marks of readers, by name.
const READERS: TableDefinition<&str, &[u8; READER_BYTES]> = TableDefinition::new("event_readers");

/// Batches of observations, by id.
const OBSERVED: TableDefinition<&[u8; ID_BYTES], &[u8]> = TableDefinition::new("observations");
/// In [`META`]: bytes of all observations.
const OBSERVED_BYTES: &str = "observed_bytes";

/// Name of the last entry's mark.
const LAST: &str = "last";
/// Name of the mark of the last entry that was trimmed.
const TRIMMED: &str = "trimmed";

/// Limit for the entries that one call trims. The writer's next batch waits for the call.
const TRIMMED_PER_CALL: usize = 500;

/// The only partition.
pub(super) const PARTITION: u16 = 0;

/// Creates the tables that do not exist yet.
pub(super) fn prepare(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(EVENTS)?;
    txn.open_table(MARKS)?;
    txn.open_table(READERS)?;
    txn.open_table(OBSERVED)?;
    Ok(())
}

/// Appends an event.
pub(super) fn append(
    txn: &WriteTransaction,
    slot: &Slot,
    event: &[u8],
    now_ms: u64,
) -> Result<(), redb::Error> {
    let mut marks = txn.open_table(MARKS)?;
    let last = mark(&marks, LAST)?;
    let member = member(slot);
    let link = Link::of(last.map(|last| last.link), &member, event);
    let id = EntryId::behind(last.map(|last| last.id).unwrap_or_default(), now_ms);
    let value = [&member, &link.as_bytes()[..], event].concat();
    txn.open_table(EVENTS)?.insert(&id_bytes(id), value.as_slice())?;
    marks.insert(LAST, &mark_bytes(Mark { id, link }))?;
    Ok(())
}

/// Appends an entry of another store's log, with its id and link. An entry without a link is left
/// out.
pub(super) fn append_unchanged(
    txn: &WriteTransaction,
    entry: &LogEntry,
) -> Result<(), redb::Error> {
    let Some(link) = entry.link else { return Ok(()) };
    let value = [&member(&entry.slot), &link.as_bytes()[..], &entry.event].concat();
    txn.open_table(EVENTS)?.insert(&id_bytes(entry.id), value.as_slice())?;
    txn.open_table(MARKS)?.insert(LAST, &mark_bytes(Mark { id: entry.id, link }))?;
    Ok(())
}

/// Writes the ends of another store's log.
pub(super) fn put_ends(txn: &WriteTransaction, ends: &Ends) -> Result<(), redb::Error> {
    let mut marks = txn.open_table(MARKS)?;
    marks.insert(LAST, &mark_bytes(ends.last))?;
    if let Some(trimmed) = ends.trimmed {
        marks.insert(TRIMMED, &mark_bytes(trimmed))?;
    }
    Ok(())
}

/// Whether no entry was ever appended.
pub(super) fn is_empty(txn: &WriteTransaction) -> Result<bool, redb::Error> {
    Ok(txn.open_table(EVENTS)?.is_empty()? && txn.open_table(MARKS)?.is_empty()?)
}

/// Appends a batch of observations, and removes the oldest ones if they exceed their limit.
pub(super) fn observe(
    txn: &WriteTransaction,
    batch: &[u8],
    now_ms: u64,
) -> Result<(), redb::Error> {
    {
        let (mut observed, mut meta) = (txn.open_table(OBSERVED)?, txn.open_table(META)?);
        let last = observed.last()?.map(|(id, _)| id_of(id.value())).unwrap_or_default();
        observed.insert(&id_bytes(EntryId::behind(last, now_ms)), batch)?;
        let bytes = observed_bytes(&meta)?.saturating_add(weight(batch));
        meta.insert(OBSERVED_BYTES, bytes)?;
    }
    drop_observed(txn, |bytes, _| bytes > OBSERVED_BYTES_MAX as u64)?;
    Ok(())
}

fn observed_bytes(meta: &impl ReadableTable<&'static str, u64>) -> Result<u64, redb::Error> {
    Ok(meta.get(OBSERVED_BYTES)?.map_or(0, |bytes| bytes.value()))
}

/// Removes the oldest batches while `is_obsolete` returns `true` for the bytes of all batches and
/// the oldest id. Returns the number of removed batches.
fn drop_observed(
    txn: &WriteTransaction,
    is_obsolete: impl Fn(u64, EntryId) -> bool,
) -> Result<usize, redb::Error> {
    let (mut observed, mut meta) = (txn.open_table(OBSERVED)?, txn.open_table(META)?);
    let (mut bytes, mut gone) = (observed_bytes(&meta)?, Vec::new());
    for entry in observed.iter()?.take(TRIMMED_PER_CALL) {
        let (id, batch) = entry?;
        if !is_obsolete(bytes, id_of(id.value())) {
            break;
        }
        gone.push(*id.value());
        bytes = bytes.saturating_sub(weight(batch.value()));
    }
    for id in &gone {
        observed.remove(id)?;
    }
    if !gone.is_empty() {
        meta.insert(OBSERVED_BYTES, bytes)?;
    }
    Ok(gone.len())
}

fn weight(batch: &[u8]) -> u64 {
    (batch.len() + OBSERVED_ENTRY_BYTES) as u64
}

/// Marks how far a reader has read.
pub(super) fn mark_read(
    txn: &WriteTransaction,
    reader: &str,
    read: EntryId,
    now_ms: u64,
) -> Result<(), redb::Error> {
    let mut value = [0; READER_BYTES];
    value[..ID_BYTES].copy_from_slice(&id_bytes(read));
    value[ID_BYTES..].copy_from_slice(&now_ms.to_be_bytes());
    txn.open_table(READERS)?.insert(reader, &value)?;
    Ok(())
}

/// See [`crate::store::EventLog::trim`].
pub(super) fn trim(
    txn: &WriteTransaction,
    older_than: Duration,
    now_ms: u64,
) -> Result<Trimmed, redb::Error> {
    let since = now_ms.saturating_sub(u64::try_from(older_than.as_millis()).unwrap_or(u64::MAX));
    let batches = drop_observed(txn, |_, id| id.ms < since)?;
    let (slowest, forgotten) = forget_silent(&mut txn.open_table(READERS)?, since)?;
    let (mut events, mut marks) = (txn.open_table(EVENTS)?, txn.open_table(MARKS)?);
    let mut gone = Vec::new();
    for entry in events.iter()?.take(TRIMMED_PER_CALL) {
        let (id, value) = entry?;
        let id = id_of(id.value());
        if id.ms >= since || slowest.is_some_and(|read| id > read) {
            break;
        }
        let link =
            value.value().get(MEMBER_BYTES..MEMBER_BYTES + LINK_BYTES).and_then(Link::from_bytes);
        gone.push((id, link));
    }
    for (id, _) in &gone {
        events.remove(&id_bytes(*id))?;
    }
    if let Some((id, Some(link))) = gone.last() {
        marks.insert(TRIMMED, &mark_bytes(Mark { id: *id, link: *link }))?;
    }
    Ok(Trimmed { entries: gone.len(), batches, forgotten })
}

/// Forgets readers without a mark since `since`. Returns the position of the slowest remaining
/// reader, and the names of the forgotten readers.
fn forget_silent(
    readers: &mut Table<'_, &'static str, &'static [u8; READER_BYTES]>,
    since: u64,
) -> Result<(Option<EntryId>, Vec<String>), redb::Error> {
    let (mut slowest, mut forgotten) = (None, Vec::new());
    for entry in readers.iter()? {
        let (name, value) = entry?;
        let (read, marked_ms) = reader_of(value.value());
        if marked_ms < since {
            forgotten.push(name.value().to_owned());
        } else {
            slowest = Some(slowest.map_or(read, |slowest: EntryId| slowest.min(read)));
        }
    }
    for name in &forgotten {
        readers.remove(name.as_str())?;
    }
    Ok((slowest, forgotten))
}

/// Reads up to `limit` values behind an id.
fn behind(
    txn: &ReadTransaction,
    table: TableDefinition<'_, &'static [u8; ID_BYTES], &'static [u8]>,
    from: EntryId,
    limit: usize,
) -> Result<Vec<(EntryId, Bytes)>, redb::Error> {
    let events = txn.open_table(table)?;
    let from = id_bytes(from);
    let range = ReadableTable::range::<&[u8; ID_BYTES]>(
        &events,
        (Bound::Excluded(&from), Bound::Unbounded),
    )?;
    let found = range.take(limit).map(|entry| {
        let (id, value) = entry?;
        Ok((id_of(id.value()), Bytes::copy_from_slice(value.value())))
    });
    found.collect()
}

pub(super) fn entry_of(id: EntryId, mut value: Bytes) -> LogEntry {
    if value.len() < MEMBER_BYTES + LINK_BYTES {
        return LogEntry::unreadable(PARTITION, id);
    }
    let event = value.split_off(MEMBER_BYTES + LINK_BYTES);
    let (member, link) = value.split_at(MEMBER_BYTES);
    let Some(slot) = slot_of_member(member) else { return LogEntry::unreadable(PARTITION, id) };
    LogEntry { partition: PARTITION, id, slot, event, link: Link::from_bytes(link) }
}

fn mark(
    marks: &impl ReadableTable<&'static str, &'static [u8; MARK_BYTES]>,
    name: &str,
) -> Result<Option<Mark>, redb::Error> {
    let Some(value) = marks.get(name)? else { return Ok(None) };
    let (id, link) = value.value().split_at(ID_BYTES);
    Ok(Link::from_bytes(link).map(|link| Mark { id: id_of(id), link }))
}

fn id_bytes(id: EntryId) -> [u8; ID_BYTES] {
    (u128::from(id.ms) << 64 | u128::from(id.seq)).to_be_bytes()
}

fn id_of(bytes: &[u8]) -> EntryId {
    EntryId { ms: be_u64(bytes), seq: be_u64(bytes.get(8..).unwrap_or_default()) }
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn mark_bytes(mark: Mark) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..ID_BYTES].copy_from_slice(&id_bytes(mark.id));
    bytes[ID_BYTES..].copy_from_slice(mark.link.as_bytes());
    bytes
}

fn reader_of(value: &[u8; READER_BYTES]) -> (EntryId, u64) {
    (id_of(value), be_u64(&value[ID_BYTES..]))
}

/// Reads up to `limit` entries behind the entry `from`.
pub(super) fn entries(
    txn: &ReadTransaction,
    from: EntryId,
    limit: usize,
) -> Result<Vec<(EntryId, Bytes)>, redb::Error> {
    behind(txn, EVENTS, from, limit)
}

/// Reads up to `limit` batches of observations behind the batch `after`.
pub(super) fn observations(
    txn: &ReadTransaction,
    after: EntryId,
    limit: usize,
) -> Result<Vec<(EntryId, Bytes)>, redb::Error> {
    behind(txn, OBSERVED, after, limit)
}

/// Returns how far a reader has read.
pub(super) fn read_by(txn: &ReadTransaction, reader: &str) -> Result<Option<EntryId>, redb::Error> {
    Ok(txn.open_table(READERS)?.get(reader)?.map(|value| reader_of(value.value()).0))
}

/// Returns the ends of the log; `None` if it never had an entry.
pub(super) fn ends(txn: &ReadTransaction) -> Result<Option<Ends>, redb::Error> {
    let marks = txn.open_table(MARKS)?;
    let trimmed = mark(&marks, TRIMMED)?;
    Ok(mark(&marks, LAST)?.map(|last| Ends { partition: PARTITION, trimmed, last }))
}
