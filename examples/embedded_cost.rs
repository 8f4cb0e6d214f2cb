//! Measures the time of an operation on the embedded store, empty and with many records.
//!
//!     cargo run --profile dist --example embedded_cost -- [RECORDS] [DIR]
//!
//! Prints the time per operation (claim and completion) with 64 clients and with one, and how many
//! claims share a commit. DIR must be new and is kept. Without DIR, a temporary folder is used and
//! removed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a measurement stops at the first error")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use onceward::clock::Clock;
use onceward::key::{Caller, Fingerprint, Scope, Slot, Space};
use onceward::record::{
    Extras, Fence, Lifetime, Record, Reply, ReplyBody, Settler, State, Version,
};
use onceward::store::embedded::{Embedded, EmbeddedOptions};
use onceward::store::{Records, Swap};
use tokio::time::Instant;

const RECORDS: u64 = 1_000_000;
/// The number of clients that fill the store. Many clients fill it quickly.
const FILLERS: u64 = 512;
/// The number of operations in each measurement.
const MEASURED: u64 = 10_000;
/// The size of a reply's body, in bytes, similar to a payment in JSON.
const BODY_BYTES: usize = 512;
const DAY: Duration = Duration::from_secs(86_400);

fn record(n: u64, version: u64, state: State) -> Record {
    Record {
        version: Version(version),
        fence: Fence(n),
        route: "payments".into(),
        fingerprint: Some(Fingerprint::from_bytes([1; 32])),
        caller: Some(Caller::nobody()),
        opened_unix_ms: 0,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state,
    }
}

fn reply() -> Arc<Reply> {
    let headers = HeaderMap::from_iter([
        (http::header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (http::header::DATE, HeaderValue::from_static("Mon, 23 Nov 2026 23:59:59 GMT")),
    ]);
    Arc::new(Reply {
        status: StatusCode::CREATED,
        headers,
        body: ReplyBody::Whole(Bytes::from_static(&[b'x'; BODY_BYTES])),
        trailers: None,
    })
}

/// Runs one operation: claims an empty slot, and writes the result.
async fn operation(store: &Embedded, n: u64) {
    let slot = Slot::of(Space::Enforced, "payments", &Scope::shared(), &n.to_be_bytes(), b"");
    let claim = record(n, 1, State::InFlight { uncertain_since_ms: None });
    let lease = Lifetime { keep: 30 * DAY, due: Some(Duration::from_secs(30)), tombstone: None };
    assert_eq!(store.swap(&slot, None, &claim, lease).await.unwrap(), Swap::Stored);
    let result = record(n, 2, State::Completed { reply: reply(), by: Settler::Upstream });
    let keep = Lifetime { keep: DAY, due: None, tombstone: None };
    assert_eq!(store.swap(&slot, Some(Version(1)), &result, keep).await.unwrap(), Swap::Stored);
}

/// Runs `count` operations with `clients` clients, and returns how long they took.
async fn run(store: &Arc<Embedded>, next: &Arc<AtomicU64>, clients: u64, count: u64) -> Duration {
    let begin = Instant::now();
    let end = next.load(Ordering::Relaxed) + count;
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            let (store, next) = (store.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let taken = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                        (n < end).then_some(n + 1)
                    });
                    let Ok(n) = taken else { return };
                    operation(&store, n).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    begin.elapsed()
}

async fn measure(store: &Arc<Embedded>, next: &Arc<AtomicU64>) -> (f64, f64) {
    let (commits, claims) = (store.commits(), store.claims());
    let many = run(store, next, 64, MEASURED).await;
    let shared = (store.claims() - claims) as f64 / (store.commits() - commits) as f64;
    let alone = run(store, next, 1, MEASURED / 10).await;
    let per = |span: Duration, count: u64| span.as_secs_f64() * 1e6 / count as f64;
    let (many, alone) = (per(many, MEASURED), per(alone, MEASURED / 10));
    println!(
        "  {many:8.1} us per operation with 64 clients, {shared:.1} claims per commit; {alone:.1} us alone"
    );
    (many, alone)
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let records = arguments.next().map_or(RECORDS, |count| count.parse().unwrap());
    let own = std::env::temp_dir().join(format!("onceward-embedded-cost-{}", std::process::id()));
    let given = arguments.next().map(PathBuf::from);
    let dir = given.clone().unwrap_or_else(|| own.clone());
    let clock = Clock::system();
    let boot = clock.clone();
    let options = EmbeddedOptions::new(Arc::new(move || boot.boot_ms()), clock.unix_ms());
    let store = Arc::new(Embedded::open(&dir, options.clone()).unwrap());
    let next = Arc::new(AtomicU64::new(0));

    println!("empty:");
    let empty = measure(&store, &next).await;
    let filling =
        run(&store, &next, FILLERS, records.saturating_sub(next.load(Ordering::Relaxed))).await;
    println!(
        "{records} records after {:.0} s, {} MiB resident:",
        filling.as_secs_f64(),
        resident_mib()
    );
    let full = measure(&store, &next).await;
    println!("growth: {:.2} with 64 clients, {:.2} alone", full.0 / empty.0, full.1 / empty.1);

    store.close().await;
    let size = std::fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum::<u64>();
    let begin = Instant::now();
    let again = Embedded::open(&dir, options).unwrap();
    println!("{} MiB on disk, opened again in {} ms", size >> 20, begin.elapsed().as_millis());
    again.close().await;
    if given.is_none() {
        std::fs::remove_dir_all(&own).unwrap();
    }
}
