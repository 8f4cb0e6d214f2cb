//! A disk that a test can make fail or hang.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::store::embedded::disk::{Folder, opener};
use crate::store::embedded::layout::FILE;
use crate::store::embedded::{Embedded, EmbeddedOptions};

#[derive(Debug, Clone)]
pub(super) struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Number of writes, growths and syncs that succeed. Afterwards all fail, as on a full disk.
    good: AtomicU64,
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Debug)]
struct Gate {
    /// Syncs that may still pass.
    allowed: u64,
    waiting: bool,
}

impl Default for Disk {
    fn default() -> Disk {
        let gate = Mutex::new(Gate { allowed: u64::MAX, waiting: false });
        Disk(Arc::new(Inner { good: AtomicU64::new(u64::MAX), gate, opened: Condvar::new() }))
    }
}

impl Disk {
    pub(super) fn open(&self, dir: &Path, options: EmbeddedOptions) -> Embedded {
        let (inner, path) = (self.0.clone(), dir.join(FILE));
        let opener = opener(move || {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            Ok(Backend {
                file: FileBackend::new(file).map_err(io::Error::other)?,
                disk: inner.clone(),
            })
        });
        Embedded::open_over(Folder::lock(dir).unwrap(), opener, options).unwrap()
    }

    pub(super) fn fail_after(&self, writes: u64) {
        self.0.good.store(writes, Ordering::SeqCst);
    }

    pub(super) fn allow_syncs(&self, allowed: u64) {
        self.0.gate.lock().unwrap().allowed = allowed;
        self.0.opened.notify_all();
    }

    /// Whether a sync waits for permission.
    pub(super) fn stalled(&self) -> bool {
        let gate = self.0.gate.lock().unwrap();
        gate.waiting && gate.allowed == 0
    }
}

#[derive(Debug)]
struct Backend {
    file: FileBackend,
    disk: Arc<Inner>,
}

impl Backend {
    fn spend(&self) -> io::Result<()> {
        let spend = |good: u64| if good == u64::MAX { Some(good) } else { good.checked_sub(1) };
        match self.disk.good.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.spend()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.spend()?;
        let mut gate = self.disk.gate.lock().unwrap();
        gate.waiting = true;
        gate = self.disk.opened.wait_while(gate, |gate| gate.allowed == 0).unwrap();
        gate.waiting = false;
        if gate.allowed != u64::MAX {
            gate.allowed -= 1;
        }
        drop(gate);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
