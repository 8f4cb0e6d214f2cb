//! Sagas and bars on servers that lose their records, and their index.

use super::*;
use crate::record::{PrivateContent, SagaPhase};
use crate::store::redis::RECENT_WRITE_TTL;

fn saga(version: u64, fence: u64) -> Record {
    let content = PrivateContent::Open(bytes::Bytes::from_static(b"{\"log\":[]}"));
    Record { state: State::Saga { phase: SagaPhase::Running, content }, ..claim(version, fence) }
}

fn barred(version: u64, fence: u64) -> Record {
    Record { state: State::Barred, opened_unix_ms: 5, ..claim(version, fence) }
}

async fn flush(server: &TestServer) {
    redis::cmd("FLUSHALL").exec_async(&mut server.admin().await).await.unwrap();
}

async fn stored(store: &Redis, n: u64, expected: Option<u64>, next: &Record, life: Lifetime) {
    let swap = store.swap(&HERE(n), expected.map(Version), next, life).await.unwrap();
    assert_eq!(swap, Swap::Stored);
}

async fn indexed(server: &TestServer, key: Vec<u8>) -> u64 {
    redis::cmd("ZCARD").arg(key).query_async(&mut server.admin().await).await.unwrap()
}

const BRIEF: Lifetime = Lifetime { due: Some(SHORT), ..LEASE };

#[test]
fn the_scripts_and_the_codec_agree_on_what_is_a_saga() {
    assert_eq!(encode(&saga(1, 1)).head[16], 6);
    for script in [
        include_str!("../scripts/claim.lua"),
        include_str!("../scripts/change.lua"),
        include_str!("../scripts/renew.lua"),
    ] {
        assert!(script.contains("state == 6") || script.contains("state ~= 6"));
    }
}

#[tokio::test]
async fn a_saga_that_runs_comes_back_to_a_flushed_server_with_its_index() {
    let server = TestServer::start().await;
    let store = server.store();
    stored(&store, 1, None, &saga(10, 1), LEASE).await;
    stored(&store, 1, Some(10), &saga(11, 1), LEASE).await;
    // Longer ago than other writes are kept, and its lease still runs.
    tokio::time::sleep(RECENT_WRITE_TTL + Duration::from_secs(2)).await;
    flush(&server).await;
    let held = || async { store.load(&HERE(1)).await.unwrap() };
    until("the saga is back", async || held().await.is_some()).await;
    assert_eq!(held().await.unwrap().record, saga(11, 1));
    assert_eq!(indexed(&server, names().sagas_key(HERE(1).partition())).await, 1);
    assert_eq!(indexed(&server, names().due_key(HERE(1).partition())).await, 0);
}

#[tokio::test]
async fn the_owner_of_a_saga_goes_on_over_a_flushed_server() {
    let server = TestServer::start().await;
    let store = server.store();
    stored(&store, 1, None, &saga(10, 1), LEASE).await;
    flush(&server).await;
    stored(&store, 1, Some(10), &saga(11, 1), LEASE).await;
    assert_eq!(store.load(&HERE(1)).await.unwrap().unwrap().record, saga(11, 1));
}

#[tokio::test]
async fn many_changes_of_a_saga_are_restored_over_an_old_state() {
    let server = TestServer::start().await;
    let store = server.store();
    stored(&store, 1, None, &saga(10, 1), LEASE).await;
    let key = names().record_key(&HERE(1));
    let mut admin = server.admin().await;
    let old: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut admin).await.unwrap();
    for version in 10..200 {
        stored(&store, 1, Some(version), &saga(version + 1, 1), LEASE).await;
    }
    // A replica that lags behind has the first state, and takes the server's place.
    flush(&server).await;
    redis::cmd("SET").arg(&key).arg(old).exec_async(&mut admin).await.unwrap();
    until("the last state is back", async || {
        store.load(&HERE(1)).await.unwrap().is_some_and(|held| held.record == saga(200, 1))
    })
    .await;
}

#[tokio::test]
async fn a_saga_and_a_bar_over_nothing_wait_until_lost_writes_are_back() {
    let server = TestServer::start().await;
    let store = server.store();
    for next in [saga(99, 99), barred(99, 99)] {
        assert!(claimed(&store, 1).await || store.load(&HERE(1)).await.unwrap().is_some());
        flush(&server).await;
        let swap = store.swap(&HERE(1), None, &next, LEASE).await.unwrap();
        let Swap::Stale(Some(held)) = swap else { panic!("{swap:?}") };
        assert_eq!(held.record.fence, Fence(1), "the attempt is under way");
    }
}

#[tokio::test]
async fn a_bar_comes_back_to_a_flushed_server() {
    let server = TestServer::start().await;
    let store = server.store();
    stored(&store, 1, None, &barred(10, 7), KEEP).await;
    flush(&server).await;
    let swap = store.swap(&HERE(1), None, &claim(20, 2), LEASE).await.unwrap();
    let Swap::Stale(Some(held)) = swap else { panic!("the step runs after all: {swap:?}") };
    assert_eq!(held.record, barred(10, 7));
}

#[tokio::test]
async fn the_end_of_a_saga_of_another_process_leaves_an_entry_that_a_look_removes() {
    let server = TestServer::start().await;
    let (one, other) = (server.store(), server.store());
    stored(&one, 1, None, &saga(10, 1), BRIEF).await;
    stored(&one, 2, None, &saga(10, 1), BRIEF).await;
    stored(&other, 1, Some(10), &completed(11), KEEP).await;
    stored(&one, 2, Some(10), &completed(11), KEEP).await;
    let entries = async |n| indexed(&server, names().sagas_key(HERE(n).partition())).await;
    assert_eq!((entries(1).await, entries(2).await), (1, 0));
    until("the entry is removed", async || {
        assert_eq!(one.due_sagas(10).await.unwrap().slots, []);
        entries(1).await == 0
    })
    .await;
}

#[tokio::test]
async fn an_older_gateways_sweep_leaves_a_saga_alone() {
    let server = TestServer::start().await;
    let store = server.store();
    stored(&store, 1, None, &saga(10, 1), BRIEF).await;
    until("the saga is due", async || store.due_sagas(10).await.unwrap().slots == [HERE(1)]).await;
    // It removes the states that it does not know from the index of unsettled records.
    assert_eq!(indexed(&server, names().due_key(HERE(1).partition())).await, 0);
    assert_eq!(store.due(10).await.unwrap(), []);
    assert_eq!(store.due_sagas(10).await.unwrap().slots, [HERE(1)]);
}

#[cfg(feature = "embedded")]
#[tokio::test]
async fn a_copy_has_sagas_in_their_index() {
    use crate::store::copy::copy;
    use crate::store::embedded::{CopiedFile, Embedded, EmbeddedOptions};
    use crate::store::redis::CopiedRedis;

    let server = TestServer::start().await;
    let clock = crate::clock::Clock::system();
    let boot = clock.clone();
    let options = || {
        let boot = boot.clone();
        let boot_ms = Arc::new(move || boot.boot_ms());
        EmbeddedOptions { min_free_bytes: 0, ..EmbeddedOptions::new(boot_ms, clock.unix_ms()) }
    };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [from, to] = dirs.each_ref().map(|dir| dir.path());
    let file = Embedded::open(from, options()).unwrap();
    for (n, next, life) in
        [(1, saga(10, 1), LEASE), (2, barred(10, 1), KEEP), (3, claim(10, 1), LEASE)]
    {
        assert_eq!(file.swap(&HERE(n), None, &next, life).await.unwrap(), Swap::Stored);
    }
    file.close().await;
    let there = CopiedRedis::connect(options_of(&server)).unwrap();
    copy(&CopiedFile::source(from, options()).unwrap(), &there, &|_, _| {}).await.unwrap();
    let back = CopiedFile::target(to, options()).unwrap();
    copy(&CopiedRedis::connect(options_of(&server)).unwrap(), &back, &|_, _| {}).await.unwrap();
    drop(back);
    let (store, file) = (server.store(), Embedded::open(to, options()).unwrap());
    let stores: [&dyn Records; 2] = [&*store, &file];
    for store in stores {
        let listed = async |listing| {
            let page = store.list(listing, None, 100).await.unwrap();
            page.records.into_iter().map(|(slot, held)| (slot, held.record)).collect::<Vec<_>>()
        };
        assert_eq!(listed(Listing::Sagas).await, [(HERE(1), saga(10, 1))]);
        assert_eq!(listed(Listing::Unsettled).await, [(HERE(3), claim(10, 1))]);
        assert_eq!(store.load(&HERE(2)).await.unwrap().unwrap().record, barred(10, 1));
    }
}

fn options_of(server: &TestServer) -> crate::store::redis::RedisOptions {
    options(&server.tcp_url(), PATIENCE)
}
