//! The state of the admin port.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::auth::Access;
use super::reload::Reloads;
use super::session::Sessions;
use crate::clock::Clock;
use crate::engine::Policy;
use crate::gate::{Gate, InternalCaller};
use crate::outbox::relay::RelayView;
use crate::read_model::ReadModel;
use crate::record::Record;
use crate::store::resealing::Resealer;

/// The state that all requests to the admin port share.
pub struct Admin {
    /// The gate, with its store and metrics.
    pub gate: Arc<Gate>,
    /// The policies of the configured routes, by name.
    pub policies: HashMap<String, Policy>,
    /// The names of the configured sagas.
    pub sagas: HashSet<String>,
    /// The policy of records with a route that is no longer configured.
    pub fallback: Policy,
    /// The access rule.
    pub access: Access,
    /// Whether the port is on loopback. If so, only local host names are accepted.
    pub on_loopback: bool,
    /// Set when the process has begun to stop.
    pub draining: Arc<AtomicBool>,
    /// The clock for displayed times and for the lifetime of sessions.
    pub clock: Clock,
    /// The sessions of the page, which outlive reloads of the configuration.
    pub sessions: Arc<Sessions>,
    /// The sender of reload requests.
    pub reloads: Reloads,
    /// The read model, if enabled.
    pub read_model: Option<Arc<ReadModel>>,
    /// The relay, with the sinks.
    pub relay: RelayView,
    /// The `source` of events.
    pub event_source: String,
    /// Seals the outbox anew; `None` without `[encryption]`.
    pub resealer: Option<Resealer>,
}

impl Admin {
    /// Returns the configured sink that called the operation of a record.
    pub(super) fn calling_sink(&self, record: &Record) -> Option<String> {
        let sinks = self.relay.sinks();
        sinks
            .keys()
            .find(|name| self.gate.is_called_by(record, InternalCaller::Sink(name)))
            .cloned()
    }

    /// Returns the policy of a route, or the fallback if the route is no longer configured.
    pub(super) fn policy(&self, route: &str) -> &Policy {
        self.policies.get(route).unwrap_or(&self.fallback)
    }
}
