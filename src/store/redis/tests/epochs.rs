//! Servers that come back without what they acknowledged.

use super::*;
use crate::store::redis::epoch::QUIET;

/// A gateway's store that must lose nothing.
fn strict(server: &Server) -> Arc<Redis> {
    Redis::connect(super::super::Options { quiet: QUIET, ..options(&server.tcp_url(), PATIENCE) }).unwrap()
}

async fn fence_of(store: &Redis, n: u64) -> Option<Fence> {
    store.load(&HERE(n)).await.unwrap().map(|held| held.record.fence)
}

async fn flush(server: &Server) {
    redis::cmd("FLUSHALL").exec_async(&mut server.admin().await).await.unwrap();
}

fn result_of(n: u64) -> Record {
    Record { version: Version(n + 1), fence: Fence(n), ..completed(n + 1) }
}

async fn settled(store: &Redis, n: u64) -> Result<Swap, StoreError> {
    store.swap(&HERE(n), Some(Version(n)), &result_of(n), KEEP).await
}

#[tokio::test]
async fn a_flushed_server_gets_back_what_a_gateway_holds_even_if_nobody_asks() {
    let server = Server::start().await;
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
async fn a_claim_on_a_flushed_server_waits_until_what_is_held_is_back() {
    let server = Server::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    flush(&server).await;
    let again = store.swap(&HERE(1), None, &claim(99, 99), LEASE).await.unwrap();
    let Swap::Stale(Some(held)) = again else { panic!("{again:?}") };
    assert_eq!(held.record.fence, Fence(1));
    assert!(claimed(&store, 3).await, "and new keys go on");
}

#[tokio::test]
async fn a_server_that_restarts_empty_gets_back_what_is_held_before_the_next_claim() {
    let mut server = Server::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    server.kill();
    server.come_back().await;
    let mut again = Err(StoreError::NotApplied("not asked yet".into()));
    until("it answers", async || {
        again = store.swap(&HERE(1), None, &claim(99, 99), LEASE).await;
        again.is_ok()
    })
    .await;
    assert!(matches!(&again, Ok(Swap::Stale(Some(held))) if held.record.fence == Fence(1)), "{again:?}");
}

#[tokio::test]
async fn an_outcome_that_finds_its_claim_lost_is_stored_all_the_same() {
    let server = Server::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    flush(&server).await;
    assert_eq!(settled(&store, 1).await.unwrap(), Swap::Stored);
    assert_eq!(store.load(&HERE(1)).await.unwrap().unwrap().record, result_of(1));
}

#[tokio::test]
async fn a_renewal_that_finds_its_claim_lost_is_no_lost_lease() {
    let server = Server::start().await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    flush(&server).await;
    let lease = Duration::from_secs(300);
    assert!(store.renew(&HERE(1), Fence(1), lease, lease * 2).await.is_err(), "not known yet");
    until("it is renewed", async || matches!(store.renew(&HERE(1), Fence(1), lease, lease * 2).await, Ok(true))).await;
    assert!(matches!(store.renew(&HERE(1), Fence(7), lease, lease * 2).await, Ok(false)), "another's never");
}

#[tokio::test]
async fn a_server_that_goes_on_with_an_earlier_state_is_brought_forward() {
    let server = Server::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    let key = names().record_key(&HERE(1));
    assert!(claimed(&store, 1).await);
    let earlier: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut admin).await.unwrap();
    assert_eq!(settled(&store, 1).await.unwrap(), Swap::Stored);
    // As a replica that is promoted would, without the last write; the epoch of one partition tells of all.
    redis::cmd("SET").arg(&key).arg(earlier).exec_async(&mut admin).await.unwrap();
    redis::cmd("SET").arg(names().epoch_key(0)).arg(&[7_u8; 16][..]).exec_async(&mut admin).await.unwrap();
    until("the result is back", async || store.load(&HERE(1)).await.unwrap().unwrap().record == result_of(1)).await;
}

#[tokio::test]
async fn where_none_may_run_twice_new_operations_wait_until_all_gateways_have_noticed() {
    let server = Server::start().await;
    let (holder, other) = (strict(&server), strict(&server));
    until("the first epoch is old enough", async || claimed(&holder, 1).await).await;
    until("the other knows it too", async || claimed(&other, 2).await).await;
    assert_eq!(settled(&other, 2).await.unwrap(), Swap::Stored);
    flush(&server).await;
    let begun = Instant::now();
    let early = other.swap(&HERE(1), None, &claim(99, 99), LEASE).await;
    let refused = matches!(early, Err(StoreError::NotApplied(_)));
    assert!(refused || matches!(&early, Ok(Swap::Stale(Some(held))) if held.record.fence == Fence(1)), "{early:?}");
    until("the holder has noticed", async || fence_of(&holder, 1).await == Some(Fence(1))).await;
    let known = other.swap(&HERE(2), None, &claim(98, 98), LEASE).await.unwrap();
    assert!(matches!(&known, Swap::Stale(Some(held)) if held.record == result_of(2)), "what is known is answered: {known:?}");
    until("new operations go on", async || claimed(&other, 3).await).await;
    assert!(begun.elapsed() >= QUIET, "they were refused for {:?}", begun.elapsed());
    let late = other.swap(&HERE(1), None, &claim(97, 97), LEASE).await.unwrap();
    assert!(matches!(&late, Swap::Stale(Some(held)) if held.record.fence == Fence(1)), "{late:?}");
}

#[tokio::test]
async fn what_another_began_meanwhile_is_left_alone() {
    let server = Server::start().await;
    let (holder, mut admin) = (server.store(), server.admin().await);
    assert!(claimed(&holder, 1).await);
    let strangers = HERE(1);
    redis::cmd("FLUSHALL").exec_async(&mut admin).await.unwrap();
    let record = claim(u64::MAX / 2, 77);
    let value = layout::stamped(&encode(&record).head, 1, &encode(&record).payload);
    redis::cmd("SET").arg(names().record_key(&strangers)).arg(value).exec_async(&mut admin).await.unwrap();
    until("the loss is noticed", async || claimed(&holder, 5).await).await;
    assert_eq!(fence_of(&holder, 1).await, Some(Fence(77)));
}

#[tokio::test]
async fn a_server_that_restarts_with_its_records_keeps_its_epoch() {
    let mut server = Server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let store = server.store();
    assert!(claimed(&store, 1).await);
    let epoch = async |server: &Server| -> Vec<u8> {
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
    let server = Server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let options = super::super::Options { ack: super::super::Ack::Fsync, ..options(&server.tcp_url(), PATIENCE) };
    let store = Redis::connect(options).unwrap();
    assert!(claimed(&store, 1).await);
    store.ping().await.unwrap();
}
