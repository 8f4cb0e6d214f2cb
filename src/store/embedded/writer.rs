//! The writer: the one thread that writes. It takes the waiting requests, applies them in one
//! transaction, commits once, and answers.
//!
//! Danger: an answer before its commit could confirm a claim that a power loss takes back. So no
//! answer of a batch is sent before the commit. This holds for `Stale`, too: the same batch may
//! have written the record in that answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redb::{Builder, Database, Durability, ReadableTable, WriteTransaction};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::disk::{Folder, Opener, Writes};
use super::error::OpenError;
use super::event_tables;
use super::jobs::{Job, WriteReply, WriteRequest};
use super::layout::{LAYOUT, LAYOUT_VERSION, META, NOTES, TIME_MS};
use super::options::EmbeddedOptions;
use super::outbox_tables;
use super::shared_file::SharedFile;
use super::tables::{DUE, ENDS, RECORDS, SAGAS, Tables};
use crate::store::error::StoreError;

/// Limit for the operations of one commit. A higher limit would save little per operation, and the
/// first operation waits for the last one.
const BATCH_OPS_MAX: usize = 256;
/// Limit for the bytes of one commit, not counting its last operation: large replies must not make
/// a commit slow.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Number of ended records that are removed for each record written. More than one, because an
/// operation is written twice and may leave a tombstone, and the file must not grow for ever.
const SWEPT_PER_WRITE: usize = 2;
/// Limit for the ended records removed in one commit while the writer is idle. Small, because the
/// next request waits for this commit.
const SWEPT_WHEN_IDLE: usize = 256;
/// Time between sweeps while the writer is idle.
const IDLE: Duration = Duration::from_millis(500);
/// Time between checks of the free disk space. Writes between two checks take far less than the
/// space that is reserved.
const ROOM_CHECK: Duration = Duration::from_secs(1);
/// First and longest wait before the file is opened again after an I/O error. The wait doubles in
/// between.
const REOPEN_WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Failure of a batch.
enum Failure {
    /// Nothing of the batch is stored.
    Before(redb::Error),
    /// Either the whole batch is stored, or nothing of it.
    Commit(redb::Error),
}

/// The writer.
pub(super) struct Writer {
    shared: Arc<SharedFile>,
    queue: mpsc::Receiver<WriteRequest>,
    timers: Runtime,
    folder: Folder,
    opener: Opener,
    options: EmbeddedOptions,
    /// Set while the file takes no writes.
    down: Option<Down>,
    reopen_wait: Duration,
    has_room: bool,
    room_checked: Option<Instant>,
    swept: Instant,
    /// Whether the last sweep left ended records.
    unswept: bool,
}

struct Down {
    why: String,
    retry: Instant,
}

/// Opens the records file. Every commit prepares the repair after a crash, so opening is fast even
/// after a crash.
pub(super) fn open(
    opener: &Opener,
    writes: Writes,
    options: &EmbeddedOptions,
) -> Result<Database, redb::Error> {
    opener(Builder::new().set_cache_size(options.cache_bytes), writes)
}

/// Creates the tables that do not exist yet. Writes the time at which the store's clock starts:
/// `now_ms`, or the file's last time if that is later. Returns that time. The write also proves
/// that the disk takes writes.
pub(super) fn prepare(db: &Database, now_ms: u64) -> Result<u64, OpenError> {
    let txn = begin(db)?;
    let start_ms = {
        make_tables(&txn)?;
        let mut meta = txn.open_table(META).map_err(redb::Error::from)?;
        let layout = meta.get(LAYOUT).map_err(redb::Error::from)?.map(|layout| layout.value());
        if let Some(found) = layout.filter(|layout| *layout != LAYOUT_VERSION) {
            return Err(OpenError::Layout { found });
        }
        let last_ms = meta.get(TIME_MS).map_err(redb::Error::from)?.map_or(0, |time| time.value());
        meta.insert(LAYOUT, LAYOUT_VERSION).map_err(redb::Error::from)?;
        meta.insert(TIME_MS, last_ms.max(now_ms)).map_err(redb::Error::from)?;
        last_ms.max(now_ms)
    };
    txn.commit().map_err(redb::Error::from)?;
    Ok(start_ms)
}

/// Creates the tables that do not exist yet.
pub(super) fn make_tables(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(RECORDS)?;
    txn.open_table(DUE)?;
    txn.open_table(SAGAS)?;
    txn.open_table(ENDS)?;
    txn.open_table(NOTES)?;
    txn.open_table(META)?;
    outbox_tables::prepare(txn)?;
    event_tables::prepare(txn)
}

/// Begins a transaction; its commit is synced to the disk.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    // Otherwise opening after a crash reads the whole file.
    txn.set_quick_repair(true);
    Ok(txn)
}

impl Writer {
    pub(super) fn new(
        shared: Arc<SharedFile>,
        queue: mpsc::Receiver<WriteRequest>,
        folder: Folder,
        opener: Opener,
        options: EmbeddedOptions,
    ) -> Result<Writer, OpenError> {
        let timers = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(OpenError::Thread)?;
        Ok(Writer {
            shared,
            queue,
            timers,
            folder,
            opener,
            options,
            down: None,
            reopen_wait: REOPEN_WAIT.0,
            has_room: true,
            room_checked: None,
            swept: Instant::now(),
            unswept: false,
        })
    }

    /// Serves requests until a request to close, or until no sender is left.
    pub(super) fn run(mut self) {
        let mut closing = None;
        while let Some(mut batch) = self.next_batch() {
            if let Some(at) = batch.iter().position(|request| matches!(request.job, Job::Close)) {
                closing = Some(batch.split_off(at));
            }
            self.serve(batch);
            if closing.is_some() {
                break;
            }
        }
        self.end(closing.unwrap_or_default());
    }

    /// Waits for requests. Returns an empty batch if no request comes for a while, and `None` if no
    /// sender is left.
    fn next_batch(&mut self) -> Option<Vec<WriteRequest>> {
        let queue = &mut self.queue;
        let wait = if self.unswept { Duration::ZERO } else { IDLE };
        let first = match queue.try_recv() {
            Ok(request) => request,
            Err(_) => {
                match self.timers.block_on(async { tokio::time::timeout(wait, queue.recv()).await })
                {
                    Ok(request) => request?,
                    Err(_) => return Some(Vec::new()),
                }
            }
        };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(request) = next {
            bytes += request.job.size();
            batch.push(request);
            next = if batch.len() < BATCH_OPS_MAX && bytes < BATCH_BYTES_MAX {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        Some(batch)
    }

    fn serve(&mut self, mut batch: Vec<WriteRequest>) {
        // Drop requests of callers that have left: a write must not be applied long after its
        // caller gave up.
        batch.retain(|request| !request.reply.is_closed());
        if self.down.as_ref().is_some_and(|down| Instant::now() >= down.retry) {
            self.reopen();
        }
        if let Some(down) = &self.down {
            let refusal = StoreError::NotApplied(down.why.clone());
            return batch.into_iter().for_each(|request| request.answer(Err(refusal.clone())));
        }
        self.check_room();
        match self.apply(&mut batch) {
            Ok(()) => self.answer(batch),
            Err(failure) => self.fail(batch, failure),
        }
    }

    /// Applies a batch, and commits it if it changed anything.
    fn apply(&mut self, batch: &mut [WriteRequest]) -> Result<(), Failure> {
        let file = self.shared.file();
        let Some(db) = file.as_ref() else { return Ok(()) };
        let now_ms = self.shared.clock.now_ms();
        let txn = begin(db).map_err(Failure::Before)?;
        let changes = {
            let mut tables = Tables::open(&txn, now_ms).map_err(Failure::Before)?;
            for request in batch.iter_mut() {
                request.result =
                    Some(request.job.apply(&mut tables, self.has_room).map_err(Failure::Before)?);
            }
            let changes = batch
                .iter()
                .filter(|request| request.result.as_ref().is_some_and(|result| result.changed))
                .count();
            let max = if changes > 0 { changes * SWEPT_PER_WRITE } else { SWEPT_WHEN_IDLE };
            let swept = if changes > 0 || self.unswept || self.swept.elapsed() >= IDLE {
                self.swept = Instant::now();
                tables.sweep(max).map_err(Failure::Before)?
            } else {
                0
            };
            self.unswept = swept == max;
            changes + swept
        };
        if changes == 0 {
            return txn.abort().map_err(|error| Failure::Before(error.into()));
        }
        write_time(&txn, now_ms).map_err(Failure::Before)?;
        txn.commit().map_err(|error| Failure::Commit(error.into()))?;
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Wakes watchers and answers, after the commit.
    fn answer(&mut self, batch: Vec<WriteRequest>) {
        for WriteRequest { job, reply, result } in batch {
            let Some(result) = result else { continue };
            if let (Job::Swap(swap), true) = (&job, result.changed) {
                // The disk works again.
                self.reopen_wait = REOPEN_WAIT.0;
                self.shared.claims.fetch_add(u64::from(swap.claims), Ordering::Relaxed);
                self.shared.hub.notify(&swap.slot);
            }
            _ = reply.send(result.answer);
        }
    }

    /// Answers a failed batch. The database refuses all writes after a failure, so it is opened
    /// again first. Callers that load their record after the error then find the stored state.
    fn fail(&mut self, batch: Vec<WriteRequest>, failure: Failure) {
        let (error, committing) = match failure {
            Failure::Before(error) => (error, false),
            Failure::Commit(error) => (error, true),
        };
        tracing::error!(%error, "the store's file failed, no claims are accepted until it is open again");
        self.down = Some(Down { why: error.to_string(), retry: Instant::now() });
        self.reopen();
        for request in batch {
            let wrote = committing && request.result.as_ref().is_some_and(|result| result.wrote);
            let error = error.to_string();
            request.answer(Err(if wrote {
                StoreError::MaybeApplied(error)
            } else {
                StoreError::NotApplied(error)
            }));
        }
    }

    /// Opens the file again. If it takes no writes, opens it for reading only, and retries later.
    fn reopen(&mut self) {
        let mut file = self.shared.file_to_change();
        drop(file.take());
        let fresh = open(&self.opener, Writes::Through, &self.options).map_err(OpenError::from);
        match fresh.and_then(|db| prepare(&db, self.shared.clock.now_ms()).map(|_| db)) {
            Ok(db) => {
                *file = Some(db);
                self.down = None;
                tracing::info!("the store's file is open again");
            }
            Err(error) => {
                *file = open(&self.opener, Writes::Withheld, &self.options)
                    .inspect_err(
                        |error| tracing::error!(%error, "the store's file can't even be read"),
                    )
                    .ok();
                self.down =
                    Some(Down { why: error.to_string(), retry: Instant::now() + self.reopen_wait });
                self.reopen_wait = (self.reopen_wait * 2).min(REOPEN_WAIT.1);
            }
        }
    }

    fn check_room(&mut self) {
        if self.room_checked.is_none_or(|checked| checked.elapsed() >= ROOM_CHECK) {
            self.room_checked = Some(Instant::now());
            let had_room = self.has_room;
            self.has_room =
                self.folder.free_bytes().is_none_or(|free| free >= self.options.min_free_bytes);
            if had_room && !self.has_room {
                tracing::error!(
                    floor = self.options.min_free_bytes,
                    "too little free disk space: new claims are refused"
                );
            }
        }
    }

    /// Answers the remaining requests, then releases the file and the folder.
    fn end(mut self, closing: Vec<WriteRequest>) {
        self.queue.close();
        let (closers, mut late): (Vec<WriteRequest>, Vec<WriteRequest>) =
            closing.into_iter().partition(|request| matches!(request.job, Job::Close));
        while let Ok(request) = self.queue.try_recv() {
            late.push(request);
        }
        late.into_iter().for_each(|request| {
            request.answer(Err(StoreError::NotApplied("the store is closed".into())))
        });
        if let Some(Err(error)) = self.shared.file_to_change().take().map(Database::close) {
            tracing::warn!(%error, "the store's file was not closed well; everything that was confirmed is in it");
        }
        drop(self.folder);
        closers.into_iter().for_each(|request| request.answer(Ok(WriteReply::Done)));
    }
}

/// Writes the time: the store's clock never starts at an earlier time.
fn write_time(txn: &WriteTransaction, now_ms: u64) -> Result<(), redb::Error> {
    txn.open_table(META)?.insert(TIME_MS, now_ms)?;
    Ok(())
}
