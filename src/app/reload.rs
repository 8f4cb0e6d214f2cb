//! The configuration in force, and how another takes its place: requests under way end under what they began with, and no
//! connection is dropped.
//!
//! Danger: half a configuration is none. So everything that can fail is done first, the store's consent last; from then on
//! nothing fails.

use std::collections::HashMap;

use axum::Router;
use tokio_util::task::AbortOnDropHandle;
use tower_layer::Layer;

use super::current::Current;
use super::keys::{Keyrings, keyrings};
use super::read_model::Following;
use super::telling::{Telling, observing};
use super::*;
use crate::admin::{Reloads, Sessions};
use crate::config::Faults;
use crate::gate::{IdentityCheckError, check_identities};
use crate::layer::Once;
use crate::proxy::{RequestBody, Terms};
use crate::telemetry::{Observers, Observing};

/// What clients are answered by.
type Answerer = Once<Forward<RequestBody>>;

/// A configuration that was not taken; the one in force stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Its file can't be read.
    #[error("can't read {file}: {why}")]
    Unreadable {
        /// The file.
        file: String,
        /// What went wrong.
        why: String,
    },
    /// It has faults.
    #[error(transparent)]
    Faulty(#[from] Faults),
    /// It changes what a running process can't change.
    #[error("{} can't be changed without a restart", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
    /// The store keeps other identities, or can't tell.
    #[error(transparent)]
    Disagreed(#[from] IdentityCheckError),
    /// Something that it names can't be used.
    #[error("{0:#}")]
    Unusable(anyhow::Error),
}

impl ReloadError {
    /// What is wrong, one sentence each, with file and line where it stands in one.
    pub fn sentences(&self) -> Vec<String> {
        match self {
            ReloadError::Faulty(faults) => faults.0.iter().map(|fault| fault.sentence()).collect(),
            other => vec![other.to_string()],
        }
    }
}

/// What stays the same for as long as the process runs.
pub(super) struct Lasting {
    pub clock: Clock,
    pub draining: Arc<AtomicBool>,
    pub admin_address: SocketAddr,
    pub reloads: Reloads,
    pub sessions: Arc<Sessions>,
    pub following: Option<Following>,
    pub identity: Option<Arc<Identity>>,
}

/// Where a configuration is exchanged for another.
pub(super) struct Doors {
    pub clients: Current<Answerer>,
    pub operators: Current<Router>,
    pub terms: Terms,
    pub observers: Observers,
}

/// A configuration in force, and what it keeps running.
pub(super) struct InForce {
    pub gate: Arc<Gate>,
    pub config: Config,
    secrets: Secrets,
    upstreams: Vec<Arc<Upstream<RequestBody>>>,
    keyrings: Keyrings,
    telling: Telling,
    tasks: Vec<AbortOnDropHandle<()>>,
}

/// Everything that a configuration needs, set up, and not in use yet.
pub(super) struct Prepared {
    gate: Arc<Gate>,
    config: Config,
    secrets: Secrets,
    upstreams: Vec<Arc<Upstream<RequestBody>>>,
    keyrings: Keyrings,
    observing: Option<Observing>,
    telling: Telling,
    layer: OncewardLayer,
    forward: Forward<RequestBody>,
    operators: Router,
    policies: HashMap<String, Policy>,
    fallback: Policy,
}

impl Prepared {
    /// Sets a configuration up. What it has in common with the one `before` is taken over: connections to upstreams, keys.
    ///
    /// # Errors
    /// Something that it names can't be used.
    pub async fn new(
        (config, secrets): (Config, Secrets),
        gate: Arc<Gate>,
        lasting: &Lasting,
        before: Option<&InForce>,
    ) -> Result<Prepared> {
        let none = Keyrings::default();
        let keyrings = keyrings(&config, before.map_or(&none, |before| &before.keyrings)).await?;
        let upstreams = upstreams(&config, before.map_or(&[], |before| &before.upstreams)).await?;
        let layer =
            OncewardLayer::new(gate.clone(), layer_settings(&config, keyrings.by_route.clone()))?;
        let policies: HashMap<String, Policy> =
            config.routes.iter().map(|route| (route.name.clone(), route.policy.clone())).collect();
        let (observing, telling) = observing(&config, &secrets, gate.meter()).await?;
        let fallback = fallback()?;
        let operators = router(Admin {
            gate: gate.clone(),
            policies: policies.clone(),
            fallback: fallback.clone(),
            access: access(&secrets, lasting.admin_address)?,
            on_loopback: lasting.admin_address.ip().is_loopback(),
            draining: lasting.draining.clone(),
            clock: lasting.clock.clone(),
            reloads: lasting.reloads.clone(),
            sessions: lasting.sessions.clone(),
            read_model: lasting.following.as_ref().map(|following| following.model.clone()),
        });
        let forward = Forward::new(upstreams.iter().cloned());
        Ok(Prepared {
            gate,
            config,
            secrets,
            upstreams,
            keyrings,
            observing,
            telling,
            layer,
            forward,
            operators,
            policies,
            fallback,
        })
    }

    /// The doors that the first configuration is found behind.
    pub fn doors(&self) -> Doors {
        let observers = Observers::default();
        observers.replace(self.observing.clone());
        Doors {
            observers,
            clients: Current::new(self.layer.layer(self.forward.clone())),
            operators: Current::new(self.operators.clone()),
            terms: Terms::new(server_limits(&self.config, &self.gate), rejections(&self.config)),
        }
    }

    /// Begins with what it keeps running.
    pub fn begin(self) -> InForce {
        let Prepared {
            gate,
            config,
            secrets,
            upstreams,
            keyrings,
            telling,
            layer,
            forward,
            policies,
            fallback,
            ..
        } = self;
        let sweeper = tokio::spawn(sweep(gate.clone(), policies, fallback));
        let reconciler = tokio::spawn(async move { layer.reconcile(forward).await });
        let tasks = vec![AbortOnDropHandle::new(sweeper), AbortOnDropHandle::new(reconciler)];
        InForce { gate, config, secrets, upstreams, keyrings, telling, tasks }
    }
}

impl InForce {
    /// Puts another configuration in force, in whose place the next one is found.
    ///
    /// # Errors
    /// It was not taken, and nothing has changed.
    pub async fn replace(
        &mut self,
        (mut config, secrets): (Config, Secrets),
        lasting: &Lasting,
        doors: &Doors,
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
        let prepared = Prepared::new((config, secrets), gate, lasting, Some(self))
            .await
            .map_err(ReloadError::Unusable)?;
        let vanished =
            check_identities(&*self.gate.store().identities, &identities, accept).await?;
        self.gate.meter().vanished.set(vanished);

        if let (Some(identity), Some(renewal)) = (&lasting.identity, renewal) {
            identity.renew(renewal);
        }
        doors
            .terms
            .replace(server_limits(&prepared.config, &prepared.gate), rejections(&prepared.config));
        doors.observers.replace(prepared.observing.clone());
        doors.operators.replace(prepared.operators.clone());
        doors.clients.replace(prepared.layer.layer(prepared.forward.clone()));
        *self = prepared.begin();
        Ok(())
    }

    /// Another configuration was not taken; but files that were moved away are let go.
    pub fn reopen(&mut self, doors: &Doors) {
        self.telling.reopen(&self.config, &doors.observers, self.gate.meter());
    }

    /// Ends what it keeps running.
    pub async fn rest(&mut self, doors: &Doors) {
        doors.observers.replace(None);
        self.telling.end().await;
        self.tasks.clear();
        self.keyrings = Keyrings::default();
    }
}

/// What another configuration changes that can't be changed: sockets are bound, the store is open and its records sealed.
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
        ("encryption.keys", old.encryption_keys != new.encryption_keys),
    ];
    changed.into_iter().filter_map(|(name, changed)| changed.then_some(name)).collect()
}
