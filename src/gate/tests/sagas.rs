//! Requests and calls that meet the record of a saga, or a bar.

use super::*;
use crate::engine::tests::policy;
use crate::engine::{ClaimOver, Next, OnInFlight, bar, saga_claim, saga_progress};
use crate::gate::{CallOutcome, InternalCaller, InternalOperation};
use crate::record::{PrivateContent, SagaPhase};

const OWNER: Fence = Fence(99);

fn log() -> PrivateContent {
    PrivateContent::Open(Bytes::from_static(b"log"))
}

impl Scene {
    async fn put(&self, slot: &Slot, next: &Next) {
        let swap = self.store.inner.swap(slot, None, &next.record, next.lifetime).await;
        assert_eq!(swap.unwrap(), Swap::Stored);
    }

    /// Puts a saga into the slot of the request that [`Scene::pay`] sends.
    async fn put_saga(&self, phase: SagaPhase) -> Slot {
        let (slot, policy) = (self.operation().slot, &self.guarded.route.policy);
        let (asked, fresh) = (self.asked(OWNER), Version(7));
        let begun = saga_claim(&asked, ClaimOver::Nothing, fresh, 1, policy, log());
        self.put(&slot, &saga_progress(&begun.record, phase, log(), policy)).await;
        slot
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_of_a_sagas_request_gets_the_location_of_the_saga() {
    for on_in_flight in [OnInFlight::Reject, OnInFlight::Wait] {
        let scene = Scene::with(&[], Policy { on_in_flight, ..policy() });
        let slot = scene.put_saga(SagaPhase::Running).await;
        let refusal = scene.pay().await.unwrap_err();
        assert_eq!(refusal.saga(), Some(slot), "{refusal:?}");
        assert!(matches!(refusal, Refusal::InFlight { .. }), "{refusal:?}");
        assert_eq!(scene.executed(), 0);
    }
    let scene = Scene::new(&[]);
    let slot = scene.put_saga(SagaPhase::Stuck).await;
    assert_eq!(scene.pay().await, Err(Refusal::SagaStuck { slot, held: None }));
}

#[tokio::test(start_paused = true)]
async fn a_saga_without_its_owner_is_never_marked_uncertain() {
    let scene = Scene::new(&[]);
    let slot = scene.put_saga(SagaPhase::Running).await;
    let keep = Duration::from_secs(600);
    assert!(scene.store.renew(&slot, OWNER, Duration::ZERO, keep).await.unwrap());
    let before = scene.store.load(&slot).await.unwrap().unwrap();
    assert!(before.lease_is_over());
    let policy = &scene.guarded.route.policy;
    let found = scene.gate.mark_overdue(&slot, policy).await.unwrap().unwrap();
    assert_eq!(found.record, before.record);
    assert_eq!(scene.store.due(10).await.unwrap(), []);
    assert!(matches!(scene.pay().await, Err(Refusal::InFlight { saga: true, .. })));
    assert_eq!(scene.store.load(&slot).await.unwrap().unwrap().record, before.record);
}

#[tokio::test(start_paused = true)]
async fn a_barred_call_is_never_sent() {
    let scene = Scene::new(&[]);
    for continues in [false, true] {
        let operation = InternalOperation {
            guarded: &scene.guarded,
            caller: InternalCaller::Saga("checkout"),
            key: "step",
            hops: 0,
            continues,
            only_asks: false,
        };
        let slot = scene.gate.slot_of_call(&operation);
        if !continues {
            let policy = &scene.guarded.route.policy;
            scene.put(&slot, &bar(None, OWNER, Version(7), 1, policy).unwrap()).await;
        }
        let request = Request::post("/pay").body(Bytes::new()).unwrap();
        let executed = scene.executed.clone();
        let service = service_fn(move |_: Request<Payload<Full<Bytes>>>| {
            executed.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, ForwardError>(Response::new(Full::new(Bytes::new()))) }
        });
        let outcome = scene.gate.call(operation, request, service).await;
        assert_eq!(outcome, CallOutcome::Barred { operation: slot });
        assert_eq!(scene.executed(), 0);
    }
}
