//! The read model: what the event log tells, laid out so that people find an operation by what they know of it.
//!
//! It lies in an SQLite file that is fed by the log alone, and that can be thrown away at any time: it is then built anew.
//!
//! Danger: it lags. What it says was so a moment ago, and how long ago is told with it ([`Freshness`]). So nothing is decided
//! by it, and no request of a client reads it or waits for it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rusqlite::{Connection, ErrorCode};

mod apply;
mod counts;
mod fold;
mod freshness;
mod observe;
mod operation;
mod overview;
mod projector;
mod report;
mod schema;
mod search;
mod timeline;
mod upkeep;

pub use apply::Applied;
pub use counts::{LATENCY_BOUNDS_MS, Latency, Tally};
pub use freshness::{Freshness, ModelGeneration, ModelProgress};
pub use operation::{NoState, Operation, State};
pub use overview::{HourRow, MinuteRow, Overview};
pub use projector::{Projector, UnixClock};
pub use report::{Report, ReportRow};
pub use search::{Filter, Found, PAGE_MAX};
pub use timeline::{Moment, Timeline, What};

/// Readers at once, each with a connection of its own; who comes then waits for one of them. More would only share the disk.
const READERS: usize = 4;

/// Why the read model has no answer. Reading again is always safe.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The cursor is none of this search.
    #[error("the cursor is none that a search gave: begin the search again, without a cursor")]
    Cursor,
    /// The file is damaged. The projector sets it aside and builds it anew.
    #[error(
        "the read model is damaged; it is being built anew from the event log: ask again later"
    )]
    Damaged,
    /// The file is in use, by another process that rebuilds it, for example.
    #[error("the read model is in use: ask again in a moment")]
    Busy,
    /// It was emptied since this was read for it.
    #[error(
        "the read model was emptied meanwhile; it is being built anew from the event log: ask again later"
    )]
    Emptied,
    /// The folder or file can't be used.
    #[error("{path} can't be used for the read model: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What else SQLite says.
    #[error("the read model can't be read or written: {0}")]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for QueryError {
    fn from(error: rusqlite::Error) -> QueryError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => QueryError::Damaged,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => QueryError::Busy,
            _ => QueryError::Sqlite(error),
        }
    }
}

/// A read model. Its methods block for the disk.
pub struct ReadModel {
    /// `None`: in memory.
    path: Option<PathBuf>,
    /// The one connection that writes; in memory the only one.
    writer: Mutex<Connection>,
    /// Which file that is: another process may put a new one in its place.
    file: Mutex<Option<FileId>>,
    /// Those that read, opened at first use; none in memory.
    readers: [Mutex<Option<Connection>>; READERS],
    next_reader: AtomicUsize,
    /// Somebody met damage.
    damaged: AtomicBool,
    /// What is known of the file without reading it.
    known: Mutex<freshness::Known>,
    /// Held from looking at the file until what was seen is known: who looked before another process emptied it must not be
    /// believed after who looked behind that.
    learning: Mutex<()>,
}

impl ReadModel {
    /// Opens the file, or makes it. One that is damaged is set aside for a new one; one with a layout that this version doesn't
    /// know is emptied.
    ///
    /// # Errors
    /// The folder can't be used, or the disk is full.
    pub fn open(path: &Path) -> Result<ReadModel, QueryError> {
        let writer = match schema::open(path) {
            Err(QueryError::Damaged) => {
                schema::set_aside(path)?;
                schema::open(path)?
            }
            opened => opened?,
        };
        ReadModel::over(Some(path.to_owned()), writer)
    }

    /// One that is gone with the process.
    ///
    /// # Errors
    /// None in practice: there is no memory.
    pub fn in_memory() -> Result<ReadModel, QueryError> {
        let mut connection = Connection::open_in_memory()?;
        schema::prepare(&mut connection)?;
        ReadModel::over(None, connection)
    }

    fn over(path: Option<PathBuf>, writer: Connection) -> Result<ReadModel, QueryError> {
        let known = freshness::Known::read(&writer)?;
        let file = path.as_deref().and_then(file_at);
        Ok(ReadModel {
            file: Mutex::new(file),
            path,
            writer: Mutex::new(writer),
            readers: Default::default(),
            next_reader: AtomicUsize::new(0),
            damaged: AtomicBool::new(false),
            known: Mutex::new(known),
            learning: Mutex::default(),
        })
    }

    /// Throws everything away but its name as a reader: it is at the beginning of the log then. Who follows the log for it, in
    /// whatever process, notices and begins anew.
    ///
    /// # Errors
    /// It can't be written.
    pub fn clear(&self) -> Result<(), QueryError> {
        self.writing(schema::clear)?;
        self.refresh()
    }

    /// Sets a damaged file aside for a new one, and goes over to the one that another process has put in its place. Returns
    /// whether it is another one now.
    ///
    /// # Errors
    /// The folder can't be used.
    pub fn repair(&self) -> Result<bool, QueryError> {
        let Some(path) = &self.path else {
            return if self.is_damaged() { self.clear().map(|()| true) } else { Ok(false) };
        };
        let is_mine = file_at(path) == *lock(&self.file);
        if is_mine && !self.is_damaged() {
            return Ok(false);
        }
        let _learning = lock(&self.learning);
        let mut writer = lock(&self.writer);
        let mut readers: Vec<_> = self.readers.iter().map(lock).collect();
        readers.iter_mut().for_each(|reader| **reader = None);
        // Closed before its file is moved: it would take the new one's log for its own.
        *writer = Connection::open_in_memory()?;
        if is_mine {
            schema::set_aside(path)?;
        }
        *writer = schema::open(path)?;
        *lock(&self.file) = file_at(path);
        self.know(freshness::Known::read(&writer)?);
        self.damaged.store(false, Ordering::Release);
        Ok(true)
    }

    /// Does something in one transaction of the writer.
    fn writing<T>(
        &self,
        write: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let mut writer = lock(&self.writer);
        // At once, so that what is read in it still holds when it is written: another process may write to the file, too.
        let done = (|| {
            let transaction =
                writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let value = write(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })();
        self.note_damage(done)
    }

    /// Reads, all of it at one moment of the file. Whoever asks then how old that is learns it of the building that was read.
    fn reading<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let (value, generation) =
            self.looking(|connection| Ok((read(connection)?, ModelGeneration::read(connection)?)))?;
        if !self.is_known(generation) {
            self.refresh()?;
        }
        Ok(value)
    }

    /// The same, without learning anything.
    fn looking<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let Some(path) = &self.path else { return at_one_moment(&lock(&self.writer), read) };
        let done = (|| {
            let mut reader = self.reader();
            let connection = match reader.take() {
                Some(connection) => connection,
                None => schema::open_to_read(path)?,
            };
            at_one_moment(reader.insert(connection), read)
        })();
        self.note_damage(done)
    }

    /// A reader that is free, or else the one whose turn it is.
    fn reader(&self) -> MutexGuard<'_, Option<Connection>> {
        let turn = self.next_reader.fetch_add(1, Ordering::Relaxed);
        for at in 0..READERS {
            match self.readers[(turn + at) % READERS].try_lock() {
                Ok(reader) => return reader,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        lock(&self.readers[turn % READERS])
    }

    fn note_damage<T>(&self, done: Result<T, QueryError>) -> Result<T, QueryError> {
        if matches!(done, Err(QueryError::Damaged)) {
            self.damaged.store(true, Ordering::Release);
        }
        done
    }

    /// Whether somebody met damage since the file was opened.
    fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }
}

/// A file, whatever it is called: its device and number.
type FileId = (u64, u64);

/// The file that is there; `None`: there is none, or it can't be looked at.
fn file_at(path: &Path) -> Option<FileId> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Whoever panicked while holding it has rolled its transaction back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn at_one_moment<T>(
    connection: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, QueryError>,
) -> Result<T, QueryError> {
    let moment = connection.unchecked_transaction()?;
    let value = read(&moment)?;
    moment.finish()?;
    Ok(value)
}

/// A time or count as SQLite keeps it: of one that is too large, the largest, which is as far away.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A time or count as it was stored.
fn unstored(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests;
