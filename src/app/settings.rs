//! Converts a configuration into the settings of the gate, the layer, the listeners and the
//! upstreams.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http::uri::Scheme;

use super::descriptors;
use crate::admin::{Access, Token};
use crate::config::{
    AdminToken, Config, HostHeader, Http2Mode, Overrides, Role, RouteConfig, SagaConfig, Secrets,
    UpstreamConfig, UpstreamUrl,
};
use crate::engine::Policy;
use crate::gate::{Gate, SagaRunner, Settings};
use crate::key::Hashing;
use crate::layer::LayerSettings;
use crate::proxy::{Http2, RequestBody, ServerLimits, Upstream, UpstreamSettings};
use crate::refusal::RefusalRenderer;
use crate::route::Route;
use crate::saga::runner::Sagas;
use crate::tls::ClientIdentity;
use crate::token::Keyring;

/// Returns the hashing of identities.
pub(super) fn hashing(secrets: &Secrets) -> Result<Hashing> {
    Ok(Hashing::under(secrets.hash_secrets.iter().map(|secret| secret.expose().as_bytes()))?)
}

pub(super) fn settings(config: &Config, hashing: Hashing) -> Settings {
    let limits = &config.limits;
    Settings {
        in_flight: descriptors::share(limits, 1 + config.upstreams.len()).in_flight,
        waiters: limits.waiters,
        waiters_per_key: limits.waiters_per_key,
        request_body: limits.request_body,
        response_body: limits.response_body,
        buffered_bytes: limits.buffered_bytes,
        records_per_scope: limits.records_per_scope,
        sagas: limits.sagas,
        hashing,
        trailers: config.store.format.has_trailers(),
        log_keep: config.log_keep,
    }
}

pub(super) fn server_limits(config: &Config, gate: &Gate) -> ServerLimits {
    let limits = &config.limits;
    let connections = descriptors::share(limits, 1 + config.upstreams.len()).connections;
    // Without this, one address could take all connections if there are few descriptors.
    let scarce = connections < limits.connections;
    let peer_max = if scarce { connections.div_ceil(2) } else { limits.connections_per_peer };
    ServerLimits {
        connections,
        connections_per_peer: limits.connections_per_peer.min(peer_max),
        header_bytes: limits.header_bytes,
        header_timeout: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        budget: gate.budget().clone(),
        trusted: config.trusted_proxies.clone().into(),
        proxy_protocol: config.proxy_protocol,
    }
}

pub(super) fn refusal_renderer(config: &Config) -> RefusalRenderer {
    RefusalRenderer { base_url: config.problem_base_url.clone() }
}

pub(super) fn layer_settings(
    config: &Config,
    keyrings: HashMap<String, Arc<Keyring>>,
    sagas: &Sagas,
) -> LayerSettings {
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
    let runner = |saga: &SagaConfig| {
        let runner: Arc<dyn SagaRunner> = Arc::new(sagas.clone());
        (saga.route.name.clone(), runner)
    };
    LayerSettings {
        routes: config.all_routes().map(route).collect(),
        keyrings,
        sagas: config.sagas.iter().map(runner).collect(),
        renderer: refusal_renderer(config),
        publish_policy: config.publish_policy,
        body_timeout: config.limits.body_timeout,
        silence: config.upstream.response_timeout,
    }
}

/// Sets up the upstreams, the default one first. An upstream that has the same settings in `before`
/// keeps its connections.
pub(super) async fn upstreams(
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

pub(super) fn scheme(url: &UpstreamUrl) -> Scheme {
    if url.tls { Scheme::HTTPS } else { Scheme::HTTP }
}

/// Reads a file.
pub(super) async fn read(file: &Path) -> Result<Vec<u8>> {
    tokio::fs::read(file).await.with_context(|| format!("can't read {}", file.display()))
}

pub(super) fn access(secrets: &Secrets, address: SocketAddr) -> Result<Access> {
    let token = |token: &AdminToken| {
        Token::new(&token.name, token.role == Role::Operate, token.secret.expose().as_bytes())
    };
    let tokens: Vec<Token> = secrets.admin_tokens.iter().map(token).collect();
    if !tokens.is_empty() {
        return Ok(Access::Tokens(tokens));
    }
    if !address.ip().is_loopback() {
        bail!(
            "the admin port {address} is open to others: set [admin_auth] tokens, or listen on \
             127.0.0.1"
        );
    }
    Ok(Access::Loopback)
}

/// Returns the policy for records of routes that are no longer configured.
pub(super) fn fallback() -> Result<Policy> {
    let overrides = Overrides { upstream: Some("http://localhost".into()), ..Default::default() };
    let mut routes = Config::load(None, overrides)?.routes;
    if routes.is_empty() {
        bail!("there is no default route");
    }
    Ok(routes.swap_remove(0).policy)
}
