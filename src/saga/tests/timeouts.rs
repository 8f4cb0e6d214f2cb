//! The timeout, and the time that does not count.

use super::story::{
    Action, COMPLETED, FAILED, HELD, RELEASED, START_MS, Story, TIMEOUT_MS, Undo, bar, call, chain,
    chain_with_pivot, compensate, plan, success,
};
use crate::saga::log::BackCause;
use crate::saga::machine::{Happening, HappeningDenied, SagaTodo, StateChange, failure};
use crate::saga::outcome::StepOutcome;
use crate::saga::status::SagaStatus;

#[test]
fn a_saga_that_is_late_goes_back_before_anything_else_happens() {
    let mut story = Story::with_done(chain(), 1);
    assert_eq!(story.wake_ms(), Some(START_MS + TIMEOUT_MS));
    story.wait();
    assert_eq!(story.todos(), [SagaTodo::Refresh], "the timeout is written first");
    let begun = Happening::Begun { step: 1, direction: Action };
    assert_eq!(story.apply(begun), Err(HappeningDenied::NotNow));
    assert_eq!(story.happens(Happening::TimePassed), StateChange::Write);
    assert_eq!(story.state.back, Some(BackCause::Timeout { at_ms: story.now_ms }));
    assert_eq!(failure(&story.state).unwrap().why, None);
    assert_eq!(story.todos(), [compensate(0)]);
}

#[test]
fn a_timeout_awaits_what_is_under_way_and_ends_retries() {
    let mut story = Story::of(plan(&[("a", &[]), ("b", &[]), ("c", &[])]));
    (0..3).for_each(|step| story.begin(step, Action));
    story.outcome(0, Action, success());
    story.outcome(1, Action, RELEASED);
    story.later(TIMEOUT_MS);
    assert_eq!(story.todos(), [bar(1, Action), call(2, Action, 0, true)], "no undo yet");
    story.outcome(1, Action, StepOutcome::Barred);
    story.outcome(2, Action, success());
    assert_eq!(story.todos(), [compensate(0), compensate(2)]);
}

#[test]
fn a_timeout_ends_no_compensation() {
    let mut story = Story::going_back();
    story.begin(1, Undo);
    story.later(10 * TIMEOUT_MS);
    assert_eq!(story.todos(), [call(1, Undo, 0, false)]);
    story.outcome(1, Undo, success());
    assert_eq!(story.todos(), [compensate(0)]);
}

#[test]
fn a_timeout_before_the_first_step_fails_the_saga() {
    let mut story = Story::of(chain());
    story.later(TIMEOUT_MS);
    assert_eq!(story.todos(), [FAILED]);
}

#[test]
fn a_saga_with_all_actions_done_is_never_late() {
    let mut story = Story::with_done(chain(), 3);
    story.later(TIMEOUT_MS);
    assert_eq!(story.todos(), [COMPLETED]);
}

#[test]
fn time_in_which_the_saga_is_stuck_does_not_count() {
    let mut story = Story::of(chain());
    story.later(1_000);
    story.begin(0, Action);
    story.outcome(0, Action, HELD);
    story.later(5 * TIMEOUT_MS);
    assert_eq!((story.state.back, story.status()), (None, SagaStatus::Stuck));
    story.outcome(0, Action, success());
    assert_eq!(story.wake_ms(), Some(story.now_ms + TIMEOUT_MS - 1_000));
    story.later(TIMEOUT_MS - 1_001);
    assert_eq!(story.state.back, None);
    story.later(1);
    assert!(story.state.back.is_some());
}

#[test]
fn the_timeout_waits_for_the_pivot_and_is_over_once_it_is_done() {
    let mut story = Story::with_done(chain_with_pivot(), 1);
    story.begin(1, Action);
    story.later(TIMEOUT_MS);
    assert_eq!(story.state.back, None);
    story.outcome(1, Action, success());
    story.later(TIMEOUT_MS);
    assert_eq!(story.todos(), [super::story::begin(2)], "forward only");
    let mut refused = Story::with_done(chain_with_pivot(), 1);
    refused.begin(1, Action);
    refused.later(TIMEOUT_MS);
    refused.outcome(1, Action, super::story::REFUSED);
    assert_eq!(refused.state.back, Some(BackCause::Step { step: 1 }));
}

#[test]
fn an_action_that_is_asked_about_for_long_is_stuck_and_asked_about_nevertheless() {
    let mut story = Story::of(chain());
    story.plan.timeout_ms = u64::MAX;
    story.begin(0, Action);
    story.outcome(0, Action, super::story::ASKING);
    story.later(14 * 60_000);
    assert_eq!(story.status(), SagaStatus::Running);
    story.later(60_000);
    assert_eq!(story.status(), SagaStatus::Stuck);
    assert_eq!(story.todos(), [super::story::call(0, Action, 0, true)]);
    story.outcome(0, Action, success());
    assert_eq!(story.status(), SagaStatus::Running);
}
