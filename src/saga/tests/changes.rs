//! What the writes of a saga's record change, in the words of the event log.

use std::sync::Arc;

use super::story::{
    Action, HELD, REFUSED, START_MS, Story, Undo, answer, chain, chain_with_pivot, plan, success,
};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::event::ChangedSaga;
use crate::gate::{Gate, Settings};
use crate::saga::changes::{SagaMark, started};
use crate::saga::document::SagaDocument;
use crate::saga::kept::KeptRequest;
use crate::saga::log::{SagaDecisionKind, StepFailure};
use crate::saga::machine::Happening;
use crate::saga::outcome::StepOutcome;
use crate::saga::status::SagaStatus;
use crate::store::memory::Memory;
use crate::telemetry::Meter;

/// The record of a saga, and the events of its writes.
struct Writes {
    gate: Arc<Gate>,
    written: SagaMark,
}

impl Writes {
    fn of(story: &Story) -> Writes {
        let clock = Clock::system();
        let store = Arc::new(Memory::new(clock.anchored()));
        let gate =
            Gate::new(store, clock, Entropy::from_seed(7), Meter::new(), Settings::default());
        Writes { gate, written: SagaMark::of(&story.state) }
    }

    /// Writes the record. Returns what that changes.
    fn write(&mut self, story: &Story, end: Option<SagaStatus>) -> Option<ChangedSaga> {
        let change = self.written.change(&self.gate, &document(story), story.now_ms, end);
        self.written = SagaMark::of(&story.state);
        change
    }

    /// Writes the record. Returns the names of its events, its steps and the reasons of its stop.
    fn words(&mut self, story: &Story, end: Option<SagaStatus>) -> String {
        self.write(story, end).map_or("nothing".to_owned(), |change| words(&change))
    }
}

fn document(story: &Story) -> SagaDocument {
    let request = KeptRequest { body: "the card number".into(), ..KeptRequest::default() };
    SagaDocument { plan: story.plan.clone(), request, log: story.state.clone() }
}

fn words(change: &ChangedSaga) -> String {
    let steps = change.steps.iter().map(|step| {
        let attempts = step.attempts;
        let cause = step.cause.as_ref().map(|cause| format!(" {cause}")).unwrap_or_default();
        let status = step.upstream_status.map(|it| format!(" {it}")).unwrap_or_default();
        let has_operation = if step.operation.is_some() { "" } else { " unsent" };
        format!(
            "{} {} {} x{attempts}{cause}{status}{has_operation}",
            step.direction, step.name, step.status
        )
    });
    let stuck = change.stuck.iter().map(|it| format!("{} {} {}", it.direction, it.step, it.cause));
    let failure = change.failure.iter().map(|it| format!("{} {:?}", it.cause, it.step));
    let mut words = vec![change.events.join(" "), change.status.clone()];
    words.extend(steps.chain(stuck).chain(failure));
    words.join("; ")
}

#[test]
fn a_saga_that_completes_names_its_start_each_step_and_its_end() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    let mut writes = Writes::of(&story);
    let start = words(&started(&writes.gate, &document(&story)));
    assert_eq!(start, "saga.started; running; action a running x1");
    assert_eq!(writes.words(&story, None), "nothing", "the claim has named it");
    story.outcome(0, Action, success());
    story.begin(1, Action);
    let expected = "saga.step; running; action a done x1 201; action b running x1";
    assert_eq!(writes.words(&story, None), expected);
    story.happens(Happening::TimePassed);
    assert_eq!(writes.words(&story, None), "nothing", "no status changed");
    story.outcome(1, Action, success());
    story.happens(Happening::Skipped { step: 2 });
    let expected = "saga.step saga.completed; completed; action b done x1 201; \
                    action c skipped x0 unsent";
    assert_eq!(writes.words(&story, Some(SagaStatus::Completed)), expected);
}

#[test]
fn a_saga_that_fails_names_what_failed_and_what_was_undone() {
    let mut story = Story::with_done(chain(), 2);
    let mut writes = Writes::of(&story);
    story.does(2, Action, REFUSED);
    story.begin(1, Undo);
    let expected = "saga.step; compensating; compensation b undoing x1; \
                    action c failed x1 status 422";
    assert_eq!(writes.words(&story, None), expected);
    story.outcome(1, Undo, success());
    story.does(0, Undo, StepOutcome::Success(answer(404)));
    let expected = "saga.step saga.failed; failed; compensation a undone x1; \
                    compensation b undone x1; step Some(\"c\")";
    assert_eq!(writes.words(&story, Some(SagaStatus::Failed)), expected);
}

#[test]
fn a_saga_is_stuck_once_and_resumed_once_however_often_it_is_written() {
    let mut story = Story::with_done(plan(&[("a", &[]), ("b", &[]), ("c", &[])]), 1);
    let mut writes = Writes::of(&story);
    story.begin(1, Action);
    story.begin(2, Action);
    story.outcome(1, Action, HELD);
    story.happens(Happening::TimePassed);
    let expected = "saga.step saga.stuck; stuck; action b uncertain x1; action c running x1; \
                    action b held";
    assert_eq!(writes.words(&story, None), expected);
    story.outcome(2, Action, HELD);
    assert_eq!(writes.words(&story, None), "saga.step; stuck; action c uncertain x1");
    assert_eq!(writes.words(&story, None), "nothing");
    story.outcome(1, Action, success());
    assert_eq!(writes.words(&story, None), "saga.step; stuck; action b done x1 201");
    story.outcome(2, Action, success());
    let expected = "saga.resumed saga.step; running; action c done x1 201";
    assert_eq!(writes.words(&story, None), expected);
}

#[test]
fn an_operators_retry_of_a_refused_step_resumes_the_saga() {
    let mut story = Story::with_done(chain_with_pivot(), 2);
    let mut writes = Writes::of(&story);
    story.does(2, Action, REFUSED);
    story.happens(Happening::TimePassed);
    let first = writes.write(&story, None).unwrap();
    let expected = "saga.step saga.stuck; stuck; action c failed x1 status 422; action c refused";
    assert_eq!(words(&first), expected);
    story.decided(SagaDecisionKind::Retry, Some(2)).unwrap();
    let again = writes.write(&story, None).unwrap();
    assert_eq!(words(&again), "saga.resumed saga.step; running; action c running x1");
    assert_ne!(first.steps[0].operation, again.steps[0].operation, "a new key");
}

#[test]
fn no_event_has_anything_of_a_request_an_answer_or_a_key() {
    let mut story = Story::of(chain());
    story.begin(0, Action);
    let mut writes = Writes::of(&story);
    story.outcome(0, Action, StepOutcome::Success(answer(201)));
    let why = StepFailure::Unrendered("the card number".to_owned());
    story.happens(Happening::Unsendable { step: 1, direction: Action, why });
    story.now_ms = START_MS + 1;
    let change = writes.write(&story, None).unwrap();
    assert_eq!(change.steps[1].cause.as_deref(), Some("unrendered"));
    let text = serde_json::to_string(&change).unwrap();
    let key = crate::saga::step_key::StepKey::new(story.state.instance, "a", Action, 0);
    for secret in ["card", "\"{}\"", key.as_str()] {
        assert!(!text.contains(secret), "{text}");
    }
}
