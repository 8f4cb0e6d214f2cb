//! Random numbers for fences, first versions, trace ids and jitter, from one source.
//!
//! Fences must be distinct, not secret. A process starts a counter at a random number and applies a
//! bijection to it. So no two values of a process are equal, and two processes collide with a
//! probability of 2^-64 per pair of values.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A source of distinct 64-bit numbers.
#[derive(Debug)]
pub struct Entropy {
    counter: AtomicU64,
    /// A random number of the process.
    process: u64,
}

/// The operating system returned no random number.
#[derive(Debug, thiserror::Error)]
#[error("the operating system returned no random numbers: {0}")]
pub struct EntropyError(getrandom::Error);

impl Entropy {
    /// Creates a source with a seed from the operating system.
    pub fn from_system() -> Result<Entropy, EntropyError> {
        let seed = || getrandom::u64().map_err(EntropyError);
        Ok(Entropy { process: seed()?, ..Entropy::from_seed(seed()?) })
    }

    /// Creates a source with a given seed, for repeatable tests.
    pub fn from_seed(seed: u64) -> Entropy {
        Entropy { counter: AtomicU64::new(seed), process: seed }
    }

    /// Returns 16 random bytes.
    pub fn salt(&self) -> [u8; 16] {
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&self.next().to_be_bytes());
        salt[8..].copy_from_slice(&self.next().to_be_bytes());
        salt
    }

    /// Returns 128 bits. Two processes collide with a probability of 2^-128 per pair of values.
    pub fn next_wide(&self) -> [u64; 2] {
        [self.process, self.next()]
    }

    /// Returns the next number: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    /// generators, 2014).
    pub fn next(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.counter.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a random duration between 0.5 and 1.5 times `around`.
    pub fn jitter(&self, around: Duration) -> Duration {
        let percent = 50 + (self.next() % 101) as u32;
        around * percent / 100
    }
}
