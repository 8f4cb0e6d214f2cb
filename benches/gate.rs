//! The whole gate on the memory store, around a service that answers at once. This is the time that
//! Onceward itself adds to a request.
//!
//! It runs on one thread, without a network. Making the requests and emptying the store are not
//! timed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use onceward::gate::Payload;
use onceward::layer::OncewardLayer;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};

type ClientRequest = Request<Full<Bytes>>;

const REQUEST_BODY: &[u8] = br#"{"amount":4990,"currency":"EUR","customer":"c_81"}"#;
const ANSWER_BODY: &[u8] = br#"{"id":"pay_1","amount":4990,"currency":"EUR","status":"succeeded"}"#;

/// Returns an empty gate around a service, and the counter of the service's runs.
fn gated() -> (impl Service<ClientRequest, Error = Infallible>, Arc<AtomicU64>) {
    let runs = Arc::new(AtomicU64::new(0));
    let counter = runs.clone();
    let charge = service_fn(move |_: Request<Payload<Full<Bytes>>>| {
        counter.fetch_add(1, Ordering::Relaxed);
        let response = Response::builder()
            .status(StatusCode::CREATED)
            .header("content-type", "application/json");
        std::future::ready(Ok::<_, Infallible>(
            response.body(Full::new(Bytes::from_static(ANSWER_BODY))).expect("response"),
        ))
    });
    (OncewardLayer::in_memory().expect("defaults").layer(charge), runs)
}

fn request(key: &str) -> ClientRequest {
    Request::post("/v1/payments")
        .header("idempotency-key", key)
        .header("authorization", "Bearer secret")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(REQUEST_BODY)))
        .expect("request")
}

/// Sends the requests one after the other, and returns how long they took.
fn time<S>(runtime: &Runtime, service: &mut S, requests: Vec<ClientRequest>) -> Duration
where
    S: Service<ClientRequest, Error = Infallible>,
{
    runtime.block_on(async {
        let start = Instant::now();
        for request in requests {
            let _ = black_box(service.call(request).await);
        }
        start.elapsed()
    })
}

fn gate(c: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("runtime");
    let mut group = c.benchmark_group("gate");
    group.bench_function("miss", |b| {
        b.iter_custom(|n| {
            // Each sample has its own store. Otherwise the store, and so the time, would grow with
            // the run.
            let (mut service, runs) = gated();
            let took = time(
                &runtime,
                &mut service,
                (0..n).map(|n| request(&format!("key-{n}"))).collect(),
            );
            assert_eq!(runs.load(Ordering::Relaxed), n, "every key ran");
            took
        });
    });
    group.bench_function("replay", |b| {
        let (mut service, runs) = gated();
        time(&runtime, &mut service, vec![request("key")]);
        b.iter_custom(|n| time(&runtime, &mut service, (0..n).map(|_| request("key")).collect()));
        assert_eq!(runs.load(Ordering::Relaxed), 1, "only the first ran");
    });
    group.finish();
}

criterion_group!(benches, gate);
criterion_main!(benches);
