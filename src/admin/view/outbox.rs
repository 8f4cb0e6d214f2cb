//! The request to seal the outbox anew, and its answer, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The part of the outbox to seal anew.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResealRequest {
    /// The `cursor` of the previous answer. Without it, the first part.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// The result for one part of the outbox.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ResealedView {
    /// The number of waiting events and dead letters that were sealed anew. What is sealed under
    /// the first key already is not counted.
    pub resealed: usize,
    /// The number of waiting events and dead letters that no configured key opens. They stay as
    /// they are.
    pub unreadable: usize,
    /// Where the next request continues; null at the end.
    pub cursor: Option<String>,
}
