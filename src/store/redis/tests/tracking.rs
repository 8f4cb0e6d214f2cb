//! Records kept in the process, and a real server that tells of their changes.

use super::*;
use crate::clock::Clock;
use crate::store::cache::LocalCache;
use crate::store::cached::Cached;
use crate::store::redis::{Ack, Options, track};
use crate::telemetry::CacheMeter;

struct Keeper {
    redis: Arc<Redis>,
    store: Arc<Cached>,
    meter: CacheMeter,
}

impl Keeper {
    fn on(options: Options) -> Keeper {
        Keeper::tracking(options.clone(), &options)
    }

    fn tracking(options: Options, tracked: &Options) -> Keeper {
        let meter = CacheMeter::default();
        let (cache, wanted) = LocalCache::new(1 << 20, Clock::system(), meter.clone());
        let tracker = track(tracked, cache.clone(), wanted).unwrap();
        let redis = Redis::connect(options).unwrap();
        let store = Arc::new(Cached::new(redis.clone(), cache, tracker));
        Keeper { redis, store, meter }
    }

    fn of(server: &Server) -> Keeper {
        Keeper::on(options(&server.tcp_url(), Duration::from_secs(5)))
    }

    /// A duplicate; whether it was answered from the process.
    async fn hits(&self, n: u64) -> bool {
        let before = self.meter.hits.get();
        let swapped = self.store.swap(&HERE(n), None, &claim(99, 99), LEASE).await;
        let Ok(Swap::Stale(Some(held))) = swapped else { return false };
        assert_eq!(held.record, completed(n));
        self.meter.hits.get() > before
    }

    /// Duplicates come until one is answered from the process.
    async fn keeps(&self, n: u64) {
        until("the record is kept", async || self.hits(n).await).await;
    }
}

mod the_suite {
    use super::*;

    async fn stage() -> Stage {
        let server = Server::start().await;
        let keeper = Keeper::of(&server);
        let store = Store { records: keeper.store, ..Store::from(keeper.redis) };
        Stage::of_shared(store, Time::Real).with_guard(server)
    }

    crate::store::suite::stories!(stage);
}

#[tokio::test]
async fn a_record_that_is_kept_costs_the_server_nothing() {
    let server = Server::start().await;
    let (keeper, mut admin) = (Keeper::of(&server), server.admin().await);
    keeper.store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    keeper.keeps(1).await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut admin).await.unwrap();
    for _ in 0..100 {
        assert!(keeper.hits(1).await);
    }
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut admin).await.unwrap();
    assert!(!stats.contains("cmdstat_eval"), "{stats}");
}

#[tokio::test]
async fn what_another_gateway_changes_is_dropped() {
    let server = Server::start().await;
    let (keeper, there, mut admin) = (Keeper::of(&server), server.store(), server.admin().await);
    for n in 1..=3 {
        keeper.store.swap(&HERE(n), None, &completed(n), KEEP).await.unwrap();
        keeper.keeps(n).await;
    }
    let expired = Record { version: Version(2), state: State::Expired, ..completed(1) };
    there.swap(&HERE(1), Some(Version(1)), &expired, KEEP).await.unwrap();
    redis::cmd("DEL").arg(names().record_key(&HERE(2))).exec_async(&mut admin).await.unwrap();
    until("both changes are heard of", async || keeper.meter.invalidations.get() == 2).await;
    let Swap::Stale(Some(held)) =
        keeper.store.swap(&HERE(1), None, &claim(9, 9), LEASE).await.unwrap()
    else {
        panic!("a tombstone stands there")
    };
    assert_eq!(held.record, expired);
    assert_eq!(keeper.store.swap(&HERE(2), None, &claim(9, 9), LEASE).await.unwrap(), Swap::Stored);
    assert!(keeper.hits(3).await, "what did not change is still there");
    redis::cmd("FLUSHALL").exec_async(&mut admin).await.unwrap();
    until("the flush is heard of", async || keeper.meter.entries.get() == 0).await;
}

#[tokio::test]
async fn with_its_connection_everything_is_dropped_and_kept_again_once_it_is_back() {
    let server = Server::start().await;
    let (keeper, mut admin) = (Keeper::of(&server), server.admin().await);
    keeper.store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    keeper.keeps(1).await;
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut admin).await.unwrap();
    // The flag t says that it tracks.
    let flags = |line: &&str| {
        line.split(' ').any(|field| field.strip_prefix("flags=").is_some_and(|f| f.contains('t')))
    };
    let tracker = clients.lines().find(flags).expect("a connection that tracks");
    let id = tracker.split(' ').next().unwrap().strip_prefix("id=").unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).exec_async(&mut admin).await.unwrap();
    until("all is dropped", async || keeper.meter.losses.get() == 1).await;
    keeper.keeps(1).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_answered_for() {
    let server = Server::start().await;
    let keeper = Keeper::on(options(&server.tcp_url(), SHORT));
    until("it works", async || {
        keeper.store.swap(&HERE(1), None, &completed(1), KEEP).await.is_ok()
    })
    .await;
    keeper.keeps(1).await;
    server.stop();
    until("nothing is given out", async || !keeper.hits(1).await).await;
    server.resume();
    keeper.keeps(1).await;
}

#[tokio::test]
async fn a_server_that_becomes_a_replica_is_not_believed() {
    let server = Server::start().await;
    let (keeper, mut admin) = (Keeper::of(&server), server.admin().await);
    keeper.store.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
    keeper.keeps(1).await;
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).exec_async(&mut admin).await.unwrap();
    until("all is dropped", async || keeper.meter.entries.get() == 0).await;
    assert!(!keeper.hits(1).await);
}

#[tokio::test]
async fn what_replicas_have_not_confirmed_is_not_kept() {
    let (server, other) = (Server::start().await, Server::start().await);
    let here = options(&server.tcp_url(), SHORT * 4);
    // It answers all the same, so that there is something to keep.
    let keeper = Keeper::tracking(here.clone(), &Options { ack: Ack::Replicas(1), ..here });
    until("it works", async || {
        keeper.store.swap(&HERE(1), None, &completed(1), KEEP).await.is_ok()
    })
    .await;
    let mut admin = server.admin().await;
    for n in 0..20 {
        assert!(!keeper.hits(1).await, "{n}");
        // Each read in which it would be confirmed is over with its wait.
        redis::cmd("WAIT").arg(1).arg(100).exec_async(&mut admin).await.unwrap();
    }
    let mut replica = other.admin().await;
    redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(server.port)
        .exec_async(&mut replica)
        .await
        .unwrap();
    keeper.keeps(1).await;
}
