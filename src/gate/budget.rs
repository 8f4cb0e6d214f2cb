//! The memory that buffered bodies may take, all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// Room for bodies, in bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    room: Arc<Room>,
    limit: usize,
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
    /// A budget of `limit` bytes.
    pub fn new(limit: usize, gauge: Gauge) -> Budget {
        Budget { room: Arc::new(Room { used: AtomicUsize::new(0), gauge }), limit }
    }

    /// The same with another limit: what is held counts.
    pub(super) fn limited_to(&self, limit: usize) -> Budget {
        Budget { room: self.room.clone(), limit }
    }

    /// An empty hold, to grow as bytes come in.
    pub fn hold(&self) -> Hold {
        Hold { budget: self.clone(), bytes: 0 }
    }
}

impl Hold {
    /// Takes more room; `false`, with nothing taken, where there is none.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let Budget { room, limit } = &self.budget;
        let taken = room
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| used.checked_add(bytes).filter(|sum| sum <= limit));
        if taken.is_err() {
            return false;
        }
        self.bytes += bytes;
        room.gauge.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        true
    }
}

impl Hold {
    /// Takes room even where there is none; others then wait for it.
    pub fn overdraw(&mut self, bytes: usize) {
        self.budget.room.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        self.budget.room.gauge.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
            self.budget.room.gauge.dec_by(i64::try_from(self.bytes).unwrap_or(i64::MAX));
        }
    }
}
