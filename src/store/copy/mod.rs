//! Copying a store that no gateway uses into another one: for back-ups, and for moves between a file and Redis.
//!
//! What is copied: records and tombstones of all routes, the index of unsettled records, the event log and the notes. A store that is being copied into is closed: no gateway can claim there before everything was copied and compared.
//!
//! Danger: two stores that were the same and go on separately each execute what the other has executed. Who moves must not go
//! on with the old one.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::log::{Ends, EntryId, EventLog, Link, LogEntry, Mark, Position, member, verify};
use super::{Note, StoreError};
use crate::key::Slot;

mod merge;
mod sum;

use merge::Merge;
use sum::Sum;

/// Items of one write, at most.
const BATCH_ITEMS_MAX: usize = 1024;

/// Bytes of one write, beyond its last item.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Entries of the event log that are read and written at once.
const BATCH_EVENTS: usize = 500;

/// By how much the clocks of two stores may differ, in ms: retention and leases end by the clock of the store.
const SKEW_MAX_MS: u64 = 60_000;

/// By how much a copied record may end earlier than the original, in ms: servers report only how long a key has left.
const ENDS_TOLERANCE_MS: u64 = 5_000;

/// Where a record or a tombstone lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemKey {
    /// The operation.
    pub slot: Slot,
    /// Whether it is the operation's tombstone, and not its record.
    pub tombstone: bool,
}

/// A record or a tombstone as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where it lies.
    pub key: ItemKey,
    /// Head, time of writing, time when it falls due (0: never; both in ms since 1970) and payload.
    pub value: Bytes,
    /// When it ends, in ms since 1970; `u64::MAX`: never.
    pub ends_ms: u64,
}

impl Item {
    /// When it falls due, in ms since 1970; 0: never, as tombstones.
    pub fn due_ms(&self) -> u64 {
        let due = self.value.get(DUE).filter(|_| !self.key.tombstone);
        due.map_or(0, |bytes| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }
}

/// The place of the due time in an item's value: behind the head and the time of writing.
const DUE: std::ops::Range<usize> = crate::record::HEAD_BYTES + 8..crate::record::HEAD_BYTES + 16;

/// Items in the order of the store, and where the next ones begin.
#[derive(Debug, Default)]
pub struct Items {
    /// The items; may be none although there are more.
    pub items: Vec<Item>,
    /// Where to go on; `None`: the end is reached.
    pub cursor: Option<String>,
}

/// How far a copy is, as it is kept in the store that is copied into.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyProgress {
    /// The state of the store that is copied: a copy goes on only from the same one.
    pub from: String,
    /// Where records and tombstones go on.
    pub cursor: Option<String>,
    /// Whether all records and tombstones are copied.
    pub items_done: bool,
    /// How far the source's event log is copied, as a [`Position`] is written.
    pub log: String,
}

/// What becomes of a copy that is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The store is closed for the copy; nothing is in it yet.
    Fresh,
    /// An earlier copy got so far.
    Resumed(CopyProgress),
    /// An earlier copy was complete, and was opening the store to gateways.
    Opening,
}

/// Why a store was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the stores is in use, is no store, or is not empty.
    #[error("{0}")]
    Refused(String),
    /// A store failed. The copy goes on where it ended when it is begun again.
    #[error("{0}; run the same command again: it goes on where it ended")]
    Store(#[from] StoreError),
    /// The copy is not the same as the original.
    #[error("the copy differs from the original: {0}; empty the second store and begin anew")]
    Differs(String),
}

/// A store that can be copied.
#[async_trait]
pub trait CopySource: Send + Sync {
    /// How many partitions the event log has.
    fn log_partitions(&self) -> u16;

    /// The event log.
    fn log(&self) -> &dyn EventLog;

    /// The store's time, in ms since 1970.
    async fn time_ms(&self) -> Result<u64, StoreError>;

    /// Reads a note.
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError>;

    /// A text that changes when the store is used by a gateway.
    ///
    /// # Errors
    /// [`CopyError::Refused`]: a gateway uses the store.
    async fn unused_state(&self) -> Result<String, CopyError>;

    /// Items from a cursor on (`None`: from the beginning). What has ended may be left out.
    async fn items(&self, cursor: Option<&str>) -> Result<Items, StoreError>;

    /// The items under these keys, in their order.
    async fn find(&self, keys: &[ItemKey]) -> Result<Vec<Option<Item>>, StoreError>;
}

/// A store that can be copied into.
#[async_trait]
pub trait CopyTarget: CopySource {
    /// Closes the store for a copy, if it is empty or holds an unfinished one.
    ///
    /// # Errors
    /// [`CopyError::Refused`]: it holds something else, or a gateway uses it.
    async fn begin(&self) -> Result<Begun, CopyError>;

    /// Writes items, and then how far the copy is. Those that have ended are left out.
    async fn put_items(&self, items: &[Item], progress: &CopyProgress) -> Result<(), StoreError>;

    /// Appends entries to the event log as they are, with their ids and links, and then writes how far the copy is.
    async fn put_events(
        &self,
        entries: &[LogEntry],
        progress: &CopyProgress,
    ) -> Result<(), StoreError>;

    /// Writes what is kept beside the event log.
    async fn put_ends(&self, ends: &[Ends]) -> Result<(), StoreError>;

    /// Writes the notes, and opens the store to gateways, under a history of its own.
    async fn finish(&self, notes: &[(Note, String)]) -> Result<(), StoreError>;
}

/// What a copy is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStep {
    /// It copies records and tombstones.
    Items,
    /// It copies entries of the event log.
    Events,
    /// It compares items.
    CheckItems,
    /// It compares entries of the event log.
    CheckEvents,
}

/// Is called with what a copy is doing, and how many items or entries are done.
pub type CopyReport<'a> = &'a (dyn Fn(CopyStep, u64) + Send + Sync);

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Records and tombstones that were compared.
    pub items: u64,
    /// Entries of the event log that were compared.
    pub events: u64,
    /// Whether an earlier copy was carried on.
    pub resumed: bool,
    /// Whether the links of the event log were made anew, because the stores divide it into other partitions.
    pub relinked: bool,
    /// Places where the links of the original log were broken, which links made anew do not show.
    pub breaks: usize,
}

/// Copies a store into an empty one, or carries an interrupted copy on.
///
/// # Errors
/// Why it was not copied. The second store stays closed until a copy is complete.
pub async fn copy(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    report: CopyReport<'_>,
) -> Result<Copied, CopyError> {
    let state = from.unused_state().await?;
    let skew_ms = from.time_ms().await?.abs_diff(to.time_ms().await?);
    if skew_ms > SKEW_MAX_MS {
        return Err(CopyError::Refused(format!(
            "the clocks of the two stores differ by {} s: retention would end at other times; set them right first",
            skew_ms / 1000
        )));
    }
    let mut copied =
        Copied { relinked: from.log_partitions() != to.log_partitions(), ..Copied::default() };
    let mut progress = match to.begin().await? {
        Begun::Fresh => CopyProgress { from: state.clone(), ..CopyProgress::default() },
        Begun::Resumed(progress) if progress.from == state || progress.from.is_empty() => {
            copied.resumed = true;
            CopyProgress { from: state.clone(), ..progress }
        }
        Begun::Resumed(_) => {
            return Err(CopyError::Refused(
                "the second store holds an unfinished copy of another store, or of this one as it was before a gateway used it: \
                 empty it and begin anew"
                    .into(),
            ));
        }
        Begun::Opening => {
            to.finish(&notes_of(from).await?).await?;
            return Ok(Copied { resumed: true, ..copied });
        }
    };
    copy_items(from, to, &mut progress, report).await?;
    if copied.relinked {
        copied.breaks = broken_links(from.log()).await?;
        relink_events(from, to, &mut progress, report).await?;
    } else {
        copy_events(from, to, &progress, report).await?;
    }
    copied.items = compare_items(from, to, report).await?;
    copied.events = compare_events(from, to, copied.relinked, report).await?;
    if from.unused_state().await? != state {
        return Err(CopyError::Differs(
            "a gateway used the first store while it was copied".into(),
        ));
    }
    to.finish(&notes_of(from).await?).await?;
    Ok(copied)
}

async fn notes_of(from: &dyn CopySource) -> Result<Vec<(Note, String)>, StoreError> {
    let mut notes = Vec::new();
    for note in Note::ALL {
        notes.extend(from.note(note).await?.map(|text| (note, text)));
    }
    Ok(notes)
}

async fn copy_items(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    progress: &mut CopyProgress,
    report: CopyReport<'_>,
) -> Result<(), CopyError> {
    let mut done = 0;
    while !progress.items_done {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_ITEMS_MAX && bytes < BATCH_BYTES_MAX && !progress.items_done {
            let Items { items, cursor } = from.items(progress.cursor.as_deref()).await?;
            bytes += items.iter().map(|item| item.value.len()).sum::<usize>();
            batch.extend(items);
            progress.items_done = cursor.is_none();
            progress.cursor = cursor;
        }
        to.put_items(&batch, progress).await?;
        done += batch.len() as u64;
        report(CopyStep::Items, done);
    }
    Ok(())
}

/// Copies the event log as it is, with ids and links.
async fn copy_events(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    progress: &CopyProgress,
    report: CopyReport<'_>,
) -> Result<(), CopyError> {
    let ends = from.log().ends().await?;
    let mut tails = tails(to.log()).await?;
    let mut done = 0;
    for partition in ends.iter().map(|ends| ends.partition) {
        loop {
            let behind = tails.get(&partition).map_or_else(EntryId::default, |tail| tail.id);
            let entries = from.log().read_partition(partition, behind, BATCH_EVENTS).await?;
            let Some(last) = entries.last() else { break };
            let Some(link) = last.link.filter(|_| entries.iter().all(|entry| entry.link.is_some()))
            else {
                return Err(unreadable(partition));
            };
            tails.insert(partition, Mark { id: last.id, link });
            to.put_events(&entries, progress).await?;
            done += entries.len() as u64;
            report(CopyStep::Events, done);
        }
    }
    to.put_ends(&ends).await?;
    Ok(())
}

/// Copies the event log into other partitions: in the order of time, with new links.
async fn relink_events(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    progress: &mut CopyProgress,
    report: CopyReport<'_>,
) -> Result<(), CopyError> {
    let mut tails = tails(to.log()).await?;
    let mut position: Position = progress.log.parse().unwrap_or_default();
    let mut merge = Merge::new(from, &position).await?;
    let mut done = 0;
    loop {
        let mut batch = Vec::new();
        while batch.len() < BATCH_EVENTS {
            let Some(entry) = merge.next().await? else { break };
            if entry.link.is_none() {
                return Err(unreadable(entry.partition));
            }
            position.advance(&entry);
            let partition = if to.log_partitions() > 1 { entry.slot.partition() } else { 0 };
            let tail = tails.get(&partition).copied();
            // Of an interrupted write: the ids of one partition that is divided stay as they are.
            if to.log_partitions() > 1 && tail.is_some_and(|tail| entry.id <= tail.id) {
                continue;
            }
            let id = behind(tail.map(|tail| tail.id), entry.id);
            let link = Link::of(tail.map(|tail| tail.link), &member(&entry.slot), &entry.event);
            tails.insert(partition, Mark { id, link });
            batch.push(LogEntry { partition, id, link: Some(link), ..entry });
        }
        if batch.is_empty() {
            return Ok(());
        }
        progress.log = position.to_string();
        to.put_events(&batch, progress).await?;
        done += batch.len() as u64;
        report(CopyStep::Events, done);
    }
}

/// The id itself, or where that is not greater than the last one, the next behind it.
fn behind(last: Option<EntryId>, id: EntryId) -> EntryId {
    match last {
        Some(last) if id <= last => EntryId { ms: last.ms, seq: last.seq.saturating_add(1) },
        _ => id,
    }
}

fn unreadable(partition: u16) -> CopyError {
    CopyError::Refused(format!(
        "partition {partition} of the event log has an entry that can't be read: somebody else wrote it"
    ))
}

/// The last entry of each partition that has one.
async fn tails(log: &dyn EventLog) -> Result<BTreeMap<u16, Mark>, StoreError> {
    Ok(log.ends().await?.into_iter().map(|ends| (ends.partition, ends.last)).collect())
}

/// How many links of a log are not as they were written.
async fn broken_links(log: &dyn EventLog) -> Result<usize, StoreError> {
    let (mut breaks, mut cursor) = (0, None);
    loop {
        let verified = verify(log, cursor, 10 * BATCH_EVENTS).await?;
        breaks += verified.breaks.len();
        match verified.cursor {
            None => return Ok(breaks),
            next => cursor = next,
        }
    }
}

/// Compares every item of the original that has not ended with the copy's. Returns how many there are.
async fn compare_items(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    report: CopyReport<'_>,
) -> Result<u64, CopyError> {
    let (mut compared, mut cursor) = (0, None);
    loop {
        let page = from.items(cursor.as_deref()).await?;
        let keys: Vec<ItemKey> = page.items.iter().map(|item| item.key).collect();
        let found = to.find(&keys).await?;
        for (item, found) in page.items.iter().zip(found) {
            let same = |copy: &Item| {
                copy.value == item.value
                    && copy.ends_ms.saturating_add(ENDS_TOLERANCE_MS) >= item.ends_ms
            };
            if !found.as_ref().is_some_and(same)
                && item.ends_ms > from.time_ms().await?.saturating_add(ENDS_TOLERANCE_MS)
            {
                return Err(CopyError::Differs(format!("operation {}", item.key.slot)));
            }
        }
        compared += page.items.len() as u64;
        report(CopyStep::CheckItems, compared);
        match page.cursor {
            None => return Ok(compared),
            next => cursor = next,
        }
    }
}

/// Compares all entries of both logs, and the links that were made anew. Returns how many there are.
async fn compare_events(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    relinked: bool,
    report: CopyReport<'_>,
) -> Result<u64, CopyError> {
    let original = Sum::of(from.log(), !relinked, report).await?;
    let copy = Sum::of(to.log(), !relinked, report).await?;
    if original != copy {
        return Err(CopyError::Differs(format!(
            "{} of {} events are the same, or fewer",
            copy.entries, original.entries
        )));
    }
    if relinked && broken_links(to.log()).await? > 0 {
        return Err(CopyError::Differs("the links of the event log are broken".into()));
    }
    Ok(original.entries)
}

#[cfg(test)]
mod tests;
