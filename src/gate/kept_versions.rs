//! Remembers which versions of resources the store keeps.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use crate::key::Slot;

/// Versions of which this process remembers that the store has them.
const REMEMBERED_MAX: usize = 4096;

/// The versions of which this process knows that the store keeps them. Otherwise each read of a
/// resource would read the store. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct KeptVersions(Arc<Mutex<HashMap<(Slot, Bytes), Instant>>>);

impl KeptVersions {
    /// Returns whether the store keeps a version at this time.
    pub fn has(&self, version: &(Slot, Bytes), now: Instant) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(version).is_some_and(|until| now < *until)
    }

    pub fn remember(&self, version: (Slot, Bytes), now: Instant, until: Instant) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= REMEMBERED_MAX {
            kept.retain(|_, until| now < *until);
        }
        // After a burst of other resources, the oldest knowledge is not worth a search.
        if kept.len() >= REMEMBERED_MAX {
            kept.clear();
        }
        kept.insert(version, until);
    }
}
