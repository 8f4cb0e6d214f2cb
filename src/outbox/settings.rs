//! The settings of the relay and its sinks.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};

use crate::template::Template;

/// Most sinks of one configuration.
pub const SINKS_MAX: usize = 32;
/// Shortest secret that signs webhooks, in bytes: the recommendation of Standard Webhooks 1.0.
pub const WEBHOOK_SECRET_BYTES_MIN: usize = 24;

/// The settings of the relay.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxSettings {
    /// The `source` of the events (CloudEvents 1.0).
    pub source: String,
    /// Limit for the bytes of all events of one change. Above it, the events have no chosen
    /// members.
    pub event_bytes: u64,
    /// Whether this process delivers events.
    pub relay: bool,
}

impl Default for OutboxSettings {
    fn default() -> OutboxSettings {
        OutboxSettings { source: "urn:onceward".to_owned(), event_bytes: 64 << 10, relay: true }
    }
}

/// The settings of one sink.
#[derive(Debug, Clone, PartialEq)]
pub struct SinkSettings {
    /// Its name, unique in the configuration.
    pub name: String,
    /// The receiver.
    pub target: SinkTarget,
    /// Limit for one attempt.
    pub timeout: Duration,
    /// Limit for the attempts of this process at the same time; at least 1.
    pub concurrency: usize,
    /// Limit for the attempts of all gateways together, per second; 0: no limit.
    pub rate: u32,
    /// When a failed attempt is repeated.
    pub retry: RetryRule,
    /// Limit for waiting events and dead letters.
    pub max_backlog: u64,
    /// Limit for the bytes of waiting events and dead letters.
    pub max_bytes: u64,
}

/// The receiver of a sink's events.
#[derive(Debug, Clone, PartialEq)]
pub enum SinkTarget {
    /// An HTTP endpoint that gets webhooks.
    Webhook(WebhookTarget),
    /// A stream of Redis.
    RedisStream(RedisStreamTarget),
    /// A stream of NATS (JetStream).
    Nats(NatsTarget),
    /// An API behind the gateway.
    Call(CallTarget),
}

/// An HTTP endpoint that gets webhooks (Standard Webhooks 1.0).
#[derive(Clone, PartialEq)]
pub struct WebhookTarget {
    /// The `http` or `https` address.
    pub url: Uri,
    /// The secrets. Every secret signs, so a secret can be replaced without a gap. At least one,
    /// each with [`WEBHOOK_SECRET_BYTES_MIN`] bytes or more.
    pub secrets: Vec<Vec<u8>>,
    /// Fields that every request has in addition.
    pub headers: HeaderMap,
    /// A file with certificates of authorities (PEM) that are trusted in place of the system's.
    pub ca_file: Option<PathBuf>,
}

/// A stream of Redis. `Debug` shows only scheme, host and port of the address.
#[derive(Clone, PartialEq)]
pub struct RedisStreamTarget {
    /// The address of the server, as redis-rs reads it: `redis://`, `rediss://` or `unix:///path`.
    /// Empty as long as it is a secret that was not read.
    pub url: String,
    /// The key of the stream.
    pub stream: String,
    /// Number of entries to which additions trim the stream, approximately; 0: never trimmed.
    pub max_length: u64,
    /// A file with certificates of authorities (PEM) that `rediss` trusts in place of the system's.
    pub ca_file: Option<PathBuf>,
}

/// A stream of NATS (JetStream). `Debug` shows only scheme, host and port of the address.
#[derive(Clone, PartialEq)]
pub struct NatsTarget {
    /// The address of a server, `nats://` or `tls://`, perhaps with user and password, or with a
    /// token in place of the user. Empty as long as it is a secret that was not read.
    pub url: String,
    /// The subject of the messages.
    pub subject: String,
    /// A file with the credentials of a user: a JWT and the seed of a key.
    pub credentials: Option<PathBuf>,
    /// A file with certificates of authorities (PEM) that are trusted in place of the system's.
    /// Requires TLS.
    pub ca_file: Option<PathBuf>,
}

/// An API behind the gateway, and the request that an event makes. `Debug` shows only the names of
/// the fields.
#[derive(Clone, PartialEq)]
pub struct CallTarget {
    /// The name of a route that enforces and has a header field for the key.
    pub route: String,
    /// The method.
    pub method: Method,
    /// Path and query. In scope are `event` and its `data`.
    pub path: Template,
    /// The body (JSON), with the same names in scope; `None` for requests without one.
    pub body: Option<Template>,
    /// Fields that every request has in addition.
    pub headers: HeaderMap,
}

/// When a failed attempt is repeated, and when its event becomes a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryRule {
    /// Longest pause after the first attempt.
    pub first: Duration,
    /// Longest pause after any attempt.
    pub max: Duration,
    /// Limit for the attempts; 0: no limit but `age`.
    pub attempts: u32,
    /// Age of an event, from its first attempt, after which a failed attempt is its last.
    pub age: Duration,
}

impl Default for RetryRule {
    fn default() -> RetryRule {
        RetryRule {
            first: Duration::from_secs(5),
            max: Duration::from_secs(3600),
            attempts: 0,
            age: Duration::from_secs(3 * 24 * 3600),
        }
    }
}

impl SinkSettings {
    /// Returns settings with the defaults for everything but the name and the receiver.
    pub fn new(name: &str, target: SinkTarget) -> SinkSettings {
        SinkSettings {
            name: name.to_owned(),
            target,
            timeout: Duration::from_secs(15),
            concurrency: 16,
            rate: 0,
            retry: RetryRule::default(),
            max_backlog: 1_000_000,
            max_bytes: 1 << 30,
        }
    }
}

impl SinkTarget {
    /// Returns the kind of the receiver, as the configuration names it.
    pub fn kind(&self) -> &'static str {
        match self {
            SinkTarget::Webhook(_) => "webhook",
            SinkTarget::RedisStream(_) => "redis_stream",
            SinkTarget::Nats(_) => "nats",
            SinkTarget::Call(_) => "call",
        }
    }

    /// Returns scheme, host and port of the receiver, or the route of a call. Path and query may
    /// contain a credential.
    pub fn location(&self) -> String {
        match self {
            SinkTarget::Webhook(webhook) => shown_url(&webhook.url.to_string()),
            SinkTarget::RedisStream(stream) => shown_url(&stream.url),
            SinkTarget::Nats(nats) => shown_url(&nats.url),
            SinkTarget::Call(call) => format!("route {}", call.route),
        }
    }

    /// Sets the address of a broker, once the secret is known. Other receivers keep their own.
    pub fn set_url(&mut self, url: &str) {
        match self {
            SinkTarget::Webhook(_) | SinkTarget::Call(_) => {}
            SinkTarget::RedisStream(stream) => url.clone_into(&mut stream.url),
            SinkTarget::Nats(nats) => url.clone_into(&mut nats.url),
        }
    }
}

/// Returns scheme, host and port of an address, or the path of a Unix socket. Everything else in it
/// can be a credential.
pub fn shown_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    let ends: &[char] = if scheme == "unix" { &['?', '#'] } else { &['/', '?', '#'] };
    let place = rest.split(ends).next().unwrap_or_default();
    let host = place.rsplit_once('@').filter(|_| scheme != "unix");
    format!("{scheme}://{}", host.map_or(place, |(_, host)| host))
}

// Secrets, and the path and query of the address, never reach a log.
impl std::fmt::Debug for WebhookTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, authority) = (self.url.scheme_str(), self.url.authority());
        f.debug_struct("WebhookTarget")
            .field("scheme", &scheme)
            .field("authority", &authority)
            .field("secrets", &self.secrets.len())
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

impl std::fmt::Debug for CallTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallTarget")
            .field("route", &self.route)
            .field("method", &self.method)
            .field("path", &self.path.source())
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RedisStreamTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStreamTarget")
            .field("url", &shown_url(&self.url))
            .field("stream", &self.stream)
            .field("max_length", &self.max_length)
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

impl std::fmt::Debug for NatsTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsTarget")
            .field("url", &shown_url(&self.url))
            .field("subject", &self.subject)
            .field("credentials", &self.credentials)
            .field("ca_file", &self.ca_file)
            .finish()
    }
}
