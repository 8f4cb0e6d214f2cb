//! The sinks that have as many events as they may have. Routes that publish to them refuse new
//! operations: an operation that begins must be able to write its events.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::engine::PublishRules;

/// The names of full sinks. Cheap to clone; all clones share the names.
#[derive(Debug, Clone)]
pub struct FullSinks(Arc<watch::Sender<BTreeSet<String>>>);

impl Default for FullSinks {
    fn default() -> FullSinks {
        FullSinks(Arc::new(watch::Sender::new(BTreeSet::new())))
    }
}

impl FullSinks {
    /// Replaces the names. Returns the names that are new.
    pub fn replace(&self, names: BTreeSet<String>) -> BTreeSet<String> {
        let mut added = BTreeSet::new();
        self.0.send_if_modified(|known| {
            added = names.difference(known).cloned().collect();
            let differs = *known != names;
            *known = names;
            differs
        });
        added
    }

    /// Returns whether a sink is full.
    pub fn contains(&self, sink: &str) -> bool {
        self.0.borrow().contains(sink)
    }

    /// Returns whether a sink of these rules is full.
    pub(super) fn has_any_of(&self, rules: &PublishRules) -> bool {
        let full = self.0.borrow();
        !full.is_empty()
            && rules.rules.iter().flat_map(|rule| &rule.to).any(|sink| full.contains(sink))
    }
}
