//! What the writer and the readers of an embedded store share: the open file, the clock and the counters.

use std::ops::Bound;
use std::sync::atomic::AtomicU64;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::{Database, ReadableDatabase, ReadableTable};

use super::BootClock;
use super::tables::{
    DUE, Front, NOTES, Place, RECORDS, Raw, moment, moment_end, name_of, read, split_moment,
};
use crate::key::{SLOT_BYTES, Slot, Space};
use crate::store::{Hub, ListError, Listing, Note, Page, StoreError, is_listed};

/// How many index entries one search for overdue records looks at. Entries of records that have ended are passed over
/// until they are swept; a search must not walk through a million of them.
const DUE_SCANNED_MAX: usize = 10_000;

/// Shared by the writer's thread and all readers.
pub(super) struct Shelf {
    /// `None` while the file is closed.
    db: RwLock<Option<Database>>,
    pub(super) clock: StoreTime,
    pub(super) hub: Hub,
    pub(super) commits: AtomicU64,
    pub(super) claims: AtomicU64,
}

/// The store's clock: it starts where the wall clock was at opening, or where the file's last commit was if that is
/// later, and then counts as the machine's uptime does. So it never runs backwards, and no change of the wall clock
/// ends a lease or a retention early.
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

    /// Now, in ms since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        self.opened_ms.saturating_add((self.boot_ms)().saturating_sub(self.opened_boot_ms))
    }
}

impl Shelf {
    pub(super) fn new(db: Database, clock: StoreTime) -> Shelf {
        Shelf {
            db: RwLock::new(Some(db)),
            clock,
            hub: Hub::local(),
            commits: AtomicU64::new(0),
            claims: AtomicU64::new(0),
        }
    }

    /// The file, for one transaction.
    pub(super) fn file(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, to be closed or opened again; waits for reads under way, and makes new ones wait.
    pub(super) fn file_to_change(&self) -> RwLockWriteGuard<'_, Option<Database>> {
        self.db.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reading<T>(
        &self,
        look: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let file = self.file();
        let Some(db) = file.as_ref() else {
            return Err(StoreError::NotApplied("the store is closed".into()));
        };
        let looked = db.begin_read().map_err(redb::Error::from).and_then(|txn| look(&txn));
        looked.map_err(|error| StoreError::NotApplied(error.to_string()))
    }

    /// The record, or else its tombstone where that is wanted too; of a record longer than `longest` bytes only the front.
    pub(super) fn load(
        &self,
        slot: &Slot,
        or_tombstone: bool,
        longest: usize,
    ) -> Result<Option<Raw>, StoreError> {
        let raw = self.reading(|txn| {
            let (records, now_ms) = (txn.open_table(RECORDS)?, self.clock.now_ms());
            match read(&records, &Place::record(slot), now_ms, longest)? {
                Ok(None) if or_tombstone => {
                    read(&records, &Place::tombstone(slot), now_ms, longest)
                }
                found => Ok(found),
            }
        })?;
        Ok(raw?)
    }

    pub(super) fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        let now_ms = self.clock.now_ms();
        self.reading(|txn| {
            let (due, records) = (txn.open_table(DUE)?, txn.open_table(RECORDS)?);
            let mut overdue = Vec::new();
            for entry in due
                .range::<&[u8; 8 + 1 + SLOT_BYTES]>(..=&moment_end(now_ms))?
                .take(DUE_SCANNED_MAX)
            {
                if overdue.len() >= limit {
                    break;
                }
                let (_, place) = split_moment(entry?.0.value());
                let Some(value) = ReadableTable::get(&records, &place.0)? else { continue };
                // One that can't be read is passed on: whoever looks at it gets the error.
                let is_live =
                    Front::parse(value.value()).map_or(true, |front| front.ends_ms > now_ms);
                overdue.extend(place.slot().filter(|_| is_live));
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
            Listing::Unsettled => self.list_unsettled(cursor, limit.max(1)),
        }
    }

    /// By slot; the cursor is the last slot listed.
    fn list_all(&self, cursor: Option<&str>, limit: usize) -> Result<Page, ListError> {
        let last = cursor.map(parse_slot).transpose()?.map(|slot| Place::record(&slot));
        let from = last.as_ref().map_or(Bound::Unbounded, |last| Bound::Excluded(&last.0));
        let end = Place::record(&Slot::from_hash(Space::Shadow, [0; SLOT_BYTES]));
        let now_ms = self.clock.now_ms();
        let page = self.reading(|txn| {
            let records = txn.open_table(RECORDS)?;
            let mut page = Page::default();
            for entry in ReadableTable::range::<&[u8; 1 + SLOT_BYTES]>(
                &records,
                (from, Bound::Excluded(&end.0)),
            )? {
                let (place, value) = entry?;
                let place = Place(*place.value());
                if page.records.len() >= limit {
                    page.cursor = page.records.last().map(|(last, _)| last.to_string());
                    break;
                }
                add(&mut page, &place, super::tables::live(value.value(), now_ms, usize::MAX));
            }
            Ok(page)
        })?;
        Ok(page)
    }

    /// By due time; the cursor is the last due time and slot listed.
    fn list_unsettled(&self, cursor: Option<&str>, limit: usize) -> Result<Page, ListError> {
        let last = cursor.map(parse_moment).transpose()?;
        let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let now_ms = self.clock.now_ms();
        let page = self.reading(|txn| {
            let (due, records) = (txn.open_table(DUE)?, txn.open_table(RECORDS)?);
            let mut page = Page::default();
            let mut last = None;
            for entry in
                ReadableTable::range::<&[u8; 8 + 1 + SLOT_BYTES]>(&due, (from, Bound::Unbounded))?
            {
                let (due_ms, place) = split_moment(entry?.0.value());
                let Some(slot) = place.slot().filter(is_listed) else { continue };
                if page.records.len() >= limit {
                    page.cursor = last.map(|(due_ms, slot)| format!("{due_ms}-{slot}"));
                    break;
                }
                add(&mut page, &place, read(&records, &place, now_ms, usize::MAX)?);
                last = Some((due_ms, slot));
            }
            Ok(page)
        })?;
        Ok(page)
    }
}

/// Adds what was read. One unreadable record must not hide all others.
fn add(page: &mut Page, place: &Place, raw: Result<Option<Raw>, crate::record::CodecError>) {
    let Some(slot) = place.slot() else { return };
    match raw.map_err(StoreError::from).and_then(|raw| raw.map_or(Ok(None), Raw::held)) {
        Ok(held) => page.records.extend(held.map(|held| (slot, held))),
        Err(error) => {
            tracing::error!(operation = %slot, %error, "a record is left out of a listing")
        }
    }
}

fn parse_slot(cursor: &str) -> Result<Slot, ListError> {
    Slot::from_reference(cursor).map_err(|_| ListError::Cursor)
}

fn parse_moment(cursor: &str) -> Result<[u8; 8 + 1 + SLOT_BYTES], ListError> {
    let (due_ms, slot) = cursor.split_once('-').ok_or(ListError::Cursor)?;
    let due_ms = due_ms.parse().map_err(|_| ListError::Cursor)?;
    Ok(moment(due_ms, &Place::record(&parse_slot(slot)?)))
}
