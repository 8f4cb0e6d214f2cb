//! `[outbox]`: settings of all events.

use super::read::{Table, Value};
use super::store::StoreUrl;
use crate::outbox::settings::OutboxSettings;

const SOURCE_EXPECTED: &str =
    "a URI of at most 256 bytes such as \"urn:onceward\" or \"https://payments.example.com\"";

/// Longest source, in bytes. It is stored with every operation that publishes, and is part of every
/// event.
const SOURCE_BYTES_MAX: usize = 256;
/// Smallest limit for the events of a change. The fields that every event has need about this much.
const EVENT_BYTES_MIN: u64 = 1 << 10;
/// Largest limit for the events of a change: 16 MiB. They are written in the same step as the
/// record, and during this step a Redis server does nothing else.
const EVENT_BYTES_MAX: u64 = 16 << 20;

/// Reads `[outbox]`. `store` is `None` if the store's url is faulty.
pub(super) fn read(table: Table<'_>, store: Option<&StoreUrl>) -> Option<OutboxSettings> {
    let source = table.get("source").and_then(|value| value.parsed(SOURCE_EXPECTED, source));
    let event_bytes = table.get("event_bytes").and_then(|value| read_event_bytes(&value));
    let relay = table.get("relay").and_then(|value| value.boolean());
    if relay == Some(false) && matches!(store, Some(StoreUrl::Memory | StoreUrl::File(_))) {
        table.report.note(
            &table.span_of("relay"),
            "no other process can read this store, so nothing would be delivered: set it to true, \
             or use a store in Redis",
        );
    }
    table.finish();
    Some(OutboxSettings { source: source?, event_bytes: event_bytes?, relay: relay? })
}

fn read_event_bytes(value: &Value<'_>) -> Option<u64> {
    let bytes = value.size(EVENT_BYTES_MIN)?;
    if bytes > EVENT_BYTES_MAX {
        value.fault("expected at most \"16MiB\": events are written in one step with the record");
        return None;
    }
    Some(bytes)
}

/// Checks that a text has only characters of a URI reference (RFC 3986).
fn source(text: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
    let is_escaped = |rest: &str| {
        rest.get(..2).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    let sound = (1..=SOURCE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_plain)
        && text.split('%').skip(1).all(is_escaped);
    sound.then(|| text.to_owned())
}
