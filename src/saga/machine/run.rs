//! Rules of one operation: its pauses, and the life of its record.

use crate::saga::log::{SagaState, StepDirection, StepRun};
use crate::saga::plan::{Plan, StepRetry};
use crate::saga::status::PivotState;

/// Shortest and longest pause between two looks at an operation without an outcome, in ms. An
/// operator may settle the operation at any time.
const LOOK_MIN_MS: u64 = 1_000;
const LOOK_MAX_MS: u64 = 30_000;
/// Shortest pause that an outcome can ask for, in ms. Without it, a call of another gateway would
/// be looked at without a break.
const PAUSE_MIN_MS: u64 = 100;
/// The pause is this part of the time since the operation began, between the two.
const LOOKS_PER_AGE: u64 = 8;

/// Part of a record's life that is kept as a distance: a call may be slow between the decision and
/// its claim.
const LIFE_DISTANCE: u64 = 4;
/// Part of a record's life after which new evidence of the operation is written.
const LIFE_EVIDENCE: u64 = 8;

/// Returns the pause after the `released`-th attempt that was not executed: evenly distributed
/// between zero and the longest pause, in ms.
pub(super) fn retry_pause_ms(rule: &StepRetry, released: u32, random: u64) -> u64 {
    let doublings = released.saturating_sub(1).min(u64::BITS - 1);
    let longest = rule.first_ms.saturating_mul(1 << doublings).min(rule.max_ms);
    // The product of two numbers of 64 bits has at most 128 bits.
    ((u128::from(longest) * u128::from(random)) >> u64::BITS) as u64
}

/// Returns the pause until the next look at an operation without an outcome, in ms. It grows with
/// the age of the operation, so that a recent outcome is found soon, and many old ones cost little.
pub(super) fn look_pause_ms(run: &StepRun, retry_after_ms: Option<u64>, now_ms: u64) -> u64 {
    let age_ms = now_ms.saturating_sub(run.begun_ms);
    let longest = (age_ms / LOOKS_PER_AGE).clamp(LOOK_MIN_MS, LOOK_MAX_MS);
    retry_after_ms.map_or(longest, |pause| pause.clamp(PAUSE_MIN_MS, longest))
}

/// Returns whether the record of an operation may have ended, if the operation has none.
pub(super) fn is_record_overdue(state: &SagaState, run: &StepRun, now_ms: u64) -> bool {
    let life_ms = state.record_life_ms - state.record_life_ms / LIFE_DISTANCE;
    now_ms.saturating_sub(run.known_ms) >= life_ms
}

/// Returns whether the record of an uncertain operation is to be written anew. Otherwise it would
/// end before the operation is settled, and the operation would be lost.
pub fn is_evidence_due(
    state: &SagaState,
    step: usize,
    direction: StepDirection,
    now_ms: u64,
) -> bool {
    let run = state.steps.get(step).and_then(|step| step.run(direction));
    run.is_some_and(|run| is_evidence_old(run, state.record_life_ms, now_ms))
}

fn is_evidence_old(run: &StepRun, record_life_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(run.known_ms) >= (record_life_ms / LIFE_EVIDENCE).max(1)
}

/// Notes that at `now_ms` the operation had a record that was renewed, or did not need one. Returns
/// whether that has to be written.
pub(super) fn note_evidence(run: &mut StepRun, record_life_ms: u64, now_ms: u64) -> bool {
    let is_new = is_evidence_old(run, record_life_ms, now_ms);
    if is_new {
        run.known_ms = now_ms;
    }
    is_new
}

/// Returns whether the pivot has begun, so that neither a timeout nor an operator turns the saga
/// back.
pub(super) fn pivot_is_begun(plan: &Plan, state: &SagaState) -> bool {
    PivotState::of(plan, state) != PivotState::Before
}
