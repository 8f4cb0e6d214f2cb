//! A protected route, and the sagas that its requests begin.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::saga_place::SagaPlace;
use super::saga_summary::SagaSummary;
use crate::event::ChangedSaga;
use crate::key::Slot;
use crate::record::{Publication, Record, Reply, SagaPhase, SpanId, State, Version};
use crate::refusal::Refusal;
use crate::route::Route;
use crate::telemetry::RouteMeter;
use crate::token::Keyring;

/// A protected route, with everything that the gate needs to run its requests.
pub struct ProtectedRoute {
    /// The route.
    pub route: Arc<Route>,
    /// Maximum time from sending a request to the end of its response.
    pub response_timeout: Duration,
    /// The metrics of the route.
    pub meter: RouteMeter,
    /// The keys that verify clients' tokens, if the route takes its scope from a token.
    pub keyring: Option<Arc<Keyring>>,
    /// Runs the sagas that requests of the route begin; `None` for a route to an upstream.
    pub saga: Option<Arc<dyn SagaRunner>>,
    /// The same route for writes on its resources that have no key; `None` for a route without
    /// resources. Each of these writes is an operation of its own.
    pub unkeyed: Option<Arc<ProtectedRoute>>,
}

impl ProtectedRoute {
    /// Completes a route with [`ProtectedRoute::unkeyed`].
    pub fn with_unkeyed(self) -> ProtectedRoute {
        if !self.route.policy.resource.as_ref().is_some_and(|rule| rule.makes_tags()) {
            return self;
        }
        let route = Route { policy: self.route.policy.unkeyed(), ..Route::clone(&self.route) };
        let unkeyed = ProtectedRoute {
            route: Arc::new(route),
            response_timeout: self.response_timeout,
            meter: self.meter.clone(),
            keyring: self.keyring.clone(),
            saga: None,
            unkeyed: None,
        };
        ProtectedRoute { unkeyed: Some(Arc::new(unkeyed)), ..self }
    }
}

/// The request that begins a saga.
pub struct SagaRequest<'r> {
    /// The operation.
    pub slot: &'r Slot,
    /// The path.
    pub path: &'r str,
    /// The query.
    pub query: Option<&'r str>,
    /// The header fields.
    pub headers: &'r HeaderMap,
    /// The decoded body.
    pub body: &'r Bytes,
}

/// Begins sagas, and runs them.
pub trait SagaRunner: Send + Sync + 'static {
    /// Returns the content of the record that begins a saga.
    ///
    /// # Errors
    /// The request is too large, or the sagas of this gateway stop. Nothing has begun.
    fn first_content(&self, saga: &str, request: &SagaRequest<'_>) -> Result<Bytes, Refusal>;

    /// Returns what the record with this first content changes; `None` if the content can't be
    /// read.
    fn started(&self, content: &Bytes) -> Option<ChangedSaga>;

    /// Runs a saga that begins: its record is stored.
    fn run(&self, saga: OwnedSaga);

    /// Returns the state of the saga with this content; `None` if the content can't be read.
    fn summary(&self, content: &Bytes) -> Option<SagaSummary>;

    /// Returns whether this content shows that the saga has had an owner. A claim that the store
    /// confirmed too late has none, and is being given up.
    fn has_progressed(&self, content: &Bytes) -> bool;

    /// Returns the operation that an operator has to settle before the saga with this content goes
    /// on; `None` if it waits for something else.
    fn held_operation(&self, content: &Bytes) -> Option<Slot>;

    /// Returns a token that is cancelled when the sagas of this gateway stop.
    fn stopping(&self) -> CancellationToken;
}

/// The next content of a saga's record.
#[derive(Debug, Clone)]
pub struct NextSaga {
    /// The phase, in the clear.
    pub phase: SagaPhase,
    /// The content.
    pub content: Bytes,
    /// What it changes, for the event log and for sinks; `None` if they need not know of it.
    pub change: Option<ChangedSaga>,
}

/// A saga that this gateway owns, as its last write left it.
pub struct OwnedSaga {
    /// The operation of the request that began it.
    pub slot: Slot,
    /// The route of that request.
    pub(super) guarded: Arc<ProtectedRoute>,
    pub(super) record: Record,
    /// When the lease ends, at the earliest.
    pub(super) lease_end: Instant,
    pub(super) place: SagaPlace,
    /// The client that began the saga waits for the answer, or for this to be dropped.
    pub(super) waiting_client: Option<oneshot::Sender<Arc<Reply>>>,
}

impl OwnedSaga {
    /// Returns the route of the saga's request.
    pub fn route(&self) -> &Arc<ProtectedRoute> {
        &self.guarded
    }

    /// Returns the content of the record; `None` if no configured key opens it.
    pub fn content(&self) -> Option<&Bytes> {
        self.record.saga_content()
    }

    /// Returns the version of the record.
    pub fn version(&self) -> Version {
        self.record.version
    }

    /// Returns the exported span of the request that began the saga.
    pub fn request_span(&self) -> Option<SpanId> {
        self.record.extras.span
    }

    /// Returns whether changes of the saga make events for sinks.
    pub fn is_published(&self) -> bool {
        matches!(self.record.publication, Some(Publication::Open(_)))
    }

    /// Returns when the owner has to renew the lease.
    pub fn renewal(&self) -> Instant {
        self.lease_end - self.guarded.route.policy.lease * 2 / 3
    }

    pub(super) fn wrote(&mut self, record: Record, at: Instant) {
        self.has(record);
        self.lease_end = at + self.guarded.route.policy.lease;
    }

    /// Takes over the stored record.
    pub(super) fn has(&mut self, record: Record) {
        if let Some(content) = record.saga_content() {
            self.place.keeps(content);
        }
        match &record.state {
            State::Saga { phase: SagaPhase::Running | SagaPhase::Compensating, .. } => {}
            State::Completed { reply, .. } => {
                // Without the client, nobody needs the answer.
                _ = self.waiting_client.take().map(|client| client.send(reply.clone()));
            }
            _ => self.waiting_client = None,
        }
        self.record = record;
    }
}
