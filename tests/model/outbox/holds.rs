//! Explores the correct outbox completely.

use super::explore::holds;
use super::protocol::Bounds;
use super::state::Budget;

/// Two relays share the partition: takeover, hand-over, and a relay that goes on after its lease.
pub const TWO_RELAYS: Bounds = Bounds {
    relays: 2,
    changes: 1,
    attempts: 1,
    budget: Budget { losses: 0, relay_ends: 0, gateway_deaths: 0, requeues: 1, discards: 0 },
};

/// The same with the end of a relay: its death, or its stop in order.
pub const A_RELAY_ENDS: Bounds =
    Bounds { budget: Budget { requeues: 0, relay_ends: 1, ..TWO_RELAYS.budget }, ..TWO_RELAYS };

/// The two events of an operation, with dead letters and decisions about them.
pub const TWO_EVENTS: Bounds = Bounds {
    relays: 1,
    changes: 2,
    attempts: 2,
    budget: Budget { losses: 0, relay_ends: 0, gateway_deaths: 1, requeues: 1, discards: 1 },
};

/// The store loses the changes that no replica has.
pub const A_LOSS: Bounds = Bounds {
    relays: 1,
    changes: 2,
    attempts: 1,
    budget: Budget { losses: 1, relay_ends: 0, gateway_deaths: 1, requeues: 1, discards: 0 },
};

/// An event that nobody takes is buried for its age.
pub const OLD_EVENTS: Bounds = Bounds {
    relays: 1,
    changes: 1,
    attempts: 0,
    budget: Budget { losses: 0, relay_ends: 0, gateway_deaths: 0, requeues: 0, discards: 0 },
};

#[test]
fn two_relays_share_a_partition() {
    holds(TWO_RELAYS);
}

#[test]
fn a_relay_that_ends() {
    holds(A_RELAY_ENDS);
}

#[test]
fn two_events_of_an_operation() {
    holds(TWO_EVENTS);
}

#[test]
fn a_store_that_loses_changes() {
    holds(A_LOSS);
}

#[test]
fn events_that_are_buried_for_their_age() {
    holds(OLD_EVENTS);
}
