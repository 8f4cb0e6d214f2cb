//! Running the checker, and telling what it found.

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
    let protocol = Protocol { rules: Rules::new(None), bounds, story: &[] };
    let checker =
        protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    println!("{bounds:?}\n  {states} states, {steps} steps, {} deep", checker.max_depth());
    checker.assert_properties();
    assert!(checker.is_done(), "explored to the end");
}

/// Finds the shortest way in which a protocol with this flaw breaks `property`.
pub fn breaks(flaw: Flaw, bounds: Bounds, property: &'static str) {
    breaks_after(&[], flaw, bounds, property);
}

/// The same, after what has happened already; and that the right protocol does not break after it.
pub fn breaks_after(story: &'static [Action], flaw: Flaw, bounds: Bounds, property: &'static str) {
    const STEPS_MAX: usize = 30;
    let shortest =
        (1..=STEPS_MAX).find_map(|steps| counterexample(story, flaw, bounds, property, steps));
    let Some(steps) = shortest else { panic!("{flaw:?} does not break \"{property}\"") };
    if !story.is_empty() {
        let checker =
            Protocol { rules: Rules::new(None), bounds, story }.checker().spawn_bfs().join();
        checker.assert_no_discovery(property);
    }
    println!(
        "{flaw:?} breaks \"{property}\" in {} steps:\n  {story:?} {steps:?}",
        story.len() + steps.len()
    );
}

/// A way of so many steps, or fewer. The checker finds its discoveries in blocks of states, not in order, so the
/// shortest one is what the smallest number of steps finds.
fn counterexample(
    story: &'static [Action],
    flaw: Flaw,
    bounds: Bounds,
    property: &'static str,
    steps: usize,
) -> Option<Vec<Action>> {
    let finish = HasDiscoveries::AnyOf([property].into());
    let protocol = Protocol { rules: Rules::new(Some(flaw)), bounds, story };
    // A depth of one is the first state, and the deepest states are not looked at.
    let checker =
        protocol.checker().target_max_depth(steps + 2).finish_when(finish).spawn_bfs().join();
    Some(checker.discovery(property)?.into_actions())
}
