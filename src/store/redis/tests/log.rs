//! The event log on a real server, with entries that another client changes.

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::*;
use crate::store::log::{ChainFault, DIGEST_BYTES, EntryId, LogEntry, OBSERVED_BYTES_MAX, verify};
use crate::store::redis::log::appended;

async fn claim_with_event(store: &Redis, n: u64) {
    let swapped = store
        .write(
            &HERE(n),
            None,
            &claim(n, n),
            LEASE,
            crate::store::Events::logged(&|| b"{\"kind\":\"claimed\"}".into()),
        )
        .await
        .unwrap();
    assert_eq!(swapped, Swap::Stored);
}

/// Operations with events in the same partition.
fn neighbours(count: usize) -> Vec<u64> {
    let partition = HERE(1).partition();
    (1..).filter(|n| HERE(*n).partition() == partition).take(count).collect()
}

#[tokio::test]
async fn entries_that_are_changed_put_in_taken_out_or_cut_off_are_found() {
    let server = TestServer::start().await;
    let store = server.store();
    let mut admin = server.admin().await;
    let partition = HERE(1).partition();
    for n in neighbours(6) {
        claim_with_event(&store, n).await;
    }
    let ids: Vec<EntryId> = store
        .read_partition(partition, EntryId::default(), 10)
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.id)
        .collect();
    let found = async || {
        let breaks = verify(&*store, None, 1000).await.unwrap().breaks;
        breaks.into_iter().map(|at| (at.partition, at.id, at.fault)).collect::<Vec<_>>()
    };
    assert_eq!(found().await, []);
    let key = names().events_key(partition);
    let dropped = async |admin: &mut _, id: EntryId| {
        redis::cmd("XDEL").arg(&key).arg(id.to_string()).exec_async(admin).await.unwrap();
    };
    dropped(&mut admin, ids[2]).await;
    assert_eq!(found().await, [(partition, ids[3], ChainFault::Unlinked)], "one is taken out");
    dropped(&mut admin, ids[5]).await;
    assert_eq!(
        found().await,
        [(partition, ids[3], ChainFault::Unlinked), (partition, ids[5], ChainFault::CutOff)]
    );
    dropped(&mut admin, ids[0]).await;
    assert_eq!(found().await[0], (partition, ids[1], ChainFault::Unlinked), "the beginning too");
    let member = layout::member(&HERE(1));
    let mut add = redis::cmd("XADD");
    add.arg(&key).arg(EntryId { ms: ids[5].ms + 60_000, seq: 0 }.to_string());
    add.arg(&[b'0'; 40]).arg([&[0; DIGEST_BYTES][..], &member, b"{}"].concat());
    add.exec_async(&mut admin).await.unwrap();
    assert_eq!(found().await.len(), 4, "one is put in");
}

/// Writes a partition's log again, like an attacker who leaves the links as they are.
async fn written_anew(admin: &mut MultiplexedConnection, key: &[u8], entries: &[LogEntry]) {
    redis::cmd("DEL").arg(key).exec_async(admin).await.unwrap();
    for LogEntry { id, slot, event, link, .. } in entries {
        let mut add = redis::cmd("XADD");
        let value = [&[0; DIGEST_BYTES][..], &layout::member(slot), event].concat();
        add.arg(key)
            .arg(id.to_string())
            .arg(link.unwrap().as_bytes())
            .arg(value)
            .exec_async(admin)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn an_entry_with_another_event_or_operation_and_two_that_changed_places_are_found() {
    let server = TestServer::start().await;
    let store = server.store();
    let mut admin = server.admin().await;
    let (partition, operations) = (HERE(1).partition(), neighbours(4));
    for n in &operations {
        claim_with_event(&store, *n).await;
    }
    let key = names().events_key(partition);
    let entries = store.read_partition(partition, EntryId::default(), 10).await.unwrap();
    let mut found = async |change: fn(&mut Vec<LogEntry>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        written_anew(&mut admin, &key, &entries).await;
        let breaks = verify(&*store, None, 1000).await.unwrap().breaks;
        breaks
            .into_iter()
            .map(|at| (entries.iter().position(|entry| entry.id == at.id), at.fault))
            .collect::<Vec<_>>()
    };
    assert_eq!(found(|_| ()).await, []);
    let unlinked = |at| (Some(at), ChainFault::Unlinked);
    let event =
        |entries: &mut Vec<LogEntry>| entries[1].event = b"{\"kind\":\"released\"}"[..].into();
    assert_eq!(found(event).await, [unlinked(1)]);
    let operation = |entries: &mut Vec<LogEntry>| entries[1].slot = entries[0].slot;
    assert_eq!(found(operation).await, [unlinked(1)]);
    let places = |entries: &mut Vec<LogEntry>| {
        let (second, third) = (entries[1].id, entries[2].id);
        entries.swap(1, 2);
        (entries[1].id, entries[2].id) = (second, third);
    };
    assert_eq!(found(places).await, [unlinked(1), unlinked(2), unlinked(3)]);
}

#[tokio::test]
async fn observations_go_on_being_kept_and_counted_after_somebody_took_them_away_or_put_some_in() {
    let server = TestServer::start().await;
    let store = server.store();
    let mut admin = server.admin().await;
    let log = &*store;
    let half = vec![b'x'; OBSERVED_BYTES_MAX / 2];
    let kept = async || {
        let found = log.observations(EntryId::default(), 10).await.unwrap();
        found.into_iter().map(|(_, batch)| batch[0]).collect::<Vec<_>>()
    };
    log.observe(&half).await.unwrap();
    redis::cmd("DEL").arg(names().observations_key()).exec_async(&mut admin).await.unwrap();
    log.observe(&half).await.unwrap();
    assert_eq!(kept().await, [b'x'], "there is room");

    let mut foreign = redis::cmd("XADD");
    foreign
        .arg(names().observations_key())
        .arg("*")
        .arg("b")
        .arg(vec![b'f'; OBSERVED_BYTES_MAX / 2]);
    foreign.exec_async(&mut admin).await.unwrap();
    log.observe(b"y").await.unwrap();
    log.trim(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(kept().await, [b'f', b'y'], "of the oldest nothing is known");
}

#[test]
fn a_batch_is_kept_only_if_all_of_it_was_appended_whatever_else_a_cluster_answers() {
    let refused = redis::parse_redis_value(b"-WRONGTYPE of s3cret\r\n").unwrap();
    let (id, one, held) = (Value::BulkString(b"1-0".into()), Value::Int(1), Value::Int(99));
    let appended =
        |answers: &[&Value]| appended(answers.iter().map(|answer| (*answer).clone()).collect());
    assert_eq!(appended(&[&id, &one, &held]).unwrap(), 99);
    let ok = Value::Okay;
    assert_eq!(
        appended(&[&ok, &id, &ok, &one, &ok, &held, &ok]).unwrap(),
        99,
        "each ASKING is answered, too"
    );
    assert!(matches!(appended(&[&refused, &one, &held]), Err(StoreError::MaybeApplied(_))));
    assert!(matches!(appended(&[&id]), Err(StoreError::MaybeApplied(_))));
}
