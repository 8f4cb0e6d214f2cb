//! The routes of steps: how the gate protects the operations of a plan.
//!
//! These routes are in no table of routes, so no request of a client reaches them. They are made
//! from the plan in the saga's record: a saga ends under the plan with which it began.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::log::StepDirection;
use super::plan::{Compensation, FieldSource, Plan, PlannedProbe, Step, StepUncertain};
use crate::engine::{CallerRule, KeySource, OnUncertain, Policy, Probe, StatusRules};
use crate::gate::{Gate, ProtectedRoute};
use crate::key::{KeySyntax, Pointer};
use crate::route::Route;

/// What a gateway's own configuration adds to a plan.
pub trait StepResources {
    /// Returns the index of an upstream.
    fn upstream(&self, name: &str) -> Option<usize>;

    /// Returns the value of a field that is not in the plan.
    fn secret(&self, source: &FieldSource) -> Option<HeaderValue>;
}

/// Why a step has no route on this gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepRouteError {
    /// No upstream has this name.
    #[error("this gateway has no upstream named {0}")]
    NoUpstream(String),
    /// A secret can't be read.
    #[error("this gateway does not have the value of {0}")]
    NoSecret(String),
    /// The plan comes from a later version.
    #[error("this gateway can't read the plan: {0}")]
    Unreadable(String),
}

/// Returns the name of the route of a step's operations. It is part of their identity.
pub fn step_route_name(saga: &str, step: &str, direction: StepDirection) -> String {
    match direction {
        StepDirection::Action => format!("{saga}/{step}"),
        StepDirection::Compensation => format!("{saga}/{step}/undo"),
    }
}

/// Returns the policy of a step's operations in one direction, for everything but calls: an
/// uncertain operation is held. `kept_for` is how long the records of the operations are kept.
///
/// # Errors
/// A text of the plan can't be read.
pub fn step_policy(
    plan: &Plan,
    (step, direction): (&Step, StepDirection),
    kept_for: Duration,
) -> Result<Policy, StepRouteError> {
    let sending = &step.sending;
    let name = step_route_name(&plan.saga, &step.name, direction);
    let header = unreadable(HeaderName::try_from(sending.key_header.as_str()))?;
    let mut policy = Policy::standard(&name, Duration::from_millis(sending.timeout_ms));
    policy.key.source = KeySource::Sent { header: Some(header), body: None, form: None };
    policy.key.required = true;
    policy.key.syntax = KeySyntax::Lenient;
    policy.caller = CallerRule::Scope;
    policy.statuses = statuses(step, direction)?;
    policy.uncertain_after = Duration::from_millis(sending.uncertain_after_ms);
    policy.lease = Duration::from_millis(sending.lease_ms);
    policy.retention = kept_for;
    policy.unsettled_retention = kept_for;
    Ok(policy)
}

/// Returns the route of a step's operations in one direction. `kept_for` is how long the records of
/// the operations are kept.
///
/// # Errors
/// See [`StepRouteError`].
pub fn step_route(
    gate: &Gate,
    plan: &Plan,
    (step, direction): (&Step, StepDirection),
    kept_for: Duration,
    resources: &dyn StepResources,
) -> Result<Arc<ProtectedRoute>, StepRouteError> {
    let sending = &step.sending;
    let upstream = resources
        .upstream(&sending.upstream)
        .ok_or_else(|| StepRouteError::NoUpstream(sending.upstream.clone()))?;
    let mut policy = step_policy(plan, (step, direction), kept_for)?;
    policy.on_uncertain = on_uncertain(&sending.on_uncertain, resources)?;
    Ok(route(gate, step, policy, upstream))
}

/// Returns the route of a step's operations in one direction, for bars and looks: nothing is sent
/// on it.
///
/// # Errors
/// A text of the plan can't be read.
pub fn bare_route(
    gate: &Gate,
    plan: &Plan,
    (step, direction): (&Step, StepDirection),
    kept_for: Duration,
) -> Result<Arc<ProtectedRoute>, StepRouteError> {
    const NO_UPSTREAM: usize = 0;
    Ok(route(gate, step, step_policy(plan, (step, direction), kept_for)?, NO_UPSTREAM))
}

fn route(gate: &Gate, step: &Step, policy: Policy, upstream: usize) -> Arc<ProtectedRoute> {
    Arc::new(ProtectedRoute {
        meter: gate.meter().route(&policy.route),
        route: Arc::new(Route { paths: Vec::new(), methods: Vec::new(), upstream, policy }),
        response_timeout: Duration::from_millis(step.sending.timeout_ms),
        keyring: None,
        saga: None,
        unkeyed: None,
    })
}

/// Returns the values of the header fields that are not in the plan.
///
/// # Errors
/// A value is missing on this gateway.
pub fn secret_fields(
    fields: &BTreeMap<String, FieldSource>,
    resources: &dyn StepResources,
) -> Result<HeaderMap, StepRouteError> {
    let mut headers = HeaderMap::new();
    for (name, source) in fields {
        let (FieldSource::Env(place) | FieldSource::File(place)) = source else { continue };
        let value =
            resources.secret(source).ok_or_else(|| StepRouteError::NoSecret(place.clone()))?;
        headers.insert(unreadable(HeaderName::try_from(name.as_str()))?, value);
    }
    Ok(headers)
}

fn statuses(step: &Step, direction: StepDirection) -> Result<StatusRules, StepRouteError> {
    let sending = &step.sending;
    let gone: &[String] = match (direction, &step.compensation) {
        (StepDirection::Compensation, Compensation::Request { gone, .. }) => gone,
        _ => &[],
    };
    let stored: Vec<String> =
        sending.success.iter().chain(&sending.failure).chain(gone).cloned().collect();
    let is_elsewhere = |status: &&String| !gone.contains(status);
    let release: Vec<String> =
        sending.release_status.iter().filter(is_elsewhere).cloned().collect();
    let uncertain: Vec<String> =
        sending.uncertain_status.iter().filter(is_elsewhere).cloned().collect();
    unreadable(StatusRules::new(&stored, &release, &uncertain))
}

fn on_uncertain(
    chosen: &StepUncertain,
    resources: &dyn StepResources,
) -> Result<OnUncertain, StepRouteError> {
    Ok(match chosen {
        StepUncertain::Hold => OnUncertain::Hold,
        StepUncertain::Forward => OnUncertain::Forward,
        StepUncertain::Probe(planned) => OnUncertain::Probe(Arc::new(probe(planned, resources)?)),
    })
}

fn probe(planned: &PlannedProbe, resources: &dyn StepResources) -> Result<Probe, StepRouteError> {
    let mut headers = secret_fields(&planned.headers, resources)?;
    for (name, source) in &planned.headers {
        if let FieldSource::Text(text) = source {
            let name = unreadable(HeaderName::try_from(name.as_str()))?;
            headers.insert(name, unreadable(HeaderValue::try_from(text.as_str()))?);
        }
    }
    Ok(Probe {
        method: unreadable(planned.method.parse())?,
        path: planned.path.clone(),
        statuses: unreadable(StatusRules::new(&planned.found, &planned.absent, &[]))?,
        found_if: planned.found_if.as_deref().and_then(Pointer::parse),
        map_status: planned.map_status.map(StatusCode::from_u16).transpose().map_err(text)?,
        headers,
        // The saga itself asks, by calling the operation again.
        background: false,
    })
}

fn unreadable<T, E: std::fmt::Display>(read: Result<T, E>) -> Result<T, StepRouteError> {
    read.map_err(text)
}

fn text(error: impl std::fmt::Display) -> StepRouteError {
    StepRouteError::Unreadable(error.to_string())
}
