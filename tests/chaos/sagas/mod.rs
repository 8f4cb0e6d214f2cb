//! Random histories of sagas: customers order, services and gateways fail, an operator decides. In
//! the end every saga is completed with each action once, or failed with each executed action
//! undone once.
//!
//! By default each store gets [`HISTORIES`] histories. To run more, with another seed:
//!
//! ```sh
//! ONCEWARD_CHAOS_SAGAS=1000 ONCEWARD_CHAOS_SEED=7 cargo test --locked --test chaos sagas -- --nocapture
//! ```
//!
//! `ONCEWARD_CHAOS_RUN=2` repeats the third run of that seed alone.

mod checker;
mod customers;
pub mod fleet;
mod naive;
mod operator;
mod plan;
mod run;
mod services;
mod unmasked;

use fleet::Over;
use run::Tally;

use crate::{asked_for, seed};

/// The histories of a run.
const HISTORIES: usize = 120;

fn survive(over: Over) {
    let histories = asked_for("ONCEWARD_CHAOS_SAGAS").unwrap_or(HISTORIES as u64) as usize;
    if let Some(number) = asked_for("ONCEWARD_CHAOS_RUN") {
        run::run(over, number as usize, seed());
        return;
    }
    let mut tally = Tally::new();
    for number in 0..histories.div_ceil(HISTORIES) {
        for (what, times) in run::run(over, number, seed()) {
            *tally.entry(what).or_default() += times;
        }
    }
    assert!(tally.values().all(|times| *times > 0), "something never happened: {tally:?}");
}

#[test]
fn sagas_over_a_file_end_whole_or_undone_whatever_happens() {
    survive(Over::File);
}

#[test]
fn sagas_over_redis_end_whole_or_undone_whatever_happens() {
    survive(Over::Redis);
}
