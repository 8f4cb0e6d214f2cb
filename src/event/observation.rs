//! Observations: what happened to requests that changed no record. They may be lost.

use serde::{Deserialize, Serialize};

use super::NoEvent;

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// It was answered with the operation's result.
    Replayed,
    /// It was answered so after it had waited for the first request.
    Waited,
    /// It was refused.
    Refused,
    /// On a shadow route: enforcing would have answered it with the operation's result, at once or after waiting.
    WouldReplay,
    /// On a shadow route: enforcing would have refused it.
    WouldRefuse,
}

/// A place in which a duplicate differs from the first request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// A JSON pointer into the request's body.
    pub pointer: String,
}

/// One request, as it was seen by its gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// What happened.
    pub kind: Seen,
    /// When, in ms since 1970 by the gateway's clock.
    pub at_ms: u64,
    /// The operation's public reference; empty where a request of a shadow route could not be told to be one.
    pub operation: String,
    /// The route.
    pub route: String,
    /// The scope's hash, shortened: operations of one tenant have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The status of the answer; of a shadow route's request the one that enforcing would have given, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How long it waited, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Why it was refused: the short name of the problem's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Where it differs from the first request, if that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differing: Vec<Difference>,
    /// The trace that the request belongs to: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

impl Observation {
    /// A batch as it is kept: a JSON array.
    pub fn encode(batch: &[Observation]) -> Vec<u8> {
        // Numbers, texts and a closed set of words: there is nothing that can't be written.
        serde_json::to_vec(batch).unwrap_or_default()
    }

    /// Reads a batch. Those that this version doesn't know, and members that it doesn't, are passed over.
    ///
    /// # Errors
    /// It is no batch.
    pub fn decode(batch: &[u8]) -> Result<Vec<Observation>, NoEvent> {
        let all: Vec<serde_json::Value> = serde_json::from_slice(batch)?;
        Ok(all.into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect())
    }
}
