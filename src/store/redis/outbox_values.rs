//! The stored forms of events, their attempts and dead letters.
//!
//! An event: time of the change (ms, 8 bytes), round (4), encoded content. Among those of its
//! operation, order (17) and length (4) come before it. Attempts: their number (4), time of the
//! first one (ms, 8). A dead letter: kind (1), time of the burial (ms, 8), operation (21), event as
//! among those of its operation, length of the sink (2), sink, encoded report. The scripts write
//! the same forms.

use bytes::Bytes;
use redis::Value;

use super::answer::unexpected;
use super::layout::{member, slot_of_member};
use crate::key::Slot;
use crate::store::StoreError;
use crate::store::dead_letters::{Burial, DeadLetter, DeadLetterKind};
use crate::store::log::MEMBER_BYTES;
use crate::store::outbox::{DeliveryAttempts, EventContent, EventKey, EventOrder, WaitingEvent};

/// Encodes an event in its first round, as it is kept among those of its operation.
pub(super) fn event(order: EventOrder, changed_ms: u64, content: &EventContent) -> Vec<u8> {
    event_in_round(order, changed_ms, 0, content)
}

/// Encodes an event, as it is kept among those of its operation.
pub(super) fn event_in_round(
    order: EventOrder,
    changed_ms: u64,
    round: u32,
    content: &EventContent,
) -> Vec<u8> {
    const HEAD_BYTES: usize = 8 + 4;
    // The events of a change have a limit far below 4 GiB.
    let length = u32::try_from(HEAD_BYTES + content.size()).unwrap_or(u32::MAX);
    let parts: [&[u8]; 5] = [
        &order.encode(),
        &length.to_be_bytes(),
        &changed_ms.to_be_bytes(),
        &round.to_be_bytes(),
        &content.encode(),
    ];
    parts.concat()
}

/// Cuts the events of an operation into parts: order and event. `None` for any other bytes.
pub(super) fn events_of(mut events: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let rest = &mut events;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let order = cut(rest, EventOrder::BYTES)?;
        let length = number(rest, 4)?;
        parts.push((order, cut(rest, usize::try_from(length).ok()?)?));
    }
    Some(parts)
}

/// Encodes attempts.
pub(super) fn attempts(attempts: DeliveryAttempts) -> Vec<u8> {
    [&attempts.count.to_be_bytes()[..], &attempts.first_ms.to_be_bytes()].concat()
}

/// Encodes the end of a dead letter: the sink and the report.
pub(super) fn letter_ending(sink: &str, burial: &Burial) -> Vec<u8> {
    let length = u16::try_from(sink.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], sink.as_bytes(), &burial.report.encode()].concat()
}

/// Encodes a dead letter.
pub(super) fn dead_letter(letter: &DeadLetter) -> Vec<u8> {
    let DeadLetter { key, content, written_ms, round, buried_ms, burial } = letter;
    let kind = match burial.kind {
        DeadLetterKind::Receiver => 0,
        DeadLetterKind::Gateway => 1,
    };
    let parts: [&[u8]; 5] = [
        &[kind],
        &buried_ms.to_be_bytes(),
        &member(&key.slot),
        &event_in_round(key.order, *written_ms, *round, content),
        &letter_ending(&key.sink, burial),
    ];
    parts.concat()
}

/// Returns the byte of a kind, as text.
pub(super) fn kind(kind: DeadLetterKind) -> &'static [u8] {
    match kind {
        DeadLetterKind::Receiver => b"0",
        DeadLetterKind::Gateway => b"1",
    }
}

/// Decodes an event in the answer of the script that reads due ones: its operation, order, event
/// and attempts. `None` for an operation that can't be read: another program wrote it.
pub(super) fn waiting_event(
    sink: &str,
    parts: &[Value],
) -> Result<Option<WaitingEvent>, StoreError> {
    let [
        Value::BulkString(operation),
        Value::BulkString(order),
        Value::BulkString(event),
        attempts,
    ] = parts
    else {
        return Err(unexpected());
    };
    let order = order.first_chunk().map(EventOrder::decode);
    let Some((slot, order)) = slot_of_member(operation).zip(order) else { return Ok(None) };
    let StoredEvent { written_ms, round, content } = StoredEvent::decode(event);
    let key = EventKey { sink: sink.to_owned(), slot, order };
    Ok(Some(WaitingEvent { key, content, written_ms, round, attempts: attempts_of(attempts) }))
}

/// Decodes the waiting events of an operation, without their attempts. Leaves out other bytes at
/// the end.
pub(super) fn waiting_events(sink: &str, slot: &Slot, value: &[u8]) -> Vec<WaitingEvent> {
    let mut rest = value;
    let mut next = || {
        let order = EventOrder::decode(cut(&mut rest, EventOrder::BYTES)?.first_chunk()?);
        let length = number(&mut rest, 4)?;
        let event = StoredEvent::decode(cut(&mut rest, usize::try_from(length).ok()?)?);
        Some(WaitingEvent {
            key: EventKey { sink: sink.to_owned(), slot: *slot, order },
            content: event.content,
            written_ms: event.written_ms,
            round: event.round,
            attempts: DeliveryAttempts::default(),
        })
    };
    std::iter::from_fn(&mut next).collect()
}

/// Decodes attempts. Other bytes count as no attempt.
pub(super) fn attempts_of(value: &Value) -> DeliveryAttempts {
    let Value::BulkString(bytes) = value else { return DeliveryAttempts::default() };
    let mut rest = &bytes[..];
    match (number(&mut rest, 4), number(&mut rest, 8)) {
        (Some(count), Some(first_ms)) => {
            DeliveryAttempts { count: u32::try_from(count).unwrap_or(u32::MAX), first_ms }
        }
        _ => DeliveryAttempts::default(),
    }
}

/// Decodes a dead letter; `None` for any other bytes.
pub(super) fn letter(value: &[u8]) -> Option<DeadLetter> {
    let mut rest = value;
    let kind = match number(&mut rest, 1)? {
        0 => DeadLetterKind::Receiver,
        1 => DeadLetterKind::Gateway,
        _ => return None,
    };
    let buried_ms = number(&mut rest, 8)?;
    let slot = slot_of_member(cut(&mut rest, MEMBER_BYTES)?)?;
    let order = EventOrder::decode(cut(&mut rest, EventOrder::BYTES)?.first_chunk()?);
    let length = number(&mut rest, 4)?;
    let event = StoredEvent::decode(cut(&mut rest, usize::try_from(length).ok()?)?);
    let length = number(&mut rest, 2)?;
    let sink = cut(&mut rest, usize::try_from(length).ok()?)?;
    let sink = std::str::from_utf8(sink).ok()?.to_owned();
    Some(DeadLetter {
        key: EventKey { sink, slot, order },
        content: event.content,
        written_ms: event.written_ms,
        round: event.round,
        buried_ms,
        burial: Burial { kind, report: EventContent::decode(rest) },
    })
}

struct StoredEvent {
    written_ms: u64,
    round: u32,
    content: EventContent,
}

impl StoredEvent {
    /// Decodes an event. Other bytes count as sealed under a missing key, so that they are buried
    /// and hold back no other event.
    fn decode(bytes: &[u8]) -> StoredEvent {
        let mut rest = bytes;
        match (number(&mut rest, 8), number(&mut rest, 4)) {
            (Some(written_ms), Some(round)) => StoredEvent {
                written_ms,
                round: u32::try_from(round).unwrap_or(u32::MAX),
                content: EventContent::decode(rest),
            },
            _ => StoredEvent {
                written_ms: 0,
                round: 0,
                content: EventContent::Sealed(Bytes::copy_from_slice(bytes)),
            },
        }
    }
}

/// Takes bytes from the beginning of `rest`.
fn cut<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

/// Takes a number of at most 8 bytes from the beginning of `rest`.
fn number(rest: &mut &[u8], bytes: usize) -> Option<u64> {
    Some(cut(rest, bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Space;
    use crate::store::suite::slot;

    fn sealed(text: &'static str) -> EventContent {
        EventContent::Sealed(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_dead_letter_is_read_back_and_one_cut_short_is_none() {
        let slot = slot(Space::Enforced, 1);
        let order = EventOrder { opened_unix_ms: 1, version: u64::MAX, number: 3 };
        let content = EventContent::Plain(Bytes::from_static(b"content"));
        let burial = Burial { kind: DeadLetterKind::Gateway, report: sealed("report") };
        let key = EventKey { sink: "ledger".into(), slot, order };
        let expected = DeadLetter { key, content, written_ms: 9, round: 2, buried_ms: 77, burial };
        let value = dead_letter(&expected);
        assert_eq!(letter(&value), Some(expected));
        let needed = value.len() - sealed("report").encode().len();
        for cut in 0..needed {
            assert_eq!(letter(&value[..cut]), None, "{cut}");
        }
        assert_eq!(letter(&[&[7], &value[1..]].concat()), None, "another kind");
    }

    #[test]
    fn the_events_of_an_operation_are_cut_apart_and_those_cut_short_are_none() {
        let order = |number| EventOrder { opened_unix_ms: 1, version: 2, number };
        let [first, second] = [1, 2].map(|number| event(order(number), 9, &sealed("content")));
        let both = [&first[..], &second].concat();
        let parts = events_of(&both).unwrap();
        let orders: Vec<_> = parts.iter().map(|(order, _)| *order).collect();
        assert_eq!(orders, [1, 2].map(|number| order(number).encode()));
        assert!(parts.iter().all(|(_, event)| StoredEvent::decode(event).written_ms == 9));
        for cut in 0..both.len() {
            assert_eq!(events_of(&both[..cut]).is_some(), [0, first.len()].contains(&cut));
        }
    }

    #[test]
    fn an_event_that_another_program_wrote_is_never_delivered() {
        let odd = Value::BulkString(b"odd".to_vec());
        let slot = slot(Space::Enforced, 1);
        let order = EventOrder { opened_unix_ms: 1, version: 2, number: 3 };
        let parts = |operation: &[u8]| {
            let order = Value::BulkString(order.encode().to_vec());
            [Value::BulkString(operation.to_vec()), order, odd.clone(), odd.clone()]
        };
        let event = waiting_event("ledger", &parts(&member(&slot))).unwrap().unwrap();
        assert_eq!((event.content, event.attempts), (sealed("odd"), DeliveryAttempts::default()));
        assert_eq!(waiting_event("ledger", &parts(b"x")).unwrap(), None);
    }
}
