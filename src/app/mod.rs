//! Builds the gateway from a configuration, runs it, and shuts it down gracefully. A shutdown has
//! four steps: the gateway reports not ready, accepts no new connections, settles active requests,
//! and closes the store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{ReloadRequest, Reloads, Sessions};
use crate::clock::Clock;
use crate::config::{Config, Secrets};
use crate::entropy::Entropy;
use crate::gate::Gate;
use crate::outbox::relay::Relay;
use crate::proxy::{Server, listen};
use crate::saga::runner::Sagas;
use crate::store::open::OpenStore;
use crate::store::resealing::Resealer;
pub use crate::store::{Grade, Remark};
use crate::telemetry::Meter;
use crate::tls::Identity;

mod calls;
mod copy;
mod descriptors;
mod exporters;
mod identities;
mod keys;
mod operators;
mod read_model;
mod relay;
mod reload;
mod sagas;
mod serve;
mod settings;
mod store;
mod swappable;

pub use copy::{Copied, CopyError, CopyStep, copy_store};
pub use identities::identity_changes;
use identities::{CheckedStore, PendingCheck, StoreCheck};
pub use read_model::{Freshness, Projection};
pub use reload::ReloadError;
use reload::{ActiveConfig, LiveParts, PreparedConfig, ProcessState};
pub use serve::Serve;
use settings::{hashing, settings};
pub use store::survey;

/// A gateway that serves.
pub struct Gateway {
    /// The address for clients, if the process serves them.
    pub listen: Option<SocketAddr>,
    /// The address for operators.
    pub admin: SocketAddr,
    running: Arc<RunningGateway>,
    reload_requests: mpsc::Receiver<ReloadRequest>,
    stop: CancellationToken,
    served: JoinHandle<bool>,
    pending: Option<PendingCheck>,
}

/// The parts of a running gateway, under the current configuration.
struct RunningGateway {
    process: ProcessState,
    live: LiveParts,
    active: Mutex<ActiveConfig>,
    /// The relay, until the shutdown takes it.
    relay: Mutex<Option<Relay>>,
}

impl Gateway {
    /// Builds everything, binds the listeners and begins to serve.
    ///
    /// # Errors
    /// The store can't be opened or has other identities, an upstream can't be set up, or an
    /// address can't be bound.
    pub async fn start(config: Config, secrets: Secrets, serve: Serve) -> Result<Gateway> {
        let mut config = serve.adapted(config);
        config.add_secrets(&secrets);
        descriptors::raise(&config.limits, 1 + config.upstreams.len());
        let clock = Clock::system();
        let meter = Meter::new();
        let mut opened = store::open(&config, &clock, &meter).await?;
        opened.announce();
        let hashing = hashing(&secrets)?;
        let identities = identities::configured(&config, &hashing);
        let keys = store::sealing_keys(&secrets)?;
        let names = keys.iter().flat_map(|keys| keys.names()).map(str::to_owned).collect();
        let (accept, vanished) = (config.accept_new_identities, meter.vanished.clone());
        let check = StoreCheck { identities, accept, vanished, keys: names };
        let store = store::for_gateway(&opened, &config, keys.clone(), &clock, &meter)?;
        let CheckedStore { store, pending } = identities::check(store, check).await?;
        let resealer = keys.map(|keys| Resealer::new(store.contents.clone(), keys));
        let (entropy, settings) = (Entropy::from_system()?, settings(&config, hashing));
        let gate = Gate::new(store, clock.clone(), entropy, meter, settings);

        let listener = match serve {
            Serve::ClientsAndOperators => Some(bound(config.listen, "")?),
            Serve::OperatorsOnly => None,
        };
        let admin = bound(config.admin, " (admin)")?;
        let (reloads, reload_requests) = Reloads::channel();
        let read_model = read_model::follow(&config, gate.store().clone(), &clock).await?;
        let identity = config.tls.clone().map(Identity::load).transpose()?;
        let relay = relay::start(&config, &gate, &clock, relay::sinks(&config)?);
        let process = ProcessState {
            sagas: Sagas::new(clock.clone()),
            relay: relay.view(),
            clock,
            draining: Arc::default(),
            admin_address: admin.local_addr()?,
            reloads,
            sessions: Arc::new(Sessions::new()?),
            read_model,
            identity: identity.clone(),
            resealer,
            serve,
        };
        let prepared = PreparedConfig::new((config, secrets), gate.clone(), &process, None).await?;
        relay.set_caller(prepared.caller());
        let live = prepared.live_parts();
        process.sagas.set_gateway(prepared.saga_ways(live.observers.clone()));

        let server = listener.map(|listener| {
            Server::new(listener, live.terms.clone(), gate.meter().connections.clone())
                .with_identity(identity)
                .with_observers(live.observers.clone())
        });
        let listen = server.as_ref().map(Server::address).transpose()?;
        let admin_address = process.admin_address;
        gate.meter().reloads.began(process.clock.unix_ms());
        let relay = Mutex::new(Some(relay));
        let active = Mutex::new(prepared.begin());
        let running = Arc::new(RunningGateway { process, live, active, relay });
        let stop = CancellationToken::new();
        let served = tokio::spawn(running.clone().serve(server, admin, opened, stop.clone()));
        Ok(Gateway {
            listen,
            admin: admin_address,
            running,
            reload_requests,
            stop,
            served,
            pending,
        })
    }

    /// Waits until the store's identities are checked. They are checked already, unless the store
    /// did not answer at the start.
    ///
    /// # Errors
    /// The store has other identities. The gateway must end.
    pub fn identities_checked(&mut self) -> impl Future<Output = Result<()>> + use<> {
        let pending = self.pending.take();
        async move {
            let Some(PendingCheck { disagreement, task }) = pending else { return Ok(()) };
            let error = disagreement.await;
            drop(task);
            error.map_or(Ok(()), |error| Err(error.into()))
        }
    }

    /// Returns the next reload request of an operator. Waits forever if nobody can send one.
    pub async fn reload_request(&mut self) -> ReloadRequest {
        match self.reload_requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// Applies a new configuration, if it was read and can be applied. New requests use it at once,
    /// and no connection is dropped. Active requests end under the configuration that they began
    /// with.
    ///
    /// # Errors
    /// The configuration was refused, and nothing has changed.
    pub async fn reload(
        &self,
        read: Result<(Config, Secrets), ReloadError>,
    ) -> Result<(), ReloadError> {
        let RunningGateway { process, live, active, .. } = &*self.running;
        let mut active = active.lock().await;
        let relay = self.running.relay.lock().await;
        let replaced = match read {
            Ok((config, secrets)) => {
                let config = process.serve.adapted(config);
                active.replace((config, secrets), process, live, relay.as_ref()).await
            }
            Err(error) => Err(error),
        };
        let meter = active.gate.meter().reloads.clone();
        match &replaced {
            Ok(()) => meter.applied(process.clock.unix_ms()),
            Err(_) => {
                meter.refused();
                active.reopen(live);
            }
        }
        replaced
    }

    /// Begins to stop: the gateway reports not ready, accepts no new connections, and settles
    /// active requests.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end. Returns `true` if all active requests were settled.
    pub async fn ended(self) -> bool {
        self.served.await.unwrap_or(false)
    }
}

impl RunningGateway {
    /// Serves until the gateway is stopped, and then shuts down gracefully.
    async fn serve(
        self: Arc<Self>,
        server: Option<Server>,
        admin: TcpListener,
        store: OpenStore,
        stop: CancellationToken,
    ) -> bool {
        let keeper = self
            .process
            .identity
            .clone()
            .map(|identity| AbortOnDropHandle::new(tokio::spawn(identity.keep())));
        let operators = tokio::spawn(operators::serve(admin, self.live.operators.clone()));
        let gate = self.active.lock().await.gate.clone();
        let sagas = self.process.sagas.clone();
        let takeovers =
            self.process.serve.runs_sagas().then(|| {
                AbortOnDropHandle::new(tokio::spawn(async move { sagas.take_over().await }))
            });
        // The gates of all later configurations share these observations.
        let end_of_export = CancellationToken::new();
        let export = AbortOnDropHandle::new(tokio::spawn({
            let end = end_of_export.clone();
            async move { gate.export_observations(&end).await }
        }));
        let drained = CancellationToken::new();
        let serving = tokio::spawn({
            let (stop, drained, service) =
                (stop.clone(), drained.clone(), self.live.clients.clone());
            let (stop, drained) = (stop.cancelled_owned(), drained.cancelled_owned());
            async move {
                match server {
                    Some(server) => server.run(service, stop, drained).await,
                    None => stop.await,
                }
            }
        });
        stop.cancelled().await;
        self.process.draining.store(true, Ordering::Release);
        tracing::info!("stopping: no new connections, waiting for active requests");
        let (gate, drain_timeout) = {
            let active = self.active.lock().await;
            (active.gate.clone(), active.config.drain_timeout)
        };
        // Beside the active requests: their events wait for another relay, or for the next start.
        // An attempt that takes longer than the drain is left to its own retry.
        let relay = self.relay.lock().await.take();
        let relay = tokio::spawn(async move {
            if let Some(relay) = relay {
                _ = tokio::time::timeout(drain_timeout, relay.stop()).await;
            }
        });
        let until = Instant::now() + drain_timeout;
        // Before the gate is drained: sagas write what their last steps did.
        _ = timeout_at(until, self.process.sagas.stop()).await;
        let settled = end(&gate, serving, drained, until).await;
        self.active.lock().await.stop(&self.live).await;
        drop(takeovers);
        // An error means that the task panicked. The relay's lease ends.
        _ = relay.await;
        drop(keeper);
        end_of_export.cancel();
        // A store that does not answer must not block the shutdown.
        const OBSERVATIONS_MAX: Duration = Duration::from_secs(1);
        let _ = tokio::time::timeout(OBSERVATIONS_MAX, export).await;
        store.close().await;
        operators.abort();
        settled
    }
}

/// Binds a listener. `purpose` follows its address in the text of an error.
fn bound(address: SocketAddr, purpose: &str) -> Result<TcpListener> {
    listen(address).with_context(|| format!("can't listen on {address}{purpose}"))
}

/// Waits for active requests: first for the ones with a client connection, then for the ones that
/// continue without a client.
async fn end(
    gate: &Gate,
    mut serving: JoinHandle<()>,
    drained: CancellationToken,
    until: Instant,
) -> bool {
    let connections_done = timeout_at(until, &mut serving).await.is_ok();
    let settled = gate.drain(until.saturating_duration_since(Instant::now())).await;
    if !connections_done {
        // Time to send the responses to requests that were just marked uncertain. Their clients are
        // still connected.
        const ANSWERS_MAX: Duration = Duration::from_secs(1);
        let _ = tokio::time::timeout(ANSWERS_MAX, &mut serving).await;
        drained.cancel();
    }
    if !settled {
        tracing::error!(
            "drain timeout expired: operations that were still active are uncertain now"
        );
    }
    settled
}
