//! Runs the model checker and reports its findings.

use stateright::{Checker, HasDiscoveries, Model};

use super::properties::{FREE_AGAIN, NOT_LOST, ONCE, UNSENT};
use super::protocol::{Bounds, Protocol};
use super::rules::{Flaw, Rules};

/// Explores every state of correct writes within the bounds. Nothing may be broken, and every state
/// that must be possible must occur.
pub fn holds(bounds: Bounds) {
    explore(None, bounds).assert_properties();
}

/// Explores every state without a rule that another rule makes superfluous.
pub fn survives(flaw: Flaw, bounds: Bounds) {
    let checker = explore(Some(flaw), bounds);
    for property in [NOT_LOST, ONCE, UNSENT, FREE_AGAIN] {
        checker.assert_no_discovery(property);
    }
}

fn explore(flaw: Option<Flaw>, bounds: Bounds) -> impl Checker<Protocol> {
    let checker = protocol(flaw, bounds)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    println!("{bounds:?}\n  {states} states, {steps} steps, {} deep", checker.max_depth());
    assert!(checker.is_done(), "explored to the end");
    checker
}

/// Finds a path on which writes with this flaw break `property`.
pub fn breaks(flaw: Flaw, bounds: Bounds, property: &'static str) {
    let finish = HasDiscoveries::AnyOf([property].into());
    let checker = protocol(Some(flaw), bounds).checker().finish_when(finish).spawn_bfs().join();
    let path = checker.discovery(property);
    let Some(path) = path else { panic!("{flaw:?} does not break \"{property}\"") };
    println!("{flaw:?} breaks \"{property}\":\n  {:?}", path.into_actions());
}

fn protocol(flaw: Option<Flaw>, bounds: Bounds) -> Protocol {
    Protocol { rules: Rules::new(flaw, bounds.forwards), bounds }
}
