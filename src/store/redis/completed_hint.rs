//! Operations that this process has seen completed. A claim that comes over one of them is a duplicate, and begins with reading the
//! record: that costs the server a third of what the script does, and takes no event along that isn't told.
//!
//! Danger: it is a guess. Nothing is decided by it but what is asked first; whatever is found that is no completed record is
//! left to the script.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::key::Slot;

/// Operations that are remembered, half a megabyte: of two that share a place, the later one.
const PLACES: usize = 1 << 16;

/// Slots by a part of their hash.
pub(super) struct CompletedHint(Box<[AtomicU64]>);

impl Default for CompletedHint {
    fn default() -> CompletedHint {
        CompletedHint((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl CompletedHint {
    /// It was seen completed.
    pub(super) fn record(&self, slot: &Slot) {
        let (place, mark) = self.place(slot);
        if let Some(place) = place {
            place.store(mark, Ordering::Relaxed);
        }
    }

    /// Whether it probably was.
    pub(super) fn is_likely(&self, slot: &Slot) -> bool {
        let (place, mark) = self.place(slot);
        place.is_some_and(|place| place.load(Ordering::Relaxed) == mark)
    }

    /// Two different parts of the hash: where it is remembered, and what is remembered of it.
    fn place(&self, slot: &Slot) -> (Option<&AtomicU64>, u64) {
        let hash = slot.hash();
        let number =
            |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (mark, rest) = hash.split_at(8);
        (self.0.get(number(&rest[..8]) as usize % PLACES), number(mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{SLOT_BYTES, Space};

    #[test]
    fn who_comes_later_takes_the_place_and_nobody_is_taken_for_another() {
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
