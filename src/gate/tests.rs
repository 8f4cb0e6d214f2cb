//! The gate over a store that fails at the worst moment. Time is paused, so that hardly any test
//! waits for a real clock.

#![allow(clippy::type_complexity)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use async_trait::async_trait;
use http::Response;
use http_body_util::Full;
use tokio_util::sync::CancellationToken;
use tower::service_fn;

use super::*;
use crate::clock::Clock;
use crate::engine::{KeyRule, KeySource, Policy};
use crate::entropy::Entropy;
use crate::gate::attempt::settle::UnsettledOutcome;
use crate::key::{Hashing, Slot};
use crate::record::{Fence, Held, Lifetime, Record, State, Version};
use crate::route::Route;
use crate::store::memory::Memory;
use crate::store::{
    DueSagas, Events, ListError, Listing, Page, Records, Store, StoreError, Swap, Watch,
};
use crate::telemetry::Meter;

mod calling;
mod carrying;
mod claiming;
mod observing;
mod rotation;
mod sagas;
mod sharing;

/// The fault of the next swap.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// The swap is carried out, and its answer is lost.
    AnswerLost,
    /// The swap is not carried out, and its fate is unknown.
    Lost,
    /// The swap is carried out later, by [`Faulty::arrive`], and its answer is lost.
    Late,
    /// The swap is refused.
    Refused,
    /// The swap is carried out, and its answer never comes.
    Silent,
    /// The current record is too large for the swap's answer.
    Large,
}

/// A memory store. Its first swaps have these faults, in order. Later swaps work.
struct Faulty {
    inner: Arc<Memory>,
    faults: Mutex<VecDeque<Fault>>,
    late: Mutex<Vec<(Slot, Option<Version>, Record, Lifetime, Vec<u8>)>>,
    unreadable: Mutex<usize>,
    /// Whether reads never end.
    hangs: AtomicBool,
}

impl Faulty {
    fn new(faults: &[Fault]) -> Arc<Faulty> {
        let clock = Clock::system();
        Arc::new(Faulty {
            inner: Arc::new(Memory::new(clock.anchored())),
            faults: Mutex::new(faults.iter().copied().collect()),
            late: Mutex::default(),
            unreadable: Mutex::new(0),
            hangs: AtomicBool::new(false),
        })
    }

    /// Carries out the late swaps.
    async fn arrive(&self) -> Vec<Swap> {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        let mut answers = vec![];
        for (slot, expected, record, lifetime, event) in late {
            answers.push(
                self.inner
                    .write(&slot, expected, &record, lifetime, Events::logged(&|| event.clone()))
                    .await
                    .unwrap(),
            );
        }
        answers
    }
}

fn unknown() -> StoreError {
    StoreError::MaybeApplied("the answer was lost".into())
}

#[async_trait]
impl Records for Faulty {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            None => self.inner.write(slot, expected, next, lifetime, events).await,
            Some(Fault::AnswerLost) => {
                self.inner.write(slot, expected, next, lifetime, events).await?;
                Err(unknown())
            }
            Some(Fault::Lost) => Err(unknown()),
            Some(Fault::Late) => {
                self.late.lock().unwrap().push((
                    *slot,
                    expected,
                    next.clone(),
                    lifetime,
                    (events.log)(),
                ));
                Err(unknown())
            }
            Some(Fault::Silent) => {
                self.inner.write(slot, expected, next, lifetime, events).await?;
                std::future::pending().await
            }
            Some(Fault::Large) => {
                match self.inner.write(slot, expected, next, lifetime, events).await? {
                    Swap::Stale(Some(held)) => Ok(Swap::Large(held.record.fence)),
                    swapped => Ok(swapped),
                }
            }
            Some(Fault::Refused) => Err(StoreError::NotApplied("no connection".into())),
        }
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        {
            let mut unreadable = self.unreadable.lock().unwrap();
            if *unreadable > 0 {
                *unreadable -= 1;
                return Err(StoreError::NotApplied("no connection".into()));
            }
        }
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner.load(slot).await
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.inner.remains(slot).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.inner.renew(slot, fence, lease, keep).await
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.inner.due(limit).await
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.inner.due_sagas(limit).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.inner.list(listing, cursor, limit).await
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.inner.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The upstream's working time: longer than the first pauses between tries to settle.
const WORK: Duration = Duration::from_millis(500);

/// The head of a payment with this key.
fn payment_head(key: &str) -> Box<Parts> {
    let request = Request::post("/pay").header("idempotency-key", key).body(()).unwrap();
    Box::new(request.into_parts().0)
}

/// A payment with this key, as the layer passes it to the gate.
fn buffered(gate: &Gate, guarded: &ProtectedRoute, key: &str) -> BufferedRequest {
    let (parts, context) = (payment_head(key), RequestContext::default());
    let intake = gate.read_head(guarded, &parts.headers, &context).unwrap().unwrap();
    let hold = gate.budget().hold();
    BufferedRequest { parts, intake, body: Bytes::from_static(b"{}"), hold, context }
}

struct Scene {
    store: Arc<Faulty>,
    gate: Arc<Gate>,
    guarded: Arc<ProtectedRoute>,
    executed: Arc<AtomicUsize>,
}

type PayResult = Result<(http::StatusCode, bool), Refusal>;

impl Scene {
    fn new(faults: &[Fault]) -> Scene {
        Scene::with(faults, crate::engine::tests::policy())
    }

    fn with(faults: &[Fault], policy: Policy) -> Scene {
        let store = Faulty::new(faults);
        let (meter, clock) = (Meter::new(), Clock::system());
        let gate = Gate::new(
            Store { records: store.clone(), ..Store::from(store.inner.clone()) },
            clock,
            Entropy::from_seed(7),
            meter.clone(),
            Settings::default(),
        );
        let route = Route {
            paths: vec!["/pay".into()],
            methods: vec![http::Method::POST],
            upstream: 0,
            policy,
        };
        let guarded = ProtectedRoute {
            meter: meter.route("payments"),
            route: Arc::new(route),
            response_timeout: Duration::from_secs(60),
            keyring: None,
            saga: None,
            unkeyed: None,
        };
        Scene { store, gate, guarded: Arc::new(guarded), executed: Arc::default() }
    }

    /// The operation of the request that [`Scene::pay`] sends.
    fn operation(&self) -> RequestedOperation {
        let parts = payment_head("k");
        let policy = &self.guarded.route.policy;
        let intake = Intake::from_head(policy, &parts.headers, None).unwrap().unwrap();
        let content = Bytes::from_static(b"{}").into();
        let identified = intake.with_body(policy, &Hashing::default(), &parts, &content);
        identified.unwrap().unwrap().operation
    }

    /// The request that [`Scene::pay`] sends, in the form for the engine, with a fence that the
    /// test chooses.
    fn asked(&self, fence: Fence) -> crate::engine::ClaimRequest {
        let RequestedOperation { caller, fingerprint, .. } = self.operation();
        crate::engine::ClaimRequest { caller, fingerprint, fence }
    }

    /// Sends one request; the upstream counts it and answers 201.
    async fn pay(&self) -> PayResult {
        self.pay_from(None).await
    }

    /// Sends one request from an address.
    async fn pay_from(&self, address: Option<&Arc<AddressShare>>) -> PayResult {
        let executed = self.executed.clone();
        let upstream = service_fn(move |_: Request<Payload<Full<Bytes>>>| {
            executed.fetch_add(1, Ordering::SeqCst);
            async {
                // Gives a test the time to prepare the store for the calls after the claim.
                tokio::time::sleep(WORK).await;
                Ok::<_, Infallible>(
                    Response::builder()
                        .status(201)
                        .body(Full::new(Bytes::from_static(b"paid")))
                        .unwrap(),
                )
            }
        });
        let mut request = buffered(&self.gate, &self.guarded, "k");
        request.context.address_share = address.cloned();
        let answered = self.gate.handle(&self.guarded, request, upstream).await?;
        Ok((answered.response.status(), answered.answer == Answer::Replayed))
    }

    fn executed(&self) -> usize {
        self.executed.load(Ordering::SeqCst)
    }

    async fn record(&self) -> Option<Record> {
        let slot = self.operation().slot;
        self.store.inner.load(&slot).await.unwrap().map(|held| held.record)
    }

    /// Waits for the tasks in the background.
    async fn settle(&self) {
        while !self.gate.tasks.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

const PAID: PayResult = Ok((http::StatusCode::CREATED, false));
const REPLAYED: PayResult = Ok((http::StatusCode::CREATED, true));

fn unavailable(answer: &PayResult) -> bool {
    matches!(answer, Err(Refusal::StoreUnavailable { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_claim_with_a_lost_answer_is_read_back_and_runs_once() {
    let scene = Scene::new(&[Fault::AnswerLost]);
    assert_eq!(scene.pay().await, PAID);
    assert_eq!(scene.pay().await, REPLAYED);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_can_not_be_read_back_sends_nothing_and_is_released() {
    let scene = Scene::new(&[Fault::AnswerLost]);
    *scene.store.unreadable.lock().unwrap() = 1;
    assert!(unavailable(&scene.pay().await));
    assert_eq!(scene.executed(), 0);
    scene.settle().await;
    assert_eq!(
        scene.record().await.unwrap().state,
        State::Released,
        "not uncertain: nothing was sent"
    );
    assert_eq!(scene.pay().await, PAID);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_claim_that_was_given_up_is_refused_by_its_marker() {
    let scene = Scene::new(&[Fault::Late]);
    assert!(unavailable(&scene.pay().await));
    scene.settle().await;
    assert_eq!(scene.record().await.unwrap().state, State::Released);
    let late = scene.store.arrive().await;
    assert!(matches!(late.as_slice(), [Swap::Stale(Some(_))]), "{late:?}");
    assert_eq!(scene.pay().await, PAID);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_claim_over_a_marker_is_refused_because_the_marker_is_written_anew() {
    // The first request gives up and leaves a marker. The claim of the second request would replace
    // that marker. It arrives late, and is given up as well.
    let scene = Scene::new(&[Fault::Lost]);
    assert!(unavailable(&scene.pay().await));
    scene.settle().await;
    let before = scene.record().await.unwrap();
    let held = before.version;
    let claim = Record {
        version: held.next(),
        fence: Fence(99),
        state: State::InFlight { uncertain_since_ms: None },
        ..before.clone()
    };
    let own = crate::engine::Claim { fence: Fence(99), record: claim.clone() };
    let slot = scene.operation().slot;
    let unsettled = UnsettledOutcome {
        slot,
        claim: own,
        known: None,
        outcome: crate::engine::Outcome::NeverSent,
        event_context: crate::event::Context::default(),
    };
    scene.gate.settle_in_background(unsettled, scene.guarded.clone(), ());
    scene.settle().await;
    let lifetime = Lifetime {
        keep: Duration::from_secs(60),
        due: Some(Duration::from_secs(30)),
        tombstone: None,
    };
    let late = scene.store.inner.swap(&slot, Some(held), &claim, lifetime).await.unwrap();
    assert!(matches!(late, Swap::Stale(Some(_))), "{late:?}");
    assert_eq!(scene.pay().await, PAID);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn giving_up_one_claim_does_not_release_the_next() {
    let waiting =
        Policy { on_in_flight: crate::engine::OnInFlight::Wait, ..crate::engine::tests::policy() };
    // The claim is lost, and its release needs three tries.
    let scene = Scene::with(&[Fault::Lost, Fault::Refused, Fault::Refused], waiting);
    let slot = scene.operation().slot;
    // Another gateway has an attempt, and releases it later.
    let (policy, inner) = (&scene.guarded.route.policy, &scene.store.inner);
    let asked = scene.asked(Fence(5));
    let other =
        crate::engine::claim(&asked, crate::engine::ClaimOver::Nothing, Version(5), 0, policy);
    inner.swap(&slot, None, &other.record, other.lifetime).await.unwrap();
    let (answer, ()) = tokio::join!(scene.pay(), async {
        while !scene.store.faults.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let marker = Record {
            version: Version(6),
            fingerprint: None,
            caller: None,
            state: State::Released,
            ..other.record.clone()
        };
        let kept = Lifetime { keep: Duration::from_secs(60), due: None, tombstone: None };
        inner.swap(&slot, Some(Version(5)), &marker, kept).await.unwrap();
        while scene.executed() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The release of the first claim tries again while the second claim runs.
        while scene.gate.tasks.len() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(
            matches!(scene.record().await.unwrap().state, State::InFlight { .. }),
            "the second claim still runs"
        );
    });
    assert_eq!(answer, PAID);
}

#[tokio::test(start_paused = true)]
async fn a_refused_claim_sends_nothing() {
    let scene = Scene::new(&[Fault::Refused]);
    assert!(unavailable(&scene.pay().await));
    assert_eq!((scene.executed(), scene.record().await), (0, None));
    assert_eq!(scene.pay().await, PAID);
}

#[tokio::test(start_paused = true)]
async fn a_completion_with_a_lost_answer_is_recognised() {
    let scene = Scene::new(&[]);
    let first = tokio::join!(scene.pay(), async {
        // Between claim and completion.
        while scene.executed() == 0 {
            tokio::task::yield_now().await;
        }
        scene.store.faults.lock().unwrap().push_back(Fault::AnswerLost);
    });
    assert_eq!(first.0, PAID);
    assert_eq!(scene.pay().await, REPLAYED);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_not_be_stored_yet_is_withheld_and_stored_later() {
    let scene = Scene::new(&[]);
    let failing = vec![Fault::Refused; 40];
    let (answer, ()) = tokio::join!(scene.pay(), async {
        while scene.executed() == 0 {
            tokio::task::yield_now().await;
        }
        scene.store.faults.lock().unwrap().extend(failing);
    });
    assert!(
        matches!(answer, Err(Refusal::OutcomeUncertain { status: Some(502), .. })),
        "{answer:?}"
    );
    scene.settle().await;
    assert_eq!(scene.pay().await, REPLAYED, "the answer was kept after all");
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_is_settled_nevertheless() {
    let scene = Scene::new(&[]);
    {
        let mut leaving = Box::pin(scene.pay());
        let polled = futures_util::poll!(&mut leaving);
        assert!(polled.is_pending(), "the attempt runs in its own task");
    }
    scene.settle().await;
    assert_eq!(scene.pay().await, REPLAYED);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_while_its_claim_is_on_its_way_is_released() {
    let scene = Scene::new(&[Fault::Silent]);
    {
        let mut leaving = Box::pin(scene.pay());
        assert!(futures_util::poll!(&mut leaving).is_pending());
    }
    scene.settle().await;
    assert_eq!(
        scene.record().await.unwrap().state,
        State::Released,
        "nothing was sent, so nothing is uncertain"
    );
    assert_eq!(scene.pay().await, PAID);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_the_operation_was_marked_uncertain_is_stored_and_sent() {
    let scene = Scene::new(&[]);
    let (answer, ()) = tokio::join!(scene.pay(), async {
        while scene.executed() == 0 {
            tokio::task::yield_now().await;
        }
        // The sweeper of another gateway marks the operation as uncertain.
        let held = scene.store.inner.load(&scene.operation().slot).await.unwrap().unwrap();
        let over = Held { now_ms: held.due_ms, ..held };
        let next = crate::engine::expire(&over, &scene.guarded.route.policy).unwrap();
        let version = Some(over.record.version);
        scene
            .store
            .inner
            .swap(&scene.operation().slot, version, &next.record, next.lifetime)
            .await
            .unwrap();
    });
    assert_eq!(answer, PAID);
    assert_eq!(scene.pay().await, REPLAYED);
    assert_eq!(scene.executed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stale_attempt_is_never_answered_as_if_it_had_sent_nothing() {
    // The operation was released, and another request used its key, or the claim was given up.
    let reused = |record: &mut Record| {
        record.fence = Fence(99);
        record.fingerprint = Some(crate::key::Fingerprint::from_bytes([9; 32]));
        record.state = State::InFlight { uncertain_since_ms: None };
    };
    let given_up = |record: &mut Record| record.state = State::Released;
    let changes: [&dyn Fn(&mut Record); 2] = [&reused, &given_up];
    for change in changes {
        let scene = Scene::new(&[]);
        let (answer, ()) = tokio::join!(scene.pay(), async {
            while scene.executed() == 0 {
                tokio::task::yield_now().await;
            }
            let mut record = scene.record().await.unwrap();
            let version = record.version;
            record.version = version.next();
            change(&mut record);
            let (slot, keep) = (scene.operation().slot, Duration::from_secs(60));
            let lifetime = Lifetime { keep, due: None, tombstone: None };
            scene.store.inner.swap(&slot, Some(version), &record, lifetime).await.unwrap();
        });
        assert!(
            matches!(answer, Err(Refusal::OutcomeUncertain { status: Some(502), .. })),
            "{answer:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_panics_leaves_an_uncertain_answer() {
    let scene = Scene::new(&[]);
    let upstream = service_fn(|_: Request<Payload<Full<Bytes>>>| async {
        if true {
            panic!("a bug");
        }
        Ok::<Response<Full<Bytes>>, Infallible>(Response::default())
    });
    let request = buffered(&scene.gate, &scene.guarded, "k");
    let answer = scene.gate.handle(&scene.guarded, request, upstream).await;
    assert!(matches!(answer, Err(Refusal::OutcomeUncertain { .. })));
    assert!(
        matches!(scene.pay().await, Err(Refusal::InFlight { .. })),
        "its lease continues, and nobody runs it again"
    );
}

#[tokio::test(start_paused = true)]
async fn retention_that_ends_while_a_duplicate_waits_is_no_permission_to_run() {
    let policy =
        Policy { on_in_flight: crate::engine::OnInFlight::Wait, ..crate::engine::tests::policy() };
    let scene = Scene::with(&[], policy);
    let slot = scene.operation().slot;
    // The attempt of another gateway. Its record then disappears.
    let next = crate::engine::claim(
        &scene.asked(Fence(5)),
        crate::engine::ClaimOver::Nothing,
        Version(5),
        0,
        &scene.guarded.route.policy,
    );
    let brief = Lifetime { keep: Duration::from_millis(300), ..next.lifetime };
    scene.store.inner.swap(&slot, None, &next.record, brief).await.unwrap();
    tokio::time::resume();
    assert!(matches!(scene.pay().await, Err(Refusal::InFlight { .. })));
    assert_eq!(scene.executed(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_probe_finds_is_kept_without_the_fields_that_are_dropped() {
    let list = |status: &str| vec![status.to_owned()];
    let probe = crate::engine::Probe {
        method: http::Method::GET,
        path: "/by-key/{key}".into(),
        statuses: crate::engine::StatusRules::new(&list("200"), &list("404"), &[]).unwrap(),
        found_if: None,
        map_status: None,
        headers: http::HeaderMap::new(),
        background: false,
    };
    let on_uncertain = crate::engine::OnUncertain::Probe(Arc::new(probe));
    let drop_headers = vec![http::header::SET_COOKIE];
    let scene =
        Scene::with(&[], Policy { on_uncertain, drop_headers, ..crate::engine::tests::policy() });
    // The connection of the payment breaks. A probe finds the payment.
    let upstream = service_fn(|request: Request<Payload<Full<Bytes>>>| async move {
        match *request.method() {
            http::Method::GET => Ok(Response::builder()
                .header("set-cookie", "id=1")
                .body(Full::<Bytes>::default())
                .unwrap()),
            _ => Err(ForwardError::Broken("reset".into())),
        }
    });
    let pay = || {
        let request = buffered(&scene.gate, &scene.guarded, "k");
        scene.gate.handle(&scene.guarded, request, upstream)
    };
    assert!(matches!(pay().await, Err(Refusal::OutcomeUncertain { .. })));
    for _ in 0..2 {
        let answer = pay().await.unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!(
            (answer.answer, answer.response.headers().get("set-cookie")),
            (Answer::Replayed, None)
        );
    }
}

#[test]
fn a_key_in_a_body_that_is_not_json_is_missing() {
    let mut policy = crate::engine::tests::policy();
    policy.key = KeyRule {
        source: KeySource::Sent {
            header: None,
            body: crate::key::Pointer::parse("/key"),
            form: None,
        },
        ..policy.key
    };
    let (parts, ()) = Request::post("/pay").body(()).unwrap().into_parts();
    let intake = Intake::from_head(&policy, &parts.headers, None).unwrap().unwrap();
    let content = Bytes::from_static(b"no json").into();
    let identified = intake.with_body(&policy, &Hashing::default(), &parts, &content);
    assert!(matches!(identified, Err(Refusal::KeyMissing { .. })), "{identified:?}");
}
