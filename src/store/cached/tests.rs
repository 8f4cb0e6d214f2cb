//! Which records are cached, for how long, and when they are dropped. The test acts as the tracker.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::key::Space;
use crate::record::{Reply, ReplyBody, State};
use crate::store::Store;
use crate::store::cache::{Confirmed, UNHEARD_MAX};
use crate::store::memory::Memory;
use crate::store::pending::PendingStore;
use crate::store::sealed::{KEY_BYTES, Sealed, SealingKey};
use crate::store::suite::{self, claim, completed, slot};
use crate::telemetry::CacheMeter;

const KEEP: Lifetime = Lifetime { keep: Duration::from_secs(600), due: None, tombstone: None };
const LIFE: Duration = Duration::from_secs(600);
const HERE: fn(u64) -> Slot = |n| slot(Space::Enforced, n);

/// A store that counts the claims that reach it.
struct Counting {
    inner: Arc<dyn Records>,
    claims: AtomicUsize,
}

#[async_trait]
impl Records for Counting {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        self.claims.fetch_add(1, Ordering::SeqCst);
        self.inner.write(slot, expected, next, lifetime, events).await
    }
    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.inner.load(slot).await
    }
    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.inner.remains(slot).await
    }
    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.inner.renew(slot, fence, lease, keep).await
    }
    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.inner.due(limit).await
    }
    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.inner.due_sagas(limit).await
    }
    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.inner.list(listing, cursor, limit).await
    }
    fn watch(&self, slot: &Slot) -> Watch {
        self.inner.watch(slot)
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }
}

struct Stage {
    store: Cached,
    under: Arc<Counting>,
    cache: Arc<LocalCache>,
    wanted: mpsc::Receiver<Slot>,
    clock: Clock,
    time: Arc<ManualClock>,
    meter: CacheMeter,
}

impl Stage {
    fn new() -> Stage {
        Stage::over(Arc::new(Memory::new(Arc::new(|| 1000))), 1 << 20)
    }

    fn over(inner: Arc<dyn Records>, bytes: usize) -> Stage {
        let (clock, time) = Clock::manual(5000, 1_800_000_000_000);
        let meter = CacheMeter::default();
        let (cache, wanted) = LocalCache::new(bytes, clock.clone(), meter.clone());
        let under = Arc::new(Counting { inner, claims: AtomicUsize::new(0) });
        let tracker = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
        let store = Cached::new(under.clone(), cache.clone(), tracker);
        let stage = Stage { store, under, cache, wanted, clock, time, meter };
        stage.hear();
        stage
    }

    /// Acts as if the server had just answered a probe.
    fn hear(&self) {
        self.cache.heard(self.clock.boot_ms());
    }

    /// Claims as a duplicate. Returns the answer, and whether the claim reached the store.
    async fn duplicate(&self, n: u64) -> (Record, bool) {
        let before = self.under.claims.load(Ordering::SeqCst);
        let Swap::Stale(Some(held)) =
            self.store.swap(&HERE(n), None, &claim(99, 99), KEEP).await.unwrap()
        else {
            panic!("a record stands there")
        };
        (held.record, self.under.claims.load(Ordering::SeqCst) > before)
    }

    /// Returns the tracker's reading of a slot that holds the record with this number.
    fn found(&self, n: u64) -> Confirmed {
        Confirmed {
            version: Version(n),
            fence: Fence(n),
            life: LIFE,
            asked_ms: self.clock.boot_ms(),
        }
    }

    /// Stores a completed record, and caches it after its first duplicate.
    async fn kept(&mut self, n: u64) {
        self.under.inner.swap(&HERE(n), None, &completed(n), KEEP).await.unwrap();
        assert!(self.duplicate(n).await.1, "the first duplicate asks the store");
        assert_eq!(self.wanted.try_recv(), Ok(HERE(n)));
        self.cache.confirm(&HERE(n), Some(self.found(n)));
    }
}

/// A store that never reports changes: nothing is cached, and all calls reach the store below.
async fn untracked() -> suite::Stage {
    let time = suite::Time::by_hand();
    let (cache, _) = LocalCache::new(1 << 20, Clock::manual(5000, 5000).0, CacheMeter::default());
    let tracker = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
    let inner = Arc::new(Memory::new(time.clock()));
    let records = Arc::new(Cached::new(inner.clone(), cache, tracker));
    suite::Stage::of_shared(Store { records, ..Store::from(inner) }, time)
}

mod as_any_store {
    crate::store::suite::stories!(super::untracked);
}

#[tokio::test]
async fn it_answers_when_the_store_below_does() {
    let under = PendingStore::new(Arc::new(Memory::new(Arc::new(|| 1000))).into());
    let stage = Stage::over(under.clone(), 1 << 20);
    assert!(stage.store.ping().await.is_err());
    under.open();
    assert!(stage.store.ping().await.is_ok());
}

#[tokio::test]
async fn a_confirmed_record_is_answered_without_asking_the_store() {
    let mut stage = Stage::new();
    stage.kept(1).await;
    assert_eq!(stage.duplicate(1).await, (completed(1), false));
    assert_eq!((stage.meter.hits.get(), stage.meter.entries.get()), (1, 1));
    assert!(stage.meter.bytes.get() > 0);
}

#[tokio::test]
async fn only_a_claim_over_nothing_is_answered_without_asking_the_store() {
    let marker = Record { state: State::Released, ..completed(9) };
    for (expected, next) in
        [(Some(Version(7)), claim(8, 8)), (None, marker.clone()), (Some(Version(7)), marker)]
    {
        let mut stage = Stage::new();
        stage.kept(1).await;
        let before = stage.under.claims.load(Ordering::SeqCst);
        let swapped = stage.store.swap(&HERE(1), expected, &next, KEEP).await.unwrap();
        assert!(
            matches!(swapped, Swap::Stale(Some(held)) if held.record == completed(1)),
            "{next:?}"
        );
        assert_eq!(stage.under.claims.load(Ordering::SeqCst), before + 1, "{next:?}");
        assert_eq!(stage.meter.entries.get(), 0, "it may be written over: {next:?}");
    }
}

#[tokio::test]
async fn a_record_is_not_kept_before_the_store_has_confirmed_this_very_version() {
    let mut stage = Stage::new();
    for found in
        [None, Some(stage.found(2)), Some(Confirmed { version: Version(1), ..stage.found(2) })]
    {
        stage.under.inner.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
        assert!(stage.duplicate(1).await.1 && stage.duplicate(1).await.1);
        assert_eq!(stage.wanted.try_recv(), Ok(HERE(1)), "asked for once, however many ask");
        assert!(stage.wanted.is_empty());
        stage.cache.confirm(&HERE(1), found);
        assert_eq!(stage.meter.entries.get(), 0, "{found:?}");
    }
}

#[tokio::test]
async fn what_changes_while_it_is_being_confirmed_is_not_kept() {
    let mut stage = Stage::new();
    for change in [LocalCache::lost as fn(&LocalCache), |cache| cache.changed(&HERE(1))] {
        stage.under.inner.swap(&HERE(1), None, &completed(1), KEEP).await.unwrap();
        stage.hear();
        stage.duplicate(1).await;
        stage.wanted.try_recv().unwrap();
        // The change is reported before the answer to the read is processed, although the server
        // read first.
        change(&stage.cache);
        stage.cache.confirm(&HERE(1), Some(stage.found(1)));
        stage.hear();
        assert!(stage.duplicate(1).await.1);
        // Removes the pending record before the next case.
        stage.wanted.try_recv().unwrap();
        stage.cache.confirm(&HERE(1), None);
    }
}

#[tokio::test]
async fn a_change_drops_the_record_and_a_loss_drops_all() {
    let mut stage = Stage::new();
    for n in [1, 2] {
        stage.kept(n).await;
    }
    stage.cache.changed(&HERE(1));
    assert!(stage.duplicate(1).await.1 && !stage.duplicate(2).await.1);
    stage.cache.lost();
    assert_eq!((stage.meter.entries.get(), stage.meter.bytes.get()), (0, 0));
    assert!(stage.duplicate(2).await.1);
    stage.hear();
    assert!(stage.duplicate(2).await.1, "what was dropped doesn't come back by itself");
    stage.cache.lost();
    stage.cache.lost();
    assert_eq!(
        (stage.meter.invalidations.get(), stage.meter.losses.get()),
        (1, 2),
        "what is lost is not lost again"
    );
}

#[tokio::test]
async fn without_an_answer_of_the_server_nothing_is_given_out_nor_kept() {
    let mut stage = Stage::new();
    stage.kept(1).await;
    stage.time.pass_ms(UNHEARD_MAX.as_millis() as u64 - 1);
    assert!(!stage.duplicate(1).await.1);
    stage.time.pass_ms(1);
    assert!(stage.duplicate(1).await.1);
    assert!(stage.wanted.is_empty(), "nothing is kept meanwhile");
    stage.hear();
    assert!(
        !stage.duplicate(1).await.1,
        "the connection was never lost, so it would have reported a change"
    );
}

#[tokio::test]
async fn a_record_ends_here_no_later_than_in_the_store() {
    let mut stage = Stage::new();
    stage.kept(1).await;
    stage.time.pass_ms(LIFE.as_millis() as u64 - 1);
    stage.hear();
    assert!(!stage.duplicate(1).await.1);
    stage.time.pass_ms(1);
    assert!(stage.duplicate(1).await.1);
    assert_eq!(stage.meter.entries.get(), 0);
}

#[tokio::test]
async fn what_this_process_writes_over_is_not_answered_any_more() {
    let mut stage = Stage::new();
    stage.kept(1).await;
    let expired = Record { version: Version(2), state: State::Expired, ..completed(1) };
    assert_eq!(
        stage.store.swap(&HERE(1), Some(Version(1)), &expired, KEEP).await.unwrap(),
        Swap::Stored
    );
    assert_eq!(stage.duplicate(1).await, (expired, true));
}

#[tokio::test]
async fn only_results_that_are_replayed_are_kept() {
    let stage = Stage::new();
    stage.under.inner.swap(&HERE(1), None, &claim(1, 1), KEEP).await.unwrap();
    stage.duplicate(1).await;
    let watched = slot(Space::Shadow, 2);
    stage.under.inner.swap(&watched, None, &completed(2), KEEP).await.unwrap();
    stage.store.swap(&watched, None, &claim(9, 9), KEEP).await.unwrap();
    assert!(stage.wanted.is_empty());
}

#[tokio::test]
async fn it_never_weighs_more_than_it_may() {
    const ROOM: usize = 256 * 1024;
    let mut stage = Stage::over(Arc::new(Memory::new(Arc::new(|| 1000))), ROOM);
    let State::Completed { reply, by } = completed(1).state else { panic!("completed") };
    for n in 1..=200 {
        let body = ReplyBody::Whole(Bytes::from(vec![b'x'; 4096]));
        let reply = Arc::new(Reply { body, ..Reply::clone(&reply) });
        let record = Record { state: State::Completed { reply, by }, ..completed(n) };
        stage.under.inner.swap(&HERE(n), None, &record, KEEP).await.unwrap();
        stage.duplicate(n).await;
        stage.wanted.try_recv().unwrap();
        stage.cache.confirm(&HERE(n), Some(stage.found(n)));
        assert!(stage.meter.bytes.get() <= ROOM as i64, "{}", stage.meter.bytes.get());
    }
    assert!(
        stage.meter.entries.get() > 20 && stage.meter.entries.get() < 60,
        "{}",
        stage.meter.entries.get()
    );
}

#[tokio::test]
async fn a_sealed_result_is_kept_opened() {
    let memory = Arc::new(Memory::new(Arc::new(|| 1000)));
    let key = SealingKey::new("a", &[1; KEY_BYTES]).unwrap();
    let mut stage = Stage::over(Arc::new(Sealed::new(memory, vec![key]).unwrap()), 1 << 20);
    stage.kept(1).await;
    assert_eq!(stage.duplicate(1).await, (completed(1), false));
}
