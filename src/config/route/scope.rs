//! `scope`: the part of a request that separates the keys of clients.

use std::path::PathBuf;
use std::sync::Arc;

use http::Uri;
use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery};

use super::RouteContext;
use super::identity::{read_cookie, read_header, read_headers};
use crate::config::read::{Table, Value};
use crate::config::texts::file_name;
use crate::config::upstream::UpstreamUrl;
use crate::engine::{ScopeRule, TokenRule};

const SCOPE_EXPECTED: &str = "a table such as { header = \"X-Api-Key\" }";
const JWT_EXPECTED: &str = "a table such as { jwks = \"https://id.example.com/jwks.json\" }";
const JWKS_EXPECTED: &str = "a file's name, or a url such as \"https://id.example.com/jwks.json\"";

/// Source of the keys that verify tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// A file.
    File(PathBuf),
    /// A server.
    Server {
        /// Scheme, host and port.
        url: UpstreamUrl,
        /// Path and query.
        path: PathAndQuery,
        /// Certificates to trust instead of the system's, a PEM file.
        ca_file: Option<PathBuf>,
    },
}

/// Reads `scope`. For a token, also reads the source of the keys that verify it.
pub(super) fn read(
    route: &Table<'_>,
    context: &RouteContext<'_>,
) -> Option<(ScopeRule, Option<JwksSource>)> {
    let Some(value) = route.get("scope") else { return Some((ScopeRule::Shared, None)) };
    let table = value.table(SCOPE_EXPECTED)?;
    let scope = match table.get_together(["header", "headers", "cookie", "jwt", "client_cert"]) {
        [Some(header), None, None, None, None] => {
            read_header(&header).map(|name| (ScopeRule::Headers(vec![name]), None))
        }
        [None, Some(headers), None, None, None] => {
            read_headers(&headers).map(|names| (ScopeRule::Headers(names), None))
        }
        [None, None, Some(cookie), None, None] => {
            read_cookie(&cookie).map(|name| (ScopeRule::Cookie(name), None))
        }
        [None, None, None, Some(jwt), None] => {
            jwt.table(JWT_EXPECTED).and_then(|table| read_jwt(table, &jwt))
        }
        [None, None, None, None, Some(part)] => {
            read_client_cert(&part, context).map(|rule| (rule, None))
        }
        [None, None, None, None, None] => {
            value.fault(format!("expected {SCOPE_EXPECTED}"));
            None
        }
        [_, headers, cookie, jwt, client_cert] => {
            if let Some(second) = client_cert.or(jwt).or(cookie).or(headers) {
                second.fault(
                    "a scope has exactly one of header, headers, cookie, jwt and client_cert",
                );
            }
            None
        }
    };
    table.finish();
    scope
}

fn read_client_cert(part: &Value<'_>, context: &RouteContext<'_>) -> Option<ScopeRule> {
    part.choice(&[("subject", ())], &[])?;
    if context.client_ca == Some(false) {
        part.fault("clients show certificates only if client_ca is set under [tls]");
        return None;
    }
    Some(ScopeRule::ClientCertificate)
}

fn read_jwt(table: Table<'_>, whole: &Value<'_>) -> Option<(ScopeRule, Option<JwksSource>)> {
    let header = table.get("header").map_or(Some(AUTHORIZATION), |value| read_header(&value));
    let text = |name, expected| {
        let word = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        table.get(name).map_or(Some(None), |value| value.parsed(expected, word).map(Some))
    };
    let claim = text("claim", "a claim's name such as \"sub\"");
    let issuer = text("issuer", "the issuer as tokens name it");
    let audience = text("audience", "an audience as tokens name it");
    let ca_file =
        table.get("ca_file").map(|value| (value.parsed("a file's name", file_name), value));
    let keys = match table.get("jwks") {
        Some(value) => value.checked(JWKS_EXPECTED, jwks_source).map(|keys| (keys, value)),
        None => {
            whole.fault(format!("needs jwks, the keys that verify tokens: {JWKS_EXPECTED}"));
            None
        }
    };
    if let Some((JwksSource::Server { url, .. }, value)) = &keys
        && !url.tls
        && !is_loopback(&url.authority)
    {
        table.report.warn(
            &value.span.path,
            "without TLS, an attacker on the network can replace the keys and forge any token",
        );
    }
    let keys = keys.map(|(keys, _)| keys);
    let keys = match (keys, ca_file) {
        (Some(JwksSource::Server { url, path, .. }), Some((file, value))) => {
            if !url.tls {
                table.report.warn(&value.span.path, "not used: the url is not https");
            }
            file.map(|file| JwksSource::Server { url, path, ca_file: Some(file) })
        }
        (keys, Some((_, value))) => {
            if keys.is_some() {
                value.fault("not used: jwks is a file, not a server");
            }
            None
        }
        (keys, None) => keys,
    };
    table.finish();
    let rule = TokenRule {
        header: header?,
        claim: claim?.unwrap_or_else(|| "sub".to_owned()),
        issuer: issuer?,
        audience: audience?,
    };
    Some((ScopeRule::Token(Arc::new(rule)), Some(keys?)))
}

/// Parses a file's name or a url.
fn jwks_source(text: &str) -> Result<JwksSource, String> {
    let expected = || format!("expected {JWKS_EXPECTED}");
    if !text.contains("://") {
        return file_name(text).map(JwksSource::File).ok_or_else(expected);
    }
    let uri: Uri = text.parse().map_err(|_| expected())?;
    let path = uri.path_and_query().cloned().ok_or_else(expected)?;
    if text.contains('#') {
        return Err(expected());
    }
    let server = text.strip_suffix(path.as_str()).unwrap_or(text);
    let url =
        UpstreamUrl::parse(server).map_err(|_| format!("{}, without credentials", expected()))?;
    Ok(JwksSource::Server { url, path, ca_file: None })
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
