//! The events of earlier writes of a slot. They may still wait for their sinks, so a loss of
//! records takes them, too, and they are restored together with the last write of the slot.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::written_events::{StampedEvent, StampedEvents};
use crate::store::outbox::EventOrder;

/// Limit for the bytes of the earlier events of one slot: those of four changes with the usual
/// limit of 64 KiB. An operation seldom has more changes within seconds. Beyond it, the oldest
/// events are removed first.
pub(super) const EARLIER_BYTES_MAX: usize = 256 << 10;

/// The events of earlier writes of a slot, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct EarlierEvents(VecDeque<EarlierEvent>);

#[derive(Debug, Clone)]
struct EarlierEvent {
    /// Time at which the write of this event is removed.
    until: Instant,
    stamped: StampedEvent,
}

impl EarlierEvents {
    /// Returns the bytes of the events.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|earlier| earlier.stamped.bytes()).sum()
    }

    /// Adds the earlier events of another write of the slot, and its own events.
    pub fn add(&mut self, earlier: EarlierEvents, own: StampedEvents, until: Instant) {
        self.0.extend(earlier.0);
        self.0.extend(own.0.into_iter().map(|stamped| EarlierEvent { until, stamped }));
    }

    /// Removes the events of writes that the servers had at this time.
    pub fn remove_intact(&mut self, intact_at: Instant) {
        self.0.retain(|earlier| earlier.until > intact_at);
    }

    /// Removes the events that are among others.
    pub fn remove_all(&mut self, others: &StampedEvents) {
        self.0.retain(|EarlierEvent { stamped: StampedEvent { event, .. }, .. }| {
            !others.0.iter().any(|other| other.is(&event.sink, event.order))
        });
    }

    /// Removes an event.
    pub fn remove(&mut self, sink: &str, order: EventOrder) {
        self.0.retain(|earlier| !earlier.stamped.is(sink, order));
    }

    /// Removes the oldest events, until the others have at most `limit` bytes.
    pub fn shrink(&mut self, limit: usize) {
        let mut bytes = self.bytes();
        while bytes > limit
            && let Some(oldest) = self.0.pop_front()
        {
            bytes -= oldest.stamped.bytes();
        }
    }

    /// Returns these events and others, in the order of their places.
    pub fn with(&self, others: &StampedEvents) -> StampedEvents {
        let earlier = self.0.iter().map(|earlier| &earlier.stamped);
        let mut all: Vec<_> = earlier.chain(&others.0).cloned().collect();
        all.sort_by_key(|stamped| stamped.event.order);
        StampedEvents(all)
    }
}
