//! Header fields that the layer and the proxy both read.

use http::HeaderMap;
use http::header::{HeaderName, TE};

/// The field that carries the trace context (W3C Trace Context).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Returns whether the sender of these fields accepts trailers (RFC 9110, section 10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut members =
        headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    members.any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}
