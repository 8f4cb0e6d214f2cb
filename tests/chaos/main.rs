//! The proof with real processes: two gateways on one store, before an upstream that loses answers; clients who retry
//! until they know; and faults, thrown by a seed. Afterwards the checker reads what everybody saw, and fails on a second
//! execution, on an answer that changed or was lost, and on doubt without a reason.
//!
//! By default each of three stores gets a third of 2,000 key histories. More, and other ones:
//!
//! ```sh
//! ONCEWARD_CHAOS_HISTORIES=50000 ONCEWARD_CHAOS_SEED=7 cargo test --locked --test chaos -- --nocapture
//! ```
//!
//! A run that fails names its store, its number and the seed. `ONCEWARD_CHAOS_RUN=5` repeats run 5 alone, and
//! `ONCEWARD_CHAOS_LOG=onceward=debug` has the gateways say more. The seed decides who comes when, what the upstream does
//! and which faults begin when; what the machine makes of it differs from time to time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, unused_imports)]
#[path = "../it/harness/mod.rs"]
mod harness;

mod checker;
mod client;
mod dice;
mod emptied;
mod faultproxy;
mod faults;
mod naive;
mod stores;
mod suite;
mod unmasked;
mod upstream;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use stores::Kind;
use suite::{KEYS, World};

/// Gateways that share a store.
const GATEWAYS: usize = 2;

/// The gateways' lease: short, so that faults outlast it.
const LEASE: Duration = Duration::from_secs(2);

/// Time since the tests began.
#[allow(clippy::disallowed_methods)]
fn now() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Lets so many ms pass.
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// A number from the environment.
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
        Some(run) => world.run(run as usize, seed()),
        None => {
            (0..runs).for_each(|run| world.run(run, seed()));
            // By then each kind of fault, and each way to lose a primary, has had its turn.
            if runs >= 7 {
                world.insist_on_bites();
            }
        }
    }
}

/// A hang and an empty restart for every so many histories that are asked for.
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
