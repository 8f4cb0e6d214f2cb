//! The byte guard, which checks every byte of every HTTP/1.1 client. It should cost little compared
//! with the parser after it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use onceward::proxy::Scanner;

const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The request that a client library sends for a payment.
const PAYMENT: &str = "POST /v1/payments HTTP/1.1\r\n\
    Host: pay.example.com\r\n\
    User-Agent: payments-sdk/4.2.1 (linux; x86_64) runtime/22.1.0\r\n\
    Accept: application/json\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Authorization: Bearer sk_live_51H8s2kL4nXq0aB3cD5eF7gH9iJ\r\n\
    Content-Type: application/json\r\n\
    Idempotency-Key: 3f0c7f7e-4b8f-4a0e-9d5c-6a1f1f9be1a2\r\n\
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
    Connection: keep-alive\r\n\
    Content-Length: 51\r\n\
    \r\n\
    {\"amount\":4990,\"currency\":\"EUR\",\"customer\":\"c_81\"}\n";

const CHUNKS: &str = "POST /v1/payments HTTP/1.1\r\n\
    Host: pay.example.com\r\n\
    Transfer-Encoding: chunked\r\n\
    \r\n\
    33\r\n{\"amount\":4990,\"currency\":\"EUR\",\"customer\":\"c_81\"}\n\r\n0\r\n\r\n";

fn guard(c: &mut Criterion) {
    let mut group = c.benchmark_group("guard");
    for (name, request) in [("payment", PAYMENT), ("chunks", CHUNKS)] {
        group.throughput(Throughput::Bytes(request.len() as u64));
        group.bench_function(name, |b| {
            let mut scanner = Scanner::new(HEAD_BYTES_MAX);
            b.iter(|| {
                let found = scanner.scan(black_box(request.as_bytes()));
                // The benchmark must measure complete requests that pass.
                assert!(found.safe == request.len() && found.refused.is_none());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, guard);
criterion_main!(benches);
