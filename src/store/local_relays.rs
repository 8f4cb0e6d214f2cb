//! The relays of a store that only this process uses: their leases, and their wake-ups.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;

use super::outbox::{OutboxWake, RelayFence, WAKES_KEPT};

/// The only partition of such a store.
pub(super) const PARTITION: u16 = 0;

/// The relays of a store.
pub(super) struct LocalRelays {
    /// The times at which the leases end, in ms since 1970 by the store's clock.
    leases: Mutex<BTreeMap<RelayFence, u64>>,
    wakes: broadcast::Sender<OutboxWake>,
}

impl Default for LocalRelays {
    fn default() -> LocalRelays {
        LocalRelays { leases: Mutex::default(), wakes: broadcast::Sender::new(WAKES_KEPT) }
    }
}

impl LocalRelays {
    /// See [`super::Outbox::attend`].
    pub fn attend(&self, relay: RelayFence, lease: Duration, now_ms: u64) -> Vec<RelayFence> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|_, until_ms| *until_ms > now_ms);
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        leases.insert(relay, now_ms.saturating_add(lease_ms));
        leases.keys().copied().collect()
    }

    /// See [`super::Outbox::leave`].
    pub fn leave(&self, relay: RelayFence) {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).remove(&relay);
    }

    /// See [`super::Outbox::wakes`].
    pub fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.wakes.subscribe()
    }

    /// Wakes the relays for a sink.
    pub fn wake(&self, sink: &str) {
        // Without a relay the text would be copied for nobody.
        if self.wakes.receiver_count() > 0 {
            // An error means that the last relay has left meanwhile.
            _ = self.wakes.send(OutboxWake { partition: PARTITION, sink: sink.to_owned() });
        }
    }
}
