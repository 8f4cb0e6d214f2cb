//! The tables of dead letters.

use std::ops::Bound;

use redb::{
    ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use crate::store::dead_letters::{
    Burial, DEAD_LETTERS_EXAMINED_MAX, DeadLetter, DeadLetterCursor, DeadLetterFilter,
    DeadLetterId, DeadLetterKind, DeadLetterPage,
};
use crate::store::log::{MEMBER_BYTES, member, slot_of_member};
use crate::store::outbox::{EventContent, EventKey, EventOrder};

/// Dead letters by id.
const DEAD: TableDefinition<&[u8], &[u8]> = TableDefinition::new("dead_letters");
/// Index of dead letters: time of the burial and id.
const DEAD_AT: TableDefinition<&[u8], ()> = TableDefinition::new("dead_letters_by_time");

/// Bytes of a time.
const TIME_BYTES: usize = 8;

/// Creates the tables that do not exist yet.
pub(super) fn prepare(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(DEAD)?;
    txn.open_table(DEAD_AT)?;
    Ok(())
}

/// Whether there are no dead letters.
pub(super) fn is_empty(txn: &WriteTransaction) -> Result<bool, redb::Error> {
    Ok(txn.open_table(DEAD)?.is_empty()?)
}

/// Writes a dead letter.
pub(super) fn put(
    txn: &WriteTransaction,
    id: DeadLetterId,
    letter: &DeadLetter,
) -> Result<(), redb::Error> {
    txn.open_table(DEAD)?.insert(&id.as_bytes()[..], encode(letter).as_slice())?;
    let place = DeadLetterCursor { buried_ms: letter.buried_ms, id };
    txn.open_table(DEAD_AT)?.insert(place_key(place).as_slice(), ())?;
    Ok(())
}

/// Returns a dead letter as this transaction has it; `None` for a malformed one.
pub(super) fn stored(
    txn: &WriteTransaction,
    id: DeadLetterId,
) -> Result<Option<DeadLetter>, redb::Error> {
    let dead = txn.open_table(DEAD)?;
    let value = dead.get(&id.as_bytes()[..])?;
    Ok(value.and_then(|value| decode(value.value())))
}

/// Removes a dead letter. A malformed one stays.
pub(super) fn take(
    txn: &WriteTransaction,
    id: DeadLetterId,
) -> Result<Option<DeadLetter>, redb::Error> {
    let letter = stored(txn, id)?;
    if let Some(letter) = &letter {
        txn.open_table(DEAD)?.remove(&id.as_bytes()[..])?;
        let place = DeadLetterCursor { buried_ms: letter.buried_ms, id };
        txn.open_table(DEAD_AT)?.remove(place_key(place).as_slice())?;
    }
    Ok(letter)
}

/// See [`crate::store::DeadLetters::dead_letter`].
pub(super) fn get(
    txn: &ReadTransaction,
    id: DeadLetterId,
) -> Result<Option<DeadLetter>, redb::Error> {
    let value = txn.open_table(DEAD)?.get(&id.as_bytes()[..])?;
    Ok(value.and_then(|value| decode(value.value())))
}

/// See [`crate::store::DeadLetters::dead_letters`].
pub(super) fn list(
    txn: &ReadTransaction,
    filter: &DeadLetterFilter,
    cursor: Option<DeadLetterCursor>,
    limit: usize,
) -> Result<DeadLetterPage, redb::Error> {
    let (dead, places) = (txn.open_table(DEAD)?, txn.open_table(DEAD_AT)?);
    // Dead letters of one millisecond may lie on both sides of the end: the filter decides.
    let until_ms = filter.until_ms.unwrap_or(u64::MAX);
    let end = match cursor {
        Some(cursor) if cursor.buried_ms < until_ms => place_key(cursor),
        _ => until_ms.to_be_bytes().to_vec(),
    };
    let (mut letters, mut last) = (Vec::new(), None);
    for (examined, entry) in places.range::<&[u8]>(..end.as_slice())?.rev().enumerate() {
        if letters.len() >= limit || examined >= DEAD_LETTERS_EXAMINED_MAX {
            return Ok(DeadLetterPage { letters, cursor: last });
        }
        let key = entry?.0;
        let Some(place) = place_of(key.value()) else { continue };
        if filter.since_ms.is_some_and(|since_ms| place.buried_ms < since_ms) {
            break;
        }
        let value = dead.get(&place.id.as_bytes()[..])?;
        let letter = value.and_then(|value| decode(value.value()));
        letters.extend(letter.filter(|letter| filter.matches(letter)));
        last = Some(place);
    }
    Ok(DeadLetterPage { letters, cursor: None })
}

/// Reads dead letters behind the one with this id, in the order of the ids. `read` returns whether
/// it got enough. Returns the last id; `None` at the end.
///
/// # Errors
/// A dead letter can't be read.
pub(super) fn read_all(
    txn: &ReadTransaction,
    behind: &[u8],
    mut read: impl FnMut(DeadLetter) -> bool,
) -> Result<Option<Vec<u8>>, redb::Error> {
    let dead = txn.open_table(DEAD)?;
    let range = (Bound::Excluded(behind), Bound::Unbounded);
    for entry in dead.range::<&[u8]>(range)? {
        let (id, value) = entry?;
        let Some(letter) = decode(value.value()) else {
            return Err(redb::Error::Corrupted("a dead letter that can't be read".into()));
        };
        if read(letter) {
            return Ok(Some(id.value().to_vec()));
        }
    }
    Ok(None)
}

fn place_key(place: DeadLetterCursor) -> Vec<u8> {
    [&place.buried_ms.to_be_bytes()[..], place.id.as_bytes()].concat()
}

fn place_of(key: &[u8]) -> Option<DeadLetterCursor> {
    let (buried, id) = key.split_first_chunk::<TIME_BYTES>()?;
    let id = DeadLetterId::from_bytes(id.try_into().ok()?);
    Some(DeadLetterCursor { buried_ms: u64::from_be_bytes(*buried), id })
}

/// A stored dead letter: time of the change (8), round (4), time of the burial (8), kind (1),
/// operation, order, length of the sink's name (1), the name, length of the report (4), the report,
/// the content.
fn encode(letter: &DeadLetter) -> Vec<u8> {
    let DeadLetter { key, content, written_ms, round, buried_ms, burial } = letter;
    let kind = match burial.kind {
        DeadLetterKind::Receiver => 0,
        DeadLetterKind::Gateway => 1,
    };
    let report = burial.report.encode();
    let report_bytes = u32::try_from(report.len()).unwrap_or(u32::MAX);
    [
        &written_ms.to_be_bytes()[..],
        &round.to_be_bytes(),
        &buried_ms.to_be_bytes(),
        &[kind],
        &member(&key.slot),
        &key.order.encode(),
        &[u8::try_from(key.sink.len()).unwrap_or(u8::MAX)],
        key.sink.as_bytes(),
        &report_bytes.to_be_bytes(),
        &report,
        &content.encode(),
    ]
    .concat()
}

fn decode(value: &[u8]) -> Option<DeadLetter> {
    let (written, rest) = value.split_first_chunk()?;
    let (round, rest) = rest.split_first_chunk()?;
    let (buried, rest) = rest.split_first_chunk()?;
    let (kind, rest) = rest.split_first()?;
    let (operation, rest) = rest.split_first_chunk::<MEMBER_BYTES>()?;
    let (order, rest) = rest.split_first_chunk()?;
    let (sink_bytes, rest) = rest.split_first()?;
    let (sink, rest) = rest.split_at_checked(usize::from(*sink_bytes))?;
    let (report_bytes, rest) = rest.split_first_chunk()?;
    let report_bytes = usize::try_from(u32::from_be_bytes(*report_bytes)).ok()?;
    let (report, content) = rest.split_at_checked(report_bytes)?;
    let kind = match kind {
        0 => DeadLetterKind::Receiver,
        1 => DeadLetterKind::Gateway,
        _ => return None,
    };
    Some(DeadLetter {
        key: EventKey {
            sink: String::from_utf8(sink.to_vec()).ok()?,
            slot: slot_of_member(operation)?,
            order: EventOrder::decode(order),
        },
        content: EventContent::decode(content),
        written_ms: u64::from_be_bytes(*written),
        round: u32::from_be_bytes(*round),
        buried_ms: u64::from_be_bytes(*buried),
        burial: Burial { kind, report: EventContent::decode(report) },
    })
}
