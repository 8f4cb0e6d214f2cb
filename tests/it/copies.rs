//! `onceward store copy`: back-ups and moves between a file and Redis, with real servers.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::key::{Caller, Fingerprint, SLOT_BYTES, Slot, Space};
use onceward::record::{
    Extras, Fence, Lifetime, Record, Reply, ReplyBody, Settler, State, Version,
};
use onceward::store::copy::{
    CopyProgress, CopySource, CopyStart, CopyTarget, OutboxItem, OutboxItems,
};
use onceward::store::dead_letters::{
    Burial, DeadLetterCursor, DeadLetterFilter, DeadLetterId, DeadLetterKind, RoundChange,
};
use onceward::store::embedded::{CopiedFile, Embedded, EmbeddedOptions};
use onceward::store::outbox::{
    DeliveryAttempts, EventContent, EventKey, EventOrder, OutboxEvent, RelayFence,
};
use onceward::store::redis::{CopiedRedis, Endpoint, Redis, RedisAck, RedisOptions};
use onceward::store::{DeadLetters, Events, IdentityNotes, Note, Outbox, Records};

use crate::admin::cli;
use crate::harness::{Gateway, ROUTES, RedisServer, Request, Upstream, until};

const LOG: &str = "[log]\nenabled = true\n";

fn command(from: &str, to: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.args(["store", "copy", from, to]);
    command
}

fn copy(from: &str, to: &str) -> (i32, String) {
    let out = command(from, to).output().unwrap();
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
    )
}

fn routes() -> String {
    format!(
        "{ROUTES}tombstone = \"2h\"\n[[routes]]\nname = \"shadowed\"\npath = \"/v1/shadowed\"\nmode = \"shadow\"\n"
    )
}

fn end(mut gateway: Gateway) {
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

fn pay(n: usize) -> Request {
    Request::pay(&format!("k{n}"), "{}")
}

/// Checks that each payment is answered as it was before.
fn replayed(gateway: &Gateway, answers: &[Vec<u8>]) {
    for (n, body) in answers.iter().enumerate() {
        let again = pay(n).send(gateway.port);
        assert!(again.replayed() && again.body == *body, "{n}: {again:?}");
    }
}

#[test]
fn a_store_moves_from_a_file_to_redis_and_back_and_nothing_runs_again() {
    let (upstream, redis, dir) =
        (Upstream::start(), RedisServer::start(), tempfile::tempdir().unwrap());
    let file = |name: &str| format!("file:{}", dir.path().join(name).display());
    let namespaced = format!("{}?namespace=moved", redis.url());
    let mut answers = Vec::new();

    let gateway = Gateway::on(upstream.port, &file("first"), LOG, &routes());
    answers.extend((0..20).map(|n| pay(n).send(gateway.port).body));
    let lost = Request::pay("lost", "{}").act("drop").send(gateway.port).json()["operation"]
        .as_str()
        .unwrap()
        .to_owned();
    let shadowed = Request::new("POST", "/v1/shadowed").field("Idempotency-Key", "s").json("{}");
    assert_eq!(shadowed.send(gateway.port).status, 201);
    let (code, output) = copy(&file("first"), &namespaced);
    assert!(
        code == 1 && output.contains("another process uses it (a gateway, or a copy)"),
        "{output}"
    );
    let expired = pay(19).send(gateway.port);
    assert!(expired.replayed());
    end(gateway);

    let (code, output) = copy(&file("first"), &namespaced);
    assert!(
        code == 0 && output.contains("all compared") && output.contains("links were recomputed"),
        "{output}"
    );
    assert_eq!(
        redis.cli(&["exists", "moved:{p0}:identities", "moved:{p0}:paths"]),
        "2",
        "what gateways agreed on is copied"
    );
    let gateway = Gateway::on(upstream.port, &namespaced, LOG, &routes());
    until("all to be replayed in Redis", || pay(0).send(gateway.port).replayed());
    replayed(&gateway, &answers);
    assert_eq!(cli(&gateway, &["show", &lost]).0, 0, "what is uncertain stays so");
    assert!(cli(&gateway, &["list", "--state", "uncertain"]).1.contains(&lost));
    assert_eq!(verify(&gateway), 0);
    answers.extend((20..30).map(|n| pay(n).send(gateway.port).body));
    let (code, output) = copy(&namespaced, &file("second"));
    assert!(
        code == 1 && output.contains("gateways use this store in Redis (1 of them)"),
        "{output}"
    );
    end(gateway);

    let (code, output) = copy(&namespaced, &file("second"));
    assert!(code == 0 && output.contains("all compared"), "{output}");
    let gateway = Gateway::on(upstream.port, &file("second"), LOG, &routes());
    replayed(&gateway, &answers);
    assert!(cli(&gateway, &["list", "--state", "uncertain"]).1.contains(&lost));
    assert_eq!(verify(&gateway), 0);
    end(gateway);
    // A back-up from one Redis to another keeps the log unchanged, and is refused if the target
    // holds anything.
    let (code, output) = copy(&namespaced, &redis.url());
    assert!(code == 0 && !output.contains("links were recomputed"), "{output}");
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, &routes());
    replayed(&gateway, &answers);
    assert_eq!(verify(&gateway), 0);
    end(gateway);
    for to in [&redis.url(), &file("first")] {
        let (code, output) = copy(&file("second"), to);
        assert!(
            code == 1 && output.contains("the second store holds something already"),
            "{output}"
        );
    }
    assert_eq!(upstream.executed(), 32);
}

fn verify(gateway: &Gateway) -> i32 {
    let admin = format!("127.0.0.1:{}", gateway.admin);
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["log", "verify", "--admin", &admin])
        .output()
        .unwrap();
    out.status.code().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn file_options() -> EmbeddedOptions {
    let clock = onceward::clock::Clock::system();
    let unix_ms = clock.unix_ms();
    EmbeddedOptions::new(Arc::new(move || clock.boot_ms()), unix_ms)
}

/// Returns a slot. The slots are spread over all partitions.
fn slot(n: u64) -> Slot {
    let mut hash = [7; SLOT_BYTES];
    hash[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Slot::from_hash(Space::Enforced, hash)
}

const KEEP: Lifetime = Lifetime { keep: Duration::from_secs(3600), due: None, tombstone: None };

/// Adds records without a client to a store that no gateway uses.
fn add_records(dir: &Path, count: u64) {
    runtime().block_on(async {
        let store = Arc::new(Embedded::open(dir, file_options()).unwrap());
        let writes = (0..count).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store.swap(&slot(n), None, &record(n), KEEP).await.unwrap();
            })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap();
        }
        store.close().await;
    });
}

fn record(n: u64) -> Record {
    let body = ReplyBody::Whole(vec![b'x'; 1000].into());
    let reply = Arc::new(Reply {
        status: http::StatusCode::CREATED,
        headers: http::HeaderMap::new(),
        body,
        trailers: None,
    });
    Record {
        version: Version(n),
        fence: Fence(n),
        route: "payments".into(),
        fingerprint: Some(Fingerprint::from_bytes([7; 32])),
        caller: Some(Caller::nobody()),
        opened_unix_ms: 1_800_000_000_000,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state: State::Completed { reply, by: Settler::Upstream },
    }
}

#[test]
fn a_copy_that_is_killed_in_the_middle_keeps_gateways_away_and_goes_on() {
    const COUNT: u64 = 20_000;
    let (upstream, redis, dir) =
        (Upstream::start(), RedisServer::start(), tempfile::tempdir().unwrap());
    let path = dir.path().join("data");
    let file = format!("file:{}", path.display());
    let gateway = Gateway::on(upstream.port, &file, LOG, ROUTES);
    let pay = |n: usize| Request::pay(&format!("k{n}"), "{}");
    let answers: Vec<_> = (0..10).map(|n| pay(n).send(gateway.port).body).collect();
    end(gateway);
    add_records(&path, COUNT);

    let mut child: Child =
        command(&file, &redis.url()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let held = || redis.cli(&["dbsize"]).parse::<u64>().unwrap();
    until("the copy to be under way", || held() > 1000);
    redis.signal("STOP");
    assert_eq!(child.try_wait().unwrap(), None, "it is still under way");
    child.kill().unwrap();
    child.wait().unwrap();
    redis.signal("CONT");
    let partly = held();
    assert!(partly < COUNT, "{partly}");

    let closed = Gateway::spawn(upstream.port, &redis.url(), LOG, ROUTES);
    until("the gateway to say why it isn't ready", || {
        closed.logs().contains("a copy into this store isn't finished")
    });
    assert_eq!(pay(0).send(closed.port).status, 503);
    let (code, output) = copy(&file, &redis.url());
    assert!(code == 1 && output.contains("gateways use this store"), "{output}");
    end(closed);

    let (code, output) = copy(&file, &redis.url());
    assert!(
        code == 0
            && output.contains("continuing an interrupted copy")
            && output.contains("copying records"),
        "{output}"
    );
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, ROUTES);
    for (n, body) in answers.iter().enumerate() {
        let again = pay(n).send(gateway.port);
        assert!(again.replayed() && again.body == *body, "{again:?}");
    }
    assert_eq!((upstream.executed(), verify(&gateway)), (10, 0));
    assert!(held() > COUNT);
}

#[test]
fn a_copy_that_makes_no_sense_is_a_faulty_usage() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("file:{}", dir.path().join("data").display());
    for (from, to, reason) in [
        ("memory:", &*file, "belongs to one process"),
        (&*file, "memory:", "belongs to one process"),
        (&*file, &*file, "both stores are the same"),
        (&*file, "http://h", "expected a store's url"),
    ] {
        let (code, output) = copy(from, to);
        assert!(code == 2 && output.contains(reason), "{from} {to}: {code} {output}");
    }
    let other = format!("file:{}", dir.path().join("other").display());
    let (code, output) = copy(&file, &other);
    assert!(code == 1 && output.contains("there is no store in"), "{output}");
    assert!(
        !dir.path().join("other").exists() && !dir.path().join("data").exists(),
        "nothing is made"
    );
}

#[test]
fn a_file_that_can_not_be_opened_is_explained() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let run = || {
        let mut gateway =
            Gateway::spawn(upstream.port, &format!("file:{}", path.display()), "", ROUTES);
        let code = gateway.wait().code();
        until("its log", || gateway.logs().contains("can't be opened"));
        (code, gateway.logs())
    };
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("records.redb"), [7; 10_000]).unwrap();
    let (code, output) = run();
    for reason in [
        "the file is damaged",
        "elsewhere before anything else",
        "put a back-up in its place",
        "its duplicates run again",
    ] {
        assert!(code == Some(1) && output.contains(reason), "{reason}: {output}");
    }
    std::fs::write(path.join("records.redb"), []).unwrap();
    let (code, output) = run();
    assert!(
        code == Some(1) && output.contains("the file is damaged") && output.contains("it is empty"),
        "{output}"
    );
    std::fs::remove_file(path.join("records.redb")).unwrap();
    let _holder = Gateway::on(upstream.port, &format!("file:{}", path.display()), "", ROUTES);
    let (code, output) = run();
    assert!(
        code == Some(1)
            && output.contains("another process uses it")
            && output.contains("nothing is lost"),
        "{output}"
    );
}

const RELAY: RelayFence = RelayFence(7);
const OPERATIONS: u64 = 300;
const PAUSE: Duration = Duration::from_secs(600);

/// The `number`th event of an operation. Odd ones are for another sink, and sealed.
fn event(n: u64, number: u8) -> OutboxEvent {
    let text = Bytes::from(format!("event {number} of operation {n}"));
    let order = EventOrder { opened_unix_ms: 1_800_000_000_000, version: n, number };
    let (sink, content) = if number.is_multiple_of(2) {
        ("ledger", EventContent::Plain(text))
    } else {
        ("mail", EventContent::Sealed(text))
    };
    OutboxEvent { sink: sink.into(), order, content }
}

fn key(n: u64, number: u8) -> EventKey {
    let OutboxEvent { sink, order, .. } = event(n, number);
    EventKey { sink, slot: slot(n), order }
}

/// Makes a store in a file with waiting events and dead letters.
async fn fill_outbox(dir: &Path) {
    let store = Arc::new(Embedded::open(dir, file_options()).unwrap());
    assert!(store.own_partition(0, RELAY, None).await.unwrap());
    let operations = (0..OPERATIONS).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let outbox: Vec<OutboxEvent> = (0..3).map(|number| event(n, number)).collect();
            let events = Events { outbox: &outbox, ..Events::NONE };
            store.write(&slot(n), None, &record(n), KEEP, events).await.unwrap();
            let kind = [DeadLetterKind::Receiver, DeadLetterKind::Gateway][n as usize % 2];
            if n % 5 < 2 {
                let report = EventContent::Sealed(Bytes::from(format!("report {n}")));
                let burial = Burial { kind, report };
                assert!(store.bury(RELAY, &key(n, (n % 5) as u8), 0, &burial).await.unwrap());
            } else {
                let attempts = DeliveryAttempts { count: n as u32, first_ms: 1_800_000_000_000 };
                assert!(store.postpone(RELAY, &key(n, 0), 0, attempts, PAUSE).await.unwrap());
            }
        })
    });
    for operation in operations.collect::<Vec<_>>() {
        operation.await.unwrap();
    }
    // A second round.
    assert!(
        store.requeue(DeadLetterId::of(&key(10, 0)), RoundChange { from: 0, to: 1 }).await.unwrap()
    );
    store.set_note(Note::Sinks, None, "paused").await.unwrap();
    store.close().await;
}

/// Returns everything in the outbox of a store, in no order of its own.
async fn outbox_of(store: &dyn CopySource) -> Vec<OutboxItem> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let OutboxItems { items, cursor: next } = store.outbox(cursor.as_deref()).await.unwrap();
        all.extend(items);
        if next.is_none() {
            break;
        }
        cursor = next;
    }
    all.sort_by_key(|item| match item {
        OutboxItem::Waiting { event, .. } => (0, event.key.clone()),
        OutboxItem::Dead(letter) => (1, letter.key.clone()),
    });
    all
}

fn redis_options(server: &RedisServer, namespace: &str) -> RedisOptions {
    RedisOptions {
        endpoint: Endpoint::Server(server.url()),
        timeout: Duration::from_secs(5),
        ca_file: None,
        client: None,
        ack: RedisAck::Memory,
        loss_pause: Duration::ZERO,
        breakers: Default::default(),
        namespace: namespace.into(),
        features: Default::default(),
    }
}

/// Returns the counts of a store over all sinks and partitions, and the bytes.
async fn counted(store: &dyn Outbox) -> ([u64; 3], u64) {
    let parts = store.backlog().await.unwrap();
    let sum = |of: fn(&onceward::store::outbox::SinkBacklog) -> u64| parts.iter().map(of).sum();
    (
        [
            sum(|part| part.waiting),
            sum(|part| part.dead_by_receiver),
            sum(|part| part.dead_by_gateway),
        ],
        sum(|part| part.bytes),
    )
}

#[test]
fn the_outbox_moves_from_a_file_to_redis_and_back() {
    let (redis, dir) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let [first, last] = ["first", "last"].map(|name| dir.path().join(name));
    let [first_url, last_url] = [&first, &last].map(|path| format!("file:{}", path.display()));
    // The rights that the documents list for a copy.
    let listed = "resetkeys ~one:* ~two:* resetchannels &* -@all \
        +evalsha +eval +get +set +mget +getrange +time +zadd +zrem +zcount +zrangebyscore +zcard \
        +zrange +scan +publish +subscribe +unsubscribe +info +config|get +multi +exec +discard \
        +hset +hgetall +hdel +hget +hmget +xadd +xread +xrange +xlen +xtrim +rpush +lpop +llen \
        +lrange +ltrim +incrby +pttl +del +append";
    let rights: Vec<&str> = listed.split_whitespace().collect();
    assert_eq!(
        redis.cli(&[&["acl", "setuser", "copier", "on", ">pw"], &rights[..]].concat()),
        "OK"
    );
    let url = redis.url().replacen("://", "://copier:pw@", 1);
    let urls = ["one", "two"].map(|name| format!("{url}?namespace={name}"));
    let runtime = runtime();
    runtime.block_on(fill_outbox(&first));
    let (original, bytes) = runtime.block_on(async {
        let file = Embedded::open(&first, file_options()).unwrap();
        let (counted, bytes) = counted(&file).await;
        assert_eq!(counted, [781, 59, 60]);
        file.close().await;
        (outbox_of(&CopiedFile::source(&first, file_options()).unwrap()).await, bytes)
    });
    for (from, to) in [(&first_url, &urls[0]), (&urls[0], &urls[1]), (&urls[1], &last_url)] {
        let (code, output) = copy(from, to);
        let summary = "781 events that wait for sinks and 119 dead letters, all compared";
        assert!(code == 0 && output.contains(summary), "{from} {to}: {output}");
    }
    let (code, output) = copy(&first_url, &urls[1]);
    assert!(code == 1 && output.contains("holds something already"), "{output}");

    runtime.block_on(async {
        let copied = CopiedFile::source(&last, file_options()).unwrap();
        assert_eq!(outbox_of(&copied).await, original);
        assert_eq!(copied.note(Note::Sinks).await.unwrap().as_deref(), Some("paused"));
        drop(copied);
        let file = Embedded::open(&last, file_options()).unwrap();
        let expected = ([781, 59, 60], bytes);
        assert_eq!(counted(&file).await, expected);
        let store = Redis::connect(redis_options(&redis, "two")).unwrap();
        store.ping().await.unwrap();
        assert_eq!(counted(&*store).await, expected);
        is_delivered_in_order(&store).await;
        let id = DeadLetterId::of(&key(6, 1));
        let letter = store.dead_letter(id).await.unwrap().unwrap();
        assert_eq!(file.dead_letter(id).await.unwrap(), Some(letter.clone()));
        let all = DeadLetterFilter::default();
        let before = DeadLetterCursor { buried_ms: letter.buried_ms + 1, id };
        let page = store.dead_letters(&all, Some(before), 200).await.unwrap();
        assert!(page.letters.contains(&letter));
        assert!(store.requeue(id, RoundChange::next(&letter)).await.unwrap());
        file.close().await;
    });
}

/// Checks the events of an operation in a copy: those of one sink are due one after the other.
async fn is_delivered_in_order(store: &Redis) {
    let (first, second) = (key(10, 0), key(10, 2));
    let partition = store.partition_of(&first.slot);
    assert_eq!(store.partition_owners().await.unwrap()[usize::from(partition)], None);
    assert!(store.own_partition(partition, RELAY, None).await.unwrap());
    for (expected, round) in [(first, 1), (second, 0)] {
        let due = store.due_events(partition, "ledger", 100).await.unwrap().events;
        let due: Vec<_> = due.iter().filter(|event| event.key.slot == expected.slot).collect();
        assert!(due.len() == 1 && due[0].key == expected && due[0].round == round, "{due:?}");
        assert!(store.remove(RELAY, &expected, round).await.unwrap());
    }
}

#[test]
fn an_outbox_that_was_copied_in_part_is_not_doubled() {
    let (redis, dir) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let path = dir.path().join("data");
    let runtime = runtime();
    runtime.block_on(fill_outbox(&path));
    // The progress of this write was lost.
    let (items, expected) = runtime.block_on(async {
        let file = Embedded::open(&path, file_options()).unwrap();
        let expected = counted(&file).await;
        file.close().await;
        let source = CopiedFile::source(&path, file_options()).unwrap();
        let target = CopiedRedis::connect(redis_options(&redis, "onceward")).unwrap();
        assert_eq!(target.begin().await.unwrap(), CopyStart::Fresh);
        let items = outbox_of(&source).await;
        let half: Vec<_> = items.iter().step_by(2).cloned().collect();
        target.put_outbox(&half, &CopyProgress::default()).await.unwrap();
        (items, expected)
    });
    let (code, output) = copy(&format!("file:{}", path.display()), &redis.url());
    assert!(code == 0 && output.contains("continuing an interrupted copy"), "{output}");
    runtime.block_on(async {
        let copied = CopiedRedis::connect(redis_options(&redis, "onceward")).unwrap();
        assert_eq!(outbox_of(&copied).await, items);
        let store = Redis::connect(redis_options(&redis, "onceward")).unwrap();
        store.ping().await.unwrap();
        assert_eq!(counted(&*store).await, expected);
        // A copy that lost its mark writes nothing.
        let late = CopiedRedis::connect(redis_options(&redis, "onceward")).unwrap();
        let error = late.put_outbox(&items, &CopyProgress::default()).await.unwrap_err();
        assert!(error.to_string().contains("the store was opened meanwhile"), "{error}");
    });
}
