//! An upstream: the API behind the gateway, and how to talk to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;

use super::read::{Place, Table};
use super::tls;
use crate::tls::ClientFiles;

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
    /// How old a connection may be to take another request.
    pub max_connection_age: Duration,
    /// When HTTP/2 is spoken.
    pub http2: Http2,
    /// Which `Host` the upstream sees.
    pub host: HostHeader,
    /// Certificates to trust instead of the system's, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// The certificate that the gateway shows; `None`: none.
    pub client: Option<ClientFiles>,
    /// Whether answers that name the upstream's address get the client's.
    pub rewrite_location: bool,
}

/// When HTTP/2 is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2 {
    /// Where TLS negotiates it.
    Negotiate,
    /// Always, without TLS.
    PriorKnowledge,
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

const URL_EXPECTED: &str = "a url such as \"http://127.0.0.1:9000\"";

impl UpstreamUrl {
    /// Parses an `http` or `https` url without path and credentials.
    ///
    /// # Errors
    /// What is wrong, without the text itself.
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
            return Err(
                "credentials in an upstream's url are not used: clients send their own".to_owned()
            );
        }
        let port = authority.as_str().strip_prefix(authority.host()).ok_or_else(expected)?;
        if authority.host().is_empty()
            || !(port.is_empty() || authority.port_u16().is_some_and(|port| port > 0))
        {
            return Err(expected());
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err("an upstream's url has no path: paths are forwarded as they come (expected scheme, host and port only)"
                .to_owned());
        }
        Ok(UpstreamUrl { tls, authority: authority.clone() })
    }
}

impl Upstream {
    /// Reads one; `flag` is the url that was given besides the file.
    pub(super) fn read(name: &str, table: Table<'_>, flag: Option<&str>) -> Option<Upstream> {
        let in_file = table.get("url").map(|value| value.checked(URL_EXPECTED, UpstreamUrl::parse));
        let url = match (flag, in_file) {
            (Some(text), _) => {
                let flag = Place::flag("--upstream (ONCEWARD_UPSTREAM)");
                UpstreamUrl::parse(text).map_err(|why| table.report.note(&flag, why)).ok()
            }
            (None, Some(url)) => url,
            (None, None) => {
                let help = match name {
                    DEFAULT_UPSTREAM => {
                        "no upstream: pass --upstream URL (ONCEWARD_UPSTREAM), or set url under [upstream]"
                    }
                    _ => "an upstream needs a url",
                };
                table.report.note_absence(&table.place_of("url"), help);
                None
            }
        };
        let connect_timeout = table.get("connect_timeout").and_then(|value| value.duration());
        let response_timeout = table.get("response_timeout").and_then(|value| value.duration());
        let idle_timeout = table.get("idle_timeout").and_then(|value| value.duration());
        let max_connection_age = table.get("max_connection_age").and_then(|value| value.duration());
        let http2 = table.get("http2").and_then(|value| {
            let http2 = value.choice(&[("negotiate", Http2::Negotiate), ("prior-knowledge", Http2::PriorKnowledge)], &[])?;
            if http2 == Http2::PriorKnowledge && url.as_ref().is_some_and(|url| url.tls) {
                value.fault("it is HTTP/2 without TLS, and the url is https, where HTTP/2 is negotiated; expected \"negotiate\"");
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
        Some(Upstream {
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

/// A file's name; the empty one is none.
pub(super) fn file_name(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}
