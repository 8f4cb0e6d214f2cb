//! The outbox in real servers: what a loss, another program or a lost subscription leaves.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use tokio::sync::broadcast;

use super::*;
use crate::record::Cause;
use crate::store::DeadLetters;
use crate::store::dead_letters::{
    Burial, DeadLetterCursor, DeadLetterFilter, DeadLetterId, DeadLetterKind, RoundChange,
};
use crate::store::outbox::{
    DeliveryAttempts, EventContent, EventKey, EventOrder, Outbox, OutboxEvent, OutboxWake,
    RelayFence, SinkBacklog,
};
use crate::store::records::Events;
use crate::store::redis::{Endpoint, RedisOptions};

const RELAY: RelayFence = RelayFence(7);
const LEDGER: &str = "ledger";

fn event(version: u64) -> OutboxEvent {
    let order = EventOrder { opened_unix_ms: 1000, version, number: 0 };
    let content = EventContent::Plain(Bytes::from(format!("version {version}")));
    OutboxEvent { sink: LEDGER.into(), order, content }
}

fn key(slot: Slot, version: u64) -> EventKey {
    EventKey { sink: LEDGER.into(), slot, order: event(version).order }
}

fn burial(kind: DeadLetterKind) -> Burial {
    Burial { kind, report: EventContent::Plain(Bytes::from_static(b"refused")) }
}

/// Writes a result in `version` with an event for `LEDGER`.
async fn announce(store: &Redis, slot: &Slot, over: Option<u64>, version: u64, events: &[u64]) {
    let events: Vec<OutboxEvent> = events.iter().copied().map(event).collect();
    let events = Events { outbox: &events, ..Events::NONE };
    let swap = store.write(slot, over.map(Version), &completed(version), KEEP, events).await;
    assert_eq!(swap.unwrap(), Swap::Stored);
}

async fn own(store: &Redis, slot: &Slot) {
    let before = store.partition_owners().await.unwrap()[usize::from(slot.partition())];
    assert!(store.own_partition(slot.partition(), RELAY, before).await.unwrap());
}

async fn due(store: &Redis, slot: &Slot) -> Vec<EventKey> {
    let due = store.due_events(slot.partition(), LEDGER, 100).await.unwrap();
    due.events.into_iter().map(|event| event.key).collect()
}

/// Returns the time of a sink's oldest waiting event in the partition of an operation.
async fn oldest(store: &Redis, sink: &str, slot: Slot) -> Option<u64> {
    store.oldest_waiting_ms(sink, &BTreeSet::from([slot.partition()])).await.unwrap()
}

async fn next(wakes: &mut broadcast::Receiver<OutboxWake>) -> OutboxWake {
    timeout(PATIENCE, wakes.recv()).await.expect("a wake-up").unwrap()
}

async fn make_list(admin: &mut MultiplexedConnection, key: Vec<u8>) {
    redis::cmd("DEL").arg(&key).exec_async(admin).await.unwrap();
    redis::cmd("LPUSH").arg(key).arg("x").exec_async(admin).await.unwrap();
}

#[tokio::test]
async fn events_come_back_with_their_record_after_a_loss() {
    let server = TestServer::start().await;
    let store = server.store();
    announce(&store, &HERE(1), None, 8, &[8]).await;
    let before = store.due_events(HERE(1).partition(), LEDGER, 9).await.unwrap().events;
    redis::cmd("FLUSHALL").exec_async(&mut server.admin().await).await.unwrap();
    until("the record is back", async || store.load(&HERE(1)).await.unwrap().is_some()).await;
    let after = store.due_events(HERE(1).partition(), LEDGER, 9).await.unwrap().events;
    assert_eq!((before.len(), before), (1, after), "with the time of the change");
    assert_eq!(store.backlog().await.unwrap()[0].waiting, 1);
    // A relay that owned the partition before can change nothing until it owns it again.
    assert!(!store.remove(RELAY, &key(HERE(1), 8), 0).await.unwrap());
}

/// Returns the places of the events that wait for `LEDGER`.
async fn waiting(store: &Redis, slot: &Slot) -> Vec<u64> {
    let waiting = store.waiting_of(LEDGER, slot).await.unwrap();
    waiting.iter().map(|event| event.key.order.version).collect()
}

#[tokio::test]
async fn events_of_earlier_writes_come_back_after_a_loss_unless_they_are_delivered() {
    let server = TestServer::start().await;
    let (store, here, delivered) = (server.store(), HERE(1), HERE(2));
    for slot in [here, delivered] {
        own(&store, &slot).await;
        announce(&store, &slot, None, 8, &[8]).await;
        announce(&store, &slot, Some(8), 9, &[9]).await;
    }
    assert!(store.remove(RELAY, &key(delivered, 8), 0).await.unwrap());
    let before = store.waiting_of(LEDGER, &here).await.unwrap();
    for loss in 0..2 {
        redis::cmd("FLUSHALL").exec_async(&mut server.admin().await).await.unwrap();
        until("the events are back", async || !waiting(&store, &delivered).await.is_empty()).await;
        until("all records are back", async || store.load(&here).await.unwrap().is_some()).await;
        assert_eq!(store.waiting_of(LEDGER, &here).await.unwrap(), before, "loss {loss}");
        assert_eq!(waiting(&store, &delivered).await, [9]);
        let counted = store.backlog().await.unwrap();
        assert_eq!(counted.iter().map(|one| one.waiting).sum::<u64>(), 3);
    }
    assert_eq!(due(&store, &here).await, [key(here, 8)], "the first is due first");
}

#[tokio::test]
async fn the_event_of_an_uncertain_operation_comes_back_with_the_claim_that_followed() {
    let server = TestServer::start().await;
    let (store, here) = (server.store(), HERE(1));
    let state = State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None };
    let uncertain = Record { state, ..claim(8, 8) };
    let events = [event(8)];
    let events = Events { outbox: &events, ..Events::NONE };
    let swap = store.write(&here, None, &uncertain, LEASE, events).await.unwrap();
    assert_eq!(swap, Swap::Stored);
    let swap = store.swap(&here, Some(Version(8)), &claim(9, 9), LEASE).await.unwrap();
    assert_eq!(swap, Swap::Stored);
    redis::cmd("FLUSHALL").exec_async(&mut server.admin().await).await.unwrap();
    until("the event is back", async || waiting(&store, &here).await == [8]).await;
    assert_eq!(store.load(&here).await.unwrap().unwrap().record.version, Version(9));
}

#[tokio::test]
async fn the_events_of_two_gateways_about_one_operation_come_back_after_a_loss() {
    let server = TestServer::start().await;
    let stores = [server.store(), server.store()];
    // Whichever gateway notices the loss first: the later state is in the way of the earlier one.
    for n in 0..8 {
        let [first, second] = [&stores[n % 2], &stores[(n + 1) % 2]];
        announce(first, &HERE(n as u64), None, 8, &[8]).await;
        announce(second, &HERE(n as u64), Some(8), 9, &[9]).await;
    }
    redis::cmd("FLUSHALL").exec_async(&mut server.admin().await).await.unwrap();
    for n in 0..8 {
        let here = HERE(n);
        until("both events are back", async || waiting(&stores[0], &here).await == [8, 9]).await;
        assert_eq!(stores[0].load(&here).await.unwrap().unwrap().record.version, Version(9));
    }
}

#[tokio::test]
async fn an_event_that_was_buried_and_written_again_is_counted_once() {
    let server = TestServer::start().await;
    let (store, here) = (server.store(), HERE(1));
    own(&store, &here).await;
    announce(&store, &here, None, 8, &[8]).await;
    assert!(store.bury(RELAY, &key(here, 8), 0, &burial(DeadLetterKind::Receiver)).await.unwrap());
    announce(&store, &here, Some(8), 9, &[8]).await;
    let bytes = event(8).content.size() as u64;
    let partition = here.partition();
    let all = |waiting, dead_by_receiver, dead_by_gateway, bytes| {
        let sink = LEDGER.into();
        [SinkBacklog { partition, sink, waiting, dead_by_receiver, dead_by_gateway, bytes }]
    };
    assert_eq!(store.backlog().await.unwrap(), all(1, 1, 0, 2 * bytes));
    assert!(store.bury(RELAY, &key(here, 8), 0, &burial(DeadLetterKind::Gateway)).await.unwrap());
    assert_eq!(store.backlog().await.unwrap(), all(0, 0, 1, bytes));
    announce(&store, &here, Some(9), 10, &[8]).await;
    let id = DeadLetterId::of(&key(here, 8));
    assert!(store.requeue(id, RoundChange { from: 0, to: 1 }).await.unwrap());
    assert_eq!(store.backlog().await.unwrap(), all(1, 0, 0, bytes));
    assert_eq!(store.dead_letter(id).await.unwrap(), None);
    assert!(store.remove(RELAY, &key(here, 8), 0).await.unwrap());
    assert_eq!(store.backlog().await.unwrap(), []);
    assert_eq!(oldest(&store, LEDGER, here).await, None);
}

#[tokio::test]
async fn a_key_of_another_type_leaves_neither_record_nor_event() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    let (names, partition) = (names(), HERE(1).partition());
    let events = [event(8)];
    let events = Events { outbox: &events, ..Events::NONE };
    for odd in [
        names.outbox_counts_key(partition),
        names.outbox_due_key(partition, LEDGER),
        names.outbox_events_key(partition, LEDGER),
    ] {
        make_list(&mut admin, odd.clone()).await;
        let written = store.write(&HERE(1), None, &completed(8), KEEP, events).await;
        assert!(written.is_err(), "{}", String::from_utf8_lossy(&odd));
        assert_eq!(store.load(&HERE(1)).await.unwrap(), None);
        redis::cmd("DEL").arg(odd).exec_async(&mut admin).await.unwrap();
    }
    announce(&store, &HERE(1), None, 8, &[8]).await;
    assert_eq!(due(&store, &HERE(1)).await.len(), 1);
}

#[tokio::test]
async fn an_operation_without_its_event_holds_back_nothing() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    let (here, there) = (in_partition(3, 1), in_partition(3, 2));
    announce(&store, &here, None, 9, &[7, 8]).await;
    announce(&store, &there, None, 9, &[7]).await;
    let events = names().outbox_events_key(here.partition(), LEDGER);
    let member = &layout::member(&here)[..];
    redis::cmd("HDEL").arg(&events).arg(member).exec_async(&mut admin).await.unwrap();
    assert_eq!(due(&store, &here).await, [key(there, 7)]);
    redis::cmd("HSET").arg(&events).arg(member).arg("odd").exec_async(&mut admin).await.unwrap();
    assert_eq!(due(&store, &here).await, [key(there, 7)]);
}

#[tokio::test]
async fn counts_are_summed_when_their_text_is_long() {
    let server = TestServer::start().await;
    let (store, mut admin, here) = (server.store(), server.admin().await, HERE(1));
    own(&store, &here).await;
    let versions: Vec<u64> = (1..=300).collect();
    announce(&store, &here, None, 999, &versions).await;
    let bytes = |versions: &[u64]| versions.iter().map(|v| event(*v).content.size() as u64).sum();
    let counted = async |versions: &[u64]| {
        let all = store.backlog().await.unwrap();
        let found: u64 = all.iter().map(|one| one.bytes).sum();
        assert_eq!((all[0].waiting, found), (versions.len() as u64, bytes(versions)));
    };
    counted(&versions).await;
    for version in &versions[..200] {
        assert!(store.remove(RELAY, &key(here, *version), 0).await.unwrap());
    }
    counted(&versions[200..]).await;
    let mut length = redis::cmd("STRLEN");
    length.arg(names().outbox_counts_key(here.partition()));
    let length: usize = length.query_async(&mut admin).await.unwrap();
    assert!(length <= 2048, "{length}");
    let due = store.due_events(here.partition(), LEDGER, 9).await.unwrap().events;
    assert_eq!(oldest(&store, LEDGER, here).await, Some(due[0].written_ms));
    assert_eq!(due[0].attempts, DeliveryAttempts::default());
}

#[tokio::test]
async fn relays_are_woken_for_what_waited_before_their_subscription() {
    let server = TestServer::start().await;
    let (here, there) = (server.store(), server.store());
    announce(&here, &HERE(1), None, 8, &[8]).await;
    let mut wakes = there.wakes();
    let expected = OutboxWake { partition: HERE(1).partition(), sink: LEDGER.into() };
    assert_eq!(next(&mut wakes).await, expected, "after the first subscription");
    announce(&here, &HERE(2), None, 8, &[8]).await;
    assert_eq!(next(&mut wakes).await.partition, HERE(2).partition(), "by its message");
    own(&here, &HERE(2)).await;
    assert!(here.remove(RELAY, &key(HERE(2), 8), 0).await.unwrap());
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("pubsub");
    kill.exec_async(&mut server.admin().await).await.unwrap();
    assert_eq!(next(&mut wakes).await, expected, "after the next subscription");
    there.attend(RelayFence(2), PATIENCE).await.unwrap();
    there.leave(RelayFence(2)).await.unwrap();
    assert_eq!(next(&mut wakes).await, OutboxWake { partition: u16::MAX, sink: String::new() });
}

#[tokio::test]
async fn a_user_without_the_channel_is_woken_by_its_own_process() {
    let server = TestServer::start().await;
    let mut admin = server.admin().await;
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("limited").arg(&["on", ">pw", "~*", "resetchannels", "+@all"]);
    user.exec_async(&mut admin).await.unwrap();
    let url = format!("redis://limited:pw@127.0.0.1:{}", server.port);
    let store = store(&url, Duration::from_secs(5));
    let mut wakes = store.wakes();
    announce(&store, &HERE(1), None, 8, &[8]).await;
    assert_eq!(next(&mut wakes).await.partition, HERE(1).partition());
}

/// Returns the calls of commands since the statistics were reset: of those with these names, or of
/// all if there are none.
async fn calls(admin: &mut MultiplexedConnection, names: &[&str]) -> u64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(admin).await.unwrap();
    let count = |line: &str| {
        let (name, counts) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let is_counted = names.is_empty() || names.contains(&name);
        is_counted.then(|| counts.split_once(',').unwrap().0.parse::<u64>().unwrap())
    };
    stats.lines().filter_map(count).sum()
}

#[tokio::test]
async fn an_idle_relay_costs_the_server_a_few_calls() {
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    for n in 0..50 {
        announce(&store, &HERE(n), None, 8, &[8]).await;
    }
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut admin).await.unwrap();
    assert_eq!(store.backlog().await.unwrap().iter().map(|one| one.waiting).sum::<u64>(), 50);
    store.partition_owners().await.unwrap();
    store.attend(RELAY, PATIENCE).await.unwrap();
    oldest(&store, "another sink", HERE(1)).await;
    let calls = calls(&mut admin, &[]).await;
    assert!(calls <= 16, "{calls} of these, of the epochs' task and of this count");
}

/// Buries an event of each of these slots.
async fn buried(store: &Redis, slots: impl Iterator<Item = Slot>) -> BTreeSet<DeadLetterId> {
    let all = slots.map(async |slot| {
        own(store, &slot).await;
        announce(store, &slot, None, 8, &[8]).await;
        let kind = burial(DeadLetterKind::Receiver);
        assert!(store.bury(RELAY, &key(slot, 8), 0, &kind).await.unwrap());
        DeadLetterId::of(&key(slot, 8))
    });
    futures_util::future::join_all(all).await.into_iter().collect()
}

/// Returns the ids of a listing, and checks their order.
async fn listed(store: &Redis, filter: &DeadLetterFilter, limit: usize) -> Vec<DeadLetterId> {
    let (mut places, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.dead_letters(filter, cursor, limit).await.unwrap();
        places.extend(page.letters.iter().map(|letter| {
            let id = DeadLetterId::of(&letter.key);
            DeadLetterCursor { buried_ms: letter.buried_ms, id }
        }));
        let Some(next) = page.cursor else { break };
        cursor = Some(next);
    }
    assert!(places.is_sorted_by(|a, b| a > b), "latest first, and none twice");
    places.into_iter().map(|place| place.id).collect()
}

/// A slot of a partition.
fn in_partition(partition: u8, n: u8) -> Slot {
    let mut hash = [n; crate::key::SLOT_BYTES];
    hash[0] = partition;
    Slot::from_hash(Space::Enforced, hash)
}

#[tokio::test]
async fn a_listing_merges_partitions_with_many_burials_at_once() {
    let server = TestServer::start().await;
    let store = server.store();
    let few = (0..40).map(|n| in_partition(n, 1));
    let slots = few.chain((1..50).flat_map(|n| [100, 255].map(|p| in_partition(p, n))));
    let ids = buried(&store, slots).await;
    assert_eq!(ids.len(), 138);
    for limit in [1, 7, 64, 137, 138, 1000] {
        let found = listed(&store, &DeadLetterFilter::default(), limit).await;
        assert_eq!(found.len(), ids.len(), "{limit}");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), ids, "{limit}");
    }
    let none = DeadLetterFilter { sink: Some("mail".into()), ..DeadLetterFilter::default() };
    assert_eq!(listed(&store, &none, 5).await, []);
    let first = store.dead_letters(&DeadLetterFilter::default(), None, 1).await.unwrap();
    let at_ms = first.letters[0].buried_ms;
    let [until, since] = [(None, Some(at_ms)), (Some(at_ms), None)].map(|(since_ms, until_ms)| {
        DeadLetterFilter { since_ms, until_ms, ..DeadLetterFilter::default() }
    });
    let (before, after) = (listed(&store, &until, 9).await, listed(&store, &since, 9).await);
    assert_eq!((before.len() + after.len(), after.is_empty()), (ids.len(), false));
}

/// Multiplies a dead letter: writes this many, each with an id and a time of burial of its own.
async fn multiply(server: &TestServer, id: DeadLetterId, count: u64) {
    const SCRIPT: &str = "
        local id, letter = ARGV[1], redis.call('HGET', KEYS[1], ARGV[1])
        for n = ARGV[2], ARGV[3] do
            local other = string.sub(id, 1, 8) .. struct.pack('>I8', n)
            local at_ms = struct.unpack('>I8', letter, 2) + n
            local value = string.sub(letter, 1, 1) .. struct.pack('>I8', at_ms)
            redis.call('HSET', KEYS[1], other, value .. string.sub(letter, 10))
            redis.call('ZADD', KEYS[2], at_ms, other)
        end";
    const AT_ONCE: u64 = 10_000;
    let (partition, mut admin) = (id.partition(), server.admin().await);
    let mut last = 0;
    while last < count {
        let first = last + 1;
        last = count.min(last + AT_ONCE);
        let mut eval = redis::cmd("EVAL");
        eval.arg(SCRIPT).arg(2);
        eval.arg(names().outbox_dead_key(partition)).arg(names().outbox_dead_at_key(partition));
        eval.arg(&id.as_bytes()[..]).arg(first).arg(last);
        eval.exec_async(&mut admin).await.unwrap();
    }
}

#[tokio::test]
async fn a_page_of_a_listing_costs_the_same_however_many_dead_letters_there_are() {
    let many = std::env::var("ONCEWARD_DEAD_LETTERS").map_or(100_000, |n| n.parse().unwrap());
    let server = TestServer::start().await;
    let (store, mut admin) = (server.store(), server.admin().await);
    let ids = buried(&store, [in_partition(3, 1), in_partition(200, 1)].into_iter()).await;
    let of_mail = DeadLetterFilter { sink: Some("mail".into()), ..DeadLetterFilter::default() };
    let mut costs = Vec::new();
    for count in [5_000, many / 2] {
        for id in &ids {
            multiply(&server, *id, count).await;
        }
        redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut admin).await.unwrap();
        let page = store.dead_letters(&DeadLetterFilter::default(), None, 1000).await.unwrap();
        assert_eq!((page.letters.len(), page.cursor.is_some()), (1000, true));
        let next = store.dead_letters(&DeadLetterFilter::default(), page.cursor, 1000).await;
        assert_eq!(next.unwrap().letters.len(), 1000);
        // A page of a filter that nothing matches ends early, too.
        let none = store.dead_letters(&of_mail, None, 1000).await.unwrap();
        assert_eq!((none.letters.len(), none.cursor.is_some()), (0, true));
        costs.push(calls(&mut admin, &["zrevrangebyscore", "hmget"]).await);
    }
    assert!(costs[0] > 0 && costs[1] <= costs[0] + 10, "{costs:?}");
}

#[tokio::test]
async fn ids_of_unknown_partitions_are_of_no_dead_letter() {
    let server = TestServer::start().await;
    let (store, id) = (server.store(), DeadLetterId::from_bytes([255; 16]));
    assert_eq!(store.dead_letter(id).await.unwrap(), None);
    assert!(
        !store.requeue(id, RoundChange { from: 0, to: 1 }).await.unwrap()
            && !store.discard(id).await.unwrap()
    );
}

/// Starts a cluster of three nodes.
async fn cluster() -> (Vec<TestServer>, Vec<String>) {
    const HASH_SLOTS: usize = 16384;
    let mut servers = Vec::new();
    for n in 0..3 {
        let settings = ["--cluster-enabled", "yes", "--cluster-port", "TLS_PORT"];
        let server = TestServer::start_with(&settings).await;
        let mut admin = server.admin().await;
        let mut cluster = redis::pipe();
        cluster.cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(n + 1);
        let slots = HASH_SLOTS * n / 3..HASH_SLOTS * (n + 1) / 3;
        cluster.cmd("CLUSTER").arg("ADDSLOTS").arg(slots.collect::<Vec<_>>());
        cluster.exec_async(&mut admin).await.unwrap();
        servers.push(server);
    }
    let mut first = servers[0].admin().await;
    for server in &servers[1..] {
        let mut meet = redis::cmd("CLUSTER");
        meet.arg("MEET").arg("127.0.0.1").arg(server.port).arg(server.tls_port);
        meet.exec_async(&mut first).await.unwrap();
    }
    for server in &servers {
        let mut admin = server.admin().await;
        until("the cluster stands", async || {
            let info: String =
                redis::cmd("CLUSTER").arg("INFO").query_async(&mut admin).await.unwrap();
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
        .await;
    }
    let urls = servers.iter().map(TestServer::tcp_url).collect();
    (servers, urls)
}

#[tokio::test]
async fn the_stories_of_the_outbox_hold_on_a_cluster() {
    let (_servers, urls) = cluster().await;
    let stories = AtomicU64::new(0);
    let store = || {
        let n = stories.fetch_add(1, Ordering::Relaxed);
        let endpoint = Endpoint::Cluster(urls.clone());
        let namespace = format!("story{n}");
        Redis::connect(RedisOptions { endpoint, namespace, ..options("", PATIENCE) }).unwrap()
    };
    let stage = || Stage::of_shared(store(), Time::Real);
    suite::an_event_for_a_sink_is_written_with_its_record(stage()).await;
    suite::a_repeated_write_brings_no_delivered_event_back(stage()).await;
    suite::events_of_an_operation_are_due_one_after_the_other_in_order(stage()).await;
    suite::a_postponed_event_holds_back_its_own_operation_alone(stage()).await;
    suite::a_relay_that_lost_its_partition_changes_nothing(stage()).await;
    suite::relays_attend_until_their_lease_ends_or_they_leave(stage()).await;
    suite::a_relay_is_woken_by_an_event(stage()).await;
    suite::an_event_that_is_buried_is_a_dead_letter_and_waits_no_more(stage()).await;
    suite::a_dead_letter_is_requeued_in_a_new_round(stage()).await;
    suite::only_the_owner_replaces_the_content_of_a_waiting_event(stage()).await;
    suite::a_discarded_dead_letter_is_gone(stage()).await;
    suite::a_listing_of_dead_letters_pages_through_those_that_match(stage()).await;
    let store = store();
    let ids = buried(&store, (0..200).map(HERE)).await;
    assert_eq!(listed(&store, &DeadLetterFilter::default(), 30).await.len(), ids.len());
    assert_eq!(
        store.backlog().await.unwrap().iter().map(|one| one.dead_by_receiver).sum::<u64>(),
        200
    );
    let attempts = DeliveryAttempts::default();
    assert!(!store.postpone(RELAY, &key(HERE(1), 8), 0, attempts, PATIENCE).await.unwrap());
}
