//! The names of the outbox in Redis. Those of a partition share its hash tag, as all its names do.

use super::layout::KeyNames;

/// The partition with the hash tag of the relays.
pub(super) const RELAYS_PARTITION: u16 = 0;

impl KeyNames {
    /// Returns the channel of the wake-ups for relays, one for the whole store. A message is the
    /// partition (2 bytes) and the sink.
    pub(super) fn outbox_channel(&self) -> Vec<u8> {
        self.of_store("outbox")
    }

    /// Returns the key of the store's relays, a sorted set: their fences by the end of their lease.
    pub(super) fn outbox_relays_key(&self) -> Vec<u8> {
        self.in_partition(RELAYS_PARTITION, b"outbox_relays")
    }

    /// Returns the key of the relay that owns a partition's outbox: its fence. It has no expiry:
    /// only another relay takes a partition over.
    pub(super) fn outbox_owner_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"outbox_owner")
    }

    /// Returns the key of the counts of a partition's events, a text: see outbox_counts.lua. One
    /// MGET reads the texts of all partitions.
    pub(super) fn outbox_counts_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"outbox_counts")
    }

    /// Returns the key of a sink's operations with events, by the time at which the first event is
    /// due.
    pub(super) fn outbox_due_key(&self, partition: u16, sink: &str) -> Vec<u8> {
        self.of_sink(partition, "outbox_due", sink)
    }

    /// Returns the key of a sink's events, a hash by operation: see outbox_insert.lua.
    pub(super) fn outbox_events_key(&self, partition: u16, sink: &str) -> Vec<u8> {
        self.of_sink(partition, "outbox_events", sink)
    }

    /// Returns the key of the attempts of a sink's old events, a hash by operation and order.
    pub(super) fn outbox_attempts_key(&self, partition: u16, sink: &str) -> Vec<u8> {
        self.of_sink(partition, "outbox_attempts", sink)
    }

    /// Returns the key of a sink's old events by the time of the change: operation and order. An
    /// event is old if the due time of its operation does not show that time any more: after an
    /// attempt, a requeue, or a wait behind another event.
    pub(super) fn outbox_old_key(&self, partition: u16, sink: &str) -> Vec<u8> {
        self.of_sink(partition, "outbox_old", sink)
    }

    /// Returns the key of a partition's dead letters, a hash by id.
    pub(super) fn outbox_dead_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"outbox_dead")
    }

    /// Returns the key of the ids of a partition's dead letters, by the time of the burial.
    pub(super) fn outbox_dead_at_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"outbox_dead_at")
    }

    /// Returns the keys of a partition and a sink, of each kind one.
    pub(super) fn outbox_keys(&self, partition: u16, sink: &str) -> [Vec<u8>; 9] {
        [
            self.outbox_relays_key(),
            self.outbox_owner_key(partition),
            self.outbox_counts_key(partition),
            self.outbox_due_key(partition, sink),
            self.outbox_events_key(partition, sink),
            self.outbox_attempts_key(partition, sink),
            self.outbox_old_key(partition, sink),
            self.outbox_dead_key(partition),
            self.outbox_dead_at_key(partition),
        ]
    }

    fn of_sink(&self, partition: u16, name: &str, sink: &str) -> Vec<u8> {
        let mut key = self.in_partition(partition, name.as_bytes());
        key.reserve_exact(1 + sink.len());
        key.push(b':');
        key.extend_from_slice(sink.as_bytes());
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_as_they_are() {
        let names = KeyNames::new("onceward").unwrap();
        for (name, expected) in [
            (names.outbox_channel(), "onceward:outbox"),
            (names.outbox_relays_key(), "onceward:{p0}:outbox_relays"),
            (names.outbox_owner_key(7), "onceward:{p7}:outbox_owner"),
            (names.outbox_counts_key(7), "onceward:{p7}:outbox_counts"),
            (names.outbox_due_key(7, "ledger"), "onceward:{p7}:outbox_due:ledger"),
            (names.outbox_old_key(7, "ledger"), "onceward:{p7}:outbox_old:ledger"),
            (names.outbox_events_key(7, "ledger"), "onceward:{p7}:outbox_events:ledger"),
            (names.outbox_attempts_key(7, "ledger"), "onceward:{p7}:outbox_attempts:ledger"),
            (names.outbox_dead_key(7), "onceward:{p7}:outbox_dead"),
            (names.outbox_dead_at_key(7), "onceward:{p7}:outbox_dead_at"),
        ] {
            assert_eq!(String::from_utf8(name).unwrap(), expected);
        }
    }
}
