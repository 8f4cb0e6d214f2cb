//! Runs the same writers and the same checker on gateways made by hand: it must report their flaws.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checker::{History, check};
use super::kinds::{Doubt, LATEST, resources};
use super::naive::{Flaw, Naive};
use super::run::begin;
use super::writers::Street;
use crate::dice::Dice;
use crate::harness::Documents;
use crate::{now, pause, seed};

/// Writers of a run.
const WRITERS: usize = 40;
/// The time in which writers begin writes.
const WINDOW: Duration = Duration::from_secs(4);
/// How many writes in a hundred the upstream loses. The flaw that shows in them needs more.
const LOST: u64 = 12;
const LOST_OFTEN: u64 = 40;
/// The time after it in which each write must end.
const ENDING: Duration = Duration::from_secs(20);

/// A write replaced another version than its gateway looked at. The log of a kind that overwrites
/// then names the wrong one.
const LOSSES: [&str; 2] = ["LostUpdate", "NotLogged"];

/// Runs writers before a handmade gateway. Returns how many violations of each kind they meet.
fn violations(flaw: Flaw) -> BTreeMap<String, usize> {
    let dice = Dice::new(seed()).of(&format!("{flaw:?}"));
    let upstream = Documents::start();
    let gateway = Naive::start(flaw, upstream.port);
    // It has no probes. Few resources, so that writers meet.
    let mut resources = resources();
    resources.retain(|(kind, path)| kind.doubt == Doubt::Hold && path.ends_with(['1', '2', '3']));
    let lost = if flaw == Flaw::FreeInDoubt { LOST_OFTEN } else { LOST };
    let first = begin(&upstream, &resources);
    let street = Street::new(vec![gateway.port], resources, lost);
    let end = now() + WINDOW;
    let until = &move || end + ENDING;
    std::thread::scope(|scope| {
        for n in 0..WRITERS {
            let (street, dice) = (&street, dice.of(&format!("writer {n}")));
            scope.spawn(move || street.live(n, dice, end, until));
        }
    });
    pause(LATEST.as_millis() as u64);
    let book = street.book.into_inner().unwrap();
    let history = History {
        writes: book.writes,
        ledger: upstream.ledger(),
        first,
        overwritten: gateway.overwritten(),
        shown: book.shown,
        ..History::default()
    };
    let found = check(&history);
    if flaw == Flaw::None && !found.is_empty() {
        eprintln!("{found:#?}");
    }
    let mut counts = BTreeMap::new();
    found.iter().for_each(|violation| *counts.entry(violation.name()).or_default() += 1);
    eprintln!("{flaw:?}: {} executed, {counts:?}", history.ledger.len());
    counts
}

/// Insists that one of these violations was found.
#[track_caller]
fn found(flaw: Flaw, kinds: &[&str]) {
    let found = violations(flaw);
    let is_found = kinds.iter().any(|kind| found.contains_key(*kind));
    assert!(is_found, "{flaw:?}, seed {}: none of {kinds:?} in {found:?}", seed());
}

#[test]
fn a_handmade_gateway_without_a_crash_and_without_these_flaws_is_sound() {
    let found = violations(Flaw::None);
    assert!(found.is_empty(), "seed {}: {found:?}", seed());
}

#[test]
fn a_handmade_gateway_that_looks_without_a_lock_loses_updates() {
    found(Flaw::NoLock, &LOSSES);
}

#[test]
fn a_handmade_gateway_with_a_lock_that_ends_with_its_lease_loses_updates() {
    found(Flaw::LeaseEnds, &LOSSES);
}

#[test]
fn a_handmade_gateway_that_frees_the_resource_of_a_write_in_doubt_loses_updates() {
    found(Flaw::FreeInDoubt, &LOSSES);
}

#[test]
fn a_handmade_gateway_with_a_lock_for_each_spelling_loses_updates() {
    found(Flaw::LocksSpellings, &LOSSES);
}

#[test]
fn a_handmade_gateway_that_looks_before_it_has_the_lock_loses_updates() {
    found(Flaw::LooksFirst, &LOSSES);
}

#[test]
fn a_handmade_gateway_that_forgets_keys_executes_writes_again() {
    found(Flaw::ForgetsKeys, &["ExecutedAgain"]);
}

#[test]
fn a_handmade_gateway_that_overwrites_and_does_not_log_it_is_found_out() {
    found(Flaw::OverwritesSilently, &["NotLogged"]);
}
