//! Calls of the gateway's own components. They run at most once, like a client's request, and no
//! client reaches their records.

use proptest::prelude::*;

use super::*;
use crate::engine::tests::policy;
use crate::engine::{
    CallerRule, KeyPlace, OnFailure, OnInFlight, OnMismatch, OnUncertain, Probe, ScopeRule,
    StatusRules, UpstreamKey,
};
use crate::gate::{CallOutcome, InternalCaller, InternalOperation};
use crate::key::{Caller, OperationParts, Scope, Space};
use crate::record::ReplyBody;

/// The answer of an upstream to one request.
#[derive(Clone, Copy)]
enum Upstream {
    Answers(u16),
    /// The connection breaks after the request was sent.
    Breaks,
    /// There is no connection.
    Unreachable,
}

impl Scene {
    fn internal_operation<'o>(&'o self, key: &'o str) -> InternalOperation<'o> {
        InternalOperation {
            guarded: &self.guarded,
            caller: InternalCaller::Sink("ledger"),
            key,
            hops: 0,
            continues: false,
            only_asks: false,
        }
    }

    /// Calls under the key `k`. The upstream counts the request and answers it.
    async fn call(&self, upstream: Upstream) -> CallOutcome {
        self.call_with("{}", upstream).await
    }

    async fn call_with(&self, body: &'static str, upstream: Upstream) -> CallOutcome {
        let request = Request::post("/pay").body(Bytes::from_static(body.as_bytes())).unwrap();
        self.gate.call(self.internal_operation("k"), request, self.service(upstream)).await
    }

    fn service(
        &self,
        upstream: Upstream,
    ) -> impl tower_service::Service<
        Request<Payload<Full<Bytes>>>,
        Response = Response<Full<Bytes>>,
        Error = ForwardError,
        Future: Send,
    > + Send
    + use<> {
        let executed = self.executed.clone();
        service_fn(move |_: Request<Payload<Full<Bytes>>>| {
            let executed = executed.clone();
            async move {
                let status = match upstream {
                    Upstream::Unreachable => {
                        return Err(ForwardError::NeverSent("refused".into()));
                    }
                    Upstream::Breaks => 0,
                    Upstream::Answers(status) => status,
                };
                executed.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(WORK).await;
                if status == 0 {
                    return Err(ForwardError::Broken("reset".into()));
                }
                let body = Full::new(Bytes::from_static(b"booked"));
                Ok(Response::builder().status(status).body(body).unwrap())
            }
        })
    }

    fn operation_slot(&self) -> Slot {
        let parts = OperationParts {
            space: Space::Enforced,
            route: "payments",
            scope: &Scope::internal("sink", "ledger"),
            key: b"k",
            variant: b"",
        };
        Hashing::default().identity(&parts, Caller::nobody()).0
    }
}

/// Status, body and replay mark of an answered call.
fn answer(outcome: &CallOutcome) -> Option<(u16, &[u8], bool)> {
    let CallOutcome::Answered { reply, replayed, .. } = outcome else { return None };
    let body: &[u8] = match &reply.body {
        ReplyBody::Whole(body) => body,
        ReplyBody::NotStored | ReplyBody::Sealed(_) => b"",
    };
    Some((reply.status.as_u16(), body, *replayed))
}

#[tokio::test(start_paused = true)]
async fn two_calls_of_one_operation_run_once_and_later_calls_get_the_stored_reply() {
    let scene = Scene::new(&[]);
    let (first, second) =
        tokio::join!(scene.call(Upstream::Answers(201)), scene.call(Upstream::Answers(201)));
    assert_eq!(answer(&first), Some((201, b"booked".as_slice(), false)));
    assert!(matches!(second, CallOutcome::InFlight { .. }), "{second:?}");
    let third = scene.call(Upstream::Answers(500)).await;
    assert_eq!(answer(&third), Some((201, b"booked".as_slice(), true)));
    assert_eq!(scene.executed(), 1);
    let (CallOutcome::Answered { reply: stored, operation, .. }, slot) =
        (third, scene.operation_slot())
    else {
        unreachable!()
    };
    let CallOutcome::Answered { reply, .. } = first else { unreachable!() };
    assert_eq!((reply, operation), (stored, slot), "the first call gets the stored reply");
}

#[tokio::test(start_paused = true)]
async fn neither_the_first_call_nor_a_later_one_gets_a_field_that_is_never_stored() {
    let drop_headers = vec![http::header::DATE];
    let scene = Scene::with(&[], Policy { drop_headers, ..policy() });
    for _ in 0..2 {
        let CallOutcome::Answered { reply, .. } = scene.call(Upstream::Answers(201)).await else {
            unreachable!()
        };
        assert!(reply.headers.is_empty(), "{:?}", reply.headers);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_uncertain_and_the_next_call_does_not_run() {
    let scene = Scene::new(&[]);
    for call in 0..3 {
        let outcome = scene.call(Upstream::Breaks).await;
        let operation = scene.operation_slot();
        assert_eq!(
            outcome,
            CallOutcome::Uncertain { operation, retry_after: None },
            "call {call}: an operator has to settle it"
        );
        assert_eq!(scene.executed(), 1);
    }
    let record = scene.store.inner.load(&scene.operation_slot()).await.unwrap().unwrap().record;
    assert!(matches!(record.state, State::Uncertain { .. }), "{:?}", record.state);
}

#[tokio::test(start_paused = true)]
async fn an_uncertain_call_is_sent_again_only_where_the_route_forwards() {
    let scene = Scene::with(&[], Policy { on_uncertain: OnUncertain::Forward, ..policy() });
    assert!(matches!(scene.call(Upstream::Breaks).await, CallOutcome::Uncertain { .. }));
    let again = scene.call(Upstream::Answers(200)).await;
    assert_eq!((answer(&again).map(|answer| answer.0), scene.executed()), (Some(200), 2));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_did_nothing_leaves_the_operation_free_for_the_next_call() {
    let scene = Scene::new(&[]);
    let unreachable = scene.call(Upstream::Unreachable).await;
    let slot = Some(scene.operation_slot());
    let refusal = Refusal::UpstreamUnreachable { slot };
    assert_eq!(unreachable, CallOutcome::NotSent { refusal, retryable: true });
    let busy = scene.call(Upstream::Answers(429)).await;
    assert!(matches!(busy, CallOutcome::Released { ref reply, .. } if reply.status == 429));
    let done = scene.call(Upstream::Answers(201)).await;
    assert_eq!(answer(&done).map(|answer| answer.2), Some(false));
}

#[tokio::test(start_paused = true)]
async fn without_a_store_no_call_runs_under_any_policy() {
    for on_failure in [OnFailure::FailClosed, OnFailure::FailOpen] {
        let scene = Scene::with(&[Fault::Refused], Policy { on_failure, ..policy() });
        let outcome = scene.call(Upstream::Answers(201)).await;
        assert!(matches!(outcome, CallOutcome::StoreUnavailable { .. }), "{outcome:?}");
        assert_eq!(scene.executed(), 0);
        assert!(answer(&scene.call(Upstream::Answers(201)).await).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_may_have_been_stored_is_released_under_any_policy() {
    for on_failure in [OnFailure::FailClosed, OnFailure::FailOpen] {
        for faults in [&[Fault::Late][..], &[Fault::AnswerLost, Fault::Lost]] {
            let scene = Scene::with(faults, Policy { on_failure, ..policy() });
            let outcome = scene.call(Upstream::Answers(201)).await;
            assert!(matches!(outcome, CallOutcome::StoreUnavailable { .. }), "{outcome:?}");
            scene.settle().await;
            let held = scene.store.inner.load(&scene.operation_slot()).await.unwrap();
            let state = held.map(|held| held.record.state);
            assert!(matches!(state, None | Some(State::Released)), "{faults:?}: {state:?}");
            assert!(answer(&scene.call(Upstream::Answers(201)).await).is_some());
            assert_eq!(scene.executed(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_where_clients_wait() {
    let scene = Scene::with(&[], Policy { on_in_flight: OnInFlight::Wait, ..policy() });
    let (first, second) = tokio::join!(scene.call(Upstream::Answers(201)), async {
        while scene.executed() == 0 {
            tokio::task::yield_now().await;
        }
        scene.call(Upstream::Answers(201)).await
    });
    assert!(answer(&first).is_some());
    assert!(matches!(second, CallOutcome::InFlight { .. }), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_released_if_its_caller_leaves_while_the_store_is_silent() {
    let scene = Scene::new(&[Fault::Silent]);
    assert!(tokio::time::timeout(WORK, scene.call(Upstream::Answers(201))).await.is_err());
    scene.settle().await;
    let record = scene.store.inner.load(&scene.operation_slot()).await.unwrap().unwrap().record;
    assert_eq!((record.state, scene.executed()), (State::Released, 0));
    assert!(answer(&scene.call(Upstream::Answers(201)).await).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_cancels_nothing() {
    let scene = Scene::new(&[]);
    {
        let mut leaving = Box::pin(scene.call(Upstream::Answers(201)));
        assert!(futures_util::poll!(&mut leaving).is_pending());
        while scene.executed() == 0 {
            assert!(futures_util::poll!(&mut leaving).is_pending());
            tokio::task::yield_now().await;
        }
    }
    scene.settle().await;
    let outcome = scene.call(Upstream::Answers(500)).await;
    assert_eq!(answer(&outcome), Some((201, b"booked".as_slice(), true)));
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_request_under_the_same_key_is_refused_for_good_under_any_policy() {
    for on_mismatch in [OnMismatch::Reject, OnMismatch::Supersede] {
        let scene = Scene::with(&[], Policy { on_mismatch, ..policy() });
        assert!(answer(&scene.call(Upstream::Answers(201)).await).is_some());
        let other = scene.call_with("{\"amount\": 2}", Upstream::Answers(201)).await;
        assert!(
            matches!(
                other,
                CallOutcome::NotSent { refusal: Refusal::KeyReused { .. }, retryable: false }
            ),
            "{other:?}"
        );
        assert_eq!(scene.executed(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_process_refuses_calls_and_finishes_those_that_run() {
    let scene = Scene::new(&[]);
    let (running, (refused, drained)) = tokio::join!(scene.call(Upstream::Answers(201)), async {
        while scene.executed() == 0 {
            tokio::task::yield_now().await;
        }
        tokio::join!(
            async {
                tokio::time::sleep(WORK / 10).await;
                scene.call(Upstream::Answers(201)).await
            },
            scene.gate.drain(WORK * 2)
        )
    });
    assert_eq!(answer(&running).map(|answer| answer.0), Some(201));
    assert_eq!((refused, drained), (CallOutcome::Draining, true));
}

#[tokio::test(start_paused = true)]
async fn calls_and_clients_take_no_permits_from_each_other_and_no_quota_counts_calls() {
    let scene = Scene::new(&[]);
    let settings = Settings { in_flight: 1, records_per_scope: 1, ..Settings::default() };
    let scene = Scene { gate: scene.gate.under(settings), ..scene };
    let call = |key: &'static str| {
        let request = Request::post("/pay").body(Bytes::new()).unwrap();
        let service = scene.service(Upstream::Answers(201));
        scene.gate.call(scene.internal_operation(key), request, service)
    };
    let (client, first, second) = tokio::join!(scene.pay(), call("a"), call("b"));
    assert_eq!((client, answer(&first).is_some()), (PAID, true));
    let overloaded = CallOutcome::NotSent { refusal: Refusal::Overloaded, retryable: true };
    assert_eq!(second, overloaded, "one call at once");
    assert!(answer(&call("b").await).is_some(), "a quota of one operation does not count it");
}

#[tokio::test(start_paused = true)]
async fn the_upstream_gets_the_key_in_the_same_form_as_a_clients_key() {
    let field = http::HeaderName::from_static("x-request-id");
    let place = KeyPlace::Header(field.clone());
    let upstream_key = Some(UpstreamKey { place, max_length: 255 });
    let scene = Scene::with(&[], Policy { upstream_key, ..policy() });
    let service = service_fn(move |request: Request<Payload<Full<Bytes>>>| {
        let key = request.headers().get(&field).cloned();
        async move {
            let body = Bytes::copy_from_slice(key.as_ref().map_or(b"", |key| key.as_bytes()));
            Ok::<_, Infallible>(Response::new(Full::new(body)))
        }
    });
    let request = Request::post("/pay").body(Bytes::new()).unwrap();
    let outcome = scene.gate.call(scene.internal_operation("event 7"), request, service).await;
    assert_eq!(answer(&outcome), Some((200, b"\"event 7\"".as_slice(), false)));
}

#[tokio::test(start_paused = true)]
async fn a_route_without_a_key_field_and_an_invalid_key_are_refused_for_good() {
    let mut without_field = policy();
    without_field.key.source = KeySource::Derived(vec![crate::engine::KeyPart::Path]);
    for (policy, key) in [(without_field, "k"), (policy(), "k\u{7}"), (policy(), "")] {
        let scene = Scene::with(&[], policy);
        let request = Request::post("/pay").body(Bytes::new()).unwrap();
        let service = scene.service(Upstream::Answers(201));
        let outcome = scene.gate.call(scene.internal_operation(key), request, service).await;
        assert!(matches!(outcome, CallOutcome::NotSent { retryable: false, .. }), "{outcome:?}");
    }
}

/// The slot and the caller of a client's request that has this value in each field, under a policy.
fn client(scope: ScopeRule, caller: CallerRule, value: &str) -> Option<(Slot, Caller)> {
    let policy = Policy { scope, caller, ..policy() };
    let (parts, ()) = Request::post("/pay")
        .header("idempotency-key", "k")
        .header("authorization", value)
        .header("sink", value)
        .header("cookie", format!("sink={value}"))
        .body(())
        .ok()?
        .into_parts();
    let intake = Intake::from_head(&policy, &parts.headers, None).ok()??;
    let content = Bytes::from_static(b"{}").into();
    let identified = intake.with_body(&policy, &Hashing::default(), &parts, &content).ok()??;
    Some((identified.operation.slot, identified.operation.caller))
}

proptest! {
    #[test]
    fn no_client_reaches_the_record_of_a_call(value in "(ledger|sink:ledger|[ -~]{1,20})") {
        let (sink, cookie) = (
            http::HeaderName::from_static("sink"),
            crate::key::CookieName::parse("sink").unwrap(),
        );
        let scene = Scene::new(&[]);
        let (slot, caller) = (scene.operation_slot(), Caller::internal("sink", "ledger"));
        for scope in [
            ScopeRule::Shared,
            ScopeRule::Headers(vec![sink.clone()]),
            ScopeRule::Cookie(cookie.clone()),
        ] {
            for rule in [
                CallerRule::Headers(vec![sink.clone()]),
                CallerRule::Cookie(cookie.clone()),
                CallerRule::Scope,
            ] {
                if let Some(client) = client(scope.clone(), rule, &value) {
                    prop_assert_ne!(client.0, slot);
                    prop_assert_ne!(client.1, caller);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_with_the_same_key_runs_beside_the_call() {
    let scene = Scene::new(&[]);
    assert!(answer(&scene.call(Upstream::Answers(201)).await).is_some());
    assert_eq!(scene.pay().await, PAID);
    assert_eq!(scene.executed(), 2);
    let saga = InternalOperation {
        caller: InternalCaller::Saga("ledger"),
        ..scene.internal_operation("k")
    };
    let request = Request::post("/pay").body(Bytes::from_static(b"{}")).unwrap();
    let outcome = scene.gate.call(saga, request, scene.service(Upstream::Answers(201))).await;
    assert_eq!(answer(&outcome).map(|answer| answer.2), Some(false), "a saga is another caller");
}

impl Scene {
    /// Calls under the key `k`, to continue an operation that began earlier.
    async fn look(&self, upstream: Upstream) -> CallOutcome {
        let request = Request::post("/pay").body(Bytes::from_static(b"{}")).unwrap();
        let operation = InternalOperation { continues: true, ..self.internal_operation("k") };
        self.gate.call(operation, request, self.service(upstream)).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_continues_never_begins_its_operation() {
    let scene = Scene::new(&[]);
    let operation = scene.operation_slot();
    let nothing = |was_released| CallOutcome::NothingToContinue { operation, was_released };
    assert_eq!(scene.look(Upstream::Answers(201)).await, nothing(false));
    scene.call(Upstream::Unreachable).await;
    assert_eq!(scene.look(Upstream::Answers(201)).await, nothing(true), "a released marker");
    assert_eq!(scene.executed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_continues_gets_the_outcome_of_its_operation() {
    let scene = Scene::new(&[]);
    scene.call(Upstream::Answers(201)).await;
    let found = scene.look(Upstream::Answers(500)).await;
    assert_eq!(answer(&found), Some((201, b"booked".as_slice(), true)));
    let scene = Scene::with(&[], Policy { on_uncertain: OnUncertain::Forward, ..policy() });
    scene.call(Upstream::Breaks).await;
    let again = scene.look(Upstream::Answers(200)).await;
    assert_eq!((answer(&again).map(|answer| answer.0), scene.executed()), (Some(200), 2));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_only_asks_releases_what_was_not_executed_and_never_sends_it_again() {
    let probe = Probe {
        method: http::Method::GET,
        path: "/pay/{key}".to_owned(),
        statuses: StatusRules::new(&["200".to_owned()], &["404".to_owned()], &[]).unwrap(),
        found_if: None,
        map_status: None,
        headers: HeaderMap::new(),
        background: false,
    };
    let probed = OnUncertain::Probe(Arc::new(probe));
    for (on_uncertain, was_released) in [(probed, true), (OnUncertain::Hold, false)] {
        let uncertain_after = Duration::ZERO;
        let scene = Scene::with(&[], Policy { on_uncertain, uncertain_after, ..policy() });
        scene.call(Upstream::Breaks).await;
        let request = Request::post("/pay").body(Bytes::from_static(b"{}")).unwrap();
        let operation =
            InternalOperation { continues: true, only_asks: true, ..scene.internal_operation("k") };
        let slot = scene.operation_slot();
        let service = scene.service(Upstream::Answers(404));
        let outcome = scene.gate.call(operation, request, service).await;
        if was_released {
            let nothing = CallOutcome::NothingToContinue { operation: slot, was_released };
            assert_eq!((outcome, scene.executed()), (nothing, 2), "the attempt, and a probe");
        } else {
            let held = CallOutcome::Uncertain { operation: slot, retry_after: None };
            assert_eq!((outcome, scene.executed()), (held, 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_finds_what_became_of_an_operation_and_sends_nothing() {
    let scene = Scene::new(&[]);
    let operation = scene.operation_slot();
    let look = async || scene.gate.look(scene.internal_operation("k")).await;
    let nothing = |was_released| CallOutcome::NothingToContinue { operation, was_released };
    assert_eq!(look().await, nothing(false));
    scene.call(Upstream::Unreachable).await;
    assert_eq!(look().await, nothing(true));
    scene.call(Upstream::Breaks).await;
    assert_eq!(look().await, CallOutcome::Uncertain { operation, retry_after: None });
    let done = Scene::new(&[]);
    done.call(Upstream::Answers(201)).await;
    let found = done.gate.look(done.internal_operation("k")).await;
    assert_eq!(answer(&found), Some((201, b"booked".as_slice(), true)));
    assert_eq!((scene.executed(), done.executed()), (1, 1));
}
