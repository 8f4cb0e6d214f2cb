//! Explores correct writes completely.

use super::explore::holds;
use super::protocol::{Bounds, Place};
use super::state::Budget;

/// Nothing fails, except that every process may be slow.
const CALM: Budget = Budget { late: 0, decisions: 0, outages: 0, declines: 0 };

const fn place(operation: u8, gateway: usize) -> Place {
    Place { operation, gateway }
}

/// An attempt of each operation.
const TWO: &[Place] = &[place(0, 0), place(1, 1)];
/// An attempt of each operation on one gateway, and a duplicate of the first one on the other.
const THREE: &[Place] = &[place(0, 0), place(1, 0), place(0, 1)];
/// The same with a second duplicate.
const FOUR: &[Place] = &[place(0, 0), place(1, 0), place(0, 1), place(0, 0)];

/// Duplicates of an uncertain operation are refused until an operator has decided.
pub const HOLD: Bounds = Bounds {
    attempts: THREE,
    forwards: false,
    has_condition: [true, true],
    sweepers: 1,
    budget: Budget { decisions: 1, ..CALM },
};

/// Duplicates of an uncertain operation are sent again.
pub const FORWARD: Bounds = Bounds { forwards: true, ..HOLD };

/// Duplicates of an uncertain operation are sent again, and the writes have no condition.
pub const UNCONDITIONAL: Bounds = Bounds { has_condition: [false, false], budget: CALM, ..FORWARD };

/// A store write has no answer.
pub const LATE: Bounds = Bounds { budget: Budget { late: 1, ..CALM }, ..HOLD };

/// Two store writes have no answer, and there are two sweepers.
pub const LATE_TWICE: Bounds =
    Bounds { attempts: TWO, sweepers: 2, budget: Budget { late: 2, ..CALM }, ..HOLD };

/// All gateways are down for so long that the lock ends.
pub const OUTAGE: Bounds = Bounds { budget: Budget { outages: 1, ..CALM }, ..HOLD };

/// The upstream declines a request.
pub const DECLINE: Bounds = Bounds { budget: Budget { declines: 1, ..CALM }, ..FORWARD };

/// A client retries twice.
pub const AGAIN: Bounds = Bounds { attempts: FOUR, budget: CALM, ..FORWARD };

#[test]
fn writes_that_hold() {
    holds(HOLD);
}

#[test]
fn writes_that_forward() {
    holds(FORWARD);
}

#[test]
fn writes_without_a_condition() {
    holds(UNCONDITIONAL);
}

#[test]
fn a_store_write_without_an_answer() {
    holds(LATE);
}

#[test]
fn two_store_writes_without_an_answer() {
    holds(LATE_TWICE);
}

#[test]
fn an_outage_of_all_gateways() {
    holds(OUTAGE);
}

#[test]
fn an_upstream_that_declines() {
    holds(DECLINE);
}

#[test]
fn a_client_that_retries_twice() {
    holds(AGAIN);
}
