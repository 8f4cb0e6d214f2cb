//! What one client address holds of the limits that all clients share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Extensions;

/// Counts what one client address holds: requests in flight, and bytes of the common buffers. A request extension, as
/// `Arc<AddressShare>`; requests without it are bound by the common limits only. Whoever accepts connections gives the
/// same share to all connections of an address, and none to a trusted proxy, which carries the requests of many clients.
#[derive(Debug, Default)]
pub struct AddressShare {
    /// Requests in flight.
    pub(super) in_flight: Arc<AtomicUsize>,
    /// Bytes held in the common buffers.
    pub(super) bytes: AtomicUsize,
}

impl AddressShare {
    /// The share of the address that a request came from.
    pub(super) fn of(extensions: &Extensions) -> Option<&Arc<AddressShare>> {
        extensions.get()
    }

    /// Whether the address holds nothing.
    pub fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0 && self.bytes.load(Ordering::Relaxed) == 0
    }

    /// Adds `bytes` to what the address holds; `false`, with nothing added, where that would exceed `limit`.
    pub(super) fn grow(&self, bytes: usize, limit: usize) -> bool {
        let grown = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= limit);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }
}
