//! Explores correct sagas completely.

use super::explore::holds;
use super::protocol::Bounds;
use super::rules::Shape;
use super::state::Budget;

/// Nothing fails.
const CALM: Budget = Budget {
    sagas: 1,
    takeovers: 0,
    deaths: 0,
    turns: 0,
    refusals: 0,
    releases: 0,
    doubts: 0,
    retries: 0,
    lives: 0,
};

/// Two steps in order, with a gateway that sleeps or dies, and an upstream that executes late.
pub const CHAIN: Bounds = Bounds {
    shape: Shape::Chain,
    attempts: 2,
    budget: Budget { takeovers: 1, deaths: 1, turns: 1, releases: 1, doubts: 1, ..CALM },
};

/// Two branches, one of which can fail while the other is in doubt.
pub const BRANCHES: Bounds = Bounds {
    shape: Shape::Parallel,
    attempts: 1,
    budget: Budget { takeovers: 1, deaths: 1, refusals: 1, releases: 1, doubts: 1, ..CALM },
};

/// Two branches, and a step after both.
pub const JOIN: Bounds = Bounds {
    shape: Shape::Join,
    attempts: 1,
    budget: Budget { takeovers: 1, turns: 1, doubts: 1, ..CALM },
};

/// A step before the pivot, the pivot, and a step after it.
pub const PIVOT: Bounds = Bounds {
    shape: Shape::Pivot,
    attempts: 1,
    budget: Budget {
        takeovers: 1,
        deaths: 1,
        turns: 1,
        refusals: 1,
        releases: 1,
        doubts: 1,
        ..CALM
    },
};

/// The same with the retry of a definite no after the pivot.
pub const PIVOT_RETRIED: Bounds = Bounds {
    shape: Shape::Pivot,
    attempts: 1,
    budget: Budget { takeovers: 1, deaths: 1, refusals: 2, retries: 1, doubts: 1, ..CALM },
};

/// The retry of a compensation that was refused.
pub const UNDO_RETRIED: Bounds = Bounds {
    shape: Shape::Chain,
    attempts: 1,
    budget: Budget { takeovers: 1, deaths: 1, refusals: 2, retries: 1, doubts: 1, ..CALM },
};

/// The records of the steps end while the saga runs.
pub const LIFE: Bounds = Bounds {
    shape: Shape::Chain,
    attempts: 1,
    budget: Budget { takeovers: 1, deaths: 1, turns: 1, doubts: 1, lives: 1, ..CALM },
};

/// The client uses its key again, after the record of its first saga has ended.
pub const TWICE: Bounds = Bounds {
    shape: Shape::Single,
    attempts: 1,
    budget: Budget { sagas: 2, takeovers: 1, deaths: 1, turns: 1, refusals: 1, doubts: 1, ..CALM },
};

#[test]
fn steps_in_order() {
    holds(CHAIN);
}

#[test]
fn branches_side_by_side() {
    holds(BRANCHES);
}

#[test]
fn a_step_after_two_branches() {
    holds(JOIN);
}

#[test]
fn a_pivot() {
    holds(PIVOT);
}

#[test]
fn a_definite_no_after_the_pivot() {
    holds(PIVOT_RETRIED);
}

#[test]
fn a_compensation_that_is_refused() {
    holds(UNDO_RETRIED);
}

#[test]
fn records_that_end() {
    holds(LIFE);
}

#[test]
fn a_second_saga_under_the_same_key() {
    holds(TWICE);
}
