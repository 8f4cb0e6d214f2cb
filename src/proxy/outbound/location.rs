//! Rewrites `Location` and `Content-Location` fields that name the upstream's own address, so that
//! they name the address that the client used.
//!
//! Danger: the rewritten answer is stored, so a replay names the address that the first client
//! used.

use http::header::{CONTENT_LOCATION, LOCATION};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue};

use crate::proxy::fields::{FORWARDED_HOST, FORWARDED_PROTO};

/// Scheme and host as the client used them, or as a trusted proxy in front of the gateway reports
/// them.
pub(in crate::proxy) struct ClientAddress(String);

impl ClientAddress {
    /// Reads the address from a request that is ready for the upstream. Returns `None` if no host
    /// is known.
    pub fn of(headers: &HeaderMap) -> Option<ClientAddress> {
        let scheme = headers.get(FORWARDED_PROTO)?.to_str().ok()?;
        let host = headers.get(FORWARDED_HOST)?.to_str().ok()?;
        let authority: Authority = host.parse().ok()?;
        (!authority.as_str().contains('@')).then(|| ClientAddress(format!("{scheme}://{host}")))
    }
}

/// Rewrites the urls that name the upstream. Other urls, and all relative ones, stay unchanged.
pub(in crate::proxy) fn rewrite(
    headers: &mut HeaderMap,
    scheme: &Scheme,
    authority: &Authority,
    client: &ClientAddress,
) {
    for name in [LOCATION, CONTENT_LOCATION] {
        if !headers.contains_key(&name) {
            continue;
        }
        let rewritten = |value: &HeaderValue| {
            let rest = after_authority(value.to_str().ok()?, scheme, authority)?;
            HeaderValue::try_from(format!("{}{rest}", client.0)).ok()
        };
        let values: Vec<HeaderValue> = headers
            .get_all(&name)
            .iter()
            .map(|value| rewritten(value).unwrap_or_else(|| value.clone()))
            .collect();
        headers.remove(&name);
        for value in values {
            headers.append(&name, value);
        }
    }
}

/// Returns the part of a url after scheme, host and port. Returns `None` if these differ from the
/// given ones.
fn after_authority<'u>(url: &'u str, scheme: &Scheme, authority: &Authority) -> Option<&'u str> {
    let (url_scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (url_authority, rest) = rest.split_at_checked(end)?;
    let url_authority: Authority = url_authority.parse().ok()?;
    let default_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    // An empty port is the default one (RFC 3986, section 3.2.3).
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
    let same = url_scheme.eq_ignore_ascii_case(scheme.as_str())
        && url_authority.host().eq_ignore_ascii_case(authority.host())
        && port(&url_authority) == port(authority)
        && !url_authority.as_str().contains('@');
    same.then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_at_the_upstreams_own_address_are_rewritten() {
        let own = [("http", "api.internal:9000"), ("https", "api.internal"), ("http", "[::1]:80")];
        for (own, url, expected) in [
            (own[0], "http://api.internal:9000/v1/payments/1?a=b#c", Some("/v1/payments/1?a=b#c")),
            (own[0], "HTTP://API.Internal:9000/v1", Some("/v1")),
            (own[0], "http://api.internal:9000", Some("")),
            (own[0], "http://api.internal:9000?q", Some("?q")),
            (own[0], "https://api.internal:9000/v1", None),
            (own[0], "http://api.internal/v1", None),
            (own[0], "http://api.internal:9001/v1", None),
            (own[0], "http://api.internal:9000.evil.example/v1", None),
            (own[0], "http://u@api.internal:9000/v1", None),
            (own[0], "http://other.example:9000/v1", None),
            (own[0], "/v1/payments/1", None),
            (own[0], "//api.internal:9000/v1", None),
            (own[0], "", None),
            (own[1], "https://api.internal:443/v1", Some("/v1")),
            (own[1], "https://api.internal/v1", Some("/v1")),
            (own[1], "https://api.internal:80/v1", None),
            (own[2], "http://[::1]/v1", Some("/v1")),
        ] {
            let (scheme, authority) = (own.0.parse().unwrap(), own.1.parse().unwrap());
            let mut headers = HeaderMap::new();
            headers.append(LOCATION, url.parse().unwrap());
            headers.append(CONTENT_LOCATION, url.parse().unwrap());
            rewrite(
                &mut headers,
                &scheme,
                &authority,
                &ClientAddress("https://pay.example".to_owned()),
            );
            let expected =
                expected.map_or(url.to_owned(), |rest| format!("https://pay.example{rest}"));
            assert!(
                headers[LOCATION] == expected && headers[CONTENT_LOCATION] == expected,
                "{url}: {headers:?}"
            );
        }
    }
}
