//! The fingerprint of a 1 KiB body, by value and by bytes. The difference is the cost of parsing
//! JSON for every protected request.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use onceward::key::{BodyHash, fingerprint};

const BODY_BYTES: usize = 1024;

/// Returns a payment with line items. A note fills it up to [`BODY_BYTES`].
fn payment() -> Bytes {
    let item =
        |n| format!(r#"{{"sku":"SKU-{n:04}","quantity":{n},"unit_price":{n}9.90,"taxable":true}}"#);
    let items = (1..=10).map(item).collect::<Vec<_>>().join(",");
    let open = format!(
        r#"{{"amount":4990,"currency":"EUR","customer":{{"id":"c_81","vip":false}},"items":[{items}],"note":""#
    );
    let note = "x".repeat(BODY_BYTES - open.len() - 2);
    Bytes::from(format!("{open}{note}\"}}"))
}

fn fingerprints(c: &mut Criterion) {
    let body = payment();
    assert_eq!(body.len(), BODY_BYTES);
    let of = |body: &Bytes, how| fingerprint("POST", "/v1/payments", None, body, how);
    let json = BodyHash::Json { is_json: true, ignore: &[] };
    // An ambiguous JSON body would be hashed as bytes.
    assert_ne!(of(&body, json), of(&body, BodyHash::Raw));

    let mut group = c.benchmark_group("fingerprint");
    group.throughput(Throughput::Bytes(BODY_BYTES as u64));
    group.bench_function("json", |b| b.iter(|| of(black_box(&body), json)));
    group.bench_function("raw", |b| b.iter(|| of(black_box(&body), BodyHash::Raw)));
    group.finish();
}

criterion_group!(benches, fingerprints);
criterion_main!(benches);
