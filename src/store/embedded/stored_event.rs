//! A waiting event as it is stored.

use redb::TableDefinition;

use super::outbox_keys::TIME_BYTES;
use crate::store::outbox::{DeliveryAttempts, EventContent, EventKey, WaitingEvent};

/// Waiting events: sink, operation and order -> time of the change, round and content.
pub(super) const EVENTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("outbox_events");

/// Bytes before the content of an event: the time of its change, and its round.
const STAMP_BYTES: usize = TIME_BYTES + 4;

/// An event as it is stored.
pub(super) struct StoredEvent {
    pub written_ms: u64,
    pub round: u32,
    pub content: EventContent,
}

impl StoredEvent {
    pub fn encode(&self) -> Vec<u8> {
        let (written, round) = (self.written_ms.to_be_bytes(), self.round.to_be_bytes());
        [&written[..], &round, &self.content.encode()].concat()
    }

    /// Decodes a stored event. `None` if it is malformed.
    pub fn decode(value: &[u8]) -> Option<StoredEvent> {
        let (stamp, content) = value.split_first_chunk::<STAMP_BYTES>()?;
        let (written, round) = stamp.split_first_chunk::<TIME_BYTES>()?;
        Some(StoredEvent {
            written_ms: u64::from_be_bytes(*written),
            round: u32::from_be_bytes(round.try_into().ok()?),
            content: EventContent::decode(content),
        })
    }

    pub fn waiting(self, key: EventKey, (count, first_ms): (u32, u64)) -> WaitingEvent {
        WaitingEvent {
            key,
            content: self.content,
            written_ms: self.written_ms,
            round: self.round,
            attempts: DeliveryAttempts { count, first_ms },
        }
    }
}
