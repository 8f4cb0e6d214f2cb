//! Servers that come back without records that they acknowledged.

use super::*;
use crate::store::redis::{LOSS_PAUSE, RECENT_WRITE_TTL, RedisAck, RedisOptions};

/// The store of a gateway that must lose nothing.
fn strict(server: &TestServer) -> Arc<Redis> {
    Redis::connect(RedisOptions { loss_pause: LOSS_PAUSE, ..options(&server.tcp_url(), PATIENCE) })
        .unwrap()
}

async fn fence_of(store: &Redis, n: u64) -> Option<Fence> {
    store.load(&HERE(n)).await.unwrap().map(|held| held.record.fence)
}

async fn flush(server: &TestServer) {
    redis::cmd("FLUSHALL").exec_async(&mut server.admin().await).await.unwrap();
}

fn result_of(n: u64) -> Record {
    Record { version: Version(n + 1), fence: Fence(n), ..completed(n + 1) }
}

async fn settled(store: &Redis, n: u64) -> Result<Swap, StoreError> {
    store.swap(&HERE(n), Some(Version(n)), &result_of(n), KEEP).await
}

#[tokio::test]
async fn a_flushed_server_gets_its_recent_writes_back_without_a_request() {
    let server = TestServer::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await && claimed(&store, 2).await);
    assert_eq!(settled(&store, 2).await.unwrap(), Swap::Stored);
    flush(&server).await;
    until("the claim is back", async || fence_of(&store, 1).await == Some(Fence(1))).await;
    until("the result is back", async || store.load(&HERE(2)).await.unwrap().is_some()).await;
    let held = store.load(&HERE(2)).await.unwrap().unwrap();
    assert_eq!((held.record, held.due_ms), (result_of(2), 0));
    let claim = store.swap(&HERE(1), None, &claim(99, 99), LEASE).await.unwrap();
    assert!(matches!(claim, Swap::Stale(Some(_))), "{claim:?}");
}

#[tokio::test]
async fn a_claim_on_a_flushed_server_waits_until_recent_writes_are_back() {
    let server = TestServer::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    flush(&server).await;
    let again = store.swap(&HERE(1), None, &claim(99, 99), LEASE).await.unwrap();
    let Swap::Stale(Some(held)) = again else { panic!("{again:?}") };
    assert_eq!(held.record.fence, Fence(1));
    assert!(claimed(&store, 3).await, "and new keys go on");
}

#[tokio::test]
async fn a_server_that_restarts_empty_gets_recent_writes_back_before_the_next_claim() {
    let mut server = TestServer::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    server.kill();
    server.come_back().await;
    let mut again = Err(StoreError::NotApplied("not called yet".into()));
    until("it answers", async || {
        again = store.swap(&HERE(1), None, &claim(99, 99), LEASE).await;
        again.is_ok()
    })
    .await;
    assert!(
        matches!(&again, Ok(Swap::Stale(Some(held))) if held.record.fence == Fence(1)),
        "{again:?}"
    );
}

#[tokio::test]
async fn an_outcome_that_finds_its_claim_lost_is_stored_all_the_same() {
    let server = TestServer::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    flush(&server).await;
    is_settled(&store).await;
    assert_eq!(store.load(&HERE(1)).await.unwrap().unwrap().record, result_of(1));
}

#[tokio::test]
async fn a_renewal_that_finds_its_claim_lost_is_no_lost_lease() {
    let server = TestServer::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    flush(&server).await;
    let lease = Duration::from_secs(300);
    assert!(store.renew(&HERE(1), Fence(1), lease, lease * 2).await.is_err(), "not known yet");
    until("it is renewed", async || {
        matches!(store.renew(&HERE(1), Fence(1), lease, lease * 2).await, Ok(true))
    })
    .await;
    assert!(
        matches!(store.renew(&HERE(1), Fence(7), lease, lease * 2).await, Ok(false)),
        "another's never"
    );
}

#[tokio::test]
async fn a_server_that_goes_on_with_an_earlier_state_is_brought_forward() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    let key = names().record_key(&HERE(1));
    assert!(claimed(&store, 1).await);
    let earlier: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut admin).await.unwrap();
    assert_eq!(settled(&store, 1).await.unwrap(), Swap::Stored);
    // The slot gets its earlier record, as if a replica without the last write were promoted. A new
    // epoch in one partition is enough for that.
    redis::cmd("SET").arg(&key).arg(earlier).exec_async(&mut admin).await.unwrap();
    redis::cmd("SET")
        .arg(names().epoch_key(0))
        .arg(&[7_u8; 16][..])
        .exec_async(&mut admin)
        .await
        .unwrap();
    until("the result is back", async || {
        store.load(&HERE(1)).await.unwrap().unwrap().record == result_of(1)
    })
    .await;
}

#[tokio::test]
async fn where_none_may_run_twice_new_operations_wait_until_all_gateways_have_noticed() {
    let server = TestServer::start().await;
    let (holder, other) = (strict(&server), strict(&server));
    until("the first epoch is old enough", async || claimed(&holder, 1).await).await;
    until("the other knows it too", async || claimed(&other, 2).await).await;
    assert_eq!(settled(&other, 2).await.unwrap(), Swap::Stored);
    flush(&server).await;
    let begun = Instant::now();
    let early = other.swap(&HERE(1), None, &claim(99, 99), LEASE).await;
    let refused = matches!(early, Err(StoreError::NotApplied(_)));
    assert!(
        refused || matches!(&early, Ok(Swap::Stale(Some(held))) if held.record.fence == Fence(1)),
        "{early:?}"
    );
    until("the holder has noticed", async || fence_of(&holder, 1).await == Some(Fence(1))).await;
    let known = other.swap(&HERE(2), None, &claim(98, 98), LEASE).await.unwrap();
    assert!(
        matches!(&known, Swap::Stale(Some(held)) if held.record == result_of(2)),
        "what is known is answered: {known:?}"
    );
    until("new operations go on", async || claimed(&other, 3).await).await;
    assert!(begun.elapsed() >= LOSS_PAUSE, "they were refused for {:?}", begun.elapsed());
    let late = other.swap(&HERE(1), None, &claim(97, 97), LEASE).await.unwrap();
    assert!(matches!(&late, Swap::Stale(Some(held)) if held.record.fence == Fence(1)), "{late:?}");
}

#[tokio::test]
async fn an_operation_that_another_gateway_began_meanwhile_is_left_alone() {
    let server = TestServer::start().await;
    let (holder, mut admin) = (server.store(), server.admin().await);
    assert!(claimed(&holder, 1).await);
    let strangers = HERE(1);
    redis::cmd("FLUSHALL").exec_async(&mut admin).await.unwrap();
    let record = claim(u64::MAX / 2, 77);
    let value = layout::stamped(&encode(&record).head, 1, &encode(&record).payload);
    redis::cmd("SET")
        .arg(names().record_key(&strangers))
        .arg(value)
        .exec_async(&mut admin)
        .await
        .unwrap();
    until("the loss is noticed", async || claimed(&holder, 5).await).await;
    assert_eq!(fence_of(&holder, 1).await, Some(Fence(77)));
}

/// The released marker of a duplicate that was given up: an attempt of its own, begun later.
fn marker_of_duplicate(version: u64) -> Record {
    let opened_unix_ms = claim(1, 1).opened_unix_ms + 500;
    Record {
        fingerprint: None,
        caller: None,
        opened_unix_ms,
        state: State::Released,
        ..claim(version, 99)
    }
}

/// A duplicate's claim of operation 1.
fn duplicate() -> Record {
    Record { opened_unix_ms: claim(1, 1).opened_unix_ms + 500, ..claim(99, 99) }
}

/// Empties the server and puts a record into the slot of operation 1, in one step without a gateway
/// in between.
async fn flush_to(server: &TestServer, record: &Record) {
    let encoded = encode(record);
    let value = layout::stamped(&encoded.head, 1, &encoded.payload);
    let mut commands = redis::pipe();
    commands.atomic().cmd("FLUSHALL").cmd("SET").arg(names().record_key(&HERE(1))).arg(value);
    commands.exec_async(&mut server.admin().await).await.unwrap();
}

/// Waits until the slot of operation 1 has this fence.
async fn runs_under(store: &Redis, fence: u64) {
    let reads = async || store.load(&HERE(1)).await.ok().flatten().map(|held| held.record.fence);
    until("the running claim is back", async || reads().await == Some(Fence(fence))).await;
}

/// Stores the result of operation 1 as its attempt does: over any record with its own fence.
async fn is_settled(store: &Redis) {
    let mut version = Version(1);
    until("the result is stored", async || {
        let result = Record { version: version.next(), ..result_of(1) };
        match store.swap(&HERE(1), Some(version), &result, KEEP).await {
            Ok(Swap::Stored) => true,
            Ok(Swap::Stale(Some(held))) if held.record.fence == Fence(1) => {
                version = held.record.version;
                false
            }
            Ok(Swap::Stale(other)) => panic!("the attempt lost its operation: {other:?}"),
            Ok(Swap::Large(fence)) => panic!("the attempt lost its operation to {fence:?}"),
            Err(_) => false,
        }
    })
    .await;
}

#[tokio::test]
async fn a_duplicates_claim_without_an_answer_takes_nothing_from_the_running_claim() {
    let mut server = TestServer::start().await;
    let store = store(&server.tcp_url(), SHORT);
    until("the claim stands", async || claimed(&store, 1).await).await;
    server.stop();
    let answer = store.swap(&HERE(1), None, &duplicate(), LEASE).await;
    assert!(matches!(answer, Err(StoreError::MaybeApplied(_))), "{answer:?}");
    server.kill();
    server.come_back().await;
    runs_under(&store, 1).await;
    let again = store.swap(&HERE(1), None, &duplicate(), LEASE).await.unwrap();
    assert!(
        matches!(&again, Swap::Stale(Some(held)) if held.record.fence == Fence(1)),
        "{again:?}"
    );
    is_settled(&store).await;
}

#[tokio::test]
async fn a_claim_that_replicas_did_not_confirm_is_not_written_again_until_it_is_confirmed() {
    let server = TestServer::start().await;
    let unsure =
        RedisOptions { ack: RedisAck::Replicas(1), ..options(&server.tcp_url(), PATIENCE) };
    let unsure = Redis::connect(unsure).unwrap();
    // No claim is possible before an epoch exists, which needs the replicas too.
    let sure = server.store();
    assert!(claimed(&sure, 2).await);
    let mut answer = Ok(Swap::Stored);
    until("it is not confirmed", async || {
        answer = claims(&unsure, 1).await;
        matches!(answer, Err(StoreError::MaybeApplied(_)))
    })
    .await;
    let holds = |store: &Redis, n| store.recent_writes.holds(&HERE(n), |_| true);
    assert!(!holds(&unsure, 1) && holds(&sure, 2));
    assert_eq!(claims(&sure, 1).await.unwrap(), Swap::Stored, "sent again, and confirmed");
    flush(&server).await;
    runs_under(&sure, 1).await;
}

#[tokio::test]
async fn a_marker_in_a_lost_slot_gives_way_to_the_running_claim_and_its_result() {
    let server = TestServer::start().await;
    let (holder, other) = (server.store(), server.store());
    assert!(claimed(&holder, 1).await && claimed(&other, 2).await);
    // A marker in an empty slot, and markers with versions that the attempt itself may write.
    for version in [u64::MAX / 2, 1, 2] {
        flush_to(&server, &marker_of_duplicate(version)).await;
        runs_under(&other, 1).await;
        let over = other.swap(&HERE(1), Some(Version(version)), &duplicate(), LEASE).await.unwrap();
        assert!(
            matches!(&over, Swap::Stale(Some(held)) if held.record.fence == Fence(1)),
            "{version}: {over:?}"
        );
    }
    is_settled(&holder).await;
    flush_to(&server, &marker_of_duplicate(5)).await;
    until("the result is back", async || {
        let held = other.load(&HERE(1)).await.unwrap().unwrap();
        held.record.state == result_of(1).state
    })
    .await;
}

#[tokio::test]
async fn a_marker_that_this_gateway_writes_into_a_lost_slot_takes_nothing_from_its_running_claim() {
    let server = TestServer::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    flush(&server).await;
    // The marker is stored. If the restore was faster, the restored claim prevents that.
    store.swap(&HERE(1), None, &marker_of_duplicate(7), KEEP).await.unwrap();
    is_settled(&store).await;
    assert_eq!(store.load(&HERE(1)).await.unwrap().unwrap().record.state, result_of(1).state);
}

#[tokio::test]
async fn an_outcome_and_a_renewal_that_find_a_marker_in_their_lost_slot_are_not_too_late() {
    let server = TestServer::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    let lease = Duration::from_secs(300);
    flush_to(&server, &marker_of_duplicate(7)).await;
    until("it is renewed", async || {
        match store.renew(&HERE(1), Fence(1), lease, lease * 2).await {
            Ok(renewed) => {
                assert!(renewed, "the lease is not lost");
                true
            }
            Err(_) => false,
        }
    })
    .await;
    flush_to(&server, &marker_of_duplicate(8)).await;
    is_settled(&store).await;
}

#[tokio::test]
async fn a_result_that_a_server_confirmed_before_it_hung_is_written_again_however_long_that_took() {
    let mut server = TestServer::start().await;
    let store = store(&server.tcp_url(), SHORT);
    until("the claim stands", async || claimed(&store, 1).await).await;
    assert_eq!(settled(&store, 1).await.unwrap(), Swap::Stored);
    server.stop();
    tokio::time::sleep(RECENT_WRITE_TTL + Duration::from_secs(1)).await;
    server.kill();
    server.come_back().await;
    let result = async || store.load(&HERE(1)).await.ok().flatten().map(|held| held.record);
    until("the result is back", async || result().await == Some(result_of(1))).await;
}

#[tokio::test]
async fn an_outcome_is_stored_although_a_successor_with_the_same_epoch_lacks_its_claim() {
    let mut server =
        TestServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let store = server.store();
    assert!(claimed(&store, 2).await);
    let (log, copy) = (server.dir.path().join("appendonlydir"), tempfile::tempdir().unwrap());
    let copy_all = |from: &std::path::Path, to: &std::path::Path| {
        for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copy_all(&log, copy.path());
    assert!(claimed(&store, 1).await);
    server.kill();
    copy_all(copy.path(), &log);
    server.come_back().await;
    is_settled(&store).await;
}

#[tokio::test]
async fn a_record_that_can_not_be_read_keeps_no_other_from_being_written_again() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    assert!(claimed(&store, 1).await && claimed(&store, 2).await);
    let mut commands = redis::pipe();
    commands.atomic().cmd("FLUSHALL").cmd("SET").arg(names().record_key(&HERE(2))).arg("rotten");
    commands.exec_async(&mut admin).await.unwrap();
    runs_under(&store, 1).await;
    assert!(claimed(&store, 3).await, "and new keys go on");
    assert!(matches!(store.load(&HERE(2)).await, Err(StoreError::Corrupt(_))));
}

#[tokio::test]
async fn a_server_that_restarts_with_its_records_keeps_its_epoch() {
    let mut server =
        TestServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    let epoch = async |server: &TestServer| -> Vec<u8> {
        let key = names().epoch_key(HERE(1).partition());
        redis::cmd("GET").arg(key).query_async(&mut server.admin().await).await.unwrap()
    };
    let before = epoch(&server).await;
    server.kill();
    server.come_back().await;
    until("claims go on", async || claimed(&store, 2).await).await;
    assert_eq!(epoch(&server).await, before);
    assert_eq!(fence_of(&store, 1).await, Some(Fence(1)));
}

#[tokio::test]
async fn epochs_begin_also_where_answers_come_after_the_disk() {
    let server = TestServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let options = RedisOptions { ack: RedisAck::Fsync, ..options(&server.tcp_url(), PATIENCE) };
    let store = Redis::connect(options).unwrap();
    assert!(claimed(&store, 1).await);
    store.ping().await.unwrap();
}
