//! Random plans and random happenings: a saga ends completed or undone, or waits for a person.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::story::{ASKING, Action, HELD, LIFE_MS, REFUSED, RELEASED, Story, Undo, plan, success};
use crate::entropy::Entropy;
use crate::saga::log::{
    ActionState, CompensationState, SagaDecisionKind, SagaEnd, SagaState, StepDirection,
    StepFailure,
};
use crate::saga::machine::{Happening, SagaTodo, StateChange, StepSet};
use crate::saga::outcome::StepOutcome;
use crate::saga::plan::{Compensation, Plan};
use crate::saga::status::{SagaStatus, stuck_steps};

/// Steps of a history in which anything can happen, and more steps than an end takes after it.
const WILD_STEPS: usize = 60;
const CALM_STEPS: usize = 400;

/// The state of an operation at its upstream and in its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Executed,
    Refused,
    Barred,
    /// Nobody knows yet; with whether it was executed.
    Uncertain(bool),
}

/// A saga with the truth about its operations.
struct History {
    story: Story,
    /// The state as it is in the store.
    written: SagaState,
    truths: BTreeMap<(usize, StepDirection, u32), Truth>,
    entropy: Entropy,
    is_calm: bool,
}

impl History {
    fn new(plan: Plan, seed: u64) -> History {
        let story = Story::of(plan);
        let written = story.state.clone();
        let (truths, entropy) = (BTreeMap::new(), Entropy::from_seed(seed));
        History { story, written, truths, entropy, is_calm: false }
    }

    fn below(&self, bound: usize) -> usize {
        (self.entropy.next() % bound as u64) as usize
    }

    fn happens(&mut self, happening: Happening) {
        let Ok(change) = self.story.apply(happening) else { return };
        if change == StateChange::Write {
            self.written = self.story.state.clone();
        }
        self.check();
    }

    /// Takes one step. Returns whether the saga has not ended.
    fn step(&mut self) -> bool {
        if self.story.state.end.is_some() {
            return false;
        }
        if !self.is_calm {
            match self.below(20) {
                0 => self.story.state = self.written.clone(),
                1 => self.decide_something(),
                2 if self.below(8) == 0 => self.story.now_ms += LIFE_MS,
                2 => self.story.now_ms += 300_000,
                _ => {}
            }
        }
        let todos = self.story.todos();
        if todos.is_empty() {
            match self.story.wake_ms() {
                Some(wake_ms) if !self.is_calm || self.below(2) == 0 => self.story.now_ms = wake_ms,
                _ => self.decide_something(),
            }
            return true;
        }
        let todo = todos[self.below(todos.len())];
        self.carry_out(todo);
        true
    }

    fn decide_something(&mut self) {
        let stuck = stuck_steps(&self.story.plan, &self.story.state, self.story.now_ms);
        let kind = match self.below(if self.is_calm { 2 } else { 3 }) {
            0 => SagaDecisionKind::Retry,
            1 => SagaDecisionKind::Skip,
            _ => SagaDecisionKind::Cancel,
        };
        let step = stuck.first().map_or(0, |stuck| stuck.step);
        if self.story.decided(kind, Some(step)) == Ok(StateChange::Write) {
            self.written = self.story.state.clone();
        }
        self.check();
    }

    fn carry_out(&mut self, todo: SagaTodo) {
        let is_wild = !self.is_calm && self.below(10) == 0;
        let why = StepFailure::Unrendered("x".into());
        match todo {
            SagaTodo::Refresh => {
                self.happens(Happening::TimePassed);
                assert!(!self.story.todos().contains(&SagaTodo::Refresh));
            }
            SagaTodo::Begin { step } if is_wild && self.below(2) == 0 => {
                self.happens(Happening::Skipped { step });
            }
            SagaTodo::Begin { step } if is_wild => {
                self.happens(Happening::Unsendable { step, direction: Action, why });
            }
            SagaTodo::Compensate { step } if is_wild => {
                self.happens(Happening::Unsendable { step, direction: Undo, why });
            }
            SagaTodo::Begin { step } => self.happens(Happening::Begun { step, direction: Action }),
            SagaTodo::Compensate { step } => {
                self.happens(Happening::Begun { step, direction: Undo });
            }
            SagaTodo::Call { step, direction, generation, continues } => {
                let outcome = self.call((step, direction, generation), continues);
                self.has_outcome(step, direction, generation, outcome);
            }
            SagaTodo::Bar { step, direction, generation } => {
                let outcome = self.bar((step, direction, generation));
                self.has_outcome(step, direction, generation, outcome);
            }
            SagaTodo::Settle { .. } => self.happens(Happening::Settled),
        }
    }

    fn has_outcome(
        &mut self,
        step: usize,
        direction: StepDirection,
        generation: u32,
        outcome: StepOutcome,
    ) {
        let random = self.entropy.next();
        self.happens(Happening::Outcome { step, direction, generation, outcome, random });
    }

    fn call(&mut self, operation: (usize, StepDirection, u32), continues: bool) -> StepOutcome {
        let is_settled_now = self.is_calm || self.below(3) == 0;
        match self.truths.get(&operation) {
            None if continues => StepOutcome::Absent,
            None if self.is_calm => self.executes(operation),
            None => match self.below(12) {
                0 => self.becomes(operation, Truth::Refused, REFUSED),
                1 | 2 => RELEASED,
                3 => StepOutcome::NotExecuted { status: None },
                4 => StepOutcome::Busy { retry_after_ms: 1_000 },
                5 => StepOutcome::InFlight { retry_after_ms: 1_000 },
                6 => StepOutcome::Invalid { why: "body-too-large".into() },
                7 => StepOutcome::Unconfigured { why: "STOCK_TOKEN".into() },
                8 | 9 => {
                    let was_executed = self.below(2) == 0;
                    if was_executed {
                        self.executes(operation);
                    }
                    self.becomes(operation, Truth::Uncertain(was_executed), HELD)
                }
                _ => self.executes(operation),
            },
            Some(Truth::Executed) => success(),
            Some(Truth::Refused) => REFUSED,
            Some(Truth::Barred) => StepOutcome::Barred,
            Some(Truth::Uncertain(true)) if is_settled_now => {
                self.becomes(operation, Truth::Executed, success())
            }
            Some(Truth::Uncertain(false)) if is_settled_now => {
                self.truths.remove(&operation);
                StepOutcome::Released
            }
            Some(Truth::Uncertain(_)) => ASKING,
        }
    }

    fn bar(&mut self, operation: (usize, StepDirection, u32)) -> StepOutcome {
        match self.truths.get(&operation) {
            None if !self.is_calm && self.below(4) == 0 => {
                // Another gateway claims the operation in this moment.
                self.executes(operation);
                StepOutcome::InFlight { retry_after_ms: 1_000 }
            }
            None => self.becomes(operation, Truth::Barred, StepOutcome::Barred),
            Some(Truth::Executed) => success(),
            Some(Truth::Refused) => REFUSED,
            Some(Truth::Barred) => StepOutcome::Barred,
            Some(Truth::Uncertain(_)) => HELD,
        }
    }

    fn becomes(
        &mut self,
        operation: (usize, StepDirection, u32),
        truth: Truth,
        outcome: StepOutcome,
    ) -> StepOutcome {
        self.truths.insert(operation, truth);
        outcome
    }

    /// An operation is executed, by this gateway or by another one.
    fn executes(&mut self, operation: (usize, StepDirection, u32)) -> StepOutcome {
        let (step, direction, _) = operation;
        assert!(!self.is_executed(step, direction), "{direction:?} of {step} runs twice");
        let steps = 0..self.story.plan.steps.len();
        if direction == Action {
            let is_undoing = steps.clone().any(|step| self.is_executed(step, Undo));
            assert!(!is_undoing, "the action of {step} runs after the first undo");
        } else {
            let later = StepSet::later_steps(&self.story.plan)[step];
            for other in steps.filter(|other| later.contains(*other)) {
                assert!(self.is_undone(other), "{step} is undone before {other}");
            }
        }
        self.becomes(operation, Truth::Executed, success())
    }

    fn is_executed(&self, step: usize, direction: StepDirection) -> bool {
        self.truths.iter().any(|((of, to, _), truth)| {
            let is_executed = matches!(truth, Truth::Executed | Truth::Uncertain(true));
            (*of, *to) == (step, direction) && is_executed
        })
    }

    /// Whether nothing of a step is left to undo.
    fn is_undone(&self, step: usize) -> bool {
        let needs_nothing = self.story.plan.steps[step].compensation == Compensation::None;
        let by_hand = matches!(
            self.story.compensation(step),
            CompensationState::Undone { by_hand: true, .. }
        );
        !self.is_executed(step, Action) || needs_nothing || by_hand || self.is_executed(step, Undo)
    }

    /// Checks the state after each change.
    fn check(&self) {
        let Story { state, .. } = &self.story;
        let has_unsettled =
            state.steps.iter().any(|step| matches!(step.action, ActionState::Begun(_)));
        let is_undoing =
            state.steps.iter().any(|step| step.compensation != CompensationState::Waiting);
        assert!(!(has_unsettled && is_undoing), "an undo while an action is unsettled: {state:?}");
        let mut todos = self.story.todos().into_iter();
        let begins = |todo: &SagaTodo| matches!(todo, SagaTodo::Begin { .. });
        assert!(state.back.is_none() || !todos.any(|todo| begins(&todo)), "{state:?}");
        let is_stuck = !stuck_steps(&self.story.plan, state, self.story.now_ms).is_empty();
        assert_eq!(is_stuck, self.story.status() == SagaStatus::Stuck, "{state:?}");
        let text = serde_json::to_string(state).unwrap();
        assert_eq!(serde_json::from_str::<SagaState>(&text).unwrap(), *state);
    }

    fn check_end(&self) {
        let Story { state, plan, .. } = &self.story;
        for step in 0..plan.steps.len() {
            match state.end {
                Some(SagaEnd::Completed { .. }) => {
                    let by_hand =
                        matches!(self.story.action(step), ActionState::Done { answer: None, .. });
                    let skipped = matches!(self.story.action(step), ActionState::Skipped { .. });
                    assert!(
                        self.is_executed(step, Action) || by_hand || skipped,
                        "{step}: {state:?}"
                    );
                    assert!(!self.is_executed(step, Undo), "{step}: {state:?}");
                }
                Some(SagaEnd::Failed { .. }) => {
                    assert!(self.is_undone(step), "{step}: {state:?}");
                }
                None => panic!("neither completed nor failed: {state:?} {:?}", self.story.todos()),
            }
        }
    }
}

/// Plans of up to six steps. Every step is before or after the pivot, if there is one.
fn plans() -> impl Strategy<Value = Plan> {
    let steps = 1..7_usize;
    let parts = (steps, any::<u32>(), any::<u32>(), proptest::option::of(0..6_usize), 1..3_u32);
    parts.prop_map(|(count, edges, undoable, pivot, attempts)| {
        let pivot = pivot.filter(|pivot| *pivot < count);
        let is_edge = |from: usize, to: usize| {
            let is_drawn = edges.rotate_left((from * 7 + to * 11) as u32) & 1 == 1;
            let joins = pivot.is_some_and(|pivot| from == pivot || to == pivot);
            is_drawn || joins
        };
        let after = |to: usize| (0..to).filter(|from| is_edge(*from, to)).collect::<Vec<_>>();
        let afters: Vec<Vec<usize>> = (0..count).map(after).collect();
        let steps: Vec<(&str, &[usize])> =
            (0..count).map(|step| (["a", "b", "c", "d", "e", "f"][step], &*afters[step])).collect();
        let mut plan = plan(&steps);
        for (number, step) in plan.steps.iter_mut().enumerate() {
            step.retry.attempts = attempts;
            step.pivot = pivot == Some(number);
            let is_before = pivot.is_none_or(|pivot| number < pivot);
            if !is_before || undoable.rotate_left(number as u32) & 7 == 0 {
                step.compensation = Compensation::None;
            }
        }
        plan
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_saga_is_completed_or_undone_once_people_and_upstreams_settle_it(
        plan in plans(),
        seed in any::<u64>(),
    ) {
        let mut history = History::new(plan, seed);
        let _ = (0..WILD_STEPS).all(|_| history.step());
        history.is_calm = true;
        let mut left = CALM_STEPS;
        while history.step() && left > 0 {
            left -= 1;
        }
        history.check_end();
    }
}
