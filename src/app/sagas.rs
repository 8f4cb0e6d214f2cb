//! The sagas of a configuration, and the way of their steps through the gate.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request};

use crate::config::Config;
use crate::engine::Policy;
use crate::gate::{CallOutcome, Gate, InternalOperation, ProtectedRoute};
use crate::layer::OncewardLayer;
use crate::proxy::{Forward, RequestBody};
use crate::refusal::RefusalRenderer;
use crate::route::Route;
use crate::saga::gateway::{ConfiguredSaga, SagaGateway, kept_for};
use crate::saga::log::StepDirection;
use crate::saga::plan::FieldSource;
use crate::saga::step_route::{StepResources, step_policy};
use crate::telemetry::Observers;

/// Returns the policies of the operations of steps, by the names of their routes. The sweeper and
/// operators treat an operation by its own rules, also when the saga's owner is gone.
pub(super) fn step_policies(config: &Config) -> Vec<(String, Policy)> {
    let mut policies = Vec::new();
    for saga in &config.sagas {
        let kept_for = kept_for(&saga.route.policy);
        for step in &saga.plan.steps {
            for direction in [StepDirection::Action, StepDirection::Compensation] {
                // `check` has read every text of the plan.
                if let Ok(policy) = step_policy(&saga.plan, (step, direction), kept_for) {
                    policies.push((policy.route.to_string(), policy));
                }
            }
        }
    }
    policies
}

/// The gateway as its sagas use it, under one configuration.
pub(super) struct SagaWays {
    pub gate: Arc<Gate>,
    pub layer: OncewardLayer,
    pub forward: Forward<RequestBody>,
    pub observers: Observers,
    /// The sagas of the configuration, by name.
    pub sagas: HashMap<String, ConfiguredSaga>,
    /// The names of the upstreams, by index. The first one is the default upstream.
    pub upstreams: Vec<String>,
    /// Whether the store's format has sagas.
    pub has_sagas: bool,
    pub renderer: RefusalRenderer,
    /// The values of header fields that come from the gateway's environment.
    pub fields: HashMap<FieldSource, HeaderValue>,
    /// The policy of sagas that are not configured any more.
    pub fallback: Policy,
}

impl StepResources for SagaWays {
    fn upstream(&self, name: &str) -> Option<usize> {
        self.upstreams.iter().position(|other| other == name)
    }

    fn secret(&self, source: &FieldSource) -> Option<HeaderValue> {
        if let Some(value) = self.fields.get(source) {
            return Some(value.clone());
        }
        // The plan of a saga that began under another configuration.
        let text = match source {
            FieldSource::Text(text) => text.clone(),
            FieldSource::Env(name) => std::env::var(name).ok()?,
            FieldSource::File(path) => std::fs::read_to_string(path).ok()?,
        };
        let mut value = HeaderValue::try_from(text.trim_end_matches(['\r', '\n'])).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

#[async_trait]
impl SagaGateway for SagaWays {
    fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    fn observers(&self) -> &Observers {
        &self.observers
    }

    fn has_sagas(&self) -> bool {
        self.has_sagas
    }

    fn problem_type(&self, name: &str) -> String {
        self.renderer.problem_type(name)
    }

    fn saga(&self, name: &str) -> Option<&ConfiguredSaga> {
        self.sagas.get(name)
    }

    fn route_of(&self, name: &str) -> Arc<ProtectedRoute> {
        if let Some(guarded) = self.layer.protected_route(name) {
            return guarded;
        }
        let policy = Policy { route: name.into(), ..self.fallback.clone() };
        let route = Route { paths: Vec::new(), methods: Vec::new(), upstream: 0, policy };
        Arc::new(ProtectedRoute {
            meter: self.gate.meter().route(name),
            response_timeout: route.policy.lease,
            route: Arc::new(route),
            keyring: None,
            saga: None,
            unkeyed: None,
        })
    }

    async fn call(&self, operation: InternalOperation<'_>, request: Request<Bytes>) -> CallOutcome {
        self.layer.call_operation(operation, request, self.forward.clone()).await
    }
}
