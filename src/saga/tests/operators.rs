//! Decisions of operators, at every moment.

use super::story::{
    ASKING, Action, COMPLETED, FAILED, HELD, LIFE_MS, REFUSED, RELEASED, Story, Undo, bar, begin,
    call, chain, chain_with_pivot, compensate, plan, success,
};
use crate::saga::decision::{PermittedDecisions, permitted_decisions};
use crate::saga::document::SagaDocument;
use crate::saga::kept::KeptRequest;
use crate::saga::log::{
    ActionState, BackCause, CompensationState, DECISIONS_MAX, SagaDecisionKind, StepFailure,
};
use crate::saga::machine::{Happening, HappeningDenied, SagaTodo, StateChange};
use crate::saga::outcome::StepOutcome;
use crate::saga::status::{SagaStatus, StepStatus};
use SagaDecisionKind::{Cancel, Retry, Skip};

/// A saga after its pivot, with a definite no of its last step.
fn refused_after_the_pivot() -> Story {
    let mut story = Story::with_done(chain_with_pivot(), 2);
    story.does(2, Action, REFUSED);
    story
}

/// A saga with a definite no of a compensation.
fn refused_compensation() -> Story {
    let mut story = Story::going_back();
    story.does(1, Undo, REFUSED);
    story
}

#[test]
fn a_cancel_before_the_first_step_fails_the_saga() {
    let mut story = Story::of(chain());
    assert_eq!(story.decided(Cancel, None), Ok(StateChange::Write));
    assert_eq!(story.state.back, Some(BackCause::Cancel { at_ms: story.now_ms }));
    assert_eq!(story.todos(), [FAILED]);
    assert_eq!(story.state.decisions[0].at_ms, story.now_ms);
}

#[test]
fn a_cancel_at_every_moment_before_the_end_undoes_what_was_executed() {
    for done in 0..=3 {
        let mut story = Story::with_done(chain(), done);
        story.decided(Cancel, None).unwrap();
        for step in (0..done).rev() {
            assert_eq!(story.todos(), [compensate(step)]);
            story.does(step, Undo, success());
        }
        assert_eq!(story.todos(), [FAILED], "{done} were done");
    }
    let outcomes = [
        (None, call(1, Action, 0, true)),
        (Some(RELEASED), bar(1, Action)),
        (Some(StepOutcome::Absent), bar(1, Action)),
        (Some(StepOutcome::InFlight { retry_after_ms: 200 }), call(1, Action, 0, true)),
        (Some(ASKING), call(1, Action, 0, true)),
        (Some(HELD), call(1, Action, 0, true)),
    ];
    for (outcome, next) in outcomes {
        let mut story = Story::with_done(chain(), 1);
        story.begin(1, Action);
        story.outcomes(1, Action, outcome.clone());
        story.decided(Cancel, None).unwrap();
        if story.todos().is_empty() {
            story.wait();
        }
        assert_eq!(story.todos(), [next], "after {outcome:?}");
    }
}

#[test]
fn a_cancel_is_denied_from_the_pivot_on_and_changes_nothing_on_the_way_back() {
    let mut story = Story::with_done(chain_with_pivot(), 1);
    story.begin(1, Action);
    assert_eq!(story.decided(Cancel, None), Err(HappeningDenied::PivotBegun));
    let mut refused = story.clone();
    story.outcome(1, Action, success());
    assert_eq!(story.decided(Cancel, None), Err(HappeningDenied::PivotBegun));
    refused.outcome(1, Action, REFUSED);
    let before = refused.state.clone();
    assert_eq!(refused.decided(Cancel, None), Ok(StateChange::Nothing));
    assert_eq!(refused.state, before);
}

#[test]
fn decisions_about_an_ended_saga_are_denied() {
    let mut story = Story::with_done(chain(), 3);
    story.happens(Happening::Settled);
    for kind in [Cancel, Retry, Skip] {
        assert_eq!(story.decided(kind, Some(0)), Err(HappeningDenied::Ended));
    }
}

#[test]
fn a_retry_of_a_definite_no_has_another_key_and_is_written_first() {
    let mut story = refused_after_the_pivot();
    assert_eq!(story.decided(Retry, None), Ok(StateChange::Write));
    assert_eq!(story.todos(), [call(2, Action, 1, false)]);
    let late = Happening::Outcome {
        step: 2,
        direction: Action,
        generation: 0,
        outcome: REFUSED,
        random: 0,
    };
    assert_eq!(story.happens(late), StateChange::Nothing, "an outcome of the earlier key");
    story.outcome(2, Action, REFUSED);
    story.decided(Retry, Some(2)).unwrap();
    assert_eq!(story.todos(), [call(2, Action, 2, false)]);
    story.outcome(2, Action, success());
    assert_eq!(story.todos(), [COMPLETED]);

    let mut story = refused_compensation();
    story.decided(Retry, None).unwrap();
    assert_eq!(story.todos(), [call(1, Undo, 1, false)]);
}

#[test]
fn a_retry_of_anything_else_has_the_same_key() {
    let mut story = Story::going_back();
    story.begin(1, Undo);
    story.outcome(1, Undo, RELEASED);
    assert_eq!(story.todos(), []);
    story.decided(Retry, Some(1)).unwrap();
    assert_eq!(story.todos(), [call(1, Undo, 0, false)]);
}

#[test]
fn a_retry_of_a_step_that_could_not_be_sent_evaluates_it_again() {
    let mut story = Story::with_done(chain_with_pivot(), 2);
    let why = StepFailure::Condition("a text".into());
    story.happens(Happening::Unsendable { step: 2, direction: Action, why });
    assert_eq!(story.status(), SagaStatus::Stuck);
    story.decided(Retry, None).unwrap();
    assert_eq!(story.todos(), [begin(2)]);
    let mut story = Story::going_back();
    let why = StepFailure::Unrendered("x".into());
    story.happens(Happening::Unsendable { step: 1, direction: Undo, why });
    story.decided(Retry, Some(1)).unwrap();
    assert_eq!(story.todos(), [compensate(1)]);
}

#[test]
fn a_skip_of_a_definite_no_counts_as_done_by_hand() {
    let mut story = refused_after_the_pivot();
    assert_eq!(story.decided(Skip, Some(2)), Ok(StateChange::Write));
    assert!(matches!(story.action(2), ActionState::Done { answer: None, .. }));
    assert_eq!((story.status(), story.todos()), (SagaStatus::Running, vec![COMPLETED]));
    let mut story = refused_compensation();
    story.decided(Skip, Some(1)).unwrap();
    assert!(matches!(story.compensation(1), CompensationState::Undone { by_hand: true, .. }));
    assert_eq!(story.todos(), [compensate(0)]);
}

#[test]
fn an_operation_that_could_still_be_executed_is_barred_before_it_counts_as_done_by_hand() {
    let mut story = Story::going_back();
    story.begin(1, Undo);
    story.outcome(1, Undo, RELEASED);
    story.decided(Skip, Some(1)).unwrap();
    assert_eq!(story.todos(), [bar(1, Undo)]);
    story.outcome(1, Undo, HELD);
    story.wait();
    story.outcome(1, Undo, StepOutcome::Released);
    assert_eq!(story.todos(), [bar(1, Undo)], "the decision stands");
    story.outcome(1, Undo, StepOutcome::Barred);
    assert!(matches!(story.compensation(1), CompensationState::Undone { by_hand: true, .. }));

    let mut executed = Story::going_back();
    executed.begin(1, Undo);
    executed.outcome(1, Undo, RELEASED);
    executed.decided(Skip, Some(1)).unwrap();
    executed.outcome(1, Undo, success());
    assert!(matches!(executed.compensation(1), CompensationState::Undone { by_hand: false, .. }));
}

#[test]
fn a_lost_operation_is_settled_by_either_decision() {
    let lost = |direction| {
        let mut story = if direction == Action { Story::of(chain()) } else { Story::going_back() };
        story.plan.timeout_ms = u64::MAX;
        let step = if direction == Action { 0 } else { 1 };
        story.begin(step, direction);
        story.later(LIFE_MS);
        story.outcome(step, direction, StepOutcome::Absent);
        assert_eq!(story.status(), SagaStatus::Stuck);
        (story, step)
    };
    for direction in [Action, Undo] {
        let (mut story, step) = lost(direction);
        story.decided(Retry, Some(step)).unwrap();
        assert_eq!(story.todos(), [call(step, direction, 0, false)], "the same key");
        let (mut story, step) = lost(direction);
        story.decided(Skip, Some(step)).unwrap();
        assert_eq!(story.todos(), [bar(step, direction)]);
    }
    let (mut story, step) = lost(Action);
    story.decided(Cancel, None).unwrap();
    assert_eq!(story.todos(), [], "nobody knows, and nothing is undone");
    story.decided(Retry, Some(step)).unwrap();
    assert_eq!(story.todos(), [bar(step, Action)], "going back, not executed means barred");
    let (mut story, step) = lost(Undo);
    story.outcome(step, Undo, StepOutcome::Lost);
    story.decided(Skip, Some(step)).unwrap();
    story.outcome(step, Undo, StepOutcome::Lost);
    assert_eq!(story.statuses()[step], StepStatus::Undone, "a tombstone is as good as a bar");
}

#[test]
fn a_step_that_waits_for_a_decision_is_written_even_if_another_one_does_already() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[])]));
    story.plan.timeout_ms = u64::MAX;
    story.begin(0, Action);
    story.begin(1, Action);
    assert_eq!(story.outcome(0, Action, HELD), StateChange::Write);
    assert_eq!(story.outcome(1, Action, ASKING), StateChange::Memory);
    assert_eq!(story.outcome(1, Action, HELD), StateChange::Write);
    assert_eq!(story.outcome(1, Action, HELD), StateChange::Nothing, "nothing new");
    story.later(LIFE_MS);
    assert_eq!(story.outcome(1, Action, StepOutcome::Absent), StateChange::Write);

    let mut story = Story::going_back();
    story.begin(1, Undo);
    assert_eq!(story.outcome(1, Undo, RELEASED), StateChange::Write);
    assert_eq!(story.outcome(1, Undo, RELEASED), StateChange::Memory, "no write per attempt");
}

#[test]
fn a_held_operation_is_settled_itself_and_other_steps_wait_for_no_decision() {
    let mut held = Story::of(chain());
    held.begin(0, Action);
    held.outcome(0, Action, HELD);
    let mut asked = Story::of(chain());
    asked.begin(0, Action);
    let mut released = asked.clone();
    released.outcome(0, Action, RELEASED);
    asked.outcome(0, Action, ASKING);
    for kind in [Retry, Skip] {
        for story in [&mut held, &mut asked] {
            assert_eq!(story.decided(kind, Some(0)), Err(HappeningDenied::OperationHeld));
        }
        for (story, step) in [
            (&mut released, 0),
            (&mut Story::with_done(chain(), 1), 0),
            (&mut Story::with_done(chain(), 1), 1),
            (&mut Story::going_back(), 2),
        ] {
            let before = story.state.clone();
            assert_eq!(story.decided(kind, Some(step)), Err(HappeningDenied::NotStuck));
            assert_eq!(story.state, before, "a denied decision changes nothing");
        }
        assert_eq!(asked.decided(kind, Some(9)), Err(HappeningDenied::NoSuchStep));
    }
    assert_eq!(asked.decided(Retry, None), Err(HappeningDenied::OperationHeld));
    assert_eq!(released.decided(Retry, None), Err(HappeningDenied::NotStuck));
}

#[test]
fn a_log_keeps_the_last_decisions() {
    let mut story = refused_compensation();
    for _ in 0..DECISIONS_MAX + 5 {
        story.decided(Retry, Some(1)).unwrap();
        story.outcome(1, Undo, REFUSED);
    }
    story.decided(Skip, Some(1)).unwrap();
    assert_eq!(story.state.decisions.len(), DECISIONS_MAX);
    assert_eq!(story.state.decisions.last().unwrap().kind, Skip);
    assert!(!story.todos().contains(&SagaTodo::Refresh));
}

#[test]
fn the_permitted_decisions_are_those_that_would_be_carried_out() {
    let permitted = |story: &Story| {
        let document = SagaDocument {
            plan: story.plan.clone(),
            request: KeptRequest::default(),
            log: story.state.clone(),
        };
        let PermittedDecisions { cancel, steps } = permitted_decisions(&document, story.now_ms);
        (cancel, steps)
    };
    let mut held = Story::with_done(chain(), 1);
    held.does(1, Action, HELD);
    for (name, story, expected) in [
        ("nothing is done", Story::of(chain()), (true, vec![])),
        ("a step is held", held, (true, vec![])),
        ("a definite no after the pivot", refused_after_the_pivot(), (false, vec![2])),
        ("a compensation that was refused", refused_compensation(), (false, vec![1])),
        ("it goes back", Story::going_back(), (false, vec![])),
    ] {
        assert_eq!(permitted(&story), expected, "{name}");
    }
}
