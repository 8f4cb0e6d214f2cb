//! Removes one rule at a time, and checks that the checker finds the violation. This shows that the
//! rule is needed and that the model can find the error that the rule prevents.

use super::explore::breaks;
use super::holds::{A_LOSS, OLD_EVENTS, TWO_EVENTS, TWO_RELAYS};
use super::properties::{
    IN_ORDER, NO_CHANGE_ALONE, NO_EVENT_ALONE, NOT_TOO_EARLY, ONE_AT_A_TIME, ONLY_THE_OWNER,
    SENT_AGAIN,
};
use super::rules::Flaw;

#[test]
fn an_event_that_is_written_after_its_record_may_never_be_written() {
    breaks(Flaw::EventAfterRecord, TWO_EVENTS, NO_CHANGE_ALONE);
}

#[test]
fn without_a_fence_a_relay_changes_what_its_successor_delivers() {
    breaks(Flaw::NoFence, TWO_RELAYS, ONLY_THE_OWNER);
}

#[test]
fn an_event_that_is_sent_before_ack_may_have_no_change() {
    breaks(Flaw::SendsBeforeAck, A_LOSS, NO_EVENT_ALONE);
}

#[test]
fn in_the_order_of_arrival_a_later_event_overtakes_a_requeued_one() {
    breaks(Flaw::OrderByArrival, TWO_EVENTS, IN_ORDER);
}

#[test]
fn an_event_that_ages_without_attempts_is_buried_too_early() {
    breaks(Flaw::AgeFromChange, OLD_EVENTS, NOT_TOO_EARLY);
}

#[test]
fn without_its_round_a_requeued_event_is_swallowed_as_a_duplicate() {
    breaks(Flaw::RoundNotCounted, TWO_EVENTS, SENT_AGAIN);
}

#[test]
fn a_partition_taken_from_a_relay_that_just_came_has_two_relays() {
    breaks(Flaw::TakesFromNewcomer, TWO_RELAYS, ONE_AT_A_TIME);
}

#[test]
fn a_relay_that_renews_its_lease_too_late_may_own_nothing_any_more() {
    breaks(Flaw::OwnsAfterLeaseEnd, TWO_RELAYS, ONE_AT_A_TIME);
}

#[test]
fn a_retry_that_is_sent_long_after_it_was_counted_runs_beside_its_successor() {
    breaks(Flaw::UncheckedAfterCounting, TWO_RELAYS, ONE_AT_A_TIME);
}

#[test]
fn an_attempt_settled_when_its_relay_is_owner_again_ends_a_round_that_was_never_sent() {
    breaks(Flaw::SettlesAfterReturn, TWO_RELAYS, SENT_AGAIN);
}
