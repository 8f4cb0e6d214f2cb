//! `cors`: origins that may read the gateway's own answers.

use http::HeaderValue;
use http::uri::Authority;

use crate::config::read::{Table, Value};
use crate::engine::{CrossOrigin, Origins};

const EXPECTED: &str = "a table such as { origins = [\"https://shop.example\"] }";
const ORIGINS_EXPECTED: &str = "a list of origins such as [\"https://shop.example\"], or [\"*\"]";
const ORIGIN_EXPECTED: &str = "an origin such as \"https://shop.example\"";

/// Reads `cors`. The inner value is `None` if the route has no `cors`.
pub(super) fn read(route: &Table<'_>) -> Option<Option<CrossOrigin>> {
    let Some(value) = route.get("cors") else { return Some(None) };
    let table = value.table(EXPECTED)?;
    let origins = match table.get("origins") {
        Some(origins) => read_origins(&origins),
        None => {
            value.fault(format!("needs origins, {ORIGINS_EXPECTED}"));
            None
        }
    };
    let credentials = match table.get("credentials") {
        Some(value) => value.boolean().map(|credentials| (credentials, Some(value))),
        None => Some((false, None)),
    };
    table.finish();
    let (origins, (credentials, value)) = (origins?, credentials?);
    if let (Origins::Any, true, Some(value)) = (&origins, credentials, value) {
        value.fault("every page could read answers for its visitor's cookies: list the origins");
        return None;
    }
    Some(Some(CrossOrigin { origins, credentials }))
}

fn read_origins(value: &Value<'_>) -> Option<Origins> {
    let items = value.list(ORIGINS_EXPECTED)?;
    let origins: Vec<Option<HeaderValue>> =
        items.iter().map(|item| item.checked(ORIGIN_EXPECTED, origin)).collect();
    let origins: Vec<HeaderValue> = origins.into_iter().collect::<Option<_>>()?;
    match origins.as_slice() {
        [] => {
            value.fault(format!("expected {ORIGINS_EXPECTED}"));
            None
        }
        [any] if any == "*" => Some(Origins::Any),
        several if several.iter().any(|origin| origin == "*") => {
            value.fault("\"*\" includes every origin: remove the others");
            None
        }
        _ => Some(Origins::Listed(origins)),
    }
}

/// Parses an origin. It must have the exact form that browsers send (RFC 6454, section 6.2),
/// because origins are compared byte by byte.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let value = || HeaderValue::from_str(text).map_err(|_| format!("expected {ORIGIN_EXPECTED}"));
    if text == "*" {
        return value();
    }
    let wrong = |why: &str| Err(format!("expected {ORIGIN_EXPECTED}, {why}"));
    let Some((scheme, host)) = text.split_once("://") else {
        return wrong(
            "with a scheme (\"null\" is the origin of every sandboxed page, so it is refused)",
        );
    };
    if text.contains(|byte: char| byte.is_ascii_uppercase()) {
        return wrong("in lower case, as browsers send it");
    }
    if host.contains(['/', '?', '#']) {
        return wrong("without a path and without a slash at its end");
    }
    let scheme_is_token =
        scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let valid = scheme_is_token
        && scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && !host.contains(['@', '*']);
    let Some(authority) =
        host.parse::<Authority>().ok().filter(|authority| valid && !authority.host().is_empty())
    else {
        return wrong("a scheme, a host and perhaps a port");
    };
    if matches!((scheme, authority.port_u16()), ("https", Some(443)) | ("http", Some(80))) {
        return wrong("without the scheme's usual port, which browsers leave out");
    }
    value()
}
