//! Breaks one assumption of the gate at a time, and checks that the simulation finds a violation.
//! This shows that it can find one.

use crate::simulation::checks::{NO_STRANGER, ONCE, ONE_ANSWER, SENT_ONCE, STAYS, UNSENT_IS_FREE};
use crate::simulation::events::{
    IN_ORDER, NO_EVENT_ALONE, ONE_AT_A_TIME, ONE_CONTENT, REACHES_SINKS, REALLY_SENT,
};
use crate::simulation::{Flaw, search};

/// The number of seeds within which a flaw must show.
const SEEDS: u64 = 2000;

fn breaks(flaw: Flaw, invariants: &[&str]) {
    let broken = search(0..SEEDS, Some(flaw), |_| {}).broken;
    let Some(broken) = broken else { panic!("{flaw:?} was not found in {SEEDS} seeds") };
    let violation = broken.violation.as_ref().unwrap();
    println!("{flaw:?}: seed {}: {}: {}", broken.seed, violation.invariant, violation.text);
    assert!(invariants.contains(&violation.invariant), "{}", broken.story());
}

#[test]
fn a_store_that_ignores_versions_loses_what_was_answered() {
    breaks(Flaw::IgnoresVersion, &[ONCE, SENT_ONCE, ONE_ANSWER, STAYS]);
}

#[test]
fn a_store_that_drops_records_when_their_lease_ends_lets_them_run_again() {
    breaks(Flaw::LeaseEndIsAbsent, &[ONCE, SENT_ONCE]);
}

#[test]
fn a_store_that_forgets_results_lets_them_run_again() {
    breaks(Flaw::ForgetsResults, &[ONCE, SENT_ONCE, ONE_ANSWER, STAYS]);
}

#[test]
fn a_store_that_forgets_released_markers_lets_late_claims_stand() {
    breaks(Flaw::ForgetsMarkers, &[UNSENT_IS_FREE]);
}

#[test]
fn a_store_that_denies_what_it_may_have_written_leaves_claims_to_nobody() {
    breaks(Flaw::ReportsNotApplied, &[UNSENT_IS_FREE]);
}

#[test]
fn a_clock_that_stops_with_its_process_sends_on_a_claim_that_is_over() {
    breaks(Flaw::ClockStops, &[ONCE, SENT_ONCE]);
}

#[test]
fn without_uncertain_after_the_lost_request_runs_beside_the_next() {
    breaks(Flaw::NoRest, &[ONCE]);
}

#[test]
fn an_upstream_that_begins_later_than_uncertain_after_executes_twice() {
    breaks(Flaw::UpstreamActsLater, &[ONCE]);
}

#[test]
fn without_callers_a_stranger_gets_the_answer() {
    breaks(Flaw::OneCallerForAll, &[NO_STRANGER]);
}

#[test]
fn a_gateway_that_keeps_claims_without_an_answer_runs_twice_what_a_store_loses_while_duplicates_ask()
 {
    breaks(Flaw::HoldsUnanswered, &[ONCE, SENT_ONCE, ONE_ANSWER, STAYS]);
}

#[test]
fn a_gateway_that_lets_markers_prevail_after_a_loss_runs_twice_what_still_runs() {
    breaks(Flaw::MarkersPrevail, &[ONCE, SENT_ONCE, ONE_ANSWER, STAYS]);
}

#[test]
fn a_flaw_is_known_by_its_name() {
    for flaw in Flaw::ALL {
        assert_eq!(Flaw::named(&format!("{flaw:?}")), Some(flaw));
    }
    assert_eq!(Flaw::named("none"), None);
}

#[test]
fn a_store_that_drops_events_is_found() {
    breaks(Flaw::DropsEvents, &[REACHES_SINKS]);
}

#[test]
fn a_store_that_writes_the_events_of_refused_changes_is_found() {
    breaks(Flaw::WritesEventsAlone, &[NO_EVENT_ALONE, ONE_CONTENT]);
}

#[test]
fn a_store_that_drops_events_in_the_place_of_burials_is_found() {
    breaks(Flaw::BuriesNothing, &[REACHES_SINKS]);
}

#[test]
fn a_store_that_forgets_requeued_events_is_found() {
    breaks(Flaw::RequeueForgets, &[REACHES_SINKS]);
}

#[test]
fn a_store_that_returns_later_events_first_is_found() {
    breaks(Flaw::LatestFirst, &[IN_ORDER]);
}

#[test]
fn relays_that_all_deliver_everything_are_found() {
    breaks(Flaw::EachRelayAlone, &[ONE_AT_A_TIME]);
}

#[test]
fn a_store_that_ignores_rounds_ends_those_that_were_never_sent() {
    breaks(Flaw::IgnoresRound, &[REALLY_SENT]);
}
