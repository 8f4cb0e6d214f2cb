//! Options of an embedded store.

use std::sync::Arc;

/// Returns milliseconds since the machine started. Must advance while the process is stopped or the
/// machine sleeps.
pub type BootClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Default cache size: holds the upper levels of the trees of some million records.
const CACHE_BYTES: usize = 64 << 20;
/// Default for the disk space that is reserved for completions: enough for some thousand operations
/// in flight.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// Options of an embedded store.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Cache for the file's pages, in bytes.
    pub cache_bytes: usize,
    /// Free disk space, in bytes, below which new claims are refused.
    pub min_free_bytes: u64,
    /// The machine's clock. The store's clock advances with it.
    pub boot_ms: BootClock,
    /// The wall clock at `read_at_boot_ms`, in ms since 1970. The store's clock continues it, or
    /// starts at the file's last commit if that is later: it never runs backwards.
    pub unix_ms: u64,
    /// The time by `boot_ms` at which `unix_ms` was read.
    pub read_at_boot_ms: u64,
}

impl EmbeddedOptions {
    /// Returns the default options. `unix_ms` is the wall clock now.
    pub fn new(boot_ms: BootClock, unix_ms: u64) -> EmbeddedOptions {
        EmbeddedOptions {
            cache_bytes: CACHE_BYTES,
            min_free_bytes: MIN_FREE_BYTES,
            read_at_boot_ms: boot_ms(),
            boot_ms,
            unix_ms,
        }
    }

    /// Returns the wall clock's time now, in ms since 1970, unless somebody has set the wall clock.
    /// Locking and opening a file can take long. A store's clock that lags behind the wall clock
    /// would end operations before they began, because gateways have clocks of their own.
    pub(super) fn now_unix_ms(&self) -> u64 {
        self.unix_ms.saturating_add((self.boot_ms)().saturating_sub(self.read_at_boot_ms))
    }
}
