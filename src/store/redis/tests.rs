//! The store on a real Redis: the suite, and servers that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use self::server::{PATIENCE, TestServer, options, store, until};
use super::{ConnectError, Redis, layout};
use crate::key::{Caller, Fingerprint, Slot, Space};
use crate::record::{Extras, Fence, Lifetime, Record, State, Version, encode, head_in_flight};
use crate::store::large::ALONG_MAX;
use crate::store::suite::{self, Stage, Time, completed, slot};
use crate::store::{EventLog, Listing, Records, StoreError, Swap, Watch};
use crate::tls::ClientFiles;

mod epochs;
mod log;
mod outbox;
mod sagas;
mod scripted;
mod server;
mod tracking;

fn names() -> super::layout::KeyNames {
    super::layout::KeyNames::new("onceward").unwrap()
}

const HERE: fn(u64) -> Slot = |n| slot(Space::Enforced, n);
const LEASE: Lifetime = Lifetime {
    keep: Duration::from_secs(600),
    due: Some(Duration::from_secs(300)),
    tombstone: None,
};
const KEEP: Lifetime = Lifetime { due: None, ..LEASE };

/// Short enough for a story about a server that doesn't answer.
const SHORT: Duration = Duration::from_millis(300);

fn claim(version: u64, fence: u64) -> Record {
    Record {
        version: Version(version),
        fence: Fence(fence),
        route: "payments".into(),
        fingerprint: Some(Fingerprint::from_bytes([7; 32])),
        caller: Some(Caller::nobody()),
        opened_unix_ms: 1_799_999_999_999,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state: State::InFlight { uncertain_since_ms: None },
    }
}

async fn claims(store: &Redis, n: u64) -> Result<Swap, StoreError> {
    store.swap(&HERE(n), None, &claim(n, n), LEASE).await
}

async fn claimed(store: &Redis, n: u64) -> bool {
    matches!(claims(store, n).await, Ok(Swap::Stored))
}

async fn wakes(watch: &mut Watch) {
    timeout(PATIENCE, watch.changed()).await.expect("the watcher is woken");
}

mod over_tcp {
    use super::*;

    async fn stage() -> Stage {
        let server = TestServer::start().await;
        Stage::of_shared(server.store(), Time::Real).with_guard(server)
    }

    crate::store::suite::stories!(stage);
}

mod over_a_unix_socket {
    use super::*;

    async fn stage() -> Stage {
        let server = TestServer::start().await;
        Stage::of_shared(store(&server.unix_url(), Duration::from_secs(5)), Time::Real)
            .with_guard(server)
    }

    crate::store::suite::stories!(stage);
}

#[test]
fn names_and_members_lead_back_to_their_slot() {
    for slot in [HERE(1), slot(Space::Shadow, 1)] {
        assert_eq!(names().slot_of(&names().record_key(&slot)), Some(slot));
        assert_eq!(layout::slot_of_member(&layout::member(&slot)), Some(slot));
        let tag = format!("{{p{}}}", slot.hash()[0]);
        for name in [
            names().record_key(&slot),
            names().tombstone_key(&slot),
            names().due_key(slot.partition()),
        ] {
            let name = String::from_utf8(name).unwrap();
            assert!(name.contains(&tag), "{name}");
        }
    }
    assert_ne!(names().tombstone_key(&HERE(1)), names().tombstone_key(&slot(Space::Shadow, 1)));
    assert_eq!(names().slot_of(b"onceward:{p1}:r:beef"), None);
}

#[test]
fn the_scripts_and_the_codec_agree_on_what_is_in_flight() {
    let head = encode(&claim(1, 2)).head;
    assert!(head_in_flight(&head));
    assert_eq!(head[16], 1, "as in claim.lua and renew.lua");
}

#[tokio::test]
async fn options_that_lead_nowhere_are_refused_without_the_password() {
    for url in [
        "",
        "http://host",
        "redis://:s3cret@host:none",
        "redis://:s3cret@host/zero",
        "redis://:s3cret@h?protocol=s3cret",
    ] {
        let error = Redis::connect(options(url, SHORT)).err().unwrap();
        assert_eq!(error, ConnectError::Url);
        assert!(!error.to_string().contains("s3cret"));
        assert!(!format!("{:?}", options(url, SHORT)).contains("s3cret"));
    }
    let absent = super::RedisOptions {
        ca_file: Some("/nowhere/ca.pem".into()),
        ..options("rediss://localhost", SHORT)
    };
    assert!(matches!(Redis::connect(absent).err().unwrap(), ConnectError::CaFile { .. }));
    let file = tempfile::NamedTempFile::new().unwrap();
    let plain = super::RedisOptions {
        ca_file: Some(file.path().into()),
        ..options("redis://localhost", SHORT)
    };
    assert!(matches!(Redis::connect(plain).err().unwrap(), ConnectError::Certificates { .. }));
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    assert_eq!(claims(&store, 1).await.unwrap(), Swap::Stored);
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut admin).await.unwrap();
    assert_eq!(claims(&store, 2).await.unwrap(), Swap::Stored);
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut admin).await.unwrap();
    assert!(store.renew(&HERE(1), Fence(1), SHORT, SHORT * 10).await.unwrap());
}

#[tokio::test]
async fn a_server_that_restarts_is_found_again() {
    let mut server = TestServer::start().await;
    let store = server.store();
    assert_eq!(claims(&store, 1).await.unwrap(), Swap::Stored);
    server.kill();
    until("calls are refused", async || {
        matches!(claims(&store, 2).await, Err(StoreError::NotApplied(_)))
    })
    .await;
    let begun = Instant::now();
    assert!(matches!(store.load(&HERE(1)).await, Err(StoreError::NotApplied(_))));
    assert!(begun.elapsed() < SHORT, "a server that is down is not waited for");
    server.come_back().await;
    until("it works again", async || claimed(&store, 3).await).await;
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_store_may_begin_before_its_server() {
    let mut server = TestServer::start().await;
    server.kill();
    let store = server.store();
    assert!(matches!(claims(&store, 1).await, Err(StoreError::NotApplied(_))));
    server.come_back().await;
    until("it works", async || claimed(&store, 1).await).await;
}

#[tokio::test]
async fn a_stopped_server_leaves_a_claim_unconfirmed_and_then_fails_the_next() {
    let server = TestServer::start().await;
    let store = store(&server.tcp_url(), SHORT);
    // One claim first, so that the server has the script.
    until("it works", async || claimed(&store, 9).await).await;
    server.stop();
    let begun = Instant::now();
    let answer = claims(&store, 1).await;
    assert!(matches!(answer, Err(StoreError::MaybeApplied(_))), "{answer:?}");
    assert!(begun.elapsed() < SHORT * 3);
    until("calls fail at once", async || {
        matches!(claims(&store, 2).await, Err(StoreError::NotApplied(_)))
    })
    .await;
    server.resume();
    until("it works again", async || claimed(&store, 3).await).await;
    // The claim was in the server's socket. Its caller had given up, but the server ran it.
    until("the unconfirmed claim is there", async || store.load(&HERE(1)).await.unwrap().is_some())
        .await;
}

#[tokio::test]
async fn a_server_without_memory_refuses_claims_and_still_answers_duplicates() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    assert_eq!(claims(&store, 2).await.unwrap(), Swap::Stored);
    redis::cmd("CONFIG")
        .arg("SET")
        .arg("maxmemory")
        .arg("1mb")
        .exec_async(&mut admin)
        .await
        .unwrap();
    let refused = claims(&store, 3).await;
    assert!(
        matches!(&refused, Err(StoreError::NotApplied(text)) if text.contains("OOM")),
        "{refused:?}"
    );
    assert_eq!(store.load(&HERE(3)).await.unwrap(), None);
    assert!(matches!(store.ping().await, Err(StoreError::NotApplied(_))));
    assert!(matches!(
        store.renew(&HERE(2), Fence(2), SHORT, SHORT).await,
        Err(StoreError::NotApplied(_))
    ));
    let duplicate = store.swap(&HERE(1), None, &claim(9, 9), LEASE).await.unwrap();
    let Swap::Stale(Some(held)) = duplicate else { panic!("{duplicate:?}") };
    assert_eq!(held.record, completed(1));
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0").exec_async(&mut admin).await.unwrap();
    assert_eq!(claims(&store, 3).await.unwrap(), Swap::Stored);
}

#[tokio::test]
async fn a_replica_is_left_for_whoever_took_its_place() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    assert_eq!(claims(&store, 1).await.unwrap(), Swap::Stored);
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).exec_async(&mut admin).await.unwrap();
    let refused = claims(&store, 2).await;
    assert!(
        matches!(&refused, Err(StoreError::NotApplied(text)) if text.contains("replica")),
        "{refused:?}"
    );
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut admin).await.unwrap();
    until("it works again", async || claimed(&store, 2).await).await;
}

#[tokio::test]
async fn a_wrong_password_is_reported_without_it() {
    let server = TestServer::start_with(&["--requirepass", "right"]).await;
    let url = |login: &str| format!("redis://{login}127.0.0.1:{}", server.port);
    for login in [":s3cret@", "alice:s3cret@", ""] {
        let answer = claims(&store(&url(login), PATIENCE), 1).await;
        let Err(StoreError::NotApplied(text)) = answer else { panic!("{answer:?}") };
        assert!(!text.contains("s3cret") && !text.contains("alice"), "{text}");
        assert!(text.contains("password"), "{text}");
    }
    let Err(StoreError::NotApplied(text)) =
        claims(&store(&format!("{}/99", url(":right@")), PATIENCE), 1).await
    else {
        panic!("there is no such database")
    };
    assert!(text.contains("no database"), "{text}");
    assert_eq!(claims(&store(&url(":right@"), PATIENCE), 1).await.unwrap(), Swap::Stored);
    assert_eq!(
        claims(&store(&format!("unix://{}?pass=right&db=1", server.socket()), PATIENCE), 1)
            .await
            .unwrap(),
        Swap::Stored
    );
}

#[tokio::test]
async fn a_watcher_is_woken_by_another_gateway() {
    let server = TestServer::start().await;
    let (here, there) = (server.store(), server.store());
    for slot in [HERE(1), slot(Space::Shadow, 1)] {
        here.swap(&slot, None, &claim(1, 1), LEASE).await.unwrap();
        let mut watch = here.watch(&slot);
        wakes(&mut watch).await;
        assert!(timeout(SHORT, watch.changed()).await.is_err(), "nothing has changed");
        assert!(there.renew(&slot, Fence(1), SHORT * 10, SHORT * 20).await.unwrap());
        assert!(timeout(SHORT, watch.changed()).await.is_err(), "a renewal wakes nobody");
        there
            .swap(&slot, Some(Version(1)), &Record { version: Version(2), ..completed(1) }, KEEP)
            .await
            .unwrap();
        wakes(&mut watch).await;
    }
}

#[tokio::test]
async fn watchers_look_again_when_their_subscription_was_lost() {
    let server = TestServer::start().await;
    let (here, there, mut admin) = (server.store(), server.store(), server.admin().await);
    let mut watches: Vec<Watch> = (0..2000).map(|n| here.watch(&HERE(n))).collect();
    for watch in &mut watches {
        wakes(watch).await;
    }
    let killed: u64 = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("pubsub")
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(killed, 1);
    for watch in &mut watches {
        wakes(watch).await;
    }
    there.swap(&HERE(7), None, &completed(7), KEEP).await.unwrap();
    wakes(&mut watches[7]).await;
}

#[tokio::test]
async fn a_thousand_watchers_of_a_slot_are_one_subscription() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    let channel = names().record_key(&HERE(1));
    let mut numsub = redis::cmd("PUBSUB");
    numsub.arg("NUMSUB").arg(&channel);
    let mut subscribers = async || numsub.query_async::<(String, u64)>(&mut admin).await.unwrap().1;
    for _ in 0..2 {
        let mut watches: Vec<Watch> = (0..1000).map(|_| store.watch(&HERE(1))).collect();
        for watch in &mut watches {
            wakes(watch).await;
        }
        assert_eq!(subscribers().await, 1);
        store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
        drop(watches.drain(1..));
        // A new watcher is woken at once if the subscription exists already.
        wakes(&mut store.watch(&HERE(1))).await;
        drop(watches);
        until("nobody is subscribed", async || subscribers().await == 0).await;
    }
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut admin).await.unwrap();
    assert!(stats.contains("cmdstat_subscribe:calls=2,"), "{stats}");
}

/// A proxy that loses the answer to one command after the server has run it.
async fn lossy(port: u16) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (here, loses) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
    let armed = loses.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(relay(client, server, armed.clone()));
        }
    });
    (here, loses)
}

async fn relay(mut client: TcpStream, mut server: TcpStream, loses: Arc<AtomicBool>) {
    let (mut request, mut response) = ([0; 65536], [0; 65536]);
    loop {
        tokio::select! {
            n = client.read(&mut request) => match n {
                Ok(n) if n > 0 => server.write_all(&request[..n]).await.unwrap(),
                _ => return,
            },
            n = server.read(&mut response) => match n {
                Ok(n) if n > 0 && !loses.swap(false, Ordering::SeqCst) => {
                    client.write_all(&response[..n]).await.unwrap();
                }
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn a_claim_with_a_lost_answer_reads_back_under_its_own_fence() {
    let server = TestServer::start().await;
    let (port, loses) = lossy(server.port).await;
    let store = store(&format!("redis://127.0.0.1:{port}"), PATIENCE);
    store.ping().await.unwrap();
    // A first claim, so that the server has the script and the next one takes one round trip.
    claims(&store, 1).await.unwrap();
    loses.store(true, Ordering::SeqCst);
    let answer = claims(&store, 2).await;
    assert!(matches!(answer, Err(StoreError::MaybeApplied(_))), "{answer:?}");
    until("it is connected again", async || store.ping().await.is_ok()).await;
    assert_eq!(store.load(&HERE(2)).await.unwrap().unwrap().record.fence, Fence(2));
    assert_eq!(claims(&store, 2).await.unwrap(), Swap::Stored, "sent twice, stored once");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_an_error_and_not_a_free_slot() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    for n in 1..=3 {
        claims(&store, n).await.unwrap();
    }
    let key = names().record_key(&HERE(1));
    redis::cmd("SETRANGE").arg(&key).arg(60).arg("rotten").exec_async(&mut admin).await.unwrap();
    redis::cmd("SET")
        .arg(names().record_key(&HERE(2)))
        .arg("")
        .exec_async(&mut admin)
        .await
        .unwrap();
    for n in [1, 2] {
        assert!(matches!(store.load(&HERE(n)).await, Err(StoreError::Corrupt(_))), "{n}");
        let answer = store.swap(&HERE(n), None, &claim(9, 9), LEASE).await;
        assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{answer:?}");
    }
    for listing in [Listing::All, Listing::Unsettled] {
        let listed: Vec<Slot> = store
            .list(listing, None, 100)
            .await
            .unwrap()
            .records
            .into_iter()
            .map(|(slot, _)| slot)
            .collect();
        assert_eq!(listed, [HERE(3)], "{listing:?}");
    }
}

#[tokio::test]
async fn wrong_entries_of_the_index_are_removed() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    for n in [1, 2] {
        let (key, member) = (names().due_key(HERE(n).partition()), layout::member(&HERE(n)));
        redis::cmd("ZADD").arg(key).arg(1).arg(&member).exec_async(&mut admin).await.unwrap();
    }
    assert!(store.due(10).await.unwrap().is_empty());
    let left: u64 = redis::cmd("EXISTS")
        .arg(names().due_key(HERE(1).partition()))
        .arg(names().due_key(HERE(2).partition()))
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_caller_who_leaves_disturbs_nobody() {
    let server = TestServer::start().await;
    let store = store(&server.tcp_url(), PATIENCE);
    store.ping().await.unwrap();
    server.stop();
    // The answers to these calls still come, and must not go to other callers.
    for n in 1..=200 {
        assert!(timeout(Duration::from_millis(1), claims(&store, n)).await.is_err());
    }
    server.resume();
    for n in 301..=310 {
        assert_eq!(claims(&store, n).await.unwrap(), Swap::Stored);
        assert_eq!(store.load(&HERE(n)).await.unwrap().unwrap().record, claim(n, n));
    }
}

#[tokio::test]
async fn over_tls_the_servers_certificate_must_be_of_the_given_authority() {
    let dir = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, other_cert) = (dir.path().join("cert.pem"), dir.path().join("other.pem"));
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&other_cert, other.cert.pem()).unwrap();
    std::fs::write(dir.path().join("key.pem"), own.signing_key.serialize_pem()).unwrap();
    let settings =
        ["--tls-port", "TLS_PORT", "--tls-auth-clients", "no", "--tls-cert-file", "DIR/cert.pem"];
    let files = ["--tls-key-file", "DIR/key.pem", "--tls-ca-cert-file", "DIR/cert.pem"];
    let server = TestServer::start_in(dir, &[&settings[..], &files].concat()).await;
    let url = format!("rediss://localhost:{}", server.tls_port);
    let trusting = |ca_file| {
        Redis::connect(super::RedisOptions { ca_file, ..options(&url, PATIENCE) }).unwrap()
    };
    let trusted = trusting(Some(cert));
    assert_eq!(claims(&trusted, 1).await.unwrap(), Swap::Stored);
    wakes(&mut trusted.watch(&HERE(1))).await;
    for ca_file in [Some(other_cert), None] {
        let answer = claims(&trusting(ca_file), 2).await;
        assert!(
            matches!(&answer, Err(StoreError::NotApplied(text)) if text.contains("certificate")),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_the_configured_one() {
    let dir = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let settings =
        ["--tls-port", "TLS_PORT", "--tls-auth-clients", "yes", "--tls-cert-file", "DIR/cert.pem"];
    let files = ["--tls-key-file", "DIR/key.pem", "--tls-ca-cert-file", "DIR/cert.pem"];
    let server = TestServer::start_in(dir, &[&settings[..], &files].concat()).await;
    let url = format!("rediss://localhost:{}", server.tls_port);
    let ca_file = Some(cert.clone());
    let showing = |client| super::RedisOptions {
        ca_file: ca_file.clone(),
        client,
        ..options(&url, PATIENCE)
    };
    let files = ClientFiles { cert: cert.clone(), key };
    assert_eq!(
        claims(&Redis::connect(showing(Some(files))).unwrap(), 1).await.unwrap(),
        Swap::Stored
    );
    let answer = claims(&Redis::connect(showing(None)).unwrap(), 2).await;
    assert!(matches!(answer, Err(StoreError::NotApplied(_))), "{answer:?}");
    let unfit = ClientFiles { cert: cert.clone(), key: cert };
    assert!(matches!(Redis::connect(showing(Some(unfit))).err(), Some(ConnectError::Identity(_))));
}

/// Returns how often the server has run a command.
async fn ran(server: &TestServer, command: &str) -> usize {
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut server.admin().await)
        .await
        .unwrap();
    let line = info.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let calls = line.and_then(|line| line.split("calls=").nth(1)?.split(',').next()?.parse().ok());
    calls.unwrap_or(0)
}

#[tokio::test]
async fn a_claim_over_a_completed_record_is_answered_by_a_read_and_the_script_decides_on_the_rest()
{
    let server = TestServer::start().await;
    let (store, other) = (server.store(), server.store());
    assert!(claimed(&store, 1).await);
    let done = Record { fence: Fence(1), ..completed(2) };
    assert_eq!(store.swap(&HERE(1), Some(Version(1)), &done, KEEP).await.unwrap(), Swap::Stored);
    let current = |swap: Result<Swap, StoreError>| match swap.unwrap() {
        Swap::Stale(Some(held)) => Some(held.record),
        other => panic!("{other:?}"),
    };
    let events_made = AtomicUsize::new(0);
    let event = || {
        events_made.fetch_add(1, Ordering::SeqCst);
        Vec::new()
    };
    let again = async |store: &Redis, n| {
        store.write(&HERE(1), None, &claim(n, n), LEASE, crate::store::Events::logged(&event)).await
    };
    let scripts = async || ran(&server, "evalsha").await + ran(&server, "eval").await;
    let before = scripts().await;
    assert_eq!(current(again(&store, 9).await), Some(done.clone()));
    assert_eq!(
        (scripts().await, events_made.load(Ordering::SeqCst)),
        (before, 0),
        "the store that completed it reads, and makes no event"
    );
    assert_eq!(current(again(&other, 9).await), Some(done.clone()));
    assert_eq!(scripts().await, before + 1, "a store that has not seen it runs the script");
    assert_eq!(current(again(&other, 9).await), Some(done));
    assert_eq!(scripts().await, before + 1, "and then reads");

    let mut admin = server.admin().await;
    redis::cmd("DEL").arg(names().record_key(&HERE(1))).exec_async(&mut admin).await.unwrap();
    assert_eq!(
        again(&store, 9).await.unwrap(),
        Swap::Stored,
        "what is gone is claimed, known or not"
    );
    assert_eq!(
        current(again(&other, 10).await).map(|record| record.version),
        Some(Version(9)),
        "in flight"
    );
    assert_eq!(scripts().await, before + 3, "the script answers, with its age");
}

#[test]
fn the_scripts_and_the_store_agree_on_what_is_large() {
    assert_eq!(encode(&completed(1)).head[16], 3, "as the scripts compare it");
    for script in [
        include_str!("scripts/claim.lua"),
        include_str!("scripts/change.lua"),
        include_str!("scripts/read.lua"),
    ] {
        assert!(script.contains(&format!("> {ALONG_MAX} ")));
    }
}

/// Makes a completed record with a stored value of this many bytes.
fn completed_in(bytes: usize) -> Record {
    let of_body = |length: usize| suite::completed_with(1, &vec![b'x'; length]);
    let length =
        |record: &Record| layout::stamped(&encode(record).head, 0, &encode(record).payload).len();
    let rest = length(&of_body(bytes)) - bytes;
    let record = of_body(bytes - rest);
    assert_eq!(length(&record), bytes);
    record
}

#[tokio::test]
async fn large_and_small_records_are_read_as_they_were_written() {
    let server = TestServer::start().await;
    let (store, other) = (server.store(), server.store());
    for (n, bytes) in (1..).zip([ALONG_MAX - 1, ALONG_MAX, ALONG_MAX + 1, 2_000_000]) {
        let record = completed_in(bytes);
        assert_eq!(store.swap(&HERE(n), None, &record, KEEP).await.unwrap(), Swap::Stored);
        // A store that has already met the completed record reads it in another way than a new
        // store.
        for reader in [&store, &other, &other] {
            match claims(reader, n).await.unwrap() {
                Swap::Stale(Some(held)) => {
                    assert!(held.record == record && bytes <= ALONG_MAX, "{bytes} bytes")
                }
                Swap::Large(fence) => {
                    assert!(fence == record.fence && bytes > ALONG_MAX, "{bytes} bytes")
                }
                other => panic!("{bytes} bytes: {other:?}"),
            }
            assert!(
                reader.load(&HERE(n)).await.unwrap().unwrap().record == record,
                "{bytes} bytes"
            );
        }
    }
}

#[tokio::test]
async fn large_records_take_turns_and_all_else_goes_past_them() {
    let server = TestServer::start().await;
    let (writer, store) = (server.store(), store(&server.unix_url(), SHORT));
    for (n, bytes) in [(1, ALONG_MAX + 1), (2, ALONG_MAX)] {
        assert_eq!(
            writer.swap(&HERE(n), None, &completed_in(bytes), KEEP).await.unwrap(),
            Swap::Stored
        );
    }
    let turns = store.large.all_turns().await;
    assert!(matches!(claims(&store, 1).await, Ok(Swap::Large(_))));
    let read = store.load(&HERE(1)).await;
    assert!(matches!(read, Err(StoreError::Unread(_))), "{read:?}");
    assert!(matches!(claims(&store, 2).await.unwrap(), Swap::Stale(Some(_))));
    assert!(store.load(&HERE(2)).await.unwrap().is_some());
    assert!(claimed(&store, 3).await);
    drop(turns);
    assert!(store.load(&HERE(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_large_record_that_ends_while_it_waits_for_its_turn_leaves_its_tombstone() {
    let server = TestServer::start().await;
    let store = server.store();
    let brief = Lifetime { keep: SHORT, due: None, tombstone: Some(Duration::from_secs(600)) };
    assert_eq!(
        store.swap(&HERE(1), None, &completed_in(ALONG_MAX + 1), brief).await.unwrap(),
        Swap::Stored
    );
    let turns = store.large.all_turns().await;
    let release = async {
        tokio::time::sleep(SHORT * 2).await;
        drop(turns);
    };
    let slot = HERE(1);
    let (remains, ()) = tokio::join!(store.remains(&slot), release);
    assert_eq!(remains.unwrap().unwrap().record.state, State::Expired);
}
