//! The configuration: one TOML file, flags above it and documented defaults below it, read into plain typed values.
//!
//! Danger: a key that is read wrongly or silently ignored could leave a payment unprotected. So every key that nobody
//! asked for is a fault, every fault of a file is reported at once, and nothing that is not built yet is accepted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;

use crate::engine::OnUncertain;
use crate::tls::{ClientFiles, ClientIdentity, IdentityFiles};
use profiles::Profiles;
use read::{Place, Report, Source, Table};
use route::Surroundings;

mod admin;
mod describe;
mod encryption;
mod fault;
mod hashing;
mod limits;
mod log;
mod observers;
mod profiles;
mod read;
mod read_model;
mod route;
mod secret;
mod store;
mod tls;
mod upstream;

pub use admin::{AdminToken, Role, SecretPlace, Secrets, TokenSource};
pub use encryption::KeySource;
pub use fault::{Excerpt, Fault, Faults};
pub use limits::Limits;
pub use observers::{AccessLogConfig, AccessLogFormat, TracingConfig};
pub use read_model::ReadModelConfig;
pub use route::{DEFAULT_PROFILE, IMPLICIT_ROUTE, KeysPlace, Route};
pub use secret::Secret;
pub use store::{Ack, Durability, StoreConfig, StoreFormat, StoreUrl};
pub use upstream::{DEFAULT_UPSTREAM, HostHeader, Http2, Upstream, UpstreamUrl};

/// The documented default file: what it sets are the defaults.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// What draining takes longer than the slowest response: the time to store it.
const DRAIN_MARGIN: Duration = Duration::from_secs(15);

/// Everything that an operator decides. Its `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators and probes connect.
    pub admin: SocketAddr,
    /// How long running requests may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Who the gateway is to clients that come by TLS; `None`: they come without.
    pub tls: Option<IdentityFiles>,
    /// Proxies in front, whose `X-Forwarded-*` fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether they announce the client of each connection by the PROXY protocol.
    pub proxy_protocol: bool,
    /// What problem types are prefixed with instead of `urn:onceward:problem:`; ends so that a type can follow.
    pub problem_base_url: Option<String>,
    /// Whether clients find the policy at `/.well-known/idempotency`.
    pub publish_policy: bool,
    /// Where requests go whose route names no other upstream, and those without a route.
    pub upstream: Upstream,
    /// The further ones, `[upstreams.NAME]`.
    pub upstreams: Vec<Upstream>,
    /// Where records are kept.
    pub store: StoreConfig,
    /// What is bounded, and where.
    pub limits: Limits,
    /// How long the event log keeps entries; `None`: it is off.
    pub log_keep: Option<Duration>,
    /// Where the log, if it is on, is laid out for searches; `None`: nowhere.
    pub read_model: Option<ReadModelConfig>,
    /// One line for each request; `None`: it is off.
    pub access_log: Option<AccessLogConfig>,
    /// Where spans are told; `None`: nowhere. Secret fields are read by [`Config::resolve_secrets`].
    pub tracing: Option<TracingConfig>,
    /// What seals results at rest; none: nothing does. The keys themselves are read by [`Config::resolve_secrets`].
    pub encryption_keys: Vec<KeySource>,
    /// What keys, scopes and callers are hashed under; none: plainly. They are read by [`Config::resolve_secrets`].
    pub hash_secrets: Vec<SecretPlace>,
    /// Who may use the admin port. Their secrets are read by [`Config::resolve_secrets`].
    pub admin_tokens: Vec<TokenSource>,
    /// Whether identities may become others than those that the store keeps. A decision for one start, and so not in the file.
    pub accept_new_identities: bool,
    /// What is protected; the first match wins, what matches none is passed through.
    pub routes: Vec<Route>,
    /// What is legal and still worth a thought, each with its key.
    pub warnings: Vec<String>,
}

/// Values from flags or environment, which beat the file. As given: they are parsed, and found faulty, with the rest.
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
    /// Reads a configuration. `file` is its name, for messages, and its text.
    ///
    /// # Errors
    /// All faults of the file and the overrides at once; none shows a password.
    pub fn load(file: Option<(&str, &str)>, overrides: Overrides) -> Result<Config, Faults> {
        let report = Report::default();
        let given = file
            .map_or_else(Source::empty, |(name, text)| Source::parse(name, text, false, &report));
        let defaults = Source::parse("the built-in default.toml", DEFAULTS, true, &report);
        let profiles = Source::parse("the built-in profiles.toml", profiles::TEXT, true, &report);
        let config = read_all(&report, [&given, &defaults, &profiles], &overrides);
        let warnings = report.finish(&[&given, &defaults, &profiles])?;
        let unexplained = || {
            Fault::elsewhere("config", "is not usable, and no fault was found: please report this")
        };
        config
            .map(|config| Config { warnings, ..config })
            .ok_or_else(|| Faults(vec![unexplained()]))
    }

    /// The upstream that a route's requests go to.
    pub fn upstream_of(&self, route: &Route) -> &Upstream {
        let named = route
            .upstream
            .as_ref()
            .and_then(|name| self.upstreams.iter().find(|upstream| upstream.name == *name));
        named.unwrap_or(&self.upstream)
    }

    /// Gives the probes what was read with the secrets: the fields that they have, and whether the key that they need can
    /// be kept sealed.
    pub fn add_secrets(&mut self, secrets: &Secrets) {
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

    /// Reads the secrets that the file only names. `env` looks up an environment variable.
    ///
    /// # Errors
    /// All that are missing, empty or not readable, at once.
    pub fn resolve_secrets(&self, env: impl Fn(&str) -> Option<String>) -> Result<Secrets, Faults> {
        Secrets::resolve(self, env)
    }

    /// Reads the certificates that the gateway shows to upstreams and the store, as a start would.
    ///
    /// # Errors
    /// All files that can't be read or don't fit each other, at once.
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
            Some(Fault::elsewhere(format!("{path}.{name}"), error.to_string()))
        };
        let faults: Vec<Fault> = all.filter_map(fault).collect();
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    /// What is configured, for people: `onceward check` prints it. Passwords are masked.
    pub fn describe(&self) -> String {
        describe::describe(self)
    }
}

fn read_all<'a>(
    report: &'a Report,
    files: [&'a Source<'a>; 3],
    flags: &Overrides,
) -> Option<Config> {
    let [given, defaults, profiles] = files;
    let root = Table::roots(report, [given, defaults]);
    let listen = address(&root, "listen", "--listen (ONCEWARD_LISTEN)", flags.listen.as_deref());
    let admin = address(&root, "admin", "--admin (ONCEWARD_ADMIN)", flags.admin.as_deref());
    let identity = tls::read(&root);
    let encryption_keys = encryption::read(&root);
    let hash_secrets = hashing::read(&root);
    let trusted_proxies = read_trusted_proxies(&root);
    let proxy_protocol = read_proxy_protocol(&root, trusted_proxies.as_deref());
    let drain_timeout = root.get("drain_timeout").map(|value| value.duration_or_zero());
    let publish_policy = root.get("publish_policy").and_then(|value| value.boolean());
    let problem_base_url =
        root.get("problem_base_url").map(|value| value.checked(BASE_URL_EXPECTED, base_url));

    let (upstream, upstreams) = read_upstreams(report, &root, defaults, flags.upstream.as_deref());
    let store_table = root.table("store", "a table: [store]");
    let timeout_place = store_table.place_of("timeout");
    let store = StoreConfig::read(store_table, flags.store.as_deref());
    let limits = Limits::read(root.table("limits", "a table: [limits]"));
    let log_keep = log::read(root.table("log", "a table: [log]"));
    let read_model = read_model::read(
        root.table("read_model", "a table: [read_model]"),
        store.as_ref().map(|store| &store.url),
        log_keep.map(|keep| keep.is_some()),
    );
    let access_log = observers::read_access_log(root.table("access_log", "a table: [access_log]"));
    let tracing = observers::read_tracing(root.table("tracing", "a table: [tracing]"));
    let admin_tokens = admin::read_tokens(root.table("admin_auth", "a table: [admin_auth]"));
    check_addresses(report, listen.as_ref(), admin.as_ref(), admin_tokens.as_deref());

    let response_timeout = upstream.as_ref().map(|upstream| upstream.response_timeout);
    let timeouts = upstreams
        .iter()
        .map(|(name, it)| (name.clone(), it.as_ref().map(|it| it.response_timeout)));
    let around = Surroundings {
        profiles: Profiles::of(&Table::roots(report, [profiles])),
        upstreams: timeouts.collect(),
        response_timeout,
        store_timeout: (store.as_ref().map(|store| store.timeout), timeout_place),
        on_failure: store.as_ref().map(|store| store.on_failure),
        log: log_keep.map(|keep| keep.is_some()),
        encrypted: encryption_keys.as_ref().is_some_and(|keys| !keys.is_empty()),
        client_ca: identity
            .as_ref()
            .map(|tls| tls.as_ref().is_some_and(|files| files.client_ca.is_some())),
    };
    let routes = route::read_all(&root, &around);
    root.finish();

    let upstreams: Vec<Upstream> =
        upstreams.into_iter().map(|(_, upstream)| upstream).collect::<Option<_>>()?;
    let slowest =
        upstreams.iter().map(|upstream| upstream.response_timeout).chain(response_timeout).max()?;
    Some(Config {
        listen: listen?.0,
        admin: admin?.0,
        tls: identity?,
        encryption_keys: encryption_keys?,
        hash_secrets: hash_secrets?,
        trusted_proxies: trusted_proxies?,
        proxy_protocol: proxy_protocol?,
        drain_timeout: drain_timeout.unwrap_or(Some(slowest + DRAIN_MARGIN))?,
        problem_base_url: problem_base_url.map_or(Some(None), |url| url.map(Some))?,
        publish_policy: publish_policy?,
        upstream: upstream?,
        upstreams,
        store: store?,
        limits: limits?,
        log_keep: log_keep?,
        read_model: read_model?,
        access_log: access_log?,
        tracing: tracing?,
        admin_tokens: admin_tokens?,
        accept_new_identities: false,
        routes,
        warnings: Vec::new(),
    })
}

/// An address from a flag or else the file, and where it stands.
fn address(
    root: &Table<'_>,
    name: &'static str,
    flag: &str,
    text: Option<&str>,
) -> Option<(SocketAddr, Place)> {
    const EXPECTED: &str = "an address such as \"127.0.0.1:8080\"";
    let in_file = root
        .get(name)
        .and_then(|value| Some((value.parsed(EXPECTED, |text| text.parse().ok())?, value.place)));
    let Some(text) = text else { return in_file };
    let place = Place::flag(flag);
    match text.parse() {
        Ok(address) => Some((address, place)),
        Err(_) => {
            root.report.note(&place, format!("expected {EXPECTED}, found {text:?}"));
            None
        }
    }
}

type Named = Vec<(String, Option<Upstream>)>;

fn read_upstreams<'a>(
    report: &'a Report,
    root: &Table<'a>,
    defaults: &'a Source<'a>,
    flag: Option<&str>,
) -> (Option<Upstream>, Named) {
    const EXPECTED: &str = "a table: [upstream]";
    const NAMED_EXPECTED: &str = "a table: [upstreams.NAME]";
    let default = Upstream::read(DEFAULT_UPSTREAM, root.table("upstream", EXPECTED), flag);
    let built_in = Table::roots(report, [defaults]);
    let read = |(name, table): (String, Table<'a>)| {
        if name == DEFAULT_UPSTREAM {
            report.note(&table.place(), "this is the name of [upstream]: choose another");
        }
        let upstream =
            Upstream::read(&name, table.over(&built_in.table("upstream", EXPECTED)), None);
        (name, upstream)
    };
    let named = root.table("upstreams", NAMED_EXPECTED).entries(NAMED_EXPECTED);
    (default, named.into_iter().map(read).collect())
}

/// Addresses, or networks such as 10.0.0.0/8.
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

/// Whether proxies in front announce their clients. The proxies are `None` where they are faulty.
fn read_proxy_protocol(root: &Table<'_>, trusted: Option<&[IpNet]>) -> Option<bool> {
    let value = root.get("proxy_protocol")?;
    let on = value.boolean()?;
    if on && trusted.is_some_and(<[_]>::is_empty) {
        value.fault("needs trusted_proxies: only they may announce clients, anybody else could claim any address");
        return None;
    }
    Some(on)
}

fn check_addresses(
    report: &Report,
    listen: Option<&(SocketAddr, Place)>,
    admin: Option<&(SocketAddr, Place)>,
    tokens: Option<&[TokenSource]>,
) {
    let Some((admin, place)) = admin else { return };
    if !admin.ip().is_loopback() && tokens.is_some_and(<[_]>::is_empty) {
        report.note(place, "not a loopback address: whoever reaches it could resolve operations; add tokens under [admin_auth]");
    }
    if listen.is_some_and(|(listen, _)| listen == admin && listen.port() != 0) {
        report.note(place, "the same address as listen: the admin port is never served to clients");
    }
}

const BASE_URL_EXPECTED: &str = "a url such as \"https://docs.example.com/problems/\"";

/// A url that a problem's type can follow. It goes into a `Link` field between angle brackets.
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
        return Err("it is shown to clients: no credentials in it".to_owned());
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
