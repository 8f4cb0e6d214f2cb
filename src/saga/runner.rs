//! The runner: runs the sagas of a gateway, and takes over those of gateways that are gone.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::changes::started;
use super::document::SagaDocument;
use super::gateway::{SagaGateway, kept_for};
use super::kept::KeptRequest;
use super::log::{SagaInstance, SagaState};
use super::plan::KEPT_BYTES_MAX;
use super::report::{held_operation, summary};
use super::running::{RunningSaga, begin_first};
use super::shared::SagasState;
use super::store_time::StoreTimeEstimate;
use super::unreadable::UnreadableSagas;
use crate::clock::Clock;
use crate::event::ChangedSaga;
use crate::gate::{OwnedSaga, SagaPlace, SagaRequest, SagaRunner, SagaSummary, SagaTake};
use crate::key::Slot;
use crate::refusal::Refusal;
use crate::store::{DueSagas, StoreError};

/// Time between two looks for sagas with an ended lease. It is jittered, and less than 2 s.
const TAKEOVER_PERIOD: Duration = Duration::from_millis(1_000);

/// Most sagas that one look takes over. After a full batch the runner looks again at once.
const TAKEOVER_BATCH: usize = 64;

/// Runs sagas. Cheap to clone.
#[derive(Clone)]
pub struct Sagas(Arc<SagasState>);

impl Sagas {
    /// Creates the runner.
    pub fn new(clock: Clock) -> Sagas {
        Sagas(Arc::new(SagasState {
            gateway: RwLock::new(None),
            time: StoreTimeEstimate::new(clock.clone()),
            clock,
            unreadable: Mutex::new(UnreadableSagas::new()),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Sets the gateway that sagas use from now on, also those that run.
    pub fn set_gateway(&self, gateway: Arc<dyn SagaGateway>) {
        *self.0.gateway.write().unwrap_or_else(PoisonError::into_inner) = Some(gateway);
    }

    /// Takes over sagas with an ended lease, until the runner stops.
    pub async fn take_over(&self) {
        let state = &self.0;
        loop {
            let taken = match state.gateway() {
                // A reload can change the format of the store.
                Some(gateway) if gateway.has_sagas() => state.take_due(&gateway).await,
                _ => 0,
            };
            let pause = match taken {
                TAKEOVER_BATCH.. => Duration::ZERO,
                _ => state.jittered(TAKEOVER_PERIOD),
            };
            tokio::select! {
                () = state.stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Stops: sagas stop between two steps, and give their leases back. Returns when none runs.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl SagasState {
    /// Takes over sagas with an ended lease. Returns how many were taken over.
    async fn take_due(self: &Arc<Self>, gateway: &Arc<dyn SagaGateway>) -> usize {
        let records = &gateway.gate().store().records;
        let limit = self.unreadable().beside(TAKEOVER_BATCH);
        let DueSagas { mut slots, now_ms } = match records.due_sagas(limit).await {
            Ok(due) => due,
            Err(error) => {
                tracing::debug!(%error, "index of sagas not read");
                return 0;
            }
        };
        self.time.note(now_ms);
        {
            let unreadable = self.unreadable();
            slots.retain(|slot| !unreadable.contains(slot));
        }
        let mut taken = 0;
        for slot in &slots {
            let place = gateway.gate().saga_place().filter(|_| !self.stop.is_cancelled());
            let Some(place) = place else { break };
            match self.take(gateway, slot, place).await {
                Ok(is_taken) => taken += usize::from(is_taken),
                Err(error) => {
                    tracing::warn!(operation = %slot, %error, "the saga could not be taken over");
                    // Any other failure passes: the next look tries again.
                    if matches!(error, StoreError::Corrupt(_)) {
                        self.unreadable().add(*slot);
                    }
                }
            }
        }
        taken
    }

    async fn take(
        self: &Arc<Self>,
        gateway: &Arc<dyn SagaGateway>,
        slot: &Slot,
        place: SagaPlace,
    ) -> Result<bool, StoreError> {
        let is_readable = |content: &Bytes| match SagaDocument::decode(content) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(operation = %slot, %error, "the saga's record can't be read");
                false
            }
        };
        let route_of = |name: &str| gateway.route_of(name);
        let taken = gateway.gate().take_saga(slot, place, is_readable, route_of).await?;
        match taken {
            SagaTake::Taken(owned) => {
                tracing::info!(operation = %slot, "saga taken over");
                self.spawn(owned);
                return Ok(true);
            }
            SagaTake::Unreadable => self.unreadable().add(*slot),
            SagaTake::Gone => {}
        }
        Ok(false)
    }

    fn spawn(self: &Arc<Self>, owned: OwnedSaga) {
        let state = self.clone();
        self.tasks.spawn(async move {
            let Some(gateway) = state.gateway() else { return };
            let saga = RunningSaga::new(state, owned, &gateway.gate().meter().sagas);
            // A reload replaces the gateway while the saga runs.
            drop(gateway);
            match saga {
                Ok(saga) => saga.run().await,
                Err(slot) => {
                    tracing::error!(operation = %slot, "the saga's record can't be read");
                }
            }
        });
    }

    fn document(
        &self,
        gateway: &dyn SagaGateway,
        name: &str,
        request: &SagaRequest<'_>,
    ) -> Result<SagaDocument, Refusal> {
        let configured = gateway.saga(name).ok_or(Refusal::Overloaded)?;
        let target = (request.path, request.query);
        let kept = KeptRequest::new(
            &configured.path,
            target,
            request.headers,
            &configured.keep_headers,
            request.body.clone(),
        );
        let kept_bytes = kept.kept_bytes();
        if kept_bytes > KEPT_BYTES_MAX {
            return Err(Refusal::BodyTooLarge { limit: KEPT_BYTES_MAX });
        }
        let instance = SagaInstance::from_random(gateway.gate().entropy().next_wide());
        let life_ms = kept_for(&gateway.route_of(name).route.policy).as_millis();
        let log = SagaState::new(
            instance,
            configured.plan.steps.len(),
            self.time.now_ms(),
            u64::try_from(life_ms).unwrap_or(u64::MAX),
            kept_bytes,
        );
        Ok(SagaDocument { plan: configured.plan.clone(), request: kept, log })
    }
}

impl SagaRunner for Sagas {
    fn first_content(&self, saga: &str, request: &SagaRequest<'_>) -> Result<Bytes, Refusal> {
        let state = &self.0;
        let is_stopping = state.stop.is_cancelled();
        let gateway = state.gateway().filter(|_| !is_stopping).ok_or(Refusal::Overloaded)?;
        let mut document = state.document(&*gateway, saga, request)?;
        // The first actions begin with the claim: their log entries need no write of their own.
        begin_first(&mut document, &request.slot.to_string(), state.time.now_ms());
        document.encode().map(Bytes::from).map_err(|_| Refusal::BodyUnreadable)
    }

    fn started(&self, content: &Bytes) -> Option<ChangedSaga> {
        let gateway = self.0.gateway()?;
        let document = SagaDocument::decode(content).ok()?;
        Some(started(gateway.gate(), &document))
    }

    fn run(&self, saga: OwnedSaga) {
        self.0.spawn(saga);
    }

    fn summary(&self, content: &Bytes) -> Option<SagaSummary> {
        SagaDocument::decode(content).ok().map(|document| summary(&document, None))
    }

    fn has_progressed(&self, content: &Bytes) -> bool {
        SagaDocument::decode(content).is_ok_and(|document| document.has_progressed())
    }

    fn held_operation(&self, content: &Bytes) -> Option<Slot> {
        let gateway = self.0.gateway()?;
        let document = SagaDocument::decode(content).ok()?;
        held_operation(gateway.gate(), &document, self.0.time.now_ms())
    }

    fn stopping(&self) -> CancellationToken {
        self.0.stop.clone()
    }
}
