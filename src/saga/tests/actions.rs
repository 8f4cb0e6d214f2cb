//! The outcomes of actions.

use super::story::{
    ASKING, Action, COMPLETED, FAILED, HELD, REFUSED, RELEASED, Story, bar, begin, call, chain,
    plan, success,
};
use crate::saga::log::{
    ActionState, BackCause, GivenUp, RunStanding, SagaDecisionKind, SagaEnd, StepFailure,
};
use crate::saga::machine::{Happening, HappeningDenied, StateChange, failure, is_evidence_due};
use crate::saga::outcome::StepOutcome;
use crate::saga::status::{SagaStatus, StepStatus};

#[test]
fn steps_begin_one_after_the_other_and_the_saga_is_completed() {
    let mut story = Story::of(chain());
    assert_eq!(story.status(), SagaStatus::Pending);
    for step in 0..3 {
        assert_eq!(story.todos(), [begin(step)]);
        story.begin(step, Action);
        assert_eq!(story.status(), SagaStatus::Running);
        assert_eq!(story.todos(), [call(step, Action, 0, false)]);
        assert_eq!(story.outcome(step, Action, success()), StateChange::Write);
    }
    assert_eq!(story.todos(), [COMPLETED]);
    assert_eq!(story.happens(Happening::Settled), StateChange::Write);
    assert_eq!(story.state.end, Some(SagaEnd::Completed { at_ms: story.now_ms }));
    assert_eq!((story.status(), story.todos()), (SagaStatus::Completed, vec![]));
    let ActionState::Done { answer: Some(answer), .. } = story.action(0) else { panic!() };
    assert_eq!((answer.status, &answer.body), (201, &None), "kept bodies end with the saga");
}

#[test]
fn steps_that_wait_for_the_same_ones_run_side_by_side() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[0]), ("c", &[0]), ("d", &[1, 2])]));
    story.does(0, Action, success());
    assert_eq!(story.todos(), [begin(1), begin(2)]);
    story.begin(1, Action);
    story.begin(2, Action);
    assert_eq!(story.todos(), [call(1, Action, 0, false), call(2, Action, 0, false)]);
    story.outcome(2, Action, success());
    assert_eq!(story.todos(), [call(1, Action, 0, false)], "d waits for both");
    story.outcome(1, Action, success());
    assert_eq!(story.todos(), [begin(3)]);
}

#[test]
fn a_definite_no_begins_nothing_further_and_awaits_what_is_under_way() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[]), ("c", &[])]));
    story.begin(0, Action);
    story.begin(1, Action);
    assert_eq!(story.outcome(0, Action, REFUSED), StateChange::Write);
    assert_eq!(story.state.back, Some(BackCause::Step { step: 0 }));
    assert_eq!(failure(&story.state).unwrap().why, Some(&StepFailure::Status(422)));
    assert_eq!(story.todos(), [call(1, Action, 0, true)], "neither c nor an undo");
    let begun = Happening::Begun { step: 2, direction: Action };
    assert_eq!(story.apply(begun), Err(HappeningDenied::NotNow));
    story.outcome(1, Action, REFUSED);
    assert_eq!(story.todos(), [FAILED], "nothing was executed");
    assert_eq!(story.state.back, Some(BackCause::Step { step: 0 }), "the first one is the cause");
}

#[test]
fn an_attempt_that_was_not_executed_is_repeated_under_the_same_key_after_a_pause() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    for longest_ms in [200, 400] {
        assert_eq!(story.outcome(0, Action, RELEASED), StateChange::Memory, "no write per attempt");
        assert_eq!((story.todos(), story.statuses()[0]), (vec![], StepStatus::Retrying));
        let before_ms = story.now_ms;
        story.wait();
        assert_eq!(story.now_ms - before_ms, longest_ms - 1, "evenly below the longest pause");
        assert_eq!(story.todos(), [call(0, Action, 0, false)]);
    }
}

#[test]
fn after_its_attempts_an_action_is_barred_and_then_counts_as_refused() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    story.outcome(0, Action, RELEASED);
    story.outcome(0, Action, StepOutcome::NotExecuted { status: None });
    assert_eq!(story.outcome(0, Action, RELEASED), StateChange::Write, "written before the bar");
    assert_eq!(story.todos(), [bar(0, Action)], "another gateway may be about to claim it");
    assert_eq!(story.state.back, None);
    story.outcome(0, Action, StepOutcome::Barred);
    let why = StepFailure::Attempts { status: Some(503) };
    assert!(matches!(story.action(0), ActionState::Failed { why: found, .. } if *found == why));
    assert_eq!(story.todos(), [FAILED]);
}

#[test]
fn an_action_that_is_given_up_and_was_executed_meanwhile_is_done() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[]), ("c", &[0])]));
    story.begin(0, Action);
    story.outcomes(0, Action, [RELEASED; 3]);
    assert_eq!(story.todos(), [bar(0, Action)], "b does not begin before it is clear");
    story.outcome(0, Action, StepOutcome::InFlight { retry_after_ms: 500 });
    story.wait();
    assert_eq!(story.todos(), [call(0, Action, 0, true)], "the bar lost: look, and begin nothing");
    story.outcome(0, Action, success());
    assert_eq!(story.todos(), [begin(1), begin(2)]);
}

#[test]
fn own_overload_and_a_store_that_is_away_do_not_count() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    for _ in 0..100 {
        story.outcome(0, Action, StepOutcome::Busy { retry_after_ms: 1_000 });
        assert_eq!(story.todos(), []);
        story.wait();
        assert_eq!(story.todos(), [call(0, Action, 0, false)]);
    }
    assert_eq!((story.status(), story.statuses()[0]), (SagaStatus::Running, StepStatus::Running));
}

#[test]
fn an_uncertain_action_is_looked_at_and_begins_nothing_until_it_is_settled() {
    for (outcome, status) in [(ASKING, SagaStatus::Running), (HELD, SagaStatus::Stuck)] {
        let mut story = Story::of(plan(&[("a", &[]), ("b", &[])]));
        story.begin(0, Action);
        story.outcome(0, Action, outcome);
        assert_eq!((story.status(), story.statuses()[0]), (status, StepStatus::Uncertain));
        story.wait();
        assert_eq!(story.todos(), [call(0, Action, 0, true)], "it never begins anew");
        story.outcome(0, Action, success());
        assert_eq!((story.status(), story.todos()), (SagaStatus::Running, vec![begin(1)]));
    }
}

#[test]
fn an_uncertain_action_that_was_not_executed_is_sent_again_under_the_same_key() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    story.outcome(0, Action, HELD);
    story.outcome(0, Action, StepOutcome::Released);
    assert_eq!(story.todos(), [call(0, Action, 0, false)]);
    assert_eq!(story.state.run(0, Action).unwrap().released, 0, "it is no attempt");
}

#[test]
fn an_uncertain_action_without_its_record_is_lost_however_soon_it_is_gone() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    story.outcome(0, Action, HELD);
    story.outcome(0, Action, StepOutcome::Absent);
    assert_eq!(story.state.run(0, Action).unwrap().standing, RunStanding::Lost);
    assert_eq!(story.todos(), []);
}

#[test]
fn an_action_without_a_record_that_may_have_ended_is_lost_and_never_new() {
    for known in [None, Some(HELD), Some(RELEASED)] {
        let mut story = Story::of(chain());
        story.plan.timeout_ms = u64::MAX;
        story.begin(0, Action);
        story.outcomes(0, Action, known);
        story.now_ms = story.state.started_ms + super::story::LIFE_MS;
        assert_eq!(story.todos(), [call(0, Action, 0, true)]);
        story.outcome(0, Action, StepOutcome::Absent);
        assert_eq!(*story.standing(0, Action), RunStanding::Lost);
        assert_eq!((story.status(), story.todos()), (SagaStatus::Stuck, vec![]));
    }
}

#[test]
fn evidence_of_an_operation_makes_it_young_again_and_is_written_rarely() {
    let mut story = Story::of(plan(&[("a", &[])]));
    story.plan.timeout_ms = u64::MAX;
    story.begin(0, Action);
    let renewed = Happening::Renewed { step: 0, direction: Action };
    assert_eq!(story.happens(renewed.clone()), StateChange::Nothing);
    for _ in 0..20 {
        assert!(!is_evidence_due(&story.state, 0, Action, story.now_ms));
        story.now_ms += super::story::LIFE_MS / 8;
        assert!(is_evidence_due(&story.state, 0, Action, story.now_ms));
        assert_eq!(story.todos(), [call(0, Action, 0, false)], "it may begin");
        assert_eq!(story.happens(renewed.clone()), StateChange::Write);
        assert_eq!(story.happens(renewed.clone()), StateChange::Nothing);
    }
}

#[test]
fn an_action_that_can_not_be_sent_is_a_definite_no() {
    for why in [StepFailure::Unrendered("x".into()), StepFailure::Condition("x".into())] {
        let mut story = Story::of(chain());
        story.happens(Happening::Unsendable { step: 0, direction: Action, why });
        assert_eq!((story.statuses()[0], story.todos()), (StepStatus::Failed, vec![FAILED]));
    }
    let mut begun = Story::of(chain());
    begun.begin(0, Action);
    begun.outcome(0, Action, StepOutcome::Invalid { why: "body-too-large".into() });
    assert_eq!(begun.todos(), [bar(0, Action)], "an earlier attempt may have been sent");
    let given_up = &begun.state.run(0, Action).unwrap().given_up;
    assert!(matches!(given_up, Some(GivenUp::Refused(StepFailure::Invalid(_)))));
    begun.outcome(0, Action, StepOutcome::Barred);
    assert_eq!((begun.statuses()[0], begun.todos()), (StepStatus::Failed, vec![FAILED]));
}

#[test]
fn a_step_with_a_false_condition_is_skipped_and_its_successors_begin() {
    let mut story = Story::of(chain());
    assert_eq!(story.happens(Happening::Skipped { step: 0 }), StateChange::Write);
    assert_eq!((story.statuses()[0], story.todos()), (StepStatus::Skipped, vec![begin(1)]));
}

#[test]
fn a_gateway_without_the_configuration_is_stuck_and_not_wrong() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    story.outcome(0, Action, StepOutcome::Unconfigured { why: "STOCK_TOKEN".into() });
    assert_eq!((story.status(), story.statuses()[0]), (SagaStatus::Stuck, StepStatus::Retrying));
    story.wait();
    assert_eq!(story.todos(), [call(0, Action, 0, false)]);
    story.outcome(0, Action, success());
    assert_eq!((story.status(), story.todos()), (SagaStatus::Running, vec![begin(1)]));
}

#[test]
fn an_uncertain_action_stays_uncertain_on_a_gateway_without_the_configuration() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    story.outcome(0, Action, ASKING);
    story.wait();
    story.outcome(0, Action, StepOutcome::Unconfigured { why: "STOCK_TOKEN".into() });
    assert_eq!((story.status(), story.statuses()[0]), (SagaStatus::Stuck, StepStatus::Uncertain));
    story.decided(SagaDecisionKind::Cancel, None).unwrap();
    assert_eq!(
        story.todos(),
        [call(0, Action, 0, true)],
        "a bar over an empty slot proves nothing"
    );
    let skipped = story.decided(SagaDecisionKind::Skip, Some(0));
    assert_eq!(skipped, Err(HappeningDenied::OperationHeld));
    story.outcome(0, Action, StepOutcome::Absent);
    assert_eq!(*story.standing(0, Action), RunStanding::Lost);
}

#[test]
fn outcomes_of_other_generations_and_of_settled_operations_change_nothing() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    let other = |outcome| Happening::Outcome {
        step: 0,
        direction: Action,
        generation: 1,
        outcome,
        random: 0,
    };
    let before = story.state.clone();
    assert_eq!(story.happens(other(success())), StateChange::Nothing);
    assert_eq!(story.state, before);
    story.outcome(0, Action, success());
    let before = story.state.clone();
    for outcome in [success(), REFUSED, RELEASED, HELD, StepOutcome::Barred, StepOutcome::Absent] {
        assert_eq!(story.outcome(0, Action, outcome), StateChange::Nothing);
    }
    assert_eq!(story.state, before);
}

#[test]
fn a_success_that_the_log_has_as_barred_is_undone_all_the_same() {
    let mut story = Story::with_done(plan(&[("a", &[]), ("b", &[])]), 1);
    story.begin(1, Action);
    story.decided(crate::saga::log::SagaDecisionKind::Cancel, None).unwrap();
    story.outcome(1, Action, StepOutcome::Barred);
    assert_eq!(story.statuses()[1], StepStatus::Barred);
    story.outcome(1, Action, success());
    assert_eq!(story.todos(), [super::story::compensate(0), super::story::compensate(1)]);
}
