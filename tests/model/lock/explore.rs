//! Runs the model checker and reports its findings.

use stateright::{Checker, HasDiscoveries, Model};

use super::protocol::{Bounds, Protocol};
use super::rules::{Flaw, Rules};

/// Explores every state of correct writes within the bounds. Nothing may be broken, and every state
/// that must be possible must occur.
pub fn holds(bounds: Bounds) {
    let checker = protocol(None, bounds)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    println!("{bounds:?}\n  {states} states, {steps} steps, {} deep", checker.max_depth());
    checker.assert_properties();
    assert!(checker.is_done(), "explored to the end");
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
