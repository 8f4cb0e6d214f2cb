//! What lies in the file: records and tombstones by slot, and two indexes by time.
//!
//! Danger: an index entry that names no record is litter and gets swept; a record without its index entries would
//! never be found overdue. So only [`Tables::put`] and [`Tables::take`] touch the three tables, always together.

use std::time::Duration;

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::log;
use crate::key::{SLOT_BYTES, Slot, Space};
use crate::record::{
    CodecError, Encoded, Fence, HEAD_BYTES, Held, Version, decode, head_completed, head_fence,
    head_in_flight, head_version,
};
use crate::store::large::ALONG_MAX;
use crate::store::log::{EntryId, Trimmed};
use crate::store::{Note, StoreError};

/// Bytes of a place: a drawer and a slot's hash.
pub(super) const PLACE_BYTES: usize = 1 + SLOT_BYTES;
/// Bytes of a moment: a time in ms and a place.
const MOMENT_BYTES: usize = 8 + PLACE_BYTES;
/// Bytes before a value's payload: the record's head and three times.
pub(super) const FRONT_BYTES: usize = HEAD_BYTES + 24;

/// Place -> front and payload.
pub(super) const RECORDS: TableDefinition<&[u8; PLACE_BYTES], &[u8]> =
    TableDefinition::new("records");
/// When an unsettled record is due, and its place.
pub(super) const DUE: TableDefinition<&[u8; MOMENT_BYTES], ()> = TableDefinition::new("due");
/// When a record or tombstone ends, and its place.
pub(super) const ENDS: TableDefinition<&[u8; MOMENT_BYTES], ()> = TableDefinition::new("ends");
/// Facts about the file itself.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Texts about the file's records.
pub(super) const NOTES: TableDefinition<&str, &str> = TableDefinition::new("notes");
/// The name in [`NOTES`] of a note that gateways have agreed on.
pub(super) fn name_of(note: Note) -> &'static str {
    match note {
        Note::Identities => "identities",
        Note::Paths => "paths",
    }
}
/// In [`META`]: the layout of everything else.
pub(super) const LAYOUT: &str = "layout";
/// In [`META`]: the store's time of the last commit, in ms.
pub(super) const TIME_MS: &str = "time_ms";

/// The drawers of the records table, in this order on disk.
const ENFORCED: u8 = 0;
const SHADOW: u8 = 1;
const ENFORCED_TOMBSTONE: u8 = 2;
const SHADOW_TOMBSTONE: u8 = 3;

/// Where something lies: a drawer and a slot's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(pub(super) [u8; PLACE_BYTES]);

impl Place {
    pub(super) fn record(slot: &Slot) -> Place {
        Place::new(if slot.space == Space::Enforced { ENFORCED } else { SHADOW }, slot)
    }

    pub(super) fn tombstone(slot: &Slot) -> Place {
        Place::new(
            if slot.space == Space::Enforced { ENFORCED_TOMBSTONE } else { SHADOW_TOMBSTONE },
            slot,
        )
    }

    fn new(drawer: u8, slot: &Slot) -> Place {
        let mut place = [drawer; PLACE_BYTES];
        place[1..].copy_from_slice(slot.hash());
        Place(place)
    }

    /// The slot whose record lies here; `None` for a tombstone.
    pub(super) fn slot(&self) -> Option<Slot> {
        self.stored().and_then(|(slot, tombstone)| (!tombstone).then_some(slot))
    }

    /// The slot whose record or tombstone lies here, and whether it is the tombstone; `None` for an unknown drawer.
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

/// A key of an index: big-endian, so that the index is in the order of time.
pub(super) fn moment(ms: u64, place: &Place) -> [u8; MOMENT_BYTES] {
    let mut moment = [0; MOMENT_BYTES];
    moment[..8].copy_from_slice(&ms.to_be_bytes());
    moment[8..].copy_from_slice(&place.0);
    moment
}

/// The last key that an index can have at this time.
pub(super) fn moment_end(ms: u64) -> [u8; MOMENT_BYTES] {
    moment(ms, &Place([u8::MAX; PLACE_BYTES]))
}

/// The time and place of an index key.
pub(super) fn split_moment(moment: &[u8; MOMENT_BYTES]) -> (u64, Place) {
    let mut place = [0; PLACE_BYTES];
    place.copy_from_slice(&moment[8..]);
    (be_u64(&moment[..8]), Place(place))
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// What is known of a stored record without decoding it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    head: [u8; HEAD_BYTES],
    written_ms: u64,
    /// 0 where never.
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

    /// Version, fence and state.
    pub(super) fn head(&self) -> &[u8; HEAD_BYTES] {
        &self.head
    }

    pub(super) fn is_in_flight(&self) -> bool {
        head_in_flight(&self.head)
    }

    pub(super) fn is_indexed(&self) -> bool {
        self.due_ms != 0
    }
}

/// A stored record with the store's time of reading it, not yet decoded.
#[derive(Debug)]
pub(super) struct Raw {
    front: Front,
    /// `None`: it is longer than whoever read it wanted.
    payload: Option<Bytes>,
    now_ms: u64,
}

impl Raw {
    /// Of a completed record longer than `longest` bytes, without its payload.
    fn parse(value: &[u8], now_ms: u64, longest: usize) -> Result<Raw, CodecError> {
        let front = Front::parse(value)?;
        let is_whole = value.len() <= longest || !head_completed(&front.head);
        let payload = is_whole.then(|| Bytes::copy_from_slice(&value[FRONT_BYTES..]));
        Ok(Raw { front, payload, now_ms })
    }

    /// The fence of its attempt.
    pub(super) fn fence(&self) -> Fence {
        self.front.fence()
    }

    /// Decodes it: work for the caller's thread, not for the writer's. `None` where the payload was not read.
    pub(super) fn held(self) -> Result<Option<Held>, StoreError> {
        let Raw { front, payload, now_ms } = self;
        let Some(payload) = payload else { return Ok(None) };
        let record = decode(&front.head, payload)?;
        Ok(Some(Held { record, written_ms: front.written_ms, due_ms: front.due_ms, now_ms }))
    }
}

/// A record to be stored: its bytes, with room for the times that only the writer knows.
#[derive(Debug)]
pub(super) struct Parcel {
    value: Vec<u8>,
    due: Option<Duration>,
    keep: Duration,
}

impl Parcel {
    pub(super) fn new(encoded: &Encoded, due: Option<Duration>, keep: Duration) -> Parcel {
        let mut value = Vec::with_capacity(FRONT_BYTES + encoded.payload.len());
        value.extend_from_slice(&encoded.head);
        value.resize(FRONT_BYTES, 0);
        value.extend_from_slice(&encoded.payload);
        Parcel { value, due, keep }
    }

    pub(super) fn size(&self) -> usize {
        self.value.len()
    }

    /// Its bytes, with deadlines counted from now.
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

/// Reads a record; one that has ended is not there.
pub(super) fn read(
    records: &ReadOnlyTable<&'static [u8; PLACE_BYTES], &'static [u8]>,
    place: &Place,
    now_ms: u64,
    longest: usize,
) -> Result<Result<Option<Raw>, CodecError>, redb::Error> {
    let Some(value) = ReadableTable::get(records, &place.0)? else { return Ok(Ok(None)) };
    Ok(live(value.value(), now_ms, longest))
}

/// The record, if it has not ended; without its payload where it is longer than `longest` bytes.
pub(super) fn live(value: &[u8], now_ms: u64, longest: usize) -> Result<Option<Raw>, CodecError> {
    let front = Front::parse(value)?;
    if front.ends_ms > now_ms { Raw::parse(value, now_ms, longest).map(Some) } else { Ok(None) }
}

/// The open tables of a write transaction.
pub(super) struct Tables<'txn> {
    records: Table<'txn, &'static [u8; PLACE_BYTES], &'static [u8]>,
    due: Table<'txn, &'static [u8; MOMENT_BYTES], ()>,
    ends: Table<'txn, &'static [u8; MOMENT_BYTES], ()>,
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

    /// What is known of the record at a place; one that has ended is not there.
    pub(super) fn front(
        &self,
        place: &Place,
    ) -> Result<Result<Option<Front>, CodecError>, redb::Error> {
        let Some(value) = self.records.get(&place.0)? else { return Ok(Ok(None)) };
        Ok(Front::parse(value.value())
            .map(|front| Some(front).filter(|front| front.ends_ms > self.now_ms)))
    }

    /// The record at a place, of a large one without the payload; one that has ended is not there.
    pub(super) fn raw(
        &self,
        place: &Place,
    ) -> Result<Result<Option<Raw>, CodecError>, redb::Error> {
        let Some(value) = self.records.get(&place.0)? else { return Ok(Ok(None)) };
        Ok(live(value.value(), self.now_ms, ALONG_MAX))
    }

    /// Stores a record over whatever is there.
    pub(super) fn put(&mut self, place: &Place, parcel: &mut Parcel) -> Result<(), redb::Error> {
        let (value, due_ms, ends_ms) = parcel.stamp(self.now_ms);
        self.put_value(place, value, due_ms, ends_ms)
    }

    /// Whether the lease that a record holds is over.
    pub(super) fn is_over(&self, front: &Front) -> bool {
        front.due_ms <= self.now_ms
    }

    /// Moves a record's deadlines, and nothing else.
    pub(super) fn renew(
        &mut self,
        place: &Place,
        lease: Duration,
        keep: Duration,
    ) -> Result<(), redb::Error> {
        let Some(mut value) = self.records.get(&place.0)?.map(|value| value.value().to_vec())
        else {
            return Ok(());
        };
        let Ok(front) = Front::parse(&value) else { return Ok(()) };
        let (due_ms, ends_ms) = (after(self.now_ms, lease), after(self.now_ms, keep));
        write_times(&mut value, [front.written_ms, due_ms, ends_ms]);
        self.put_value(place, &value, due_ms, ends_ms)
    }

    /// Stores a value over whatever is there, with its entries in the indexes.
    pub(super) fn put_value(
        &mut self,
        place: &Place,
        value: &[u8],
        due_ms: u64,
        ends_ms: u64,
    ) -> Result<(), redb::Error> {
        let old =
            self.records.insert(&place.0, value)?.and_then(|old| Front::parse(old.value()).ok());
        self.forget(place, old)?;
        if due_ms != 0 {
            self.due.insert(&moment(due_ms, place), ())?;
        }
        self.ends.insert(&moment(ends_ms, place), ())?;
        Ok(())
    }

    fn take(&mut self, place: &Place) -> Result<(), redb::Error> {
        let old = self.records.remove(&place.0)?.and_then(|old| Front::parse(old.value()).ok());
        self.forget(place, old)
    }

    fn forget(&mut self, place: &Place, old: Option<Front>) -> Result<(), redb::Error> {
        if let Some(old) = old {
            if old.is_indexed() {
                self.due.remove(&moment(old.due_ms, place))?;
            }
            self.ends.remove(&moment(old.ends_ms, place))?;
        }
        Ok(())
    }

    /// Appends an event to the log.
    pub(super) fn tell(&self, slot: &Slot, event: &[u8]) -> Result<(), redb::Error> {
        log::append(self.txn, slot, event, self.now_ms)
    }

    /// See [`crate::store::EventLog::mark_read`].
    pub(super) fn mark_read(&self, reader: &str, read: EntryId) -> Result<(), redb::Error> {
        log::mark_read(self.txn, reader, read, self.now_ms)
    }

    /// See [`crate::store::EventLog::observe`].
    pub(super) fn observe(&self, batch: &[u8]) -> Result<(), redb::Error> {
        log::observe(self.txn, batch, self.now_ms)
    }

    /// See [`crate::store::EventLog::trim`].
    pub(super) fn trim(&self, older_than: Duration) -> Result<Trimmed, redb::Error> {
        log::trim(self.txn, older_than, self.now_ms)
    }

    /// Writes a note, if what is kept is what was expected, or is that already.
    pub(super) fn agree(
        &mut self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, redb::Error> {
        let mut notes = self.txn.open_table(NOTES)?;
        let agreed = {
            let current = notes.get(name_of(note))?;
            let current = current.as_ref().map(|text| text.value());
            current == Some(next) || current == expected
        };
        if agreed {
            notes.insert(name_of(note), next)?;
        }
        Ok(agreed)
    }

    /// Takes away up to `max` records and tombstones that have ended; returns how many entries it looked at.
    pub(super) fn sweep(&mut self, max: usize) -> Result<usize, redb::Error> {
        let mut ended = Vec::new();
        for entry in self.ends.range::<&[u8; MOMENT_BYTES]>(..=&moment_end(self.now_ms))?.take(max)
        {
            ended.push(*entry?.0.value());
        }
        for entry in &ended {
            let (ends_ms, place) = split_moment(entry);
            let front =
                self.records.get(&place.0)?.and_then(|value| Front::parse(value.value()).ok());
            if front.is_some_and(|front| front.ends_ms == ends_ms) {
                self.take(&place)?;
            } else {
                // The record moved on, or can't be read, and stays; only the entry is wrong.
                self.ends.remove(entry)?;
            }
        }
        Ok(ended.len())
    }
}
