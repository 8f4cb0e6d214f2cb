//! Happenings, and what they change.

use crate::saga::log::{SagaDecision, StepDirection, StepFailure};
use crate::saga::outcome::StepOutcome;

/// Something that happened to a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// An operation begins. Its request is ready.
    Begun {
        /// The step.
        step: usize,
        /// The direction.
        direction: StepDirection,
    },
    /// The condition of an action is false.
    Skipped {
        /// The step.
        step: usize,
    },
    /// An operation that has not begun can't be sent. One that has begun has the outcome
    /// [`StepOutcome::Invalid`] instead, because an earlier attempt may have been sent.
    Unsendable {
        /// The step.
        step: usize,
        /// The direction.
        direction: StepDirection,
        /// The reason.
        why: StepFailure,
    },
    /// The outcome of a call or of a bar.
    Outcome {
        /// The step.
        step: usize,
        /// The direction.
        direction: StepDirection,
        /// The generation of the key.
        generation: u32,
        /// The outcome.
        outcome: StepOutcome,
        /// A random number for the length of the pause.
        random: u64,
    },
    /// The record of an uncertain operation was written anew: it lives its whole life from now on.
    Renewed {
        /// The step.
        step: usize,
        /// The direction.
        direction: StepDirection,
    },
    /// Nothing but time has passed.
    TimePassed,
    /// A decision of an operator. Its time is the time at which it is applied.
    Decided(SagaDecision),
    /// The saga ends.
    Settled,
}

/// What a happening changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateChange {
    /// Nothing.
    Nothing,
    /// Something that the next write takes along. After a crash it is found out again.
    Memory,
    /// Something that must be written before any work is carried out.
    Write,
}

/// Why a happening is not possible. The state is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HappeningDenied {
    /// The saga has ended.
    #[error("the saga has ended")]
    Ended,
    /// The pivot has begun.
    #[error("the pivot has begun: the saga can only be completed")]
    PivotBegun,
    /// The plan has no such step.
    #[error("the saga has no such step")]
    NoSuchStep,
    /// The step does not wait for a decision.
    #[error("the step does not wait for a decision")]
    NotStuck,
    /// The operation of the step is uncertain.
    #[error(
        "the operation of the step is uncertain: settle the operation, the saga then continues"
    )]
    OperationHeld,
    /// [`decide`](super::decide) does not permit it now.
    #[error("the step can't do that now")]
    NotNow,
}

/// An operation of a saga.
#[derive(Debug, Clone, Copy)]
pub(super) struct OperationPlace {
    pub step: usize,
    pub direction: StepDirection,
    pub generation: u32,
}
