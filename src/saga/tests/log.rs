//! The stored form of a log, its bounds, and the keys of steps.

use std::collections::BTreeSet;

use super::story::{Action, HELD, RELEASED, Story, Undo, answer, chain, success};
use crate::key::{Key, KeySyntax};
use crate::saga::kept::KeptAnswer;
use crate::saga::log::{
    ActionState, InvalidSagaInstance, SagaDecisionKind, SagaInstance, SagaState,
};
use crate::saga::outcome::StepOutcome;
use crate::saga::plan::{KEPT_BODY_MAX, KEPT_BYTES_MAX};
use crate::saga::step_key::StepKey;

/// Gateways of the next versions read this text. A change of it needs a change of the format.
const GOLDEN: &str = concat!(
    r#"{"instance":"07070707070707070707070707070707","started_ms":1000000,"#,
    r#""record_life_ms":80000000,"kept_bytes":106,"stuck_ms":0,"stuck_since_ms":1000000,"#,
    r#""back":{"step":{"step":2}},"steps":["#,
    r#"{"action":{"done":{"run":{"generation":0,"attempts":1,"begun_ms":1000000,"#,
    r#""ended_ms":1000000},"answer":{"status":201,"body":"{}"}}},"compensation":"waiting"},"#,
    r#"{"action":{"done":{"run":{"generation":0,"attempts":1,"begun_ms":1000000,"#,
    r#""ended_ms":1000000},"answer":{"status":200,"location":"/b/1"}}},"compensation":"#,
    r#"{"begun":{"generation":1,"begun_ms":1000000,"known_ms":1000000,"released":1,"#,
    r#""standing":"held","due_ms":1001000}}},"#,
    r#"{"action":{"failed":{"run":{"generation":0,"attempts":1,"begun_ms":1000000,"#,
    r#""ended_ms":1000000},"why":{"status":422}}},"compensation":"waiting"}],"#,
    r#""decisions":[{"at_ms":1000000,"kind":"retry","step":1,"reason":"asked the bank"}]}"#,
);

#[test]
fn a_log_is_stored_as_this_text_and_read_again() {
    let mut story = Story::of(chain());
    story.does(0, Action, success());
    let location = Some("/b/1".to_owned());
    let second = KeptAnswer { status: 200, body: None, location, etag: None };
    story.does(1, Action, StepOutcome::Success(second));
    story.does(2, Action, StepOutcome::Failure { status: 422 });
    story.does(1, Undo, StepOutcome::Failure { status: 500 });
    story.decided(SagaDecisionKind::Retry, Some(1)).unwrap();
    story.outcome(1, Undo, RELEASED);
    story.outcome(1, Undo, HELD);
    let text = serde_json::to_string(&story.state).unwrap();
    assert_eq!(text, GOLDEN);
    assert_eq!(serde_json::from_str::<SagaState>(GOLDEN).unwrap(), story.state);
}

#[test]
fn a_log_with_an_unknown_member_is_refused() {
    let unknown = GOLDEN.replacen("\"steps\"", "\"color\":1,\"steps\"", 1);
    assert!(serde_json::from_str::<SagaState>(&unknown).is_err());
    let unknown = GOLDEN.replace("\"known_ms\"", "\"color\":1,\"known_ms\"");
    assert!(serde_json::from_str::<SagaState>(&unknown).is_err());
}

#[test]
fn an_instance_has_one_spelling() {
    let instance = SagaInstance::from_random([1, 0xff]);
    assert_eq!(instance.to_string(), "000000000000000100000000000000ff");
    assert_eq!(SagaInstance::try_from(instance.to_string()), Ok(instance));
    for wrong in ["", "00", "000000000000000100000000000000FF"] {
        assert_eq!(SagaInstance::try_from(wrong.to_owned()), Err(InvalidSagaInstance));
    }
}

#[test]
fn a_body_that_is_too_long_is_dropped_and_the_rest_of_the_answer_is_kept() {
    for (length, is_kept) in [(KEPT_BODY_MAX, true), (KEPT_BODY_MAX + 1, false)] {
        let mut story = Story::of(chain());
        let answer = KeptAnswer {
            body: Some("x".repeat(length).into()),
            location: Some("/a".to_owned()),
            ..answer(201)
        };
        story.does(0, Action, StepOutcome::Success(answer));
        let ActionState::Done { answer: Some(kept), .. } = story.action(0) else { panic!() };
        assert_eq!((kept.status, kept.body.is_some()), (201, is_kept));
        assert_eq!(kept.location.as_deref(), Some("/a"));
    }
}

#[test]
fn all_kept_data_stays_within_its_bound() {
    let mut story = Story::of(super::story::plan(&[
        ("a", &[]),
        ("b", &[]),
        ("c", &[]),
        ("d", &[]),
        ("e", &[]),
        ("f", &[]),
    ]));
    story.state.kept_bytes = 100;
    for step in 0..6 {
        let body = if step == 5 { "{}".to_owned() } else { "x".repeat(KEPT_BODY_MAX) };
        let answer = KeptAnswer { body: Some(body.into()), ..answer(201) };
        story.does(step, Action, StepOutcome::Success(answer));
    }
    let has_body = |step: usize| match story.action(step) {
        ActionState::Done { answer: Some(answer), .. } => answer.body.is_some(),
        _ => panic!(),
    };
    let kept: Vec<bool> = (0..6).map(has_body).collect();
    assert_eq!(kept, [true, true, true, false, false, true], "earlier answers stay");
    assert!(story.state.kept_bytes <= KEPT_BYTES_MAX);
    let long = Some("/".repeat(KEPT_BYTES_MAX));
    let mut story = Story::of(chain());
    let answer = KeptAnswer { location: long, ..answer(201) };
    story.does(0, Action, StepOutcome::Success(answer));
    let ActionState::Done { answer: Some(kept), .. } = story.action(0) else { panic!() };
    assert_eq!((&kept.location, kept.body.as_deref()), (&None, Some(&b"{}"[..])));
}

#[test]
fn each_operation_has_its_own_key_which_routes_accept() {
    let (one, other) = (SagaInstance([1; 16]), SagaInstance([2; 16]));
    let key = StepKey::new(one, "charge", Action, 0);
    assert_eq!(key, StepKey::new(one, "charge", Action, 0));
    let others = [
        StepKey::new(other, "charge", Action, 0),
        StepKey::new(one, "reserve", Action, 0),
        StepKey::new(one, "charge", Undo, 0),
        StepKey::new(one, "charge", Action, 1),
    ];
    let distinct: BTreeSet<&str> = others.iter().chain([&key]).map(StepKey::as_str).collect();
    assert_eq!(distinct.len(), 5);
    for syntax in [KeySyntax::UuidV4, KeySyntax::Uuid, KeySyntax::Word, KeySyntax::Bare] {
        assert!(Key::parse(key.as_str().as_bytes(), syntax, StepKey::BYTES).is_ok(), "{key}");
    }
}

#[test]
fn the_key_of_an_operation_never_changes() {
    // A gateway of another version continues with the same key, or it would run the step twice.
    let key = StepKey::new(SagaInstance([7; 16]), "charge", Undo, 3);
    assert_eq!(key.to_string(), "5020ea6b-ac70-4d29-ab50-75ed6a6acc22");
}
