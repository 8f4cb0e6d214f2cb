//! The states of sinks that all gateways of a store share: which sinks are paused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::store::{IdentityNotes, Note, StoreError};

/// Attempts to change the states while other gateways change them, too.
const CHANGES_MAX: usize = 20;

/// The states of sinks, by name. A sink without a state is running, and was never paused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SinkStates(BTreeMap<String, SinkState>);

/// The state of a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// Why it is paused, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Time at which it was last resumed, in ms since 1970 by a gateway's clock; 0: never.
    #[serde(default)]
    pub resumed_ms: u64,
}

/// A pause of a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Why it is paused. "gone": its receiver answered 410.
    pub reason: String,
    /// Who paused it; `None` for the gateway itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Since when, in ms since 1970 by a gateway's clock.
    pub since_ms: u64,
}

/// A change of a sink's state that was not made.
#[derive(Debug, thiserror::Error)]
pub enum SinkStateError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The states in the store can't be read: a later version of the gateway wrote them.
    #[error("the states of the sinks in the store can't be read")]
    Malformed,
    /// Other gateways changed the states at the same time, again and again. The same change may be
    /// tried again.
    #[error("other gateways keep changing the states of sinks; try again")]
    Contended,
}

impl SinkStates {
    /// Returns the state of a sink.
    pub fn of(&self, sink: &str) -> SinkState {
        self.0.get(sink).cloned().unwrap_or_default()
    }

    /// Reads the states from the store.
    ///
    /// # Errors
    /// The store fails, or the states are malformed.
    pub async fn load(notes: &dyn IdentityNotes) -> Result<SinkStates, SinkStateError> {
        SinkStates::parse(notes.note(Note::Sinks).await?.as_deref())
    }

    fn parse(text: Option<&str>) -> Result<SinkStates, SinkStateError> {
        let Some(text) = text else { return Ok(SinkStates::default()) };
        serde_json::from_str(text).map_err(|_| SinkStateError::Malformed)
    }

    /// Pauses a sink. A sink that is paused keeps its pause. Returns the sink's state.
    ///
    /// # Errors
    /// The states were not changed.
    pub async fn pause(
        notes: &dyn IdentityNotes,
        sink: &str,
        pause: &Pause,
    ) -> Result<SinkState, SinkStateError> {
        let change = |state: &mut SinkState| {
            state.pause.get_or_insert_with(|| pause.clone());
        };
        SinkStates::change(notes, sink, change).await
    }

    /// Resumes a sink. Returns the sink's state. A sink that is not paused stays as it is.
    ///
    /// # Errors
    /// The states were not changed.
    pub async fn resume(
        notes: &dyn IdentityNotes,
        sink: &str,
        now_ms: u64,
    ) -> Result<SinkState, SinkStateError> {
        let change = |state: &mut SinkState| {
            if state.pause.take().is_some() {
                state.resumed_ms = now_ms;
            }
        };
        SinkStates::change(notes, sink, change).await
    }

    async fn change(
        notes: &dyn IdentityNotes,
        sink: &str,
        change: impl Fn(&mut SinkState),
    ) -> Result<SinkState, SinkStateError> {
        for _ in 0..CHANGES_MAX {
            let text = notes.note(Note::Sinks).await?;
            let before = SinkStates::parse(text.as_deref())?;
            let mut after = before.clone();
            let state = after.0.entry(sink.to_owned()).or_default();
            change(state);
            let state = state.clone();
            if after == before || before.of(sink) == state {
                return Ok(state);
            }
            let next = serde_json::to_string(&after).map_err(|_| SinkStateError::Malformed)?;
            if notes.set_note(Note::Sinks, text.as_deref(), &next).await? {
                return Ok(state);
            }
        }
        Err(SinkStateError::Contended)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::memory::Memory;

    fn pause(reason: &str) -> Pause {
        Pause { reason: reason.into(), by: Some("kim".into()), since_ms: 5 }
    }

    #[tokio::test]
    async fn a_pause_holds_until_the_sink_is_resumed() {
        let store = Memory::new(Arc::new(|| 1000));
        assert_eq!(SinkStates::load(&store).await.unwrap(), SinkStates::default());
        let paused = SinkStates::pause(&store, "ledger", &pause("maintenance")).await.unwrap();
        assert_eq!(paused, SinkState { pause: Some(pause("maintenance")), resumed_ms: 0 });
        let again = SinkStates::pause(&store, "ledger", &pause("other")).await.unwrap();
        assert_eq!(again, paused, "the first pause stays");
        SinkStates::pause(&store, "mail", &pause("gone")).await.unwrap();
        let loaded = SinkStates::load(&store).await.unwrap();
        assert_eq!(loaded.of("ledger"), paused);
        let resumed = SinkStates::resume(&store, "ledger", 77).await.unwrap();
        assert_eq!(resumed, SinkState { pause: None, resumed_ms: 77 });
        assert_eq!(SinkStates::resume(&store, "ledger", 99).await.unwrap(), resumed);
        let loaded = SinkStates::load(&store).await.unwrap();
        assert_eq!(loaded.of("mail").pause, Some(pause("gone")));
    }
}
