//! The tables of the file: records and tombstones by key, and three indexes by time.
//!
//! Danger: a record without its index entries would never be found overdue. So only
//! [`Tables::put_value`] and [`Tables::take`] add and remove records, and always change the
//! indexes, too. An index entry without a record does no harm, and is swept.

use std::time::Duration;

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::event_tables;
use super::layout::{NOTES, name_of};
use super::outbox_change::OutboxChange;
use super::outbox_tables;
use crate::key::{SLOT_BYTES, Slot, Space};
use crate::record::{
    CodecError, Encoded, Fence, HEAD_BYTES, Held, Version, decode, head_fence, head_has_lease,
    head_is_saga, head_may_be_large, head_version,
};
use crate::store::error::StoreError;
use crate::store::identities::Note;
use crate::store::large::ALONG_MAX;
use crate::store::log::{EntryId, Trimmed};
use crate::store::outbox::OutboxEvent;

/// Bytes of a record's key: a kind and a slot's hash.
pub(super) const KEY_BYTES: usize = 1 + SLOT_BYTES;
/// Bytes of an index key: a time in ms and a record's key.
const INDEX_KEY_BYTES: usize = 8 + KEY_BYTES;
/// Bytes before a value's payload: the record's head and three times.
pub(super) const FRONT_BYTES: usize = HEAD_BYTES + 24;

/// Records and tombstones: key -> front and payload.
pub(super) const RECORDS: TableDefinition<&[u8; KEY_BYTES], &[u8]> =
    TableDefinition::new("records");
/// An index by due time.
pub(super) type DueIndex = TableDefinition<'static, &'static [u8; INDEX_KEY_BYTES], ()>;
/// Index of unsettled records by due time.
pub(super) const DUE: DueIndex = TableDefinition::new("due");
/// Index of sagas by the end of their owner's lease.
pub(super) const SAGAS: DueIndex = TableDefinition::new("sagas");
/// Index of records and tombstones by the end of their retention.
pub(super) const ENDS: TableDefinition<&[u8; INDEX_KEY_BYTES], ()> = TableDefinition::new("ends");
/// Kinds of keys in the records table, in the order on disk.
const ENFORCED: u8 = 0;
const SHADOW: u8 = 1;
const ENFORCED_TOMBSTONE: u8 = 2;
const SHADOW_TOMBSTONE: u8 = 3;

/// Key of a record or tombstone: a kind and a slot's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RecordKey(pub(super) [u8; KEY_BYTES]);

impl RecordKey {
    pub(super) fn record(slot: &Slot) -> RecordKey {
        RecordKey::new(if slot.space == Space::Enforced { ENFORCED } else { SHADOW }, slot)
    }

    pub(super) fn tombstone(slot: &Slot) -> RecordKey {
        RecordKey::new(
            if slot.space == Space::Enforced { ENFORCED_TOMBSTONE } else { SHADOW_TOMBSTONE },
            slot,
        )
    }

    fn new(kind: u8, slot: &Slot) -> RecordKey {
        let mut key = [kind; KEY_BYTES];
        key[1..].copy_from_slice(slot.hash());
        RecordKey(key)
    }

    /// Returns the slot of a record's key; `None` for a tombstone's key.
    pub(super) fn slot(&self) -> Option<Slot> {
        self.stored().and_then(|(slot, tombstone)| (!tombstone).then_some(slot))
    }

    /// Returns the slot, and whether it is the key of a tombstone; `None` for an unknown kind.
    pub(super) fn stored(&self) -> Option<(Slot, bool)> {
        let (space, tombstone) = match self.0[0] {
            ENFORCED => (Space::Enforced, false),
            SHADOW => (Space::Shadow, false),
            ENFORCED_TOMBSTONE => (Space::Enforced, true),
            SHADOW_TOMBSTONE => (Space::Shadow, true),
            _ => return None,
        };
        let mut hash = [0; SLOT_BYTES];
        hash.copy_from_slice(&self.0[1..]);
        Some((Slot::from_hash(space, hash), tombstone))
    }
}

/// Makes a key of an index. The time is big-endian, so the index is in the order of time.
pub(super) fn index_key(ms: u64, key: &RecordKey) -> [u8; INDEX_KEY_BYTES] {
    let mut index_key = [0; INDEX_KEY_BYTES];
    index_key[..8].copy_from_slice(&ms.to_be_bytes());
    index_key[8..].copy_from_slice(&key.0);
    index_key
}

/// Returns the greatest key that an index can have for this time.
pub(super) fn index_end(ms: u64) -> [u8; INDEX_KEY_BYTES] {
    index_key(ms, &RecordKey([u8::MAX; KEY_BYTES]))
}

/// Splits an index key into the time and the record's key.
pub(super) fn split_index_key(index_key: &[u8; INDEX_KEY_BYTES]) -> (u64, RecordKey) {
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(&index_key[8..]);
    (be_u64(&index_key[..8]), RecordKey(key))
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The head and times of a stored record, which are read without decoding it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    head: [u8; HEAD_BYTES],
    written_ms: u64,
    /// Due time in ms since 1970; 0: never.
    due_ms: u64,
    pub(super) ends_ms: u64,
}

impl Front {
    pub(super) fn parse(value: &[u8]) -> Result<Front, CodecError> {
        let front = value.get(..FRONT_BYTES).ok_or(CodecError::Malformed)?;
        let mut head = [0; HEAD_BYTES];
        head.copy_from_slice(&front[..HEAD_BYTES]);
        let time = |n: usize| be_u64(&front[HEAD_BYTES + n * 8..HEAD_BYTES + n * 8 + 8]);
        Ok(Front { head, written_ms: time(0), due_ms: time(1), ends_ms: time(2) })
    }

    pub(super) fn version(&self) -> Version {
        head_version(&self.head)
    }

    pub(super) fn fence(&self) -> Fence {
        head_fence(&self.head)
    }

    /// Returns version, fence and state.
    pub(super) fn head(&self) -> &[u8; HEAD_BYTES] {
        &self.head
    }

    pub(super) fn has_lease(&self) -> bool {
        head_has_lease(&self.head)
    }

    pub(super) fn is_saga(&self) -> bool {
        head_is_saga(&self.head)
    }

    pub(super) fn is_indexed(&self) -> bool {
        self.due_ms != 0
    }
}

/// A stored record that is not decoded yet, and the store's time when it was read.
#[derive(Debug)]
pub(super) struct RawRecord {
    front: Front,
    /// `None`: the record is longer than requested.
    payload: Option<Bytes>,
    now_ms: u64,
}

impl RawRecord {
    /// Parses a record. The payload of a completed record or a saga is left out if the record is
    /// longer than `longest` bytes.
    fn parse(value: &[u8], now_ms: u64, longest: usize) -> Result<RawRecord, CodecError> {
        let front = Front::parse(value)?;
        let is_whole = value.len() <= longest || !head_may_be_large(&front.head);
        let payload = is_whole.then(|| Bytes::copy_from_slice(&value[FRONT_BYTES..]));
        Ok(RawRecord { front, payload, now_ms })
    }

    /// Returns the fence of the record's attempt.
    pub(super) fn fence(&self) -> Fence {
        self.front.fence()
    }

    /// Decodes the record; `None` if the payload was left out. Must run on the caller's thread,
    /// because all callers share the writer's thread.
    pub(super) fn held(self) -> Result<Option<Held>, StoreError> {
        let RawRecord { front, payload, now_ms } = self;
        let Some(payload) = payload else { return Ok(None) };
        let record = decode(&front.head, payload)?;
        Ok(Some(Held { record, written_ms: front.written_ms, due_ms: front.due_ms, now_ms }))
    }
}

/// An encoded record to be stored, with space for the times that the writer fills in.
#[derive(Debug)]
pub(super) struct EncodedRecord {
    value: Vec<u8>,
    due: Option<Duration>,
    keep: Duration,
}

impl EncodedRecord {
    pub(super) fn new(encoded: &Encoded, due: Option<Duration>, keep: Duration) -> EncodedRecord {
        let mut value = Vec::with_capacity(FRONT_BYTES + encoded.payload.len());
        value.extend_from_slice(&encoded.head);
        value.resize(FRONT_BYTES, 0);
        value.extend_from_slice(&encoded.payload);
        EncodedRecord { value, due, keep }
    }

    pub(super) fn size(&self) -> usize {
        self.value.len()
    }

    /// Fills in the times, and returns the bytes with due time and end.
    fn stamp(&mut self, now_ms: u64) -> (&[u8], u64, u64) {
        let due_ms = self.due.map_or(0, |due| after(now_ms, due));
        let ends_ms = after(now_ms, self.keep);
        write_times(&mut self.value, [now_ms, due_ms, ends_ms]);
        (&self.value, due_ms, ends_ms)
    }
}

fn write_times(value: &mut [u8], times: [u64; 3]) {
    for (time, room) in times.iter().zip(value[HEAD_BYTES..FRONT_BYTES].chunks_exact_mut(8)) {
        room.copy_from_slice(&time.to_be_bytes());
    }
}

fn after(now_ms: u64, span: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

/// Reads a record; `None` if it has ended.
pub(super) fn read(
    records: &ReadOnlyTable<&'static [u8; KEY_BYTES], &'static [u8]>,
    key: &RecordKey,
    now_ms: u64,
    longest: usize,
) -> Result<Result<Option<RawRecord>, CodecError>, redb::Error> {
    let Some(value) = ReadableTable::get(records, &key.0)? else { return Ok(Ok(None)) };
    Ok(live(value.value(), now_ms, longest))
}

/// Parses a record; `None` if it has ended. The payload of a record longer than `longest` bytes is
/// left out.
pub(super) fn live(
    value: &[u8],
    now_ms: u64,
    longest: usize,
) -> Result<Option<RawRecord>, CodecError> {
    let front = Front::parse(value)?;
    if front.ends_ms > now_ms {
        RawRecord::parse(value, now_ms, longest).map(Some)
    } else {
        Ok(None)
    }
}

/// The open tables of a write transaction.
pub(super) struct Tables<'txn> {
    records: Table<'txn, &'static [u8; KEY_BYTES], &'static [u8]>,
    due: Table<'txn, &'static [u8; INDEX_KEY_BYTES], ()>,
    ends: Table<'txn, &'static [u8; INDEX_KEY_BYTES], ()>,
    txn: &'txn WriteTransaction,
    pub(super) now_ms: u64,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(
        txn: &'txn WriteTransaction,
        now_ms: u64,
    ) -> Result<Tables<'txn>, redb::Error> {
        Ok(Tables {
            records: txn.open_table(RECORDS)?,
            due: txn.open_table(DUE)?,
            ends: txn.open_table(ENDS)?,
            txn,
            now_ms,
        })
    }

    /// Reads the head and times of a record; `None` if it has ended.
    pub(super) fn front(
        &self,
        key: &RecordKey,
    ) -> Result<Result<Option<Front>, CodecError>, redb::Error> {
        let Some(value) = self.records.get(&key.0)? else { return Ok(Ok(None)) };
        Ok(Front::parse(value.value())
            .map(|front| Some(front).filter(|front| front.ends_ms > self.now_ms)))
    }

    /// Reads a record, or a large one without its payload; `None` if it has ended.
    pub(super) fn raw(
        &self,
        key: &RecordKey,
    ) -> Result<Result<Option<RawRecord>, CodecError>, redb::Error> {
        let Some(value) = self.records.get(&key.0)? else { return Ok(Ok(None)) };
        Ok(live(value.value(), self.now_ms, ALONG_MAX))
    }

    /// Stores a record. Replaces the old one.
    pub(super) fn put(
        &mut self,
        key: &RecordKey,
        parcel: &mut EncodedRecord,
    ) -> Result<(), redb::Error> {
        let (value, due_ms, ends_ms) = parcel.stamp(self.now_ms);
        self.put_value(key, value, due_ms, ends_ms)
    }

    /// Whether the lease of a record has ended.
    pub(super) fn is_over(&self, front: &Front) -> bool {
        front.due_ms <= self.now_ms
    }

    /// Moves the due time and the end of a record, and changes nothing else.
    pub(super) fn renew(
        &mut self,
        key: &RecordKey,
        lease: Duration,
        keep: Duration,
    ) -> Result<(), redb::Error> {
        let Some(mut value) = self.records.get(&key.0)?.map(|value| value.value().to_vec()) else {
            return Ok(());
        };
        let Ok(front) = Front::parse(&value) else { return Ok(()) };
        let (due_ms, ends_ms) = (after(self.now_ms, lease), after(self.now_ms, keep));
        write_times(&mut value, [front.written_ms, due_ms, ends_ms]);
        self.put_value(key, &value, due_ms, ends_ms)
    }

    /// Stores a value and its index entries. Replaces the old ones.
    pub(super) fn put_value(
        &mut self,
        key: &RecordKey,
        value: &[u8],
        due_ms: u64,
        ends_ms: u64,
    ) -> Result<(), redb::Error> {
        let old =
            self.records.insert(&key.0, value)?.and_then(|old| Front::parse(old.value()).ok());
        self.forget(key, old)?;
        if due_ms != 0 && Front::parse(value).is_ok_and(|front| front.is_saga()) {
            // Opened only for a saga, so that other writes don't pay for it.
            self.txn.open_table(SAGAS)?.insert(&index_key(due_ms, key), ())?;
        } else if due_ms != 0 {
            self.due.insert(&index_key(due_ms, key), ())?;
        }
        self.ends.insert(&index_key(ends_ms, key), ())?;
        Ok(())
    }

    fn take(&mut self, key: &RecordKey) -> Result<(), redb::Error> {
        let old = self.records.remove(&key.0)?.and_then(|old| Front::parse(old.value()).ok());
        self.forget(key, old)
    }

    fn forget(&mut self, key: &RecordKey, old: Option<Front>) -> Result<(), redb::Error> {
        if let Some(old) = old {
            if old.is_indexed() && old.is_saga() {
                self.txn.open_table(SAGAS)?.remove(&index_key(old.due_ms, key))?;
            } else if old.is_indexed() {
                self.due.remove(&index_key(old.due_ms, key))?;
            }
            self.ends.remove(&index_key(old.ends_ms, key))?;
        }
        Ok(())
    }

    /// Appends an event to the log.
    pub(super) fn append(&self, slot: &Slot, event: &[u8]) -> Result<(), redb::Error> {
        event_tables::append(self.txn, slot, event, self.now_ms)
    }

    /// Writes the events of a change for its sinks.
    pub(super) fn append_outbox(
        &self,
        slot: &Slot,
        events: &[OutboxEvent],
    ) -> Result<(), redb::Error> {
        outbox_tables::append(self.txn, slot, events, self.now_ms)
    }

    /// Changes the outbox. Returns whether the change has its effect.
    pub(super) fn change_outbox(&self, change: &OutboxChange) -> Result<bool, redb::Error> {
        outbox_tables::apply(self.txn, change, self.now_ms)
    }

    /// See [`crate::store::EventLog::mark_read`].
    pub(super) fn mark_read(&self, reader: &str, read: EntryId) -> Result<(), redb::Error> {
        event_tables::mark_read(self.txn, reader, read, self.now_ms)
    }

    /// See [`crate::store::EventLog::observe`].
    pub(super) fn observe(&self, batch: &[u8]) -> Result<(), redb::Error> {
        event_tables::observe(self.txn, batch, self.now_ms)
    }

    /// See [`crate::store::EventLog::trim`].
    pub(super) fn trim(&self, older_than: Duration) -> Result<Trimmed, redb::Error> {
        event_tables::trim(self.txn, older_than, self.now_ms)
    }

    /// Writes a note if the current text is `expected` or already `next`. Returns whether it is
    /// `next` now.
    pub(super) fn set_note(
        &mut self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, redb::Error> {
        let mut notes = self.txn.open_table(NOTES)?;
        let matches = {
            let current = notes.get(name_of(note))?;
            let current = current.as_ref().map(|text| text.value());
            current == Some(next) || current == expected
        };
        if matches {
            notes.insert(name_of(note), next)?;
        }
        Ok(matches)
    }

    /// Removes up to `max` records and tombstones that have ended. Returns the number of index
    /// entries processed.
    pub(super) fn sweep(&mut self, max: usize) -> Result<usize, redb::Error> {
        let mut ended = Vec::new();
        for entry in
            self.ends.range::<&[u8; INDEX_KEY_BYTES]>(..=&index_end(self.now_ms))?.take(max)
        {
            ended.push(*entry?.0.value());
        }
        for entry in &ended {
            let (ends_ms, key) = split_index_key(entry);
            let front =
                self.records.get(&key.0)?.and_then(|value| Front::parse(value.value()).ok());
            if front.is_some_and(|front| front.ends_ms == ends_ms) {
                self.take(&key)?;
            } else {
                // The record has another end by now, or can't be read. The record stays. Only the
                // index entry is wrong.
                self.ends.remove(entry)?;
            }
        }
        Ok(ended.len())
    }
}
