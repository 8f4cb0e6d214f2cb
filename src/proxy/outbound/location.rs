//! Answers whose `Location` or `Content-Location` names the upstream's own address: the client gets the address that it used.
//!
//! Danger: an answer is stored as it is rewritten, so a replay names the address that the first client used.

use http::header::{CONTENT_LOCATION, LOCATION};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue};

use crate::proxy::fields::{FORWARDED_HOST, FORWARDED_PROTO};

/// Scheme and host as a client used them, or as a trusted proxy in front of it says.
pub(in crate::proxy) struct ClientAddress(String);

impl ClientAddress {
    /// Reads it from a request that is ready for the upstream. `None` where no host is known.
    pub fn of(headers: &HeaderMap) -> Option<ClientAddress> {
        let scheme = headers.get(FORWARDED_PROTO)?.to_str().ok()?;
        let host = headers.get(FORWARDED_HOST)?.to_str().ok()?;
        let authority: Authority = host.parse().ok()?;
        (!authority.as_str().contains('@')).then(|| ClientAddress(format!("{scheme}://{host}")))
    }
}

/// Rewrites the fields that name the upstream. Others, and all relative ones, stay as they are.
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
            let rest = behind(value.to_str().ok()?, scheme, authority)?;
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

/// The rest of a url behind scheme, host and port, where these are the given ones.
fn behind<'u>(url: &'u str, scheme: &Scheme, authority: &Authority) -> Option<&'u str> {
    let (its_scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (its_authority, rest) = rest.split_at_checked(end)?;
    let its_authority: Authority = its_authority.parse().ok()?;
    let default = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    // An empty port is the default one (RFC 3986, section 3.2.3).
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    let same = its_scheme.eq_ignore_ascii_case(scheme.as_str())
        && its_authority.host().eq_ignore_ascii_case(authority.host())
        && port(&its_authority) == port(authority)
        && !its_authority.as_str().contains('@');
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
