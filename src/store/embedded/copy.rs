//! An embedded store as one end of a copy. A source is read without changing it. A target is
//! written in transactions that also store the copy's progress.
//!
//! A file with an unfinished copy has the layout [`UNFINISHED`], which no version of the gateway
//! opens.

use std::ops::Bound;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, WriteTransaction};
use tokio::sync::mpsc;

use super::disk::{Folder, Writes};
use super::error::OpenError;
use super::layout::{FILE, LAYOUT, LAYOUT_VERSION, META, NOTES, TIME_MS, UNFINISHED, name_of};
use super::options::EmbeddedOptions;
use super::outbox_copy::OutboxPlace;
use super::shared_file::{SharedFile, StoreTime};
use super::store::{Embedded, readers};
use super::tables::{FRONT_BYTES, Front, KEY_BYTES, RECORDS, RecordKey, Tables};
use super::{event_tables, outbox_copy, outbox_tables, writer};
use crate::hex;
use crate::record::HEAD_BYTES;
use crate::store::copy::{
    CopyError, CopyProgress, CopySource, CopyStart, CopyTarget, Item, ItemKey, Items, OutboxItem,
    OutboxItems,
};
use crate::store::error::StoreError;
use crate::store::identities::{IdentityNotes, Note};
use crate::store::local_relays::LocalRelays;
use crate::store::log::{Ends, EventLog, LogEntry};

/// Name of the copy's progress in [`NOTES`].
const PROGRESS: &str = "copy";

/// Limit for the items of one read.
const READ_ITEMS: usize = 1024;

/// Limit for the bytes of one read, not counting the last item.
const READ_BYTES: usize = 4 << 20;

/// Bytes of the head and the two times, which have the same form in all stores.
const STAMPED_BYTES: usize = HEAD_BYTES + 16;

/// A store's directory, locked for a copy.
pub struct CopiedFile {
    store: Embedded,
    _folder: Folder,
}

impl CopiedFile {
    /// Opens a store to copy from. Changes nothing in the directory, even if the file must be
    /// repaired. So a full disk does not matter.
    ///
    /// # Errors
    /// The directory is in use, or can't be read.
    pub fn source(dir: &Path, options: EmbeddedOptions) -> Result<CopiedFile, CopyError> {
        let file = dir.join(FILE);
        if !file.is_file() {
            return Err(CopyError::Refused(format!(
                "there is no store in {} (no file {FILE})",
                dir.display()
            )));
        }
        let opened =
            CopiedFile::open(dir, &options, Writes::Withheld).map_err(|error| error.in_dir(dir));
        let opened = opened.map_err(|error| CopyError::Refused(error.to_string()))?;
        match opened.layout()? {
            Some(LAYOUT_VERSION) => Ok(opened),
            Some(found) => {
                Err(CopyError::Refused(OpenError::Layout { found }.in_dir(dir).to_string()))
            }
            None => Err(CopyError::Refused(format!("{} is no store of a gateway", file.display()))),
        }
    }

    /// Opens a directory to copy into. Creates it if it does not exist.
    ///
    /// # Errors
    /// The directory is in use, or can't be written.
    pub fn target(dir: &Path, options: EmbeddedOptions) -> Result<CopiedFile, CopyError> {
        let opened =
            CopiedFile::open(dir, &options, Writes::Through).map_err(|error| error.in_dir(dir));
        let opened = opened.map_err(|error| CopyError::Refused(error.to_string()))?;
        match opened.layout()? {
            None | Some(LAYOUT_VERSION | UNFINISHED) => Ok(opened),
            Some(found) => {
                Err(CopyError::Refused(OpenError::Layout { found }.in_dir(dir).to_string()))
            }
        }
    }

    fn open(
        dir: &Path,
        options: &EmbeddedOptions,
        writes: Writes,
    ) -> Result<CopiedFile, OpenError> {
        let folder = Folder::lock(dir)?;
        if writes == Writes::Through {
            folder.make_file()?;
        }
        let db = writer::open(&folder.opener(), writes, options)?;
        let last_ms = match db.begin_read().map_err(redb::Error::from)?.open_table(META) {
            Ok(meta) => {
                meta.get(TIME_MS).map_err(redb::Error::from)?.map_or(0, |time| time.value())
            }
            Err(redb::TableError::TableDoesNotExist(_)) => 0,
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        let clock =
            StoreTime::starting_at(last_ms.max(options.now_unix_ms()), options.boot_ms.clone());
        // There is no writer, so the store refuses the writes of a gateway.
        let (queue, _) = mpsc::channel(1);
        Ok(CopiedFile {
            store: Embedded {
                queue,
                shared: std::sync::Arc::new(SharedFile::new(db, clock)),
                large: Default::default(),
                readers: readers(),
                relays: LocalRelays::default(),
            },
            _folder: folder,
        })
    }

    fn layout(&self) -> Result<Option<u64>, StoreError> {
        self.store.shared.reading(|txn| match txn.open_table(META) {
            Ok(meta) => Ok(meta.get(LAYOUT)?.map(|layout| layout.value())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    /// Writes in one transaction, on a thread that may block.
    async fn write(
        &self,
        write: impl FnOnce(&WriteTransaction, u64) -> Result<(), redb::Error> + Send + 'static,
    ) -> Result<(), StoreError> {
        let done = self.store.blocking(move |shared| {
            let file = shared.file();
            let Some(db) = file.as_ref() else {
                return Err(StoreError::NotApplied("the store is closed".into()));
            };
            let write = || -> Result<(), redb::Error> {
                let txn = writer::begin(db)?;
                write(&txn, shared.clock.now_ms())?;
                Ok(txn.commit()?)
            };
            write().map_err(|error| StoreError::NotApplied(error.to_string()))
        });
        done.await
    }
}

fn keep_progress(txn: &WriteTransaction, progress: &CopyProgress) -> Result<(), redb::Error> {
    let text = serde_json::to_string(progress).unwrap_or_default();
    txn.open_table(NOTES)?.insert(PROGRESS, text.as_str())?;
    Ok(())
}

fn stored_key(key: &ItemKey) -> RecordKey {
    if key.tombstone { RecordKey::tombstone(&key.slot) } else { RecordKey::record(&key.slot) }
}

/// Converts a stored value into an item; `None` if it is too short.
fn item_of(key: &RecordKey, value: &[u8]) -> Option<Item> {
    let (slot, tombstone) = key.stored()?;
    let front = Front::parse(value).ok()?;
    let value = [value.get(..STAMPED_BYTES)?, value.get(FRONT_BYTES..)?].concat();
    Some(Item {
        key: ItemKey { slot, tombstone },
        value: Bytes::from(value),
        ends_ms: front.ends_ms,
    })
}

#[async_trait]
impl CopySource for CopiedFile {
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.store.note(note).await
    }

    fn log_partitions(&self) -> u16 {
        1
    }

    fn log(&self) -> &dyn EventLog {
        &self.store
    }

    async fn time_ms(&self) -> Result<u64, StoreError> {
        Ok(self.store.shared.clock.now_ms())
    }

    /// Returns the time of the last commit, because each commit of a gateway writes its time. The
    /// lock keeps gateways away.
    async fn unused_state(&self) -> Result<String, CopyError> {
        let time_ms = self.store.blocking(|shared| {
            shared.reading(|txn| Ok(txn.open_table(META)?.get(TIME_MS)?.map(|time| time.value())))
        });
        Ok(format!("file {}", time_ms.await?.unwrap_or(0)))
    }

    async fn items(&self, cursor: Option<&str>) -> Result<Items, StoreError> {
        let from = cursor
            .map(|cursor| hex::decode::<KEY_BYTES>(cursor).ok_or_else(odd_cursor))
            .transpose()?;
        self.store
            .blocking(move |shared| {
                let now_ms = shared.clock.now_ms();
                shared.reading(|txn| {
                    let records = txn.open_table(RECORDS)?;
                    let from = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                    let (mut items, mut bytes) = (Items::default(), 0);
                    for entry in ReadableTable::range::<&[u8; KEY_BYTES]>(
                        &records,
                        (from, Bound::Unbounded),
                    )? {
                        let (key, value) = entry?;
                        let key = RecordKey(*key.value());
                        let Some(item) = item_of(&key, value.value()) else {
                            return Err(redb::Error::Corrupted(
                                "a record that is too short".into(),
                            ));
                        };
                        bytes += item.value.len();
                        items.items.extend(Some(item).filter(|item| item.ends_ms > now_ms));
                        if items.items.len() >= READ_ITEMS || bytes >= READ_BYTES {
                            items.cursor = Some(hex::encode(&key.0));
                            break;
                        }
                    }
                    Ok(items)
                })
            })
            .await
    }

    async fn find(&self, keys: &[ItemKey]) -> Result<Vec<Option<Item>>, StoreError> {
        let keys: Vec<RecordKey> = keys.iter().map(stored_key).collect();
        let look = move |txn: &redb::ReadTransaction| {
            let records = txn.open_table(RECORDS)?;
            let found = keys.iter().map(|key| {
                let value = ReadableTable::get(&records, &key.0)?;
                Ok(value.and_then(|value| item_of(key, value.value())))
            });
            found.collect()
        };
        self.store.blocking(move |shared| shared.reading(look)).await
    }

    async fn outbox(&self, cursor: Option<&str>) -> Result<OutboxItems, CopyError> {
        let from = OutboxPlace::parse(cursor).ok_or_else(odd_cursor)?;
        let read = move |txn: &redb::ReadTransaction| outbox_copy::page(txn, &from);
        Ok(self.store.blocking(move |shared| shared.reading(read)).await?)
    }
}

#[async_trait]
impl CopyTarget for CopiedFile {
    async fn begin(&self) -> Result<CopyStart, CopyError> {
        if self.layout()? == Some(UNFINISHED) {
            let kept = |txn: &redb::ReadTransaction| {
                Ok(txn.open_table(NOTES)?.get(PROGRESS)?.map(|text| text.value().to_owned()))
            };
            let kept =
                self.store.blocking(move |shared| shared.reading(kept)).await?.unwrap_or_default();
            let progress = serde_json::from_str(&kept).map_err(|_| {
                CopyError::Refused("the second store holds an unfinished copy by another version: empty it and begin anew".into())
            })?;
            return Ok(CopyStart::Resumed(progress));
        }
        let (result, emptiness) = tokio::sync::oneshot::channel();
        let begun = self.write(move |txn, _| {
            writer::make_tables(txn)?;
            let has_note = |note| Ok(txn.open_table(NOTES)?.get(name_of(note))?.is_some());
            let noted =
                Note::ALL.into_iter().map(has_note).collect::<Result<Vec<bool>, redb::Error>>()?;
            let empty = txn.open_table(RECORDS)?.is_empty()?
                && event_tables::is_empty(txn)?
                && outbox_tables::is_empty(txn)?
                && !noted.contains(&true);
            let _ = result.send(empty);
            if empty {
                txn.open_table(META)?.insert(LAYOUT, UNFINISHED)?;
                keep_progress(txn, &CopyProgress::default())?;
            }
            Ok(())
        });
        begun.await?;
        if emptiness.await != Ok(true) {
            return Err(CopyError::Refused(
                "the second store holds something already: name an empty one".into(),
            ));
        }
        Ok(CopyStart::Fresh)
    }

    async fn put_items(&self, items: &[Item], progress: &CopyProgress) -> Result<(), StoreError> {
        let (items, progress) = (items.to_vec(), progress.clone());
        let put = self.write(move |txn, now_ms| {
            let mut tables = Tables::open(txn, now_ms)?;
            for item in items
                .iter()
                .filter(|item| item.ends_ms > now_ms && item.value.len() >= STAMPED_BYTES)
            {
                let (stamped, payload) = item.value.split_at(STAMPED_BYTES);
                let value = [stamped, &item.ends_ms.to_be_bytes(), payload].concat();
                tables.put_value(&stored_key(&item.key), &value, item.due_ms(), item.ends_ms)?;
            }
            drop(tables);
            keep_progress(txn, &progress)
        });
        put.await
    }

    async fn put_events(
        &self,
        entries: &[LogEntry],
        progress: &CopyProgress,
    ) -> Result<(), StoreError> {
        let (entries, progress) = (entries.to_vec(), progress.clone());
        let put = self.write(move |txn, _| {
            entries.iter().try_for_each(|entry| event_tables::append_unchanged(txn, entry))?;
            keep_progress(txn, &progress)
        });
        put.await
    }

    async fn put_outbox(
        &self,
        items: &[OutboxItem],
        progress: &CopyProgress,
    ) -> Result<(), StoreError> {
        let (items, progress) = (items.to_vec(), progress.clone());
        let put = self.write(move |txn, _| {
            outbox_copy::put(txn, &items)?;
            keep_progress(txn, &progress)
        });
        put.await
    }

    async fn put_ends(&self, ends: &[Ends]) -> Result<(), StoreError> {
        let ends = ends.to_vec();
        self.write(move |txn, _| ends.iter().try_for_each(|ends| event_tables::put_ends(txn, ends)))
            .await
    }

    async fn finish(&self, kept: &[(Note, String)]) -> Result<(), StoreError> {
        let kept = kept.to_vec();
        let finish = self.write(move |txn, now_ms| {
            let (mut meta, mut notes) = (txn.open_table(META)?, txn.open_table(NOTES)?);
            for (note, text) in &kept {
                notes.insert(name_of(*note), text.as_str())?;
            }
            notes.remove(PROGRESS)?;
            meta.insert(TIME_MS, now_ms)?;
            meta.insert(LAYOUT, LAYOUT_VERSION)?;
            Ok(())
        });
        finish.await
    }
}

fn odd_cursor() -> StoreError {
    StoreError::NotApplied("the key where the copy goes on can't be read".into())
}
