//! The one thread that writes: it takes what waits, applies it in one transaction, commits once, and answers.
//!
//! Danger: an answer that leaves before its commit tells of a claim that a power loss takes back. No answer of a batch
//! leaves before the commit, not even "stale": what it tells of may have been written by the same batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redb::{Builder, Database, Durability, ReadableTable, WriteTransaction};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::disk::{Folder, Opener, Writes};
use super::shelf::Shelf;
use super::tables::{
    DUE, ENDS, Front, LAYOUT, META, NOTES, Parcel, Place, RECORDS, Raw, TIME_MS, Tables,
};
use super::{OpenError, Options, log};
use crate::key::Slot;
use crate::record::{CodecError, Fence, HEAD_BYTES, Version};
use crate::store::log::{EntryId, Trimmed};
use crate::store::{Note, StoreError};

/// Operations in one commit. More would save little per operation, and the first would wait for the last.
const BATCH_OPS_MAX: usize = 256;
/// Bytes of records in one commit, beyond the first: keeps big replies from making one commit long.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Ended records taken away for each one written: more than one, so that the file doesn't grow for ever, though every
/// operation is written twice and may leave a tombstone.
const SWEPT_PER_WRITE: usize = 2;
/// Ended records taken away in one commit when nobody asks for anything: small, for the next request waits for it.
const SWEPT_WHEN_IDLE: usize = 256;
/// How often the writer looks around when nobody asks for anything.
const IDLE: Duration = Duration::from_millis(500);
/// How often free disk space is looked at: often enough that what is written meanwhile is far below the floor.
const ROOM_CHECK: Duration = Duration::from_secs(1);
/// How long to wait before the file is opened again after an I/O error: doubles from the first to the second.
const REOPEN_WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The layout of the file that this version writes.
pub(super) const LAYOUT_VERSION: u64 = 1;

/// What is asked of the writer.
pub(super) enum Job {
    /// Compare the version, then write.
    Swap(Box<Exchange>),
    /// Move the deadlines of the attempt under way.
    Renew { slot: Slot, fence: Fence, lease: Duration, keep: Duration },
    /// Write a note, if what is kept is as expected.
    Agree { note: Note, expected: Option<String>, next: String },
    /// Keep how far a reader of the log has read.
    MarkRead { reader: String, read: EntryId },
    /// Append a batch of observations.
    Observe { batch: Vec<u8> },
    /// Take away old entries of the log.
    Trim { older_than: Duration },
    /// Say whether claims would be accepted.
    Ping,
    /// Commit, release the file and end.
    Close,
}

/// A swap.
pub(super) struct Exchange {
    pub(super) slot: Slot,
    pub(super) expected: Option<Version>,
    /// Version, fence and state of the record to write.
    pub(super) head: [u8; HEAD_BYTES],
    /// The record begins an attempt.
    pub(super) claims: bool,
    /// A tombstone stands in its way.
    pub(super) heeds_tombstone: bool,
    pub(super) record: Parcel,
    /// To be left beside it.
    pub(super) tombstone: Option<Parcel>,
    /// To be appended to the log, if it isn't empty.
    pub(super) event: Vec<u8>,
}

/// What the writer says.
#[derive(Debug)]
pub(super) enum Answer {
    /// Written, and durable.
    Stored,
    /// Something else is there.
    Stale(Option<Raw>),
    /// Whether the lease was renewed.
    Renewed(bool),
    /// Whether that is kept now.
    Agreed(bool),
    /// What trimming came to.
    Trimmed(Trimmed),
    /// Claims would be accepted; or the file is closed.
    Well,
}

/// A job with who waits for it, and what was made of it before the commit.
pub(super) struct Order {
    pub(super) job: Job,
    pub(super) reply: oneshot::Sender<Result<Answer, StoreError>>,
    pub(super) made: Option<Made>,
}

/// What was made of a job, if the commit succeeds.
pub(super) struct Made {
    answer: Result<Answer, StoreError>,
    /// The answer tells of a write of its own, in this batch perhaps.
    wrote: bool,
    /// It changed something in this batch.
    changed: bool,
}

/// Why a batch failed.
enum Failure {
    /// Nothing of it is stored.
    Before(redb::Error),
    /// All or nothing of it is stored.
    Commit(redb::Error),
}

/// The writer.
pub(super) struct Writer {
    shelf: Arc<Shelf>,
    queue: mpsc::Receiver<Order>,
    timers: Runtime,
    folder: Folder,
    opener: Opener,
    options: Options,
    /// The file takes no writes, and why.
    down: Option<Down>,
    reopen_wait: Duration,
    has_room: bool,
    room_checked: Option<Instant>,
    swept: Instant,
    /// The last sweep left something.
    unswept: bool,
}

struct Down {
    why: String,
    retry: Instant,
}

/// Opens the records file. The repair that makes it fit after a crash is prepared by every commit, so it takes no time.
pub(super) fn open(
    opener: &Opener,
    writes: Writes,
    options: &Options,
) -> Result<Database, redb::Error> {
    opener(Builder::new().set_cache_size(options.cache_bytes), writes)
}

/// Makes the tables if need be, and writes the time, at least `now_ms`: so it also proves that the disk takes writes.
/// Returns the time that the store's clock starts at.
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

/// Makes the tables that are not there yet.
pub(super) fn make_tables(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(RECORDS)?;
    txn.open_table(DUE)?;
    txn.open_table(ENDS)?;
    txn.open_table(NOTES)?;
    txn.open_table(META)?;
    log::prepare(txn)
}

/// Begins a transaction that is on the disk once it is committed.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    // Without it, opening after a crash walks through the whole file.
    txn.set_quick_repair(true);
    Ok(txn)
}

impl Writer {
    pub(super) fn new(
        shelf: Arc<Shelf>,
        queue: mpsc::Receiver<Order>,
        folder: Folder,
        opener: Opener,
        options: Options,
    ) -> Result<Writer, OpenError> {
        let timers = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(OpenError::Thread)?;
        Ok(Writer {
            shelf,
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

    /// Works until it is told to close, or nobody can ask any more.
    pub(super) fn run(mut self) {
        let mut closing = None;
        while let Some(mut batch) = self.next_batch() {
            if let Some(at) = batch.iter().position(|order| matches!(order.job, Job::Close)) {
                closing = Some(batch.split_off(at));
            }
            self.serve(batch);
            if closing.is_some() {
                break;
            }
        }
        self.end(closing.unwrap_or_default());
    }

    /// Waits for something to do; an empty batch when nothing came for a while, `None` when nothing will.
    fn next_batch(&mut self) -> Option<Vec<Order>> {
        let queue = &mut self.queue;
        let wait = if self.unswept { Duration::ZERO } else { IDLE };
        let first = match queue.try_recv() {
            Ok(order) => order,
            Err(_) => {
                match self.timers.block_on(async { tokio::time::timeout(wait, queue.recv()).await })
                {
                    Ok(order) => order?,
                    Err(_) => return Some(Vec::new()),
                }
            }
        };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(order) = next {
            bytes += order.job.size();
            batch.push(order);
            next = if batch.len() < BATCH_OPS_MAX && bytes < BATCH_BYTES_MAX {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        Some(batch)
    }

    fn serve(&mut self, mut batch: Vec<Order>) {
        // Who has stopped waiting gets nothing done: a write must not land long after its caller gave it up.
        batch.retain(|order| !order.reply.is_closed());
        if self.down.as_ref().is_some_and(|down| Instant::now() >= down.retry) {
            self.reopen();
        }
        if let Some(down) = &self.down {
            let refusal = StoreError::NotApplied(down.why.clone());
            return batch.into_iter().for_each(|order| order.answer(Err(refusal.clone())));
        }
        self.look_for_room();
        match self.carry_out(&mut batch) {
            Ok(()) => self.tell(batch),
            Err(failure) => self.fail(batch, failure),
        }
    }

    /// Applies a batch, and commits it if it changed anything.
    fn carry_out(&mut self, batch: &mut [Order]) -> Result<(), Failure> {
        let file = self.shelf.file();
        let Some(db) = file.as_ref() else { return Ok(()) };
        let now_ms = self.shelf.clock.now_ms();
        let txn = begin(db).map_err(Failure::Before)?;
        let changes = {
            let mut tables = Tables::open(&txn, now_ms).map_err(Failure::Before)?;
            for order in batch.iter_mut() {
                order.made =
                    Some(order.job.apply(&mut tables, self.has_room).map_err(Failure::Before)?);
            }
            let changes = batch
                .iter()
                .filter(|order| order.made.as_ref().is_some_and(|made| made.changed))
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
        keep_time(&txn, now_ms).map_err(Failure::Before)?;
        txn.commit().map_err(|error| Failure::Commit(error.into()))?;
        self.shelf.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// After the commit: wakes who watches, and answers.
    fn tell(&mut self, batch: Vec<Order>) {
        for Order { job, reply, made } in batch {
            let Some(made) = made else { continue };
            if let (Job::Swap(exchange), true) = (&job, made.changed) {
                // Success shows that the disk is well again.
                self.reopen_wait = REOPEN_WAIT.0;
                self.shelf.claims.fetch_add(u64::from(exchange.claims), Ordering::Relaxed);
                self.shelf.hub.notify(&exchange.slot);
            }
            _ = reply.send(made.answer);
        }
    }

    /// The database refuses all writes from now on, so it is opened again, before anybody hears of the failure: who reads
    /// back then sees what became of it.
    fn fail(&mut self, batch: Vec<Order>, failure: Failure) {
        let (error, committing) = match failure {
            Failure::Before(error) => (error, false),
            Failure::Commit(error) => (error, true),
        };
        tracing::error!(%error, "the store's file failed, no claims are accepted until it is open again");
        self.down = Some(Down { why: error.to_string(), retry: Instant::now() });
        self.reopen();
        for order in batch {
            let wrote = committing && order.made.as_ref().is_some_and(|made| made.wrote);
            let error = error.to_string();
            order.answer(Err(if wrote {
                StoreError::MaybeApplied(error)
            } else {
                StoreError::NotApplied(error)
            }));
        }
    }

    /// Opens the file anew. If it takes no writes, it is opened for reading only, and tried again later.
    fn reopen(&mut self) {
        let mut file = self.shelf.file_to_change();
        drop(file.take());
        let fresh = open(&self.opener, Writes::Through, &self.options).map_err(OpenError::from);
        match fresh.and_then(|db| prepare(&db, self.shelf.clock.now_ms()).map(|_| db)) {
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

    fn look_for_room(&mut self) {
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

    /// Answers who is left, releases the file, then the folder.
    fn end(mut self, closing: Vec<Order>) {
        self.queue.close();
        let (asked, mut late): (Vec<Order>, Vec<Order>) =
            closing.into_iter().partition(|order| matches!(order.job, Job::Close));
        while let Ok(order) = self.queue.try_recv() {
            late.push(order);
        }
        late.into_iter().for_each(|order| {
            order.answer(Err(StoreError::NotApplied("the store is closed".into())))
        });
        if let Some(Err(error)) = self.shelf.file_to_change().take().map(Database::close) {
            tracing::warn!(%error, "the store's file was not closed well; everything that was confirmed is in it");
        }
        drop(self.folder);
        asked.into_iter().for_each(|order| order.answer(Ok(Answer::Well)));
    }
}

/// Keeps the time, so that the store's clock can't start below it.
fn keep_time(txn: &WriteTransaction, now_ms: u64) -> Result<(), redb::Error> {
    txn.open_table(META)?.insert(TIME_MS, now_ms)?;
    Ok(())
}

impl Order {
    fn answer(self, answer: Result<Answer, StoreError>) {
        // Who asked may have left.
        _ = self.reply.send(answer);
    }
}

impl Made {
    fn seen(answer: Answer) -> Made {
        Made { answer: Ok(answer), wrote: false, changed: false }
    }

    fn written(answer: Answer) -> Made {
        Made { answer: Ok(answer), wrote: true, changed: true }
    }

    fn refused(error: StoreError) -> Made {
        Made { answer: Err(error), wrote: false, changed: false }
    }
}

impl From<CodecError> for Made {
    fn from(error: CodecError) -> Made {
        Made::refused(error.into())
    }
}

impl Job {
    fn size(&self) -> usize {
        match self {
            Job::Swap(exchange) => exchange.record.size() + exchange.event.len(),
            Job::Observe { batch } => batch.len(),
            Job::Renew { .. }
            | Job::Agree { .. }
            | Job::MarkRead { .. }
            | Job::Trim { .. }
            | Job::Ping
            | Job::Close => 0,
        }
    }

    fn apply(&mut self, tables: &mut Tables<'_>, has_room: bool) -> Result<Made, redb::Error> {
        match self {
            Job::Swap(exchange) => exchange.apply(tables, has_room),
            Job::Renew { slot, fence, lease, keep } => {
                let place = Place::record(slot);
                let front = match tables.front(&place)? {
                    Ok(front) => front,
                    Err(error) => return Ok(error.into()),
                };
                let holds = |front: Front| {
                    front.is_in_flight() && front.fence() == *fence && !tables.is_over(&front)
                };
                if !front.is_some_and(holds) {
                    return Ok(Made::seen(Answer::Renewed(false)));
                }
                tables.renew(&place, *lease, *keep)?;
                Ok(Made::written(Answer::Renewed(true)))
            }
            Job::Agree { note, expected, next } => {
                match tables.agree(*note, expected.as_deref(), next)? {
                    true => Ok(Made::written(Answer::Agreed(true))),
                    false => Ok(Made::seen(Answer::Agreed(false))),
                }
            }
            Job::MarkRead { reader, read } => {
                tables.mark_read(reader, *read)?;
                Ok(Made::written(Answer::Well))
            }
            // Of no use to anybody who would have to do without room for claims.
            Job::Observe { .. } if !has_room => Ok(Made::refused(no_room())),
            Job::Observe { batch } => {
                tables.observe(batch)?;
                Ok(Made::written(Answer::Well))
            }
            Job::Trim { older_than } => Ok(match tables.trim(*older_than)? {
                nothing if nothing == Trimmed::default() => Made::seen(Answer::Trimmed(nothing)),
                trimmed => Made::written(Answer::Trimmed(trimmed)),
            }),
            Job::Ping if has_room => Ok(Made::seen(Answer::Well)),
            Job::Ping => Ok(Made::refused(no_room())),
            Job::Close => Ok(Made::seen(Answer::Well)),
        }
    }
}

impl Exchange {
    fn apply(&mut self, tables: &mut Tables<'_>, has_room: bool) -> Result<Made, redb::Error> {
        let place = Place::record(&self.slot);
        let current = match tables.front(&place)? {
            Ok(current) => current,
            Err(error) => return Ok(error.into()),
        };
        if current.is_some_and(|current| *current.head() == self.head) {
            return Ok(Made { answer: Ok(Answer::Stored), wrote: true, changed: false });
        }
        if current.map(|current| current.version()) != self.expected {
            return Ok(tables
                .raw(&place)?
                .map_or_else(Made::from, |raw| Made::seen(Answer::Stale(raw))));
        }
        if self.claims && self.heeds_tombstone {
            match tables.raw(&Place::tombstone(&self.slot))? {
                Ok(None) => {}
                Ok(tombstone) => return Ok(Made::seen(Answer::Stale(tombstone))),
                Err(error) => return Ok(error.into()),
            }
        }
        if self.claims && self.expected.is_none() && !has_room {
            return Ok(Made::refused(no_room()));
        }
        if let Some(tombstone) = &mut self.tombstone {
            tables.put(&Place::tombstone(&self.slot), tombstone)?;
        }
        tables.put(&place, &mut self.record)?;
        if !self.event.is_empty() {
            tables.tell(&self.slot, &self.event)?;
        }
        Ok(Made::written(Answer::Stored))
    }
}

fn no_room() -> StoreError {
    StoreError::NotApplied("too little free disk space for new operations".into())
}
