//! The store processes a limited number of claims of one client address at the same time.

use super::*;
use crate::gate::AddressShare;

/// Claims of one address that the store processes at the same time; see `share.rs`.
const AT_ONCE: usize = 32;
const FAULTS: usize = 100;

/// Sends a payment with a key of its own from an address, in a task of its own.
fn begin(scene: &Scene, key: usize, address: Option<&Arc<AddressShare>>) {
    let upstream = service_fn(|_: Request<Payload<Full<Bytes>>>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"paid"))))
    });
    let (gate, guarded) = (scene.gate.clone(), scene.guarded.clone());
    let mut request = buffered(&gate, &guarded, &key.to_string());
    request.context.address_share = address.cloned();
    tokio::spawn(async move { gate.handle(&guarded, request, upstream).await.map(|_| ()) });
}

/// Returns the number of claims at the store, once no request makes progress any more.
async fn at_the_store(scene: &Scene) -> usize {
    tokio::time::sleep(Duration::from_millis(1)).await;
    FAULTS - scene.store.faults.lock().unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn claims_of_one_address_beyond_a_bound_wait_and_those_of_others_do_not() {
    // The store never answers.
    let scene = Scene::new(&[Fault::Silent; FAULTS]);
    let (one, other) = (Arc::default(), Arc::default());
    (0..AT_ONCE + 8).for_each(|key| begin(&scene, key, Some(&one)));
    assert_eq!(at_the_store(&scene).await, AT_ONCE);
    begin(&scene, 200, Some(&other));
    assert_eq!(at_the_store(&scene).await, AT_ONCE + 1, "another address has turns of its own");
    (300..300 + AT_ONCE + 8).for_each(|key| begin(&scene, key, None));
    assert_eq!(at_the_store(&scene).await, 2 * AT_ONCE + 9, "requests without an address");
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_given_back_when_the_store_has_answered() {
    let scene = Scene::new(&[]);
    let one = Arc::default();
    (0..3 * AT_ONCE).for_each(|key| begin(&scene, key, Some(&one)));
    tokio::time::sleep(Duration::from_millis(1)).await;
    scene.settle().await;
    let listed = scene.store.inner.list(Listing::All, None, 4 * AT_ONCE).await.unwrap();
    assert_eq!(listed.records.len(), 3 * AT_ONCE);
}
