//! The state that all sagas of a gateway share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gateway::SagaGateway;
use super::store_time::StoreTimeEstimate;
use super::unreadable::UnreadableSagas;
use crate::clock::Clock;

/// The state that all sagas of a gateway share.
pub(super) struct SagasState {
    /// `None` until the gateway is set up.
    pub gateway: RwLock<Option<Arc<dyn SagaGateway>>>,
    pub time: StoreTimeEstimate,
    pub clock: Clock,
    pub unreadable: Mutex<UnreadableSagas>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl SagasState {
    pub fn gateway(&self) -> Option<Arc<dyn SagaGateway>> {
        self.gateway.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn unreadable(&self) -> MutexGuard<'_, UnreadableSagas> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn jittered(&self, pause: Duration) -> Duration {
        self.gateway().map_or(pause, |gateway| gateway.gate().entropy().jitter(pause))
    }
}
