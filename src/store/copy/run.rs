//! The copy itself: copies records, the event log and the outbox, compares them, then copies the
//! notes.

use std::collections::BTreeMap;

use super::endpoint::{
    CopyError, CopyProgress, CopySource, CopyStart, CopyTarget, Item, ItemKey, Items,
};
use super::merge::Merge;
use super::outbox::{compare_outbox, copy_outbox};
use super::progress::{Copied, CopyReport, CopyStep};
use super::sum::Sum;
use crate::store::error::StoreError;
use crate::store::identities::Note;
use crate::store::log::{EntryId, EventLog, Link, LogEntry, Mark, Position, member, verify};

/// Number of items from which a write gets no further page of items.
const BATCH_ITEMS_MAX: usize = 1024;

/// Number of bytes from which a write gets no further page of items.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Entries of the event log per read and write.
const BATCH_EVENTS: usize = 500;

/// Limit for the difference between the clocks of two stores, in ms: retention and leases end by
/// the store's clock.
const SKEW_MAX_MS: u64 = 60_000;

/// Tolerance for a copied record that ends earlier than the original, in ms: servers report only
/// the remaining time of a key.
const ENDS_TOLERANCE_MS: u64 = 5_000;

/// Copies a store into an empty one, or continues an interrupted copy.
///
/// # Errors
/// The reason why the store was not copied. The target stays closed to gateways until a copy is
/// complete.
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
        CopyStart::Fresh => CopyProgress { from: state.clone(), ..CopyProgress::default() },
        CopyStart::Resumed(progress) if progress.from == state || progress.from.is_empty() => {
            copied.resumed = true;
            CopyProgress { from: state.clone(), ..progress }
        }
        CopyStart::Resumed(_) => {
            return Err(CopyError::Refused(
                "the second store holds an unfinished copy of another store, or of this one as it was before a gateway used it: \
                 empty it and begin anew"
                    .into(),
            ));
        }
        CopyStart::Opening => {
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
    copy_outbox(from, to, &mut progress, report).await?;
    copied.items = compare_items(from, to, report).await?;
    copied.events = compare_events(from, to, copied.relinked, report).await?;
    let outbox = compare_outbox(from, to, report).await?;
    (copied.waiting, copied.dead_letters) = (outbox.waiting.entries, outbox.dead.entries);
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

/// Copies the event log unchanged, with ids and links.
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

/// Copies the event log into other partitions, in the order of time, with new links.
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
            // An interrupted write has copied this entry already. Its id shows that, because ids
            // stay the same when one partition is divided.
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

/// Returns `id`, or the next id behind `last` if `id` is not greater than `last`.
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

/// Returns the last entry of each partition that has one.
async fn tails(log: &dyn EventLog) -> Result<BTreeMap<u16, Mark>, StoreError> {
    Ok(log.ends().await?.into_iter().map(|ends| (ends.partition, ends.last)).collect())
}

/// Counts the broken links of a log.
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

/// Compares every item of the original with the item in the copy. Items that have ended may be
/// missing there. Returns the number of items.
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

/// Compares all entries of both logs, and verifies links that were computed anew. Returns the
/// number of entries.
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
            "the copy has {} events and the source has {}, or some of them differ",
            copy.entries, original.entries
        )));
    }
    if relinked && broken_links(to.log()).await? > 0 {
        return Err(CopyError::Differs("the links of the event log are broken".into()));
    }
    Ok(original.entries)
}
