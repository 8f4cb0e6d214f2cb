//! Removes one rule at a time, and checks that the checker finds the violation. This shows that the
//! rule is needed and that the model can find the error that the rule prevents.

use super::explore::{breaks, survives};
use super::holds::{FORWARD, HOLD, OUTAGE, UNCONDITIONAL};
use super::properties::{NOT_LOST, UNSENT};
use super::rules::Flaw;

#[test]
fn a_lock_that_is_free_at_the_end_of_the_lease_lets_a_lost_write_land_on_the_next_version() {
    breaks(Flaw::FreeAtLeaseEnd, HOLD, NOT_LOST);
}

#[test]
fn a_look_before_the_lock_compares_a_version_that_is_about_to_change() {
    breaks(Flaw::LooksBeforeLock, HOLD, NOT_LOST);
}

#[test]
fn with_a_lock_for_each_scope_two_writers_replace_one_version() {
    breaks(Flaw::LockPerScope, HOLD, NOT_LOST);
}

#[test]
fn an_attempt_from_uncertain_that_is_released_has_compared_with_its_own_work() {
    breaks(Flaw::ReleasesAfterUncertain, FORWARD, UNSENT);
}

#[test]
fn a_sent_mark_over_any_version_takes_the_lock_from_its_holder() {
    breaks(Flaw::MarksAnyVersion, HOLD, NOT_LOST);
}

#[test]
fn a_byte_before_the_sent_mark_is_not_seen_by_the_sweeper() {
    breaks(Flaw::SendsBeforeMark, HOLD, UNSENT);
}

#[test]
fn without_the_send_rule_a_stopped_gateway_sends_after_its_release() {
    breaks(Flaw::NoSendRule, HOLD, UNSENT);
}

#[test]
fn a_lock_that_has_ended_is_no_proof() {
    breaks(Flaw::AbsentProves, OUTAGE, UNSENT);
}

#[test]
fn a_lock_that_was_taken_after_the_first_one_has_ended_is_no_proof() {
    breaks(Flaw::ProvesForEver, OUTAGE, UNSENT);
}

#[test]
fn an_attempt_from_uncertain_that_died_looking_leaves_an_earlier_one_in_doubt() {
    breaks(Flaw::LooksAfterUncertain, FORWARD, UNSENT);
}

#[test]
fn an_attempt_from_uncertain_without_the_lock_leaves_an_earlier_one_in_doubt() {
    breaks(Flaw::ProvesAfterUncertain, FORWARD, UNSENT);
}

#[test]
fn a_stopped_attempt_takes_the_lock_from_the_retry_of_its_client() {
    breaks(Flaw::TakesFromLaterAttempt, HOLD, UNSENT);
}

#[test]
fn a_lock_remembered_as_free_beside_an_attempt_from_uncertain_is_held() {
    breaks(Flaw::RemembersStale, FORWARD, NOT_LOST);
}

/// The sweeper reads the lock after it has seen the end of the lease, and from then on the send
/// rule sends nothing.
#[test]
fn to_free_the_lock_of_a_write_that_died_looking_is_a_second_line_behind_the_send_rule() {
    survives(Flaw::ReleasesUnfreed, HOLD);
}

#[test]
fn to_take_the_lock_as_sent_is_a_second_line_behind_the_proof() {
    survives(Flaw::TakesAsLooking, UNCONDITIONAL);
}
