//! What one client address holds of the limits that all clients share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts what one client address holds: requests in flight, duplicates that wait, and bytes of the common buffers. A request extension, as
/// `Arc<AddressShare>`; requests without it are bound by the common limits only. Whoever accepts connections gives the
/// same share to all connections of an address, and none to a trusted proxy, which carries the requests of many clients.
#[derive(Debug)]
pub struct AddressShare {
    /// Requests in flight.
    pub(super) in_flight: Arc<AtomicUsize>,
    /// Duplicates that wait.
    pub(super) waiters: Arc<AtomicUsize>,
    /// Bytes held in the common buffers.
    pub(super) bytes: AtomicUsize,
    /// The turn for heavy work.
    pub(super) heavy: Arc<Semaphore>,
    /// Turns for claims.
    claims: Arc<Semaphore>,
}

/// Claims of one address that the store works on at once; others wait for their turn. A claim brings back the record that is in
/// its way: without a bound one client's duplicates keep the store's connection busy for longer than a call may take, and then
/// nobody's calls get through.
pub(super) const CLAIMS_MAX: usize = 32;

impl Default for AddressShare {
    fn default() -> AddressShare {
        let (in_flight, waiters) = (Arc::default(), Arc::default());
        let (heavy, claims) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(CLAIMS_MAX)));
        AddressShare { in_flight, waiters, bytes: AtomicUsize::new(0), heavy, claims }
    }
}

impl AddressShare {
    /// Waits for a turn to claim, which lasts until it is dropped.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.claims.clone().acquire_owned().await.ok()
    }

    /// Whether the address holds nothing.
    pub fn is_idle(&self) -> bool {
        let none = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) == 0;
        none(&self.in_flight) && none(&self.waiters) && self.bytes.load(Ordering::Relaxed) == 0
    }

    /// Adds `bytes` to what the address holds; `false`, with nothing added, where that would exceed `limit`.
    pub(super) fn grow(&self, bytes: usize, limit: usize) -> bool {
        let grown = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= limit);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }
}
