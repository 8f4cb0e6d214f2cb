//! What clients of a saga's route get, over the memory store. The test is the runner of the saga.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::clock::Clock;
use crate::engine::{OnInFlight, Policy, ScopeRule};
use crate::entropy::Entropy;
use crate::event::ChangedSaga;
use crate::gate::{
    Gate, NextSaga, OwnedSaga, Payload, SagaRequest, SagaRunner, SagaStepSummary, SagaSummary,
    SagaWrite, Settings,
};
use crate::key::{SLOT_BYTES, Space};
use crate::layer::{LayerSettings, OncewardLayer};
use crate::record::{Reply, ReplyBody, SagaPhase, Version};
use crate::route::Route;
use crate::store::memory::Memory;
use crate::telemetry::Meter;

const HELD: Slot = Slot::from_hash(Space::Enforced, [9; SLOT_BYTES]);
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const ADA: &[(&str, &str)] = &[("authorization", "Bearer ada"), ("x-account", "7")];

/// Keeps the saga that began, so that the test writes its progress. The content of the record is
/// the status of its only step.
#[derive(Default)]
struct TestRunner {
    owned: Mutex<Option<OwnedSaga>>,
    stop: CancellationToken,
}

fn summary_of(status: &str, step: &str) -> SagaSummary {
    SagaSummary {
        status: status.to_owned(),
        started_at: "2026-11-25T03:00:00.001Z".to_owned(),
        steps: vec![SagaStepSummary { name: "reserve".to_owned(), status: step.to_owned() }],
    }
}

impl SagaRunner for TestRunner {
    fn first_content(&self, _: &str, _: &SagaRequest<'_>) -> Result<Bytes, Refusal> {
        Ok(Bytes::from_static(b"pending"))
    }

    fn started(&self, _: &Bytes) -> Option<ChangedSaga> {
        None
    }

    fn run(&self, saga: OwnedSaga) {
        *self.owned.lock().unwrap() = Some(saga);
    }

    fn summary(&self, content: &Bytes) -> Option<SagaSummary> {
        Some(summary_of("running", std::str::from_utf8(content).ok()?))
    }

    fn has_progressed(&self, content: &Bytes) -> bool {
        content != "pending"
    }

    fn held_operation(&self, _: &Bytes) -> Option<Slot> {
        Some(HELD)
    }

    fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }
}

struct Shop {
    gate: Arc<Gate>,
    runner: Arc<TestRunner>,
    layer: OncewardLayer,
}

struct Reaction {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reaction {
    fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn document(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Shop {
    fn new() -> Shop {
        let clock = Clock::system();
        let store = Arc::new(Memory::new(clock.anchored()));
        let settings = Settings { sagas: 1, ..Settings::default() };
        let gate = Gate::new(store, clock, Entropy::from_seed(7), Meter::new(), settings);
        let timeout = Duration::from_secs(60);
        let policy = Policy {
            on_in_flight: OnInFlight::Wait,
            wait_timeout: WAIT_TIMEOUT,
            scope: ScopeRule::Headers(vec![HeaderName::from_static("x-account")]),
            ..Policy::standard("checkout", timeout)
        };
        let (paths, methods) = (vec!["/v1/checkouts".to_owned()], vec![Method::POST]);
        let route = Route { paths, methods, upstream: 0, policy };
        let runner = Arc::<TestRunner>::default();
        let as_runner: Arc<dyn SagaRunner> = runner.clone();
        let settings = LayerSettings {
            routes: vec![(route, timeout)],
            sagas: [("checkout".to_owned(), as_runner)].into(),
            ..LayerSettings::standard()
        };
        Shop { layer: OncewardLayer::new(gate.clone(), settings).unwrap(), gate, runner }
    }

    async fn send(&self, method: Method, path: &str, fields: &[&[(&str, &str)]]) -> Reaction {
        let upstream = service_fn(|_: Request<Payload<Full<Bytes>>>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"upstream"))))
        });
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields.concat() {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let (parts, body) = self.layer.layer(upstream).oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reaction { status: parts.status, headers: parts.headers, body }
    }

    async fn check_out(&self, key: &str, fields: &[(&str, &str)]) -> Reaction {
        let key = [("idempotency-key", key)];
        self.send(Method::POST, "/v1/checkouts", &[ADA, &key, fields]).await
    }

    /// Begins a saga, and returns its location.
    async fn begin(&self) -> String {
        let accepted = self.check_out("k", &[("prefer", "respond-async")]).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{:?}", accepted.body);
        accepted.field("location").unwrap().to_owned()
    }

    async fn get(&self, location: &str, fields: &[&[(&str, &str)]]) -> Reaction {
        self.send(Method::GET, location, fields).await
    }

    async fn progress(&self, phase: SagaPhase, step: &'static str) {
        let mut owned = self.runner.owned.lock().unwrap().take().unwrap();
        let content = Bytes::from_static(step.as_bytes());
        let next = NextSaga { phase, content, change: None };
        let mut written = SagaWrite::Changed;
        // A duplicate that was accepted has changed the version.
        while matches!(written, SagaWrite::Changed) {
            written = self.gate.progress_saga(&mut owned, next.clone()).await;
        }
        assert!(matches!(written, SagaWrite::Stored), "{written:?}");
        *self.runner.owned.lock().unwrap() = Some(owned);
    }

    async fn end(&self, body: &'static str) {
        let mut owned = self.runner.owned.lock().unwrap().take().unwrap();
        let reply = Arc::new(Reply {
            status: StatusCode::CREATED,
            headers: HeaderMap::new(),
            body: ReplyBody::Whole(Bytes::from_static(body.as_bytes())),
            trailers: None,
        });
        let summary = summary_of("completed", "done");
        let mut written = SagaWrite::Changed;
        while matches!(written, SagaWrite::Changed) {
            written = self.gate.end_saga(&mut owned, reply.clone(), &summary, None).await;
        }
        assert!(matches!(written, SagaWrite::Stored), "{written:?}");
    }

    /// Returns the version of the saga's record.
    async fn version(&self, location: &str) -> Version {
        let slot = Slot::from_reference(location.strip_prefix(SAGAS_PATH).unwrap()).unwrap();
        self.gate.store().records.load(&slot).await.unwrap().unwrap().record.version
    }
}

#[tokio::test(start_paused = true)]
async fn an_accepted_duplicate_keeps_the_claim_of_its_saga_from_being_given_up() {
    let shop = Shop::new();
    let location = shop.begin().await;
    let claimed = shop.version(&location).await;
    assert_eq!(shop.check_out("k", &[("prefer", "wait=0")]).await.status, StatusCode::CONFLICT);
    assert_eq!(shop.version(&location).await, claimed, "nothing was promised");
    shop.begin().await;
    let accepted = shop.version(&location).await;
    assert_ne!(accepted, claimed, "a claim in an earlier version is not given up");
    shop.progress(SagaPhase::Running, "done").await;
    let progressed = shop.version(&location).await;
    shop.begin().await;
    assert_eq!(shop.version(&location).await, progressed, "it has an owner");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_wait_gets_the_location_of_the_state() {
    let shop = Shop::new();
    for (prefer, waited) in
        [("respond-async", Duration::ZERO), ("respond-async, wait=5", Duration::from_secs(5))]
    {
        let began = Instant::now();
        let accepted = shop.check_out("k", &[("prefer", prefer)]).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED);
        assert_eq!(began.elapsed().as_secs(), waited.as_secs());
        assert_eq!(accepted.field("preference-applied"), Some(prefer));
        assert!(accepted.field("retry-after").is_some());
        let location = accepted.field("location").unwrap().to_owned();
        assert_eq!(
            location,
            format!("{SAGAS_PATH}{}", accepted.document()["id"].as_str().unwrap())
        );
        let state = shop.get(&location, &[ADA]).await;
        assert_eq!(state.status, StatusCode::OK);
        assert_eq!(state.field("cache-control"), Some("private, no-store"));
        let expected = json!({
            "id": accepted.document()["id"],
            "status": "running",
            "started_at": "2026-11-25T03:00:00.001Z",
            "steps": [{ "name": "reserve", "status": "pending" }],
        });
        assert_eq!(state.document(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_else_finds_the_state_of_a_saga() {
    let shop = Shop::new();
    let location = shop.begin().await;
    let unknown = format!("{SAGAS_PATH}{HELD}");
    let malformed = format!("{SAGAS_PATH}op_7");
    let other_caller = [("authorization", "Bearer eve"), ("x-account", "7")];
    let other_scope = [("authorization", "Bearer ada"), ("x-account", "8")];
    let without_scope = [("authorization", "Bearer ada")];
    let without_caller = [("x-account", "7")];
    for (path, fields) in [
        (&location, &other_caller[..]),
        (&location, &other_scope),
        (&location, &without_scope),
        (&location, &without_caller),
        (&location, &[]),
        (&unknown, ADA),
        (&malformed, ADA),
        (&SAGAS_PATH.to_owned(), ADA),
    ] {
        for more in [&[][..], &[("if-none-match", "*"), ("prefer", "wait=20")]] {
            let found = shop.get(path, &[fields, more]).await;
            assert_eq!(found.status, StatusCode::NOT_FOUND, "{path} {fields:?}");
            assert_eq!(found.document()["type"], "urn:onceward:problem:saga-not-found");
            assert_eq!(found.field("cache-control"), Some("private, no-store"));
        }
    }
    assert_eq!(shop.get(&location, &[ADA]).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_the_client_has_is_held_until_it_changes() {
    let shop = Shop::new();
    let location = shop.begin().await;
    let tag = shop.get(&location, &[ADA]).await.field("etag").unwrap().to_owned();
    let known = [("if-none-match", tag.as_str())];
    let began = Instant::now();
    assert_eq!(shop.get(&location, &[ADA, &known]).await.status, StatusCode::NOT_MODIFIED);
    let no_news = [("prefer", "wait=20")];
    assert_eq!(shop.get(&location, &[ADA, &no_news]).await.status, StatusCode::OK);
    assert_eq!(began.elapsed().as_secs(), 0, "neither waits");

    let unchanged = shop.get(&location, &[ADA, &known, &no_news]).await;
    assert_eq!(unchanged.status, StatusCode::NOT_MODIFIED);
    assert_eq!(unchanged.field("etag"), Some(&*tag));
    assert_eq!(began.elapsed().as_secs(), 20);
    let longer = [("prefer", "wait=3600")];
    shop.get(&location, &[ADA, &known, &longer]).await;
    assert_eq!(began.elapsed().as_secs(), 50, "the route's wait timeout is a bound");

    let fields = [ADA, &known, &longer];
    let (changed, ()) = tokio::join!(shop.get(&location, &fields), async {
        sleep(Duration::from_secs(1)).await;
        shop.progress(SagaPhase::Running, "done").await;
    });
    assert_eq!(changed.status, StatusCode::OK);
    assert_eq!(changed.document()["steps"][0]["status"], "done");
    assert_eq!(began.elapsed().as_secs(), 51);
    assert_ne!(changed.field("etag"), Some(&*tag));
}

#[tokio::test(start_paused = true)]
async fn the_state_of_an_ended_saga_has_its_answer_with_every_digit() {
    for (body, reported) in
        [(r#"{"amount":10.00}"#, r#"{"amount":10.00}"#), ("thanks", r#""thanks""#), ("", r#""""#)]
    {
        let shop = Shop::new();
        let location = shop.begin().await;
        shop.end(body).await;
        let state = shop.get(&location, &[ADA]).await;
        let text = std::str::from_utf8(&state.body).unwrap();
        let answer = format!(r#""answer":{{"status":201,"body":{reported}}}}}"#);
        assert!(text.ends_with(&answer), "{text}");
        assert_eq!(state.document()["status"], "completed");
        assert_eq!(state.document()["steps"][0]["status"], "done");
        let known = [("if-none-match", state.field("etag").unwrap()), ("prefer", "wait=20")];
        let began = Instant::now();
        let again = shop.get(&location, &[ADA, &known]).await;
        assert_eq!((again.status, began.elapsed().as_secs()), (StatusCode::NOT_MODIFIED, 0));
        let eve = [("authorization", "Bearer eve"), ("x-account", "7")];
        assert_eq!(shop.get(&location, &[&eve]).await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_waits_for_the_timeout_of_the_route_or_until_the_sagas_stop() {
    let shop = Shop::new();
    // The first request, and then a duplicate.
    for _ in 0..2 {
        let began = Instant::now();
        let late = shop.check_out("k", &[]).await;
        assert_eq!(late.status, StatusCode::CONFLICT);
        assert_eq!(began.elapsed().as_secs(), WAIT_TIMEOUT.as_secs());
        assert_eq!(late.document()["type"], "urn:onceward:problem:in-flight");
        assert_eq!(late.document()["retryable"], true);
        assert!(late.field("location").unwrap().starts_with(SAGAS_PATH));
    }
    for key in ["k", "another"] {
        let shop = Shop::new();
        if key == "k" {
            shop.begin().await;
        }
        let (stopped, began) = tokio::join!(shop.check_out(key, &[]), async {
            sleep(Duration::from_secs(1)).await;
            shop.runner.stop.cancel();
            Instant::now()
        });
        assert_eq!((stopped.status, began.elapsed().as_secs()), (StatusCode::CONFLICT, 0));
        assert_eq!(stopped.document()["retryable"], true);
        assert!(stopped.field("location").unwrap().starts_with(SAGAS_PATH));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_gateway_begins_no_saga_and_still_answers_duplicates() {
    let shop = Shop::new();
    shop.begin().await;
    let refused = shop.check_out("another", &[]).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let attached = shop.check_out("k", &[("prefer", "respond-async")]).await;
    assert_eq!(attached.status, StatusCode::ACCEPTED);
    shop.end("paid").await;
    let replayed = shop.check_out("k", &[]).await;
    assert_eq!((replayed.status, &replayed.body[..]), (StatusCode::CREATED, &b"paid"[..]));
    assert_eq!(replayed.field("idempotent-replayed"), Some("true"));
    let next = shop.check_out("another", &[("prefer", "respond-async")]).await;
    assert_eq!(next.status, StatusCode::ACCEPTED, "an ended saga gives its place back");
    let mut stuck = shop.runner.owned.lock().unwrap().take().unwrap();
    assert_eq!(shop.check_out("third", &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
    shop.gate.place_saga(&mut stuck, true);
    let third = shop.check_out("third", &[("prefer", "respond-async")]).await;
    assert_eq!(third.status, StatusCode::ACCEPTED, "a stuck saga leaves its place to others");
    shop.gate.place_saga(&mut stuck, false);
    assert_eq!(shop.check_out("fourth", &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn the_content_of_a_saga_that_runs_counts_against_the_buffered_bytes() {
    let shop = Shop::new();
    let held = || usize::try_from(shop.gate.meter().buffered_bytes.get()).unwrap();
    let before = held();
    shop.begin().await;
    assert_eq!(held() - before, 2 * "pending".len(), "the content, and the same decoded");
    shop.progress(SagaPhase::Running, "reserve is done").await;
    assert_eq!(held() - before, 2 * "reserve is done".len());
    shop.end("paid").await;
    assert_eq!(held(), before);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_saga_names_the_operation_that_it_waits_for() {
    let shop = Shop::new();
    let location = shop.begin().await;
    shop.progress(SagaPhase::Stuck, "uncertain").await;
    for prefer in ["respond-async", "wait=1"] {
        let stuck = shop.check_out("k", &[("prefer", prefer)]).await;
        assert_eq!(stuck.status, StatusCode::CONFLICT);
        let document = stuck.document();
        assert_eq!(document["type"], "urn:onceward:problem:saga-stuck");
        assert_eq!(document["operation"], HELD.to_string());
        assert_eq!(format!("{SAGAS_PATH}{}", document["saga"].as_str().unwrap()), location);
        assert_eq!(stuck.field("location"), Some(&*location));
    }
}
