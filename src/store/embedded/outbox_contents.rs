//! Replaces the contents of waiting events and dead letters.

use redb::{ReadableTable, WriteTransaction};

use super::dead_letter_tables;
use super::outbox_counts::count;
use super::outbox_keys::event_key;
use super::stored_event::{EVENTS, StoredEvent};
use crate::store::dead_letters::{Burial, DeadLetter, DeadLetterId};
use crate::store::outbox::{EventContent, EventKey};
use crate::store::outbox_contents::StoredContents;

/// See [`crate::store::OutboxContents::replace_contents`].
pub(super) fn replace(
    txn: &WriteTransaction,
    before: &StoredContents,
    after: &StoredContents,
) -> Result<bool, redb::Error> {
    let is_replaced = match (&before.report, &after.report) {
        (Some(_), Some(_)) => replace_dead(txn, before, after)?,
        _ => replace_waiting(txn, before, after)?,
    };
    if is_replaced {
        let (before_bytes, after_bytes) = (before.content.size(), after.content.size());
        count(txn, &before.key.sink, |counts| {
            counts.3 = (counts.3 + after_bytes as u64).saturating_sub(before_bytes as u64);
        })?;
    }
    Ok(is_replaced)
}

/// See [`crate::store::Outbox::replace_content`].
pub(super) fn keep(
    txn: &WriteTransaction,
    event: &EventKey,
    content: &EventContent,
) -> Result<bool, redb::Error> {
    let name = event_key(event);
    let mut events = txn.open_table(EVENTS)?;
    let stored = events.get(name.as_slice())?.and_then(|value| StoredEvent::decode(value.value()));
    let Some(before) = stored else { return Ok(false) };
    let (was, is) = (before.content.size() as u64, content.size() as u64);
    let next = StoredEvent { content: content.clone(), ..before };
    events.insert(name.as_slice(), next.encode().as_slice())?;
    drop(events);
    count(txn, &event.sink, |counts| counts.3 = (counts.3 + is).saturating_sub(was))?;
    Ok(true)
}

fn replace_waiting(
    txn: &WriteTransaction,
    before: &StoredContents,
    after: &StoredContents,
) -> Result<bool, redb::Error> {
    let name = event_key(&before.key);
    let mut events = txn.open_table(EVENTS)?;
    let stored = events.get(name.as_slice())?.and_then(|value| StoredEvent::decode(value.value()));
    let Some(stored) = stored.filter(|stored| stored.content == before.content) else {
        return Ok(false);
    };
    let stored = StoredEvent { content: after.content.clone(), ..stored };
    events.insert(name.as_slice(), stored.encode().as_slice())?;
    Ok(true)
}

/// Writes the dead letter in its place: the time of its burial stays, so the index does, too.
fn replace_dead(
    txn: &WriteTransaction,
    before: &StoredContents,
    after: &StoredContents,
) -> Result<bool, redb::Error> {
    let id = DeadLetterId::of(&before.key);
    let is_before = |letter: &DeadLetter| {
        letter.content == before.content && Some(&letter.burial.report) == before.report.as_ref()
    };
    let letter = dead_letter_tables::stored(txn, id)?.filter(is_before);
    let (Some(letter), Some(report)) = (letter, &after.report) else { return Ok(false) };
    let burial = Burial { report: report.clone(), ..letter.burial };
    let letter = DeadLetter { content: after.content.clone(), burial, ..letter };
    dead_letter_tables::put(txn, id, &letter)?;
    Ok(true)
}
