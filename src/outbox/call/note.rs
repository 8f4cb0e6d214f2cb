//! The state of a round, as it is kept with the event between attempts.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::EventDraft;
use crate::outbox::caller::CallRequest;
use crate::record::StatusClass;

/// The state of a round (JSON, inside the content of the event).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallNote {
    /// The round of the event in which the round of the call began.
    pub round: u32,
    /// The state.
    pub state: RoundState,
    /// Whether the gateway refused every earlier call of the round before it looked for the
    /// operation. Then nothing was sent in this round. It is true if there was no earlier call.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_untried: bool,
    /// The called operation, as its reference.
    pub operation: String,
    /// The statuses about which the called route publishes an event.
    pub announced: Vec<StatusClass>,
    /// The request.
    pub request: CallRequest,
}

/// The state of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RoundState {
    /// The operation may have been claimed.
    Began,
    /// The operation was not executed. The same round goes on.
    TakenBack,
    /// The operation began, and its record and its answer are gone.
    OutcomeExpired,
}

/// What an attempt does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallStep {
    /// It begins the round, with a new request.
    Begin,
    /// It begins a round again that was taken back, with the same request.
    BeginAgain(CallNote),
    /// It looks at the operation.
    Look(CallNote),
}

impl CallNote {
    /// Returns the note of an event; `None` if it has none, or one that can't be read.
    pub fn of(draft: &EventDraft<'_>) -> Option<CallNote> {
        serde_json::from_slice(draft.note?).ok()
    }

    /// Encodes the note.
    pub fn encode(&self) -> Bytes {
        // Writing these types to memory can't fail: there is no map.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

impl CallStep {
    /// Decides what an attempt does. `round` is the present round of the event: a requeue that
    /// begins a new round has raised it.
    pub fn of(note: Option<CallNote>, round: u32) -> CallStep {
        match note {
            None => CallStep::Begin,
            Some(note) if note.round != round => CallStep::Begin,
            Some(note) => match note.state {
                RoundState::TakenBack => CallStep::BeginAgain(note),
                RoundState::Began | RoundState::OutcomeExpired => CallStep::Look(note),
            },
        }
    }
}
