//! Explores the correct protocol completely.

use crate::explore::{THREE, TWO, TWO_AND_STRANGER, WITH_STRANGER, holds};
use crate::protocol::Bounds;
use crate::rules::OnUncertain::{self, Forward, Hold, Probe};
use crate::state::{Budget, Who};

/// All events of the model: a crash, an operator's decision, renewals, release statuses, unlimited
/// slowness, and this number of store commands without an answer.
fn all(callers: &'static [Who], on_uncertain: OnUncertain, late: u8) -> Bounds {
    let budget = Budget { late, crashes: 1, operator: 1 };
    Bounds { callers, on_uncertain, budget, renews: true, declines: true }
}

/// The number of store commands without an answer with three requests: 0, or the value from the
/// environment.
fn late_of_three() -> u8 {
    let asked = std::env::var("ONCEWARD_MODEL_LATE").ok();
    asked.map_or(0, |late| late.parse().expect("ONCEWARD_MODEL_LATE is a number"))
}

#[test]
fn two_requests_that_hold() {
    holds(all(TWO, Hold, 2));
}

#[test]
fn two_requests_that_probe() {
    holds(all(TWO, Probe, 2));
}

#[test]
fn two_requests_that_forward() {
    holds(all(TWO, Forward, 2));
}

#[test]
fn a_request_and_a_stranger() {
    holds(all(WITH_STRANGER, Hold, 2));
}

#[test]
fn three_requests_that_hold() {
    holds(all(THREE, Hold, late_of_three()));
}

#[test]
fn three_requests_that_probe() {
    holds(all(THREE, Probe, late_of_three()));
}

#[test]
fn three_requests_that_forward() {
    holds(all(THREE, Forward, late_of_three()));
}

#[test]
fn two_requests_that_hold_and_a_stranger() {
    holds(all(TWO_AND_STRANGER, Hold, late_of_three()));
}

#[test]
fn two_requests_that_probe_and_a_stranger() {
    holds(all(TWO_AND_STRANGER, Probe, late_of_three()));
}

#[test]
fn two_requests_that_forward_and_a_stranger() {
    holds(all(TWO_AND_STRANGER, Forward, late_of_three()));
}
