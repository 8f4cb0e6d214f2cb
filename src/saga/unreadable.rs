//! Sagas with an ended lease that this gateway can't read: another gateway may have the key, or the
//! version, that it lacks.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::key::Slot;

/// Most sagas that are passed over. One has 41 bytes.
const UNREADABLE_MAX: usize = 4096;
/// How long they are passed over. Then they are tried, and warned of, again.
const PASSED_OVER: Duration = Duration::from_secs(60);

/// The sagas that looks for sagas to take over pass over. Otherwise they would take the places of
/// all others in a look.
pub(super) struct UnreadableSagas {
    slots: HashSet<Slot>,
    since: Instant,
}

impl UnreadableSagas {
    pub fn new() -> UnreadableSagas {
        UnreadableSagas { slots: HashSet::new(), since: Instant::now() }
    }

    /// Returns how many sagas a look has to ask for, to find `wanted` others.
    pub fn beside(&mut self, wanted: usize) -> usize {
        if self.since.elapsed() >= PASSED_OVER {
            self.since = Instant::now();
            if !self.slots.is_empty() {
                tracing::warn!(
                    sagas = self.slots.len(),
                    "sagas without an owner can't be read by this gateway: it lacks their key under \
                     [encryption], or a later version wrote them"
                );
            }
            self.slots.clear();
        }
        wanted + self.slots.len()
    }

    pub fn contains(&self, slot: &Slot) -> bool {
        self.slots.contains(slot)
    }

    /// Adds a saga.
    pub fn add(&mut self, slot: Slot) {
        if self.slots.len() < UNREADABLE_MAX {
            self.slots.insert(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn unreadable_sagas_are_passed_over_for_a_while_and_are_limited() {
        let slot = |n: usize| Slot::from_reference(&format!("op_{n:040x}")).unwrap();
        let mut unreadable = UnreadableSagas::new();
        assert_eq!(unreadable.beside(64), 64);
        unreadable.add(slot(1));
        assert_eq!((unreadable.beside(64), unreadable.contains(&slot(1))), (65, true));
        (0..2 * UNREADABLE_MAX).for_each(|n| unreadable.add(slot(n)));
        assert_eq!(unreadable.beside(64), 64 + UNREADABLE_MAX);
        tokio::time::advance(PASSED_OVER).await;
        assert_eq!((unreadable.beside(64), unreadable.contains(&slot(1))), (64, false));
    }
}
