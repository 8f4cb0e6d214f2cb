//! What to do now, and when to look again.

use super::order::{StepSet, follows};
use super::run::{is_record_overdue, pivot_is_begun};
use crate::saga::log::{
    ActionState, BackCause, CompensationState, RunStanding, SagaState, StepDirection, StepFailure,
    StepRun,
};
use crate::saga::plan::{Compensation, Plan};
use crate::saga::status::{is_barred, stuck_at_ms, stuck_steps};

/// The work of a saga at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SagaWork {
    /// What to do now. Everything may be done side by side.
    pub todos: Vec<SagaTodo>,
    /// When there is other work even if nothing happens, in ms; `None` for never.
    pub wake_ms: Option<u64>,
}

/// One piece of work. Its result is a [`Happening`](super::Happening).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SagaTodo {
    /// Time has changed the state: apply [`Happening::TimePassed`](super::Happening::TimePassed),
    /// and write. There is no other work before that.
    Refresh,
    /// Begin the action: evaluate its condition, render its request, apply `Begun`, `Skipped` or
    /// `Unsendable`, and write.
    Begin {
        /// The step.
        step: usize,
    },
    /// Begin the compensation: render its request, apply `Begun` or `Unsendable`, and write.
    Compensate {
        /// The step.
        step: usize,
    },
    /// Call the operation, and apply its `Outcome`.
    Call {
        /// The step.
        step: usize,
        /// The direction.
        direction: StepDirection,
        /// The generation of the key.
        generation: u32,
        /// Whether the call only continues the operation, and never begins it.
        continues: bool,
    },
    /// Read the slot of the operation, and write a bar over an empty slot or a released marker,
    /// naming the version that was read. Apply the `Outcome`: `Barred`, or what the slot has.
    Bar {
        /// The step.
        step: usize,
        /// The direction.
        direction: StepDirection,
        /// The generation of the key.
        generation: u32,
    },
    /// End the saga: apply `Settled`, and write that with the answer.
    Settle {
        /// Whether every action was executed or skipped. If not, all is undone.
        completed: bool,
    },
}

/// Why a saga failed, for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SagaFailure<'s> {
    /// Why it went back.
    pub cause: BackCause,
    /// The reason of the step that failed; `None` for a timeout or a cancelled saga.
    pub why: Option<&'s StepFailure>,
}

/// Returns why a saga goes back or failed; `None` if it goes forward or is completed.
pub fn failure(state: &SagaState) -> Option<SagaFailure<'_>> {
    let cause = state.back?;
    let why = match cause {
        BackCause::Step { step } => match &state.steps.get(step)?.action {
            ActionState::Failed { why, .. } => Some(why),
            _ => None,
        },
        BackCause::Timeout { .. } | BackCause::Cancel { .. } => None,
    };
    Some(SagaFailure { cause, why })
}

/// Decides what to do at `now_ms`.
pub fn decide(plan: &Plan, state: &SagaState, now_ms: u64) -> SagaWork {
    if state.end.is_some() {
        return SagaWork::default();
    }
    let deadline_ms = deadline_ms(plan, state);
    let is_late = deadline_ms.is_some_and(|at_ms| now_ms >= at_ms);
    let is_stuck = !stuck_steps(plan, state, now_ms).is_empty();
    if is_late || is_stuck != state.stuck_since_ms.is_some() {
        return SagaWork { todos: vec![SagaTodo::Refresh], wake_ms: None };
    }
    let mut work = Work { plan, state, now_ms, done: SagaWork::default() };
    work.wake_at(deadline_ms);
    work.add_runs();
    if state.back.is_some() {
        work.add_compensations();
    } else {
        work.add_actions();
    }
    work.add_end();
    work.done
}

/// Returns when the saga goes back because of its timeout; `None` if it does not. Time in which it
/// is stuck does not count, and from the pivot on there is no timeout.
pub(super) fn deadline_ms(plan: &Plan, state: &SagaState) -> Option<u64> {
    let is_over = state.end.is_some() || state.back.is_some() || state.stuck_since_ms.is_some();
    let is_ahead = state.steps.iter().any(|step| !is_past(&step.action));
    let has_deadline = !is_over && is_ahead && !pivot_is_begun(plan, state);
    has_deadline
        .then(|| state.started_ms.saturating_add(plan.timeout_ms).saturating_add(state.stuck_ms))
}

/// Returns whether the steps after this action may begin.
fn is_past(action: &ActionState) -> bool {
    matches!(action, ActionState::Done { .. } | ActionState::Skipped { .. })
}

struct Work<'s> {
    plan: &'s Plan,
    state: &'s SagaState,
    now_ms: u64,
    done: SagaWork,
}

impl Work<'_> {
    fn wake_at(&mut self, at_ms: Option<u64>) {
        if let Some(at_ms) = at_ms.filter(|at_ms| *at_ms > self.now_ms) {
            self.done.wake_ms = Some(self.done.wake_ms.map_or(at_ms, |wake| wake.min(at_ms)));
        }
    }

    /// Adds the operations that are begun.
    fn add_runs(&mut self) {
        for (step, of_step) in self.state.steps.iter().enumerate() {
            for direction in [StepDirection::Action, StepDirection::Compensation] {
                if let Some(run) = of_step.run(direction) {
                    self.add_run(step, direction, run);
                }
            }
        }
    }

    fn add_run(&mut self, step: usize, direction: StepDirection, run: &StepRun) {
        let generation = run.generation;
        let is_barred = is_barred(self.state, direction, run);
        let call = |continues| SagaTodo::Call { step, direction, generation, continues };
        let bar = SagaTodo::Bar { step, direction, generation };
        let is_overdue = is_record_overdue(self.state, run, self.now_ms);
        let todo = match run.standing {
            RunStanding::UnderWay => call(is_barred || is_overdue),
            // A bar over an empty slot proves nothing once a record may have ended there.
            RunStanding::Asking
            | RunStanding::Held
            | RunStanding::Unconfigured { is_uncertain: true, .. } => call(true),
            RunStanding::NotExecuted | RunStanding::Unconfigured { .. }
                if is_barred && !is_overdue =>
            {
                bar
            }
            RunStanding::NotExecuted | RunStanding::Unconfigured { .. } => call(is_overdue),
            RunStanding::Lost => return,
        };
        if run.due_ms <= self.now_ms {
            self.done.todos.push(todo);
        }
        self.wake_at(Some(run.due_ms));
        self.wake_at(stuck_at_ms(self.plan, self.state, direction, run));
    }

    /// Adds the actions that may begin.
    fn add_actions(&mut self) {
        let may_begin = self.state.steps.iter().all(|step| match &step.action {
            ActionState::Begun(run) => !run.is_uncertain() && run.given_up.is_none(),
            ActionState::Failed { .. } | ActionState::Barred { .. } => false,
            ActionState::Waiting | ActionState::Skipped { .. } | ActionState::Done { .. } => true,
        });
        if !may_begin {
            return;
        }
        let steps = &self.state.steps;
        let is_over = |step: usize| steps.get(step).is_some_and(|step| is_past(&step.action));
        for (step, (planned, of_step)) in self.plan.steps.iter().zip(steps).enumerate() {
            if of_step.action == ActionState::Waiting && follows(planned, is_over) {
                self.done.todos.push(SagaTodo::Begin { step });
            }
        }
    }

    /// Adds the compensations that may begin: those of the steps that only undone steps follow.
    fn add_compensations(&mut self) {
        if self.has_unsettled_action() {
            return;
        }
        let later = StepSet::later_steps(self.plan);
        for (step, later) in later.into_iter().enumerate() {
            let of_step = self.state.steps.get(step);
            let is_waiting =
                of_step.is_some_and(|step| step.compensation == CompensationState::Waiting);
            let mut others = 0..self.plan.steps.len();
            if is_waiting
                && !self.is_undone(step)
                && others.all(|other| !later.contains(other) || self.is_undone(other))
            {
                self.done.todos.push(SagaTodo::Compensate { step });
            }
        }
    }

    fn add_end(&mut self) {
        let SagaState { steps, back, .. } = self.state;
        let completed = back.is_none() && steps.iter().all(|step| is_past(&step.action));
        let failed = back.is_some()
            && !self.has_unsettled_action()
            && (0..steps.len()).all(|step| self.is_undone(step));
        if completed || failed {
            self.done.todos.push(SagaTodo::Settle { completed });
        }
    }

    fn has_unsettled_action(&self) -> bool {
        self.state.steps.iter().any(|step| matches!(step.action, ActionState::Begun(_)))
    }

    /// Returns whether nothing of a step is left to undo.
    fn is_undone(&self, step: usize) -> bool {
        let Some(of_step) = self.state.steps.get(step) else { return true };
        let needs_nothing =
            self.plan.steps.get(step).is_none_or(|step| step.compensation == Compensation::None);
        match of_step.action {
            ActionState::Done { .. } => {
                needs_nothing || matches!(of_step.compensation, CompensationState::Undone { .. })
            }
            ActionState::Begun(_) => false,
            ActionState::Waiting
            | ActionState::Skipped { .. }
            | ActionState::Failed { .. }
            | ActionState::Barred { .. } => true,
        }
    }
}
