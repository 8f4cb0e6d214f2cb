//! Randomness from one seed.

use std::time::Duration;

use onceward::entropy::Entropy;

/// Draws from one seed. All parts of a simulation share the dice, so the order of draws is part of
/// the run.
pub struct Dice(Entropy);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Entropy::from_seed(seed))
    }

    pub fn next(&self) -> u64 {
        self.0.next()
    }

    /// A number below `end`.
    pub fn below(&self, end: usize) -> usize {
        (self.0.next() % end as u64) as usize
    }

    /// Returns true this often in a thousand.
    pub fn chance(&self, permille: usize) -> bool {
        permille > 0 && self.below(1000) < permille
    }

    pub fn pick<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A time of `from` to `to`, in ms.
    pub fn span(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.0.next() % (to.saturating_sub(from) + 1))
    }
}
