//! The gateway as its sagas use it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, Request};

use super::plan::Plan;
use super::step_route::StepResources;
use crate::engine::Policy;
use crate::gate::{CallOutcome, Gate, InternalOperation, ProtectedRoute};
use crate::telemetry::Observers;

/// How long the records of steps' operations are kept, unless the saga's route keeps unsettled
/// records for longer.
const STEP_RECORDS_KEPT_MIN: Duration = Duration::from_secs(24 * 3600);

/// A saga of the configuration.
pub struct ConfiguredSaga {
    /// The plan of sagas that begin.
    pub plan: Plan,
    /// The pattern of its path.
    pub path: String,
    /// The header fields of the request that sagas keep.
    pub keep_headers: Vec<HeaderName>,
}

/// The gateway as its sagas use it, under one configuration.
#[async_trait]
pub trait SagaGateway: StepResources + Send + Sync + 'static {
    /// Returns the gate.
    fn gate(&self) -> &Arc<Gate>;

    /// Returns the exporters of spans.
    fn observers(&self) -> &Observers;

    /// Returns whether the store may have sagas, which its format decides.
    fn has_sagas(&self) -> bool;

    /// Returns the problem type with this short name.
    fn problem_type(&self, name: &str) -> String;

    /// Returns a saga of the configuration.
    fn saga(&self, name: &str) -> Option<&ConfiguredSaga>;

    /// Returns the route of a saga's requests. A saga that is not configured any more gets a route
    /// with the default policy.
    fn route_of(&self, name: &str) -> Arc<ProtectedRoute>;

    /// Calls an operation through the gate.
    async fn call(&self, operation: InternalOperation<'_>, request: Request<Bytes>) -> CallOutcome;
}

/// Returns how long the records of the steps of a saga are kept, by the policy of its requests.
pub fn kept_for(policy: &Policy) -> Duration {
    policy.unsettled_retention.max(STEP_RECORDS_KEPT_MIN)
}
