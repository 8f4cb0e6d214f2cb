//! The configuration: one TOML file, flags above it and documented defaults below it, read into plain typed values.
//!
//! Danger: a key that is read wrongly or silently ignored could leave a payment unprotected. So every key that nobody
//! asked for is a fault, every fault of a file is reported at once, and nothing that is not built yet is accepted.

use std::net::SocketAddr;
use std::time::Duration;

mod admin;
mod fault;
mod limits;
mod route;
mod secret;
mod store;
mod upstream;

pub use admin::{AdminToken, Role, SecretPlace, Secrets, TokenSource};
pub use fault::{Excerpt, Fault, Faults};
pub use limits::Limits;
pub use route::Route;
pub use secret::Secret;
pub use store::{StoreConfig, StoreUrl};
pub use upstream::{DEFAULT_UPSTREAM, HostHeader, Upstream, UpstreamUrl};

/// Everything that an operator decides. Its `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators and probes connect.
    pub admin: SocketAddr,
    /// How long running requests may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// What problem types are prefixed with instead of `urn:onceward:problem:`; ends so that a type can follow.
    pub problem_base_url: Option<String>,
    /// Where requests go whose route names no other upstream, and those without a route.
    pub upstream: Upstream,
    /// The further ones, `[upstreams.NAME]`.
    pub upstreams: Vec<Upstream>,
    /// Where records are kept.
    pub store: StoreConfig,
    /// What is bounded, and where.
    pub limits: Limits,
    /// Who may use the admin port. Their secrets are read by [`Config::resolve_secrets`].
    pub admin_tokens: Vec<TokenSource>,
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
        let _ = (file, overrides);
        Err(Faults::default())
    }

    /// The upstream that a route's requests go to.
    pub fn upstream_of(&self, route: &Route) -> &Upstream {
        let named = route.upstream.as_ref().and_then(|name| self.upstreams.iter().find(|upstream| upstream.name == *name));
        named.unwrap_or(&self.upstream)
    }

    /// Reads the secrets that the file only names. `env` looks up an environment variable.
    ///
    /// # Errors
    /// All that are missing, empty or not readable, at once.
    pub fn resolve_secrets(&self, env: impl Fn(&str) -> Option<String>) -> Result<Secrets, Faults> {
        let _ = env;
        Err(Faults::default())
    }

    /// What is configured, for people: `onceward check` prints it. Passwords are masked.
    pub fn describe(&self) -> String {
        String::new()
    }
}
