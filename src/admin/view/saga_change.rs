//! What a change of a saga's record changed, as JSON and in words.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a change of a saga's record changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SagaChangeView {
    /// The events of the change, in order: `saga.started`, `saga.step`, `saga.stuck`,
    /// `saga.resumed`, `saga.completed` or `saga.failed`.
    #[serde(default)]
    pub events: Vec<String>,
    /// The status of the saga after the change.
    #[serde(default)]
    pub status: String,
    /// The actions and compensations with a new status.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub steps: Vec<ChangedStepView>,
    /// The steps that stop the saga, of `saga.stuck`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stuck: Vec<StoppedStepView>,
    /// Why the saga failed, of `saga.failed`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<SagaFailureView>,
    /// The decision of an operator: `cancel`, `retry` or `skip`, and the step, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decision: Option<String>,
}

/// An action or a compensation with a new status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangedStepView {
    /// The name of the step.
    pub name: String,
    /// `action` or `compensation`.
    pub direction: String,
    /// The new status: see the steps of a saga.
    pub status: String,
    /// The number of attempts.
    #[serde(default)]
    pub attempts: u32,
    /// The reference of its operation; absent if it was never sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<String>,
    /// The status of the upstream's answer that settled it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream_status: Option<u16>,
    /// Why it failed or was refused: `status`, `attempts`, `unrendered`, `condition`, `invalid` or
    /// `barred`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
}

/// A step that stops its saga.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoppedStepView {
    /// The name of the step.
    pub step: String,
    /// `action` or `compensation`.
    pub direction: String,
    /// `held`, `lost`, `refused`, `retried` or `unconfigured`.
    pub cause: String,
    /// The reference of its operation; absent if it was never sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<String>,
}

/// Why a saga failed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SagaFailureView {
    /// `step`, `timeout`, `cancel` or `withdrawn`.
    pub cause: String,
    /// The step that failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<String>,
    /// The status of the upstream's answer to that step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream_status: Option<u16>,
}

impl SagaChangeView {
    /// Returns the decision, the steps and the reasons, in words. Empty if the change has none.
    pub fn in_words(&self) -> String {
        let decision = self.decision.iter().cloned();
        let steps = self.steps.iter().map(ChangedStepView::in_words);
        let stuck = self.stuck.iter().map(StoppedStepView::in_words);
        let failure = self.failure.iter().map(SagaFailureView::in_words);
        decision.chain(steps).chain(stuck).chain(failure).collect::<Vec<_>>().join(", ")
    }
}

impl ChangedStepView {
    fn in_words(&self) -> String {
        let ChangedStepView { name, direction, status, attempts, upstream_status, cause, .. } =
            self;
        // Only `uncertain` is a status of both directions.
        let undo =
            if direction == "compensation" && status == "uncertain" { "undo of " } else { "" };
        let mut words = format!("{undo}{name} {status}");
        match (upstream_status, cause.as_deref()) {
            (Some(upstream_status), _) => words.push_str(&format!(" ({upstream_status})")),
            (None, Some(cause)) => words.push_str(&format!(" ({cause})")),
            (None, None) => {}
        }
        if *attempts > 1 {
            words.push_str(&format!(" after {attempts} attempts"));
        }
        words
    }
}

impl StoppedStepView {
    fn in_words(&self) -> String {
        let undo = if self.direction == "compensation" { "undo of " } else { "" };
        let why = match self.cause.as_str() {
            "held" => "nobody knows yet whether it was executed",
            "lost" => "nobody will ever know whether it was executed",
            "refused" => "it was refused for good",
            "retried" => "it is tried again and again",
            "unconfigured" => "this configuration can't call it",
            other => other,
        };
        format!("stuck at {undo}{}: {why}", self.step)
    }
}

impl SagaFailureView {
    fn in_words(&self) -> String {
        let status = self.upstream_status.map(|status| format!(" ({status})")).unwrap_or_default();
        match (&self.step, self.cause.as_str()) {
            (Some(step), _) => format!("because of {step}{status}"),
            (None, "timeout") => "because it took too long".to_owned(),
            (None, "cancel") => "because it was cancelled".to_owned(),
            (None, "withdrawn") => "given up before it ran".to_owned(),
            (None, other) => other.to_owned(),
        }
    }
}
