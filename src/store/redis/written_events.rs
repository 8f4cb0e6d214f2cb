//! The events of a write, in the form for the change script.

use super::layout::KeyNames;
use super::outbox_values as values;
use super::wakes;
use crate::key::Slot;
use crate::store::outbox::{EventOrder, OutboxEvent};

/// Bytes of an event in this process, beside its sink and its content.
const EVENT_BYTES: usize = size_of::<StampedEvent>();

/// The events of a write.
#[derive(Debug, Clone, Default)]
pub struct WrittenEvents {
    /// The event for the event log; empty: none.
    pub log: Vec<u8>,
    /// The events for sinks.
    pub(super) outbox: StampedEvents,
}

/// An event for a sink, with the time of its change by the store's clock. The time is fixed once,
/// so that a write that is repeated after a loss writes the same event.
#[derive(Debug, Clone)]
pub(super) struct StampedEvent {
    pub changed_ms: u64,
    pub event: OutboxEvent,
}

/// Events for sinks.
#[derive(Debug, Clone, Default)]
pub(super) struct StampedEvents(pub Vec<StampedEvent>);

impl WrittenEvents {
    /// Returns the bytes of the events.
    pub(super) fn bytes(&self) -> usize {
        self.log.capacity() + self.outbox.0.iter().map(StampedEvent::bytes).sum::<usize>()
    }
}

impl StampedEvent {
    /// Returns the bytes of the event.
    pub(super) fn bytes(&self) -> usize {
        EVENT_BYTES + self.event.sink.capacity() + self.event.content.size()
    }

    /// Returns whether this is the event for `sink` in this place among those of its slot.
    pub(super) fn is(&self, sink: &str, order: EventOrder) -> bool {
        self.event.order == order && self.event.sink == sink
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
        let Some(first_ms) = self.0.iter().map(|stamped| stamped.changed_ms).min() else {
            return Vec::new();
        };
        let partition = slot.partition();
        keys.push(names.outbox_counts_key(partition));
        let mut args = vec![
            self.0.len().to_string().into_bytes(),
            first_ms.to_string().into_bytes(),
            names.outbox_channel(),
        ];
        for StampedEvent { changed_ms, event } in &self.0 {
            let OutboxEvent { sink, order, content } = event;
            keys.extend([
                names.outbox_due_key(partition, sink),
                names.outbox_events_key(partition, sink),
            ]);
            args.push(wakes::message(partition, sink));
            args.push(values::event(*order, *changed_ms, content));
            args.push(format!("1,0,0,{} {sink}\n", content.size()).into_bytes());
        }
        args
    }
}
