//! The report of the attempts of a dead letter.

use serde::{Deserialize, Serialize};

/// The attempts of an event when it was buried, as a dead letter keeps them (JSON).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptsReport {
    /// Time of the first attempt, in ms since 1970; `None` if there was no attempt.
    pub first_ms: Option<u64>,
    /// Time of the last attempt, in ms since 1970.
    pub last_ms: Option<u64>,
    /// Number of attempts.
    pub count: u32,
    /// The status of the last answer.
    pub status: Option<u16>,
    /// The first bytes of the last answer. Bytes that are not text are replaced.
    pub answer: Option<String>,
    /// Why there is no answer, or why the event can't be sent.
    pub error: Option<String>,
}
