//! An upstream: the API behind the gateway, and the connections to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;

use super::read::{SourceSpan, Table};
use super::texts::file_name;
use super::tls;
use crate::tls::ClientFiles;

/// The name of `[upstream]`, in messages and metrics.
pub const DEFAULT_UPSTREAM: &str = "default";

/// Settings of one upstream.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// `default`, or NAME of `[upstreams.NAME]`.
    pub name: String,
    /// Scheme, host and port.
    pub url: UpstreamUrl,
    /// How long connecting may take, including TLS.
    pub connect_timeout: Duration,
    /// Longest time from sending a request to the end of its response. For unprotected requests, it
    /// limits only the time without data.
    pub response_timeout: Duration,
    /// How long an unused pooled connection stays open.
    pub idle_timeout: Duration,
    /// The age from which a connection takes no further requests.
    pub max_connection_age: Duration,
    /// Use of HTTP/2.
    pub http2: Http2Mode,
    /// The `Host` that the upstream receives.
    pub host: HostHeader,
    /// Certificates to trust instead of the system's, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// The client certificate; `None`: no certificate.
    pub client: Option<ClientFiles>,
    /// Whether `Location` and `Content-Location` with the upstream's address are rewritten to the
    /// client's address.
    pub rewrite_location: bool,
}

/// Use of HTTP/2 towards an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2Mode {
    /// If TLS negotiates it.
    Negotiate,
    /// Always, without TLS.
    PriorKnowledge,
}

/// The `Host` that an upstream receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostHeader {
    /// The host of the upstream's url.
    Upstream,
    /// The client's `Host`.
    Preserve,
}

/// Scheme and authority of an upstream. The url has no credentials. It has no path, because paths
/// are forwarded as received, and a fingerprint must mean the same path on both sides.
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

const URL_EXPECTED: &str = "a url such as \"http://127.0.0.1:9000\"";

impl UpstreamUrl {
    /// Parses an `http` or `https` url without path and credentials.
    ///
    /// # Errors
    /// A description of the fault, without the text itself.
    pub fn parse(text: &str) -> Result<UpstreamUrl, String> {
        let expected = || format!("expected {URL_EXPECTED}: http or https, a host and a port");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(expected()),
        };
        let authority = uri.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err("an upstream's url has no credentials: clients send their own".to_owned());
        }
        let port = authority.as_str().strip_prefix(authority.host()).ok_or_else(expected)?;
        if authority.host().is_empty()
            || !(port.is_empty() || authority.port_u16().is_some_and(|port| port > 0))
        {
            return Err(expected());
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err(
                "an upstream's url has no path: paths are forwarded as received (expected scheme, \
                 host and port only)"
                    .to_owned(),
            );
        }
        Ok(UpstreamUrl { tls, authority: authority.clone() })
    }
}

impl UpstreamConfig {
    /// Reads one upstream. `flag` is the url from the command line or the environment.
    pub(super) fn read(name: &str, table: Table<'_>, flag: Option<&str>) -> Option<UpstreamConfig> {
        let in_file = table.get("url").map(|value| value.checked(URL_EXPECTED, UpstreamUrl::parse));
        let url = match (flag, in_file) {
            (Some(text), _) => {
                let flag = SourceSpan::flag("--upstream (ONCEWARD_UPSTREAM)");
                UpstreamUrl::parse(text).map_err(|why| table.report.note(&flag, why)).ok()
            }
            (None, Some(url)) => url,
            (None, None) => {
                let help = match name {
                    DEFAULT_UPSTREAM => {
                        "no upstream: pass --upstream URL (ONCEWARD_UPSTREAM), or set url under \
                         [upstream]"
                    }
                    _ => "an upstream needs a url",
                };
                table.report.note_absence(&table.span_of("url"), help);
                None
            }
        };
        let connect_timeout = table.get("connect_timeout").and_then(|value| value.duration());
        let response_timeout = table.get("response_timeout").and_then(|value| value.duration());
        let idle_timeout = table.get("idle_timeout").and_then(|value| value.duration());
        let max_connection_age = table.get("max_connection_age").and_then(|value| value.duration());
        let http2 = table.get("http2").and_then(|value| {
            let http2 = value.choice(
                &[
                    ("negotiate", Http2Mode::Negotiate),
                    ("prior-knowledge", Http2Mode::PriorKnowledge),
                ],
                &[],
            )?;
            if http2 == Http2Mode::PriorKnowledge && url.as_ref().is_some_and(|url| url.tls) {
                value.fault(
                    "means HTTP/2 without TLS, but the url is https, where HTTP/2 is negotiated; \
                     expected \"negotiate\"",
                );
                return None;
            }
            Some(http2)
        });
        let hosts = [("upstream", HostHeader::Upstream), ("preserve", HostHeader::Preserve)];
        let host = table.get("host").and_then(|value| value.choice(&hosts, &[]));
        let ca_file = table.get("ca_file").map(|value| value.parsed("a file's name", file_name));
        if ca_file.is_some() && url.as_ref().is_some_and(|url| !url.tls) {
            table.report.warn(&table.path_of("ca_file"), "not used: the url is not https");
        }
        let plain = url.as_ref().is_some_and(|url| !url.tls);
        let client = tls::read_client(&table, plain.then_some("not used: the url is not https"));
        let rewrite_location = table.get("rewrite_location").and_then(|value| value.boolean());
        table.finish();
        Some(UpstreamConfig {
            name: name.to_owned(),
            url: url?,
            connect_timeout: connect_timeout?,
            response_timeout: response_timeout?,
            idle_timeout: idle_timeout?,
            max_connection_age: max_connection_age?,
            http2: http2?,
            host: host?,
            ca_file: ca_file.map_or(Some(None), |file| file.map(Some))?,
            client: client?,
            rewrite_location: rewrite_location?,
        })
    }
}
