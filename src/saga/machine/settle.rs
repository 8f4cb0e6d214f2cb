//! What the outcome of a call means: one row for each outcome, for both directions.

use super::change::{OperationPlace, StateChange};
use super::run::{is_record_overdue, look_pause_ms, note_evidence, retry_pause_ms};
use super::turn::{barred, fail};
use crate::saga::kept::KeptAnswer;
use crate::saga::log::{
    ActionState, CompensationState, EndedRun, GivenUp, RunStanding, SagaState, StepDirection,
    StepFailure, StepRun,
};
use crate::saga::outcome::StepOutcome;
use crate::saga::plan::Plan;
use crate::saga::status::{is_barred, is_endless};

/// Pause after a call that could not be made, in ms: until the configuration or the request has
/// changed.
const UNCALLED_PAUSE_MS: u64 = 5_000;

/// Applies the outcome of an operation.
pub(super) fn apply_outcome(
    plan: &Plan,
    state: &mut SagaState,
    place: OperationPlace,
    outcome: StepOutcome,
    random: u64,
    now_ms: u64,
) -> StateChange {
    let OperationPlace { step, direction, generation } = place;
    let Some(run) = state.run(step, direction) else {
        return late_success(state, place, outcome, now_ms);
    };
    if run.generation != generation {
        return StateChange::Nothing;
    }
    let ended = run.ended(now_ms, true);
    match outcome {
        StepOutcome::Success(answer) => {
            succeed(state, place, ended, answer);
            StateChange::Write
        }
        StepOutcome::Failure { status } => {
            fail(plan, state, step, direction, ended, StepFailure::Status(status));
            StateChange::Write
        }
        StepOutcome::Barred => barred(plan, state, place, now_ms),
        // What is left of the record admits no claim, like a bar.
        StepOutcome::Lost if run.given_up == Some(GivenUp::ByHand) => {
            barred(plan, state, place, now_ms)
        }
        StepOutcome::NotExecuted { status } => {
            not_executed(plan, state, place, status, random, now_ms)
        }
        unsettled => {
            let is_barred = is_barred(state, direction, run);
            let is_overdue = is_record_overdue(state, run, now_ms);
            let life_ms = state.record_life_ms;
            let run = state.steps.get_mut(step).and_then(|step| step.run_mut(direction));
            run.map_or(StateChange::Nothing, |run| {
                let known = KnownRun { is_barred, is_overdue, life_ms, now_ms };
                known.apply(run, unsettled)
            })
        }
    }
}

/// Applies the success of an operation.
fn succeed(state: &mut SagaState, place: OperationPlace, run: EndedRun, answer: KeptAnswer) {
    let OperationPlace { step, direction, .. } = place;
    if direction == StepDirection::Compensation {
        state.steps[step].compensation = CompensationState::Undone { run, by_hand: false };
        return;
    }
    let answer = Some(state.keep(answer));
    state.steps[step].action = ActionState::Done { run, answer };
}

/// Applies an attempt that was provably not executed. An action that can still fail is given up
/// after its last attempt.
fn not_executed(
    plan: &Plan,
    state: &mut SagaState,
    OperationPlace { step, direction, .. }: OperationPlace,
    status: Option<u16>,
    random: u64,
    now_ms: u64,
) -> StateChange {
    let is_limited = !is_endless(plan, state, direction);
    let is_going_back = direction == StepDirection::Action && state.back.is_some();
    let life_ms = state.record_life_ms;
    let Some(rule) = plan.steps.get(step).map(|step| step.retry) else {
        return StateChange::Nothing;
    };
    let Some(run) = state.steps.get_mut(step).and_then(|step| step.run_mut(direction)) else {
        return StateChange::Nothing;
    };
    run.released = run.released.saturating_add(1);
    // Operators read from the record that they can decide about it.
    let is_first = !is_limited && run.standing != RunStanding::NotExecuted;
    run.standing = RunStanding::NotExecuted;
    run.due_ms = now_ms;
    let is_new = note_evidence(run, life_ms, now_ms) || is_first;
    if is_going_back || run.given_up.is_some() {
        return if is_new { StateChange::Write } else { StateChange::Memory };
    }
    if is_limited && run.released >= rule.attempts {
        run.given_up = Some(GivenUp::Refused(StepFailure::Attempts { status }));
        return StateChange::Write;
    }
    run.due_ms = now_ms.saturating_add(retry_pause_ms(&rule, run.released, random));
    if is_new { StateChange::Write } else { StateChange::Memory }
}

/// What is known of an operation before an outcome that does not settle it.
struct KnownRun {
    is_barred: bool,
    is_overdue: bool,
    life_ms: u64,
    now_ms: u64,
}

impl KnownRun {
    fn apply(&self, run: &mut StepRun, outcome: StepOutcome) -> StateChange {
        let now_ms = self.now_ms;
        let earlier = std::mem::discriminant(&run.standing);
        let pause_ms;
        let mut change = StateChange::Memory;
        match outcome {
            StepOutcome::Released => {
                run.standing = RunStanding::NotExecuted;
                pause_ms = 0;
                if note_evidence(run, self.life_ms, now_ms) {
                    change = StateChange::Write;
                }
            }
            // Without a record, only an operation that was never in doubt is known not to have been
            // executed. A release leaves a marker, which is another outcome.
            StepOutcome::Absent if !self.is_overdue && !run.is_uncertain() => {
                run.standing = RunStanding::NotExecuted;
                pause_ms = 0;
            }
            StepOutcome::Absent | StepOutcome::Lost => {
                run.standing = RunStanding::Lost;
                pause_ms = 0;
            }
            StepOutcome::Busy { retry_after_ms } => {
                if let RunStanding::Unconfigured { is_uncertain, .. } = run.standing {
                    run.standing =
                        if is_uncertain { RunStanding::Asking } else { RunStanding::UnderWay };
                }
                pause_ms = look_pause_ms(run, Some(retry_after_ms), now_ms);
            }
            StepOutcome::InFlight { retry_after_ms } => {
                run.standing = RunStanding::UnderWay;
                pause_ms = look_pause_ms(run, Some(retry_after_ms), now_ms);
            }
            StepOutcome::Uncertain { retry_after_ms } => {
                run.standing = match retry_after_ms {
                    Some(_) => RunStanding::Asking,
                    None => RunStanding::Held,
                };
                pause_ms = look_pause_ms(run, retry_after_ms, now_ms);
            }
            // Nothing was sent now. Only a bar shows whether an earlier attempt was.
            StepOutcome::Invalid { why } if run.is_uncertain() => {
                run.standing = RunStanding::Unconfigured { why, is_uncertain: true };
                pause_ms = UNCALLED_PAUSE_MS;
            }
            StepOutcome::Invalid { why } => {
                pause_ms = if self.is_barred { UNCALLED_PAUSE_MS } else { 0 };
                run.standing = RunStanding::NotExecuted;
                if !self.is_barred {
                    run.given_up = Some(GivenUp::Refused(StepFailure::Invalid(why)));
                    change = StateChange::Write;
                }
            }
            StepOutcome::Unconfigured { why } => {
                let is_uncertain = run.is_uncertain();
                run.standing = RunStanding::Unconfigured { why, is_uncertain };
                pause_ms = UNCALLED_PAUSE_MS;
            }
            // `apply_outcome` handles these.
            StepOutcome::Success(_)
            | StepOutcome::Failure { .. }
            | StepOutcome::NotExecuted { .. }
            | StepOutcome::Barred => return StateChange::Nothing,
        }
        run.due_ms = now_ms.saturating_add(pause_ms);
        let needs_person = matches!(
            run.standing,
            RunStanding::Held | RunStanding::Lost | RunStanding::Unconfigured { .. }
        );
        let is_new = std::mem::discriminant(&run.standing) != earlier;
        // Operators read from the record that they have to decide.
        if needs_person && is_new {
            change = StateChange::Write;
        }
        // A look that found nothing new is not written: a stuck saga would be written all the time.
        if change == StateChange::Memory && !is_new { StateChange::Nothing } else { change }
    }
}

/// Applies a success of an operation that the log has as not executed. It only occurs after the
/// store lost a bar or an answer; the saga then treats the operation as executed.
fn late_success(
    state: &mut SagaState,
    place: OperationPlace,
    outcome: StepOutcome,
    now_ms: u64,
) -> StateChange {
    let StepOutcome::Success(answer) = outcome else { return StateChange::Nothing };
    let Some(of_step) = state.steps.get(place.step) else { return StateChange::Nothing };
    let settled = match (place.direction, &of_step.action, &of_step.compensation) {
        (
            StepDirection::Action,
            ActionState::Failed { run, .. } | ActionState::Barred { run },
            _,
        )
        | (StepDirection::Compensation, _, CompensationState::Refused { run, .. }) => *run,
        _ => return StateChange::Nothing,
    };
    if settled.generation != place.generation {
        return StateChange::Nothing;
    }
    succeed(state, place, EndedRun { ended_ms: now_ms, ..settled }, answer);
    StateChange::Write
}
