//! The active configuration, and its replacement by a reload. Active requests end under the
//! configuration that they began with, and no connection is dropped.
//!
//! Danger: a configuration must not be applied in part. So a reload first does everything that can
//! fail. The last of these steps is the check against the store, and nothing after it can fail.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use axum::Router;
use tokio_util::task::AbortOnDropHandle;
use tower_layer::Layer;

use super::calls::SinkCaller;
use super::exporters::{ExporterTasks, start_exporters};
use super::identities;
use super::keys::{Keyrings, keyrings};
use super::read_model::FollowedReadModel;
use super::relay;
use super::sagas::{self, SagaWays};
use super::serve::Serve;
use super::settings::{
    access, fallback, hashing, layer_settings, refusal_renderer, server_limits, settings, upstreams,
};
use super::swappable::SwappableService;
use crate::admin::{Admin, Reloads, Sessions, router};
use crate::clock::Clock;
use crate::config::{Config, Faults, SagaConfig, Secrets};
use crate::engine::Policy;
use crate::gate::{Gate, IdentityCheckError, check_identities, sweep};
use crate::layer::{OncewardLayer, OncewardService};
use crate::outbox::caller::OperationCaller;
use crate::outbox::relay::{Relay, RelayView};
use crate::proxy::{Forward, RequestBody, ServerTerms, Upstream};
use crate::saga::gateway::{ConfiguredSaga, SagaGateway};
use crate::saga::runner::Sagas;
use crate::store::resealing::Resealer;
use crate::telemetry::{EnabledObservers, Observers};
use crate::tls::Identity;

/// The service that answers clients.
type ClientService = OncewardService<Forward<RequestBody>>;

/// The reason why a configuration was refused. The active one stays in use.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file can't be read.
    #[error("can't read {file}: {why}")]
    Unreadable {
        /// The file.
        file: String,
        /// The text of the error.
        why: String,
    },
    /// The configuration has faults.
    #[error(transparent)]
    Faulty(#[from] Faults),
    /// The new configuration changes a setting that needs a restart.
    #[error("{} can't be changed without a restart", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
    /// The store has other identities, or does not answer.
    #[error(transparent)]
    Disagreed(#[from] IdentityCheckError),
    /// A resource of the configuration can't be used.
    #[error("{0:#}")]
    Unusable(anyhow::Error),
}

impl ReloadError {
    /// Returns the faults, one sentence each. A sentence has file and line if they are known.
    pub fn sentences(&self) -> Vec<String> {
        match self {
            ReloadError::Faulty(faults) => faults.0.iter().map(|fault| fault.sentence()).collect(),
            other => vec![other.to_string()],
        }
    }
}

/// The state that stays the same while the process runs.
pub(super) struct ProcessState {
    pub clock: Clock,
    pub draining: Arc<AtomicBool>,
    pub admin_address: SocketAddr,
    pub reloads: Reloads,
    pub sessions: Arc<Sessions>,
    pub read_model: Option<FollowedReadModel>,
    pub identity: Option<Arc<Identity>>,
    pub relay: RelayView,
    /// Seals the outbox anew; `None` without `[encryption]`.
    pub resealer: Option<Resealer>,
    pub sagas: Sagas,
    pub serve: Serve,
}

/// The parts that a reload swaps.
pub(super) struct LiveParts {
    pub clients: SwappableService<ClientService>,
    pub operators: SwappableService<Router>,
    pub terms: ServerTerms,
    pub observers: Observers,
}

/// The active configuration, and the tasks that it runs.
pub(super) struct ActiveConfig {
    pub gate: Arc<Gate>,
    pub config: Config,
    secrets: Secrets,
    upstreams: Vec<Arc<Upstream<RequestBody>>>,
    keyrings: Keyrings,
    exporters: ExporterTasks,
    tasks: Vec<AbortOnDropHandle<()>>,
}

/// A configuration with all its resources set up, but not in use yet.
pub(super) struct PreparedConfig {
    gate: Arc<Gate>,
    config: Config,
    secrets: Secrets,
    upstreams: Vec<Arc<Upstream<RequestBody>>>,
    keyrings: Keyrings,
    observers: Option<EnabledObservers>,
    exporters: ExporterTasks,
    layer: OncewardLayer,
    forward: Forward<RequestBody>,
    operators: Router,
    policies: HashMap<String, Policy>,
    fallback: Policy,
    probes: bool,
}

impl PreparedConfig {
    /// Sets up a configuration. Reuses connections to upstreams, and keys, of `before` if both
    /// configurations have them.
    ///
    /// # Errors
    /// A resource of the configuration can't be used.
    pub async fn new(
        (config, secrets): (Config, Secrets),
        gate: Arc<Gate>,
        process: &ProcessState,
        before: Option<&ActiveConfig>,
    ) -> Result<PreparedConfig> {
        let none = Keyrings::default();
        let keyrings = keyrings(&config, before.map_or(&none, |before| &before.keyrings)).await?;
        let upstreams = upstreams(&config, before.map_or(&[], |before| &before.upstreams)).await?;
        let layer = {
            let settings = layer_settings(&config, keyrings.by_route.clone(), &process.sagas);
            OncewardLayer::new(gate.clone(), settings)?
        };
        let routes = config.all_routes();
        let mut policies: HashMap<String, Policy> =
            routes.map(|route| (route.name.clone(), route.policy.clone())).collect();
        policies.extend(sagas::step_policies(&config));
        let (observers, exporters) = start_exporters(&config, &secrets, gate.meter()).await?;
        let fallback = fallback()?;
        let operators = router(Admin {
            gate: gate.clone(),
            policies: policies.clone(),
            sagas: config.sagas.iter().map(|saga| saga.route.name.clone()).collect(),
            fallback: fallback.clone(),
            access: access(&secrets, process.admin_address)?,
            on_loopback: process.admin_address.ip().is_loopback(),
            draining: process.draining.clone(),
            clock: process.clock.clone(),
            reloads: process.reloads.clone(),
            sessions: process.sessions.clone(),
            read_model: process.read_model.as_ref().map(|read_model| read_model.model.clone()),
            relay: process.relay.clone(),
            event_source: config.outbox.source.clone(),
            resealer: process.resealer.clone(),
        });
        let forward = Forward::new(upstreams.iter().cloned());
        Ok(PreparedConfig {
            gate,
            config,
            secrets,
            upstreams,
            keyrings,
            observers,
            exporters,
            layer,
            forward,
            operators,
            policies,
            fallback,
            probes: process.serve.probes(),
        })
    }

    /// Returns the way of sinks that call APIs.
    pub fn caller(&self) -> Arc<dyn OperationCaller> {
        Arc::new(SinkCaller { layer: self.layer.clone(), forward: self.forward.clone() })
    }

    /// Returns the gateway as its sagas use it.
    pub fn saga_ways(&self, observers: Observers) -> Arc<dyn SagaGateway> {
        let configured = |saga: &SagaConfig| {
            let configured = ConfiguredSaga {
                plan: saga.plan.clone(),
                path: saga.route.paths.first().cloned().unwrap_or_default(),
                keep_headers: saga.keep_headers.clone(),
            };
            (saga.route.name.clone(), configured)
        };
        let meter = &self.gate.meter().sagas;
        self.config.sagas.iter().for_each(|saga| meter.configured(&saga.route.name));
        let upstreams = std::iter::once(&self.config.upstream).chain(&self.config.upstreams);
        Arc::new(SagaWays {
            gate: self.gate.clone(),
            layer: self.layer.clone(),
            forward: self.forward.clone(),
            observers,
            sagas: self.config.sagas.iter().map(configured).collect(),
            upstreams: upstreams.map(|upstream| upstream.name.clone()).collect(),
            has_sagas: self.config.store.format.has_sagas(),
            renderer: refusal_renderer(&self.config),
            fields: self.secrets.saga_fields.clone(),
            fallback: self.fallback.clone(),
        })
    }

    /// Returns the swappable parts, with this configuration in them.
    pub fn live_parts(&self) -> LiveParts {
        let observers = Observers::default();
        observers.replace(self.observers.clone());
        LiveParts {
            observers,
            clients: SwappableService::new(self.layer.layer(self.forward.clone())),
            operators: SwappableService::new(self.operators.clone()),
            terms: ServerTerms::new(
                server_limits(&self.config, &self.gate),
                refusal_renderer(&self.config),
            ),
        }
    }

    /// Starts the configuration's tasks.
    pub fn begin(self) -> ActiveConfig {
        let PreparedConfig {
            gate,
            config,
            secrets,
            upstreams,
            keyrings,
            exporters,
            layer,
            forward,
            policies,
            fallback,
            probes,
            ..
        } = self;
        let sweeper = tokio::spawn(sweep(gate.clone(), policies, fallback));
        let mut tasks = vec![AbortOnDropHandle::new(sweeper)];
        if probes {
            let reconciler = tokio::spawn(async move { layer.reconcile(forward).await });
            tasks.push(AbortOnDropHandle::new(reconciler));
        }
        ActiveConfig { gate, config, secrets, upstreams, keyrings, exporters, tasks }
    }
}

impl ActiveConfig {
    /// Replaces this configuration by a new one.
    ///
    /// # Errors
    /// The new configuration was refused, and nothing has changed.
    pub async fn replace(
        &mut self,
        (mut config, secrets): (Config, Secrets),
        process: &ProcessState,
        live: &LiveParts,
        relay: Option<&Relay>,
    ) -> Result<(), ReloadError> {
        config.add_secrets(&secrets);
        let fixed = needs_restart((&self.config, &self.secrets), (&config, &secrets));
        if !fixed.is_empty() {
            return Err(ReloadError::NeedsRestart(fixed));
        }
        let renewal = config.tls.clone().map(Identity::prepare).transpose();
        let renewal = renewal.map_err(|error| ReloadError::Unusable(error.into()))?;
        let hashing = hashing(&secrets).map_err(ReloadError::Unusable)?;
        let identities = identities::configured(&config, &hashing);
        let accept = config.accept_new_identities;
        let gate = self.gate.under(settings(&config, hashing));
        let prepared = PreparedConfig::new((config, secrets), gate, process, Some(self))
            .await
            .map_err(ReloadError::Unusable)?;
        let sinks = relay::sinks(&prepared.config).map_err(ReloadError::Unusable)?;
        let vanished =
            check_identities(&*self.gate.store().identities, &identities, accept).await?;
        self.gate.meter().vanished.set(vanished);

        if let (Some(identity), Some(renewal)) = (&process.identity, renewal) {
            identity.renew(renewal);
        }
        live.terms.replace(
            server_limits(&prepared.config, &prepared.gate),
            refusal_renderer(&prepared.config),
        );
        process.sagas.set_gateway(prepared.saga_ways(live.observers.clone()));
        if let Some(relay) = relay {
            relay.set_caller(prepared.caller());
            relay.replace(sinks);
        }
        live.observers.replace(prepared.observers.clone());
        live.operators.swap(prepared.operators.clone());
        live.clients.swap(prepared.layer.layer(prepared.forward.clone()));
        *self = prepared.begin();
        Ok(())
    }

    /// Reopens log files after a refused reload, because the old files may have been moved away.
    pub fn reopen(&mut self, live: &LiveParts) {
        self.exporters.reopen(&self.config, &live.observers, self.gate.meter());
    }

    /// Ends the tasks.
    pub async fn stop(&mut self, live: &LiveParts) {
        live.observers.replace(None);
        self.exporters.end().await;
        self.tasks.clear();
        self.keyrings = Keyrings::default();
    }
}

/// Returns the changed settings that a running process can't change, because sockets are bound and
/// the store is open.
fn needs_restart(
    (before, old): (&Config, &Secrets),
    (now, new): (&Config, &Secrets),
) -> Vec<&'static str> {
    let (was, is) = (&before.store, &now.store);
    let changed = [
        ("listen", before.listen != now.listen),
        ("admin", before.admin != now.admin),
        ("tls", before.tls.is_some() != now.tls.is_some()),
        ("store.url", was.url != is.url),
        ("store.namespace", was.namespace != is.namespace),
        ("store.timeout", was.timeout != is.timeout),
        ("store.ca_file", was.ca_file != is.ca_file),
        ("store.cert", was.client != is.client),
        ("store.ack", was.ack != is.ack),
        ("store.durability", was.durability != is.durability),
        ("store.local_cache", was.local_cache != is.local_cache),
        ("read_model", before.read_model != now.read_model),
        ("limits.connections", before.limits.connections != now.limits.connections),
        ("outbox.relay", before.outbox.relay != now.outbox.relay),
        ("encryption.keys", old.encryption_keys != new.encryption_keys),
    ];
    changed.into_iter().filter_map(|(name, changed)| changed.then_some(name)).collect()
}
