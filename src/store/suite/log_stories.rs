//! Stories of the event log.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::records::{HERE, LONG, SHORT, claim, completed, keep, lease};
use super::stage::Stage;
use crate::key::Slot;
use crate::record::{Lifetime, Record, Version};
use crate::store::log::{
    EntryId, LogEntry, OBSERVED_BYTES_MAX, OBSERVED_ENTRY_BYTES, Position, verify,
};
use crate::store::records::Swap;

/// More entries than any story writes.
const ALL: usize = 100_000;

async fn written(
    stage: &Stage,
    slot: &Slot,
    expected: Option<u64>,
    next: &Record,
    lifetime: Lifetime,
    event: &str,
) -> bool {
    stage
        .store
        .records
        .write(
            slot,
            expected.map(Version),
            next,
            lifetime,
            crate::store::Events::logged(&|| event.into()),
        )
        .await
        .unwrap()
        == Swap::Stored
}

async fn logged(stage: &Stage) -> Vec<LogEntry> {
    stage.store.log.read(&Position::default(), ALL).await.unwrap()
}

async fn texts(stage: &Stage, slot: &Slot) -> Vec<String> {
    let entries = logged(stage).await.into_iter().filter(|entry| entry.slot == *slot);
    entries.map(|entry| String::from_utf8(entry.event.to_vec()).unwrap()).collect()
}

async fn breaks(stage: &Stage) -> (usize, usize) {
    let progress = verify(&*stage.store.log, None, ALL).await.unwrap();
    assert_eq!(progress.cursor, None);
    (progress.entries, progress.breaks.len())
}

pub async fn an_event_is_appended_with_its_write_and_once(stage: Stage) {
    assert!(written(&stage, &HERE(1), None, &claim(10, 1), lease(LONG), "claimed").await);
    assert!(
        written(&stage, &HERE(1), None, &claim(10, 1), lease(LONG), "claimed").await,
        "a repetition"
    );
    assert!(!written(&stage, &HERE(1), None, &claim(20, 2), lease(LONG), "stale").await);
    assert!(!written(&stage, &HERE(1), Some(9), &completed(11), keep(LONG), "stale").await);
    let done = Record { version: Version(11), ..completed(1) };
    assert!(written(&stage, &HERE(1), Some(10), &done, keep(LONG), "completed").await);
    assert!(
        written(&stage, &HERE(1), Some(10), &done, keep(LONG), "completed").await,
        "a repetition"
    );
    assert_eq!(texts(&stage, &HERE(1)).await, ["claimed", "completed"]);
    assert_eq!(stage.load(&HERE(1)).await.unwrap().record, done);
}

pub async fn a_write_without_an_event_leaves_the_log_alone(stage: Stage) {
    stage.stored(&HERE(1), None, &claim(10, 1), lease(LONG)).await;
    assert!(logged(&stage).await.is_empty());
    assert!(stage.store.log.ends().await.unwrap().is_empty());
    assert_eq!(breaks(&stage).await, (0, 0));
}

pub async fn an_event_with_a_tombstone_leaves_the_tombstone_as_it_was(stage: Stage) {
    let late = Lifetime { tombstone: Some(LONG), ..lease(LONG) };
    assert!(written(&stage, &HERE(1), None, &claim(10, 1), late, "claimed").await);
    let short = Lifetime { tombstone: Some(LONG), ..keep(SHORT) };
    assert!(written(&stage, &HERE(1), Some(10), &completed(11), short, "completed").await);
    stage.until("the result is gone", async || stage.load(&HERE(1)).await.is_none()).await;
    assert!(!written(&stage, &HERE(1), None, &claim(20, 2), late, "barred").await);
    assert!(written(&stage, &HERE(1), None, &claim(30, 3), lease(LONG), "claimed again").await);
    assert_eq!(texts(&stage, &HERE(1)).await, ["claimed", "completed", "claimed again"]);
}

pub async fn the_log_is_read_from_a_position_and_in_order(stage: Stage) {
    for n in 0..40 {
        assert!(written(&stage, &HERE(n), None, &claim(10, 1), lease(LONG), "claimed").await);
        assert!(written(&stage, &HERE(n), Some(10), &completed(11), keep(LONG), "completed").await);
    }
    let (mut position, mut read) = (Position::default(), Vec::new());
    loop {
        let entries = stage.store.log.read(&position, 7).await.unwrap();
        if entries.is_empty() {
            break;
        }
        entries.iter().for_each(|entry| position.advance(entry));
        read.extend(entries);
        assert!(read.len() <= 80, "it is read again and again");
        position = position.to_string().parse().unwrap();
    }
    assert_eq!(read.len(), 80);
    let mut last = Position::default();
    for entry in &read {
        assert!(entry.id > last.of(entry.partition), "in order within a partition");
        last.advance(entry);
    }
    for n in 0..40 {
        let of =
            read.iter().filter(|entry| entry.slot == HERE(n)).map(|entry| entry.event.as_ref());
        assert_eq!(of.collect::<Vec<_>>(), [&b"claimed"[..], b"completed"]);
    }
}

pub async fn the_chain_verifies_in_pieces_too(stage: Stage) {
    for n in 0..30 {
        assert!(written(&stage, &HERE(n), None, &claim(10, 1), lease(LONG), "claimed").await);
        assert!(written(&stage, &HERE(n), Some(10), &completed(11), keep(LONG), "completed").await);
    }
    assert_eq!(breaks(&stage).await, (60, 0));
    let (mut entries, mut cursor) = (0, None);
    // Each piece verifies at least one entry, so this number of pieces is enough.
    for _ in 0..=60 {
        let piece = verify(&*stage.store.log, cursor, 10).await.unwrap();
        assert_eq!(piece.breaks, []);
        entries += piece.entries;
        let Some(next) = piece.cursor else { break };
        cursor = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(entries, 60);
}

pub async fn the_log_is_trimmed_by_age_and_not_past_a_reader(stage: Stage) {
    let log = &*stage.store.log;
    assert_eq!(log.read_by("page").await.unwrap(), None);
    log.mark_read("page", &Position::default()).await.unwrap();
    for n in 0..10 {
        assert!(written(&stage, &HERE(n), None, &claim(10, 1), lease(LONG), "claimed").await);
    }
    assert_eq!(log.trim(LONG).await.unwrap().entries, 0, "nothing is that old");
    let first = logged(&stage).await.remove(0);
    let mut position = Position::default();
    position.advance(&first);
    stage.time.pass(Duration::from_secs(1)).await;
    // The reader marks that it has read one entry.
    log.mark_read("page", &position).await.unwrap();
    assert_eq!(log.read_by("page").await.unwrap().unwrap().of(first.partition), first.id);
    let trimmed = log.trim(Duration::from_millis(500)).await.unwrap();
    assert_eq!((trimmed.entries, trimmed.forgotten.len()), (1, 0));
    assert!(!logged(&stage).await.contains(&first));
    assert_eq!(breaks(&stage).await, (9, 0), "the remaining entries link to the trimmed ones");
    let ends = log.ends_of(&BTreeSet::from([first.partition])).await.unwrap();
    assert_eq!(
        ends.iter().map(|ends| ends.trimmed.map(|mark| mark.id)).collect::<Vec<_>>(),
        [Some(first.id)]
    );
    let all = log.ends().await.unwrap();
    assert_eq!(
        all.into_iter().filter(|ends| ends.partition == first.partition).collect::<Vec<_>>(),
        ends
    );
    assert_eq!(log.ends_of(&BTreeSet::new()).await.unwrap(), []);
    stage.time.pass(Duration::from_secs(1)).await;
    let mut trimmed = log.trim(Duration::from_millis(500)).await.unwrap();
    assert_eq!(trimmed.forgotten, ["page"], "a reader without a mark for so long is forgotten");
    trimmed.entries += log.trim(Duration::from_millis(500)).await.unwrap().entries;
    assert_eq!(trimmed.entries, 9);
    assert_eq!(logged(&stage).await, []);
    assert_eq!(breaks(&stage).await, (0, 0));
    assert!(written(&stage, &HERE(99), None, &claim(10, 1), lease(LONG), "claimed").await);
    assert_eq!(breaks(&stage).await, (1, 0));
}

pub async fn an_unknown_partition_is_empty(stage: Stage) {
    assert_eq!(stage.store.log.read_partition(255, EntryId::default(), 10).await.unwrap(), []);
}

pub async fn observations_are_read_in_order_and_trimmed_by_age(stage: Stage) {
    let log = &*stage.store.log;
    assert_eq!(log.observations(EntryId::default(), 10).await.unwrap(), []);
    for batch in ["one", "two", "three"] {
        log.observe(batch.as_bytes()).await.unwrap();
    }
    let first = log.observations(EntryId::default(), 2).await.unwrap();
    assert_eq!(batches(&first), ["one", "two"]);
    let rest = log.observations(first[1].0, 10).await.unwrap();
    assert_eq!(batches(&rest), ["three"]);
    assert!(first[0].0 < first[1].0 && first[1].0 < rest[0].0);
    assert_eq!(log.trim(LONG).await.unwrap().batches, 0, "nothing is that old");
    stage.time.pass(Duration::from_secs(1)).await;
    log.observe(b"four").await.unwrap();
    assert_eq!(log.trim(Duration::from_millis(500)).await.unwrap().batches, 3);
    assert_eq!(batches(&log.observations(EntryId::default(), 10).await.unwrap()), ["four"]);
    assert!(logged(&stage).await.is_empty(), "observations are not events");
}

pub async fn observations_stay_within_their_limit(stage: Stage) {
    const BATCH: usize = OBSERVED_BYTES_MAX / 8 - OBSERVED_ENTRY_BYTES;
    let log = &*stage.store.log;
    for n in 0..10 {
        log.observe(&vec![n; BATCH]).await.unwrap();
    }
    let left = log.observations(EntryId::default(), 100).await.unwrap();
    assert_eq!(
        left.iter().map(|(_, batch)| batch[0]).collect::<Vec<_>>(),
        [2, 3, 4, 5, 6, 7, 8, 9],
        "the oldest went"
    );
}

fn batches(found: &[(EntryId, Bytes)]) -> Vec<&str> {
    found.iter().map(|(_, batch)| std::str::from_utf8(batch).unwrap()).collect()
}
