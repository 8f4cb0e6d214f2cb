//! Runs the same checker on sagas made by hand: it must report their flaws.

use std::collections::BTreeMap;

use super::checker::{Violation, check};
use super::naive::{Flaw, Naive};
use super::plan::PLANS;
use super::services::{LATEST, Line, Service};
use crate::dice::Dice;
use crate::{pause, seed};

/// Handmade sagas of a run. Few undo one branch at the moment at which another one is in doubt.
const HISTORIES: usize = 100;
const HISTORIES_IN_DOUBT: usize = 300;

/// Runs handmade sagas side by side. Returns how many have each violation, by its name.
fn violations(flaw: Flaw) -> BTreeMap<String, usize> {
    let dice = Dice::new(seed()).of(&format!("{flaw:?}"));
    let services = Service::all(&dice.of("services"));
    let histories = match flaw {
        Flaw::UndoesInDoubt => HISTORIES_IN_DOUBT,
        _ => HISTORIES,
    };
    let run = |n: usize| {
        let order = format!("n-{n}");
        let mut dice = dice.of(&order);
        let plan = match flaw {
            // Only branches can be undone beside each other.
            Flaw::UndoesInDoubt => PLANS.iter().find(|plan| plan.name == "branches").unwrap(),
            _ => dice.pick(&PLANS),
        };
        let is_paid = dice.percent(75);
        let client_key = format!("n-{}", n / 2 * 2);
        let naive = Naive { services: &services, flaw, plan, order, client_key, is_paid, dice };
        (naive.order.clone(), naive.run())
    };
    // Two orders have the same key: the client uses it again after the first one ended.
    let group = if flaw == Flaw::KeysOfTheClient { 2 } else { 1 };
    let histories: Vec<_> = std::thread::scope(|scope| {
        let run = &run;
        let groups = (0..histories).step_by(group);
        let started: Vec<_> = groups
            .map(|first| scope.spawn(move || (first..first + group).map(run).collect::<Vec<_>>()))
            .collect();
        started.into_iter().flat_map(|group| group.join().unwrap()).collect()
    });
    pause(LATEST.as_millis() as u64);
    let mut lines: Vec<Line> = services.iter().flat_map(Service::lines).collect();
    lines.sort_by_key(|line| line.at);
    let mut counts = BTreeMap::new();
    for (order, mut history) in histories {
        history.lines = lines.iter().filter(|line| line.matter.order == order).cloned().collect();
        let found = check(&history);
        if flaw == Flaw::None && !found.is_empty() {
            eprintln!("{order}: {found:?}\n{history:#?}");
        }
        let mut names: Vec<String> = found.iter().map(Violation::name).collect();
        names.dedup();
        names.into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
    }
    eprintln!("{flaw:?}: {counts:?}");
    counts
}

/// Insists that each of these violations was found.
#[track_caller]
fn found(flaw: Flaw, kinds: &[&str]) {
    let found = violations(flaw);
    let missing: Vec<_> = kinds.iter().filter(|kind| !found.contains_key(**kind)).collect();
    assert!(missing.is_empty(), "{flaw:?}, seed {}: {missing:?} not found in {found:?}", seed());
}

#[test]
fn a_handmade_saga_without_a_crash_and_without_these_flaws_is_sound() {
    let found = violations(Flaw::None);
    assert!(found.is_empty(), "seed {}: {found:?}", seed());
}

#[test]
fn a_handmade_saga_that_takes_a_timeout_for_a_failure_is_found_out() {
    found(Flaw::TimeoutIsFailure, &["LandedAfterUndo", "NotUndone"]);
}

#[test]
fn a_handmade_saga_without_bars_acts_after_its_undo() {
    found(Flaw::NoBars, &["LandedAfterUndo", "LandedAfterEnd"]);
}

#[test]
fn a_handmade_saga_with_keys_from_the_clients_key_gets_the_answers_of_an_earlier_one() {
    found(Flaw::KeysOfTheClient, &["NotExecuted", "Invented"]);
}

#[test]
fn a_handmade_saga_that_undoes_beside_a_branch_in_doubt_is_found_out() {
    found(Flaw::UndoesInDoubt, &["UndoneInDoubt"]);
}
