//! Removes one rule at a time, and checks that the checker finds the violation. This shows that the
//! rule is needed and that the model can find the error that the rule prevents.

use crate::explore::{THREE, TWO, TWO_AND_STRANGER, WITH_STRANGER, breaks, breaks_after};
use crate::properties::{NO_STRANGER, ONCE, ONE_ANSWER, STAYS, UNSENT_IS_FREE};
use crate::protocol::Way::{Late, Now};
use crate::protocol::{Action, Bounds};
use crate::rules::{Flaw, OnUncertain};
use crate::state::{Budget, Who};

/// No faults except slowness.
fn of(callers: &'static [Who]) -> Bounds {
    let budget = Budget { late: 0, crashes: 0, operator: 0 };
    Bounds { callers, on_uncertain: OnUncertain::Hold, budget, renews: false, declines: false }
}

impl Bounds {
    fn late(mut self, late: u8) -> Bounds {
        self.budget.late = late;
        self
    }

    fn operator(mut self) -> Bounds {
        self.budget.operator = 1;
        self
    }

    fn renews(self) -> Bounds {
        Bounds { renews: true, ..self }
    }

    fn on(self, on_uncertain: OnUncertain) -> Bounds {
        Bounds { on_uncertain, ..self }
    }
}

#[test]
fn without_a_fence_a_lost_claim_releases_another() {
    breaks(Flaw::NoFence, of(THREE).late(1), ONCE);
}

#[test]
fn without_the_send_rule_a_slow_process_sends_on_a_lost_claim() {
    breaks(Flaw::NoSendRule, of(TWO).operator(), ONCE);
}

#[test]
fn a_clock_that_stops_with_its_process_allows_sending_too_late() {
    breaks(Flaw::ClockStops, of(TWO).operator(), ONCE);
}

#[test]
fn counted_from_the_claims_answer_the_send_rule_allows_sending_too_late() {
    breaks(Flaw::CountsFromTheAnswer, of(TWO).operator(), ONCE);
}

#[test]
fn unchecked_later_bytes_complete_a_request_too_late() {
    breaks(Flaw::LaterBytesUnchecked, of(TWO).operator(), ONCE);
}

#[test]
fn a_claim_that_is_not_read_back_may_never_have_been_made() {
    breaks(Flaw::NoReadBack, of(TWO).late(1), ONCE);
}

#[test]
fn without_uncertain_after_the_lost_request_runs_beside_the_next() {
    breaks(Flaw::NoUncertainAfter, of(TWO).operator(), ONCE);
}

#[test]
fn a_probe_sent_too_early_proves_nothing_however_late_its_answer() {
    breaks(Flaw::EarlyProbeBelieved, of(TWO).on(OnUncertain::Probe), ONCE);
}

#[test]
fn an_attempt_from_uncertain_that_leaves_less_lets_a_stranger_run() {
    breaks(Flaw::AttemptLeavesLess, of(TWO_AND_STRANGER).on(OnUncertain::Forward), ONCE);
}

#[test]
fn an_attempt_from_uncertain_that_is_lost_too_counts_anew() {
    breaks(Flaw::LostAttemptKeepsOldTime, of(THREE).on(OnUncertain::Probe), ONCE);
}

#[test]
fn a_lease_that_ends_is_no_permission_to_run() {
    breaks(Flaw::LeaseEndIsAbsent, of(TWO), ONCE);
}

#[test]
fn a_lease_that_has_ended_is_not_renewed() {
    breaks(Flaw::RenewsEndedLease, of(TWO).late(1).operator().renews(), ONCE);
}

#[test]
fn a_claim_tried_again_may_have_been_made_long_ago() {
    breaks(Flaw::RetryCountsAnew, of(THREE).late(1).on(OnUncertain::Probe), ONCE);
}

#[test]
fn unsettled_records_that_expire_early_are_forgotten_charges() {
    breaks(Flaw::UnsettledExpiresEarly, of(TWO), ONCE);
}

#[test]
fn a_stale_completion_that_answers_its_own_copy_contradicts_what_is_stored() {
    breaks(Flaw::StaleAnswersOwnCopy, of(TWO).operator(), ONE_ANSWER);
}

#[test]
fn a_stale_completion_that_ignores_the_caller_answers_a_stranger() {
    breaks(Flaw::StaleIgnoresCaller, of(WITH_STRANGER).operator(), NO_STRANGER);
}

#[test]
fn an_answer_before_it_is_stored_may_never_be_given_again() {
    breaks(Flaw::AnswersBeforeStoring, of(TWO), STAYS);
}

#[test]
fn an_answer_before_it_is_stored_may_contradict_the_next() {
    breaks(Flaw::AnswersBeforeStoring, of(TWO).operator(), ONE_ANSWER);
}

#[test]
fn a_marker_replaced_without_its_version_lets_an_unsent_claim_end_uncertain() {
    breaks(Flaw::MarkerWithoutVersion, of(TWO).late(1), UNSENT_IS_FREE);
}

#[test]
fn a_marker_written_twice_with_one_version_lets_a_late_one_replace_a_result() {
    // The first request gives up its claim. Its marker is written, but the command gets no answer.
    // The second request takes over from it, can't reach the upstream and leaves a marker of its
    // own. The first tries again over that marker, and again gets no answer. Then the marker
    // expires.
    const STORY: &[Action] = &[
        Action::Claim(0, Late),
        Action::GiveUp(0),
        Action::Tick(None),
        Action::Tick(None),
        Action::StepGivingUp(0, Late),
        Action::Arrive(1),
        Action::Claim(1, Now),
        Action::Claim(1, Now),
        Action::NotSent(1),
        Action::Settle(1, Now),
        Action::Tick(None),
        Action::StepGivingUp(0, Late),
        Action::Tick(None),
    ];
    breaks_after(STORY, Flaw::MarkerVersionRepeats, of(THREE).late(3), STAYS);
}

#[test]
fn a_claim_given_up_beside_the_next_of_its_request_releases_what_runs() {
    breaks(Flaw::GivesUpBesideNewClaim, of(THREE).late(1), ONCE);
}
