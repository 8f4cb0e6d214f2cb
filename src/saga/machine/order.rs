//! The order of a plan's steps.

use crate::saga::plan::{Plan, STEPS_MAX, Step};

/// A set of steps, by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepSet(u32);

// One bit for each step.
const _: () = assert!(STEPS_MAX <= u32::BITS as usize);

impl StepSet {
    /// Returns the steps of a list. Positions that no plan has are left out.
    pub fn of(steps: &[usize]) -> StepSet {
        StepSet(steps.iter().filter(|step| **step < STEPS_MAX).fold(0, |set, step| set | 1 << step))
    }

    /// Returns whether the set has this step.
    pub fn contains(self, step: usize) -> bool {
        step < STEPS_MAX && self.0 & 1 << step != 0
    }

    /// Returns for each step the steps that are after it, directly or through others.
    pub fn later_steps(plan: &Plan) -> Vec<StepSet> {
        let mut earlier: Vec<StepSet> =
            plan.steps.iter().map(|step| StepSet::of(&step.after)).collect();
        // Each round follows the order by one more step, so a cycle can't go on for ever.
        for _ in 0..plan.steps.len() {
            earlier = earlier.iter().map(|set| set.with_earlier(&earlier)).collect();
        }
        let later_than = |step: usize| {
            let later = earlier.iter().enumerate().filter(|(_, set)| set.contains(step));
            StepSet::of(&later.map(|(later, _)| later).collect::<Vec<_>>())
        };
        (0..plan.steps.len()).map(later_than).collect()
    }

    fn with_earlier(self, earlier: &[StepSet]) -> StepSet {
        let of_members = earlier.iter().enumerate().filter(|(step, _)| self.contains(*step));
        StepSet(of_members.fold(self.0, |set, (_, of_step)| set | of_step.0))
    }
}

/// Returns whether a step follows only steps for which `is_over` is true.
pub(super) fn follows(step: &Step, is_over: impl Fn(usize) -> bool) -> bool {
    step.after.iter().all(|before| is_over(*before))
}
