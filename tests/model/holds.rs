//! The right protocol, explored to the end.

use crate::explore::{THREE, TWO, TWO_AND_STRANGER, WITH_STRANGER, holds};
use crate::protocol::Bounds;
use crate::rules::OnUncertain::{self, Forward, Hold, Probe};
use crate::state::{Budget, Who};

/// All kinds of faults: so many store commands without an answer, a crash, an operator's decision, slowness without end.
fn all(callers: &'static [Who], on_uncertain: OnUncertain, late: u8) -> Bounds {
    let budget = Budget { late, crashes: 1, operator: 1 };
    Bounds { callers, on_uncertain, budget, renews: true, declines: true }
}

/// Whether to explore what takes too long for every change: `ONCEWARD_MODEL=full`.
fn is_full() -> bool {
    std::env::var("ONCEWARD_MODEL").is_ok_and(|bounds| bounds == "full")
}

#[test]
fn two_requests_hold() {
    holds(all(TWO, Hold, 2));
}

#[test]
fn two_requests_probe() {
    holds(all(TWO, Probe, 2));
}

#[test]
fn two_requests_forward() {
    holds(all(TWO, Forward, 2));
}

#[test]
fn a_request_and_a_strangers_hold() {
    holds(all(WITH_STRANGER, Hold, 2));
}

#[test]
fn three_requests_hold() {
    holds(all(THREE, Hold, 0));
}
#[test]
fn three_requests_probe() {
    holds(all(THREE, Probe, 0));
}
#[test]
fn three_requests_forward() {
    holds(all(THREE, Forward, 0));
}
#[test]
fn three_requests_str() {
    if is_full() {}
    holds(all(TWO_AND_STRANGER, Forward, 0));
}
