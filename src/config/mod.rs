//! The configuration: one TOML file, read into typed values. Flags override the file, and
//! documented defaults complete it.
//!
//! Danger: if a key is misread or silently ignored, a payment could be unprotected. So an unknown
//! key is a fault, and values for unfinished features are refused. All faults of a file are
//! reported at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;

use crate::engine::OnUncertain;
use crate::outbox::settings::OutboxSettings;
use crate::tls::{ClientFiles, ClientIdentity, IdentityFiles};
use profiles::Profiles;
use read::{ConfigSource, FaultCollector, SourceSpan, Table};
use route::{ReadRoutes, RouteContext};
use sinks::call::check_calls;
use sinks::{CallPlace, ReadSinks};

mod admin;
mod broker;
mod describe;
mod encryption;
mod fault;
mod hashing;
mod limits;
mod log;
mod observers;
mod outbox;
mod profiles;
mod read;
mod read_model;
mod route;
mod sagas;
mod secret;
mod sinks;
mod store;
mod texts;
mod tls;
mod upstream;

pub use admin::{AdminToken, Role, SecretSource, Secrets, SinkSecrets, TokenSource};
pub use encryption::EncryptionKeySource;
pub use fault::{Excerpt, Fault, Faults};
pub use limits::Limits;
pub use observers::{AccessLogConfig, AccessLogFormat, TracingConfig};
pub use profiles::DEFAULT_PROFILE;
pub use read_model::ReadModelConfig;
pub use route::{IMPLICIT_ROUTE, JwksSource, RouteConfig};
pub use sagas::SagaConfig;
pub use secret::Secret;
pub use sinks::SinkConfig;
pub use store::{AckPolicy, Durability, StoreConfig, StoreFormat, StoreUrl, WITHOUT_REDIS};
pub use upstream::{DEFAULT_UPSTREAM, HostHeader, Http2Mode, UpstreamConfig, UpstreamUrl};

/// The documented default file. The values that it sets are the defaults.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The default `drain_timeout` is this much longer than the longest `response_timeout`, so that the
/// response can be stored.
const DRAIN_MARGIN: Duration = Duration::from_secs(15);

/// All settings of an operator. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address for clients.
    pub listen: SocketAddr,
    /// Address for operators and probes.
    pub admin: SocketAddr,
    /// How long active requests may continue after SIGTERM.
    pub drain_timeout: Duration,
    /// Certificate and key for clients that connect with TLS; `None`: clients connect without TLS.
    pub tls: Option<IdentityFiles>,
    /// Proxies in front of the gateway. Their `X-Forwarded-*` fields are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether trusted proxies announce the client of each connection by the PROXY protocol.
    pub proxy_protocol: bool,
    /// Prefix of problem types, instead of `urn:onceward:problem:`. It ends with a separator, so
    /// that the name of a type can follow.
    pub problem_base_url: Option<String>,
    /// Whether clients can read the policy at `/.well-known/idempotency`.
    pub publish_policy: bool,
    /// Upstream for requests without a route, and for routes that name no upstream.
    pub upstream: UpstreamConfig,
    /// Further upstreams, `[upstreams.NAME]`.
    pub upstreams: Vec<UpstreamConfig>,
    /// Store of the records.
    pub store: StoreConfig,
    /// Limits on sizes, counts and times.
    pub limits: Limits,
    /// How long the event log keeps entries; `None`: the log is off.
    pub log_keep: Option<Duration>,
    /// The searchable copy of the event log; `None`: off.
    pub read_model: Option<ReadModelConfig>,
    /// Log with one line per request; `None`: off.
    pub access_log: Option<AccessLogConfig>,
    /// Export of spans; `None`: off. [`Config::resolve_secrets`] reads its secret fields.
    pub tracing: Option<TracingConfig>,
    /// Keys that seal stored results; empty: results are not sealed. [`Config::resolve_secrets`]
    /// reads the keys themselves.
    pub encryption_keys: Vec<EncryptionKeySource>,
    /// Secrets for the hashes of keys, scopes and callers; empty: plain hashes.
    /// [`Config::resolve_secrets`] reads them.
    pub hash_secrets: Vec<SecretSource>,
    /// Settings of all events, and of their delivery.
    pub outbox: OutboxSettings,
    /// The receivers of events. [`Config::resolve_secrets`] reads their secrets, and
    /// [`Config::add_secrets`] adds them.
    pub sinks: Vec<SinkConfig>,
    /// Holders of tokens for the admin port. [`Config::resolve_secrets`] reads the secrets.
    pub admin_tokens: Vec<TokenSource>,
    /// Whether a start may change the identities that the store has recorded. This is decided for a
    /// single start, so it is not in the file.
    pub accept_new_identities: bool,
    /// Routes in order. The first match applies, and a request without a match passes through.
    pub routes: Vec<RouteConfig>,
    /// Sagas in order.
    pub sagas: Vec<SagaConfig>,
    /// Warnings about valid but questionable values, each with its key.
    pub warnings: Vec<String>,
}

/// Values from flags or environment variables, which override the file. They are not parsed yet, so
/// that their faults are reported together with the faults of the file.
#[derive(Clone, Default)]
pub struct Overrides {
    /// `--upstream`, the url of `[upstream]`.
    pub upstream: Option<String>,
    /// `--listen`.
    pub listen: Option<String>,
    /// `--admin`.
    pub admin: Option<String>,
    /// `--store`, the url of `[store]`.
    pub store: Option<String>,
}

impl Config {
    /// Reads a configuration. `file` has the file's name, for messages, and its text.
    ///
    /// # Errors
    /// All faults of the file and the overrides at once. No fault shows a password.
    pub fn load(file: Option<(&str, &str)>, overrides: Overrides) -> Result<Config, Faults> {
        let report = FaultCollector::default();
        let given = file.map_or_else(ConfigSource::empty, |(name, text)| {
            ConfigSource::parse(name, text, false, &report)
        });
        let defaults = ConfigSource::parse("the built-in default.toml", DEFAULTS, true, &report);
        let profiles =
            ConfigSource::parse("the built-in profiles.toml", profiles::TEXT, true, &report);
        let config = read_all(&report, [&given, &defaults, &profiles], &overrides);
        let warnings = report.finish(&[&given, &defaults, &profiles])?;
        let unexplained = || {
            Fault::without_excerpt(
                "config",
                "the configuration is unusable, but no fault was found: please report this",
            )
        };
        config
            .map(|config| Config { warnings, ..config })
            .ok_or_else(|| Faults(vec![unexplained()]))
    }

    /// Returns the upstream of a route.
    pub fn upstream_of(&self, route: &RouteConfig) -> &UpstreamConfig {
        let named = route
            .upstream
            .as_ref()
            .and_then(|name| self.upstreams.iter().find(|upstream| upstream.name == *name));
        named.unwrap_or(&self.upstream)
    }

    /// Adds the secrets to the sinks, and the secret header fields to the probes. Also decides
    /// which probes may run in the background: the ones that have header fields, if results are
    /// sealed, because their keys are stored.
    pub fn add_secrets(&mut self, secrets: &Secrets) {
        for sink in &mut self.sinks {
            if let Some(own) = secrets.sinks.get(&sink.settings.name) {
                sink.add_secrets(own);
            }
        }
        for route in &mut self.routes {
            if let OnUncertain::Probe(probe) = &mut route.policy.on_uncertain {
                let probe = Arc::make_mut(probe);
                probe
                    .headers
                    .extend(secrets.probe_headers.get(&route.name).cloned().unwrap_or_default());
                probe.background = !probe.headers.is_empty() && !secrets.encryption_keys.is_empty();
            }
        }
    }

    /// Reads the secrets that the file names. `env` looks up an environment variable.
    ///
    /// # Errors
    /// All secrets that are missing, empty or unreadable, at once.
    pub fn resolve_secrets(&self, env: impl Fn(&str) -> Option<String>) -> Result<Secrets, Faults> {
        Secrets::resolve(self, env)
    }

    /// Reads the client certificates for upstreams and the store, as a start would.
    ///
    /// # Errors
    /// All files that are unreadable or don't match each other, at once.
    pub fn check_client_certificates(&self) -> Result<(), Faults> {
        let default = ("upstream".to_owned(), &self.upstream.client);
        let named = self
            .upstreams
            .iter()
            .map(|upstream| (format!("upstreams.{}", upstream.name), &upstream.client));
        let all =
            std::iter::once(default).chain(named).chain([("store".to_owned(), &self.store.client)]);
        let fault = |(path, files): (String, &Option<ClientFiles>)| {
            let error = ClientIdentity::load(files.clone()?).err()?;
            let name = if error.file() == files.as_ref()?.key { "key" } else { "cert" };
            Some(Fault::without_excerpt(format!("{path}.{name}"), error.to_string()))
        };
        let faults: Vec<Fault> = all.filter_map(fault).collect();
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    /// Describes the configuration for `onceward check`. Passwords are masked.
    pub fn describe(&self) -> String {
        describe::describe(self)
    }
}

fn read_all<'a>(
    report: &'a FaultCollector,
    files: [&'a ConfigSource<'a>; 3],
    flags: &Overrides,
) -> Option<Config> {
    let [given, defaults, profiles] = files;
    let root = Table::roots(report, [given, defaults]);
    let (listen, admin) = read_addresses(&root, flags);
    let identity = tls::read(&root);
    let encryption_keys = encryption::read(&root);
    let hash_secrets = hashing::read(&root);
    let trusted_proxies = read_trusted_proxies(&root);
    let proxy_protocol = read_proxy_protocol(&root, trusted_proxies.as_deref());
    let drain_timeout = root.get("drain_timeout").map(|value| value.duration_or_zero());
    let publish_policy = root.get("publish_policy").and_then(|value| value.boolean());
    let problem_base_url = read_problem_base_url(&root);

    let (upstream, upstreams) = read_upstreams(report, &root, defaults, flags.upstream.as_deref());
    let store_table = root.table("store", "a table: [store]");
    let timeout_span = store_table.span_of("timeout");
    let store = StoreConfig::read(store_table, flags.store.as_deref());
    let limits = Limits::read(root.table("limits", "a table: [limits]"));
    let store_url = store.as_ref().map(|store| &store.url);
    let (log_keep, read_model) = read_log(&root, store_url);
    let outbox = outbox::read(root.table("outbox", "a table: [outbox]"), store_url);
    let ReadSinks { sinks, names, calls } = sinks::read_all(&root);
    let access_log = observers::read_access_log(root.table("access_log", "a table: [access_log]"));
    let tracing = observers::read_tracing(root.table("tracing", "a table: [tracing]"));
    let admin_tokens = admin::read_tokens(root.table("admin_auth", "a table: [admin_auth]"));
    check_addresses(report, listen.as_ref(), admin.as_ref(), admin_tokens.as_deref());
    let response_timeout = upstream.as_ref().map(|upstream| upstream.response_timeout);
    let context = RouteContext {
        profiles: Profiles::of(&Table::roots(report, [profiles])),
        upstreams: response_timeouts(&upstreams),
        response_timeout,
        store_timeout: (store.as_ref().map(|store| store.timeout), timeout_span),
        on_failure: store.as_ref().map(|store| store.on_failure),
        log: log_keep.map(|keep| keep.is_some()),
        encrypted: encryption_keys.as_ref().map(|keys| !keys.is_empty()),
        client_ca: identity.as_ref().map(|tls| has_client_ca(tls.as_ref())),
        outbox: outbox.clone(),
        sinks: names,
        format: store.as_ref().map(|store| store.format),
    };
    let (routes, sagas) = read_operations(&root, &context, &calls);
    root.finish();

    let upstreams: Vec<UpstreamConfig> =
        upstreams.into_iter().map(|(_, upstream)| upstream).collect::<Option<_>>()?;
    let slowest = slowest_response(&upstreams, response_timeout)?;
    Some(Config {
        listen: listen?.0,
        admin: admin?.0,
        tls: identity?,
        encryption_keys: encryption_keys?,
        hash_secrets: hash_secrets?,
        trusted_proxies: trusted_proxies?,
        proxy_protocol: proxy_protocol?,
        drain_timeout: drain_timeout.unwrap_or(Some(slowest + DRAIN_MARGIN))?,
        problem_base_url: problem_base_url?,
        publish_policy: publish_policy?,
        upstream: upstream?,
        upstreams,
        store: store?,
        limits: limits?,
        log_keep: log_keep?,
        read_model: read_model?,
        access_log: access_log?,
        tracing: tracing?,
        outbox: outbox?,
        sinks: sinks?,
        admin_tokens: admin_tokens?,
        accept_new_identities: false,
        routes,
        sagas: sagas?,
        warnings: Vec::new(),
    })
}

/// Reads `[[routes]]` and `[[sagas]]`, and checks the routes of calls.
fn read_operations<'a>(
    root: &Table<'a>,
    context: &RouteContext<'a>,
    calls: &[(String, CallPlace)],
) -> (Vec<RouteConfig>, Option<Vec<SagaConfig>>) {
    let ReadRoutes { routes, mut names } = route::read_all(root, context);
    check_calls(root.report, calls, (&routes, &names), context.encrypted);
    let sagas = sagas::read_all(root, context, &routes, &mut names);
    (routes, sagas)
}

fn has_client_ca(tls: Option<&IdentityFiles>) -> bool {
    tls.is_some_and(|files| files.client_ca.is_some())
}

/// Reads the url in front of problem types. `Some(None)`: none is configured.
fn read_problem_base_url(root: &Table<'_>) -> Option<Option<String>> {
    match root.get("problem_base_url") {
        Some(value) => value.checked(BASE_URL_EXPECTED, base_url).map(Some),
        None => Some(None),
    }
}

/// Reads `[log]` and `[read_model]`. An inner value is `None` if the log or the read model is off.
fn read_log(
    root: &Table<'_>,
    store: Option<&StoreUrl>,
) -> (Option<Option<Duration>>, Option<Option<ReadModelConfig>>) {
    let log_keep = log::read(root.table("log", "a table: [log]"));
    let read_model = read_model::read(
        root.table("read_model", "a table: [read_model]"),
        store,
        log_keep.map(|keep| keep.is_some()),
    );
    (log_keep, read_model)
}

/// Returns the names and response timeouts of the named upstreams.
fn response_timeouts(upstreams: &NamedUpstreams) -> Vec<(String, Option<Duration>)> {
    let timeout = |(name, upstream): &(String, Option<UpstreamConfig>)| {
        (name.clone(), upstream.as_ref().map(|upstream| upstream.response_timeout))
    };
    upstreams.iter().map(timeout).collect()
}

/// Returns the longest time that an upstream may take for a response.
fn slowest_response(upstreams: &[UpstreamConfig], default: Option<Duration>) -> Option<Duration> {
    upstreams.iter().map(|upstream| upstream.response_timeout).chain(default).max()
}

/// Reads the addresses for clients and for operators, with their places.
fn read_addresses(root: &Table<'_>, flags: &Overrides) -> (Option<Address>, Option<Address>) {
    let listen = flags.listen.as_deref();
    let admin = flags.admin.as_deref();
    (
        address(root, "listen", "--listen (ONCEWARD_LISTEN)", listen),
        address(root, "admin", "--admin (ONCEWARD_ADMIN)", admin),
    )
}

/// An address, and its place.
type Address = (SocketAddr, SourceSpan);

/// Reads an address from a flag, or else from the file, with its span.
fn address(
    root: &Table<'_>,
    name: &'static str,
    flag: &str,
    text: Option<&str>,
) -> Option<Address> {
    const EXPECTED: &str = "an address such as \"127.0.0.1:8080\"";
    let in_file = root
        .get(name)
        .and_then(|value| Some((value.parsed(EXPECTED, |text| text.parse().ok())?, value.span)));
    let Some(text) = text else { return in_file };
    let span = SourceSpan::flag(flag);
    match text.parse() {
        Ok(address) => Some((address, span)),
        Err(_) => {
            root.report.note(&span, format!("expected {EXPECTED}, found {text:?}"));
            None
        }
    }
}

type NamedUpstreams = Vec<(String, Option<UpstreamConfig>)>;

fn read_upstreams<'a>(
    report: &'a FaultCollector,
    root: &Table<'a>,
    defaults: &'a ConfigSource<'a>,
    flag: Option<&str>,
) -> (Option<UpstreamConfig>, NamedUpstreams) {
    const EXPECTED: &str = "a table: [upstream]";
    const NAMED_EXPECTED: &str = "a table: [upstreams.NAME]";
    let default = UpstreamConfig::read(DEFAULT_UPSTREAM, root.table("upstream", EXPECTED), flag);
    let built_in = Table::roots(report, [defaults]);
    let read = |(name, table): (String, Table<'a>)| {
        if name == DEFAULT_UPSTREAM {
            report.note(&table.span(), "this name is reserved for [upstream]: choose another");
        }
        let upstream =
            UpstreamConfig::read(&name, table.over(&built_in.table("upstream", EXPECTED)), None);
        (name, upstream)
    };
    let named = root.table("upstreams", NAMED_EXPECTED).entries(NAMED_EXPECTED);
    (default, named.into_iter().map(read).collect())
}

/// Reads the trusted proxies: addresses, and networks such as 10.0.0.0/8.
fn read_trusted_proxies(root: &Table<'_>) -> Option<Vec<IpNet>> {
    let Some(value) = root.get("trusted_proxies") else { return Some(Vec::new()) };
    let network =
        |text: &str| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    value.list_of(
        "a list of addresses such as [\"10.0.0.0/8\"]",
        "an address or a network such as \"10.0.0.0/8\"",
        network,
    )
}

/// Reads whether proxies announce their clients. `trusted` is `None` if the proxies are faulty.
fn read_proxy_protocol(root: &Table<'_>, trusted: Option<&[IpNet]>) -> Option<bool> {
    let value = root.get("proxy_protocol")?;
    let on = value.boolean()?;
    if on && trusted.is_some_and(<[_]>::is_empty) {
        value.fault(
            "needs trusted_proxies: without them, anybody could announce any client address",
        );
        return None;
    }
    Some(on)
}

fn check_addresses(
    report: &FaultCollector,
    listen: Option<&(SocketAddr, SourceSpan)>,
    admin: Option<&(SocketAddr, SourceSpan)>,
    tokens: Option<&[TokenSource]>,
) {
    let Some((admin, span)) = admin else { return };
    if !admin.ip().is_loopback() && tokens.is_some_and(<[_]>::is_empty) {
        report.note(
            span,
            "not a loopback address, so anybody who reaches it could resolve operations: add \
             tokens under [admin_auth]",
        );
    }
    if listen.is_some_and(|(listen, _)| listen == admin && listen.port() != 0) {
        report.note(span, "the same address as listen: the admin port is never served to clients");
    }
}

const BASE_URL_EXPECTED: &str = "a url such as \"https://docs.example.com/problems/\"";

/// Parses a url to which a problem's type can be appended. The url is written into a `Link` field
/// between angle brackets.
fn base_url(text: &str) -> Result<String, String> {
    let expected = || format!("expected {BASE_URL_EXPECTED}");
    let uri: Uri = text.parse().map_err(|_| expected())?;
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"\\^`{|}".contains(&byte));
    if !plain
        || !matches!(uri.scheme_str(), Some("http" | "https"))
        || uri.host().is_none_or(str::is_empty)
    {
        return Err(expected());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("clients see this url: remove the credentials".to_owned());
    }
    let open = text.ends_with(['/', '#', '=']);
    Ok(if open { text.to_owned() } else { format!("{text}/") })
}

impl std::fmt::Debug for Overrides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let masked = |url: &Option<String>| url.as_deref().map(secret::masked_url);
        f.debug_struct("Overrides")
            .field("upstream", &masked(&self.upstream))
            .field("listen", &self.listen)
            .field("admin", &self.admin)
            .field("store", &masked(&self.store))
            .finish()
    }
}

#[cfg(test)]
mod tests;
