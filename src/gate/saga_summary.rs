//! The state of a saga in words, without the data of its request and of its steps' answers.

use serde::{Deserialize, Serialize};

/// The state of a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaSummary {
    /// The status of the saga.
    pub status: String,
    /// When it began (RFC 3339).
    pub started_at: String,
    /// The steps, in the order of the plan.
    pub steps: Vec<SagaStepSummary>,
}

/// The state of one step of a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaStepSummary {
    /// The name.
    pub name: String,
    /// The status.
    pub status: String,
}
