//! Fields that let pages of other origins read the gateway's own answers (the CORS protocol of the
//! Fetch standard).
//!
//! Danger: a stored answer has the fields that the upstream made for the page that sent the first
//! request. For another page these fields would be wrong, and a cache could keep them.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ETAG, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};

use crate::engine::{CrossOrigin, Origins};

/// The fields that the gateway adds to answers. Pages can read only fields that an answer names.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Idempotent-Replayed, Retry-After, X-Should-Retry, Stripe-Should-Retry, Link, \
     WWW-Authenticate, Accept-Encoding, Allow, Location, Preference-Applied, ETag",
);

/// Returns the origin of the page that sent the request; `None` if the request names no origin or
/// more than one.
pub(super) fn asking_origin(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(ORIGIN).iter();
    let origin = values.next()?;
    values.next().is_none().then(|| origin.clone())
}

/// Replaces the fields of the protocol in a refusal or a replay, so that they fit the request's
/// origin.
pub(super) fn fit(rule: &CrossOrigin, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    headers.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
    headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
    let allowed = match &rule.origins {
        Origins::Any => Some(HeaderValue::from_static("*")),
        Origins::Listed(origins) => {
            if !varies_by_origin(headers) {
                headers.append(VARY, HeaderValue::from_static("Origin"));
            }
            origin.filter(|origin| origins.contains(origin)).cloned()
        }
    };
    let Some(allowed) = allowed else {
        headers.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
        return;
    };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if rule.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    // Appended: the fields that the upstream exposes stay exposed.
    headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}

/// Lets the page read one more field, if the page may read the answer.
pub(super) fn expose(name: &HeaderName, headers: &mut HeaderMap) {
    if headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS)
        && let Ok(name) = HeaderValue::from_str(name.as_str())
    {
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, name);
    }
}

/// Lets the page read the tag of an answer, if the page may read the answer.
pub(super) fn expose_tag(headers: &mut HeaderMap) {
    if headers.contains_key(ETAG) && headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag"));
    }
}

fn varies_by_origin(headers: &HeaderMap) -> bool {
    let names =
        headers.get_all(VARY).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    names.map(<[u8]>::trim_ascii).any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(credentials: bool) -> CrossOrigin {
        CrossOrigin {
            origins: Origins::Listed(vec![HeaderValue::from_static("https://shop.example")]),
            credentials,
        }
    }

    /// Returns the fields of an answer to an origin: allowed origin, credentials, lines of exposed
    /// names, and `Vary`.
    fn fitted(
        rule: &CrossOrigin,
        origin: Option<&'static str>,
        stored: &[(&'static str, &'static str)],
    ) -> [Vec<String>; 4] {
        let field = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers: HeaderMap = HeaderMap::new();
        stored.iter().map(field).for_each(|(name, value)| {
            headers.append(name, value);
        });
        fit(rule, origin.map(HeaderValue::from_static).as_ref(), &mut headers);
        let all = |name| {
            headers
                .get_all(name)
                .iter()
                .map(|value: &HeaderValue| value.to_str().unwrap().to_owned())
                .collect()
        };
        [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
            VARY,
        ]
        .map(all)
    }

    #[test]
    fn fields_fit_the_origin_that_asks_whatever_was_stored() {
        const STORED: &[(&str, &str)] = &[
            ("access-control-allow-origin", "https://first.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "X-Request-Id"),
            ("vary", "Accept, origin"),
        ];
        let exposed = EXPOSED;
        let own = exposed.to_str().unwrap();
        let page = "https://shop.example";
        let shop = Some(page);
        assert_eq!(
            fitted(&listed(false), shop, &[]),
            [vec![page], vec![], vec![own], vec!["Origin"]]
        );
        assert_eq!(
            fitted(&listed(false), shop, STORED),
            [vec![page], vec![], vec!["X-Request-Id", own], vec!["Accept, origin"]]
        );
        assert_eq!(
            fitted(&listed(true), shop, &[]),
            [vec![page], vec!["true"], vec![own], vec!["Origin"]]
        );
        for stranger in [
            None,
            Some("null"),
            Some("https://shop.example.evil"),
            Some("https://SHOP.example"),
            Some("http://shop.example"),
        ] {
            assert_eq!(
                fitted(&listed(true), stranger, STORED),
                [vec![], vec![], vec![], vec!["Accept, origin"]],
                "{stranger:?}"
            );
        }
        let any = CrossOrigin { origins: Origins::Any, credentials: false };
        for origin in [None, shop] {
            assert_eq!(
                fitted(&any, origin, STORED),
                [vec!["*"], vec![], vec!["X-Request-Id", own], vec!["Accept, origin"]]
            );
        }
        assert_eq!(fitted(&listed(false), shop, &[("vary", "*")])[3], ["*"]);
    }

    #[test]
    fn a_request_with_two_origins_has_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(asking_origin(&headers), None);
        headers.append(ORIGIN, HeaderValue::from_static("https://a.example"));
        assert!(asking_origin(&headers).is_some());
        headers.append(ORIGIN, HeaderValue::from_static("https://b.example"));
        assert_eq!(asking_origin(&headers), None);
    }
}
