//! The wake-ups of this process's relays. The server publishes one for each event that is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, broadcast, watch};

use crate::store::outbox::{OutboxWake, WAKES_KEPT};

/// The wake-ups of a store. Cheap to clone.
#[derive(Clone)]
pub(super) struct OutboxWakes(Arc<Inner>);

struct Inner {
    sender: broadcast::Sender<OutboxWake>,
    /// Whether this process ever had a relay.
    wanted: watch::Sender<bool>,
    /// Whether the server has confirmed the subscription.
    confirmed: AtomicBool,
    /// Notified when a subscription begins: wake-ups before it were missed.
    begun: Notify,
}

impl OutboxWakes {
    /// Returns wake-ups without a subscription.
    pub(super) fn new() -> OutboxWakes {
        OutboxWakes(Arc::new(Inner {
            sender: broadcast::Sender::new(WAKES_KEPT),
            wanted: watch::Sender::new(false),
            confirmed: AtomicBool::new(false),
            begun: Notify::new(),
        }))
    }

    /// Returns the wake-ups from now on. The first call begins the subscription.
    pub(super) fn receive(&self) -> broadcast::Receiver<OutboxWake> {
        let receiver = self.0.sender.subscribe();
        self.0.wanted.send_replace(true);
        receiver
    }

    /// Waits until a subscription is wanted.
    pub(super) async fn wanted(&self) {
        // The sender is as old as this object, so there is no error.
        let _ = self.0.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// Marks the subscription as confirmed.
    pub(super) fn confirm(&self) {
        self.0.confirmed.store(true, Ordering::Relaxed);
        self.0.begun.notify_one();
    }

    /// Marks the subscription as lost.
    pub(super) fn lost(&self) {
        self.0.confirmed.store(false, Ordering::Relaxed);
    }

    /// Returns when a subscription has begun since the last call.
    pub(super) async fn begun(&self) {
        self.0.begun.notified().await;
    }

    /// Wakes the relays of this process.
    pub(super) fn send(&self, partition: u16, sink: &str) {
        // An error means that there is no relay.
        _ = self.0.sender.send(OutboxWake { partition, sink: sink.to_owned() });
    }

    /// Wakes the relays of this process if there is no subscription. If the server's user has no
    /// right to subscribe, nothing else wakes them.
    pub(super) fn send_unconfirmed(&self, partition: u16, sink: &str) {
        if !self.0.confirmed.load(Ordering::Relaxed) {
            self.send(partition, sink);
        }
    }

    /// Wakes the relays as a message demands.
    pub(super) fn received(&self, message: &[u8]) {
        let parts = message.split_first_chunk();
        if let Some((partition, sink)) = parts
            && let Ok(sink) = std::str::from_utf8(sink)
        {
            self.send(u16::from_be_bytes(*partition), sink);
        }
    }
}

/// Encodes a message.
pub(super) fn message(partition: u16, sink: &str) -> Vec<u8> {
    [&partition.to_be_bytes()[..], sink.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_wakes_and_another_programs_message_does_not() {
        let wakes = OutboxWakes::new();
        wakes.received(&message(1, "nobody listens"));
        let mut receiver = wakes.receive();
        wakes.wanted().await;
        wakes.received(b"x");
        wakes.received(&message(258, "ledger"));
        wakes.send_unconfirmed(3, "mail");
        wakes.confirm();
        wakes.begun().await;
        wakes.send_unconfirmed(4, "the message wakes");
        wakes.received(&message(u16::MAX, ""));
        let of = |partition, sink: &str| OutboxWake { partition, sink: sink.into() };
        for expected in [of(258, "ledger"), of(3, "mail"), of(u16::MAX, "")] {
            assert_eq!(receiver.try_recv(), Ok(expected));
        }
        assert!(receiver.try_recv().is_err());
    }
}
