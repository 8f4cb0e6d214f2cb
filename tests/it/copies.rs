//! `onceward store copy`: back-ups and moves between a file and Redis, with real servers.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use onceward::key::{Caller, Fingerprint, SLOT_BYTES, Slot, Space};
use onceward::record::{
    Extras, Fence, Lifetime, Record, Reply, ReplyBody, Settler, State, Version,
};
use onceward::store::Records;
use onceward::store::embedded::{Embedded, EmbeddedOptions};

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

/// Adds records without a client to a store that no gateway uses.
fn add_records(dir: &Path, count: u64) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let clock = onceward::clock::Clock::system();
        let unix_ms = clock.unix_ms();
        let store = Arc::new(
            Embedded::open(dir, EmbeddedOptions::new(Arc::new(move || clock.boot_ms()), unix_ms))
                .unwrap(),
        );
        let writes = (0..count).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut hash = [7; SLOT_BYTES];
                hash[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                let keep = Lifetime { keep: Duration::from_secs(3600), due: None, tombstone: None };
                store
                    .swap(&Slot::from_hash(Space::Enforced, hash), None, &record(n), keep)
                    .await
                    .unwrap();
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
