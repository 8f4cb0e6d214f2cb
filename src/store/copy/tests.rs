//! Copies from file to file, interrupted wherever they can be.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::key::Space;
use crate::record::{Lifetime, Record};
use crate::store::embedded::{CopiedFile, Embedded, EmbeddedOptions};
use crate::store::log::{Ends, EventLog, LogEntry, verify};
use crate::store::suite::{Time, claim, completed, slot};
use crate::store::{IdentityNotes, Listing, Note, Records, StoreError};

const HOUR: Duration = Duration::from_secs(3600);
const START_MS: u64 = 1_800_000_000_000;
const NO_REPORT: CopyReport<'static> = &|_, _| {};

fn options() -> EmbeddedOptions {
    EmbeddedOptions { min_free_bytes: 0, ..EmbeddedOptions::new(Time::by_hand().clock(), START_MS) }
}

/// A store with records of all kinds, tombstones, and events.
async fn fill(dir: &Path) {
    let store = Embedded::open(dir, options()).unwrap();
    let kept = Lifetime { keep: HOUR, due: None, tombstone: Some(2 * HOUR) };
    let running = Lifetime { keep: HOUR, due: Some(HOUR / 2), tombstone: None };
    for n in 0..1500 {
        let space = if n % 7 == 0 { Space::Shadow } else { Space::Enforced };
        let (record, lifetime): (Record, _) =
            if n % 5 == 0 { (claim(n, n), running) } else { (completed(n), kept) };
        let event = || format!("event {n}").into_bytes();
        store.write(&slot(space, n), None, &record, lifetime, &event).await.unwrap();
    }
    store.set_note(Note::Identities, None, "identities").await.unwrap();
    store.set_note(Note::Paths, None, "paths").await.unwrap();
    store.close().await;
}

async fn copied(from: &Path, to: &Path) -> Result<Copied, CopyError> {
    copy(&CopiedFile::source(from, options())?, &CopiedFile::target(to, options())?, NO_REPORT)
        .await
}

async fn is_the_same(from: &Path, to: &Path) {
    let [one, other] = [from, to].map(|dir| Embedded::open(dir, options()).unwrap());
    assert_eq!(other.note(Note::Identities).await.unwrap().as_deref(), Some("identities"));
    assert_eq!(other.note(Note::Paths).await.unwrap().as_deref(), Some("paths"));
    for n in 0..1500 {
        for space in [Space::Enforced, Space::Shadow] {
            let slot = slot(space, n);
            assert_eq!(one.load(&slot).await.unwrap(), other.load(&slot).await.unwrap());
            assert_eq!(one.remains(&slot).await.unwrap(), other.remains(&slot).await.unwrap());
        }
    }
    let unsettled = other.list(Listing::Unsettled, None, 2000).await.unwrap().records;
    assert_eq!(
        unsettled.len(),
        one.list(Listing::Unsettled, None, 2000).await.unwrap().records.len()
    );
    assert!(unsettled.len() > 200);
    assert_eq!(one.ends().await.unwrap(), other.ends().await.unwrap());
    assert_eq!(verify(&other, None, 10_000).await.unwrap().breaks, []);
    one.close().await;
    other.close().await;
}

/// Fails at the write with this number.
struct Cut<'a> {
    inner: &'a CopiedFile,
    writes: AtomicUsize,
    at: usize,
}

impl Cut<'_> {
    fn pass(&self) -> Result<(), StoreError> {
        let cut = self.writes.fetch_add(1, Ordering::Relaxed) == self.at;
        if cut { Err(StoreError::NotApplied("cut".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl CopySource for Cut<'_> {
    fn log_partitions(&self) -> u16 {
        self.inner.log_partitions()
    }

    fn log(&self) -> &dyn EventLog {
        self.inner.log()
    }

    async fn time_ms(&self) -> Result<u64, StoreError> {
        self.inner.time_ms().await
    }

    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.inner.note(note).await
    }

    async fn unused_state(&self) -> Result<String, CopyError> {
        self.inner.unused_state().await
    }

    async fn items(&self, cursor: Option<&str>) -> Result<Items, StoreError> {
        self.inner.items(cursor).await
    }

    async fn find(&self, keys: &[ItemKey]) -> Result<Vec<Option<Item>>, StoreError> {
        self.inner.find(keys).await
    }
}

#[async_trait]
impl CopyTarget for Cut<'_> {
    async fn begin(&self) -> Result<CopyStart, CopyError> {
        self.inner.begin().await
    }

    async fn put_items(&self, items: &[Item], progress: &CopyProgress) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.put_items(items, progress).await
    }

    async fn put_events(
        &self,
        entries: &[LogEntry],
        progress: &CopyProgress,
    ) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.put_events(entries, progress).await
    }

    async fn put_ends(&self, ends: &[Ends]) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.put_ends(ends).await
    }

    async fn finish(&self, notes: &[(Note, String)]) -> Result<(), StoreError> {
        self.pass()?;
        self.inner.finish(notes).await
    }
}

#[tokio::test]
async fn a_copy_is_the_same_wherever_it_was_interrupted_and_closed_until_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fill(&from).await;
    let before = std::fs::read(from.join("records.redb")).unwrap();
    // A copy has these writes: two or more batches of items, three batches of events, the ends, and
    // the finish.
    let mut interruptions = 0;
    for at in 0..20 {
        let to = dir.path().join(format!("to{at}"));
        let cut = async {
            let (source, target) = (
                CopiedFile::source(&from, options()).unwrap(),
                CopiedFile::target(&to, options()).unwrap(),
            );
            let cut = Cut { inner: &target, writes: AtomicUsize::new(0), at };
            copy(&source, &cut, NO_REPORT).await
        };
        match cut.await {
            Ok(_) => break,
            Err(error) => {
                assert!(error.to_string().contains("run the same command again"), "{error}")
            }
        }
        interruptions += 1;
        let closed = Embedded::open(&to, options()).map(|_| ()).unwrap_err();
        assert!(closed.to_string().contains("a copy that isn't finished"), "{closed}");
        let copied = copied(&from, &to).await.unwrap();
        assert!(copied.resumed && !copied.relinked && copied.events == 1500, "{copied:?}");
        if at % 3 == 0 {
            assert_eq!(std::fs::read(from.join("records.redb")).unwrap().len(), before.len());
            assert!(
                std::fs::read(from.join("records.redb")).unwrap() == before,
                "the original is not touched"
            );
            let other = dir.path().join(format!("check{at}"));
            std::fs::create_dir(&other).unwrap();
            std::fs::copy(from.join("records.redb"), other.join("records.redb")).unwrap();
            is_the_same(&other, &to).await;
        }
    }
    assert!(interruptions >= 6, "{interruptions}");
}

#[tokio::test]
async fn what_holds_something_is_in_use_or_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [from, full, empty, nothing] =
        ["from", "full", "empty", "nothing"].map(|name| dir.path().join(name));
    fill(&from).await;
    fill(&full).await;
    Embedded::open(&empty, options()).unwrap().close().await;
    for (from, to, reason) in [
        (&from, &full, "holds something already"),
        (&nothing, &full, "there is no store in"),
        (&from, &from, "another process uses it"),
    ] {
        let refused = copied(from, to).await.unwrap_err();
        assert!(matches!(&refused, CopyError::Refused(text) if text.contains(reason)), "{refused}");
    }
    let gateway = Embedded::open(&from, options()).unwrap();
    assert!(
        copied(&from, &empty).await.unwrap_err().to_string().contains("another process uses it")
    );
    gateway.close().await;
    // A gateway that never had a request leaves an empty store.
    assert_eq!(copied(&from, &empty).await.unwrap().events, 1500);
    is_the_same(&from, &empty).await;
}

#[tokio::test]
async fn a_copy_goes_on_only_from_the_store_that_it_began_with() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    fill(&from).await;
    {
        let (source, target) = (
            CopiedFile::source(&from, options()).unwrap(),
            CopiedFile::target(&to, options()).unwrap(),
        );
        let cut = Cut { inner: &target, writes: AtomicUsize::new(0), at: 2 };
        copy(&source, &cut, NO_REPORT).await.unwrap_err();
    }
    let later = EmbeddedOptions { unix_ms: START_MS + 1, ..options() };
    Embedded::open(&from, later).unwrap().close().await;
    let refused = copied(&from, &to).await.unwrap_err();
    assert!(
        matches!(&refused, CopyError::Refused(text) if text.contains("as it was before a gateway used it")),
        "{refused}"
    );
}
