//! The memory budget of all buffered bodies together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

use super::share::AddressShare;

/// The memory for buffered bodies, in bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    usage: Arc<BudgetUsage>,
    limit: usize,
    /// Maximum bytes of one client address.
    address_limit: usize,
    /// The client address that takes from this budget.
    address: Option<Arc<AddressShare>>,
}

#[derive(Debug)]
struct BudgetUsage {
    used: AtomicUsize,
    gauge: Gauge,
}

/// Memory taken from a [`Budget`]; dropping it gives the memory back.
#[derive(Debug)]
pub struct Hold {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// Creates a budget of `limit` bytes, with at most `address_limit` for one client address.
    pub fn new(limit: usize, address_limit: usize, gauge: Gauge) -> Budget {
        Budget {
            usage: Arc::new(BudgetUsage { used: AtomicUsize::new(0), gauge }),
            limit,
            address_limit,
            address: None,
        }
    }

    /// Returns the same budget under other limits. Memory that is already held still counts.
    pub(super) fn limited_to(&self, limit: usize, address_limit: usize) -> Budget {
        Budget { usage: self.usage.clone(), limit, address_limit, address: None }
    }

    /// Returns the budget for one client address. `None` means a request without an address.
    pub fn of_address(&self, address: Option<&Arc<AddressShare>>) -> Budget {
        Budget { address: address.cloned(), ..self.clone() }
    }

    /// Returns the budget without its last quarter, which is left for protected requests.
    pub(super) fn of_passing(&self) -> Budget {
        Budget { limit: self.limit - self.limit / 4, ..self.clone() }
    }

    /// Returns whether no memory is left, for this address or for all addresses together.
    pub fn is_exhausted(&self) -> bool {
        let address =
            self.address.as_ref().map_or(0, |address| address.bytes.load(Ordering::Relaxed));
        self.usage.used.load(Ordering::Relaxed) >= self.limit || address >= self.address_limit
    }

    /// Takes memory, which the caller must give back. If too little is left, takes nothing and
    /// returns `false`.
    fn take(&self, bytes: usize) -> bool {
        if let Some(address) = &self.address
            && !address.grow(bytes, self.address_limit)
        {
            return false;
        }
        let grown = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        let taken =
            self.usage.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok();
        if taken {
            self.usage.gauge.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        } else if let Some(address) = &self.address {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Takes memory, even if none is left. Other requests are then refused until memory is free
    /// again. The caller must give the memory back.
    pub fn overdraw(&self, bytes: usize) {
        if let Some(address) = &self.address {
            address.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.usage.used.fetch_add(bytes, Ordering::Relaxed);
        self.usage.gauge.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Gives back memory that was taken.
    pub fn give_back(&self, bytes: usize) {
        if let Some(address) = &self.address {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.usage.used.fetch_sub(bytes, Ordering::Relaxed);
        self.usage.gauge.dec_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Creates an empty hold, which grows as bytes arrive.
    pub fn hold(&self) -> Hold {
        Hold { budget: self.clone(), bytes: 0 }
    }
}

impl Hold {
    /// Returns an empty hold on the same budget, for the same address.
    pub fn beside(&self) -> Hold {
        self.budget.hold()
    }

    /// Takes more memory. If too little is left, takes nothing and returns `false`.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Takes more memory, even if none is left. Other requests are then refused until memory is
    /// free again.
    pub fn overdraw(&mut self, bytes: usize) {
        self.budget.overdraw(bytes);
        self.bytes += bytes;
    }

    /// Takes more memory, even if none is left, or gives some back, so that this many bytes are
    /// held.
    pub fn resize(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.overdraw(more),
            None => {
                self.budget.give_back(self.bytes - bytes);
                self.bytes = bytes;
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.bytes);
        }
    }
}
