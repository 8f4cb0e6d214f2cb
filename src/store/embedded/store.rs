//! The store itself. It hands changes to the writer's thread, and reads on threads that may block.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::disk::{Folder, Opener, Writes};
use super::error::OpenError;
use super::jobs::{Job, SwapJob, WriteReply, WriteRequest};
use super::options::EmbeddedOptions;
use super::shared_file::{SharedFile, StoreTime};
use super::tables::{EncodedRecord, RawRecord};
use super::writer::{self, Writer};
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, State, Version, encode};
use crate::store::error::{ListError, StoreError};
use crate::store::identities::{IdentityNotes, Note};
use crate::store::large::{ALONG_MAX, Large};
use crate::store::local_relays::LocalRelays;
use crate::store::records::{DueSagas, Events, Listing, Page, Records, Swap};
use crate::store::watch::Watch;

/// Limit for the requests in the writer's queue. Further callers wait until it has a free place.
/// The limit bounds the memory of the queue. The queue holds several batches, so the writer is
/// never idle while there is work.
pub(super) const QUEUE_MAX: usize = 1024;
/// Limit for the threads that read at once. More threads would not read faster, and each takes
/// memory.
const READERS_MAX: usize = 8;

/// Returns the permits of readers.
pub(super) fn readers() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(READERS_MAX))
}

/// A store in a file.
///
/// One thread makes all changes, in batches with one commit each. Dropping the store first
/// completes earlier requests, as [`Embedded::close`] does.
pub struct Embedded {
    pub(super) queue: mpsc::Sender<WriteRequest>,
    pub(super) shared: Arc<SharedFile>,
    pub(super) large: Large,
    /// Permits to read: [`READERS_MAX`] in all.
    pub(super) readers: Arc<Semaphore>,
    pub(super) relays: LocalRelays,
}

impl Embedded {
    /// Opens the store in a folder. Creates the folder if it does not exist. Opening is fast even
    /// after a crash. Blocks for the disk.
    ///
    /// # Errors
    /// [`OpenError::Unusable`]: the folder can't be opened; the text lists the ways out.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Embedded, OpenError> {
        let open = || {
            let folder = Folder::lock(dir)?;
            folder.make_file()?;
            let opener = folder.opener();
            Embedded::open_over(folder, opener, options)
        };
        open().map_err(|error| error.in_dir(dir))
    }

    pub(super) fn open_over(
        folder: Folder,
        opener: Opener,
        options: EmbeddedOptions,
    ) -> Result<Embedded, OpenError> {
        let db = writer::open(&opener, Writes::Through, &options)?;
        let opened_ms = writer::prepare(&db, options.now_unix_ms())?.max(options.now_unix_ms());
        let clock = StoreTime::starting_at(opened_ms, options.boot_ms.clone());
        let shared = Arc::new(SharedFile::new(db, clock));
        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        let writer = Writer::new(shared.clone(), orders, folder, opener, options)?;
        let thread = std::thread::Builder::new().name("store-writer".into());
        thread.spawn(move || writer.run()).map_err(OpenError::Thread)?;
        let (large, relays) = (Large::default(), LocalRelays::default());
        Ok(Embedded { queue, shared, large, readers: readers(), relays })
    }

    /// Completes the requests made before, then releases file and folder. Every later call fails,
    /// with nothing written.
    pub async fn close(&self) {
        // An error means that the store was closed before.
        _ = self.request(Job::Close).await;
    }

    /// Returns the number of commits since opening. Each is synced to the disk.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Returns the number of claims stored since opening.
    pub fn claims(&self) -> u64 {
        self.shared.claims.load(Ordering::Relaxed)
    }

    /// Hands a job to the writer, and waits for its reply.
    pub(super) async fn request(&self, job: Job) -> Result<WriteReply, StoreError> {
        let (reply, answer) = oneshot::channel();
        let request = WriteRequest { job, reply, result: None };
        self.queue
            .send(request)
            .await
            .map_err(|_| StoreError::NotApplied("the store is closed".into()))?;
        answer
            .await
            .unwrap_or_else(|_| Err(StoreError::MaybeApplied("the store's writer is gone".into())))
    }

    /// Reads the record, or else its tombstone if `or_tombstone`.
    async fn find(&self, slot: &Slot, or_tombstone: bool) -> Result<Option<Held>, StoreError> {
        let slot = *slot;
        let found =
            self.blocking(move |shared| shared.load(&slot, or_tombstone, ALONG_MAX)).await?;
        let Some(raw) = found else { return Ok(None) };
        if let Some(held) = raw.held()? {
            return Ok(Some(held));
        }
        // The record is large: wait for a turn, then read it.
        let turn = self.large.turn().await;
        let load = move |shared: &SharedFile| {
            let _turn = turn;
            shared.load(&slot, or_tombstone, usize::MAX)?.map_or(Ok(None), RawRecord::held)
        };
        self.blocking(load).await
    }

    /// Reads on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&SharedFile) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (shared, permit) = (self.shared.clone(), self.readers.clone().acquire_owned().await);
        let reading = move || {
            let _permit = permit;
            read(&shared)
        };
        let result = tokio::task::spawn_blocking(reading).await;
        result.unwrap_or_else(|error| Err(StoreError::NotApplied(error.to_string())))
    }
}

#[async_trait]
impl Records for Embedded {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        let tombstone = match (&next.state, lifetime.tombstone) {
            (State::Completed { .. }, Some(keep)) => {
                Some(EncodedRecord::new(&encode(&next.tombstone()), None, keep))
            }
            _ => None,
        };
        let encoded = encode(next);
        let swap = SwapJob {
            slot: *slot,
            expected,
            head: encoded.head,
            claims: next.state.has_lease(),
            heeds_tombstone: lifetime.tombstone.is_some(),
            record: EncodedRecord::new(&encoded, lifetime.due, lifetime.keep),
            tombstone,
            event: (events.log)(),
            outbox: events.outbox.to_vec(),
        };
        match self.request(Job::Swap(Box::new(swap))).await? {
            WriteReply::Stale(None) => Ok(Swap::Stale(None)),
            WriteReply::Stale(Some(raw)) => {
                let fence = raw.fence();
                Ok(raw.held()?.map_or(Swap::Large(fence), |held| Swap::Stale(Some(held))))
            }
            _ => {
                events.outbox.iter().for_each(|event| self.relays.wake(&event.sink));
                Ok(Swap::Stored)
            }
        }
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.find(slot, false).await
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.find(slot, true).await
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let answer = self.request(Job::Renew { slot: *slot, fence, lease, keep }).await?;
        Ok(matches!(answer, WriteReply::Renewed(true)))
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.blocking(move |shared| shared.due(limit)).await
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.blocking(move |shared| shared.due_sagas(limit)).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let cursor = cursor.map(str::to_owned);
        self.blocking(move |shared| Ok(shared.list(listing, cursor.as_deref(), limit))).await?
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.shared.hub.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.request(Job::Ping).await.map(|_| ())
    }
}

#[async_trait]
impl IdentityNotes for Embedded {
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.blocking(move |shared| shared.note(note)).await
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        let job =
            Job::SetNote { note, expected: expected.map(str::to_owned), next: next.to_owned() };
        Ok(matches!(self.request(job).await?, WriteReply::NoteSet(true)))
    }
}
