//! Encodes and decodes a completed record. Every durable store pays this for a result, and for each
//! replay of it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use onceward::key::{BodyHash, Caller, fingerprint};
use onceward::record::{
    Extras, Fence, Record, Reply, ReplyBody, Settler, State, Version, decode, encode,
};

const BODY_BYTES: usize = 300;
const FIELDS: [(&str, &str); 8] = [
    ("content-type", "application/json"),
    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ("location", "/v1/payments/pay_1MqLiJLkdIwHu7ixUEgbFdYF"),
    ("cache-control", "no-store"),
    ("request-id", "req_Ou1Cr4Tn0zq3Vd"),
    ("server", "payments"),
    ("vary", "Accept-Encoding"),
    ("x-ratelimit-remaining", "99"),
];

fn completed() -> Record {
    let field = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let headers = HeaderMap::from_iter(FIELDS.map(field));
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    Record {
        version: Version(7),
        fence: Fence(11),
        route: "payments".into(),
        fingerprint: Some(fingerprint("POST", "/v1/payments", None, &body, BodyHash::Raw)),
        caller: Some(Caller::of_field("authorization", b"Bearer secret")),
        opened_unix_ms: 1_750_000_000_000,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state: State::Completed {
            reply: Arc::new(Reply {
                status: StatusCode::CREATED,
                headers,
                body: ReplyBody::Whole(body),
                trailers: None,
            }),
            by: Settler::Upstream,
        },
    }
}

fn records(c: &mut Criterion) {
    let record = completed();
    let encoded = encode(&record);
    let read = || {
        decode(black_box(&encoded.head), black_box(encoded.payload.clone()))
            .expect("an encoded record")
    };
    assert_eq!(read(), record);

    let mut group = c.benchmark_group("record");
    group.bench_function("encode", |b| b.iter(|| encode(black_box(&record))));
    group.bench_function("decode", |b| b.iter(read));
    group.finish();
}

criterion_group!(benches, records);
criterion_main!(benches);
