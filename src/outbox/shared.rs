//! The parts that all tasks of a relay share.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;

use super::known_calls::ProcessCalls;
use super::ownership::Ownership;
use super::states::SinkStates;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::store::outbox::Outbox;
use crate::store::{IdentityNotes, Records};
use crate::telemetry::OutboxMeter;

/// The parts that all tasks of a relay share.
pub(super) struct RelayShared {
    pub outbox: Arc<dyn Outbox>,
    pub notes: Arc<dyn IdentityNotes>,
    /// The records, for the outcomes of calls.
    pub records: Arc<dyn Records>,
    pub ownership: Arc<Ownership>,
    pub clock: Clock,
    pub entropy: Arc<Entropy>,
    pub meter: OutboxMeter,
    pub known_states: RwLock<Arc<SinkStates>>,
    /// Set when another relay left.
    pub relay_left: Arc<Notify>,
    /// Set when this process has changed the states of sinks.
    pub states_changed: Arc<Notify>,
    /// Set when an operator has requeued or discarded dead letters.
    pub backlogs_changed: Arc<Notify>,
    /// The calls of this process, and its way to the gate.
    pub calls: Arc<ProcessCalls>,
}

impl RelayShared {
    /// Returns the states of sinks at the last look.
    pub fn states(&self) -> Arc<SinkStates> {
        self.known_states.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the states of sinks. Returns whether they differ.
    pub fn set_states(&self, states: SinkStates) -> bool {
        let mut known = self.known_states.write().unwrap_or_else(PoisonError::into_inner);
        let differ = **known != states;
        if differ {
            *known = Arc::new(states);
        }
        differ
    }
}
