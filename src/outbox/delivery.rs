//! One attempt to deliver an event, and its result.

use std::time::Duration;

use bytes::Bytes;

/// Most bytes of a receiver's answer that are read.
pub const ANSWER_READ_MAX: usize = 4 << 10;
/// Most bytes of a receiver's answer that a dead letter has.
pub const ANSWER_KEPT_MAX: usize = 256;

/// An event, ready for one attempt.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event's `id`. It is the same in every attempt and every round.
    pub event_id: String,
    /// The number of times that the event was requeued.
    pub round: u32,
    /// The event (CloudEvents 1.0, JSON).
    pub event: Bytes,
}

/// Result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptResult {
    /// The receiver has the event.
    Delivered {
        /// The status of its answer, for receivers that have one.
        status: Option<u16>,
    },
    /// The receiver answered that it does not take the event now.
    Refused {
        /// The status of its answer.
        status: u16,
        /// The first bytes of its answer, at most [`ANSWER_KEPT_MAX`].
        answer: Bytes,
        /// How long the receiver wants to get nothing.
        retry_after: Option<Duration>,
    },
    /// There is no answer: the connection failed, or the answer did not arrive in time.
    Failed {
        /// What happened. It names no path, no query and no secret.
        error: String,
    },
}

impl AttemptResult {
    /// Returns whether the receiver has the event.
    pub fn is_delivered(&self) -> bool {
        matches!(self, AttemptResult::Delivered { .. })
    }
}
