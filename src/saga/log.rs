//! The log of a saga: the state that the saga's record keeps beside the plan.
//!
//! The log is written before each effect. A gateway that takes the saga over continues from the log
//! alone. The rules that change it are in [`machine`](super::machine).
//!
//! The log is stored as JSON. Times are in ms since 1970, by the store's clock. A step is named by
//! its position in the plan.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::kept::KeptAnswer;
use super::plan::{KEPT_BODY_MAX, KEPT_BYTES_MAX};
use crate::hex;

/// Most decisions of operators that a log keeps; the oldest are dropped first. A stuck saga can be
/// retried again and again, and its record must stay small.
pub const DECISIONS_MAX: usize = 64;

/// The random id of one saga. The keys of its steps depend on it, so that a client that uses the
/// key of an earlier saga again never meets the operations of that saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SagaInstance(pub [u8; 16]);

/// The text of a saga's id is not 32 hexadecimal digits in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a saga is not 32 hexadecimal digits")]
pub struct InvalidSagaInstance;

/// The state of a saga.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SagaState {
    /// The id.
    pub instance: SagaInstance,
    /// Start of the saga.
    pub started_ms: u64,
    /// How long a record of a step's operation lives at least, in ms. Without a record that is
    /// older, it is unknown whether the operation was executed.
    pub record_life_ms: u64,
    /// Bytes kept of the request and of the steps' answers.
    pub kept_bytes: usize,
    /// Time in which the saga was stuck and is not any more, in ms.
    pub stuck_ms: u64,
    /// Since when the saga is stuck; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck_since_ms: Option<u64>,
    /// Why the saga goes back; `None` while it goes forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<BackCause>,
    /// The end; `None` before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<SagaEnd>,
    /// The steps, in the order of the plan.
    pub steps: Vec<StepState>,
    /// The decisions of operators, at most [`DECISIONS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<SagaDecision>,
}

/// Why a saga goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackCause {
    /// A step failed.
    Step {
        /// The first step that failed.
        step: usize,
    },
    /// The saga took longer than its timeout.
    Timeout {
        /// When this was written.
        at_ms: u64,
    },
    /// An operator cancelled the saga.
    Cancel {
        /// When this was written.
        at_ms: u64,
    },
}

/// How a saga ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SagaEnd {
    /// Every action was executed or skipped.
    Completed {
        /// The time.
        at_ms: u64,
    },
    /// Every action that was executed is undone.
    Failed {
        /// The time.
        at_ms: u64,
    },
}

/// The state of one step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepState {
    /// The state of its action.
    pub action: ActionState,
    /// The state of its compensation.
    pub compensation: CompensationState,
}

/// The direction of a step's operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepDirection {
    /// The operation is the action.
    Action,
    /// The operation is the compensation.
    Compensation,
}

/// The state of an action.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ActionState {
    /// Not begun.
    Waiting,
    /// Its condition was false.
    Skipped {
        /// The time.
        at_ms: u64,
    },
    /// Begun and not settled.
    Begun(StepRun),
    /// Executed.
    Done {
        /// The run.
        run: EndedRun,
        /// The answer; `None` if an operator executed the step by hand.
        answer: Option<KeptAnswer>,
    },
    /// Refused for good.
    Failed {
        /// The run.
        run: EndedRun,
        /// The reason.
        why: StepFailure,
    },
    /// Not executed, and a bar prevents that it ever is.
    Barred {
        /// The run.
        run: EndedRun,
    },
}

/// The state of a compensation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CompensationState {
    /// Not begun.
    Waiting,
    /// Begun and not settled.
    Begun(StepRun),
    /// The action is undone.
    Undone {
        /// The run.
        run: EndedRun,
        /// Whether an operator undid the action by hand.
        by_hand: bool,
    },
    /// Refused for good. An operator decides.
    Refused {
        /// The run.
        run: EndedRun,
        /// The reason.
        why: StepFailure,
    },
}

/// An operation of a step that is begun and not settled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRun {
    /// The generation of its key: the number of retries of a definite no.
    pub generation: u32,
    /// When the log entry that begins it was written.
    pub begun_ms: u64,
    /// The last time at which the operation was known to have a record, or not to need one.
    pub known_ms: u64,
    /// Attempts that were provably not executed, without those that this gateway prevented.
    pub released: u32,
    /// What is known about the operation.
    pub standing: RunStanding,
    /// When the next call is made.
    pub due_ms: u64,
    /// Why the operation is barred instead of called again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<GivenUp>,
}

/// What is known about an operation that is not settled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RunStanding {
    /// An attempt may be active.
    UnderWay,
    /// It was not executed so far. Only a bar makes that final: another gateway may be about to
    /// claim the operation.
    NotExecuted,
    /// It is uncertain, and calls find out more.
    Asking,
    /// It is uncertain, and an operator has to settle the operation.
    Held,
    /// Its record is gone, or the answer in it, so it will never be known whether it was executed.
    Lost,
    /// This gateway is not configured to call it.
    Unconfigured {
        /// What is missing, by name.
        why: String,
        /// Whether it is uncertain.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_uncertain: bool,
    },
}

/// Why an operation is barred instead of called again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GivenUp {
    /// It counts as refused.
    Refused(StepFailure),
    /// An operator executes the step by hand.
    ByHand,
}

/// A definite no.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StepFailure {
    /// The upstream refused with this status.
    Status(u16),
    /// No attempt was executed, and the step has no more attempts.
    Attempts {
        /// The status of the last attempt; `None` if its connection failed.
        status: Option<u16>,
    },
    /// The request can't be rendered.
    Unrendered(String),
    /// The condition is not a boolean.
    Condition(String),
    /// The gate refuses the request, whatever the upstream does.
    Invalid(String),
    /// A bar was met where the log has none.
    Barred,
}

/// An operation of a step that is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedRun {
    /// The generation of its key.
    pub generation: u32,
    /// Number of attempts.
    pub attempts: u32,
    /// When it began.
    pub begun_ms: u64,
    /// When its end was written.
    pub ended_ms: u64,
}

/// A decision of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SagaDecision {
    /// The time.
    pub at_ms: u64,
    /// The decision.
    pub kind: SagaDecisionKind,
    /// The step; `None` for the saga, or for all its stuck steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The operator's name, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The operator's reason. The admin API bounds its length.
    pub reason: String,
}

/// The kinds of decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SagaDecisionKind {
    /// The saga goes back.
    Cancel,
    /// A stuck step is tried again.
    Retry,
    /// A stuck step is done by hand.
    Skip,
}

impl SagaInstance {
    /// Creates the id from random numbers.
    pub fn from_random([high, low]: [u64; 2]) -> SagaInstance {
        SagaInstance(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
    }
}

impl fmt::Display for SagaInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::Hex(&self.0).fmt(f)
    }
}

impl From<SagaInstance> for String {
    fn from(instance: SagaInstance) -> String {
        hex::encode(&instance.0)
    }
}

impl TryFrom<String> for SagaInstance {
    type Error = InvalidSagaInstance;

    fn try_from(text: String) -> Result<SagaInstance, InvalidSagaInstance> {
        hex::decode(&text).map(SagaInstance).ok_or(InvalidSagaInstance)
    }
}

impl StepDirection {
    /// Returns the word.
    pub fn name(self) -> &'static str {
        match self {
            StepDirection::Action => "action",
            StepDirection::Compensation => "compensation",
        }
    }
}

impl SagaState {
    /// Creates the log of a saga that begins now. `request_bytes` is the size of the kept request.
    pub fn new(
        instance: SagaInstance,
        steps: usize,
        started_ms: u64,
        record_life_ms: u64,
        request_bytes: usize,
    ) -> SagaState {
        SagaState {
            instance,
            started_ms,
            record_life_ms,
            kept_bytes: request_bytes,
            stuck_ms: 0,
            stuck_since_ms: None,
            back: None,
            end: None,
            steps: vec![StepState::NEW; steps],
            decisions: Vec::new(),
        }
    }

    /// Returns the unsettled operation of a step in one direction.
    pub fn run(&self, step: usize, direction: StepDirection) -> Option<&StepRun> {
        self.steps.get(step)?.run(direction)
    }

    /// Takes an answer into the kept data. Its body is dropped if it is longer than
    /// [`KEPT_BODY_MAX`], or if all kept data would be larger than [`KEPT_BYTES_MAX`]. Its fields
    /// are dropped too if they do not fit either. So earlier answers stay, whatever later ones are.
    pub(super) fn keep(&mut self, mut answer: KeptAnswer) -> KeptAnswer {
        let left = KEPT_BYTES_MAX.saturating_sub(self.kept_bytes);
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        if length(&answer.location) + length(&answer.etag) > left {
            (answer.location, answer.etag) = (None, None);
        }
        let fields = length(&answer.location) + length(&answer.etag);
        answer.body.take_if(|body| body.len() > KEPT_BODY_MAX.min(left - fields));
        self.kept_bytes += answer.kept_bytes();
        answer
    }

    /// Removes the kept answers, apart from their statuses.
    pub(super) fn erase_answers(&mut self) {
        for step in &mut self.steps {
            if let ActionState::Done { answer: Some(answer), .. } = &mut step.action {
                *answer = KeptAnswer { status: answer.status, ..KeptAnswer::default() };
            }
        }
        self.kept_bytes = 0;
    }

    /// Adds a decision.
    pub(super) fn decided(&mut self, decision: SagaDecision) {
        if self.decisions.len() >= DECISIONS_MAX {
            self.decisions.remove(0);
        }
        self.decisions.push(decision);
    }
}

impl StepState {
    /// A step that has not begun.
    pub const NEW: StepState =
        StepState { action: ActionState::Waiting, compensation: CompensationState::Waiting };

    /// Returns the unsettled operation in one direction.
    pub fn run(&self, direction: StepDirection) -> Option<&StepRun> {
        match (direction, &self.action, &self.compensation) {
            (StepDirection::Action, ActionState::Begun(run), _)
            | (StepDirection::Compensation, _, CompensationState::Begun(run)) => Some(run),
            _ => None,
        }
    }

    /// Returns the same for a change.
    pub(super) fn run_mut(&mut self, direction: StepDirection) -> Option<&mut StepRun> {
        match (direction, &mut self.action, &mut self.compensation) {
            (StepDirection::Action, ActionState::Begun(run), _)
            | (StepDirection::Compensation, _, CompensationState::Begun(run)) => Some(run),
            _ => None,
        }
    }
}

impl StepRun {
    /// Creates an operation that begins now.
    pub(super) fn new(generation: u32, now_ms: u64) -> StepRun {
        StepRun {
            generation,
            begun_ms: now_ms,
            known_ms: now_ms,
            released: 0,
            standing: RunStanding::UnderWay,
            due_ms: now_ms,
            given_up: None,
        }
    }

    /// Returns the number of attempts, with the active one.
    pub fn attempts(&self) -> u32 {
        self.released + u32::from(self.standing != RunStanding::NotExecuted)
    }

    /// Returns the operation as it ends now, with its last attempt or without another one.
    pub(super) fn ended(&self, now_ms: u64, was_executed: bool) -> EndedRun {
        EndedRun {
            generation: self.generation,
            attempts: self.released + u32::from(was_executed),
            begun_ms: self.begun_ms,
            ended_ms: now_ms,
        }
    }

    /// Returns whether the outcome is unknown.
    pub fn is_uncertain(&self) -> bool {
        match self.standing {
            RunStanding::Asking | RunStanding::Held | RunStanding::Lost => true,
            RunStanding::Unconfigured { is_uncertain, .. } => is_uncertain,
            RunStanding::UnderWay | RunStanding::NotExecuted => false,
        }
    }
}

impl EndedRun {
    /// The end of an operation that never began.
    pub(super) fn never_begun(now_ms: u64) -> EndedRun {
        EndedRun { generation: 0, attempts: 0, begun_ms: now_ms, ended_ms: now_ms }
    }
}

impl StepFailure {
    /// Returns the reason in one word, without its text.
    pub fn word(&self) -> &'static str {
        match self {
            StepFailure::Status(_) => "status",
            StepFailure::Attempts { .. } => "attempts",
            StepFailure::Unrendered(_) => "unrendered",
            StepFailure::Condition(_) => "condition",
            StepFailure::Invalid(_) => "invalid",
            StepFailure::Barred => "barred",
        }
    }

    /// Returns the upstream's status; `None` if there is none.
    pub fn status(&self) -> Option<u16> {
        match self {
            StepFailure::Status(status) => Some(*status),
            StepFailure::Attempts { status } => *status,
            StepFailure::Unrendered(_)
            | StepFailure::Condition(_)
            | StepFailure::Invalid(_)
            | StepFailure::Barred => None,
        }
    }
}
