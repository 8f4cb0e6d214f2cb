//! Runs many seeds, on all processors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::flaw::Flaw;
use super::{Report, simulate};

/// The result of many seeds.
#[derive(Default)]
pub struct Found {
    /// The lowest seed with a violation. Seeds above it may not have run.
    pub broken: Option<Report>,
    /// The number of seeds that ran.
    pub seeds: u64,
    /// The number of times that each thing happened in them.
    pub tally: BTreeMap<&'static str, u64>,
}

impl Found {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        for (what, times) in &report.tally {
            *self.tally.entry(what).or_default() += times;
        }
        let is_lowest = self.broken.as_ref().is_none_or(|broken| report.seed < broken.seed);
        if report.violation.is_some() && is_lowest {
            self.broken = Some(report);
        }
    }
}

/// Runs seeds until one has a violation. `progress` gets the number of finished seeds after each.
pub fn search(seeds: Range<u64>, flaw: Option<Flaw>, progress: impl Fn(u64) + Sync) -> Found {
    let (next, end) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let found = Mutex::new(Found::default());
    let run = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return;
            }
            let report = simulate(seed, flaw);
            if report.violation.is_some() {
                end.fetch_min(seed, Ordering::Relaxed);
            }
            let ran = {
                let mut found = found.lock().unwrap();
                found.add(report);
                found.seeds
            };
            progress(ran);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(run);
        }
    });
    found.into_inner().unwrap()
}
