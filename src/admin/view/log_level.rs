//! The log filter as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The filter of the process log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLevelView {
    /// Levels by target, such as `info,onceward::store=debug`.
    pub filter: String,
}
