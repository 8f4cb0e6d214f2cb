//! An upstream: the API behind the gateway, and how to talk to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;

/// The name of `[upstream]`, in messages and metrics.
pub const DEFAULT_UPSTREAM: &str = "default";

/// One upstream.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// `default`, or NAME of `[upstreams.NAME]`.
    pub name: String,
    /// Where it is.
    pub url: UpstreamUrl,
    /// How long connecting may take, TLS included.
    pub connect_timeout: Duration,
    /// From sending to the end of the response; of unprotected requests it bounds silence only.
    pub response_timeout: Duration,
    /// How long a pooled connection stays open unused.
    pub idle_timeout: Duration,
    /// Which `Host` the upstream sees.
    pub host: HostHeader,
    /// Certificates to trust instead of the system's, a PEM file.
    pub ca_file: Option<PathBuf>,
}

/// Which `Host` an upstream sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostHeader {
    /// The one of the upstream's url.
    Upstream,
    /// The client's.
    Preserve,
}

/// Scheme and authority of an upstream. It has no path and no credentials: paths are forwarded as received, and a
/// fingerprint must mean the same path on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// Whether it is `https`.
    pub tls: bool,
    /// Host and port, as configured.
    pub authority: Authority,
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}
