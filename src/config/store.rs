//! `[store]`: where records are kept.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::read::{Place, Table};
use super::secret::{Secret, masked_url};
use super::tls;
use super::upstream::file_name;
use crate::engine::OnFailure;
use crate::tls::ClientFiles;

/// Where records are kept, and what happens when that place can't be reached.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The place.
    pub url: StoreUrl,
    /// What the names of all keys and channels in Redis begin with. Another namespace is another store.
    pub namespace: String,
    /// What routes do without it, unless they say otherwise. Already part of every route's policy.
    pub on_failure: OnFailure,
    /// How long one command may take.
    pub timeout: Duration,
    /// Certificates to trust instead of the system's for `rediss://`, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// The certificate that the gateway shows to `rediss://`; `None`: none.
    pub client: Option<ClientFiles>,
    /// What claims and completions wait for.
    pub ack: Ack,
    /// Whether servers that can lose what they acknowledge are refused.
    pub durability: Durability,
    /// Room for completed records in the process, in bytes; 0: none are kept.
    pub local_cache: usize,
    /// Which versions read what is written.
    pub format: StoreFormat,
}

/// What may be written to the store. All formats are read, whichever is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFormat {
    /// What version 0.1.0 reads.
    One,
    /// Also what only later versions read.
    Two,
}

impl StoreFormat {
    /// Whether records may have trailers.
    pub fn has_trailers(self) -> bool {
        self == StoreFormat::Two
    }
}

/// What claims and completions wait for, on Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The primary's memory.
    Memory,
    /// So many replicas.
    Replicas(u32),
    /// The disk.
    Fsync,
}

/// What is done about a server that can lose what it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is said in the log.
    Warn,
    /// The gateway doesn't start.
    Strict,
}

const DURABILITY: [(&str, Durability); 2] =
    [("warn", Durability::Warn), ("strict", Durability::Strict)];
const ACK_EXPECTED: &str = "\"memory\", \"replicas:N\" or \"fsync\"";

const LOCAL_CACHE_EXPECTED: &str =
    "it works with one server or with sentinels, not with a cluster; expected \"0B\"";

fn ack(text: &str) -> Option<Ack> {
    match text.split_once(':') {
        None if text == "memory" => Some(Ack::Memory),
        None if text == "fsync" => Some(Ack::Fsync),
        Some(("replicas", number)) => {
            number.parse().ok().filter(|number| *number > 0).map(Ack::Replicas)
        }
        _ => None,
    }
}

const NAMESPACE_EXPECTED: &str = "1 to 64 letters, digits, _ or -";

/// Longest namespace, in bytes.
const NAMESPACE_MAX: usize = 64;

/// The namespace that is used where none is named.
const NAMESPACE_DEFAULT: &str = "onceward";

fn namespace(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    ((1..=NAMESPACE_MAX).contains(&text.len()) && text.bytes().all(plain)).then(|| text.to_owned())
}

/// A url without its `namespace=`, and the namespace. The rest of the query stays.
fn without_namespace(text: &str) -> Result<(String, Option<String>), String> {
    let Some((place, query)) = text.split_once('?') else { return Ok((text.to_owned(), None)) };
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
    Ok((format!("{place}{mark}{}", rest.join("&")), named))
}

/// A store's url. `Display` and `Debug` mask a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `memory:`, lost on exit.
    Memory,
    /// `file:DIR`, embedded.
    File(PathBuf),
    /// `redis://`, `rediss://` or `unix:///path`.
    Redis {
        /// As the client takes it.
        url: Secret,
        /// Whether it is `rediss`.
        tls: bool,
        /// Whether it is a unix socket.
        unix: bool,
    },
    /// `redis+cluster://`: the nodes of a cluster that are asked first.
    Cluster {
        /// As written.
        url: Secret,
        /// One url for each node.
        nodes: Vec<Secret>,
        /// Whether it is `rediss+cluster`.
        tls: bool,
    },
    /// `redis+sentinel://`: the primary that sentinels know by a name.
    Sentinel {
        /// As written.
        url: Secret,
        /// One url for each sentinel.
        sentinels: Vec<Secret>,
        /// How the primary is greeted; host and port mean nothing.
        primary: Secret,
        /// What the sentinels call it.
        name: String,
        /// Whether it is `rediss+sentinel`.
        tls: bool,
    },
}

const URL_EXPECTED: &str = "a store's url: memory:, file:DIR, redis://HOST:PORT, rediss://HOST:PORT, unix:///PATH, \
     redis+cluster://HOST:PORT,HOST:PORT or redis+sentinel://HOST:PORT,HOST:PORT/NAME, in Redis with ?namespace=NAME behind it";

/// Where sentinels listen if nothing else is said.
const SENTINEL_PORT: u16 = 26379;

impl StoreUrl {
    /// Parses a store's url.
    ///
    /// # Errors
    /// What is wrong, without the text itself.
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
            "redis" | "rediss" | "unix" => StoreUrl::redis(scheme, text),
            "redis+cluster" | "rediss+cluster" => StoreUrl::cluster(scheme, text),
            "redis+sentinel" | "rediss+sentinel" => StoreUrl::sentinel(scheme, text),
            _ => Err(format!("expected {URL_EXPECTED}")),
        }
    }

    /// Parses a store's url that may name the namespace of its keys (`?namespace=NAME`, in Redis alone).
    ///
    /// # Errors
    /// What is wrong, without the text itself.
    pub fn with_namespace(text: &str) -> Result<(StoreUrl, Option<String>), String> {
        // A directory may have any name.
        if text.starts_with("file:") {
            return Ok((StoreUrl::parse(text)?, None));
        }
        let (text, namespace) = without_namespace(text)?;
        Ok((StoreUrl::parse(&text)?, namespace))
    }

    /// Whether records lie in Redis.
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
                "expected sentinels and what they call the primary, as in {scheme}://:PASSWORD@HOST:PORT,HOST:PORT/NAME"
            )
        };
        let Parts { plain, user, hosts, path, query } = Parts::of(text).ok_or_else(why)?;
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err(why());
        }
        let database = if database.is_empty() { String::new() } else { format!("/{database}") };
        let own =
            match query.map(|query| query.split_once('=')) {
                None => String::new(),
                Some(Some(("sentinel_password", password))) => format!(":{password}@"),
                Some(_) => return Err(
                    "after the name only ?sentinel_password=PASSWORD and namespace=NAME are known"
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

    /// Whether it is spoken to by TLS.
    fn is_tls(&self) -> bool {
        match self {
            StoreUrl::Memory | StoreUrl::File(_) => false,
            StoreUrl::Redis { tls, .. }
            | StoreUrl::Cluster { tls, .. }
            | StoreUrl::Sentinel { tls, .. } => *tls,
        }
    }

    /// Asks the client itself, so that what passes here connects later.
    fn redis(scheme: &str, text: &str) -> Result<StoreUrl, String> {
        use redis::{ConnectionAddr, IntoConnectionInfo};
        let example = match scheme {
            "unix" => "unix:///run/redis.sock",
            _ => "redis://:PASSWORD@HOST:PORT/DB",
        };
        let why =
            || format!("not a url that a Redis client understands; expected one such as {example}");
        let info = text.into_connection_info().map_err(|_| why())?;
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => Err(
                "#insecure is not supported: name the server's certificate authority as ca_file"
                    .to_owned(),
            ),
            _ => Ok(StoreUrl::Redis {
                url: Secret::new(text),
                tls: scheme == "rediss",
                unix: scheme == "unix",
            }),
        }
    }
}

/// A url with several hosts, taken apart.
struct Parts<'a> {
    /// `redis` or `rediss`.
    plain: &'a str,
    /// With its `@`.
    user: &'a str,
    hosts: &'a str,
    /// Without its slash.
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

/// The url of one server, if the client understands it.
fn node(plain: &str, user: &str, host: &str, port: Option<u16>, path: &str) -> Option<Secret> {
    use redis::IntoConnectionInfo;
    let port = port
        .filter(|_| host.ends_with(']') || !host.contains(':'))
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    let url = format!("{plain}://{user}{host}{port}{path}");
    let sound = !host.is_empty()
        && !host.contains(char::is_whitespace)
        && url.as_str().into_connection_info().is_ok();
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

/// The words for [`OnFailure`].
pub(super) const ON_FAILURE: [(&str, OnFailure); 2] =
    [("fail_closed", OnFailure::FailClosed), ("fail_open", OnFailure::FailOpen)];

/// What `fail_open` means, wherever it is set.
pub(super) const FAIL_OPEN_WARNING: &str =
    "without the store, requests are forwarded unprotected and may run twice";

impl StoreConfig {
    /// The url, with the namespace where that is another than usual. Masks a password.
    pub fn place(&self) -> String {
        match self.namespace.as_str() {
            name if name != NAMESPACE_DEFAULT && self.url.is_redis() => {
                format!("{} (namespace {name})", self.url)
            }
            _ => self.url.to_string(),
        }
    }

    /// Reads `[store]`; `flag` is the url that was given besides the file.
    pub(super) fn read(table: Table<'_>, flag: Option<&str>) -> Option<StoreConfig> {
        let in_file = table
            .get("url")
            .and_then(|value| value.checked(URL_EXPECTED, StoreUrl::with_namespace));
        let url = match flag {
            None => in_file,
            Some(text) => {
                let flag = Place::flag("--store (ONCEWARD_STORE)");
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
        let ack =
            table.get("ack").map_or(Some(Ack::Memory), |value| value.parsed(ACK_EXPECTED, ack));
        let durability = table
            .get("durability")
            .map_or(Some(Durability::Warn), |value| value.choice(&DURABILITY, &[]));
        let local_cache =
            table.get("local_cache").map_or(Some(0), |value| usize::try_from(value.size(0)?).ok());
        let format = table.get("format").map_or(Some(StoreFormat::One), |value| {
            match value.number(1, 2)? {
                1 => Some(StoreFormat::One),
                _ => Some(StoreFormat::Two),
            }
        });

        if url == Some(StoreUrl::Memory) {
            table.report.warn(
                &table.path_of("url"),
                "memory: forgets every operation when the process ends; for tests only",
            );
        }
        if ack.is_some_and(|ack| ack != Ack::Memory)
            && matches!(url, Some(StoreUrl::Memory | StoreUrl::File(_)))
        {
            table.report.warn(
                &table.path_of("ack"),
                "not used: it is for Redis; file: answers after the disk has it",
            );
        }
        let other_name = namespace.as_ref().is_some_and(|namespace| namespace != NAMESPACE_DEFAULT);
        if other_name && url.as_ref().is_some_and(|url| !url.is_redis()) {
            table.report.warn(
                &table.path_of("namespace"),
                "not used: it is for Redis; memory: and file: are nobody else's",
            );
        }
        match (local_cache, &url) {
            (Some(0) | None, _) => {}
            (_, Some(StoreUrl::Memory | StoreUrl::File(_))) => {
                table.report.warn(
                    &table.path_of("local_cache"),
                    "not used: it is for Redis; memory: and file: are in the process",
                );
            }
            (_, Some(StoreUrl::Cluster { .. })) => {
                table.report.note(&table.place_of("local_cache"), LOCAL_CACHE_EXPECTED);
            }
            (_, Some(StoreUrl::Redis { .. } | StoreUrl::Sentinel { .. }) | None) => {}
        }
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
