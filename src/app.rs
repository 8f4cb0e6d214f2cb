//! Wiring: the only file that knows everybody. Builds the gateway from a configuration, runs it, and ends it in order:
//! not ready, no new connections, what is under way is settled, then the store is closed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::uri::Scheme;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{Access, Admin, ReloadAsked, Reloads, Sessions, Token, router};
use crate::clock::Clock;
use crate::config::{
    Config, HostHeader, Http2Mode, Role, RouteConfig, Secrets, UpstreamConfig, UpstreamUrl,
};
use crate::engine::Policy;
use crate::entropy::Entropy;
use crate::gate::{Gate, Settings, sweep};
use crate::key::Hashing;
use crate::layer::{LayerSettings, OncewardLayer};
use crate::proxy::{
    Forward, Http2, Rejections, RequestBody, Server, ServerLimits, Upstream, UpstreamSettings,
    listen,
};
use crate::route::Route;
use crate::store::open::OpenStore;
pub use crate::store::redis::{Grade, Remark};
use crate::telemetry::Meter;
use crate::tls::{ClientIdentity, Identity};
use crate::token::Keyring;

mod copy;
mod current;
mod descriptors;
mod identities;
mod keys;
mod operators;
mod read_model;
mod reload;
mod store;
mod telling;

pub use copy::{Copied, CopyError, CopyStep, copy_store};
use identities::Pending;
pub use identities::identity_changes;
pub use read_model::{Freshness, Projection};
pub use reload::ReloadError;
use reload::{Doors, InForce, Lasting, Prepared};
pub use store::survey;

/// A gateway that serves.
pub struct Gateway {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    running: Arc<Running>,
    asked: mpsc::Receiver<ReloadAsked>,
    stop: CancellationToken,
    served: JoinHandle<bool>,
    pending: Option<Pending>,
}

/// What runs, under the configuration of the moment.
struct Running {
    lasting: Lasting,
    doors: Doors,
    in_force: Mutex<InForce>,
}

impl Gateway {
    /// Builds everything, binds both listeners and begins to serve.
    ///
    /// # Errors
    /// A store that can't be opened, or that keeps other identities; an upstream that can't be set up, an address that can't be
    /// bound.
    pub async fn start(mut config: Config, secrets: Secrets) -> Result<Gateway> {
        config.add_secrets(&secrets);
        descriptors::raise(&config.limits, 1 + config.upstreams.len());
        let clock = Clock::system();
        let meter = Meter::new();
        let mut opened = store::open(&config, &clock, &meter).await?;
        opened.announce();
        let hashing = hashing(&secrets)?;
        let identities = identities::configured(&config, &hashing);
        let store = store::for_gateway(&opened, &config, &secrets, &clock, &meter)?;
        let accept = config.accept_new_identities;
        let identities::Agreed { store, pending } =
            identities::agreed(store, identities, accept, &meter.vanished).await?;
        let gate = Gate::new(
            store,
            clock.clone(),
            Entropy::from_system()?,
            meter,
            settings(&config, hashing),
        );

        let listener =
            listen(config.listen).with_context(|| format!("can't listen on {}", config.listen))?;
        let admin = listen(config.admin)
            .with_context(|| format!("can't listen on {} (admin)", config.admin))?;
        let (reloads, asked) = Reloads::channel();
        let following = read_model::follow(&config, gate.store().clone(), &clock).await?;
        let identity = config.tls.clone().map(Identity::load).transpose()?;
        let lasting = Lasting {
            clock,
            draining: Arc::default(),
            admin_address: admin.local_addr()?,
            reloads,
            sessions: Arc::new(Sessions::new()?),
            following,
            identity: identity.clone(),
        };
        let prepared = Prepared::new((config, secrets), gate.clone(), &lasting, None).await?;
        let doors = prepared.doors();

        let server = Server::new(listener, doors.terms.clone(), gate.meter().connections.clone())
            .with_identity(identity.clone());
        let server = server.with_observers(doors.observers.clone());
        let (listen, admin_address) = (server.address()?, lasting.admin_address);
        gate.meter().reloads.began(lasting.clock.unix_ms());
        let in_force = Mutex::new(prepared.begin());
        let running = Arc::new(Running { lasting, doors, in_force });
        let stop = CancellationToken::new();
        let served = tokio::spawn(running.clone().serve(server, admin, opened, stop.clone()));
        Ok(Gateway { listen, admin: admin_address, running, asked, stop, served, pending })
    }

    /// Waits until the store has agreed on what identities are made of, which it has unless it could not be asked at the start.
    ///
    /// # Errors
    /// It keeps other identities: a reason to end.
    pub fn agreed(&mut self) -> impl Future<Output = Result<()>> + use<> {
        let pending = self.pending.take();
        async move {
            let Some(Pending { disagreement, asking }) = pending else { return Ok(()) };
            let told = disagreement.await;
            drop(asking);
            told.map_or(Ok(()), |error| Err(error.into()))
        }
    }

    /// The next reload that an operator asks for; without anybody who can ask, none.
    pub async fn reload_asked(&mut self) -> ReloadAsked {
        match self.asked.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }

    /// Puts another configuration in force, if one was read and can be: for new requests at once, and without a connection
    /// being dropped. Requests under way end under what they began with.
    ///
    /// # Errors
    /// It was not taken, and nothing has changed.
    pub async fn reload(
        &self,
        read: Result<(Config, Secrets), ReloadError>,
    ) -> Result<(), ReloadError> {
        let Running { lasting, doors, in_force } = &*self.running;
        let mut in_force = in_force.lock().await;
        let replaced = match read {
            Ok(read) => in_force.replace(read, lasting, doors).await,
            Err(error) => Err(error),
        };
        let meter = in_force.gate.meter().reloads.clone();
        match &replaced {
            Ok(()) => meter.applied(lasting.clock.unix_ms()),
            Err(_) => {
                meter.refused();
                in_force.reopen(doors);
            }
        }
        replaced
    }

    /// Begins to stop: not ready, no new connections, what is under way is settled.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end; `true` where everything that was under way is settled.
    pub async fn ended(self) -> bool {
        self.served.await.unwrap_or(false)
    }
}

impl Running {
    /// Serves until it is stopped, and then ends in order.
    async fn serve(
        self: Arc<Self>,
        server: Server,
        admin: TcpListener,
        opened: OpenStore,
        stop: CancellationToken,
    ) -> bool {
        let keeper = self
            .lasting
            .identity
            .clone()
            .map(|identity| AbortOnDropHandle::new(tokio::spawn(identity.keep())));
        let operators = tokio::spawn(operators::serve(admin, self.doors.operators.clone()));
        let gate = self.in_force.lock().await.gate.clone();
        // All gates that follow share what was observed.
        let told = CancellationToken::new();
        let end_of_telling = told.clone();
        let telling =
            AbortOnDropHandle::new(tokio::spawn(
                async move { gate.export_observations(&told).await },
            ));
        let drained = CancellationToken::new();
        let serving = tokio::spawn({
            let (stop, drained, service) =
                (stop.clone(), drained.clone(), self.doors.clients.clone());
            async move { server.run(service, stop.cancelled_owned(), drained.cancelled_owned()).await }
        });
        stop.cancelled().await;
        self.lasting.draining.store(true, Ordering::Release);
        tracing::info!("stopping: no new connections, waiting for what is under way");
        let (gate, drain_timeout) = {
            let in_force = self.in_force.lock().await;
            (in_force.gate.clone(), in_force.config.drain_timeout)
        };
        let settled = end(&gate, serving, drained, drain_timeout).await;
        self.in_force.lock().await.rest(&self.doors).await;
        drop(keeper);
        end_of_telling.cancel();
        // A store that is silent must not hold up the end.
        const OBSERVATIONS_MAX: Duration = Duration::from_secs(1);
        let _ = tokio::time::timeout(OBSERVATIONS_MAX, telling).await;
        opened.close().await;
        operators.abort();
        settled
    }
}

/// Waits for requests under way: first their connections, then what goes on without a client.
async fn end(
    gate: &Gate,
    mut serving: JoinHandle<()>,
    drained: CancellationToken,
    timeout: Duration,
) -> bool {
    let until = tokio::time::Instant::now() + timeout;
    let connections_done = tokio::time::timeout_at(until, &mut serving).await.is_ok();
    let settled = gate.drain(until.saturating_duration_since(tokio::time::Instant::now())).await;
    if !connections_done {
        // What was just marked uncertain is told to its clients, who are still connected.
        const TELLING: Duration = Duration::from_secs(1);
        let _ = tokio::time::timeout(TELLING, &mut serving).await;
        drained.cancel();
    }
    if !settled {
        tracing::error!("the drain timeout is over: what was still under way is uncertain now");
    }
    settled
}

/// What identities are hashed with.
fn hashing(secrets: &Secrets) -> Result<Hashing> {
    Ok(Hashing::under(secrets.hash_secrets.iter().map(|secret| secret.expose().as_bytes()))?)
}

fn settings(config: &Config, hashing: Hashing) -> Settings {
    let limits = &config.limits;
    Settings {
        in_flight: descriptors::share(limits, 1 + config.upstreams.len()).in_flight,
        waiters: limits.waiters,
        waiters_per_key: limits.waiters_per_key,
        request_body: limits.request_body,
        response_body: limits.response_body,
        buffered_bytes: limits.buffered_bytes,
        records_per_scope: limits.records_per_scope,
        hashing,
        trailers: config.store.format.has_trailers(),
        log_keep: config.log_keep,
    }
}

fn server_limits(config: &Config, gate: &Gate) -> ServerLimits {
    let limits = &config.limits;
    let connections = descriptors::share(limits, 1 + config.upstreams.len()).connections;
    // Where descriptors are scarce, one address would take all that is left of the connections.
    let scarce = connections < limits.connections;
    let most_of_a_peer = if scarce { connections.div_ceil(2) } else { limits.connections_per_peer };
    ServerLimits {
        connections,
        connections_per_peer: limits.connections_per_peer.min(most_of_a_peer),
        header_bytes: limits.header_bytes,
        header_timeout: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        budget: gate.budget().clone(),
        trusted: config.trusted_proxies.clone().into(),
        proxy_protocol: config.proxy_protocol,
    }
}

fn rejections(config: &Config) -> Rejections {
    Rejections { base_url: config.problem_base_url.clone() }
}

fn layer_settings(config: &Config, keyrings: HashMap<String, Arc<Keyring>>) -> LayerSettings {
    let route = |configured: &RouteConfig| {
        let upstream = config.upstream_of(configured);
        let index = config
            .upstreams
            .iter()
            .position(|other| other.name == upstream.name)
            .map_or(0, |at| at + 1);
        let route = Route {
            paths: configured.paths.clone(),
            methods: configured.methods.clone(),
            upstream: index,
            policy: configured.policy.clone(),
        };
        (route, upstream.response_timeout)
    };
    LayerSettings {
        routes: config.routes.iter().map(route).collect(),
        keyrings,
        rejections: rejections(config),
        publish_policy: config.publish_policy,
        body_timeout: config.limits.body_timeout,
        silence: config.upstream.response_timeout,
    }
}

/// The upstreams, the default one first. Those that were set up in the same way `before` keep their connections.
async fn upstreams(
    config: &Config,
    before: &[Arc<Upstream<RequestBody>>],
) -> Result<Vec<Arc<Upstream<RequestBody>>>> {
    let mut all = Vec::new();
    for configured in std::iter::once(&config.upstream).chain(&config.upstreams) {
        let settings = upstream_settings(configured).await?;
        all.push(match before.iter().find(|upstream| *upstream.settings() == settings) {
            Some(same) => same.clone(),
            None => Arc::new(
                Upstream::new(settings).with_context(|| format!("upstream {}", configured.name))?,
            ),
        });
    }
    Ok(all)
}

async fn upstream_settings(configured: &UpstreamConfig) -> Result<UpstreamSettings> {
    Ok(UpstreamSettings {
        scheme: scheme(&configured.url),
        authority: configured.url.authority.clone(),
        connect_timeout: configured.connect_timeout,
        idle_timeout: configured.idle_timeout,
        max_connection_age: configured.max_connection_age,
        http2: match configured.http2 {
            Http2Mode::Negotiate => Http2::Negotiated,
            Http2Mode::PriorKnowledge => Http2::PriorKnowledge,
        },
        preserve_host: configured.host == HostHeader::Preserve,
        ca_pem: match &configured.ca_file {
            Some(file) => Some(read(file).await?),
            None => None,
        },
        rewrite_location: configured.rewrite_location,
        identity: configured.client.clone().map(ClientIdentity::load).transpose()?,
    })
}

fn scheme(url: &UpstreamUrl) -> Scheme {
    if url.tls { Scheme::HTTPS } else { Scheme::HTTP }
}

async fn read(file: &Path) -> Result<Vec<u8>> {
    tokio::fs::read(file).await.with_context(|| format!("can't read {}", file.display()))
}

fn access(secrets: &Secrets, address: SocketAddr) -> Result<Access> {
    let token = |token: &crate::config::AdminToken| {
        Token::new(&token.name, token.role == Role::Operate, token.secret.expose().as_bytes())
    };
    let tokens: Vec<Token> = secrets.admin_tokens.iter().map(token).collect();
    if !tokens.is_empty() {
        return Ok(Access::Tokens(tokens));
    }
    if !address.ip().is_loopback() {
        bail!(
            "the admin port {address} is open to others: set [admin_auth] tokens, or listen on 127.0.0.1"
        );
    }
    Ok(Access::Loopback)
}

/// The rules of records whose route is no longer configured.
fn fallback() -> Result<Policy> {
    let overrides = crate::config::Overrides {
        upstream: Some("http://localhost".into()),
        ..Default::default()
    };
    let mut routes = Config::load(None, overrides)?.routes;
    if routes.is_empty() {
        bail!("there is no default route");
    }
    Ok(routes.swap_remove(0).policy)
}
