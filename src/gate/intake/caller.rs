//! Determines the caller of a request from its credentials.

use http::HeaderMap;

use crate::engine::CallerRule;
use crate::gate::intake::head::{cookie, is_scheme_alone, lines};
use crate::key::{Caller, Scope};
use crate::refusal::Refusal;

/// Returns the caller of a request, or [`Caller::nobody`] if the request has no credentials.
///
/// # Errors
/// The caller's cookie comes more than once with different values.
pub(in crate::gate) fn caller(
    rule: &CallerRule,
    scope: &Scope,
    headers: &HeaderMap,
) -> Result<Caller, Refusal> {
    Ok(match rule {
        CallerRule::Scope => Caller::nobody().with_scope(scope),
        // All lines of a field count, because an upstream may use any of them.
        CallerRule::Headers(names) => names
            .iter()
            .find(|name| lines(headers, name).any(is_credential))
            .map(|name| Caller::of_lines(name.as_str(), lines(headers, name)))
            .unwrap_or_else(Caller::nobody),
        CallerRule::Cookie(name) => match cookie(name, headers)? {
            Some(value) => Caller::of_field(name.label(), value),
            None => Caller::nobody(),
        },
    })
}

/// Returns whether the value of a caller field is a credential. Some clients without credentials
/// send an empty value, or only the name of an authentication scheme. If such a value were a
/// credential, all these clients would be one caller.
pub(in crate::gate) fn is_credential(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    !value.is_empty() && !is_scheme_alone(value)
}
