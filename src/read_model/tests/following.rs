//! Following a log: no entry is applied twice or left out, even if another process empties the file
//! or the log loses entries.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::record::Version;
use crate::store::memory::Memory;
use crate::store::suite::claim;
use crate::store::{EventLog, Records, Swap};

const HOUR: Duration = Duration::from_secs(3600);

/// A store with a log that is followed, and a clock that the test sets.
struct Followed {
    store: Arc<Memory>,
    now_ms: Arc<AtomicU64>,
}

impl Followed {
    fn at(ms: u64) -> Followed {
        let now_ms = Arc::new(AtomicU64::new(ms));
        let clock = now_ms.clone();
        Followed {
            store: Arc::new(Memory::new(Arc::new(move || clock.load(Ordering::SeqCst)))),
            now_ms,
        }
    }

    fn pass(&self, time: Duration) {
        self.now_ms.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
    }

    /// An operation begins, now.
    async fn claimed(&self, n: u64) {
        let event =
            serde_json::to_vec(&event(EventKind::Claimed, self.now_ms.load(Ordering::SeqCst)))
                .unwrap();
        let lifetime = Lifetime { keep: HOUR * 100, due: Some(HOUR), tombstone: None };
        let written = self
            .store
            .write(
                &slot(n),
                None::<Version>,
                &claim(n, n),
                lifetime,
                crate::store::Events::logged(&|| event.clone()),
            )
            .await
            .unwrap();
        assert_eq!(written, Swap::Stored);
    }

    fn projector(&self, model: &Arc<ReadModel>) -> Projector {
        let clock = self.now_ms.clone();
        Projector::new(
            model.clone(),
            self.store.clone(),
            HOUR * 100,
            Arc::new(move || clock.load(Ordering::SeqCst)),
        )
    }
}

fn known(model: &ReadModel) -> Vec<String> {
    let found = model.search(&Filter::default(), T0, None, 1000).unwrap();
    found.operations.into_iter().map(|operation| operation.reference).collect()
}

fn references<const N: usize>(numbers: [u64; N]) -> Vec<String> {
    numbers.iter().map(|n| slot(*n).to_string()).collect()
}

#[test]
fn what_was_read_for_a_file_that_was_emptied_meanwhile_is_not_applied_to_it() {
    let model = ReadModel::in_memory().unwrap();
    let mut entries = TestLog::default();
    (1..=3).for_each(|n| entries.append(n, T0 + n, &event(EventKind::Claimed, T0 + n)));
    let seen = (EntryId { ms: T0, seq: 0 }, bytes::Bytes::from_static(b"[]"));
    let before = model.progress().unwrap();
    model.apply(before.checkpoint.fence, &entries.0[..2]).unwrap();
    model.complete_until(before.checkpoint.fence, T0 + 2).unwrap();
    assert_eq!((model.freshness().as_of_ms, model.freshness().entries), (Some(T0 + 2), 2));
    model.clear().unwrap();

    assert!(matches!(
        model.apply(before.checkpoint.fence, &entries.0[2..]),
        Err(QueryError::Emptied)
    ));
    assert!(matches!(
        model.apply_observations(before.checkpoint.fence, &[seen]),
        Err(QueryError::Emptied)
    ));
    model.complete_until(before.checkpoint.fence, T0 + 3).unwrap();
    let after = model.progress().unwrap();
    assert_eq!(
        (after.checkpoint.position, after.observed),
        (Position::default(), EntryId::default())
    );
    assert_eq!(model.freshness(), Freshness::default());

    model.apply(after.checkpoint.fence, &entries.0).unwrap();
    assert_eq!(known(&model), references([3, 2, 1]));
}

#[tokio::test]
async fn a_file_that_another_process_empties_is_built_anew_by_who_follows_and_both_know_how_far_it_is()
 {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.sqlite");
    let (mine, others) =
        (Arc::new(ReadModel::open(&file).unwrap()), ReadModel::open(&file).unwrap());
    let log = Followed::at(T0);
    log.claimed(1).await;
    log.claimed(2).await;
    let mut projector = log.projector(&mine);
    projector.catch_up(|_| {}).await.unwrap();
    assert_eq!(others.freshness(), Freshness::default(), "this process has not read the file");
    others.refresh().unwrap();
    assert_eq!((mine.freshness().entries, others.freshness().entries), (2, 2));
    assert!(others.freshness().as_of_ms.is_some());

    others.clear().unwrap();
    let shown = mine.overview(T0).unwrap().freshness;
    assert_eq!(
        (shown, mine.freshness()),
        (Freshness::default(), Freshness::default()),
        "as old as what was read"
    );
    assert_eq!(known(&mine), references([]));
    let mut progress = Vec::new();
    projector.catch_up(|entries| progress.push(entries)).await.unwrap();
    assert_eq!((known(&others), progress.last()), (references([2, 1]), Some(&2)));
    assert_eq!((mine.freshness().as_of_ms, mine.freshness().entries), (Some(T0), 2));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_ahead_makes_nothing_look_young_once_it_is_set_right() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.sqlite");
    let (mine, others) =
        (Arc::new(ReadModel::open(&file).unwrap()), ReadModel::open(&file).unwrap());
    let log = Followed::at(T0);
    log.claimed(1).await;
    let wall = Arc::new(AtomicU64::new(T0 + 3_600_000));
    let clock = wall.clone();
    let mut projector = Projector::new(
        mine.clone(),
        log.store.clone(),
        HOUR * 100,
        Arc::new(move || clock.load(Ordering::SeqCst)),
    );
    projector.catch_up(|_| {}).await.unwrap();
    others.refresh().unwrap();
    assert_eq!(others.freshness().as_of_ms, Some(T0 + 3_600_000));
    wall.store(T0 + 1000, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(1)).await;
    projector.catch_up(|_| {}).await.unwrap();
    others.refresh().unwrap();
    assert_eq!(
        [mine.freshness().lag_ms(T0 + 5000), others.freshness().lag_ms(T0 + 5000)],
        [Some(4000); 2]
    );
    // No projector runs any more, and the clock is set back.
    for _ in 0..30 {
        tokio::time::advance(Duration::from_secs(1)).await;
        others.refresh().unwrap();
    }
    assert_eq!(
        [mine.freshness().lag_ms(T0 - 1), others.freshness().lag_ms(T0 - 1)],
        [Some(30_000); 2]
    );
}

#[tokio::test]
async fn a_log_that_was_trimmed_beyond_what_was_read_or_ends_before_it_is_begun_anew() {
    let model = Arc::new(ReadModel::in_memory().unwrap());
    let log = Followed::at(T0);
    log.claimed(1).await;
    log.projector(&model).catch_up(|_| {}).await.unwrap();
    log.claimed(2).await;
    log.pass(HOUR * 3);
    log.claimed(3).await;
    assert_eq!(log.store.trim(HOUR).await.unwrap().entries, 2);
    log.projector(&model).catch_up(|_| {}).await.unwrap();
    assert_eq!(known(&model), references([3]), "the second entry was never applied");

    let emptied = Followed::at(T0 + 1);
    emptied.claimed(4).await;
    emptied.projector(&model).catch_up(|_| {}).await.unwrap();
    assert_eq!(
        known(&model),
        references([4]),
        "though its entry is older than those that were read"
    );
    Followed::at(T0).projector(&model).catch_up(|_| {}).await.unwrap();
    assert_eq!(known(&model), references([]), "a log that is gone");
}

#[tokio::test]
async fn a_file_that_another_process_replaced_is_gone_over_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.sqlite");
    let (mine, others) =
        (Arc::new(ReadModel::open(&file).unwrap()), ReadModel::open(&file).unwrap());
    let log = Followed::at(T0);
    log.claimed(1).await;
    assert_eq!(known(&others), references([]), "its readers are open");
    // As a projector does when it finds damage.
    std::fs::rename(&file, folder.path().join("model.sqlite.damaged")).unwrap();
    for beside in ["model.sqlite-wal", "model.sqlite-shm"] {
        std::fs::remove_file(folder.path().join(beside)).unwrap();
    }
    let mut projector = log.projector(&mine);
    projector.catch_up(|_| {}).await.unwrap();
    assert_eq!(known(&mine), references([1]));
    assert!(file.exists(), "in a file of that name");
    assert!(others.repair().unwrap() && !others.repair().unwrap());
    others.refresh().unwrap();
    assert_eq!((known(&others), others.freshness().entries), (references([1]), 1));
}
