//! The read model itself: its file, and the connections to it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use super::error::QueryError;
use super::freshness::{AS_OF_MS, Freshness, Known, ModelGeneration, ModelProgress};
use super::schema;
use super::values::{set_meta, stored};

/// Most readers at the same time. Each reader has its own connection, and further callers wait.
/// More readers would only share the disk.
const READERS: usize = 4;

/// Time between two writes of the progress to the file while the log has no new entries. Other
/// processes read the age of the file from this progress.
const WRITE_PERIOD: Duration = Duration::from_secs(1);

/// A read model. Its methods block for the disk.
pub struct ReadModel {
    /// `None`: in memory.
    path: Option<PathBuf>,
    /// The only connection that writes. In memory it is the only connection.
    writer: Mutex<Connection>,
    /// Identity of the open file: another process may replace the file by a new one.
    file: Mutex<Option<FileId>>,
    /// Connections that read, opened at first use. Unused in memory.
    readers: [Mutex<Option<Connection>>; READERS],
    next_reader: AtomicUsize,
    /// Whether a reader or writer found damage.
    damaged: AtomicBool,
    /// Progress of the file, as this process last read or set it.
    known: Mutex<Known>,
    /// Locked while a thread reads the progress and stores it in `known`. Without this lock,
    /// progress from before another process emptied the file could replace newer progress.
    pub(super) learning: Mutex<()>,
}

impl ReadModel {
    /// Opens the file, or creates it. Replaces a damaged file by a new one. Empties a file with
    /// another layout.
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

    /// Returns a read model in the memory of this process.
    ///
    /// # Errors
    /// SQLite has too little memory.
    pub fn in_memory() -> Result<ReadModel, QueryError> {
        let mut connection = Connection::open_in_memory()?;
        schema::prepare(&mut connection)?;
        ReadModel::over(None, connection)
    }

    fn over(path: Option<PathBuf>, writer: Connection) -> Result<ReadModel, QueryError> {
        let known = Known::read(&writer)?;
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

    /// Empties the model, and puts it at the beginning of the log. Its name as a reader stays. The
    /// projectors of all processes notice this, and begin anew.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn clear(&self) -> Result<(), QueryError> {
        self.writing(schema::clear)?;
        self.refresh()
    }

    /// Replaces a damaged file by a new one, and changes to the new file if another process
    /// replaced it. Returns whether the model now has another file.
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
        // Close the connection before its file is moved. Otherwise the connection would use the new
        // file's write-ahead log.
        *writer = Connection::open_in_memory()?;
        if is_mine {
            schema::set_aside(path)?;
        }
        *writer = schema::open(path)?;
        *lock(&self.file) = file_at(path);
        self.know(Known::read(&writer)?);
        self.damaged.store(false, Ordering::Release);
        Ok(true)
    }

    /// Writes in one transaction.
    pub(super) fn writing<T>(
        &self,
        write: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let mut writer = lock(&self.writer);
        // Immediate: other processes may write to the file too, but not while this transaction
        // runs. So the values that it reads stay valid.
        let done = (|| {
            let transaction =
                writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let value = write(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })();
        self.note_damage(done)
    }

    /// Reads one snapshot of the file. After that, [`ReadModel::freshness`] is of the generation
    /// that was read.
    pub(super) fn reading<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let (value, generation) = self
            .snapshot(|connection| Ok((read(connection)?, ModelGeneration::read(connection)?)))?;
        if !self.is_known(generation) {
            self.refresh()?;
        }
        Ok(value)
    }

    /// Reads one snapshot of the file.
    fn snapshot<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let Some(path) = &self.path else { return in_snapshot(&lock(&self.writer), read) };
        let done = (|| {
            let mut reader = self.reader();
            let connection = match reader.take() {
                Some(connection) => connection,
                None => schema::open_to_read(path)?,
            };
            in_snapshot(reader.insert(connection), read)
        })();
        self.note_damage(done)
    }

    /// Returns a reader that is free, or waits for the next one in turn.
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

    /// Returns whether damage was found since the file was opened.
    fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }
}

impl ReadModel {
    /// Returns the age of the model. This process gets it by following the log, or by
    /// [`ReadModel::refresh`].
    pub fn freshness(&self) -> Freshness {
        let known = lock(&self.known);
        let unmoved = known.freshness.as_of_ms.map_or(Duration::ZERO, |_| known.learned.elapsed());
        Freshness {
            unmoved_ms: u64::try_from(unmoved.as_millis()).unwrap_or(u64::MAX),
            ..known.freshness
        }
    }

    /// Reads the progress from the file. This is for processes that do not follow the log
    /// themselves.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn refresh(&self) -> Result<(), QueryError> {
        let _learning = lock(&self.learning);
        self.know(self.snapshot(Known::read)?);
        Ok(())
    }

    /// Returns how far the log was applied to the file.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn progress(&self) -> Result<ModelProgress, QueryError> {
        let _learning = lock(&self.learning);
        let (known, progress) = self.snapshot(|connection| {
            Ok((Known::read(connection)?, ModelProgress::read(connection)?))
        })?;
        self.know(known);
        Ok(progress)
    }

    /// Records that the model has all entries of the log up to a time (in ms since 1970), if the
    /// file still has this generation. The file is written only now and then.
    ///
    /// The last call wins, not the latest time: an earlier call may have used a wall clock that was
    /// ahead, and the model would seem fresh until that time.
    ///
    /// # Errors
    /// The file can't be written. This process uses the new time nevertheless.
    pub fn complete_until(
        &self,
        generation: ModelGeneration,
        as_of_ms: u64,
    ) -> Result<(), QueryError> {
        {
            let mut known = lock(&self.known);
            if known.generation != generation {
                return Ok(());
            }
            known.freshness.as_of_ms = Some(as_of_ms);
            known.learned = Instant::now();
            known.set = Some(known.learned);
            if known.written.is_some_and(|written| written.elapsed() < WRITE_PERIOD) {
                return Ok(());
            }
            known.written = Some(Instant::now());
        }
        self.writing(|transaction| {
            generation.check(transaction)?;
            set_meta(transaction, AS_OF_MS, stored(as_of_ms))
        })
    }

    /// Returns whether the known progress is of this generation.
    pub(super) fn is_known(&self, generation: ModelGeneration) -> bool {
        lock(&self.known).generation == generation
    }

    /// Stores progress that was read from the file while [learning](ReadModel::learning) was
    /// locked. If this process set the time of the same generation a moment ago, that time stays,
    /// because not every time is written to the file.
    pub(super) fn know(&self, read: Known) {
        let mut known = lock(&self.known);
        if known.generation != read.generation {
            *known = read;
            return;
        }
        known.freshness.entries = read.freshness.entries;
        let is_stale = known.set.is_none_or(|set| set.elapsed() >= 2 * WRITE_PERIOD);
        if is_stale && known.freshness.as_of_ms != read.freshness.as_of_ms {
            known.freshness.as_of_ms = read.freshness.as_of_ms;
            known.learned = read.learned;
        }
    }
}

/// Identity of a file, independent of its name: device and inode.
type FileId = (u64, u64);

/// Returns the identity of the file at a path; `None`: it does not exist, or can't be read.
fn file_at(path: &Path) -> Option<FileId> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Locks a mutex, also after a panic of its holder: the panic rolled the transaction back.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_snapshot<T>(
    connection: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, QueryError>,
) -> Result<T, QueryError> {
    let moment = connection.unchecked_transaction()?;
    let value = read(&moment)?;
    moment.finish()?;
    Ok(value)
}
