//! A hint about which operations are completed. A claim of such an operation is a duplicate, so the
//! gateway reads the record first. A read costs the server a third of the claim script, and needs
//! no event.
//!
//! Danger: the hint may be wrong. It decides only which command is sent first. If the read finds no
//! completed record, the claim script decides.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::key::Slot;

/// Number of operations in the table, which takes half a megabyte. If two operations have the same
/// index, the later one replaces the earlier one.
const ENTRIES: usize = 1 << 16;

/// A table of slots, by a part of their hash.
pub(super) struct CompletedHint(Box<[AtomicU64]>);

impl Default for CompletedHint {
    fn default() -> CompletedHint {
        CompletedHint((0..ENTRIES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl CompletedHint {
    /// Records that the slot's operation is completed.
    pub(super) fn record(&self, slot: &Slot) {
        let (entry, mark) = self.entry(slot);
        if let Some(entry) = entry {
            entry.store(mark, Ordering::Relaxed);
        }
    }

    /// Whether the slot's operation is probably completed.
    pub(super) fn is_likely(&self, slot: &Slot) -> bool {
        let (entry, mark) = self.entry(slot);
        entry.is_some_and(|entry| entry.load(Ordering::Relaxed) == mark)
    }

    /// Splits the hash into two parts. Returns the entry at the index that one part gives, and the
    /// other part as the mark for that entry.
    fn entry(&self, slot: &Slot) -> (Option<&AtomicU64>, u64) {
        let hash = slot.hash();
        let number =
            |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (mark, rest) = hash.split_at(8);
        (self.0.get(number(&rest[..8]) as usize % ENTRIES), number(mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{SLOT_BYTES, Space};

    #[test]
    fn a_later_slot_takes_the_entry_and_no_slot_is_mistaken_for_another() {
        let slot = |mark: u8, place: u8| {
            let mut hash = [0; SLOT_BYTES];
            (hash[7], hash[15]) = (mark, place);
            Slot::from_hash(Space::Enforced, hash)
        };
        let hint = CompletedHint::default();
        let (first, beside, same_place) = (slot(1, 1), slot(1, 2), slot(2, 1));
        assert!(!hint.is_likely(&first));
        hint.record(&first);
        assert_eq!(
            [&first, &beside, &same_place].map(|slot| hint.is_likely(slot)),
            [true, false, false]
        );
        hint.record(&beside);
        hint.record(&same_place);
        assert_eq!(
            [&first, &beside, &same_place].map(|slot| hint.is_likely(slot)),
            [false, true, true]
        );
    }
}
