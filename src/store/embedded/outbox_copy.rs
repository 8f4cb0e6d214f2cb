//! The outbox of an embedded store in a copy: waiting events first, then dead letters.

use redb::{ReadTransaction, WriteTransaction};

use super::{dead_letter_tables, outbox_tables};
use crate::hex;
use crate::store::copy::{OutboxItem, OutboxItems};

/// Limit for the items of one read.
const READ_ITEMS: usize = 1024;

/// Limit for the bytes of one read, not counting the last item.
const READ_BYTES: usize = 4 << 20;

/// A place in the outbox: a read continues behind it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OutboxPlace {
    /// Behind the waiting event with this key.
    Waiting(Vec<u8>),
    /// Behind the dead letter with this id.
    Dead(Vec<u8>),
}

impl OutboxPlace {
    const WAITING: &str = "waiting ";
    const DEAD: &str = "dead ";

    /// Reads a cursor of a copy; `None` for any other text.
    pub fn parse(cursor: Option<&str>) -> Option<OutboxPlace> {
        let Some(cursor) = cursor else { return Some(OutboxPlace::Waiting(Vec::new())) };
        if let Some(key) = cursor.strip_prefix(OutboxPlace::WAITING) {
            return hex::decode_all(key).map(OutboxPlace::Waiting);
        }
        cursor.strip_prefix(OutboxPlace::DEAD).and_then(hex::decode_all).map(OutboxPlace::Dead)
    }

    fn cursor(&self) -> String {
        match self {
            OutboxPlace::Waiting(key) => [OutboxPlace::WAITING, &hex::encode(key)].concat(),
            OutboxPlace::Dead(id) => [OutboxPlace::DEAD, &hex::encode(id)].concat(),
        }
    }
}

/// Reads a page behind a place.
///
/// # Errors
/// The file can't be read, or an item can't.
pub(super) fn page(txn: &ReadTransaction, from: &OutboxPlace) -> Result<OutboxItems, redb::Error> {
    match pages(txn, from) {
        // No version with an outbox has used the file yet.
        Err(redb::Error::TableDoesNotExist(_)) => Ok(OutboxItems::default()),
        read => read,
    }
}

fn pages(txn: &ReadTransaction, from: &OutboxPlace) -> Result<OutboxItems, redb::Error> {
    let (mut items, mut bytes) = (Vec::new(), 0);
    let mut add = |item: OutboxItem| {
        bytes += item.bytes();
        items.push(item);
        items.len() >= READ_ITEMS || bytes >= READ_BYTES
    };
    let next = match from {
        OutboxPlace::Waiting(behind) => {
            let last = outbox_tables::read_waiting(txn, behind, |event, due_ms| {
                add(OutboxItem::Waiting { event, due_ms })
            })?;
            // The dead letters follow, in the next page.
            Some(last.map_or(OutboxPlace::Dead(Vec::new()), OutboxPlace::Waiting))
        }
        OutboxPlace::Dead(behind) => {
            let read = |letter| add(OutboxItem::Dead(letter));
            dead_letter_tables::read_all(txn, behind, read)?.map(OutboxPlace::Dead)
        }
    };
    Ok(OutboxItems { items, cursor: next.map(|place| place.cursor()) })
}

/// Writes items of a copy. A repeated write changes nothing.
///
/// # Errors
/// The file can't be written.
pub(super) fn put(txn: &WriteTransaction, items: &[OutboxItem]) -> Result<(), redb::Error> {
    items.iter().try_for_each(|item| match item {
        OutboxItem::Waiting { event, due_ms } => outbox_tables::put_waiting(txn, event, *due_ms),
        OutboxItem::Dead(letter) => outbox_tables::put_dead(txn, letter),
    })
}
