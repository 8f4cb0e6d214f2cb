//! Events that vanish while they are attempted, as after a loss of the store's data.

use super::calling::{Calls, answered, calling_sink};
use super::*;
use crate::outbox::attempt::DeliveryAttempt;
use crate::outbox::ownership::Ownership;
use crate::outbox::shared::RelayShared;
use crate::store::outbox::{DeliveryAttempts, EventKey, RelayFence, WaitingEvent};

const RELAY: RelayFence = RelayFence(1);
const LEASE: Duration = Duration::from_secs(30);

/// Attempts an event that the store does not have, by a relay that owns the partition in its own
/// view. Returns whether the relay keeps the partition.
async fn keeps_partition(sink: &Arc<Sink>, owner: RelayFence) -> bool {
    let scene = Scene::new();
    let store = &scene.store;
    assert!(store.own_partition(0, owner, None).await.unwrap());
    let ownership = Ownership::new(scene.clock.clone(), LEASE, RELAY);
    assert!(ownership.renew(scene.clock.boot_ms(), LEASE));
    ownership.set(BTreeSet::from([0]), BTreeSet::new());
    let running = ownership.begin(0).unwrap();
    let RelayParts { store, clock, entropy, meter, .. } = scene.parts();
    let shared = Arc::new(RelayShared {
        outbox: store.outbox,
        notes: store.identities,
        records: store.records,
        ownership,
        clock,
        entropy,
        meter,
        known_states: Default::default(),
        relay_left: Arc::default(),
        states_changed: Arc::default(),
        backlogs_changed: Arc::default(),
        calls: Arc::default(),
    });
    shared.calls.set_caller(Calls::new(Duration::ZERO, |_, _| answered()));
    let (slot, record) = (slot(Space::Enforced, 1), completed(7));
    let order = EventOrder { opened_unix_ms: record.opened_unix_ms, version: 7, number: 0 };
    let event = WaitingEvent {
        key: EventKey { sink: LEDGER.into(), slot, order },
        content: EventContent::Plain(content(&slot, &record)),
        written_ms: shared.clock.unix_ms(),
        round: 0,
        attempts: DeliveryAttempts::default(),
    };
    let (read_ms, read_boot_ms) = (event.written_ms, shared.clock.boot_ms());
    let sink = sink.clone();
    DeliveryAttempt { shared, sink, event, read_ms, read_boot_ms, running }.run().await
}

#[tokio::test]
async fn an_event_that_vanishes_does_not_cost_the_relay_its_partition() {
    // The attempt fails, so that the event would be postponed; the call would note that it begins.
    let failing = Sink::with_client(settings(), Receiver::new(|_, _| REFUSED));
    for sink in [failing, calling_sink(0)] {
        assert!(keeps_partition(&sink, RELAY).await);
        assert!(!keeps_partition(&sink, RelayFence(2)).await, "another relay owns the partition");
    }
}
