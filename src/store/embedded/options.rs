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
    /// The wall clock at opening, in ms since 1970. The store's clock starts at this time, or at
    /// the file's last commit if that is later: it never runs backwards.
    pub unix_ms: u64,
}

impl EmbeddedOptions {
    /// Returns the default options.
    pub fn new(boot_ms: BootClock, unix_ms: u64) -> EmbeddedOptions {
        EmbeddedOptions {
            cache_bytes: CACHE_BYTES,
            min_free_bytes: MIN_FREE_BYTES,
            boot_ms,
            unix_ms,
        }
    }
}
