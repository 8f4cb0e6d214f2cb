//! The content of a saga's record: the plan, the request and the log.

use serde::{Deserialize, Serialize};

use super::kept::KeptRequest;
use super::log::{ActionState, CompensationState, SagaState};
use super::plan::Plan;
use super::render::{DoneStep, RenderScope};
use super::status::SagaStatus;
use super::step_key::StepKey;
use crate::record::SagaPhase;
use crate::saga::log::StepDirection;

/// The content of a saga's record, which is stored as JSON and sealed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SagaDocument {
    /// The plan with which the saga began.
    pub plan: Plan,
    /// The request that began the saga.
    pub request: KeptRequest,
    /// What happened so far.
    pub log: SagaState,
}

impl SagaDocument {
    /// Reads a document.
    ///
    /// # Errors
    /// The bytes are no document of this version.
    pub fn decode(bytes: &[u8]) -> Result<SagaDocument, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Writes the document.
    ///
    /// # Errors
    /// Does not occur: all keys of the document's maps are texts.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Returns whether an owner has written what became of a step. A saga that has just begun has
    /// begun and skipped steps only, or a step that can't be sent.
    pub fn has_progressed(&self) -> bool {
        self.log.steps.iter().any(|step| {
            matches!(step.action, ActionState::Done { .. } | ActionState::Barred { .. })
                || step.compensation != CompensationState::Waiting
        })
    }

    /// Returns the phase in the clear, for a saga that has not ended.
    pub fn phase(&self) -> SagaPhase {
        match SagaStatus::of(&self.log) {
            SagaStatus::Stuck => SagaPhase::Stuck,
            SagaStatus::Compensating => SagaPhase::Compensating,
            _ => SagaPhase::Running,
        }
    }

    /// Returns the keys of the actions that are done, for [`SagaDocument::scope`].
    pub fn done_keys(&self) -> Vec<(usize, StepKey)> {
        let steps = self.plan.steps.iter().zip(&self.log.steps).enumerate();
        let done = steps.filter_map(|(at, (step, state))| match &state.action {
            ActionState::Done { run, .. } => {
                let direction = StepDirection::Action;
                let key = StepKey::new(self.log.instance, &step.name, direction, run.generation);
                Some((at, key))
            }
            _ => None,
        });
        done.collect()
    }

    /// Returns the names in the scope of the plan's templates. `id` is the public id of the saga,
    /// and `keys` are the [keys](SagaDocument::done_keys) of the actions that are done.
    pub fn scope<'s>(&'s self, id: &'s str, keys: &'s [(usize, StepKey)]) -> RenderScope<'s> {
        let done = keys.iter().filter_map(|(at, key)| {
            let (step, state) = (self.plan.steps.get(*at)?, self.log.steps.get(*at)?);
            match &state.action {
                ActionState::Done { answer: Some(answer), .. } => {
                    Some(DoneStep { name: &step.name, key: key.as_str(), answer })
                }
                _ => None,
            }
        });
        let started_at_ms = self.log.started_ms;
        RenderScope { id, started_at_ms, request: &self.request, steps: done.collect() }
    }
}
