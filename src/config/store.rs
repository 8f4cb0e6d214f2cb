//! `[store]`: the store of the records.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::read::{SourceSpan, Table};
use super::secret::{Secret, masked_url};
use super::texts::file_name;
use super::tls;
use crate::engine::OnFailure;
use crate::tls::ClientFiles;

mod format;

pub use format::StoreFormat;

/// Settings of the store, and of the behaviour while the store is unreachable.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The url.
    pub url: StoreUrl,
    /// Prefix of all keys and channels in Redis. A different namespace is a different store.
    pub namespace: String,
    /// Behaviour of requests while the store is unreachable. It is the default of the routes, and
    /// already part of every route's policy.
    pub on_failure: OnFailure,
    /// Longest time for one command.
    pub timeout: Duration,
    /// Certificates to trust instead of the system's for `rediss://`, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// The client certificate for `rediss://`; `None`: no certificate.
    pub client: Option<ClientFiles>,
    /// The acknowledgement that claims and completions wait for.
    pub ack: AckPolicy,
    /// Whether a server that can lose acknowledged writes is refused.
    pub durability: Durability,
    /// Memory for completed records in the process, in bytes; 0: no cache.
    pub local_cache: usize,
    /// The format of new records.
    pub format: StoreFormat,
}

/// The acknowledgement that claims and completions wait for, on Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckPolicy {
    /// The write is in the primary's memory.
    Memory,
    /// This many replicas have the write.
    Replicas(u32),
    /// The write is on disk.
    Fsync,
}

/// Reaction to a server that can lose acknowledged writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Log a warning.
    Warn,
    /// Refuse to start.
    Strict,
}

const DURABILITY: [(&str, Durability); 2] =
    [("warn", Durability::Warn), ("strict", Durability::Strict)];
const ACK_EXPECTED: &str = "\"memory\", \"replicas:N\" or \"fsync\"";

const LOCAL_CACHE_EXPECTED: &str =
    "works with one server or with sentinels, not with a cluster; expected \"0B\"";

fn ack(text: &str) -> Option<AckPolicy> {
    match text.split_once(':') {
        None if text == "memory" => Some(AckPolicy::Memory),
        None if text == "fsync" => Some(AckPolicy::Fsync),
        Some(("replicas", number)) => {
            number.parse().ok().filter(|number| *number > 0).map(AckPolicy::Replicas)
        }
        _ => None,
    }
}

const NAMESPACE_EXPECTED: &str = "1 to 64 letters, digits, _ or -";

/// Longest namespace, in bytes.
const NAMESPACE_MAX: usize = 64;

/// The namespace if none is set.
const NAMESPACE_DEFAULT: &str = "onceward";

fn namespace(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    ((1..=NAMESPACE_MAX).contains(&text.len()) && text.bytes().all(plain)).then(|| text.to_owned())
}

/// Splits `namespace=` off a url. The rest of the query stays.
fn without_namespace(text: &str) -> Result<(String, Option<String>), String> {
    let Some((server, query)) = text.split_once('?') else { return Ok((text.to_owned(), None)) };
    let (mut rest, mut named) = (Vec::new(), None);
    for part in query.split('&') {
        match part.strip_prefix("namespace=") {
            None => rest.push(part),
            Some(_) if named.is_some() => return Err("expected one namespace".to_owned()),
            Some(name) => {
                named = Some(
                    namespace(name)
                        .ok_or(format!("expected {NAMESPACE_EXPECTED} behind namespace="))?,
                )
            }
        }
    }
    let mark = if rest.is_empty() { "" } else { "?" };
    Ok((format!("{server}{mark}{}", rest.join("&")), named))
}

/// A store's url. `Display` and `Debug` mask a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `memory:`, which is lost when the process ends.
    Memory,
    /// `file:DIR`, embedded.
    File(PathBuf),
    /// `redis://`, `rediss://` or `unix:///path`.
    Redis {
        /// The url for the client library.
        url: Secret,
        /// Whether the scheme is `rediss`.
        tls: bool,
        /// Whether it is a unix socket.
        unix: bool,
    },
    /// `redis+cluster://`, some nodes of a cluster. The other nodes are discovered.
    Cluster {
        /// The url as written.
        url: Secret,
        /// One url per node.
        nodes: Vec<Secret>,
        /// Whether the scheme is `rediss+cluster`.
        tls: bool,
    },
    /// `redis+sentinel://`: a primary that sentinels monitor.
    Sentinel {
        /// The url as written.
        url: Secret,
        /// One url per sentinel.
        sentinels: Vec<Secret>,
        /// Credentials and database for the primary. Host and port are ignored.
        primary: Secret,
        /// The sentinels' name for the primary.
        name: String,
        /// Whether the scheme is `rediss+sentinel`.
        tls: bool,
    },
}

const URL_EXPECTED: &str = "a store's url: memory:, file:DIR, redis://HOST:PORT, \
                            rediss://HOST:PORT, unix:///PATH, redis+cluster://HOST:PORT,HOST:PORT \
                            or redis+sentinel://HOST:PORT,HOST:PORT/NAME, for Redis optionally \
                            followed by ?namespace=NAME";

/// Default port of sentinels.
const SENTINEL_PORT: u16 = 26379;

/// The text of the fault of a Redis url in a build without the feature `redis`.
pub const WITHOUT_REDIS: &str =
    "this build has no Redis: use memory: or file:DIR, or build with the feature `redis`";

impl StoreUrl {
    /// Parses a store's url.
    ///
    /// # Errors
    /// A description of the fault, without the text itself.
    pub fn parse(text: &str) -> Result<StoreUrl, String> {
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            "memory" if text == "memory:" => Ok(StoreUrl::Memory),
            "file" => {
                let dir = &text["file:".len()..];
                let dir = dir.strip_prefix("//").unwrap_or(dir);
                file_name(dir)
                    .map(StoreUrl::File)
                    .ok_or_else(|| "expected a directory after file:".to_owned())
            }
            "redis" | "rediss" | "unix" | "redis+cluster" | "rediss+cluster" | "redis+sentinel"
            | "rediss+sentinel"
                if cfg!(not(feature = "redis")) =>
            {
                Err(WITHOUT_REDIS.to_owned())
            }
            "redis" | "rediss" | "unix" => StoreUrl::redis(scheme, text),
            "redis+cluster" | "rediss+cluster" => StoreUrl::cluster(scheme, text),
            "redis+sentinel" | "rediss+sentinel" => StoreUrl::sentinel(scheme, text),
            _ => Err(format!("expected {URL_EXPECTED}")),
        }
    }

    /// Parses a store's url. A url of Redis may contain the namespace of its keys
    /// (`?namespace=NAME`).
    ///
    /// # Errors
    /// A description of the fault, without the text itself.
    pub fn with_namespace(text: &str) -> Result<(StoreUrl, Option<String>), String> {
        // A directory may contain any character, also `?`.
        if text.starts_with("file:") {
            return Ok((StoreUrl::parse(text)?, None));
        }
        let (text, namespace) = without_namespace(text)?;
        Ok((StoreUrl::parse(&text)?, namespace))
    }

    /// Returns whether records are stored in Redis.
    fn is_redis(&self) -> bool {
        !matches!(self, StoreUrl::Memory | StoreUrl::File(_))
    }

    fn cluster(scheme: &str, text: &str) -> Result<StoreUrl, String> {
        let why = || format!("expected nodes, as in {scheme}://:PASSWORD@HOST:PORT,HOST:PORT");
        let Parts { plain, user, hosts, path, query } = Parts::of(text).ok_or_else(why)?;
        if !path.is_empty() || query.is_some() {
            return Err("a cluster has one database: nothing may follow its nodes".to_owned());
        }
        let nodes = hosts
            .split(',')
            .map(|host| node(plain, user, host, None, ""))
            .collect::<Option<_>>()
            .ok_or_else(why)?;
        Ok(StoreUrl::Cluster { url: Secret::new(text), nodes, tls: plain == "rediss" })
    }

    fn sentinel(scheme: &str, text: &str) -> Result<StoreUrl, String> {
        let why = || {
            format!(
                "expected sentinels and their name for the primary, as in \
                 {scheme}://:PASSWORD@HOST:PORT,HOST:PORT/NAME"
            )
        };
        let Parts { plain, user, hosts, path, query } = Parts::of(text).ok_or_else(why)?;
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err(why());
        }
        let database = if database.is_empty() { String::new() } else { format!("/{database}") };
        let own = match query.map(|query| query.split_once('=')) {
            None => String::new(),
            Some(Some(("sentinel_password", password))) => format!(":{password}@"),
            Some(_) => return Err(
                "after the name only ?sentinel_password=PASSWORD and namespace=NAME are allowed"
                    .to_owned(),
            ),
        };
        let sentinel = |host| node(plain, &own, host, Some(SENTINEL_PORT), "");
        let sentinels = hosts.split(',').map(sentinel).collect::<Option<_>>().ok_or_else(why)?;
        let primary = node(plain, user, "primary", None, &database).ok_or_else(why)?;
        Ok(StoreUrl::Sentinel {
            url: Secret::new(text),
            sentinels,
            primary,
            name: name.to_owned(),
            tls: plain == "rediss",
        })
    }

    /// Returns whether connections use TLS.
    fn is_tls(&self) -> bool {
        match self {
            StoreUrl::Memory | StoreUrl::File(_) => false,
            StoreUrl::Redis { tls, .. }
            | StoreUrl::Cluster { tls, .. }
            | StoreUrl::Sentinel { tls, .. } => *tls,
        }
    }

    /// Parses a Redis url with the client library, so that the library can use each accepted url
    /// later.
    fn redis(scheme: &str, text: &str) -> Result<StoreUrl, String> {
        let example = match scheme {
            "unix" => "unix:///run/redis.sock",
            _ => "redis://:PASSWORD@HOST:PORT/DB",
        };
        let why = || format!("not a valid Redis url; expected one such as {example}");
        if has_certificate_checks(text).ok_or_else(why)? {
            return Ok(StoreUrl::Redis {
                url: Secret::new(text),
                tls: scheme == "rediss",
                unix: scheme == "unix",
            });
        }
        Err("#insecure is not supported: set ca_file to the server's certificate authority"
            .to_owned())
    }
}

/// The parts of a url with several hosts.
struct Parts<'a> {
    /// `redis` or `rediss`.
    plain: &'a str,
    /// The user part, with its `@`.
    user: &'a str,
    hosts: &'a str,
    /// The path, without its slash.
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Option<Parts<'a>> {
        let (scheme, rest) = text.split_once("://")?;
        let (rest, query) =
            rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (user, rest) = rest.split_at(rest.rfind('@').map_or(0, |at| at + 1));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Parts { plain: scheme.split('+').next()?, user, hosts, path, query })
    }
}

/// Returns whether a connection to this url checks certificates if it uses TLS. Returns `None` if
/// the client library can't parse the url.
#[cfg(feature = "redis")]
fn has_certificate_checks(url: &str) -> Option<bool> {
    use redis::{ConnectionAddr, IntoConnectionInfo};
    let info = url.into_connection_info().ok()?;
    Some(!matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }))
}

/// Returns `None`, because this build has no client library.
#[cfg(not(feature = "redis"))]
fn has_certificate_checks(_: &str) -> Option<bool> {
    None
}

/// Builds the url of one server. Returns `None` if the client library can't parse it.
fn node(plain: &str, user: &str, host: &str, port: Option<u16>, path: &str) -> Option<Secret> {
    let port = port
        .filter(|_| host.ends_with(']') || !host.contains(':'))
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    let url = format!("{plain}://{user}{host}{port}{path}");
    let sound = !host.is_empty()
        && !host.contains(char::is_whitespace)
        && has_certificate_checks(&url).is_some();
    sound.then(|| Secret::new(url))
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Memory => f.write_str("memory:"),
            StoreUrl::File(dir) => write!(f, "file:{}", dir.display()),
            StoreUrl::Redis { url, .. }
            | StoreUrl::Cluster { url, .. }
            | StoreUrl::Sentinel { url, .. } => f.write_str(&masked_url(url.expose())),
        }
    }
}

/// Names of the [`OnFailure`] values.
pub(super) const ON_FAILURE: [(&str, OnFailure); 2] =
    [("fail_closed", OnFailure::FailClosed), ("fail_open", OnFailure::FailOpen)];

/// Warning for `fail_open`, wherever it is set.
pub(super) const FAIL_OPEN_WARNING: &str =
    "without the store, requests are forwarded unprotected and may run twice";

impl StoreConfig {
    /// Returns the url with a masked password. Adds the namespace if it isn't the default.
    pub fn location(&self) -> String {
        match self.namespace.as_str() {
            name if name != NAMESPACE_DEFAULT && self.url.is_redis() => {
                format!("{} (namespace {name})", self.url)
            }
            _ => self.url.to_string(),
        }
    }

    /// Reads `[store]`. `flag` is the url from the command line or the environment.
    pub(super) fn read(table: Table<'_>, flag: Option<&str>) -> Option<StoreConfig> {
        let in_file = table
            .get("url")
            .and_then(|value| value.checked(URL_EXPECTED, StoreUrl::with_namespace));
        let url = match flag {
            None => in_file,
            Some(text) => {
                let flag = SourceSpan::flag("--store (ONCEWARD_STORE)");
                StoreUrl::with_namespace(text).map_err(|why| table.report.note(&flag, why)).ok()
            }
        };
        let (url, url_namespace) =
            url.map_or((None, None), |(url, namespace)| (Some(url), namespace));
        let namespace =
            table.get("namespace").and_then(|value| value.parsed(NAMESPACE_EXPECTED, namespace));
        let namespace = url_namespace.or(namespace);
        let on_failure = table.get("on_failure").and_then(|value| value.choice(&ON_FAILURE, &[]));
        let timeout = table.get("timeout").and_then(|value| value.duration());
        let ca_file = table.get("ca_file").map(|value| value.parsed("a file's name", file_name));
        let ack = table
            .get("ack")
            .map_or(Some(AckPolicy::Memory), |value| value.parsed(ACK_EXPECTED, ack));
        let durability = table
            .get("durability")
            .map_or(Some(Durability::Warn), |value| value.choice(&DURABILITY, &[]));
        let local_cache =
            table.get("local_cache").map_or(Some(0), |value| usize::try_from(value.size(0)?).ok());
        let format = StoreFormat::read(&table);

        warn_of_unused(&table, url.as_ref(), ack, namespace.as_deref(), local_cache);
        if on_failure == Some(OnFailure::FailOpen) {
            table.report.warn(&table.path_of("on_failure"), FAIL_OPEN_WARNING);
        }
        if ca_file.is_some() && url.as_ref().is_some_and(|url| !url.is_tls()) {
            table.report.warn(&table.path_of("ca_file"), "not used: the url is not rediss://");
        }
        let plain = url.as_ref().is_some_and(|url| !url.is_tls());
        let client =
            tls::read_client(&table, plain.then_some("not used: the url is not rediss://"));
        table.finish();
        Some(StoreConfig {
            url: url?,
            namespace: namespace?,
            on_failure: on_failure?,
            timeout: timeout?,
            ack: ack?,
            durability: durability?,
            local_cache: local_cache?,
            format: format?,
            ca_file: ca_file.map_or(Some(None), |file| file.map(Some))?,
            client: client?,
        })
    }
}

/// Warns about settings that have no effect in a store of this kind.
fn warn_of_unused(
    table: &Table<'_>,
    url: Option<&StoreUrl>,
    ack: Option<AckPolicy>,
    namespace: Option<&str>,
    local_cache: Option<usize>,
) {
    if matches!(url, Some(StoreUrl::Memory)) {
        table.report.warn(
            &table.path_of("url"),
            "memory: loses all operations when the process ends; for tests only",
        );
    }
    if ack.is_some_and(|ack| ack != AckPolicy::Memory)
        && matches!(url, Some(StoreUrl::Memory | StoreUrl::File(_)))
    {
        table.report.warn(
            &table.path_of("ack"),
            "not used: only for Redis; file: always waits for the disk",
        );
    }
    let other_name = namespace.is_some_and(|namespace| namespace != NAMESPACE_DEFAULT);
    if other_name && url.is_some_and(|url| !url.is_redis()) {
        table.report.warn(
            &table.path_of("namespace"),
            "not used: only for Redis; memory: and file: have no other writers",
        );
    }
    match (local_cache, url) {
        (Some(0) | None, _) => {}
        (_, Some(StoreUrl::Memory | StoreUrl::File(_))) => {
            table.report.warn(
                &table.path_of("local_cache"),
                "not used: only for Redis; memory: and file: are already in the process",
            );
        }
        (_, Some(StoreUrl::Cluster { .. })) => {
            table.report.note(&table.span_of("local_cache"), LOCAL_CACHE_EXPECTED);
        }
        (_, Some(StoreUrl::Redis { .. } | StoreUrl::Sentinel { .. }) | None) => {}
    }
}
