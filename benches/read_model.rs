//! The read model with a million operations: how fast it is built, and how fast it answers queries.
//!
//! Prints medians. `cargo bench --bench read_model -- 100000` uses fewer operations.
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
/// Entries in one transaction, as in the projector.
const BATCH: usize = 4096;
/// How often each query runs, each time with other values.
const RUNS: u64 = 200;
/// Operations on a page.
const PAGE: usize = 50;

/// The scope of the large tenant.
const LARGE: &str = "1a49e00000000000";

/// The begin and the length of the day on which the operations happen, in ms.
const T0: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// How long records are kept.
const KEEP_MS: u64 = 7 * DAY_MS;

/// Returns a number that looks random and is the same in each run (the finalizer of SplitMix64).
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

/// A third of the operations belongs to one large tenant, the rest to 5000 tenants.
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
        phase: None,
        context: Context {
            scope: Some(scope(n)),
            request_bytes: Some(300 + n % 700),
            fields,
            ..Context::default()
        },
    }
}

/// Returns the event that ends an operation: one in 2000 is uncertain, one in 50 is declined, and
/// the rest succeed.
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

/// Returns the log entries of these operations.
fn entries(operations: std::ops::Range<u64>, of: u64) -> Vec<LogEntry> {
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

/// Fills a file, and returns how long applying the entries took.
fn fill(model: &ReadModel, operations: u64) -> Duration {
    let generation = model.progress().unwrap().checkpoint.fence;
    let (mut took, mut reported) = (Duration::ZERO, 0);
    for first in (0..operations).step_by(BATCH / 2) {
        let mut entries = entries(first..operations.min(first + BATCH as u64 / 2), operations);
        // Every log has the entries of a partition in order.
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

/// Applies observations of duplicates of the last hour, as gateways export them.
fn observe(model: &ReadModel, operations: u64) {
    let generation = model.progress().unwrap().checkpoint.fence;
    let observation = |n: u64| Observation {
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
            let observations: Vec<Observation> =
                (0..200).map(|n| observation(batch * 200 + n)).collect();
            let id = EntryId { ms: T0 + DAY_MS, seq: batch };
            (id, serde_json::to_vec(&observations).unwrap().into())
        })
        .collect();
    model.apply_observations(generation, &batches).unwrap();
}

/// Runs a query many times after a warm-up, and prints the median and the slowest time.
fn measure<T>(name: &str, query: impl Fn(u64) -> Result<T, QueryError>) {
    for n in 0..RUNS / 10 {
        black_box(query(n).unwrap());
    }
    let mut took: Vec<Duration> = (0..RUNS)
        .map(|n| {
            let began = Instant::now();
            black_box(query(n).unwrap());
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

fn queries(model: &ReadModel, operations: u64) {
    let now_ms = T0 + DAY_MS;
    let any = |n: u64| mixed(n) % operations;
    let search = |filter: Filter| model.search(&filter, now_ms, None, PAGE);
    let none = Filter::default;
    measure("newest", |_| search(none()));
    measure("route", |n| search(Filter { route: Some(route(n)), ..none() }));
    measure("route, no such", |_| search(Filter { route: Some("nowhere".into()), ..none() }));
    measure("state uncertain", |_| {
        search(Filter { state: Some(OperationState::Uncertain), ..none() })
    });
    measure("state completed", |_| {
        search(Filter { state: Some(OperationState::Completed), ..none() })
    });
    measure("state expired (none)", |_| {
        search(Filter { state: Some(OperationState::Expired), ..none() })
    });
    measure("route and state", |n| {
        search(Filter { route: Some(route(n)), state: Some(OperationState::Uncertain), ..none() })
    });
    measure("status 402", |_| search(Filter { status: Some(402), ..none() }));
    measure("status 500 (none)", |_| search(Filter { status: Some(500), ..none() }));
    measure("status and route", |n| {
        search(Filter { status: Some(402), route: Some(route(n)), ..none() })
    });
    measure("scope", |n| search(Filter { scopes: vec![scope(any(n))], ..none() }));
    measure("scope and state", |n| {
        search(Filter {
            scopes: vec![scope(any(n))],
            state: Some(OperationState::Uncertain),
            ..none()
        })
    });
    let large = |filter: Filter| search(Filter { scopes: vec![LARGE.to_owned()], ..filter });
    measure("the large scope", |_| large(none()));
    measure("the large scope and state", |_| {
        large(Filter { state: Some(OperationState::Uncertain), ..none() })
    });
    measure("the large scope and status", |_| large(Filter { status: Some(402), ..none() }));
    let field = |name: &str, value: String| Filter { field: Some((name.into(), value)), ..none() };
    measure("field order", |n| search(field("order", format!("order-{}", any(n)))));
    measure("field currency (a third)", |_| search(field("currency", "EUR".into())));
    let lost = |filter: Filter| Filter { state: Some(OperationState::Uncertain), ..filter };
    measure("field currency and state", |_| search(lost(field("currency", "EUR".into()))));
    measure("field currency and scope", |n| {
        search(Filter { scopes: vec![scope(any(n))], ..field("currency", "EUR".into()) })
    });
    let hour = |n: u64| {
        (T0 + mixed(n) % (DAY_MS - 3_600_000), T0 + mixed(n) % (DAY_MS - 3_600_000) + 3_600_000)
    };
    measure("an hour", |n| {
        search(Filter { from_ms: Some(hour(n).0), until_ms: Some(hour(n).1), ..none() })
    });
    measure("an hour and status", |n| {
        search(Filter {
            from_ms: Some(hour(n).0),
            until_ms: Some(hour(n).1),
            status: Some(402),
            ..none()
        })
    });
    measure("text: a reference", |n| {
        search(Filter { text: Some(slot(any(n)).to_string()), ..none() })
    });
    measure("text: an order", |n| {
        search(Filter { text: Some(format!("order-{}", any(n))), ..none() })
    });
    measure("text: nothing", |_| search(Filter { text: Some("nothing".into()), ..none() }));
    measure("timeline", |n| model.timeline(&slot(any(n)).to_string(), now_ms));
    measure("overview", |_| model.overview(now_ms));
    measure("statistics of a day", |_| model.statistics(T0, now_ms));
}

/// Measures the projector: it reads a log, applies the entries, and stores how far it has read.
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
                store
                    .write(
                        &slot(n),
                        expected,
                        &next,
                        lifetime,
                        onceward::store::Events::logged(&|| event.clone()),
                    )
                    .await
                    .unwrap();
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
    use onceward::engine::{ClaimOver, ClaimRequest, claim};
    use onceward::key::{BodyHash, Caller, fingerprint};
    let overrides =
        Overrides { upstream: Some("http://localhost:9000".into()), ..Overrides::default() };
    let policy = Config::load(None, overrides).unwrap().routes.swap_remove(0).policy;
    let body = Bytes::from_static(b"{}");
    let asked = ClaimRequest {
        caller: Caller::of_field("authorization", b"Bearer secret"),
        fingerprint: fingerprint("POST", "/payments", None, &body, BodyHash::Raw),
        fence: Fence(1),
    };
    claim(&asked, ClaimOver::Nothing, Version(1), T0, &policy).record
}

fn main() {
    let operations =
        std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(OPERATIONS);
    drain(operations.min(200_000));
    let folder = tempfile::tempdir().unwrap();
    let model = ReadModel::open(&folder.path().join("model.sqlite")).unwrap();
    let took = fill(&model, operations);
    println!(
        "{operations} operations applied at {:.0} entries/s",
        2.0 * operations as f64 / took.as_secs_f64()
    );
    observe(&model, operations);
    queries(&model, operations);
    let bytes = std::fs::metadata(folder.path().join("model.sqlite")).unwrap().len();
    println!("the file has {} bytes per operation", bytes / operations);
    let began = Instant::now();
    model.clear().unwrap();
    println!("emptied in {:.1?}", began.elapsed());
}
