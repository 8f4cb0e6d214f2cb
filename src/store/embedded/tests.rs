//! The store on a disk: the test suite, and recovery after crashes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata};

use self::faulty::Disk;
use super::layout::{LAYOUT, META};
use super::store::QUEUE_MAX;
use super::tables::{ENDS, RECORDS, RecordKey};
use super::*;
use crate::key::{Slot, Space};
use crate::record::{Fence, Lifetime, Version};
use crate::store::large::ALONG_MAX;
use crate::store::suite::{self, Stage, Time, slot};
use crate::store::{IdentityNotes, Listing, Note, Records, StoreError, Swap};

mod faulty;

const LONG: Duration = Duration::from_secs(3600);
const START_MS: u64 = 1_800_000_000_000;

fn options(time: &Time) -> EmbeddedOptions {
    EmbeddedOptions { min_free_bytes: 0, ..EmbeddedOptions::new(time.clock(), START_MS) }
}

async fn stage() -> Stage {
    let (time, dir) = (Time::by_hand(), tempfile::tempdir().unwrap());
    Stage::new(Embedded::open(dir.path(), options(&time)).unwrap(), time).with_guard(dir)
}

suite::stories!(stage);

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, options(&Time::by_hand())).unwrap()
}

fn here(n: u64) -> Slot {
    slot(Space::Enforced, n)
}

fn lease() -> Lifetime {
    Lifetime { keep: LONG * 2, due: Some(LONG), tombstone: None }
}

fn keep() -> Lifetime {
    Lifetime { keep: LONG, due: None, tombstone: None }
}

async fn claim(store: &Embedded, n: u64) -> Result<Swap, StoreError> {
    store.swap(&here(n), None, &suite::claim(n, n), lease()).await
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_second_process_learns_that_the_folder_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let refused = Embedded::open(dir.path(), options(&Time::by_hand())).map(|_| ()).unwrap_err();
    assert_eq!(trouble(&refused), Trouble::InUse);
    assert!(refused.to_string().contains("another process uses it"), "{refused}");
    assert_eq!(claim(&store, 1).await.unwrap(), Swap::Stored, "the first is undisturbed");
}

#[tokio::test]
async fn a_closed_store_opens_again_with_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    claim(&store, 1).await.unwrap();
    assert!(store.set_note(Note::Identities, None, "made of this").await.unwrap());
    store.close().await;
    assert!(matches!(claim(&store, 2).await, Err(StoreError::NotApplied(_))));
    assert!(store.load(&here(1)).await.is_err());
    let again = open(dir.path());
    assert_eq!(again.load(&here(1)).await.unwrap().unwrap().record, suite::claim(1, 1));
    assert_eq!(again.note(Note::Identities).await.unwrap().as_deref(), Some("made of this"));
    assert_eq!(again.load(&here(2)).await.unwrap(), None);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_crash_in_the_middle_of_a_commit() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Disk::default();
    let store = Arc::new(disk.open(dir.path(), options(&Time::by_hand())));
    for n in 1..=100 {
        claim(&store, n).await.unwrap();
    }
    disk.allow_syncs(0);
    let unfinished = tokio::spawn({
        let store = store.clone();
        async move { claim(&store, 101).await }
    });
    until("the commit is under way", async || disk.stalled()).await;
    let copy = |name: &str| {
        let path = crashed.path().join(name);
        std::fs::copy(dir.path().join(layout::FILE), &path).unwrap();
        path
    };
    copy(layout::FILE);
    let walk = copy("walk");
    disk.allow_syncs(u64::MAX);
    unfinished.await.unwrap().unwrap();

    // A repair that reads the whole file would begin with this call.
    let no_walk = |repair: &mut redb::RepairSession| repair.abort();
    drop(redb::Builder::new().set_repair_callback(no_walk).open(walk).unwrap());

    let survivor = open(crashed.path());
    for n in 1..=100 {
        assert_eq!(survivor.load(&here(n)).await.unwrap().unwrap().record, suite::claim(n, n));
    }
    claim(&survivor, 200).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_leaves_before_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let store = Arc::new(disk.open(dir.path(), options(&Time::by_hand())));
    disk.allow_syncs(0);
    let ask = |n: u64, fence: u64| {
        let store = store.clone();
        tokio::spawn(async move {
            store.swap(&here(n), None, &suite::claim(fence, fence), lease()).await
        })
    };
    let first = ask(2, 2);
    until("the first commit is under way", async || disk.stalled()).await;
    let (winner, loser) = (ask(3, 30), ask(3, 31));
    until("both wait for the writer", async || store.queue.capacity() == QUEUE_MAX - 2).await;
    while store.commits() == 0 {
        disk.allow_syncs(1);
        until("the next sync", async || disk.stalled()).await;
    }
    assert_eq!(first.await.unwrap().unwrap(), Swap::Stored);
    assert_eq!(store.queue.capacity(), QUEUE_MAX, "both are in that commit");
    assert!(!winner.is_finished() && !loser.is_finished());
    disk.allow_syncs(u64::MAX);
    let answers = [winner.await.unwrap().unwrap(), loser.await.unwrap().unwrap()];
    assert_eq!(answers.iter().filter(|answer| **answer == Swap::Stored).count(), 1, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_shares_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let store = Arc::new(disk.open(dir.path(), options(&Time::by_hand())));
    disk.allow_syncs(0);
    let ask = |n: u64| {
        let store = store.clone();
        tokio::spawn(async move { claim(&store, n).await.unwrap() })
    };
    let mut asked = vec![ask(1)];
    until("the first commit is under way", async || disk.stalled()).await;
    asked.extend((2..=64).map(ask));
    until("all wait for the writer", async || store.queue.capacity() == QUEUE_MAX - 63).await;
    disk.allow_syncs(u64::MAX);
    for answer in asked {
        assert_eq!(answer.await.unwrap(), Swap::Stored);
    }
    assert_eq!((store.claims(), store.commits()), (64, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_given_up_before_its_turn_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let store = Arc::new(disk.open(dir.path(), options(&Time::by_hand())));
    disk.allow_syncs(0);
    let ask = |n: u64| {
        let store = store.clone();
        tokio::spawn(async move { claim(&store, n).await })
    };
    let first = ask(1);
    until("the first commit is under way", async || disk.stalled()).await;
    let given_up = ask(2);
    until("the second waits for the writer", async || store.queue.capacity() == QUEUE_MAX - 1)
        .await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    disk.allow_syncs(u64::MAX);
    first.await.unwrap().unwrap();
    store.ping().await.unwrap();
    assert_eq!(store.load(&here(2)).await.unwrap(), None);
}

#[tokio::test]
async fn duplicates_cost_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    claim(&store, 1).await.unwrap();
    let commits = store.commits();
    for n in 2..20 {
        let duplicate = store.swap(&here(1), None, &suite::claim(n, n), lease()).await.unwrap();
        assert!(matches!(duplicate, Swap::Stale(Some(_))));
    }
    assert_eq!(store.commits(), commits);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_not_reads_until_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let store = disk.open(dir.path(), options(&Time::by_hand()));
    store.swap(&here(1), None, &suite::completed(1), keep()).await.unwrap();

    disk.fail_after(0);
    assert!(claim(&store, 2).await.is_err());
    for n in 3..20 {
        assert!(matches!(claim(&store, n).await, Err(StoreError::NotApplied(_))));
        assert_eq!(store.load(&here(1)).await.unwrap().unwrap().record, suite::completed(1));
        assert_eq!(store.load(&here(2)).await.unwrap(), None);
    }
    assert_eq!(store.list(Listing::All, None, 10).await.unwrap().records.len(), 1);
    assert!(store.ping().await.is_err());

    disk.fail_after(u64::MAX);
    until("it takes claims again", async || claim(&store, 2).await.is_ok()).await;
    store.ping().await.unwrap();
    store.close().await;
    let again = open(dir.path());
    assert_eq!(again.load(&here(1)).await.unwrap().unwrap().record, suite::completed(1));
    assert_eq!(again.load(&here(2)).await.unwrap().unwrap().record, suite::claim(2, 2));
    assert_eq!(again.load(&here(3)).await.unwrap(), None);
}

#[tokio::test]
async fn wherever_a_write_fails_the_error_tells_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let store = disk.open(dir.path(), options(&Time::by_hand()));
    store.swap(&here(0), None, &suite::completed(1), keep()).await.unwrap();
    let (mut failures, mut unclear) = (0, 0);
    for n in 1..200 {
        disk.fail_after(n - 1);
        let outcome = claim(&store, n).await;
        let during = store.load(&here(n)).await.unwrap();
        disk.fail_after(u64::MAX);
        until("the disk is well", async || claim(&store, 1000 + n).await.is_ok()).await;
        let after = store.load(&here(n)).await.unwrap();
        assert_eq!(
            during.is_some(),
            after.is_some(),
            "who read back after failure {n} saw what became of it"
        );
        match outcome {
            Ok(_) => assert!(after.is_some()),
            Err(StoreError::NotApplied(_)) => assert!(after.is_none(), "{n}"),
            Err(_) => unclear += 1,
        }
        assert_eq!(store.load(&here(0)).await.unwrap().unwrap().record, suite::completed(1));
        if outcome.is_ok() {
            break;
        }
        failures += 1;
    }
    assert!(failures > 3 && unclear > 0, "{failures} {unclear}");
}

#[tokio::test]
async fn too_little_free_disk_refuses_claims_and_not_completions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    claim(&store, 1).await.unwrap();
    claim(&store, 2).await.unwrap();
    store.close().await;

    let time = Time::by_hand();
    let store =
        Embedded::open(dir.path(), EmbeddedOptions { min_free_bytes: u64::MAX, ..options(&time) })
            .unwrap();
    assert!(matches!(claim(&store, 3).await, Err(StoreError::NotApplied(_))));
    assert!(store.ping().await.is_err());
    assert!(matches!(claim(&store, 1).await, Ok(Swap::Stored)), "the same call again");
    let duplicate = store.swap(&here(1), None, &suite::claim(9, 9), lease()).await.unwrap();
    assert!(matches!(duplicate, Swap::Stale(Some(_))));
    assert!(store.renew(&here(2), Fence(2), LONG, LONG).await.unwrap());
    let completion =
        store.swap(&here(1), Some(Version(1)), &suite::completed(2), keep()).await.unwrap();
    assert_eq!(completion, Swap::Stored);
}

#[tokio::test]
async fn the_stores_clock_never_runs_backwards() {
    let dir = tempfile::tempdir().unwrap();
    let time = Time::by_hand();
    let store = Embedded::open(dir.path(), options(&time)).unwrap();
    time.pass(LONG).await;
    claim(&store, 1).await.unwrap();
    let before = store.load(&here(1)).await.unwrap().unwrap();
    assert_eq!(before.now_ms, START_MS + LONG.as_millis() as u64);
    store.close().await;

    // The machine starts anew, with a wall clock that was set back by a year.
    let time = Time::by_hand();
    let set_back = EmbeddedOptions { unix_ms: START_MS - 31_536_000_000, ..options(&time) };
    let store = Embedded::open(dir.path(), set_back).unwrap();
    let after = store.load(&here(1)).await.unwrap().unwrap();
    assert_eq!((after.now_ms, after.due_ms), (before.now_ms, before.due_ms));
    time.pass(LONG * 2).await;
    assert!(
        store.load(&here(1)).await.unwrap().is_none(),
        "it ends when its time is over, not a year later"
    );
}

#[tokio::test]
async fn the_clock_does_not_lag_by_the_time_in_which_the_file_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let time = Time::by_hand();
    let options = options(&time);
    time.pass(LONG).await;
    let store = Embedded::open(dir.path(), options).unwrap();
    claim(&store, 1).await.unwrap();
    let held = store.load(&here(1)).await.unwrap().unwrap();
    assert_eq!(held.now_ms, START_MS + LONG.as_millis() as u64);
}

#[tokio::test]
async fn what_has_ended_is_swept_though_nobody_asks() {
    let dir = tempfile::tempdir().unwrap();
    let time = Time::by_hand();
    let store = Embedded::open(dir.path(), options(&time)).unwrap();
    let lifetime = Lifetime { tombstone: Some(LONG / 2), ..keep() };
    let asked = (1..=300).map(|n| {
        let store = &store;
        async move {
            claim(store, n).await.unwrap();
            let replaced = Some(Version(n));
            store.swap(&here(n), replaced, &suite::completed(n + 1), lifetime).await.unwrap()
        }
    });
    futures_util::future::join_all(asked).await;
    let rows = || {
        let file = store.shared.file();
        let txn = file.as_ref().unwrap().begin_read().unwrap();
        (
            txn.open_table(RECORDS).unwrap().len().unwrap(),
            txn.open_table(ENDS).unwrap().len().unwrap(),
        )
    };
    assert_eq!(rows(), (600, 600), "what was replaced leaves no entry behind");
    time.pass(LONG / 2).await;
    until("the tombstones are swept", async || rows() == (300, 300)).await;
    time.pass(LONG / 2).await;
    until("the results are swept", async || rows() == (0, 0)).await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_neither_replaced_nor_in_the_way_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    claim(&store, 1).await.unwrap();
    claim(&store, 2).await.unwrap();
    {
        let file = store.shared.file();
        let txn = file.as_ref().unwrap().begin_write().unwrap();
        let mut records = txn.open_table(RECORDS).unwrap();
        let mut damaged =
            records.get(&RecordKey::record(&here(1)).0).unwrap().unwrap().value().to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        records.insert(&RecordKey::record(&here(1)).0, damaged.as_slice()).unwrap();
        drop(records);
        txn.commit().unwrap();
    }
    let late = store.swap(&here(1), None, &suite::claim(9, 9), lease()).await;
    assert!(matches!(late, Err(StoreError::Corrupt(_))), "{late:?}");
    assert!(matches!(store.load(&here(1)).await, Err(StoreError::Corrupt(_))));
    for listing in [Listing::All, Listing::Unsettled] {
        let listed = store.list(listing, None, 10).await.unwrap();
        assert_eq!(listed.records.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [here(2)]);
    }
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close().await;
    let path = dir.path().join(layout::FILE);
    let db = redb::Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(META).unwrap().insert(LAYOUT, 2).unwrap();
    txn.commit().unwrap();
    drop(db);
    let refused = Embedded::open(dir.path(), options(&Time::by_hand())).map(|_| ()).unwrap_err();
    assert_eq!(trouble(&refused), Trouble::Newer(2));
    assert!(refused.to_string().contains("Start that version again: nothing is lost"), "{refused}");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(layout::FILE), Bytes::from_static(&[7; 10_000])).unwrap();
    let refused = Embedded::open(dir.path(), options(&Time::by_hand())).map(|_| ()).unwrap_err();
    assert_eq!(trouble(&refused), Trouble::Damaged);
}

#[tokio::test]
async fn a_directory_that_can_not_be_opened_has_its_fault_its_ways_out_and_what_they_lose_named() {
    use std::io::{Error, ErrorKind};
    let dir = std::path::Path::new("/srv/store");
    let folder = |kind: ErrorKind| OpenError::Folder { dir: dir.into(), source: Error::from(kind) };
    let file = |kind: ErrorKind| OpenError::from(redb::Error::Io(Error::from(kind)));
    for (error, expected, advice) in [
        (folder(ErrorKind::PermissionDenied), Trouble::NoRights, "chown -R): nothing is lost"),
        (file(ErrorKind::PermissionDenied), Trouble::NoRights, "no right to read and write it"),
        (folder(ErrorKind::ReadOnlyFilesystem), Trouble::ReadOnly, "takes no writes"),
        (
            file(ErrorKind::StorageFull),
            Trouble::Full,
            "`onceward store copy file:/srv/store file:OTHER`",
        ),
        (file(ErrorKind::QuotaExceeded), Trouble::Full, "is full"),
        (
            file(ErrorKind::UnexpectedEof),
            Trouble::Damaged,
            "Copy /srv/store elsewhere before anything else",
        ),
        (
            OpenError::from(redb::Error::Corrupted("odd".into())),
            Trouble::Damaged,
            "its duplicates run again",
        ),
        (folder(ErrorKind::NotADirectory), Trouble::Failing, "Look at the path, the disk"),
        (
            OpenError::Layout { found: layout::UNFINISHED },
            Trouble::Unfinished,
            "goes on where it ended",
        ),
    ] {
        let shown = error.in_dir(dir);
        assert_eq!(trouble(&shown), expected);
        let text = shown.to_string();
        assert!(
            text.starts_with("the store /srv/store/records.redb can't be opened: ")
                && text.contains(advice),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_file_that_was_cut_short_or_overwritten_is_damaged_and_not_a_panic() {
    for damage in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        for n in 0..50 {
            assert_eq!(claim(&store, n).await.unwrap(), Swap::Stored);
        }
        store.close().await;
        let path = dir.path().join(layout::FILE);
        let whole = std::fs::read(&path).unwrap();
        let damaged = match damage {
            0 => whole[..whole.len() / 2].to_vec(),
            1 => whole[..100].to_vec(),
            2 => vec![],
            3 => vec![0; whole.len()],
            _ => [&[0xff; 4096][..], &whole[4096..]].concat(),
        };
        std::fs::write(&path, &damaged).unwrap();
        let refused =
            Embedded::open(dir.path(), options(&Time::by_hand())).map(|_| ()).unwrap_err();
        assert_eq!(trouble(&refused), Trouble::Damaged, "{damage}: {refused}");
        let copied = copy::CopiedFile::target(dir.path(), options(&Time::by_hand()))
            .map(|_| ())
            .unwrap_err();
        assert!(copied.to_string().contains("the file is damaged"), "{damage}: {copied}");
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "nothing was written over it");
    }
}

#[tokio::test]
async fn a_first_start_that_was_killed_leaves_nothing_that_looks_like_a_store() {
    let dir = tempfile::tempdir().unwrap();
    // A file that was not written completely still has the other name.
    for left in [&[][..], &[0; 100]] {
        std::fs::write(dir.path().join("records.redb.new"), left).unwrap();
        let store = open(dir.path());
        assert_eq!(claim(&store, 1).await.unwrap(), Swap::Stored);
        store.close().await;
        let names = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(
            names.collect::<std::collections::BTreeSet<_>>(),
            ["lock", layout::FILE].map(String::from).into()
        );
        std::fs::remove_file(dir.path().join(layout::FILE)).unwrap();
    }
}

fn trouble(error: &OpenError) -> Trouble {
    match error {
        OpenError::Unusable(unusable) => unusable.trouble(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn large_records_take_turns_and_all_else_goes_past_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (large, small) = (
        suite::completed_with(1, &vec![b'x'; ALONG_MAX]),
        suite::completed_with(2, &vec![b'x'; ALONG_MAX / 2]),
    );
    for (n, record) in [(1, &large), (2, &small)] {
        assert_eq!(store.swap(&here(n), None, record, keep()).await.unwrap(), Swap::Stored);
    }
    let turns = store.large.all_turns().await;
    assert_eq!(claim(&store, 1).await.unwrap(), Swap::Large(large.fence));
    let place = here(1);
    let mut look = std::pin::pin!(store.load(&place));
    tokio::select! {
        biased;
        _ = &mut look => panic!("read out of turn"),
        // A later request is served.
        small_too = async { (claim(&store, 2).await, store.load(&here(2)).await, claim(&store, 3).await) } => {
            let Ok(Swap::Stale(Some(stands))) = small_too.0 else { panic!("not in the way") };
            assert!(stands.record == small && small_too.1.unwrap().unwrap().record == small);
            assert_eq!(small_too.2.unwrap(), Swap::Stored);
        }
    }
    drop(turns);
    assert!(look.await.unwrap().unwrap().record == large);
}
