//! Explores correct writes completely.

use super::explore::holds;
use super::protocol::{Bounds, Place};
use super::state::Budget;

const CALM: Budget = Budget { late: 0, decisions: 0, outages: 0, declines: 0 };

const fn place(operation: u8, gateway: usize) -> Place {
    Place { operation, gateway }
}

/// An attempt of each operation, and a duplicate of the first one on the other gateway.
const THREE: &[Place] = &[place(0, 0), place(1, 0), place(0, 1)];

/// Duplicates of an uncertain operation are refused until an operator has decided.
pub const HOLD: Bounds = Bounds {
    attempts: THREE,
    forwards: false,
    has_condition: [true, true],
    sweepers: 1,
    budget: Budget { decisions: 1, ..CALM },
};

#[test]
fn a() {
    holds(HOLD);
}
#[test]
fn b() {
    holds(Bounds { forwards: true, ..HOLD });
}
#[test]
fn c() {
    holds(Bounds { forwards: true, budget: Budget { late: 1, ..HOLD.budget }, ..HOLD });
}
