//! Cached records, and a real server that reports their changes.

use super::*;
use crate::clock::Clock;
use crate::store::Store;
use crate::store::cache::LocalCache;
use crate::store::cached::Cached;
use crate::store::redis::{RedisAck, RedisOptions, track};
use crate::telemetry::CacheMeter;

struct CachedGateway {
    store: Arc<Cached>,
    redis: Arc<Redis>,
    meter: CacheMeter,
}

impl CachedGateway {
    fn on(options: RedisOptions) -> CachedGateway {
        CachedGateway::tracking(options.clone(), &options)
    }

    fn tracking(options: RedisOptions, tracked: &RedisOptions) -> CachedGateway {
        let meter = CacheMeter::default();
        let (cache, wanted) = LocalCache::new(1 << 20, Clock::system(), meter.clone());
        let tracker = track(tracked, cache.clone(), wanted).unwrap();
        let redis = Redis::connect(options).unwrap();
        let store = Arc::new(Cached::new(redis.clone(), cache, tracker));
        CachedGateway { store, redis, meter }
    }

    fn of(server: &TestServer) -> CachedGateway {
        CachedGateway::on(options(&server.tcp_url(), Duration::from_secs(5)))
    }

    /// Sends a duplicate. Returns whether the cache answered it.
    async fn hits(&self, n: u64) -> bool {
        let before = self.meter.hits.get();
        let swapped = self.store.swap(&HERE(n), None, &claim(99, 99), LEASE).await;
        let Ok(Swap::Stale(Some(held))) = swapped else { return false };
        assert_eq!(held.record, completed(n));
        self.meter.hits.get() > before
    }

    /// Sends duplicates until the cache answers one.
    async fn keeps(&self, n: u64) {
        until("the record is kept", async || self.hits(n).await).await;
    }
}

mod the_suite {
    use super::*;

    async fn stage() -> Stage {
        let server = TestServer::start().await;
        let gateway = CachedGateway::of(&server);
        let store = Store { records: gateway.store, ..Store::from(gateway.redis) };
        Stage::of_shared(store, Time::Real).with_guard(server)
    }

    crate::store::suite::stories!(stage);
}

#[tokio::test]
async fn a_record_that_is_kept_costs_the_server_nothing() {
    let server = TestServer::start().await;
    let (gateway, mut admin) = (CachedGateway::of(&server), server.admin().await);
    gateway.store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    gateway.keeps(1).await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut admin).await.unwrap();
    for _ in 0..100 {
        assert!(gateway.hits(1).await);
    }
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut admin).await.unwrap();
    assert!(!stats.contains("cmdstat_eval"), "{stats}");
}

#[tokio::test]
async fn a_record_that_another_gateway_changes_is_dropped() {
    let server = TestServer::start().await;
    let (gateway, there, mut admin) =
        (CachedGateway::of(&server), server.store(), server.admin().await);
    for n in 1..=3 {
        gateway.store.swap(&HERE(n), None, &completed(n), KEEP).await.unwrap();
        gateway.keeps(n).await;
    }
    let expired = Record { version: Version(2), state: State::Expired, ..completed(1) };
    there.swap(&HERE(1), Some(Version(1)), &expired, KEEP).await.unwrap();
    redis::cmd("DEL").arg(names().record_key(&HERE(2))).exec_async(&mut admin).await.unwrap();
    until("both changes are reported", async || gateway.meter.invalidations.get() == 2).await;
    let Swap::Stale(Some(held)) =
        gateway.store.swap(&HERE(1), None, &claim(9, 9), LEASE).await.unwrap()
    else {
        panic!("a tombstone stands there")
    };
    assert_eq!(held.record, expired);
    assert_eq!(
        gateway.store.swap(&HERE(2), None, &claim(9, 9), LEASE).await.unwrap(),
        Swap::Stored
    );
    assert!(gateway.hits(3).await, "what did not change is still there");
    redis::cmd("FLUSHALL").exec_async(&mut admin).await.unwrap();
    until("the flush is reported", async || gateway.meter.entries.get() == 0).await;
}

#[tokio::test]
async fn with_its_connection_everything_is_dropped_and_kept_again_once_it_is_back() {
    let server = TestServer::start().await;
    let (gateway, mut admin) = (CachedGateway::of(&server), server.admin().await);
    gateway.store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    gateway.keeps(1).await;
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut admin).await.unwrap();
    // The flag t marks a connection that tracks.
    let flags = |line: &&str| {
        line.split(' ').any(|field| field.strip_prefix("flags=").is_some_and(|f| f.contains('t')))
    };
    let tracker = clients.lines().find(flags).expect("a connection that tracks");
    let id = tracker.split(' ').next().unwrap().strip_prefix("id=").unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).exec_async(&mut admin).await.unwrap();
    until("all is dropped", async || gateway.meter.losses.get() == 1).await;
    gateway.keeps(1).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_answered_for() {
    let server = TestServer::start().await;
    let gateway = CachedGateway::on(options(&server.tcp_url(), SHORT));
    until("it works", async || {
        gateway.store.swap(&HERE(1), None, &completed(1), KEEP).await.is_ok()
    })
    .await;
    gateway.keeps(1).await;
    server.stop();
    until("nothing is given out", async || !gateway.hits(1).await).await;
    server.resume();
    gateway.keeps(1).await;
}

#[tokio::test]
async fn a_server_that_becomes_a_replica_is_not_believed() {
    let server = TestServer::start().await;
    let (gateway, mut admin) = (CachedGateway::of(&server), server.admin().await);
    gateway.store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    gateway.keeps(1).await;
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).exec_async(&mut admin).await.unwrap();
    until("all is dropped", async || gateway.meter.entries.get() == 0).await;
    assert!(!gateway.hits(1).await);
}

#[tokio::test]
async fn records_that_replicas_have_not_confirmed_are_not_kept() {
    let (server, other) = (TestServer::start().await, TestServer::start().await);
    let here = options(&server.tcp_url(), SHORT * 4);
    // The writes of this gateway don't need the replica, so there is a record to cache.
    let gateway =
        CachedGateway::tracking(here.clone(), &RedisOptions { ack: RedisAck::Replicas(1), ..here });
    until("it works", async || {
        gateway.store.swap(&HERE(1), None, &completed(1), KEEP).await.is_ok()
    })
    .await;
    let mut admin = server.admin().await;
    for n in 0..20 {
        assert!(!gateway.hits(1).await, "{n}");
        // When this wait ends, each read that could confirm the record has waited long enough, too.
        redis::cmd("WAIT").arg(1).arg(100).exec_async(&mut admin).await.unwrap();
    }
    let mut replica = other.admin().await;
    redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(server.port)
        .exec_async(&mut replica)
        .await
        .unwrap();
    gateway.keeps(1).await;
}
