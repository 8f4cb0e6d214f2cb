//! Reads of a resource through the layer. The service inside answers as each test needs.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, Method, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::clock::Clock;
use crate::engine::{IfMatchRule, Mode, OnStale, Policy, VersionSource};
use crate::entropy::Entropy;
use crate::gate::{Gate, Payload, Settings};
use crate::layer::{LayerSettings, OncewardBody, OncewardLayer};
use crate::route::Route;
use crate::store::memory::Memory;
use crate::telemetry::Meter;

const TIMEOUT: Duration = Duration::from_secs(60);
type UpstreamBody = UnsyncBoxBody<Bytes, Infallible>;

struct Scene {
    layer: OncewardLayer,
    gate: Arc<Gate>,
    /// The requests that arrived.
    seen: Mutex<Vec<Request<()>>>,
}

impl Scene {
    fn new(mode: Mode, buffered_bytes: usize) -> Scene {
        let clock = Clock::system();
        let store = Arc::new(Memory::new(clock.anchored()));
        let settings = Settings { buffered_bytes, ..Settings::default() };
        let gate = Gate::new(store, clock, Entropy::from_seed(7), Meter::new(), settings);
        let rule = ResourceRule {
            upstream: "upstream".into(),
            versions: VersionSource::Hash,
            if_match: IfMatchRule::Required,
            on_stale: OnStale::Reject,
            lock_timeout: Duration::from_secs(5),
            bytes: 64 << 10,
            accept: HeaderValue::from_static("application/json"),
            per: vec![HeaderName::from_static("x-tenant")],
            keep: Duration::from_secs(3600),
        };
        let policy =
            Policy { mode, resource: Some(Arc::new(rule)), ..Policy::standard("plans", TIMEOUT) };
        let methods = vec![Method::GET, Method::HEAD, Method::POST];
        let route = Route { paths: vec!["/plans/{id}".to_owned()], methods, upstream: 0, policy };
        let settings =
            LayerSettings { routes: vec![(route, TIMEOUT)], ..LayerSettings::standard() };
        let layer = OncewardLayer::new(gate.clone(), settings).unwrap();
        Scene { layer, gate, seen: Mutex::default() }
    }

    async fn send(
        &self,
        method: Method,
        fields: &[(&str, &str)],
        upstream: Response<UpstreamBody>,
    ) -> Response<OncewardBody<UpstreamBody>> {
        let mut request = Request::builder().method(method).uri("/plans/p1");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = Arc::new(Mutex::new(Some(upstream)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seeing = seen.clone();
        let service = service_fn(move |request: Request<Payload<Full<Bytes>>>| {
            seeing.lock().unwrap().push(request.map(|_| ()));
            let answer = answer.lock().unwrap().take().unwrap();
            async { Ok::<_, Infallible>(answer) }
        });
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = self.layer.layer(service).oneshot(request).await.unwrap();
        self.seen.lock().unwrap().append(&mut seen.lock().unwrap());
        response
    }

    async fn get(
        &self,
        fields: &[(&str, &str)],
        upstream: Response<UpstreamBody>,
    ) -> Response<OncewardBody<UpstreamBody>> {
        let fields = [&[("x-tenant", "7")], fields].concat();
        self.send(Method::GET, &fields, upstream).await
    }

    fn untagged(&self, reason: &str) -> String {
        let labels = format!("{{route=\"plans\",reason=\"{reason}\"}} ");
        let text = self.gate.meter().encode().unwrap();
        let line = text.lines().find(|line| line.contains(&labels)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    }
}

fn whole(body: impl Into<Bytes>) -> Response<UpstreamBody> {
    Response::new(Full::new(body.into()).boxed_unsync())
}

/// Returns an answer with these pieces, without a length. Before the second piece it pauses.
fn pieces(pieces: &'static [&'static str], pause: Duration) -> Response<UpstreamBody> {
    let pieces = stream::iter(pieces.iter().enumerate()).then(move |(at, piece)| async move {
        if at == 1 {
            tokio::time::sleep(pause).await;
        }
        Ok(Frame::data(Bytes::from_static(piece.as_bytes())))
    });
    Response::new(StreamBody::new(pieces).boxed_unsync())
}

fn tag_of(response: &Response<OncewardBody<UpstreamBody>>) -> Option<String> {
    response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned())
}

async fn body_of(response: Response<OncewardBody<UpstreamBody>>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_read_that_wants_another_version_is_refused_with_the_current_tag() {
    let scene = Scene::new(Mode::Enforce, 1 << 20);
    let tag = tag_of(&scene.get(&[], whole("{}")).await).unwrap();
    let refused = scene.get(&[("if-match", "\"other\"")], whole("{}")).await;
    assert_eq!(
        (refused.status(), tag_of(&refused)),
        (StatusCode::PRECONDITION_FAILED, Some(tag.clone()))
    );
    let document: serde_json::Value = serde_json::from_slice(&body_of(refused).await).unwrap();
    assert_eq!(document["type"], "urn:onceward:problem:precondition-failed");
    let read = scene.get(&[("if-match", &tag)], whole("{}")).await;
    assert_eq!(read.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_read_names_its_tenant_once() {
    let scene = Scene::new(Mode::Enforce, 1 << 20);
    for (fields, problem) in [
        (&[][..], "scope-missing"),
        (&[("x-tenant", "")], "scope-missing"),
        (&[("x-tenant", "7"), ("x-tenant", "8")], "scope-invalid"),
    ] {
        let refused = scene.send(Method::HEAD, fields, whole("{}")).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        let document: serde_json::Value = serde_json::from_slice(&body_of(refused).await).unwrap();
        assert_eq!(document["type"], format!("urn:onceward:problem:{problem}"));
    }
    assert!(scene.seen.lock().unwrap().is_empty(), "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn a_representation_is_relayed_whole_while_memory_is_used_up() {
    let scene = Scene::new(Mode::Enforce, 64 << 10);
    let body = vec![b'x'; 40 << 10];
    let read = scene.get(&[], whole(body.clone())).await;
    assert_eq!((read.status(), tag_of(&read)), (StatusCode::OK, None));
    assert_eq!(body_of(read).await, body);
    assert_eq!(scene.untagged("no_memory"), "1");
    assert!(tag_of(&scene.get(&[], whole("{}")).await).is_some(), "the memory was given back");
}

#[tokio::test(start_paused = true)]
async fn a_buffered_representation_keeps_its_memory_until_it_is_written() {
    let scene = Scene::new(Mode::Enforce, 128 << 10);
    let unread = scene.get(&[], whole(vec![b'x'; 60 << 10])).await;
    assert!(tag_of(&unread).is_some());
    let second = || scene.get(&[], whole(vec![b'x'; 60 << 10]));
    assert_eq!(tag_of(&second().await), None, "the first one still has the memory");
    drop(unread);
    assert!(tag_of(&second().await).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_pauses_for_long_is_a_stream() {
    let scene = Scene::new(Mode::Enforce, 1 << 20);
    let short = scene.get(&[], pieces(&["{", "}"], TIMEOUT / 2)).await;
    assert!(tag_of(&short).is_some());
    let read = scene.get(&[], pieces(&["first ", "second ", "third"], TIMEOUT * 3 / 2)).await;
    assert_eq!(tag_of(&read), None);
    assert_eq!(body_of(read).await, "first second third");
    assert_eq!(scene.untagged("streamed"), "1");
}

#[tokio::test(start_paused = true)]
async fn head_asks_for_a_representation_and_opens_no_tunnel() {
    let scene = Scene::new(Mode::Enforce, 1 << 20);
    let fields = [("x-tenant", "7"), ("connection", "upgrade"), ("upgrade", "websocket")];
    let head = scene.send(Method::HEAD, &fields, whole("{}")).await;
    assert_eq!(
        (head.status(), head.headers()["content-length"].as_bytes()),
        (StatusCode::OK, &b"2"[..])
    );
    assert!(tag_of(&head).is_some() && body_of(head).await.is_empty());
    let seen = scene.seen.lock().unwrap();
    assert_eq!(seen[0].method(), Method::GET);
    assert_eq!(seen[0].headers().get("upgrade"), None);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_switched_off_relays_reads_unchanged() {
    let scene = Scene::new(Mode::Off, 1 << 20);
    let fields = [("if-none-match", "*"), ("range", "bytes=0-1")];
    let read = scene.send(Method::HEAD, &fields, whole("{}")).await;
    assert_eq!((read.status(), tag_of(&read)), (StatusCode::OK, None));
    let seen = scene.seen.lock().unwrap();
    assert_eq!(seen[0].method(), Method::HEAD);
    assert!(fields.iter().all(|(name, value)| seen[0].headers()[*name] == *value));
}

#[tokio::test(start_paused = true)]
async fn other_requests_of_the_route_are_protected_by_their_key() {
    let scene = Scene::new(Mode::Enforce, 1 << 20);
    let post = || scene.send(Method::POST, &[("idempotency-key", "k")], whole("{}"));
    assert_eq!(tag_of(&post().await), None);
    assert_eq!(post().await.headers()["idempotent-replayed"], "true");
    for _ in 0..2 {
        let read = scene.get(&[("idempotency-key", "k")], whole("{}")).await;
        assert_eq!(read.headers().get("idempotent-replayed"), None, "a read has no key");
    }
    assert_eq!(scene.seen.lock().unwrap().len(), 3);
}
