//! The two ends of a copy: a store that can be copied, and one that can be copied into.

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::outbox_item::{OutboxItem, OutboxItems};
use crate::key::Slot;
use crate::record::head_is_saga;
use crate::store::error::StoreError;
use crate::store::identities::Note;
use crate::store::log::{Ends, EventLog, LogEntry};

/// Key of a record or a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemKey {
    /// The operation.
    pub slot: Slot,
    /// Whether the item is the operation's tombstone instead of its record.
    pub tombstone: bool,
}

/// A record or a tombstone as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: ItemKey,
    /// Head, time of the write, due time (0: never; both in ms since 1970) and payload.
    pub value: Bytes,
    /// End of its retention, in ms since 1970; `u64::MAX`: never.
    pub ends_ms: u64,
}

impl Item {
    /// Returns the due time, in ms since 1970; 0: never. Tombstones are never due.
    pub fn due_ms(&self) -> u64 {
        let due = self.value.get(DUE).filter(|_| !self.key.tombstone);
        due.map_or(0, |bytes| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }
}

impl Item {
    /// Returns whether the item is a saga: its due time is in the index of sagas.
    pub fn is_saga(&self) -> bool {
        self.value.first_chunk().is_some_and(head_is_saga)
    }
}

/// Bytes of the due time in an item's value: behind the head and the time of the write.
const DUE: std::ops::Range<usize> = crate::record::HEAD_BYTES + 8..crate::record::HEAD_BYTES + 16;

/// A page of items, in the order of the store.
#[derive(Debug, Default)]
pub struct Items {
    /// The items. A page may be empty although more items follow.
    pub items: Vec<Item>,
    /// Where to continue; `None` at the end.
    pub cursor: Option<String>,
}

/// How far a copy is. It is stored in the target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyProgress {
    /// The source's [`CopySource::unused_state`]: a copy continues only from the same state.
    pub from: String,
    /// Cursor behind the records and tombstones that are copied.
    pub cursor: Option<String>,
    /// Whether all records and tombstones are copied.
    pub items_done: bool,
    /// How far the source's event log is copied: a [`Position`](crate::store::log::Position) as
    /// text.
    pub log: String,
    /// Cursor behind the waiting events and dead letters that are copied.
    pub outbox_cursor: Option<String>,
    /// Whether all waiting events and dead letters are copied.
    pub outbox_done: bool,
}

/// State in which a target begins a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyStart {
    /// The target is empty, and closed to gateways now.
    Fresh,
    /// The target holds an interrupted copy with this progress.
    Resumed(CopyProgress),
    /// The target holds a complete copy. It was interrupted while it opened the target to gateways.
    Opening,
}

/// Reasons why a store was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One end is in use or is not a store, or the target is not empty.
    #[error("{0}")]
    Refused(String),
    /// A store failed. The same command continues the copy.
    #[error("{0}; run the same command again: it goes on where it ended")]
    Store(#[from] StoreError),
    /// The copy differs from the original.
    #[error("the copy differs from the original: {0}; empty the second store and begin anew")]
    Differs(String),
}

/// A store that can be copied.
#[async_trait]
pub trait CopySource: Send + Sync {
    /// Returns the number of partitions of the event log.
    fn log_partitions(&self) -> u16;

    /// Returns the event log.
    fn log(&self) -> &dyn EventLog;

    /// Returns the store's time, in ms since 1970.
    async fn time_ms(&self) -> Result<u64, StoreError>;

    /// Reads a note.
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError>;

    /// Returns a text that changes when a gateway uses the store.
    ///
    /// # Errors
    /// [`CopyError::Refused`]: a gateway uses the store.
    async fn unused_state(&self) -> Result<String, CopyError>;

    /// Reads items from a cursor on (`None`: from the beginning). Items that have ended may be left
    /// out.
    async fn items(&self, cursor: Option<&str>) -> Result<Items, StoreError>;

    /// Reads the items under these keys, in the order of the keys.
    async fn find(&self, keys: &[ItemKey]) -> Result<Vec<Option<Item>>, StoreError>;

    /// Reads waiting events and dead letters from a cursor on (`None`: from the beginning). Each
    /// one is read once, as long as no gateway uses the store.
    ///
    /// # Errors
    /// [`CopyError::Refused`]: one can't be read.
    async fn outbox(&self, cursor: Option<&str>) -> Result<OutboxItems, CopyError>;
}

/// A store that can be copied into.
#[async_trait]
pub trait CopyTarget: CopySource {
    /// Closes the store to gateways, if it is empty or holds an unfinished copy.
    ///
    /// # Errors
    /// [`CopyError::Refused`]: the store holds something else, or a gateway uses it.
    async fn begin(&self) -> Result<CopyStart, CopyError>;

    /// Writes items, then the progress. Items that have ended are left out.
    async fn put_items(&self, items: &[Item], progress: &CopyProgress) -> Result<(), StoreError>;

    /// Appends entries to the event log unchanged, with their ids and links, then writes the
    /// progress.
    async fn put_events(
        &self,
        entries: &[LogEntry],
        progress: &CopyProgress,
    ) -> Result<(), StoreError>;

    /// Writes waiting events and dead letters, then the progress. A repeated write adds nothing.
    async fn put_outbox(
        &self,
        items: &[OutboxItem],
        progress: &CopyProgress,
    ) -> Result<(), StoreError>;

    /// Writes the ends of the event log.
    async fn put_ends(&self, ends: &[Ends]) -> Result<(), StoreError>;

    /// Writes the notes, then opens the store to gateways.
    async fn finish(&self, notes: &[(Note, String)]) -> Result<(), StoreError>;
}
