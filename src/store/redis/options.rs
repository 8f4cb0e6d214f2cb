//! The options of a store in Redis, such as its servers and the confirmation that calls wait for.
//! Also the errors of invalid options.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::telemetry::BreakerMeter;
use crate::tls::{ClientFiles, IdentityError, TrustError};

/// The servers of a store.
///
/// URLs are `redis://`, `rediss://` or `unix:///path`. User, password and database are written as
/// redis-rs reads them: `redis://user:password@host:port/db`, `unix:///path?user=..&pass=..&db=..`.
#[derive(Clone)]
pub enum Endpoint {
    /// One server.
    Server(String),
    /// A cluster. The store asks these nodes first. It logs in to every node with the login of the
    /// first URL.
    Cluster(Vec<String>),
    /// The primary that sentinels monitor under a name.
    Sentinel {
        /// The sentinels, with their own user and password.
        sentinels: Vec<String>,
        /// User, password, database and TLS of the primary; its host and port are ignored.
        primary: String,
        /// The sentinels' name of the primary.
        name: String,
    },
}

/// The confirmation that a call waits for before its answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisAck {
    /// The primary's memory.
    Memory,
    /// This many replicas. A `WAIT` follows every call that claims, completes or reads a record, on
    /// the same connection. Reads wait too: otherwise a replay could return a record that a
    /// failover loses.
    Replicas(u32),
    /// The server's disk. Servers since 7.2 get a `WAITAOF` in the same places. Older servers
    /// answer after the disk write if `appendfsync always` is set, which
    /// [`super::Redis::preflight`] checks.
    Fsync,
}

/// Optional parts of a store. [`super::Redis::preflight`] checks that the server's user has the
/// rights for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The event log.
    pub event_log: bool,
    /// Records kept in the process (`local_cache`).
    pub local_cache: bool,
    /// Events for sinks.
    pub outbox: bool,
}

/// How a store connects to its servers and calls them.
#[derive(Clone)]
pub struct RedisOptions {
    /// The servers.
    pub endpoint: Endpoint,
    /// Longest time of a call, including the wait for a connection.
    pub timeout: Duration,
    /// Certificates in PEM that `rediss://` trusts instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate for servers of `rediss://`.
    pub client: Option<ClientFiles>,
    /// The confirmation that calls wait for.
    pub ack: RedisAck,
    /// How long the store refuses unknown operations after the servers may have lost records. Use
    /// [`super::LOSS_PAUSE`] where no operation may run twice. With zero, the store refuses
    /// nothing. In every case, the store writes the recent writes of this process again.
    pub loss_pause: Duration,
    /// Metrics of the circuit breakers.
    pub breakers: BreakerMeter,
    /// The prefix of all keys and channels: 1 to 64 letters, digits, `_` or `-`. Stores with
    /// different namespaces share nothing.
    pub namespace: String,
    /// The optional parts that are in use.
    pub features: Features,
}

impl fmt::Debug for RedisOptions {
    /// Leaves out the URLs, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("timeout", &self.timeout)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

/// The options are invalid. The texts never contain the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The URL is not the URL of a Redis server.
    #[error(
        "the store's URL is not of the form redis://[user:password@]host[:port][/db], \
         rediss://.. or unix:///path"
    )]
    Url,
    /// The namespace is invalid.
    #[error("a namespace has 1 to 64 letters, digits, _ or -")]
    Namespace,
    /// The file can't be read.
    #[error("can't read the store's ca_file {}: {kind}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The error of the read.
        kind: std::io::ErrorKind,
    },
    /// The client certificate can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS has no certificates to trust.
    #[error("TLS to the store can't be set up: {0}")]
    Trust(#[from] TrustError),
    /// The file has no certificates, or the URL is not a `rediss://` one.
    #[error(
        "the store's ca_file {} must have certificates in PEM, and belongs to a rediss:// URL",
        .path.display()
    )]
    Certificates {
        /// The file.
        path: PathBuf,
    },
}
