//! The rules, which every protected request passes at least twice. They should cost little compared
//! with an answer of the store.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, StatusCode};
use onceward::config::{Config, Overrides};
use onceward::engine::{
    Admission, Claim, ClaimRequest, DuplicateRefusal, Outcome, Policy, Settlement, admit, claim,
    settle,
};
use onceward::key::{BodyHash, Caller, fingerprint};
use onceward::record::{Cause, Fence, Held, Record, Reply, ReplyBody, Version};

/// Returns the policy of a configuration that has only an upstream.
fn policy() -> Policy {
    let overrides =
        Overrides { upstream: Some("http://localhost:9000".into()), ..Overrides::default() };
    Config::load(None, overrides).expect("defaults").routes.swap_remove(0).policy
}

fn asked(fence: u64) -> ClaimRequest {
    let body = Bytes::from_static(br#"{"amount":100}"#);
    ClaimRequest {
        caller: Caller::of_field("authorization", b"Bearer secret"),
        fingerprint: fingerprint("POST", "/payments", None, &body, BodyHash::Raw),
        fence: Fence(fence),
    }
}

fn reply() -> Arc<Reply> {
    let headers = [
        (http::header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (http::header::DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT")),
        (http::header::LOCATION, HeaderValue::from_static("/payments/1")),
    ];
    let body = ReplyBody::Whole(Bytes::from_static(br#"{"id":1}"#));
    Arc::new(Reply {
        status: StatusCode::CREATED,
        headers: HeaderMap::from_iter(headers),
        body,
        trailers: None,
    })
}

fn held(record: Record) -> Held {
    Held { record, written_ms: 1_000, due_ms: 31_000, now_ms: 2_000 }
}

fn rules(c: &mut Criterion) {
    let policy = policy();
    let (first, duplicate) = (asked(1), asked(2));
    let claimed =
        claim(&first, onceward::engine::ClaimOver::Nothing, Version(1), 1_000, &policy).record;
    let attempt = Claim { fence: first.fence, record: claimed.clone() };
    let answered = Outcome::Answered(reply());
    let in_doubt = Outcome::InDoubt(Cause::TimedOut);
    let settled =
        |outcome: &Outcome| settle(Some(&claimed), &attempt, outcome, &policy, Version(9));
    let completed = match settled(&answered) {
        Settlement::Write(next) => held(next.record),
        Settlement::Done | Settlement::Stale => {
            unreachable!("the record has the fence of the claim")
        }
    };
    let running = held(claimed.clone());
    let admitted = |current: Option<&Held>| admit(current, &duplicate, &policy);
    // Each benchmark must measure the case in its name.
    assert_eq!(admitted(None), Admission::Claim(onceward::engine::ClaimOver::Nothing));
    assert!(matches!(admitted(Some(&completed)), Admission::Replay(_)));
    let two_seconds = Duration::from_secs(2);
    assert_eq!(
        admitted(Some(&running)),
        Admission::Refuse(DuplicateRefusal::InFlight { retry_after: two_seconds, saga: false })
    );

    let mut group = c.benchmark_group("rules");
    group.bench_function("admit/first", |b| b.iter(|| admitted(black_box(None))));
    group.bench_function("admit/in_flight", |b| b.iter(|| admitted(black_box(Some(&running)))));
    group.bench_function("admit/replay", |b| b.iter(|| admitted(black_box(Some(&completed)))));
    group.bench_function("settle/answered", |b| b.iter(|| settled(black_box(&answered))));
    group.bench_function("settle/in_doubt", |b| b.iter(|| settled(black_box(&in_doubt))));
    group.finish();
}

criterion_group!(benches, rules);
criterion_main!(benches);
