//! The events of a write, in the form for the change script.

use super::layout::KeyNames;
use super::outbox_values as values;
use super::wakes;
use crate::key::Slot;
use crate::store::outbox::OutboxEvent;

/// Bytes of an event in this process, beside its sink and its content.
const EVENT_BYTES: usize = size_of::<OutboxEvent>();

/// The events of a write.
#[derive(Debug, Clone, Default)]
pub struct WrittenEvents {
    /// The event for the event log; empty: none.
    pub log: Vec<u8>,
    /// The events for sinks.
    pub(super) outbox: StampedEvents,
}

/// Events for sinks, with the time of their change by the store's clock. The time is fixed once, so
/// that a write that is repeated after a loss writes the same events.
#[derive(Debug, Clone, Default)]
pub(super) struct StampedEvents {
    pub changed_ms: u64,
    pub events: Vec<OutboxEvent>,
}

impl WrittenEvents {
    /// Returns the bytes of the events.
    pub(super) fn bytes(&self) -> usize {
        let bytes =
            |event: &OutboxEvent| EVENT_BYTES + event.sink.capacity() + event.content.size();
        self.log.capacity() + self.outbox.events.iter().map(bytes).sum::<usize>()
    }
}

impl StampedEvents {
    /// Returns the arguments of the change script for these events, and adds its keys. Empty
    /// without events.
    pub(super) fn script_args(
        &self,
        names: &KeyNames,
        slot: &Slot,
        keys: &mut Vec<Vec<u8>>,
    ) -> Vec<Vec<u8>> {
        if self.events.is_empty() {
            return Vec::new();
        }
        let partition = slot.partition();
        keys.push(names.outbox_counts_key(partition));
        let mut args = vec![self.changed_ms.to_string().into_bytes(), names.outbox_channel()];
        for OutboxEvent { sink, order, content } in &self.events {
            keys.extend([
                names.outbox_due_key(partition, sink),
                names.outbox_events_key(partition, sink),
            ]);
            args.push(wakes::message(partition, sink));
            args.push(values::event(*order, self.changed_ms, content));
            args.push(format!("1,0,0,{} {sink}\n", content.size()).into_bytes());
        }
        args
    }
}
