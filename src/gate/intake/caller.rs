//! Determines the caller of a request from its credentials.

use http::HeaderMap;

use crate::engine::CallerRule;
use crate::gate::intake::head::{cookie, is_scheme_alone, lines};
use crate::key::{Caller, Scope};
use crate::refusal::Refusal;

/// Returns the caller of a request: [`Caller::nobody`] where it has no credentials.
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
        // All lines of a field count: the gate does not know which of two an upstream believes.
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

/// Returns whether the value of a caller field is a credential. Clients without credentials send an
/// empty value, or an authentication scheme alone: as a credential, it would be one caller for all
/// of them.
pub(in crate::gate) fn is_credential(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    !value.is_empty() && !is_scheme_alone(value)
}
