//! Reads header fields that identify a request.

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::key::CookieName;
use crate::refusal::Refusal;

/// Returns all lines of a field, without the white space around each value. The white space is not
/// part of the value (RFC 9110, section 5.5), but HTTP/2 does not remove it.
pub(super) fn lines<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii())
}

/// Returns the value of a cookie; `None` if it is absent or empty.
///
/// # Errors
/// The cookie comes more than once with different values: some upstreams read the first, others
/// the last.
pub(super) fn cookie<'h>(
    name: &CookieName,
    headers: &'h HeaderMap,
) -> Result<Option<&'h [u8]>, Refusal> {
    let lines = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    name.value(lines)
        .map_err(|_| Refusal::ScopeRepeated { what: format!("the cookie {}", name.as_str()) })
}

/// Returns whether a value is the name of an authentication scheme and nothing else. Every other
/// single word may be a credential: some APIs take `Authorization: sk_live_a`.
pub(super) fn is_scheme_alone(value: &[u8]) -> bool {
    const SCHEMES: [&str; 5] = ["Basic", "Bearer", "DPoP", "Digest", "Negotiate"];
    SCHEMES.iter().any(|scheme| value.eq_ignore_ascii_case(scheme.as_bytes()))
}
