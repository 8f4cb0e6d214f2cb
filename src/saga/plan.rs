//! The plan of a saga.
//!
//! The configuration makes the plan, and the record of each saga keeps the plan with which the saga
//! began. A gateway with another configuration continues the saga under the kept plan.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most steps of one saga.
pub const STEPS_MAX: usize = 32;
/// Most bytes that a saga keeps of its request and of the answers of its steps.
pub const KEPT_BYTES_MAX: usize = 256 << 10;
/// Most bytes of one answer's body that a saga keeps.
pub const KEPT_BODY_MAX: usize = 64 << 10;

/// The plan of a saga, in the form that is stored (JSON). Times are in ms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The name of the saga, which is part of its steps' identities.
    pub saga: String,
    /// Time from the start, without the time in which the saga is stuck, after which no step begins
    /// and no step is repeated. It does not end compensations.
    pub timeout_ms: u64,
    /// The steps, in the order of the configuration. At least one, at most [`STEPS_MAX`].
    pub steps: Vec<Step>,
    /// The answer of a completed saga.
    pub answer: AnswerTemplate,
    /// The answer of a failed saga; `None` for the problem document `saga-failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<AnswerTemplate>,
}

/// One step: an action, and perhaps its compensation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name, unique in the plan.
    pub name: String,
    /// The positions of the steps that must be done or skipped before this step begins.
    pub after: Vec<usize>,
    /// An expression; the step is skipped if it is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Whether the saga can only be completed once this step is done. At most one step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pivot: bool,
    /// The action.
    pub action: StepRequest,
    /// How the action is undone.
    pub compensation: Compensation,
    /// How both are sent, and what their answers mean.
    pub sending: StepSending,
    /// When an action or a compensation that was provably not executed is sent again.
    pub retry: StepRetry,
}

/// A request of a step. Texts are templates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRequest {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Header fields, by name in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, FieldSource>,
    /// The body (JSON); `None` for a request without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// Where the value of a header field comes from. A plan never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FieldSource {
    /// A template in a request, or the plain value in a probe.
    Text(String),
    /// An environment variable of the gateway.
    Env(String),
    /// A file on the gateway.
    File(String),
}

/// How an action is undone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Compensation {
    /// Nothing needs to be undone, by the configuration or because the step is not before the
    /// pivot.
    None,
    /// This request undoes it.
    Request {
        /// The request.
        request: StepRequest,
        /// Statuses that mean that nothing is left to undo.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<String>,
    },
}

/// How the requests of a step are sent, and what their answers mean. The texts of statuses have the
/// forms of [`StatusRules`](crate::engine::StatusRules). A status in no list is uncertain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSending {
    /// The name of the upstream.
    pub upstream: String,
    /// The header field in which the upstream gets the step's key.
    pub key_header: String,
    /// Limit for one attempt.
    pub timeout_ms: u64,
    /// Statuses of an action that was executed.
    pub success: Vec<String>,
    /// Statuses of an action that was refused for good.
    pub failure: Vec<String>,
    /// Statuses that prove that the upstream did nothing, and that the same request may succeed
    /// later.
    pub release_status: Vec<String>,
    /// Statuses that leave the outcome uncertain, as exceptions to a class in another list.
    pub uncertain_status: Vec<String>,
    /// What happens while the outcome is uncertain.
    pub on_uncertain: StepUncertain,
    /// How long an uncertain operation must rest before it may be sent again.
    pub uncertain_after_ms: u64,
    /// How long a claim of the step's operation holds without renewal.
    pub lease_ms: u64,
}

/// What happens while the outcome of a step is uncertain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StepUncertain {
    /// Somebody must settle its operation.
    Hold,
    /// The same request is sent again, under the same key.
    Forward,
    /// The upstream is asked for the outcome.
    Probe(PlannedProbe),
}

/// A probe, as the plan keeps it: see [`Probe`](crate::engine::Probe).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedProbe {
    /// A safe method.
    pub method: String,
    /// The path, with a placeholder for the key.
    pub path: String,
    /// Statuses that mean that the operation was executed.
    pub found: Vec<String>,
    /// Statuses that mean that it was not.
    pub absent: Vec<String>,
    /// The pointer to the member that a found answer has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_if: Option<String>,
    /// The status of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_status: Option<u16>,
    /// Header fields, by name in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, FieldSource>,
}

/// When a request that was provably not executed is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRetry {
    /// Longest pause after the first attempt, in ms.
    pub first_ms: u64,
    /// Longest pause after any attempt, in ms.
    pub max_ms: u64,
    /// Number of attempts after which an action counts as refused; at least 1.
    pub attempts: u32,
}

/// The answer of a saga that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerTemplate {
    /// The status.
    pub status: u16,
    /// A template of a JSON document; `None` for the default body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}
