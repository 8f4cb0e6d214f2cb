//! The event log over a real server: somebody changes it.

use super::*;
use crate::store::log::{EntryId, Fault, verify};

async fn told(store: &Redis, n: u64) {
    let swapped = store.write(&HERE(n), None, &claim(n, n), LEASE, b"{\"kind\":\"claimed\"}").await.unwrap();
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
    let entry = ["m", "e", "l"].into_iter().zip([&member[..], b"{}", &[b'0'; 40]]);
    let mut add = redis::cmd("XADD");
    add.arg(&key).arg(EntryId { ms: ids[5].ms + 60_000, seq: 0 }.to_string());
    entry.for_each(|(name, value)| _ = add.arg(name).arg(value));
    add.exec_async(&mut admin).await.unwrap();
    assert_eq!(found().await.len(), 4, "one is put in");
}
