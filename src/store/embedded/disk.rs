//! The folder of an embedded store: its lock, its file, and its free disk space.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{Builder, Database, StorageBackend};
use rustix::fs::{FlockOperation, flock, statvfs};

use super::error::OpenError;
use super::layout::FILE;

/// Name of the file while it is created. A file named [`FILE`] is never empty. An empty one was
/// truncated. If it counted as a new store, all operations that it has recorded would be executed
/// again.
const NEW_FILE: &str = "records.redb.new";
/// Name of the file that a process keeps locked while it uses the folder. It is not the records
/// file, because the records file is closed and opened again after an I/O error. No other process
/// may open the records file in between.
const LOCK: &str = "lock";

/// Opens the records file, either for writing or with writes kept in memory.
pub(super) type Opener = Box<dyn Fn(&Builder, Writes) -> Result<Database, redb::Error> + Send>;

/// Destination of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// The file.
    Through,
    /// Memory, until the file is closed. So records can be read even if the disk takes no writes.
    Withheld,
}

/// A folder that this process has locked, until this is dropped.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Locks the folder. Creates it if it does not exist.
    pub(super) fn lock(path: &Path) -> Result<Folder, OpenError> {
        let failed = |source| OpenError::Folder { dir: path.to_owned(), source };
        // The folder holds replies: only this user may read them.
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = open_private(&path.join(LOCK)).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Folder { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Busy { dir: path.to_owned() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Creates the records file, if it does not exist. The file has another name until it is
    /// completely on the disk.
    pub(super) fn make_file(&self) -> Result<(), OpenError> {
        let failed = |source| OpenError::Folder { dir: self.path.clone(), source };
        let (path, new) = (self.path.join(FILE), self.path.join(NEW_FILE));
        if path.try_exists().map_err(failed)? {
            return Ok(());
        }
        let file = open_private(&new).map_err(failed)?;
        // Drop the content of a start that was interrupted.
        file.set_len(0).map_err(failed)?;
        let backend = FileBackend::new(file).map_err(redb::Error::from)?;
        drop(Builder::new().create_with_backend(backend).map_err(redb::Error::from)?);
        File::open(&new).and_then(|file| file.sync_all()).map_err(failed)?;
        std::fs::rename(&new, &path).map_err(failed)?;
        // The new name must survive a power loss.
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    /// Returns an opener for the records file. The opener never creates the file: a file that
    /// vanished while it was in use is an error.
    pub(super) fn opener(&self) -> Opener {
        let path = self.path.join(FILE);
        opener(move || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            if file.metadata()?.len() == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is empty, and the file of a new store never is",
                ));
            }
            FileBackend::new(file).map_err(io::Error::other)
        })
    }

    /// Returns the free disk space for this process, in bytes; `None` if the system does not report
    /// it.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let stat = statvfs(&self.path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Returns an opener of a database over a storage.
pub(super) fn opener<B: StorageBackend>(
    storage: impl Fn() -> io::Result<B> + Send + 'static,
) -> Opener {
    Box::new(move |builder, writes| match writes {
        Writes::Through => Ok(builder.create_with_backend(storage()?)?),
        Writes::Withheld => Ok(builder.create_with_backend(Overlay::over(storage()?)?)?),
    })
}

/// Bytes of a block of an [`Overlay`].
const BLOCK: u64 = 4096;

/// Keeps writes in memory, in blocks, over a storage that is only read. Opening a file after a
/// crash writes to the file. With the overlay, records are readable even if the disk is full.
#[derive(Debug)]
struct Overlay<B> {
    below: B,
    above: Mutex<Above>,
}

#[derive(Debug)]
struct Above {
    len: u64,
    /// Bytes of the storage below that are still valid.
    below_len: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl<B: StorageBackend> Overlay<B> {
    fn over(below: B) -> io::Result<Overlay<B>> {
        let len = below.len()?;
        Ok(Overlay {
            below,
            above: Mutex::new(Above { len, below_len: len, blocks: BTreeMap::new() }),
        })
    }

    fn above(&self) -> MutexGuard<'_, Above> {
        self.above.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a block of the storage below, with zeros past its end.
    fn block_below(&self, index: u64, below_len: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK as usize];
        let start = index * BLOCK;
        let there = below_len.saturating_sub(start).min(BLOCK) as usize;
        if there > 0 {
            self.below.read(start, &mut block[..there])?;
        }
        Ok(block)
    }
}

/// Splits a range into pieces: block, offset in the block, offset in the range, length.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let inside = (at % BLOCK) as usize;
        let take = (BLOCK as usize - inside).min(len - done);
        let piece = (at / BLOCK, inside, done, take);
        done += take;
        (take > 0).then_some(piece)
    })
}

impl<B: StorageBackend> StorageBackend for Overlay<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.above().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let above = self.above();
        if offset.saturating_add(out.len() as u64) > above.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (index, inside, outside, len) in pieces(offset, out.len()) {
            let piece = &mut out[outside..outside + len];
            match above.blocks.get(&index) {
                Some(block) => piece.copy_from_slice(&block[inside..inside + len]),
                None => piece.copy_from_slice(
                    &self.block_below(index, above.below_len)?[inside..inside + len],
                ),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut above = self.above();
        above.below_len = above.below_len.min(len);
        above.blocks.split_off(&len.div_ceil(BLOCK));
        if let Some(edge) = above.blocks.get_mut(&(len / BLOCK)) {
            edge[(len % BLOCK) as usize..].fill(0);
        }
        above.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut above = self.above();
        for (index, inside, outside, len) in pieces(offset, data.len()) {
            if !above.blocks.contains_key(&index) {
                let block = self.block_below(index, above.below_len)?;
                above.blocks.insert(index, block);
            }
            if let Some(block) = above.blocks.get_mut(&index) {
                block[inside..inside + len].copy_from_slice(&data[outside..outside + len]);
            }
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.below.close()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::Overlay;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let write = (0..20_000_u64, prop::collection::vec(1..=u8::MAX, 1..9000))
            .prop_map(|(at, data)| Step::Write(at, data));
        prop_oneof![write, (0..40_000_u64).prop_map(Step::SetLen)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_overlay_reads_like_the_storage_would_and_leaves_it_alone(len in 0..30_000_u64, steps in prop::collection::vec(step(), 0..12)) {
            let below = InMemoryBackend::new();
            let mut model: Vec<u8> = (0..len).map(|n| (n % 251) as u8 + 1).collect();
            below.set_len(len).unwrap();
            below.write(0, &model).unwrap();
            let original = model.clone();
            let overlay = Overlay::over(below).unwrap();
            for step in steps {
                match step {
                    Step::SetLen(len) => {
                        overlay.set_len(len).unwrap();
                        model.resize(len as usize, 0);
                    }
                    Step::Write(at, data) if at as usize + data.len() <= model.len() => {
                        overlay.write(at, &data).unwrap();
                        model[at as usize..at as usize + data.len()].copy_from_slice(&data);
                    }
                    Step::Write(..) => {}
                }
                let mut seen = vec![0; model.len()];
                overlay.read(0, &mut seen).unwrap();
                prop_assert!(seen == model);
                prop_assert_eq!(overlay.len().unwrap(), model.len() as u64);
            }
            prop_assert!(overlay.read(model.len() as u64, &mut [0]).is_err());
            let mut untouched = vec![0; original.len()];
            overlay.below.read(0, &mut untouched).unwrap();
            prop_assert!(untouched == original);
        }
    }
}
