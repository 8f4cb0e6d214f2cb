//! The share of one client address in the limits that all clients share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts the active requests, the waiting duplicates and the buffered bytes of one client address.
/// A request has its share as the extension `Arc<AddressShare>`. Only the common limits apply to a
/// request without a share. The listener gives the same share to all connections of an address. A
/// trusted proxy gets no share, because it forwards the requests of many clients.
#[derive(Debug)]
pub struct AddressShare {
    /// Requests in flight.
    pub(super) in_flight: Arc<AtomicUsize>,
    /// Waiting duplicates.
    pub(super) waiters: Arc<AtomicUsize>,
    /// Bytes held from the common budget.
    pub(super) bytes: AtomicUsize,
    /// The turn for heavy work.
    pub(super) heavy: Arc<Semaphore>,
    /// Turns for claims.
    claims: Arc<Semaphore>,
}

/// Maximum claims of one address that the store processes at the same time; further claims wait for
/// their turn. The answer to a claim contains the record that blocks it. Without this limit the
/// duplicates of one client could keep the store's connection busy for longer than a call may take,
/// and the calls of every client would time out.
pub(super) const CLAIMS_MAX: usize = 32;

impl Default for AddressShare {
    fn default() -> AddressShare {
        let (in_flight, waiters) = (Arc::default(), Arc::default());
        let (heavy, claims) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(CLAIMS_MAX)));
        AddressShare { in_flight, waiters, bytes: AtomicUsize::new(0), heavy, claims }
    }
}

impl AddressShare {
    /// Waits for a turn to claim. The turn lasts until it is dropped.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.claims.clone().acquire_owned().await.ok()
    }

    /// Returns whether the address has no request, no waiting duplicate and no buffered bytes.
    pub fn is_idle(&self) -> bool {
        let none = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) == 0;
        none(&self.in_flight) && none(&self.waiters) && self.bytes.load(Ordering::Relaxed) == 0
    }

    /// Adds `bytes` to the address's buffered bytes. If the sum would exceed `limit`, adds nothing
    /// and returns `false`.
    pub(super) fn grow(&self, bytes: usize, limit: usize) -> bool {
        let grown = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= limit);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }
}
