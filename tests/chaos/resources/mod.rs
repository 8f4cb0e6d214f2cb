//! Random histories of writes on resources: hundreds of writers share 20 resources, while the
//! upstream loses and delays writes, and gateways, connections and stores fail. In the end each
//! executed write replaced exactly the version that its condition names.
//!
//! By default each store gets one run. To run more, with another seed:
//!
//! ```sh
//! ONCEWARD_CHAOS_RESOURCES=20 ONCEWARD_CHAOS_SEED=7 cargo test --locked --test chaos resources -- --nocapture
//! ```
//!
//! `ONCEWARD_CHAOS_RUN=2` repeats the third run of that seed alone.

mod checker;
mod fleet;
mod kinds;
mod naive;
mod run;
mod unmasked;
mod writers;

use fleet::Over;
use run::Tally;

use crate::{asked_for, seed};

fn survive(over: Over) {
    if let Some(number) = asked_for("ONCEWARD_CHAOS_RUN") {
        run::run(over, number as usize, seed());
        return;
    }
    let mut tally = Tally::new();
    for number in 0..asked_for("ONCEWARD_CHAOS_RESOURCES").unwrap_or(1) {
        for (what, times) in run::run(over, number as usize, seed()) {
            *tally.entry(what).or_default() += times;
        }
    }
    assert!(tally.values().all(|times| *times > 0), "something never happened: {tally:?}");
}

#[test]
fn no_update_is_lost_over_a_file_whatever_happens() {
    survive(Over::File);
}

#[test]
fn no_update_is_lost_over_redis_whatever_happens() {
    survive(Over::Redis);
}
