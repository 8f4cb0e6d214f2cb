//! Seeded simulations of the whole gateway: thousands of runs, each reproducible from its seed.
//!
//! `cargo run --profile dist --example simulate -- --seeds 1000000` runs more of them, and `--seed
//! N` prints one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod flaws;
mod simulation;

use std::collections::BTreeSet;

use simulation::{search, simulate};

/// The number of seeds that two cores run in a minute or two without optimisation.
const STORIES: u64 = 10_000;

#[test]
fn ten_thousand_stories_keep_the_promises() {
    let found = search(0..STORIES, None, |_| {});
    if let Some(broken) = found.broken {
        panic!("{}", broken.story());
    }
    assert_eq!(found.seeds, STORIES);
}

#[test]
fn a_seed_gives_the_same_run_every_time_and_another_seed_gives_another() {
    let digests: Vec<u64> = (0..40).map(|seed| simulate(seed, None).digest()).collect();
    let again: Vec<u64> = (0..40).map(|seed| simulate(seed, None).digest()).collect();
    assert_eq!(digests, again);
    assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), digests.len());
}

/// Faults, answers and decisions that a run of many seeds must have.
const RARE: &[&str] = &[
    "answer: executed",
    "answer: in-flight",
    "answer: key-reused",
    "answer: not-sent",
    "answer: outbox-full",
    "answer: outcome-uncertain",
    "answer: released",
    "answer: replayed",
    "answer: response-not-stored",
    "answer: store-unavailable",
    "answer: upstream-unreachable",
    "client: leaves",
    "client: loses its gateway",
    "gateway: dies",
    "gateway: is cut off",
    "gateway: is stopped",
    "gateway: its wall clock is set",
    "operator: discards a dead letter",
    "operator: is too early",
    "operator: pauses a sink",
    "operator: releases",
    "operator: requeues a dead letter",
    "operator: resolves",
    "operator: retries",
    "relay: stops in order",
    "sink: 404",
    "sink: 410",
    "sink: 429",
    "sink: 500",
    "sink: buried",
    "sink: can't be reached",
    "sink: delivered",
    "sink: never answers",
    "sink: takes slowly",
    "sink: takes, answers too late",
    "sink: takes, breaks off",
    "store: answer lost",
    "store: carried out late",
    "store: carried out twice",
    "store: gets a lost write again",
    "store: goes back to an earlier state",
    "store: loses a running claim while duplicates ask",
    "store: loses its last writes",
    "store: a marker gives way",
    "store: command lost",
    "store: cut off",
    "store: refuses",
    "store: slow",
    "store: stalls",
    "upstream: 402",
    "upstream: 409",
    "upstream: 429",
    "upstream: 503",
    "upstream: acts late",
    "upstream: acts, 500",
    "upstream: acts, 503",
    "upstream: acts, breaks off",
    "upstream: acts, breaks off in the body",
    "upstream: acts, large answer",
    "upstream: acts, never answers",
    "upstream: breaks off, acts late",
    "upstream: can't be reached",
    "upstream: loses the request",
    "upstream: slow",
    "wire: too late for the rest",
    "wire: too late to send",
];

#[test]
fn every_fault_and_every_answer_occurs() {
    let found = search(0..600, None, |_| {});
    let missing: Vec<_> = RARE.iter().filter(|what| !found.tally.contains_key(**what)).collect();
    assert!(missing.is_empty(), "never occurred: {missing:?}");
}
