//! Claims without a clear answer from the store, and the turns of claims.

use futures_util::future::join_all;

use super::*;
use crate::engine::{OnFailure, OnInFlight, tests::policy};
use crate::gate::share::CLAIMS_MAX;

fn fail_open() -> Policy {
    Policy { on_failure: OnFailure::FailOpen, ..policy() }
}

#[tokio::test(start_paused = true)]
async fn fail_open_runs_only_unknown_operations() {
    let scene = Scene::with(&[Fault::Refused], fail_open());
    assert_eq!(scene.pay().await, PAID);
    assert_eq!((scene.executed(), scene.record().await), (1, None), "unprotected");

    let waiting = Policy { on_in_flight: OnInFlight::Wait, ..fail_open() };
    let scene = Scene::with(&[], waiting);
    let (first, second) = tokio::join!(scene.pay(), async {
        while scene.executed() == 0 {
            tokio::task::yield_now().await;
        }
        *scene.store.unreadable.lock().unwrap() = 1;
        scene.pay().await
    });
    assert_eq!(first, PAID);
    assert!(unavailable(&second), "the first request was seen to run: {second:?}");
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_result_that_can_not_be_read_is_never_run_again_under_any_policy() {
    for policy in [policy(), fail_open()] {
        let scene = Scene::with(&[], policy);
        assert_eq!(scene.pay().await, PAID);
        scene.store.faults.lock().unwrap().extend([Fault::Large, Fault::Large]);
        *scene.store.unreadable.lock().unwrap() = 1;
        assert!(unavailable(&scene.pay().await));
        assert_eq!(scene.pay().await, REPLAYED);
        assert_eq!(scene.executed(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_a_large_result_is_read_leaves_no_claim() {
    let scene = Scene::new(&[]);
    assert_eq!(scene.pay().await, PAID);
    scene.settle().await;
    scene.store.faults.lock().unwrap().push_back(Fault::Large);
    scene.store.hangs.store(true, Ordering::SeqCst);
    assert!(tokio::time::timeout(WORK, scene.pay()).await.is_err());
    assert!(scene.store.faults.lock().unwrap().is_empty() && scene.gate.tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn claims_of_one_address_above_the_limit_wait_for_a_turn_and_are_then_refused() {
    const MORE: usize = 8;
    for (address, claimed) in
        [(Some(Arc::<AddressShare>::default()), CLAIMS_MAX), (None, CLAIMS_MAX + MORE)]
    {
        let scene = Scene::new(&[Fault::Silent; CLAIMS_MAX + MORE]);
        let all = join_all(
            (0..CLAIMS_MAX + MORE)
                .map(|_| tokio::time::timeout(WORK * 2, scene.pay_from(address.as_ref()))),
        );
        let refused = all
            .await
            .into_iter()
            .filter(|answer| matches!(answer, Ok(Err(Refusal::Overloaded))))
            .count();
        let begun = CLAIMS_MAX + MORE - scene.store.faults.lock().unwrap().len();
        assert_eq!((begun, refused), (claimed, CLAIMS_MAX + MORE - claimed));
    }
}

#[tokio::test(start_paused = true)]
async fn one_address_takes_half_of_the_permits_for_waiters() {
    let scene = Scene::with(&[], Policy { on_in_flight: OnInFlight::Wait, ..policy() });
    let scene =
        Scene { gate: scene.gate.under(Settings { waiters: 2, ..Settings::default() }), ..scene };
    let (one, other) = (Arc::<AddressShare>::default(), Arc::<AddressShare>::default());
    let (first, answers) = tokio::join!(scene.pay(), async {
        while scene.executed() == 0 {
            tokio::task::yield_now().await;
        }
        tokio::join!(
            scene.pay_from(Some(&one)),
            scene.pay_from(Some(&one)),
            scene.pay_from(Some(&other))
        )
    });
    assert_eq!((first, answers.0, answers.2), (PAID, REPLAYED, REPLAYED));
    assert!(matches!(answers.1, Err(Refusal::Overloaded)), "{:?}", answers.1);
    assert!(one.is_idle() && other.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_keeps_its_turn_until_its_claim_is_given_up() {
    let (scene, address) =
        (Scene::new(&[Fault::Silent; CLAIMS_MAX]), Arc::<AddressShare>::default());
    let leaving = join_all(
        (0..CLAIMS_MAX).map(|_| tokio::time::timeout(WORK, scene.pay_from(Some(&address)))),
    )
    .await;
    assert!(leaving.iter().all(Result::is_err));
    let free = || futures_util::FutureExt::now_or_never(address.turn()).is_some();
    assert!(!free(), "the store may still send all of their answers");
    scene.settle().await;
    assert!(free());
}
