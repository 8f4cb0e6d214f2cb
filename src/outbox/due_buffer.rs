//! The due events that a worker has read and not yet attempted.
//!
//! A read also returns the events under way, because the store does not leave them out. So a worker
//! with many attempts in one partition reads many events at once, and keeps those that it can't
//! attempt yet. Otherwise each attempt would cost a read of all events under way.
//!
//! An event in the buffer is still due, because only its attempt changes it: the relay that owns
//! the partition attempts each operation once at a time, and a worker takes an event out of the
//! buffer to attempt it. So the buffer of a partition is used only while the relay has owned its
//! partitions without a change ([`BufferedEvents::ownership`]).
//!
//! Danger: an operator can requeue an earlier event of the same operation meanwhile, and a store
//! can restore one after a loss. So a buffer is used only for a short time.

use std::collections::{BTreeMap, VecDeque};

use crate::store::outbox::WaitingEvent;

/// Limit for the bytes of all events in the buffer of a sink. Beyond it, events are read again.
const BYTES_MAX: usize = 1 << 20;
/// Bytes of an event beside its content: its key, and its part of the buffer.
const EVENT_BYTES: usize = 256;
/// Longest time, in ms, for which events stay in the buffer. In this time an earlier event of an
/// operation, which was requeued or restored, can be attempted after a later one.
const AGE_MAX_MS: u64 = 2_000;

/// The buffer of a worker, by partition.
#[derive(Debug, Default)]
pub(super) struct DueBuffer {
    partitions: BTreeMap<u16, BufferedEvents>,
    /// Bytes of all events.
    bytes: usize,
    /// The [`BufferedEvents::ownership`] of all events.
    ownership: u64,
}

/// The events of one read.
#[derive(Debug, Default, PartialEq)]
pub(super) struct BufferedEvents {
    /// The events, at most one of each operation. The first is attempted first.
    pub events: VecDeque<WaitingEvent>,
    /// The store's time at the read, in ms since 1970.
    pub read_ms: u64,
    /// Time before the read, by the gateway's clock.
    pub read_boot_ms: u64,
    /// The number of changes of the relay's partitions before the read.
    pub ownership: u64,
}

impl DueBuffer {
    /// Takes the events of a partition. Returns `None` if there are none, or if they must be read
    /// again.
    pub fn take(&mut self, partition: u16, boot_ms: u64, ownership: u64) -> Option<BufferedEvents> {
        self.keep_only(ownership);
        let taken = self.partitions.remove(&partition)?;
        self.bytes -= bytes_of(&taken.events);
        let is_young = boot_ms.saturating_sub(taken.read_boot_ms) <= AGE_MAX_MS;
        is_young.then_some(taken)
    }

    /// Keeps events of a partition, in place of those from an earlier read. Drops the last ones if
    /// they are too large.
    pub fn put(&mut self, partition: u16, mut buffered: BufferedEvents) {
        self.keep_only(buffered.ownership);
        if let Some(before) = self.partitions.remove(&partition) {
            self.bytes -= bytes_of(&before.events);
        }
        let mut bytes = bytes_of(&buffered.events);
        while self.bytes + bytes > BYTES_MAX
            && let Some(last) = buffered.events.pop_back()
        {
            bytes -= size(&last);
        }
        if !buffered.events.is_empty() {
            self.bytes += bytes;
            self.partitions.insert(partition, buffered);
        }
    }

    /// Drops all events, if the relay's partitions have changed since they were read.
    fn keep_only(&mut self, ownership: u64) {
        if self.ownership != ownership {
            *self = DueBuffer { ownership, ..DueBuffer::default() };
        }
    }
}

fn bytes_of(events: &VecDeque<WaitingEvent>) -> usize {
    events.iter().map(size).sum()
}

fn size(event: &WaitingEvent) -> usize {
    EVENT_BYTES + event.content.size()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::key::Space;
    use crate::store::outbox::{DeliveryAttempts, EventContent, EventKey, EventOrder};
    use crate::store::suite::slot;

    const OWNERSHIP: u64 = 3;
    const READ_AT: u64 = 10_000;

    fn events(count: u64, bytes: usize) -> BufferedEvents {
        let event = |n| WaitingEvent {
            key: EventKey {
                sink: "ledger".into(),
                slot: slot(Space::Enforced, n),
                order: EventOrder { opened_unix_ms: 1, version: n, number: 0 },
            },
            content: EventContent::Plain(Bytes::from(vec![b'x'; bytes])),
            written_ms: 5,
            round: 0,
            attempts: DeliveryAttempts::default(),
        };
        let events = (0..count).map(event).collect();
        BufferedEvents { events, read_ms: 7, read_boot_ms: READ_AT, ownership: OWNERSHIP }
    }

    #[test]
    fn events_are_taken_once_and_only_while_they_are_young_and_their_partition_is_kept() {
        let mut buffer = DueBuffer::default();
        let mut taken_at = |boot_ms, ownership| {
            buffer.put(1, events(2, 10));
            assert_eq!(buffer.take(2, boot_ms, ownership), None, "another partition");
            let taken = buffer.take(1, boot_ms, ownership);
            assert_eq!((buffer.take(1, boot_ms, ownership), buffer.bytes), (None, 0));
            taken
        };
        assert_eq!(taken_at(READ_AT + AGE_MAX_MS, OWNERSHIP), Some(events(2, 10)));
        assert_eq!(taken_at(READ_AT + AGE_MAX_MS + 1, OWNERSHIP), None);
        assert_eq!(taken_at(READ_AT, OWNERSHIP + 1), None);
    }

    #[test]
    fn events_beyond_the_limit_are_not_kept() {
        let mut buffer = DueBuffer::default();
        buffer.put(1, events(9, BYTES_MAX / 12));
        buffer.put(2, events(9, BYTES_MAX / 12));
        assert!(buffer.bytes <= BYTES_MAX);
        let mut left = |partition| {
            buffer.take(partition, READ_AT, OWNERSHIP).map_or(0, |taken| taken.events.len())
        };
        assert_eq!((left(1), left(2)), (9, 2), "the first of a read are kept");
        buffer.put(1, events(9, BYTES_MAX / 12));
        buffer.put(1, events(1, BYTES_MAX));
        assert_eq!((buffer.bytes, buffer.partitions.len()), (0, 0), "one that is too large");
    }
}
