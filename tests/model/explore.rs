//! Running the checker, and telling what it found.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::{Action, Bounds, Protocol};
use crate::rules::{Flaw, Rules};
use crate::state::Who::{self, Alice, Stranger};

/// Two requests of one caller.
pub const TWO: &[Who] = &[Alice, Alice];
/// Two callers with the same key.
pub const WITH_STRANGER: &[Who] = &[Alice, Stranger];
/// Three requests of one caller.
pub const THREE: &[Who] = &[Alice, Alice, Alice];
/// Two requests of one caller, and another caller with the same key.
pub const TWO_AND_STRANGER: &[Who] = &[Alice, Alice, Stranger];

/// Explores all of the right protocol within the bounds: nothing is broken, and what must be possible is.
pub fn holds(bounds: Bounds) {
    let began = Instant::now();
    let protocol = Protocol { rules: Rules::new(None), bounds };
    let checker = protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{bounds:?}\n  {} states, {} steps, {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64(),
    );
    checker.assert_properties();
    assert!(checker.is_done(), "explored to the end");
}

/// The shortest way in which a protocol with this flaw breaks `property`.
pub fn breaks(flaw: Flaw, bounds: Bounds, property: &'static str) {
    const STEPS_MAX: usize = 30;
    let shortest = (1..=STEPS_MAX).find_map(|steps| counterexample(flaw, bounds, property, steps));
    let Some(steps) = shortest else { panic!("{flaw:?} does not break that {property}") };
    println!("{flaw:?} breaks that {property}, in {} steps:\n  {steps:?}", steps.len());
}

/// A way of so many steps, or fewer. The checker finds its discoveries in blocks of states, not in order, so the
/// shortest one is what the smallest number of steps finds.
fn counterexample(flaw: Flaw, bounds: Bounds, property: &'static str, steps: usize) -> Option<Vec<Action>> {
    let finish = HasDiscoveries::AnyOf([property].into());
    let protocol = Protocol { rules: Rules::new(Some(flaw)), bounds };
    // A depth of one is the first state, and the deepest states are not looked at.
    let checker = protocol.checker().target_max_depth(steps + 2).finish_when(finish).spawn_bfs().join();
    Some(checker.discovery(property)?.into_actions())
}
