//! The sinks that have as many events as they may have. Routes that publish to them refuse new
//! operations: an operation that begins must be able to write its events.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::engine::PublishRules;

/// The names of full sinks. Cheap to clone; all clones share the names.
#[derive(Debug, Clone, Default)]
pub struct FullSinks(Arc<RwLock<BTreeSet<String>>>);

impl FullSinks {
    /// Replaces the names. Returns the names that are new.
    pub fn replace(&self, names: BTreeSet<String>) -> BTreeSet<String> {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let added = names.difference(&known).cloned().collect();
        *known = names;
        added
    }

    /// Returns whether a sink is full.
    pub fn contains(&self, sink: &str) -> bool {
        self.read().contains(sink)
    }

    /// Returns whether a sink of these rules is full.
    pub(super) fn has_any_of(&self, rules: &PublishRules) -> bool {
        let full = self.read();
        !full.is_empty()
            && rules.rules.iter().flat_map(|rule| &rule.to).any(|sink| full.contains(sink))
    }
    fn read(&self) -> RwLockReadGuard<'_, BTreeSet<String>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}
