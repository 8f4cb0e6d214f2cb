//! The buffer of observations: they wait here until they are exported in batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::event::{Difference, ObservationKind};
use crate::gate::trace::TRACE_DIGITS;
use crate::key::{Hashing, Slot, TenantId};

/// Most pending observations: a fraction of a second of a retry storm, 2 MB; 40 MB, if each is a
/// refusal with the largest number of differences. An export in progress may hold as many again.
/// Further observations are lost.
const PENDING_MAX: usize = 8192;

/// Observations in one batch, usually 130 KB: a larger batch would delay the store's other calls.
pub(in crate::gate) const BATCH: usize = 1024;

/// One observation as the request path records it. It allocates less than an
/// [`Observation`](crate::event::Observation), which has five texts.
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
    /// Adds an observation. Returns `false`, with nothing added, where the buffer is full.
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
        // Duplicates come in bursts, and growing the new buffer step by step would cost as much as
        // filling it.
        let capacity = if pending.is_empty() { 0 } else { BATCH };
        std::mem::replace(&mut *pending, Vec::with_capacity(capacity))
    }

    fn pending(&self) -> MutexGuard<'_, Vec<PendingObservation>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
