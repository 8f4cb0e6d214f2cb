//! The rules of sagas: the product's own machine, with the logs of the model. Each flaw removes one
//! rule.

use std::collections::HashMap;
use std::sync::Mutex;

use onceward::saga::kept::KeptAnswer;
use onceward::saga::log::{
    SagaDecision, SagaDecisionKind, SagaEnd, SagaInstance, SagaState, StepDirection,
};
use onceward::saga::machine::{Happening, SagaTodo, StateChange, StepSet, apply, decide};
use onceward::saga::outcome::StepOutcome;
use onceward::saga::plan::{
    AnswerTemplate, Compensation, Plan, Step, StepRequest, StepRetry, StepSending, StepUncertain,
};
use onceward::saga::status::{StuckReason, stuck_steps};

use super::state::{End, LogId};

/// A removed rule. Each must break a promise of sagas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// An action with an unknown outcome counts as failed.
    CompensatesOnTimeout,
    /// The saga goes back without bars.
    NoBars,
    /// The keys of steps come from the client's key.
    KeysFromClient,
    /// On the way back, a branch with an unknown outcome is passed over.
    UndoesInDoubt,
    /// The records of steps end before the saga, and their end is taken for a step that never
    /// began.
    RecordsEndFirst,
    /// A gateway writes a record without comparing its version.
    NoFence,
    /// An operation begins before its log entry is written.
    LogsAfterEffect,
    /// Each attempt has its own key.
    KeyPerAttempt,
    /// A saga can be turned back after its pivot.
    NoPivot,
}

/// The shape of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One step.
    Single,
    /// Two steps, one after the other.
    Chain,
    /// Two steps side by side.
    Parallel,
    /// Two steps side by side, and one after both.
    Join,
    /// Three steps, one after the other: the second one is the pivot.
    Pivot,
}

/// A happening in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    Begun(u8, StepDirection),
    Outcome(u8, StepDirection, u8, Outcome),
    TimePassed,
    TimedOut,
    Cancelled,
    Retried(u8),
    Skipped(u8),
    Settled,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Success,
    Failure,
    NotExecuted,
    Released,
    Absent,
    InFlight,
    Held,
    Barred,
}

/// A step that waits for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingStep {
    pub step: u8,
    pub direction: StepDirection,
    /// Whether its records are gone. If not, it has a definite no.
    pub is_lost: bool,
    pub generation: u8,
}

pub struct Rules {
    pub flaw: Option<Flaw>,
    plan: Plan,
    /// The plan without a pivot.
    unpivoted: Plan,
    /// The same plan for a saga that is late.
    late: Plan,
    pub later_steps: Vec<StepSet>,
    results: Mutex<Results>,
}

/// Results of the product's functions, so that each is computed once.
#[derive(Default)]
struct Results {
    logs: Vec<SagaState>,
    ids: HashMap<SagaState, LogId>,
    todos: HashMap<(LogId, bool), Vec<SagaTodo>>,
    applied: HashMap<(LogId, bool, Event), Option<(LogId, StateChange)>>,
}

/// Lives of records are so short here that a saga is never stuck for its age.
const LIFE_MS: u64 = 8;
const START_MS: u64 = 1;

impl Rules {
    pub fn new(flaw: Option<Flaw>, shape: Shape, attempts: u32) -> Rules {
        let plan = plan(shape, attempts);
        let mut unpivoted = plan.clone();
        unpivoted.steps.iter_mut().for_each(|step| step.pivot = false);
        let late = Plan { timeout_ms: 0, ..plan.clone() };
        let later_steps = StepSet::later_steps(&plan);
        Rules { flaw, plan, unpivoted, late, later_steps, results: Mutex::default() }
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    pub fn steps(&self) -> u8 {
        self.plan.steps.len() as u8
    }

    /// Returns whether an action has a compensation.
    pub fn is_undoable(&self, step: u8) -> bool {
        self.plan.steps[usize::from(step)].compensation != Compensation::None
    }

    pub fn pivot(&self) -> Option<u8> {
        self.plan.steps.iter().position(|step| step.pivot).map(|step| step as u8)
    }

    /// Returns the log of a saga that begins.
    pub fn new_log(&self) -> LogId {
        let life_ms = if self.has(Flaw::RecordsEndFirst) { u64::MAX } else { LIFE_MS };
        let instance = SagaInstance([0; 16]);
        let log = SagaState::new(instance, self.plan.steps.len(), START_MS, life_ms, 0);
        self.results.lock().unwrap().id(log)
    }

    /// `decide`.
    pub fn todos(&self, log: LogId, is_old: bool) -> Vec<SagaTodo> {
        let results = &mut *self.results.lock().unwrap();
        let Results { logs, todos, .. } = results;
        let todos = todos
            .entry((log, is_old))
            .or_insert_with(|| decide(&self.plan, &logs[usize::from(log)], now_ms(is_old)).todos);
        todos.clone()
    }

    /// `apply`: the next log, and what has changed. `None` if the event is not possible.
    pub fn apply(&self, log: LogId, is_old: bool, event: Event) -> Option<(LogId, StateChange)> {
        let results = &mut *self.results.lock().unwrap();
        let known = results.applied.get(&(log, is_old, event));
        if let Some(known) = known {
            return *known;
        }
        let mut state = results.logs[usize::from(log)].clone();
        let plan = match event {
            Event::TimedOut if self.has(Flaw::NoPivot) => {
                &Plan { timeout_ms: 0, ..self.unpivoted.clone() }
            }
            Event::TimedOut => &self.late,
            Event::Cancelled if self.has(Flaw::NoPivot) => &self.unpivoted,
            _ => &self.plan,
        };
        let happening = self.happening(&state, event);
        let applied = apply(plan, &mut state, happening, now_ms(is_old)).ok().map(|change| {
            simplify(&mut state);
            (results.id(state), change)
        });
        results.applied.insert((log, is_old, event), applied);
        applied
    }

    /// Returns the steps that wait for a person.
    pub fn waiting(&self, log: LogId, is_old: bool) -> Vec<WaitingStep> {
        let results = self.results.lock().unwrap();
        let state = &results.logs[usize::from(log)];
        let stuck = stuck_steps(&self.plan, state, now_ms(is_old)).into_iter();
        let waiting = stuck.filter_map(|stuck| {
            let is_lost = stuck.reason == StuckReason::Lost;
            (is_lost || matches!(stuck.reason, StuckReason::Refused(_))).then(|| {
                let run = state.run(stuck.step, stuck.direction);
                let generation = run.map_or(0, |run| run.generation as u8);
                let (step, direction) = (stuck.step as u8, stuck.direction);
                WaitingStep { step, direction, is_lost, generation }
            })
        });
        waiting.collect()
    }

    pub fn end(&self, log: LogId) -> Option<End> {
        match self.results.lock().unwrap().logs[usize::from(log)].end? {
            SagaEnd::Completed { .. } => Some(End::Completed),
            SagaEnd::Failed { .. } => Some(End::Failed),
        }
    }

    /// Returns the attempts of an operation that were not executed.
    pub fn released(&self, log: LogId, step: u8, direction: StepDirection) -> u32 {
        let results = self.results.lock().unwrap();
        let run = results.logs[usize::from(log)].run(step.into(), direction);
        run.map_or(0, |run| run.released)
    }

    fn happening(&self, state: &SagaState, event: Event) -> Happening {
        let decided = |kind, step| {
            let reason = String::new();
            Happening::Decided(SagaDecision { at_ms: 0, kind, step, by: None, reason })
        };
        match event {
            Event::Begun(step, direction) => Happening::Begun { step: step.into(), direction },
            Event::Outcome(step, direction, generation, outcome) => Happening::Outcome {
                step: step.into(),
                direction,
                generation: generation.into(),
                outcome: self.outcome(state, direction, outcome),
                random: 0,
            },
            Event::TimePassed | Event::TimedOut => Happening::TimePassed,
            Event::Cancelled => decided(SagaDecisionKind::Cancel, None),
            Event::Retried(step) => decided(SagaDecisionKind::Retry, Some(step.into())),
            Event::Skipped(step) => decided(SagaDecisionKind::Skip, Some(step.into())),
            Event::Settled => Happening::Settled,
        }
    }

    fn outcome(
        &self,
        state: &SagaState,
        direction: StepDirection,
        outcome: Outcome,
    ) -> StepOutcome {
        let is_action = direction == StepDirection::Action;
        match outcome {
            Outcome::Held if is_action && self.has(Flaw::CompensatesOnTimeout) => {
                StepOutcome::Failure { status: 504 }
            }
            Outcome::Held | Outcome::InFlight
                if is_action && state.back.is_some() && self.has(Flaw::UndoesInDoubt) =>
            {
                StepOutcome::Barred
            }
            Outcome::Success => StepOutcome::Success(KeptAnswer::default()),
            Outcome::Failure => StepOutcome::Failure { status: 422 },
            Outcome::NotExecuted => StepOutcome::NotExecuted { status: None },
            Outcome::Released => StepOutcome::Released,
            Outcome::Absent => StepOutcome::Absent,
            Outcome::InFlight => StepOutcome::InFlight { retry_after_ms: 0 },
            Outcome::Held => StepOutcome::Uncertain { retry_after_ms: None },
            Outcome::Barred => StepOutcome::Barred,
        }
    }
}

impl Results {
    fn id(&mut self, log: SagaState) -> LogId {
        if let Some(id) = self.ids.get(&log) {
            return *id;
        }
        let id = LogId::try_from(self.logs.len()).unwrap();
        self.logs.push(log.clone());
        self.ids.insert(log, id);
        id
    }
}

/// Removes what no rule needs here: pauses, which have no length, and the decisions.
fn simplify(state: &mut SagaState) {
    use onceward::saga::log::{ActionState, CompensationState};
    state.decisions.clear();
    state.stuck_ms = 0;
    for step in &mut state.steps {
        if let ActionState::Begun(run) = &mut step.action {
            run.due_ms = 0;
        }
        if let CompensationState::Begun(run) = &mut step.compensation {
            run.due_ms = 0;
        }
    }
}

fn now_ms(is_old: bool) -> u64 {
    if is_old { START_MS + LIFE_MS } else { START_MS }
}

fn plan(shape: Shape, attempts: u32) -> Plan {
    let afters: &[&[usize]] = match shape {
        Shape::Single => &[&[]],
        Shape::Chain => &[&[], &[0]],
        Shape::Parallel => &[&[], &[]],
        Shape::Join => &[&[], &[], &[0, 1]],
        Shape::Pivot => &[&[], &[0], &[1]],
    };
    let pivot = (shape == Shape::Pivot).then_some(1);
    let request = || StepRequest {
        method: "POST".to_owned(),
        path: "/".to_owned(),
        headers: Default::default(),
        body: None,
    };
    let sending = || StepSending {
        upstream: "shop".to_owned(),
        key_header: "idempotency-key".to_owned(),
        timeout_ms: 1,
        success: vec![],
        failure: vec![],
        release_status: vec![],
        uncertain_status: vec![],
        on_uncertain: StepUncertain::Hold,
        uncertain_after_ms: 0,
        lease_ms: 1,
    };
    let step = |(number, after): (usize, &&[usize])| Step {
        name: number.to_string(),
        after: after.to_vec(),
        when: None,
        pivot: pivot == Some(number),
        action: request(),
        compensation: match pivot {
            Some(pivot) if number >= pivot => Compensation::None,
            _ => Compensation::Request { request: request(), gone: vec![] },
        },
        sending: sending(),
        retry: StepRetry { first_ms: 1, max_ms: 1, attempts },
    };
    Plan {
        saga: "shop".to_owned(),
        timeout_ms: u64::MAX,
        steps: afters.iter().enumerate().map(step).collect(),
        answer: AnswerTemplate { status: 201, body: None },
        failed: None,
    }
}
