//! The way back, and the outcomes of compensations.

use super::story::{
    ASKING, Action, FAILED, HELD, REFUSED, RELEASED, START_MS, Story, Undo, bar, call, chain,
    chain_with_pivot, compensate, plan, success,
};
use crate::saga::log::{ActionState, CompensationState, SagaDecisionKind, SagaEnd, StepFailure};
use crate::saga::machine::{Happening, StateChange};
use crate::saga::outcome::StepOutcome;
use crate::saga::plan::Compensation;
use crate::saga::status::{STUCK_AFTER_MS, SagaStatus, StepStatus, StuckReason, stuck_steps};

#[test]
fn executed_actions_are_undone_in_reverse_order() {
    let mut story = Story::going_back();
    assert_eq!(story.status(), SagaStatus::Compensating);
    for step in [1, 0] {
        assert_eq!(story.todos(), [compensate(step)]);
        story.begin(step, Undo);
        assert_eq!(story.todos(), [call(step, Undo, 0, false)]);
        assert_eq!(story.statuses()[step], StepStatus::Undoing);
        assert_eq!(story.outcome(step, Undo, success()), StateChange::Write);
    }
    assert_eq!(story.statuses(), [StepStatus::Undone, StepStatus::Undone, StepStatus::Failed]);
    assert_eq!(story.todos(), [FAILED]);
    story.happens(Happening::Settled);
    assert_eq!(story.state.end, Some(SagaEnd::Failed { at_ms: START_MS }));
}

#[test]
fn parallel_branches_are_undone_side_by_side_and_their_common_step_last() {
    // a -> b -> d, a -> c, e alone; f after d and c fails.
    let steps: &[(&str, &[usize])] =
        &[("a", &[]), ("b", &[0]), ("c", &[0]), ("d", &[1]), ("e", &[]), ("f", &[2, 3])];
    let mut story = Story::of(plan(steps));
    for step in [0, 4, 1, 2, 3] {
        story.does(step, Action, success());
    }
    story.does(5, Action, REFUSED);
    assert_eq!(story.todos(), [compensate(2), compensate(3), compensate(4)]);
    story.does(2, Undo, success());
    assert_eq!(story.todos(), [compensate(3), compensate(4)]);
    story.does(3, Undo, success());
    assert_eq!(story.todos(), [compensate(1), compensate(4)], "a waits for both branches");
    story.does(1, Undo, success());
    assert_eq!(story.todos(), [compensate(0), compensate(4)]);
}

#[test]
fn the_order_goes_through_steps_without_anything_to_undo() {
    let mut plan = chain();
    plan.steps[1].compensation = Compensation::None;
    plan.steps.push(super::story::step("d", &[2]));
    let mut story = Story::with_done(plan, 3);
    story.does(3, Action, REFUSED);
    assert_eq!(story.todos(), [compensate(2)], "a is before c, through b");
    story.does(2, Undo, success());
    assert_eq!(story.todos(), [compensate(0)], "nothing of b is undone");
}

#[test]
fn nothing_is_undone_while_an_action_is_unsettled() {
    for outcome in [None, Some(HELD), Some(ASKING), Some(RELEASED)] {
        let mut story = Story::of(plan(&[("a", &[]), ("b", &[]), ("c", &[])]));
        story.does(0, Action, success());
        story.begin(1, Action);
        story.begin(2, Action);
        story.outcomes(2, Action, outcome.clone());
        story.outcome(1, Action, REFUSED);
        let undoes = |story: &Story| story.todos().contains(&compensate(0));
        assert!(!undoes(&story), "{outcome:?}");
        let begun = Happening::Begun { step: 0, direction: Undo };
        assert!(story.apply(begun).is_err(), "{outcome:?}");
        story.outcome(2, Action, REFUSED);
        assert!(undoes(&story));
    }
}

#[test]
fn a_begun_action_without_a_record_is_barred_before_anything_is_undone() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[]), ("c", &[])]));
    story.does(0, Action, success());
    story.begin(1, Action);
    story.begin(2, Action);
    story.outcome(2, Action, REFUSED);
    assert_eq!(story.todos(), [call(1, Action, 0, true)], "it looks, and begins nothing");
    story.outcome(1, Action, StepOutcome::Absent);
    assert_eq!(story.todos(), [bar(1, Action)]);
    story.outcome(1, Action, StepOutcome::InFlight { retry_after_ms: 500 });
    assert_eq!(story.todos(), [], "the bar lost");
    story.wait();
    assert_eq!(story.todos(), [call(1, Action, 0, true)], "a bar that loses looks again");
    story.outcome(1, Action, StepOutcome::Released);
    assert_eq!(story.todos(), [bar(1, Action)]);
    assert_eq!(story.outcome(1, Action, StepOutcome::Barred), StateChange::Write);
    assert_eq!(story.statuses()[1], StepStatus::Barred);
    assert_eq!(story.todos(), [compensate(0)]);
}

#[test]
fn an_empty_slot_is_not_barred_once_a_record_may_have_ended_there() {
    let mut story = Story::with_done(plan(&[("a", &[]), ("b", &[])]), 1);
    story.plan.timeout_ms = u64::MAX;
    story.begin(1, Action);
    story.outcome(1, Action, RELEASED);
    story.decided(SagaDecisionKind::Cancel, None).unwrap();
    assert_eq!(story.todos(), [bar(1, Action)]);
    story.later(super::story::LIFE_MS);
    assert_eq!(story.todos(), [call(1, Action, 0, true)], "another gateway may have executed it");
    story.outcome(1, Action, StepOutcome::Absent);
    assert_eq!((story.status(), story.todos()), (SagaStatus::Stuck, vec![]));
}

#[test]
fn an_action_that_waits_for_its_next_attempt_is_barred_at_once() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[])]));
    story.begin(0, Action);
    story.begin(1, Action);
    story.outcome(0, Action, RELEASED);
    assert_eq!(story.todos(), [call(1, Action, 0, false)]);
    story.outcome(1, Action, REFUSED);
    assert_eq!(story.todos(), [bar(0, Action)]);
    story.outcome(0, Action, RELEASED);
    assert_eq!(story.todos(), [bar(0, Action)], "a later attempt was not executed either");
}

#[test]
fn an_action_that_was_executed_after_all_is_undone() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[])]));
    story.begin(0, Action);
    story.begin(1, Action);
    story.outcome(0, Action, HELD);
    story.outcome(1, Action, REFUSED);
    story.wait();
    assert_eq!(story.todos(), [call(0, Action, 0, true)], "the operator's decision is awaited");
    story.outcome(0, Action, success());
    assert_eq!(story.todos(), [compensate(0)]);
}

#[test]
fn a_compensation_that_was_refused_is_stuck_and_holds_only_its_predecessors() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[]), ("c", &[0]), ("d", &[1])]));
    for step in [0, 1, 2] {
        story.does(step, Action, success());
    }
    story.does(3, Action, REFUSED);
    assert_eq!(story.todos(), [compensate(1), compensate(2)]);
    story.begin(2, Undo);
    assert_eq!(story.outcome(2, Undo, REFUSED), StateChange::Write);
    let stuck = stuck_steps(&story.plan, &story.state, story.now_ms);
    assert_eq!(stuck[0].reason, StuckReason::Refused(StepFailure::Status(422)));
    assert_eq!((story.status(), story.statuses()[2]), (SagaStatus::Stuck, StepStatus::Refused));
    assert_eq!(story.todos(), [compensate(1)], "the other branch is undone, and a waits");
    story.does(1, Undo, success());
    assert_eq!(story.todos(), []);
}

#[test]
fn a_compensation_that_can_not_be_rendered_is_stuck() {
    let mut story = Story::going_back();
    let why = StepFailure::Unrendered("steps.b.body.id is undefined".into());
    story.happens(Happening::Unsendable { step: 1, direction: Undo, why });
    assert_eq!((story.status(), story.todos()), (SagaStatus::Stuck, vec![]));
}

#[test]
fn a_compensation_that_was_not_executed_is_repeated_without_end_and_shown_as_stuck() {
    let mut story = Story::going_back();
    story.begin(1, Undo);
    let begun_ms = story.now_ms;
    for _ in 0..5_000 {
        story.outcome(1, Undo, RELEASED);
        let is_old = story.now_ms >= begun_ms + STUCK_AFTER_MS;
        let status = if is_old { SagaStatus::Stuck } else { SagaStatus::Compensating };
        assert_eq!((story.status(), story.statuses()[1]), (status, StepStatus::Undoing));
        story.wait();
        story.happens(Happening::TimePassed);
        let run = story.state.run(1, Undo).unwrap().clone();
        if run.due_ms <= story.now_ms {
            assert_eq!(story.todos(), [call(1, Undo, 0, false)], "tried on, under the same key");
        }
        assert_eq!(run.begun_ms, begun_ms, "the time of the first attempt is kept");
    }
    story.outcome(1, Undo, success());
    assert_eq!((story.status(), story.todos()), (SagaStatus::Compensating, vec![compensate(0)]));
    assert!(story.state.stuck_ms > 0);
}

#[test]
fn an_uncertain_compensation_is_looked_at_and_sent_again_if_it_was_not_executed() {
    for (outcome, status) in [(ASKING, SagaStatus::Compensating), (HELD, SagaStatus::Stuck)] {
        let mut story = Story::going_back();
        story.begin(1, Undo);
        story.outcome(1, Undo, outcome);
        assert_eq!((story.status(), story.statuses()[1]), (status, StepStatus::Uncertain));
        story.wait();
        assert_eq!(story.todos(), [call(1, Undo, 0, true)]);
        story.outcome(1, Undo, StepOutcome::Released);
        assert_eq!(story.todos(), [call(1, Undo, 0, false)]);
        story.outcome(1, Undo, StepOutcome::Busy { retry_after_ms: 0 });
        story.outcome(1, Undo, success());
        assert_eq!(
            (story.status(), story.statuses()[1]),
            (SagaStatus::Compensating, StepStatus::Undone)
        );
    }
}

#[test]
fn a_compensation_without_a_record_that_may_have_ended_is_lost() {
    let mut story = Story::going_back();
    story.begin(1, Undo);
    story.later(super::story::LIFE_MS);
    assert_eq!(story.todos(), [call(1, Undo, 0, true)]);
    story.outcome(1, Undo, StepOutcome::Absent);
    assert_eq!((story.status(), story.todos()), (SagaStatus::Stuck, vec![]));
}

#[test]
fn a_compensation_that_the_gate_refuses_is_barred_before_it_counts_as_refused() {
    let mut story = Story::going_back();
    story.begin(1, Undo);
    story.outcome(1, Undo, StepOutcome::Invalid { why: "body-too-large".into() });
    assert_eq!(story.todos(), [bar(1, Undo)]);
    story.outcome(1, Undo, StepOutcome::Barred);
    assert!(matches!(story.compensation(1), CompensationState::Refused { .. }));
    assert_eq!(story.status(), SagaStatus::Stuck);
}

#[test]
fn a_refused_pivot_goes_back() {
    let mut story = Story::with_done(chain_with_pivot(), 1);
    story.does(1, Action, REFUSED);
    assert!(matches!(story.action(1), ActionState::Failed { .. }));
    assert_eq!(story.todos(), [compensate(0)]);
}

#[test]
fn a_pivot_without_attempts_left_goes_back() {
    let mut story = Story::with_done(chain_with_pivot(), 1);
    story.begin(1, Action);
    story.outcomes(1, Action, [RELEASED; 3]);
    story.outcome(1, Action, StepOutcome::Barred);
    assert_eq!(story.todos(), [compensate(0)]);
}

#[test]
fn after_the_pivot_a_step_is_repeated_without_end_and_a_definite_no_is_stuck() {
    let mut story = Story::with_done(chain_with_pivot(), 2);
    story.begin(2, Action);
    for _ in 0..50 {
        story.outcome(2, Action, RELEASED);
        story.wait();
        story.happens(Happening::TimePassed);
    }
    while story.status() != SagaStatus::Stuck {
        story.wait();
        story.happens(Happening::TimePassed);
        story.outcome(2, Action, RELEASED);
    }
    let stuck = stuck_steps(&story.plan, &story.state, story.now_ms);
    assert_eq!(stuck[0].reason, StuckReason::Retried);
    story.outcome(2, Action, REFUSED);
    assert_eq!((story.state.back, story.status()), (None, SagaStatus::Stuck));
    assert_eq!(story.todos(), [], "neither back nor forward");
}
