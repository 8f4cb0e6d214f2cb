//! The read model with a million operations: how fast it is built, and how fast it answers what on-call asks.
//!
//! Prints medians; `cargo bench --bench read_model -- 100000` has fewer operations.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::event::{Context, Event, EventKind, Observation, ObservationKind};
use onceward::key::{SLOT_BYTES, Slot, Space};
use onceward::read_model::{Filter, OperationState, Projector, QueryError, ReadModel};
use onceward::record::{Fence, Lifetime, Record, Version};
use onceward::store::Records;
use onceward::store::log::{EntryId, LogEntry};
use onceward::store::memory::Memory;
use tokio::time::Instant;

const OPERATIONS: u64 = 1_000_000;
/// Entries in one transaction, as the projector takes them.
const BATCH: usize = 4096;
/// Of each question, with other values each time.
const QUESTIONS: u64 = 200;
/// Operations on a page.
const PAGE: usize = 50;

/// The scope of the large tenant.
const LARGE: &str = "1a49e00000000000";

/// When the day of the operations begins, and how long it is.
const T0: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// How long records are kept.
const KEEP_MS: u64 = 7 * DAY_MS;

/// A number that looks like chance and is the same in each run (the finalizer of SplitMix64).
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn slot(n: u64) -> Slot {
    let mut hash = [0; SLOT_BYTES];
    let parts = [mixed(n), mixed(!n), mixed(n ^ T0)];
    hash.iter_mut()
        .zip(parts.iter().flat_map(|part| part.to_be_bytes()))
        .for_each(|(to, from)| *to = from);
    Slot::from_hash(Space::Enforced, hash)
}

/// A third is of one large tenant, the rest of 5000.
fn scope(n: u64) -> String {
    if n.is_multiple_of(3) { LARGE.to_owned() } else { format!("{:016x}", mixed(n % 5000)) }
}

fn route(n: u64) -> String {
    ["payments", "payments", "payments", "refunds", "payouts"][mixed(n) as usize % 5].to_owned()
}

fn claimed(n: u64, at_ms: u64) -> Event {
    let fields = BTreeMap::from([
        ("order".to_owned(), format!("order-{n}")),
        ("amount".to_owned(), (mixed(n) % 100_000).to_string()),
        ("currency".to_owned(), ["EUR", "USD", "CHF"][mixed(n) as usize % 3].to_owned()),
    ]);
    Event {
        kind: EventKind::Claimed,
        version: (2 * n + 1).to_string(),
        fence: mixed(n).to_string(),
        route: route(n),
        opened_ms: at_ms,
        keep_ms: KEEP_MS,
        tombstone_ms: None,
        lease_ms: Some(30_000),
        status: None,
        response_bytes: None,
        cause: None,
        context: Context {
            scope: Some(scope(n)),
            request_bytes: Some(300 + n % 700),
            fields,
            ..Context::default()
        },
    }
}

/// How it ends: one in 2000 uncertain, one in 50 declined, the rest well.
fn ended(n: u64, at_ms: u64) -> Event {
    let lost = mixed(n).is_multiple_of(2000);
    let mut event = claimed(n, at_ms);
    event.kind = if lost { EventKind::Uncertain } else { EventKind::Completed };
    event.version = (2 * n + 2).to_string();
    event.lease_ms = None;
    event.status = (!lost).then_some(if mixed(n).is_multiple_of(50) { 402 } else { 201 });
    event.cause = lost.then(|| "the connection broke before the response was whole".to_owned());
    event.response_bytes = (!lost).then_some(412);
    event.context = Context {
        scope: Some(scope(n)),
        upstream_ms: Some(20 + mixed(n) % 400),
        ..Context::default()
    };
    event
}

fn at_ms(n: u64, of: u64) -> u64 {
    T0 + n * DAY_MS / of
}

/// What the log tells of so many operations, as it would be read.
fn told(operations: std::ops::Range<u64>, of: u64) -> Vec<LogEntry> {
    let entry = |n: u64, nth: u64, event: &Event| {
        let slot = slot(n);
        let partition = u16::from(slot.hash()[0]);
        let id = EntryId { ms: at_ms(n, of) + 100 * nth, seq: 2 * n + nth };
        LogEntry {
            partition,
            id,
            slot,
            event: serde_json::to_vec(event).unwrap().into(),
            link: None,
        }
    };
    operations
        .flat_map(|n| {
            [entry(n, 0, &claimed(n, at_ms(n, of))), entry(n, 1, &ended(n, at_ms(n, of)))]
        })
        .collect()
}

/// Fills a file; how long applying took.
fn fill(model: &ReadModel, operations: u64) -> Duration {
    let generation = model.progress().unwrap().checkpoint.fence;
    let (mut took, mut reported) = (Duration::ZERO, 0);
    for first in (0..operations).step_by(BATCH / 2) {
        let mut entries = told(first..operations.min(first + BATCH as u64 / 2), operations);
        // Within a partition in order, as every log has them.
        entries.sort_by_key(|entry| (entry.partition, entry.id));
        let began = Instant::now();
        model.apply(generation, &entries).unwrap();
        took += began.elapsed();
        if first >= reported + operations / 4 {
            reported = first;
            println!(
                "  {first} operations, {:.0} entries/s so far",
                2.0 * first as f64 / took.as_secs_f64()
            );
        }
    }
    took
}

/// Duplicates of the last hour, as gateways tell them.
fn observe(model: &ReadModel, operations: u64) {
    let generation = model.progress().unwrap().checkpoint.fence;
    let seen = |n: u64| Observation {
        until_ms: None,
        times: None,
        kind: ObservationKind::Replayed,
        at_ms: T0 + DAY_MS - mixed(n) % 3_600_000,
        operation: slot(mixed(n) % operations).to_string(),
        route: route(n),
        status: Some(201),
        scope: Some(scope(n)),
        waited_ms: None,
        problem: None,
        differing: Vec::new(),
        trace: None,
    };
    let batches: Vec<(EntryId, Bytes)> = (0..50)
        .map(|batch| {
            let seen: Vec<Observation> = (0..200).map(|n| seen(batch * 200 + n)).collect();
            (EntryId { ms: T0 + DAY_MS, seq: batch }, serde_json::to_vec(&seen).unwrap().into())
        })
        .collect();
    model.apply_observations(generation, &batches).unwrap();
}

/// Asks a question many times, warm, and prints the median and the slowest.
fn ask<T>(name: &str, question: impl Fn(u64) -> Result<T, QueryError>) {
    for n in 0..QUESTIONS / 10 {
        black_box(question(n).unwrap());
    }
    let mut took: Vec<Duration> = (0..QUESTIONS)
        .map(|n| {
            let began = Instant::now();
            black_box(question(n).unwrap());
            began.elapsed()
        })
        .collect();
    took.sort();
    println!(
        "{name:<42} median {:>9.3?}  slowest {:>9.3?}",
        took[took.len() / 2],
        took[took.len() - 1]
    );
}

fn questions(model: &ReadModel, operations: u64) {
    let now_ms = T0 + DAY_MS;
    let any = |n: u64| mixed(n) % operations;
    let search = |filter: Filter| model.search(&filter, now_ms, None, PAGE);
    let none = Filter::default;
    ask("newest", |_| search(none()));
    ask("route", |n| search(Filter { route: Some(route(n)), ..none() }));
    ask("route, no such", |_| search(Filter { route: Some("nowhere".into()), ..none() }));
    ask("state uncertain", |_| search(Filter { state: Some(OperationState::Uncertain), ..none() }));
    ask("state completed", |_| search(Filter { state: Some(OperationState::Completed), ..none() }));
    ask("state expired (none)", |_| {
        search(Filter { state: Some(OperationState::Expired), ..none() })
    });
    ask("route and state", |n| {
        search(Filter { route: Some(route(n)), state: Some(OperationState::Uncertain), ..none() })
    });
    ask("status 402", |_| search(Filter { status: Some(402), ..none() }));
    ask("status 500 (none)", |_| search(Filter { status: Some(500), ..none() }));
    ask("status and route", |n| {
        search(Filter { status: Some(402), route: Some(route(n)), ..none() })
    });
    ask("scope", |n| search(Filter { scopes: vec![scope(any(n))], ..none() }));
    ask("scope and state", |n| {
        search(Filter {
            scopes: vec![scope(any(n))],
            state: Some(OperationState::Uncertain),
            ..none()
        })
    });
    let large = |filter: Filter| search(Filter { scopes: vec![LARGE.to_owned()], ..filter });
    ask("the large scope", |_| large(none()));
    ask("the large scope and state", |_| {
        large(Filter { state: Some(OperationState::Uncertain), ..none() })
    });
    ask("the large scope and status", |_| large(Filter { status: Some(402), ..none() }));
    let field = |name: &str, value: String| Filter { field: Some((name.into(), value)), ..none() };
    ask("field order", |n| search(field("order", format!("order-{}", any(n)))));
    ask("field currency (a third)", |_| search(field("currency", "EUR".into())));
    let lost = |filter: Filter| Filter { state: Some(OperationState::Uncertain), ..filter };
    ask("field currency and state", |_| search(lost(field("currency", "EUR".into()))));
    ask("field currency and scope", |n| {
        search(Filter { scopes: vec![scope(any(n))], ..field("currency", "EUR".into()) })
    });
    let hour = |n: u64| {
        (T0 + mixed(n) % (DAY_MS - 3_600_000), T0 + mixed(n) % (DAY_MS - 3_600_000) + 3_600_000)
    };
    ask("an hour", |n| {
        search(Filter { from_ms: Some(hour(n).0), until_ms: Some(hour(n).1), ..none() })
    });
    ask("an hour and status", |n| {
        search(Filter {
            from_ms: Some(hour(n).0),
            until_ms: Some(hour(n).1),
            status: Some(402),
            ..none()
        })
    });
    ask("text: a reference", |n| search(Filter { text: Some(slot(any(n)).to_string()), ..none() }));
    ask("text: an order", |n| search(Filter { text: Some(format!("order-{}", any(n))), ..none() }));
    ask("text: nothing", |_| search(Filter { text: Some("nothing".into()), ..none() }));
    ask("timeline", |n| model.timeline(&slot(any(n)).to_string(), now_ms));
    ask("overview", |_| model.overview(now_ms));
    ask("statistics of a day", |_| model.statistics(T0, now_ms));
}

/// From a log on: reading, applying, and how far it is told.
fn drain(operations: u64) {
    let store = Arc::new(Memory::new(Arc::new(|| T0)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(ReadModel::open(&folder.path().join("drained.sqlite")).unwrap());
    runtime.block_on(async {
        let record: Record = record();
        let lifetime =
            Lifetime { keep: Duration::from_millis(KEEP_MS), due: None, tombstone: None };
        for n in 0..operations {
            let (first, second) = (Version(2 * n + 1), Version(2 * n + 2));
            for (expected, version, event) in
                [(None, first, claimed(n, T0)), (Some(first), second, ended(n, T0))]
            {
                let next = Record { version, fence: Fence(n + 1), ..record.clone() };
                let event = serde_json::to_vec(&event).unwrap();
                store.write(&slot(n), expected, &next, lifetime, &|| event.clone()).await.unwrap();
            }
        }
        let began = Instant::now();
        let mut projector = Projector::new(
            model.clone(),
            store,
            Duration::from_millis(KEEP_MS),
            Arc::new(|| T0 + DAY_MS),
        );
        projector.catch_up(|_| {}).await.unwrap();
        let entries = model.freshness().entries;
        let took = began.elapsed();
        println!(
            "the projector drains {:.0} entries/s ({entries} in {took:.1?})",
            entries as f64 / took.as_secs_f64()
        );
    });
}

fn record() -> Record {
    use onceward::config::{Config, Overrides};
    use onceward::engine::{Asked, ClaimOver, claim};
    use onceward::key::{BodyHash, Caller, fingerprint};
    let overrides =
        Overrides { upstream: Some("http://localhost:9000".into()), ..Overrides::default() };
    let policy = Config::load(None, overrides).unwrap().routes.swap_remove(0).policy;
    let body = Bytes::from_static(b"{}");
    let asked = Asked {
        caller: Caller::of_field("authorization", b"Bearer secret"),
        fingerprint: fingerprint("POST", "/payments", None, &body, BodyHash::Raw),
        fence: Fence(1),
    };
    claim(&asked, ClaimOver::Nothing, Version(1), T0, &policy).record
}

fn main() {
    let operations =
        std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(OPERATIONS);
    drain(operations.min(200_000));
    let folder = tempfile::tempdir().unwrap();
    let model = ReadModel::open(&folder.path().join("model.sqlite")).unwrap();
    let took = fill(&model, operations);
    println!(
        "{operations} operations applied at {:.0} entries/s",
        2.0 * operations as f64 / took.as_secs_f64()
    );
    observe(&model, operations);
    questions(&model, operations);
    let bytes = std::fs::metadata(folder.path().join("model.sqlite")).unwrap().len();
    println!("the file has {} bytes per operation", bytes / operations);
    let began = Instant::now();
    model.clear().unwrap();
    println!("emptied in {:.1?}", began.elapsed());
}
