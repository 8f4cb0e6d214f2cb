//! Chaos tests with real processes. Two gateways share a store, in front of an upstream that loses
//! answers. Clients retry until they have an answer, and a seed chooses the faults. The checker
//! then reads all observations. It fails on a second execution, on an answer that changed or was
//! lost, and on an uncertain outcome without a reason. A receiver refuses events and breaks off. At
//! the end it has every event of every change, in order, or the event is a dead letter.
//!
//! By default each of three stores gets a third of 2,000 key histories. To run more, with another
//! seed:
//!
//! ```sh
//! ONCEWARD_CHAOS_HISTORIES=50000 ONCEWARD_CHAOS_SEED=7 cargo test --locked --test chaos -- --nocapture
//! ```
//!
//! A run that fails prints its store, its number and the seed. `ONCEWARD_CHAOS_RUN=5` repeats run 5
//! alone, and `ONCEWARD_CHAOS_LOG=onceward=debug` makes the gateways log more. The seed chooses the
//! times of clients, the acts of the upstream and the times of faults; their timing on the machine
//! still differs between runs.
//!
//! [`sagas`] has histories of sagas, and [`resources`] of writes on resources, with numbers of
//! their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, unused_imports)]
#[path = "../it/harness/mod.rs"]
mod harness;

mod checker;
mod client;
mod collected;
mod deliveries;
mod dice;
mod emptied;
mod faultproxy;
mod faults;
mod files;
mod naive;
mod receiver;
mod resources;
mod sagas;
mod stores;
mod suite;
mod unmasked;
mod upstream;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use stores::Kind;
use suite::{KEYS, World};

/// The number of gateways that share a store.
const GATEWAYS: usize = 2;

/// The gateways' lease: short, so that faults outlast it.
const LEASE: Duration = Duration::from_secs(2);

/// Time since the tests began.
#[allow(clippy::disallowed_methods)]
fn now() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Sleeps this number of ms.
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Reads a number from the environment.
fn asked_for(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The seed of all runs.
fn seed() -> u64 {
    asked_for("ONCEWARD_CHAOS_SEED").unwrap_or(1)
}

fn survive(kind: Kind) {
    const STORES: usize = 3;
    let histories = asked_for("ONCEWARD_CHAOS_HISTORIES").unwrap_or(2000) as usize;
    let runs = histories.div_ceil(KEYS * STORES);
    let world = World::start(kind);
    match asked_for("ONCEWARD_CHAOS_RUN") {
        Some(run) => {
            world.run(run as usize, seed());
            world.check_events(true);
        }
        None => {
            (0..runs).for_each(|run| world.run(run, seed()));
            world.check_events(true);
            // By then every kind of fault, and every way to lose a primary, has happened.
            if runs >= 7 {
                world.insist_on_bites();
            }
        }
    }
}

/// One hang and empty restart for every this many requested histories.
const HISTORIES_PER_EMPTYING: u64 = 500;

#[test]
fn a_store_that_hangs_under_duplicates_and_comes_back_empty_takes_nothing_from_who_runs() {
    let histories = asked_for("ONCEWARD_CHAOS_HISTORIES").unwrap_or(2000);
    let world = World::start(Kind::Emptied);
    match asked_for("ONCEWARD_CHAOS_RUN") {
        Some(round) => world.run_emptied(round as usize, seed()),
        None => (0..histories.div_ceil(HISTORIES_PER_EMPTYING))
            .for_each(|round| world.run_emptied(round as usize, seed())),
    }
    let bites = world.bites.all();
    eprintln!("emptied: {bites:#?}");
    assert!(!bites.is_empty() && bites.values().all(|times| *times > 0), "never bit: {bites:?}");
}

#[test]
fn one_redis_keeps_its_promises_through_everything() {
    survive(Kind::Standalone);
}

#[test]
fn a_primary_with_sentinels_keeps_its_promises_through_everything() {
    survive(Kind::Sentinels);
}

#[test]
fn a_cluster_keeps_its_promises_through_everything() {
    survive(Kind::Cluster);
}
