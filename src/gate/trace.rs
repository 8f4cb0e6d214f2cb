//! The id of a request's trace, from its `traceparent` field.

use http::HeaderMap;

use crate::http_message::TRACEPARENT;

/// Hexadecimal digits of a trace id (Trace Context, section 3.2.2.3).
pub(in crate::gate) const TRACE_DIGITS: usize = 32;

/// Returns the id of a request's trace. The layer gives every request a well-formed `traceparent`.
pub(in crate::gate) fn trace_digits(headers: &HeaderMap) -> Option<[u8; TRACE_DIGITS]> {
    let trace = headers.get(TRACEPARENT)?.as_bytes().get(3..3 + TRACE_DIGITS)?;
    trace.iter().all(u8::is_ascii_hexdigit).then(|| trace.try_into().ok())?
}

/// Returns the id of a request's trace as text.
pub(in crate::gate) fn trace_of(headers: &HeaderMap) -> Option<String> {
    trace_digits(headers).as_ref().map(trace_text)
}

/// Converts a trace id's digits into text.
pub(in crate::gate) fn trace_text(digits: &[u8; TRACE_DIGITS]) -> String {
    String::from_utf8(digits.to_vec()).unwrap_or_default()
}
