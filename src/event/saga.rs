//! What a change of a saga's record changed, in words: for the event log and for sinks.
//!
//! It names steps, statuses and references of operations. It never contains anything of the
//! request, of the steps' requests or of their answers, and no key.

use serde::{Deserialize, Serialize};

use crate::record::AnnouncedState;

/// What a change of a saga's record changed.
///
/// All names are texts, because a reader must pass over names that later versions add.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedSaga {
    /// The names of the change's events, such as `saga.step`, in their order. One change may be
    /// several events: the step that fails may stop the saga.
    #[serde(default)]
    pub events: Vec<String>,
    /// The status of the saga after the change.
    #[serde(default)]
    pub status: String,
    /// The steps with a new status, in the order of the plan. An action precedes its compensation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<ChangedStep>,
    /// The steps that stop the saga. Only of `saga.stuck`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stuck: Vec<StoppedStep>,
    /// Why the saga failed. Only of `saga.failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<SagaFailureNote>,
    /// The decision of an operator: `cancel`, `retry` or `skip`, and the step, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
}

/// An action or a compensation with a new status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedStep {
    /// The name of the step.
    pub name: String,
    /// `action` or `compensation`.
    pub direction: String,
    /// The new status, in the words that clients read.
    pub status: String,
    /// The number of attempts, with an active one.
    #[serde(default)]
    pub attempts: u32,
    /// The reference of its operation; `None` if no attempt was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// The status of the upstream's answer that settled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_status: Option<u16>,
    /// Why it failed or was refused, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// A step that stops its saga.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedStep {
    /// The name of the step.
    pub step: String,
    /// `action` or `compensation`.
    pub direction: String,
    /// Why it stops the saga, in one word.
    pub cause: String,
    /// The reference of its operation; `None` if no attempt was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

/// Why a saga failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaFailureNote {
    /// `step`, `timeout`, `cancel`, or `withdrawn`: the saga was given up before it ran.
    pub cause: String,
    /// The name of the step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The status of the upstream's answer to that step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_status: Option<u16>,
}

impl ChangedSaga {
    /// Returns the change that gives a saga up before it ran. Nothing of it was executed.
    pub fn withdrawn() -> ChangedSaga {
        let failure = SagaFailureNote { cause: "withdrawn".to_owned(), ..Default::default() };
        ChangedSaga {
            events: vec![AnnouncedState::SagaFailed.name().to_owned()],
            status: "failed".to_owned(),
            failure: Some(failure),
            ..ChangedSaga::default()
        }
    }

    /// Returns what sinks are notified of, in order.
    pub fn announced(&self) -> impl Iterator<Item = AnnouncedState> {
        self.events.iter().filter_map(|name| AnnouncedState::of_name(name))
    }
}
