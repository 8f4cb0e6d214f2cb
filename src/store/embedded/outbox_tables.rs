//! The tables of the outbox: one partition. Events are written in the transaction that writes their
//! record.
//!
//! Danger: an operation without its entry in the index of due operations would never be delivered.
//! So only [`put_operation`] and [`take_operation`] change the two tables, always together.

use std::ops::Bound;

use redb::{
    ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use super::layout::META;
use super::outbox_change::OutboxChange;
use super::outbox_counts::{self, count, count_dead};
use super::outbox_keys::{
    TIME_BYTES, due_entry, due_key, event_key, event_of, event_order, operation_key, sink_key,
    written_key,
};
use super::stored_event::{EVENTS, StoredEvent};
use super::{dead_letter_tables, outbox_contents};
use crate::key::Slot;
use crate::store::dead_letters::{Burial, DeadLetter, DeadLetterId};
use crate::store::outbox::{
    DeliveryAttempts, DueEvents, EventKey, EventOrder, OutboxEvent, RelayFence, WaitingEvent,
};

/// Attempts of waiting events, by the same keys: their number, and the time of the first one.
const ATTEMPTS: TableDefinition<&[u8], (u32, u64)> = TableDefinition::new("outbox_attempts");
/// Operations with waiting events: sink and operation -> time at which the first event is due.
const OPERATIONS: TableDefinition<&[u8], u64> = TableDefinition::new("outbox_operations");
/// Index of these operations: sink, due time and operation.
const DUE: TableDefinition<&[u8], ()> = TableDefinition::new("outbox_due");
/// Index of waiting events: sink, time of the change, operation and order.
const WRITTEN: TableDefinition<&[u8], ()> = TableDefinition::new("outbox_written");
/// In [`META`]: the fence of the relay that owns the partition.
const OWNER: &str = "outbox_owner";

/// Creates the tables that do not exist yet.
pub(super) fn prepare(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(EVENTS)?;
    txn.open_table(ATTEMPTS)?;
    txn.open_table(OPERATIONS)?;
    txn.open_table(DUE)?;
    txn.open_table(WRITTEN)?;
    outbox_counts::prepare(txn)?;
    dead_letter_tables::prepare(txn)
}

/// Whether there are neither waiting events nor dead letters.
pub(super) fn is_empty(txn: &WriteTransaction) -> Result<bool, redb::Error> {
    Ok(txn.open_table(EVENTS)?.is_empty()? && dead_letter_tables::is_empty(txn)?)
}

/// Writes the events of a change.
pub(super) fn append(
    txn: &WriteTransaction,
    slot: &Slot,
    events: &[OutboxEvent],
    now_ms: u64,
) -> Result<(), redb::Error> {
    for OutboxEvent { sink, order, content } in events {
        let key = EventKey { sink: sink.clone(), slot: *slot, order: *order };
        let event = StoredEvent { written_ms: now_ms, round: 0, content: content.clone() };
        put_event(txn, &key, &event, now_ms)?;
    }
    Ok(())
}

/// Applies a change. Returns whether it has its effect.
pub(super) fn apply(
    txn: &WriteTransaction,
    change: &OutboxChange,
    now_ms: u64,
) -> Result<bool, redb::Error> {
    match change {
        OutboxChange::Own { fence, over } => own(txn, *fence, *over),
        OutboxChange::Postpone { fence, event, round, attempts, pause } => {
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            let due_ms = now_ms.saturating_add(pause_ms);
            Ok(is_owned(txn, *fence)?
                && waits_in(txn, event, *round)?
                && postpone(txn, event, *attempts, due_ms)?)
        }
        OutboxChange::ReplaceContent { fence, event, round, content } => Ok(is_owned(txn, *fence)?
            && waits_in(txn, event, *round)?
            && outbox_contents::keep(txn, event, content)?),
        OutboxChange::Remove { fence, event, round } => {
            let is_owned = is_owned(txn, *fence)?;
            if is_owned && waits_in(txn, event, *round)? {
                take_event(txn, event, now_ms)?;
            }
            Ok(is_owned)
        }
        OutboxChange::Bury { fence, event, round, burial } => {
            let is_owned = is_owned(txn, *fence)?;
            if is_owned && waits_in(txn, event, *round)? {
                bury(txn, event, burial, now_ms)?;
            }
            Ok(is_owned)
        }
        OutboxChange::Requeue { id, round } => {
            if dead_letter_tables::stored(txn, *id)?.map(|letter| letter.round) != Some(round.from)
            {
                return Ok(false);
            }
            let Some(letter) = take_dead(txn, *id)? else { return Ok(false) };
            let event = StoredEvent {
                written_ms: letter.written_ms,
                round: round.to,
                content: letter.content,
            };
            put_event(txn, &letter.key, &event, now_ms)?;
            Ok(true)
        }
        OutboxChange::Discard { id } => Ok(take_dead(txn, *id)?.is_some()),
        OutboxChange::Replace { before, after } => outbox_contents::replace(txn, before, after),
    }
}

/// See [`crate::store::Outbox::own_partition`].
fn own(
    txn: &WriteTransaction,
    fence: RelayFence,
    over: Option<RelayFence>,
) -> Result<bool, redb::Error> {
    let mut meta = txn.open_table(META)?;
    let owner = meta.get(OWNER)?.map(|owner| RelayFence(owner.value()));
    if owner == over {
        meta.insert(OWNER, fence.0)?;
        return Ok(true);
    }
    Ok(owner == Some(fence))
}

/// Returns the owner of the partition.
pub(super) fn owner(txn: &ReadTransaction) -> Result<Option<RelayFence>, redb::Error> {
    Ok(txn.open_table(META)?.get(OWNER)?.map(|owner| RelayFence(owner.value())))
}

/// See [`crate::store::Outbox::postpone`].
fn postpone(
    txn: &WriteTransaction,
    event: &EventKey,
    attempts: DeliveryAttempts,
    due_ms: u64,
) -> Result<bool, redb::Error> {
    let key = event_key(event);
    txn.open_table(ATTEMPTS)?.insert(key.as_slice(), (attempts.count, attempts.first_ms))?;
    // An earlier event of the operation may have been written meanwhile. It is due first.
    if first_order(txn, event)? == Some(event.order) {
        take_operation(txn, &event.sink, &event.slot)?;
        put_operation(txn, &event.sink, &event.slot, due_ms)?;
    }
    Ok(true)
}

/// See [`crate::store::Outbox::bury`].
fn bury(
    txn: &WriteTransaction,
    event: &EventKey,
    burial: &Burial,
    now_ms: u64,
) -> Result<(), redb::Error> {
    let Some(StoredEvent { written_ms, round, content }) = take_event(txn, event, now_ms)? else {
        return Ok(());
    };
    let letter = DeadLetter {
        key: event.clone(),
        content,
        written_ms,
        round,
        buried_ms: now_ms,
        burial: burial.clone(),
    };
    // An event that was buried before is replaced: it may wait again after a loss.
    put_dead(txn, &letter)
}

/// Whether an event waits in this round.
fn waits_in(txn: &WriteTransaction, event: &EventKey, round: u32) -> Result<bool, redb::Error> {
    let events = txn.open_table(EVENTS)?;
    let waiting = events.get(event_key(event).as_slice())?;
    let waiting = waiting.and_then(|value| StoredEvent::decode(value.value()));
    Ok(waiting.is_some_and(|waiting| waiting.round == round))
}

/// Writes a waiting event of a copy. `due_ms` is the time at which its operation is due, in ms
/// since 1970. An event that waits already stays as it is.
pub(super) fn put_waiting(
    txn: &WriteTransaction,
    event: &WaitingEvent,
    due_ms: u64,
) -> Result<(), redb::Error> {
    let WaitingEvent { key, content, written_ms, round, attempts } = event;
    let stored = StoredEvent { written_ms: *written_ms, round: *round, content: content.clone() };
    put_event(txn, key, &stored, due_ms)?;
    if *attempts != DeliveryAttempts::default() {
        let attempts = (attempts.count, attempts.first_ms);
        txn.open_table(ATTEMPTS)?.insert(event_key(key).as_slice(), attempts)?;
    }
    Ok(())
}

/// Writes a dead letter. One of the same event is replaced.
pub(super) fn put_dead(txn: &WriteTransaction, letter: &DeadLetter) -> Result<(), redb::Error> {
    let id = DeadLetterId::of(&letter.key);
    take_dead(txn, id)?;
    dead_letter_tables::put(txn, id, letter)?;
    count_dead(txn, letter, |count, bytes| (count + 1, bytes + letter.content.size() as u64))
}

/// Removes a dead letter.
fn take_dead(txn: &WriteTransaction, id: DeadLetterId) -> Result<Option<DeadLetter>, redb::Error> {
    let taken = dead_letter_tables::take(txn, id)?;
    if let Some(letter) = &taken {
        let size = letter.content.size() as u64;
        count_dead(txn, letter, |count, bytes| {
            (count.saturating_sub(1), bytes.saturating_sub(size))
        })?;
    }
    Ok(taken)
}

/// See [`crate::store::Outbox::due_events`].
pub(super) fn due(
    txn: &ReadTransaction,
    sink: &str,
    limit: usize,
    now_ms: u64,
) -> Result<DueEvents, redb::Error> {
    let (events, attempts) = (txn.open_table(EVENTS)?, txn.open_table(ATTEMPTS)?);
    let due = txn.open_table(DUE)?;
    let (prefix, mut found) = (sink_key(sink), DueEvents { now_ms, ..DueEvents::default() });
    for entry in due.range::<&[u8]>(prefix.as_slice()..)? {
        let entry = entry?.0;
        let Some((due_ms, slot)) = due_entry(entry.value(), &prefix) else { break };
        if due_ms > now_ms || found.events.len() >= limit {
            found.next_due_ms = Some(due_ms);
            break;
        }
        let operation = operation_key(sink, &slot);
        let first = events.range::<&[u8]>(operation.as_slice()..)?.next().transpose()?;
        let Some((key, value)) = first else { continue };
        let (Some(order), Some(event)) =
            (event_order(key.value(), &operation), StoredEvent::decode(value.value()))
        else {
            continue;
        };
        let attempts = attempts.get(key.value())?.map(|attempts| attempts.value());
        let key = EventKey { sink: sink.to_owned(), slot, order };
        found.events.push(event.waiting(key, attempts.unwrap_or_default()));
    }
    Ok(found)
}

/// Reads waiting events behind the one with this key, in the order of the keys. `read` gets each
/// event, and the time at which its operation is due, in ms since 1970 (0 for an operation without
/// one). It returns whether that was enough. Returns the key of the last event; `None` at the end.
///
/// # Errors
/// An event can't be read.
pub(super) fn read_waiting(
    txn: &ReadTransaction,
    behind: &[u8],
    mut read: impl FnMut(WaitingEvent, u64) -> bool,
) -> Result<Option<Vec<u8>>, redb::Error> {
    let (events, attempts) = (txn.open_table(EVENTS)?, txn.open_table(ATTEMPTS)?);
    let operations = txn.open_table(OPERATIONS)?;
    let range = (Bound::Excluded(behind), Bound::Unbounded);
    for entry in events.range::<&[u8]>(range)? {
        let (name, value) = entry?;
        let Some((key, event)) = event_of(name.value()).zip(StoredEvent::decode(value.value()))
        else {
            return Err(redb::Error::Corrupted("a waiting event that can't be read".into()));
        };
        let due_ms = operations.get(operation_key(&key.sink, &key.slot).as_slice())?;
        let attempted = attempts.get(name.value())?.map(|attempts| attempts.value());
        let (count, first_ms) = attempted.unwrap_or_default();
        let StoredEvent { written_ms, round, content } = event;
        let attempts = DeliveryAttempts { count, first_ms };
        let event = WaitingEvent { key, content, written_ms, round, attempts };
        if read(event, due_ms.map_or(0, |due_ms| due_ms.value())) {
            return Ok(Some(name.value().to_vec()));
        }
    }
    Ok(None)
}

/// See [`crate::store::Outbox::waiting_of`].
pub(super) fn waiting_of(
    txn: &ReadTransaction,
    sink: &str,
    slot: &Slot,
) -> Result<Vec<WaitingEvent>, redb::Error> {
    let (events, attempts) = (txn.open_table(EVENTS)?, txn.open_table(ATTEMPTS)?);
    let (operation, mut waiting) = (operation_key(sink, slot), Vec::new());
    for entry in events.range::<&[u8]>(operation.as_slice()..)? {
        let (key, value) = entry?;
        let Some(order) = event_order(key.value(), &operation) else { break };
        let Some(event) = StoredEvent::decode(value.value()) else { continue };
        let attempts = attempts.get(key.value())?.map(|attempts| attempts.value());
        let key = EventKey { sink: sink.to_owned(), slot: *slot, order };
        waiting.push(event.waiting(key, attempts.unwrap_or_default()));
    }
    Ok(waiting)
}

/// See [`crate::store::Outbox::oldest_waiting_ms`].
pub(super) fn oldest_ms(txn: &ReadTransaction, sink: &str) -> Result<Option<u64>, redb::Error> {
    let (written, prefix) = (txn.open_table(WRITTEN)?, sink_key(sink));
    let first = written.range::<&[u8]>(prefix.as_slice()..)?.next().transpose()?;
    Ok(first.and_then(|(key, _)| {
        let rest = key.value().strip_prefix(&prefix[..])?.first_chunk::<TIME_BYTES>()?;
        Some(u64::from_be_bytes(*rest))
    }))
}

fn is_owned(txn: &WriteTransaction, fence: RelayFence) -> Result<bool, redb::Error> {
    Ok(txn.open_table(META)?.get(OWNER)?.is_some_and(|owner| owner.value() == fence.0))
}

/// Adds a waiting event. An event that waits already stays as it is.
fn put_event(
    txn: &WriteTransaction,
    key: &EventKey,
    event: &StoredEvent,
    now_ms: u64,
) -> Result<(), redb::Error> {
    let name = event_key(key);
    {
        let mut events = txn.open_table(EVENTS)?;
        if events.get(name.as_slice())?.is_some() {
            return Ok(());
        }
        events.insert(name.as_slice(), event.encode().as_slice())?;
    }
    txn.open_table(WRITTEN)?.insert(written_key(key, event.written_ms).as_slice(), ())?;
    let size = event.content.size() as u64;
    count(txn, &key.sink, |counts| {
        counts.0 += 1;
        counts.3 += size;
    })?;
    let is_new =
        txn.open_table(OPERATIONS)?.get(operation_key(&key.sink, &key.slot).as_slice())?.is_none();
    if is_new {
        put_operation(txn, &key.sink, &key.slot, now_ms)?;
    }
    Ok(())
}

/// Removes a waiting event. The next event of its operation is due at once.
fn take_event(
    txn: &WriteTransaction,
    key: &EventKey,
    now_ms: u64,
) -> Result<Option<StoredEvent>, redb::Error> {
    let name = event_key(key);
    let taken = {
        let mut events = txn.open_table(EVENTS)?;
        let taken = events.remove(name.as_slice())?;
        taken.and_then(|value| StoredEvent::decode(value.value()))
    };
    let Some(event) = taken else { return Ok(None) };
    txn.open_table(ATTEMPTS)?.remove(name.as_slice())?;
    txn.open_table(WRITTEN)?.remove(written_key(key, event.written_ms).as_slice())?;
    let size = event.content.size() as u64;
    count(txn, &key.sink, |counts| {
        counts.0 = counts.0.saturating_sub(1);
        counts.3 = counts.3.saturating_sub(size);
    })?;
    take_operation(txn, &key.sink, &key.slot)?;
    if first_order(txn, key)?.is_some() {
        put_operation(txn, &key.sink, &key.slot, now_ms)?;
    }
    Ok(Some(event))
}

/// Returns the place of the first event of an operation.
fn first_order(
    txn: &WriteTransaction,
    event: &EventKey,
) -> Result<Option<EventOrder>, redb::Error> {
    let operation = operation_key(&event.sink, &event.slot);
    let events = txn.open_table(EVENTS)?;
    let first = events.range::<&[u8]>(operation.as_slice()..)?.next().transpose()?;
    Ok(first.and_then(|(key, _)| event_order(key.value(), &operation)))
}

fn put_operation(
    txn: &WriteTransaction,
    sink: &str,
    slot: &Slot,
    due_ms: u64,
) -> Result<(), redb::Error> {
    txn.open_table(OPERATIONS)?.insert(operation_key(sink, slot).as_slice(), due_ms)?;
    txn.open_table(DUE)?.insert(due_key(sink, due_ms, slot).as_slice(), ())?;
    Ok(())
}

fn take_operation(txn: &WriteTransaction, sink: &str, slot: &Slot) -> Result<(), redb::Error> {
    let taken = {
        let mut operations = txn.open_table(OPERATIONS)?;
        operations.remove(operation_key(sink, slot).as_slice())?.map(|due_ms| due_ms.value())
    };
    if let Some(due_ms) = taken {
        txn.open_table(DUE)?.remove(due_key(sink, due_ms, slot).as_slice())?;
    }
    Ok(())
}
