//! The event log over a real server: somebody changes it.

use redis::aio::MultiplexedConnection;

use super::*;
use crate::store::log::{DIGEST_BYTES, Entry, EntryId, Fault, verify};

async fn told(store: &Redis, n: u64) {
    let swapped = store.write(&HERE(n), None, &claim(n, n), LEASE, &|| b"{\"kind\":\"claimed\"}".into()).await.unwrap();
    assert_eq!(swapped, Swap::Stored);
}

/// Operations whose events lie in one partition.
fn neighbours(count: usize) -> Vec<u64> {
    let partition = HERE(1).partition();
    (1..).filter(|n| HERE(*n).partition() == partition).take(count).collect()
}

#[tokio::test]
async fn entries_that_are_changed_put_in_taken_out_or_cut_off_are_found() {
    let server = Server::start().await;
    let store = server.store();
    let mut admin = server.admin().await;
    let partition = HERE(1).partition();
    for n in neighbours(6) {
        told(&store, n).await;
    }
    let ids: Vec<EntryId> =
        store.log().read_partition(partition, EntryId::default(), 10).await.unwrap().iter().map(|entry| entry.id).collect();
    let found = async || {
        let breaks = verify(store.log(), None, 1000).await.unwrap().breaks;
        breaks.into_iter().map(|at| (at.partition, at.id, at.fault)).collect::<Vec<_>>()
    };
    assert_eq!(found().await, []);
    let key = layout::events_key(partition);
    let dropped = async |admin: &mut _, id: EntryId| {
        redis::cmd("XDEL").arg(&key).arg(id.to_string()).exec_async(admin).await.unwrap();
    };
    dropped(&mut admin, ids[2]).await;
    assert_eq!(found().await, [(partition, ids[3], Fault::Unlinked)], "one is taken out");
    dropped(&mut admin, ids[5]).await;
    assert_eq!(found().await, [(partition, ids[3], Fault::Unlinked), (partition, ids[5], Fault::CutOff)]);
    dropped(&mut admin, ids[0]).await;
    assert_eq!(found().await[0], (partition, ids[1], Fault::Unlinked), "the beginning too");
    let member = layout::member(&HERE(1));
    let mut add = redis::cmd("XADD");
    add.arg(&key).arg(EntryId { ms: ids[5].ms + 60_000, seq: 0 }.to_string());
    add.arg(&[b'0'; 40]).arg([&[0; DIGEST_BYTES][..], &member, b"{}"].concat());
    add.exec_async(&mut admin).await.unwrap();
    assert_eq!(found().await.len(), 4, "one is put in");
}

/// Writes a partition's log anew, as somebody would who leaves the links as they are.
async fn written_anew(admin: &mut MultiplexedConnection, key: &[u8], entries: &[Entry]) {
    redis::cmd("DEL").arg(key).exec_async(admin).await.unwrap();
    for Entry { id, slot, event, link, .. } in entries {
        let mut add = redis::cmd("XADD");
        let told = [&[0; DIGEST_BYTES][..], &layout::member(slot), event].concat();
        add.arg(key).arg(id.to_string()).arg(link.unwrap().as_bytes()).arg(told).exec_async(admin).await.unwrap();
    }
}

#[tokio::test]
async fn an_entry_with_another_event_or_operation_and_two_that_changed_places_are_found() {
    let server = Server::start().await;
    let store = server.store();
    let mut admin = server.admin().await;
    let (partition, operations) = (HERE(1).partition(), neighbours(4));
    for n in &operations {
        told(&store, *n).await;
    }
    let key = layout::events_key(partition);
    let entries = store.log().read_partition(partition, EntryId::default(), 10).await.unwrap();
    let mut found = async |change: fn(&mut Vec<Entry>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        written_anew(&mut admin, &key, &entries).await;
        let breaks = verify(store.log(), None, 1000).await.unwrap().breaks;
        breaks.into_iter().map(|at| (entries.iter().position(|entry| entry.id == at.id), at.fault)).collect::<Vec<_>>()
    };
    assert_eq!(found(|_| ()).await, []);
    let unlinked = |at| (Some(at), Fault::Unlinked);
    let event = |entries: &mut Vec<Entry>| entries[1].event = b"{\"kind\":\"released\"}"[..].into();
    assert_eq!(found(event).await, [unlinked(1)]);
    let operation = |entries: &mut Vec<Entry>| entries[1].slot = entries[0].slot;
    assert_eq!(found(operation).await, [unlinked(1)]);
    let places = |entries: &mut Vec<Entry>| {
        let (second, third) = (entries[1].id, entries[2].id);
        entries.swap(1, 2);
        (entries[1].id, entries[2].id) = (second, third);
    };
    assert_eq!(found(places).await, [unlinked(1), unlinked(2), unlinked(3)]);
}
