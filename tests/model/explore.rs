//! Runs the model checker and reports its findings.

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

/// Explores every state of the correct protocol within the bounds. Nothing may be broken, and every
/// state that must be possible must occur.
pub fn holds(bounds: Bounds) {
    let protocol = Protocol { rules: Rules::new(None), bounds, story: &[] };
    let checker =
        protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    println!("{bounds:?}\n  {states} states, {steps} steps, {} deep", checker.max_depth());
    checker.assert_properties();
    assert!(checker.is_done(), "explored to the end");
}

/// Finds the shortest path on which a protocol with this flaw breaks `property`.
pub fn breaks(flaw: Flaw, bounds: Bounds, property: &'static str) {
    breaks_after(&[], flaw, bounds, property);
}

/// Finds the same after some steps that have happened already, and checks that the correct protocol
/// does not break after them.
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

/// Finds a path of at most this number of steps. The checker finds its discoveries in blocks of
/// states and not in order, so the smallest number of steps that finds a path gives the shortest
/// one.
fn counterexample(
    story: &'static [Action],
    flaw: Flaw,
    bounds: Bounds,
    property: &'static str,
    steps: usize,
) -> Option<Vec<Action>> {
    let finish = HasDiscoveries::AnyOf([property].into());
    let protocol = Protocol { rules: Rules::new(Some(flaw)), bounds, story };
    // Depth one is the first state. The deepest states are not checked.
    let checker =
        protocol.checker().target_max_depth(steps + 2).finish_when(finish).spawn_bfs().join();
    Some(checker.discovery(property)?.into_actions())
}
