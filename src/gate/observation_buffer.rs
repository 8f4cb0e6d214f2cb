//! The buffer in which observations wait until they are exported in batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::event::{Difference, ObservationKind};
use crate::gate::trace::TRACE_DIGITS;
use crate::key::{Hashing, Slot, TenantId};

/// Maximum number of pending observations; further observations are lost. A retry storm fills the
/// buffer in a fraction of a second. The observations take 2 MB, or 40 MB if each is a refusal with
/// the largest number of differences. An export in progress may hold as many again.
const PENDING_MAX: usize = 8192;

/// Maximum observations in one batch, which usually has 130 KB. A larger batch would delay other
/// calls of the store.
pub(in crate::gate) const BATCH: usize = 1024;

/// One observation as a request records it. It allocates less memory than an
/// [`Observation`](crate::event::Observation), which has five strings.
pub(in crate::gate) struct PendingObservation {
    pub kind: ObservationKind,
    pub at_ms: u64,
    pub slot: Option<Slot>,
    pub route: Arc<str>,
    pub tenant: Option<TenantId>,
    /// The secrets for the tenant's mark. They are kept here because a reload may rotate them
    /// before the export.
    pub hashing: Hashing,
    pub status: Option<u16>,
    pub waited: Option<Duration>,
    pub problem: Option<&'static str>,
    pub differing: Vec<Difference>,
    pub trace: Option<[u8; TRACE_DIGITS]>,
}

/// Observations waiting to be exported.
#[derive(Default)]
pub(in crate::gate) struct ObservationBuffer {
    pending: Mutex<Vec<PendingObservation>>,
    /// Notified when a whole batch is pending.
    pub batch_is_full: Notify,
}

impl ObservationBuffer {
    /// Adds an observation. If the buffer is full, adds nothing and returns `false`.
    pub fn add(&self, observation: PendingObservation) -> bool {
        let mut pending = self.pending();
        if pending.len() >= PENDING_MAX {
            return false;
        }
        pending.push(observation);
        if pending.len() == BATCH {
            drop(pending);
            self.batch_is_full.notify_one();
        }
        true
    }

    /// Takes all pending observations, leaving the buffer empty.
    pub fn take(&self) -> Vec<PendingObservation> {
        let mut pending = self.pending();
        // Duplicates come in bursts. Growing the new buffer step by step would cost as much as
        // filling it.
        let capacity = if pending.is_empty() { 0 } else { BATCH };
        std::mem::replace(&mut *pending, Vec::with_capacity(capacity))
    }

    fn pending(&self) -> MutexGuard<'_, Vec<PendingObservation>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
