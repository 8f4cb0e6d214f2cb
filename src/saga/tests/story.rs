//! A saga in a test: its plan, its state and the time.

use crate::saga::kept::KeptAnswer;
use crate::saga::log::{
    ActionState, CompensationState, RunStanding, SagaDecision, SagaDecisionKind, SagaInstance,
    SagaState, StepDirection,
};
use crate::saga::machine::{Happening, HappeningDenied, SagaTodo, StateChange, apply, decide};
use crate::saga::outcome::StepOutcome;
use crate::saga::plan::{
    AnswerTemplate, Compensation, Plan, Step, StepRequest, StepRetry, StepSending, StepUncertain,
};
use crate::saga::status::{SagaStatus, StepStatus};

pub use StepDirection::{Action, Compensation as Undo};

pub const LIFE_MS: u64 = 80_000_000;
pub const TIMEOUT_MS: u64 = 600_000;
pub const START_MS: u64 = 1_000_000;
pub const RETRY: StepRetry = StepRetry { first_ms: 200, max_ms: 30_000, attempts: 3 };

/// Returns a plan with these steps: the name, and the positions of the steps before it.
pub fn plan(steps: &[(&str, &[usize])]) -> Plan {
    Plan {
        saga: "checkout".to_owned(),
        timeout_ms: TIMEOUT_MS,
        steps: steps.iter().map(|(name, after)| step(name, after)).collect(),
        answer: AnswerTemplate { status: 201, body: None },
        failed: None,
    }
}

/// Returns a plan of three steps, one after the other.
pub fn chain() -> Plan {
    plan(&[("a", &[]), ("b", &[0]), ("c", &[1])])
}

/// Returns the same with the second step as the pivot.
pub fn chain_with_pivot() -> Plan {
    let mut plan = chain();
    plan.steps[1].pivot = true;
    for step in &mut plan.steps[1..] {
        step.compensation = Compensation::None;
    }
    plan
}

pub fn step(name: &str, after: &[usize]) -> Step {
    let request = |method: &str| StepRequest {
        method: method.to_owned(),
        path: format!("/{name}"),
        headers: Default::default(),
        body: None,
    };
    let lists = |text: &[&str]| text.iter().map(|text| text.to_string()).collect();
    Step {
        name: name.to_owned(),
        after: after.to_vec(),
        when: None,
        pivot: false,
        action: request("POST"),
        compensation: Compensation::Request { request: request("DELETE"), gone: lists(&["404"]) },
        sending: StepSending {
            upstream: "stock".to_owned(),
            key_header: "idempotency-key".to_owned(),
            timeout_ms: 5_000,
            success: lists(&["2xx"]),
            failure: lists(&["4xx"]),
            release_status: lists(&["503"]),
            uncertain_status: vec![],
            on_uncertain: StepUncertain::Hold,
            uncertain_after_ms: 0,
            lease_ms: 30_000,
        },
        retry: RETRY,
    }
}

pub fn answer(status: u16) -> KeptAnswer {
    KeptAnswer { status, body: Some("{}".into()), ..KeptAnswer::default() }
}

pub fn success() -> StepOutcome {
    StepOutcome::Success(answer(201))
}

pub const REFUSED: StepOutcome = StepOutcome::Failure { status: 422 };
pub const RELEASED: StepOutcome = StepOutcome::NotExecuted { status: Some(503) };
pub const HELD: StepOutcome = StepOutcome::Uncertain { retry_after_ms: None };
pub const ASKING: StepOutcome = StepOutcome::Uncertain { retry_after_ms: Some(500) };

#[derive(Clone)]
pub struct Story {
    pub plan: Plan,
    pub state: SagaState,
    pub now_ms: u64,
}

impl Story {
    pub fn of(plan: Plan) -> Story {
        let instance = SagaInstance([7; 16]);
        let state = SagaState::new(instance, plan.steps.len(), START_MS, LIFE_MS, 100);
        Story { plan, state, now_ms: START_MS }
    }

    /// A saga with these actions done.
    pub fn with_done(plan: Plan, steps: usize) -> Story {
        let mut story = Story::of(plan);
        (0..steps).for_each(|step| story.does(step, Action, success()));
        story
    }

    /// A chain of which the first two actions are done and the third one failed.
    pub fn going_back() -> Story {
        let mut story = Story::with_done(chain(), 2);
        story.does(2, Action, REFUSED);
        story
    }

    pub fn todos(&self) -> Vec<SagaTodo> {
        decide(&self.plan, &self.state, self.now_ms).todos
    }

    pub fn wake_ms(&self) -> Option<u64> {
        decide(&self.plan, &self.state, self.now_ms).wake_ms
    }

    pub fn apply(&mut self, happening: Happening) -> Result<StateChange, HappeningDenied> {
        apply(&self.plan, &mut self.state, happening, self.now_ms)
    }

    pub fn happens(&mut self, happening: Happening) -> StateChange {
        self.apply(happening).unwrap()
    }

    pub fn begin(&mut self, step: usize, direction: StepDirection) {
        let begun = Happening::Begun { step, direction };
        assert_eq!(self.happens(begun), StateChange::Write, "log before effect");
    }

    /// Applies an outcome to the present generation.
    pub fn outcome(
        &mut self,
        step: usize,
        direction: StepDirection,
        outcome: StepOutcome,
    ) -> StateChange {
        let generation = self.state.run(step, direction).map_or(0, |run| run.generation);
        self.happens(Happening::Outcome { step, direction, generation, outcome, random: u64::MAX })
    }

    pub fn outcomes(
        &mut self,
        step: usize,
        direction: StepDirection,
        outcomes: impl IntoIterator<Item = StepOutcome>,
    ) {
        for outcome in outcomes {
            self.outcome(step, direction, outcome);
        }
    }

    /// Begins an operation, which has this outcome.
    pub fn does(&mut self, step: usize, direction: StepDirection, outcome: StepOutcome) {
        self.begin(step, direction);
        self.outcome(step, direction, outcome);
    }

    pub fn decided(
        &mut self,
        kind: SagaDecisionKind,
        step: Option<usize>,
    ) -> Result<StateChange, HappeningDenied> {
        let reason = "asked the bank".to_owned();
        let decision = SagaDecision { at_ms: 0, kind, step, by: None, reason };
        self.apply(Happening::Decided(decision))
    }

    pub fn later(&mut self, ms: u64) {
        self.now_ms += ms;
        self.happens(Happening::TimePassed);
        assert!(!self.todos().contains(&SagaTodo::Refresh), "once");
    }

    /// Moves the time to the next work.
    pub fn wait(&mut self) {
        self.now_ms = self.wake_ms().expect("something to wait for");
    }

    pub fn status(&self) -> SagaStatus {
        SagaStatus::of(&self.state)
    }

    pub fn statuses(&self) -> Vec<StepStatus> {
        self.state.steps.iter().map(StepStatus::of).collect()
    }

    pub fn standing(&self, step: usize, direction: StepDirection) -> &RunStanding {
        &self.state.run(step, direction).expect("a begun operation").standing
    }

    pub fn action(&self, step: usize) -> &ActionState {
        &self.state.steps[step].action
    }

    pub fn compensation(&self, step: usize) -> &CompensationState {
        &self.state.steps[step].compensation
    }
}

pub fn call(step: usize, direction: StepDirection, generation: u32, continues: bool) -> SagaTodo {
    SagaTodo::Call { step, direction, generation, continues }
}

pub fn bar(step: usize, direction: StepDirection) -> SagaTodo {
    SagaTodo::Bar { step, direction, generation: 0 }
}

pub fn begin(step: usize) -> SagaTodo {
    SagaTodo::Begin { step }
}

pub fn compensate(step: usize) -> SagaTodo {
    SagaTodo::Compensate { step }
}

pub const COMPLETED: SagaTodo = SagaTodo::Settle { completed: true };
pub const FAILED: SagaTodo = SagaTodo::Settle { completed: false };
