//! The open file of an embedded store, with its clock and counters. The writer's thread and all
//! readers share it.

use std::ops::Bound;
use std::sync::atomic::AtomicU64;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::{Database, ReadableDatabase, ReadableTable};

use super::layout::{NOTES, name_of};
use super::options::BootClock;
use super::tables::{
    DUE, DueIndex, Front, RECORDS, RawRecord, RecordKey, SAGAS, index_end, index_key, live, read,
    split_index_key,
};
use crate::key::{SLOT_BYTES, Slot, Space};
use crate::store::error::{ListError, StoreError};
use crate::store::identities::Note;
use crate::store::records::{DueSagas, Listing, Page, is_listed};
use crate::store::watch::Hub;

/// Limit for the index entries that one search for overdue records reads. The search skips entries
/// of records that have ended and are not swept yet. There may be a million of these.
const DUE_SCANNED_MAX: usize = 10_000;

/// The open file. Shared by the writer's thread and all readers.
pub(super) struct SharedFile {
    /// `None` while the file is closed.
    db: RwLock<Option<Database>>,
    pub(super) clock: StoreTime,
    pub(super) hub: Hub,
    pub(super) commits: AtomicU64,
    pub(super) claims: AtomicU64,
}

/// The store's clock. It starts at the wall clock's time at opening, or at the file's last commit
/// if that is later. From then on it advances with the machine's uptime. So it never runs
/// backwards, and setting the wall clock ends no lease or retention early.
pub(super) struct StoreTime {
    boot_ms: BootClock,
    opened_boot_ms: u64,
    opened_ms: u64,
}

impl StoreTime {
    pub(super) fn starting_at(opened_ms: u64, boot_ms: BootClock) -> StoreTime {
        let opened_boot_ms = boot_ms();
        StoreTime { boot_ms, opened_boot_ms, opened_ms }
    }

    /// Returns the time, in ms since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        self.opened_ms.saturating_add((self.boot_ms)().saturating_sub(self.opened_boot_ms))
    }
}

impl SharedFile {
    pub(super) fn new(db: Database, clock: StoreTime) -> SharedFile {
        SharedFile {
            db: RwLock::new(Some(db)),
            clock,
            hub: Hub::local(),
            commits: AtomicU64::new(0),
            claims: AtomicU64::new(0),
        }
    }

    /// Locks the file for one transaction.
    pub(super) fn file(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the file to close or reopen it. Waits for active reads, and blocks new ones.
    pub(super) fn file_to_change(&self) -> RwLockWriteGuard<'_, Option<Database>> {
        self.db.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads in one transaction. Blocks for the disk.
    pub(super) fn reading<T>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let file = self.file();
        let Some(db) = file.as_ref() else {
            return Err(StoreError::NotApplied("the store is closed".into()));
        };
        let result = db.begin_read().map_err(redb::Error::from).and_then(|txn| read(&txn));
        result.map_err(|error| StoreError::NotApplied(error.to_string()))
    }

    /// Reads the record, or else its tombstone if `or_tombstone`. The payload of a completed record
    /// longer than `longest` bytes is left out.
    pub(super) fn load(
        &self,
        slot: &Slot,
        or_tombstone: bool,
        longest: usize,
    ) -> Result<Option<RawRecord>, StoreError> {
        let raw = self.reading(|txn| {
            let (records, now_ms) = (txn.open_table(RECORDS)?, self.clock.now_ms());
            match read(&records, &RecordKey::record(slot), now_ms, longest)? {
                Ok(None) if or_tombstone => {
                    read(&records, &RecordKey::tombstone(slot), now_ms, longest)
                }
                found => Ok(found),
            }
        })?;
        Ok(raw?)
    }

    pub(super) fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.overdue(DUE, self.clock.now_ms(), limit, |_| true)
    }

    pub(super) fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        let now_ms = self.clock.now_ms();
        // An older version that removed a saga left its index entry.
        Ok(DueSagas { slots: self.overdue(SAGAS, now_ms, limit, Front::is_saga)?, now_ms })
    }

    /// Returns up to `limit` slots of an index with a due time in the past, and with a record that
    /// `belongs` there.
    fn overdue(
        &self,
        index: DueIndex,
        now_ms: u64,
        limit: usize,
        belongs: impl Fn(&Front) -> bool,
    ) -> Result<Vec<Slot>, StoreError> {
        self.reading(|txn| {
            let (due, records) = (txn.open_table(index)?, txn.open_table(RECORDS)?);
            let mut overdue = Vec::new();
            for entry in
                due.range::<&[u8; 8 + 1 + SLOT_BYTES]>(..=&index_end(now_ms))?.take(DUE_SCANNED_MAX)
            {
                if overdue.len() >= limit {
                    break;
                }
                let (_, key) = split_index_key(entry?.0.value());
                let Some(value) = ReadableTable::get(&records, &key.0)? else { continue };
                // The slot of an unreadable record is returned, too: whoever loads the record gets
                // the error.
                let is_live = Front::parse(value.value())
                    .map_or(true, |front| front.ends_ms > now_ms && belongs(&front));
                overdue.extend(key.slot().filter(|_| is_live));
            }
            Ok(overdue)
        })
    }

    pub(super) fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.reading(|txn| {
            Ok(txn.open_table(NOTES)?.get(name_of(note))?.map(|text| text.value().to_owned()))
        })
    }

    pub(super) fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        match listing {
            Listing::All => self.list_all(cursor, limit.max(1)),
            Listing::Unsettled => self.list_due(DUE, cursor, limit.max(1)),
            Listing::Sagas => self.list_due(SAGAS, cursor, limit.max(1)),
        }
    }

    /// Lists by slot. The cursor is the last slot listed.
    fn list_all(&self, cursor: Option<&str>, limit: usize) -> Result<Page, ListError> {
        let last = cursor.map(parse_slot).transpose()?.map(|slot| RecordKey::record(&slot));
        let from = last.as_ref().map_or(Bound::Unbounded, |last| Bound::Excluded(&last.0));
        let end = RecordKey::record(&Slot::from_hash(Space::Shadow, [0; SLOT_BYTES]));
        let now_ms = self.clock.now_ms();
        let page = self.reading(|txn| {
            let records = txn.open_table(RECORDS)?;
            let mut page = Page::default();
            for entry in ReadableTable::range::<&[u8; 1 + SLOT_BYTES]>(
                &records,
                (from, Bound::Excluded(&end.0)),
            )? {
                let (key, value) = entry?;
                let key = RecordKey(*key.value());
                if page.records.len() >= limit {
                    page.cursor = page.records.last().map(|(last, _)| last.to_string());
                    break;
                }
                add(&mut page, &key, live(value.value(), now_ms, usize::MAX));
            }
            Ok(page)
        })?;
        Ok(page)
    }

    /// Lists by due time. The cursor is the last due time and slot listed.
    fn list_due(
        &self,
        index: DueIndex,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let last = cursor.map(parse_index_key).transpose()?;
        let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let now_ms = self.clock.now_ms();
        let page = self.reading(|txn| {
            let (due, records) = (txn.open_table(index)?, txn.open_table(RECORDS)?);
            let mut page = Page::default();
            let mut last = None;
            for entry in
                ReadableTable::range::<&[u8; 8 + 1 + SLOT_BYTES]>(&due, (from, Bound::Unbounded))?
            {
                let (due_ms, key) = split_index_key(entry?.0.value());
                let Some(slot) = key.slot().filter(is_listed) else { continue };
                if page.records.len() >= limit {
                    page.cursor = last.map(|(due_ms, slot)| format!("{due_ms}-{slot}"));
                    break;
                }
                add(&mut page, &key, read(&records, &key, now_ms, usize::MAX)?);
                last = Some((due_ms, slot));
            }
            Ok(page)
        })?;
        Ok(page)
    }
}

/// Adds a record to a page. An unreadable record is logged and left out: it must not hide all
/// others.
fn add(
    page: &mut Page,
    key: &RecordKey,
    raw: Result<Option<RawRecord>, crate::record::CodecError>,
) {
    let Some(slot) = key.slot() else { return };
    match raw.map_err(StoreError::from).and_then(|raw| raw.map_or(Ok(None), RawRecord::held)) {
        Ok(held) => page.records.extend(held.map(|held| (slot, held))),
        Err(error) => {
            tracing::error!(operation = %slot, %error, "a record is left out of a listing")
        }
    }
}

fn parse_slot(cursor: &str) -> Result<Slot, ListError> {
    Slot::from_reference(cursor).map_err(|_| ListError::Cursor)
}

fn parse_index_key(cursor: &str) -> Result<[u8; 8 + 1 + SLOT_BYTES], ListError> {
    let (due_ms, slot) = cursor.split_once('-').ok_or(ListError::Cursor)?;
    let due_ms = due_ms.parse().map_err(|_| ListError::Cursor)?;
    Ok(index_key(due_ms, &RecordKey::record(&parse_slot(slot)?)))
}
