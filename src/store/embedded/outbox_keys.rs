//! The keys of the tables of the outbox. All of a sink begin alike, so that a range of a table has
//! the entries of one sink.

use crate::key::Slot;
use crate::store::log::{MEMBER_BYTES, member, slot_of_member};
use crate::store::outbox::{EventKey, EventOrder};

/// Bytes of a time.
pub(super) const TIME_BYTES: usize = 8;

/// The beginning of every key of a sink. The length comes first, so that no sink's keys begin with
/// those of another.
pub(super) fn sink_key(sink: &str) -> Vec<u8> {
    let length = u8::try_from(sink.len()).unwrap_or(u8::MAX);
    [&[length], sink.as_bytes()].concat()
}

pub(super) fn operation_key(sink: &str, slot: &Slot) -> Vec<u8> {
    [&sink_key(sink)[..], &member(slot)].concat()
}

pub(super) fn event_key(event: &EventKey) -> Vec<u8> {
    [&operation_key(&event.sink, &event.slot)[..], &event.order.encode()].concat()
}

pub(super) fn due_key(sink: &str, due_ms: u64, slot: &Slot) -> Vec<u8> {
    [&sink_key(sink)[..], &due_ms.to_be_bytes(), &member(slot)].concat()
}

pub(super) fn written_key(event: &EventKey, written_ms: u64) -> Vec<u8> {
    let (sink, written) = (sink_key(&event.sink), written_ms.to_be_bytes());
    [&sink[..], &written, &member(&event.slot), &event.order.encode()].concat()
}

/// Returns the due time and the operation of a key of the index; `None` for another sink's key.
pub(super) fn due_entry(key: &[u8], sink: &[u8]) -> Option<(u64, Slot)> {
    let (due, member) = key.strip_prefix(sink)?.split_first_chunk::<TIME_BYTES>()?;
    Some((u64::from_be_bytes(*due), slot_of_member(member.get(..MEMBER_BYTES)?)?))
}

/// Returns the place of an event from its key; `None` for another operation's key.
pub(super) fn event_order(key: &[u8], operation: &[u8]) -> Option<EventOrder> {
    key.strip_prefix(operation)?.first_chunk().map(EventOrder::decode)
}

/// Returns the event with this key; `None` for a key that can't be read.
pub(super) fn event_of(key: &[u8]) -> Option<EventKey> {
    let (length, rest) = key.split_first()?;
    let (sink, rest) = rest.split_at_checked(usize::from(*length))?;
    let (operation, order) = rest.split_at_checked(MEMBER_BYTES)?;
    Some(EventKey {
        sink: String::from_utf8(sink.to_vec()).ok()?,
        slot: slot_of_member(operation)?,
        order: EventOrder::decode(order.try_into().ok()?),
    })
}
