//! The memory that buffered bodies may take, all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

use super::share::AddressShare;

/// Room for bodies, in bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    room: Arc<Room>,
    limit: usize,
    /// How much one client address may hold, and which one takes from this budget.
    address_limit: usize,
    address: Option<Arc<AddressShare>>,
}

#[derive(Debug)]
struct Room {
    used: AtomicUsize,
    gauge: Gauge,
}

/// Room taken from a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Hold {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes, of which one client address may hold `address_limit`.
    pub fn new(limit: usize, address_limit: usize, gauge: Gauge) -> Budget {
        Budget {
            room: Arc::new(Room { used: AtomicUsize::new(0), gauge }),
            limit,
            address_limit,
            address: None,
        }
    }

    /// The same with another limit: what is held counts.
    pub(super) fn limited_to(&self, limit: usize, address_limit: usize) -> Budget {
        Budget { room: self.room.clone(), limit, address_limit, address: None }
    }

    /// The same budget as one client address takes from it; `None`: as somebody without an address does.
    pub fn of_address(&self, address: Option<&Arc<AddressShare>>) -> Budget {
        Budget { address: address.cloned(), ..self.clone() }
    }

    /// The same budget without its last quarter, which is left for protected requests.
    pub(super) fn of_passing(&self) -> Budget {
        Budget { limit: self.limit - self.limit / 4, ..self.clone() }
    }

    /// Whether there is no room left, for this address or at all.
    pub fn is_exhausted(&self) -> bool {
        let address =
            self.address.as_ref().map_or(0, |address| address.bytes.load(Ordering::Relaxed));
        self.room.used.load(Ordering::Relaxed) >= self.limit || address >= self.address_limit
    }

    /// Takes room; `false`, with nothing taken, where there is none. Whoever takes it gives it back.
    fn take(&self, bytes: usize) -> bool {
        if let Some(address) = &self.address
            && !address.grow(bytes, self.address_limit)
        {
            return false;
        }
        let grown = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        let taken =
            self.room.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok();
        if taken {
            self.room.gauge.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        } else if let Some(address) = &self.address {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Takes room even where there is none; others then wait for it. Whoever takes it gives it back.
    pub fn overdraw(&self, bytes: usize) {
        if let Some(address) = &self.address {
            address.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.room.used.fetch_add(bytes, Ordering::Relaxed);
        self.room.gauge.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Gives back room that was taken.
    pub fn give_back(&self, bytes: usize) {
        if let Some(address) = &self.address {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.room.used.fetch_sub(bytes, Ordering::Relaxed);
        self.room.gauge.dec_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// An empty hold, to grow as bytes come in.
    pub fn hold(&self) -> Hold {
        Hold { budget: self.clone(), bytes: 0 }
    }
}

impl Hold {
    /// Returns an empty hold on the same budget, for the same address.
    pub fn beside(&self) -> Hold {
        self.budget.hold()
    }

    /// Takes more room; `false`, with nothing taken, where there is none.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Takes room even where there is none; others then wait for it.
    pub fn overdraw(&mut self, bytes: usize) {
        self.budget.overdraw(bytes);
        self.bytes += bytes;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.bytes);
        }
    }
}
