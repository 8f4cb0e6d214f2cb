//! Removes one rule at a time, and checks that the checker finds the violation. This shows that the
//! rule is needed and that the model can find the error that the rule prevents.

use super::explore::breaks;
use super::holds::{CHAIN, JOIN, LIFE, PIVOT, TWICE};
use super::properties::{NOT_IN_DOUBT, NOTHING_AFTER_UNDO, ONCE, WHOLE};
use super::rules::Flaw;

#[test]
fn an_action_that_is_undone_after_a_timeout_is_executed_afterwards() {
    breaks(Flaw::CompensatesOnTimeout, CHAIN, WHOLE);
}

#[test]
fn without_bars_a_gateway_that_slept_between_log_and_claim_acts_after_the_undo() {
    breaks(Flaw::NoBars, CHAIN, NOTHING_AFTER_UNDO);
}

#[test]
fn with_keys_from_the_clients_key_a_second_saga_gets_the_answers_of_the_first_one() {
    breaks(Flaw::KeysFromClient, TWICE, WHOLE);
}

#[test]
fn an_undo_beside_a_branch_in_doubt_comes_too_early() {
    breaks(Flaw::UndoesInDoubt, JOIN, NOT_IN_DOUBT);
}

#[test]
fn a_step_runs_twice_if_its_record_ends_before_the_saga() {
    breaks(Flaw::RecordsEndFirst, LIFE, ONCE);
}

#[test]
fn two_owners_without_a_fence_overwrite_the_log_of_each_other() {
    breaks(Flaw::NoFence, CHAIN, WHOLE);
}

#[test]
fn an_operation_that_begins_before_its_log_entry_is_not_undone() {
    breaks(Flaw::LogsAfterEffect, CHAIN, WHOLE);
}

#[test]
fn with_a_key_for_each_attempt_a_step_runs_twice() {
    breaks(Flaw::KeyPerAttempt, CHAIN, ONCE);
}

#[test]
fn a_saga_that_turns_back_after_its_pivot_ends_half() {
    breaks(Flaw::NoPivot, PIVOT, WHOLE);
}
