//! Records in a file of this machine: durable before they are acknowledged, for one process at a time.
//!
//! Danger: what is on one disk is lost with it. And a disk that is full must not keep results from being stored, so
//! new claims are refused while there is still room for those.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::disk::{Folder, Opener, Writes};
use self::shelf::{Shelf, StoreTime};
use self::tables::{Parcel, Raw};
use self::writer::{Answer, Exchange, Job, Order, Writer};
use super::large::{ALONG_MAX, Large};
use super::{
    EventSource, IdentityNotes, ListError, Listing, Note, Page, Records, StoreError, Swap, Watch,
};
use crate::key::Slot;
use crate::record::{Fence, Held, Lifetime, Record, State, Version, encode};

mod copy;
mod disk;
mod log;
mod shelf;
mod tables;
mod trouble;
mod writer;

pub use self::copy::CopiedFile;
pub use self::trouble::{Trouble, Unusable};

/// Milliseconds since the machine started. Must run on while the process is stopped or the machine sleeps.
pub type BootClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Operations that wait for the writer, at most; who comes then waits for a place. Bounds the memory of what waits,
/// and is several batches, so that the writer never runs dry.
const QUEUE_MAX: usize = 1024;
/// Memory for the file's pages: holds the upper levels of the trees of some million records.
const CACHE_BYTES: usize = 64 << 20;
/// Free disk space that is kept for completions: those of some thousand operations in flight, most of them small.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// Threads that read at once. More would read no faster, and each takes memory.
const READERS_MAX: usize = 8;

fn readers() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(READERS_MAX))
}

/// How to open an embedded store.
#[derive(Clone)]
pub struct Options {
    /// Bytes of memory for the file's pages.
    pub cache_bytes: usize,
    /// New claims are refused while fewer bytes than this are free on the disk.
    pub min_free_bytes: u64,
    /// What the store's clock counts by.
    pub boot_ms: BootClock,
    /// The wall clock at opening, in ms since 1970. The store's clock starts there, or at the file's last commit if
    /// that is later: it never runs backwards.
    pub unix_ms: u64,
}

impl Options {
    /// The usual options.
    pub fn new(boot_ms: BootClock, unix_ms: u64) -> Options {
        Options { cache_bytes: CACHE_BYTES, min_free_bytes: MIN_FREE_BYTES, boot_ms, unix_ms }
    }
}

/// An embedded store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is in use.
    #[error("{dir} can't be opened: another process has it")]
    Busy {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder can't be made, read or locked.
    #[error("{dir} can't be used as the store's folder: {source}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file in the folder can't be opened, or is no store.
    #[error("the store's file can't be opened: {0}")]
    File(#[from] Box<redb::Error>),
    /// The file was written by another version of this program.
    #[error("the store's file has layout {found}, which this version doesn't know")]
    Layout {
        /// The layout found.
        found: u64,
    },
    /// The directory can't be opened, and what can be done about it.
    #[error(transparent)]
    Unusable(Box<Unusable>),
    /// The thread that writes can't be started.
    #[error("the store's thread can't be started: {0}")]
    Thread(std::io::Error),
}

impl From<redb::Error> for OpenError {
    fn from(error: redb::Error) -> OpenError {
        OpenError::File(Box::new(error))
    }
}

/// A store in a file.
///
/// Everything that changes is done by one thread, in batches with one commit each. Dropping the store, like
/// [`Embedded::close`], lets what was asked before be done.
pub struct Embedded {
    queue: mpsc::Sender<Order>,
    shelf: Arc<Shelf>,
    large: Large,
    /// Permits for [`READERS_MAX`].
    readers: Arc<Semaphore>,
}

impl Embedded {
    /// Opens the store in a folder, which is made if need be; at once also after a crash. Blocks for the disk.
    ///
    /// # Errors
    /// [`OpenError::Unusable`]: the directory can't be opened; the text has what can be done about it.
    pub fn open(dir: &Path, options: Options) -> Result<Embedded, OpenError> {
        let open = || {
            let folder = Folder::lock(dir)?;
            folder.make_file()?;
            let opener = folder.opener();
            Embedded::open_over(folder, opener, options)
        };
        open().map_err(|error| error.in_dir(dir))
    }

    fn open_over(folder: Folder, opener: Opener, options: Options) -> Result<Embedded, OpenError> {
        let db = writer::open(&opener, Writes::Through, &options)?;
        let opened_ms = writer::prepare(&db, options.unix_ms)?;
        let clock = StoreTime::starting_at(opened_ms, options.boot_ms.clone());
        let shelf = Arc::new(Shelf::new(db, clock));
        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        let writer = Writer::new(shelf.clone(), orders, folder, opener, options)?;
        let thread = std::thread::Builder::new().name("store-writer".into());
        thread.spawn(move || writer.run()).map_err(OpenError::Thread)?;
        Ok(Embedded { queue, shelf, large: Large::default(), readers: readers() })
    }

    /// Does what was asked before, then releases file and folder. Every later call fails, with nothing written.
    pub async fn close(&self) {
        // An error says that it was closed before.
        _ = self.ask(Job::Close).await;
    }

    /// Commits since opening. Each is synced to the disk.
    pub fn commits(&self) -> u64 {
        self.shelf.commits.load(Ordering::Relaxed)
    }

    /// Claims stored since opening.
    pub fn claims(&self) -> u64 {
        self.shelf.claims.load(Ordering::Relaxed)
    }

    async fn ask(&self, job: Job) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        let order = Order { job, reply, made: None };
        self.queue
            .send(order)
            .await
            .map_err(|_| StoreError::NotApplied("the store is closed".into()))?;
        answer
            .await
            .unwrap_or_else(|_| Err(StoreError::MaybeApplied("the store's writer is gone".into())))
    }

    /// The record, or else its tombstone where that is wanted too.
    async fn find(&self, slot: &Slot, or_tombstone: bool) -> Result<Option<Held>, StoreError> {
        let slot = *slot;
        let found = self.read(move |shelf| shelf.load(&slot, or_tombstone, ALONG_MAX)).await?;
        let Some(raw) = found else { return Ok(None) };
        if let Some(held) = raw.held()? {
            return Ok(Some(held));
        }
        // A large one; what stands there when it is its turn.
        let turn = self.large.turn().await;
        let look = move |shelf: &Shelf| {
            let _turn = turn;
            shelf.load(&slot, or_tombstone, usize::MAX)?.map_or(Ok(None), Raw::held)
        };
        self.read(look).await
    }

    /// Reads on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Shelf) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (shelf, permit) = (self.shelf.clone(), self.readers.clone().acquire_owned().await);
        let looking = move || {
            let _permit = permit;
            look(&shelf)
        };
        let looked = tokio::task::spawn_blocking(looking).await;
        looked.unwrap_or_else(|error| Err(StoreError::NotApplied(error.to_string())))
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
        event: EventSource<'_>,
    ) -> Result<Swap, StoreError> {
        let tombstone = match (&next.state, lifetime.tombstone) {
            (State::Completed { .. }, Some(keep)) => {
                Some(Parcel::new(&encode(&next.tombstone()), None, keep))
            }
            _ => None,
        };
        let encoded = encode(next);
        let exchange = Exchange {
            slot: *slot,
            expected,
            head: encoded.head,
            claims: matches!(next.state, State::InFlight { .. }),
            heeds_tombstone: lifetime.tombstone.is_some(),
            record: Parcel::new(&encoded, lifetime.due, lifetime.keep),
            tombstone,
            event: event(),
        };
        match self.ask(Job::Swap(Box::new(exchange))).await? {
            Answer::Stale(None) => Ok(Swap::Stale(None)),
            Answer::Stale(Some(raw)) => {
                let fence = raw.fence();
                Ok(raw.held()?.map_or(Swap::Large(fence), |held| Swap::Stale(Some(held))))
            }
            _ => Ok(Swap::Stored),
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
        let answer = self.ask(Job::Renew { slot: *slot, fence, lease, keep }).await?;
        Ok(matches!(answer, Answer::Renewed(true)))
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.read(move |shelf| shelf.due(limit)).await
    }

    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let cursor = cursor.map(str::to_owned);
        self.read(move |shelf| Ok(shelf.list(listing, cursor.as_deref(), limit))).await?
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.shelf.hub.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.ask(Job::Ping).await.map(|_| ())
    }
}

#[async_trait]
impl IdentityNotes for Embedded {
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.read(move |shelf| shelf.note(note)).await
    }

    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError> {
        let job = Job::Agree { note, expected: expected.map(str::to_owned), next: next.to_owned() };
        Ok(matches!(self.ask(job).await?, Answer::Agreed(true)))
    }
}

#[cfg(test)]
mod tests;
