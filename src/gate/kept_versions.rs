//! Remembers the newest version of each resource that the store keeps.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::engine::EntityTag;
use crate::key::Slot;

/// Most resources that are remembered.
const REMEMBERED_MAX: usize = 4096;

/// The version of each resource that was written to the store last. Without this memory, each read
/// of a resource would read the store. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct KeptVersions(Arc<Mutex<HashMap<Slot, (EntityTag, Instant)>>>);

impl KeptVersions {
    /// Returns whether this is the version that was written last, and the store still keeps it.
    pub fn has(&self, slot: &Slot, tag: &EntityTag) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(slot).is_some_and(|(last, until)| last == tag && Instant::now() < *until)
    }

    /// Remembers the version that was written, until its time is over.
    pub fn remember(&self, slot: Slot, tag: EntityTag, until: Instant) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What is forgotten is written once more.
        if kept.len() >= REMEMBERED_MAX {
            kept.clear();
        }
        kept.insert(slot, (tag, until));
    }
}
