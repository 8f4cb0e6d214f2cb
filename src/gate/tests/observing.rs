//! Observations of duplicates, and how they are exported.

use super::*;
use crate::event::{Observation, ObservationKind};
use crate::gate::observation_buffer::PendingObservation;
use crate::key::{SLOT_BYTES, Space, TenantId};
use crate::store::log::{EntryId, EventLog};

const FIRST: Slot = Slot::from_hash(Space::Enforced, [1; SLOT_BYTES]);
const SECOND: Slot = Slot::from_hash(Space::Enforced, [2; SLOT_BYTES]);

/// A gate with an event log, and its store.
fn logging() -> (Arc<Gate>, Arc<Faulty>) {
    let scene = Scene::new(&[]);
    let settings = Settings { log_keep: Some(Duration::from_secs(60)), ..Settings::default() };
    (scene.gate.under(settings), scene.store)
}

/// A duplicate of an operation.
fn duplicate(gate: &Gate, slot: Slot, tenant: u8) -> PendingObservation {
    let policy = crate::engine::tests::policy();
    let mut headers = http::HeaderMap::new();
    headers.insert(
        "traceparent",
        http::HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    );
    PendingObservation {
        slot: Some(slot),
        status: Some(201),
        ..gate.pending_observation(
            ObservationKind::Replayed,
            &policy,
            Some(TenantId::from_bytes([tenant; 32])),
            &headers,
        )
    }
}

/// The batches of observations in the store.
async fn batches(store: &Faulty) -> Vec<Vec<Observation>> {
    let batches = store.inner.observations(EntryId::default(), 100).await.unwrap();
    batches.iter().map(|(_, batch)| Observation::decode(batch).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn equal_duplicates_are_exported_as_one_observation_and_different_ones_are_not() {
    let (gate, store) = logging();
    let storm = |at_ms, waited| PendingObservation { at_ms, waited, ..duplicate(&gate, FIRST, 1) };
    let ms = |ms| Some(Duration::from_millis(ms));
    for one in [storm(10, ms(3)), storm(30, ms(9)), storm(20, None)] {
        gate.add_observation(one);
    }
    let others = [
        duplicate(&gate, SECOND, 1),
        duplicate(&gate, FIRST, 2),
        PendingObservation { status: Some(409), ..duplicate(&gate, FIRST, 1) },
        PendingObservation { kind: ObservationKind::Refused, ..duplicate(&gate, FIRST, 1) },
        PendingObservation { problem: Some("in-flight"), ..duplicate(&gate, FIRST, 1) },
        PendingObservation { route: "refunds".into(), ..duplicate(&gate, FIRST, 1) },
    ];
    let count = others.len();
    others.into_iter().for_each(|other| gate.add_observation(other));
    gate.export_pending().await;
    let exported = batches(&store).await.concat();
    assert_eq!(exported.len(), count + 1, "{exported:?}");
    let storm = exported.iter().find(|one| one.times.is_some()).unwrap();
    assert_eq!(
        (storm.at_ms, storm.until_ms, storm.times, storm.waited_ms),
        (10, Some(30), Some(3), Some(9))
    );
    assert_eq!(
        (storm.operation.as_str(), storm.route.as_str()),
        (FIRST.to_string().as_str(), "payments")
    );
    assert_eq!(storm.trace.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(exported.iter().map(Observation::requests).sum::<u64>(), 3 + count as u64);
    let scopes: std::collections::BTreeSet<_> =
        exported.iter().map(|one| one.scope.clone().unwrap()).collect();
    assert_eq!(scopes.len(), 2, "each scope has its own mark: {scopes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_exported_at_once_and_the_rest_after_a_pause() {
    let (gate, store) = logging();
    let task = tokio::spawn({
        let gate = gate.clone();
        async move { gate.export_observations(&CancellationToken::new()).await }
    });
    let began = tokio::time::Instant::now();
    let until_exported = async |requests: u64| {
        while batches(&store).await.concat().iter().map(Observation::requests).sum::<u64>()
            < requests
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        began.elapsed()
    };
    tokio::task::yield_now().await;
    (0..1024).for_each(|_| gate.add_observation(duplicate(&gate, FIRST, 1)));
    assert!(until_exported(1024).await < Duration::from_millis(10), "a batch is full");
    gate.add_observation(duplicate(&gate, FIRST, 1));
    assert!(until_exported(1025).await >= Duration::from_millis(400), "one waits for more");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn observations_that_do_not_fit_into_the_buffer_are_counted_as_lost() {
    let (gate, store) = logging();
    (0..8192).for_each(|_| gate.add_observation(duplicate(&gate, FIRST, 1)));
    assert_eq!(gate.meter.observations_lost.get(), 0);
    (0..3).for_each(|_| gate.add_observation(duplicate(&gate, FIRST, 1)));
    assert_eq!(gate.meter.observations_lost.get(), 3);
    gate.export_pending().await;
    let stored = batches(&store).await;
    assert_eq!(stored.len(), 8, "no batch is larger than the limit");
    assert_eq!(stored.concat().iter().map(Observation::requests).sum::<u64>(), 8192);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_is_marked_under_the_secrets_of_its_request() {
    let (gate, store) = logging();
    let secret: &[u8] = b"canary-secret-of-more-than-32-bytes";
    let hashing = Hashing::under([secret]).unwrap();
    let next = gate.under(Settings {
        hashing: hashing.clone(),
        log_keep: Some(Duration::from_secs(60)),
        ..Settings::default()
    });
    next.add_observation(duplicate(&next, FIRST, 1));
    // The first gate still exports after another configuration was loaded.
    gate.export_pending().await;
    let exported = batches(&store).await.concat();
    assert_eq!(exported[0].scope, Some(hashing.tenant_mark(&TenantId::from_bytes([1; 32]))));
}

#[tokio::test(start_paused = true)]
async fn pending_observations_are_exported_at_the_end_and_later_ones_are_not() {
    let (gate, store) = logging();
    let end = CancellationToken::new();
    gate.add_observation(duplicate(&gate, FIRST, 1));
    end.cancel();
    let began = tokio::time::Instant::now();
    gate.export_observations(&end).await;
    assert_eq!((batches(&store).await.concat().len(), began.elapsed()), (1, Duration::ZERO));
}
