//! The trace that a request belongs to (W3C Trace Context).

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::entropy::Entropy;
use crate::hex;
use crate::http_message::TRACEPARENT;
use crate::telemetry::Trail;

const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A request's `traceparent`. Its trace id is the request id in logs.
#[derive(Debug, Clone)]
pub(super) struct TraceParent(HeaderValue);

impl TraceParent {
    /// Continues the trace that a request belongs to, or begins one. Where spans are exported, the
    /// upstream gets the span of forwarding as its parent.
    pub fn of(headers: &mut HeaderMap, entropy: &Entropy, trail: Option<&Trail>) -> TraceParent {
        let continued =
            headers.get(TRACEPARENT).filter(|value| is_trace_parent(value.as_bytes())).cloned();
        let trace = match &continued {
            Some(value) => TraceParent(value.clone()),
            None => begin_trace(headers, entropy),
        };
        if let Some(trail) = trail
            && let Some(span) = trace.enter(trail, continued.is_some(), entropy.next())
            && let Ok(value) = HeaderValue::try_from(format!(
                "00-{}-{:016x}-01",
                trace.trace_id(),
                u64::from_be_bytes(span)
            ))
        {
            headers.insert(TRACEPARENT, value);
        }
        trace
    }

    /// Returns the 32 hexadecimal digits of the trace id.
    pub fn trace_id(&self) -> &str {
        self.0.to_str().ok().and_then(|text| text.get(3..35)).unwrap_or("-")
    }

    /// Puts a request's trail into the trace. Returns the span of forwarding, where spans are
    /// exported.
    fn enter(&self, trail: &Trail, continued: bool, own: u64) -> Option<[u8; 8]> {
        let text = self.0.to_str().ok()?;
        let trace = u128::from_str_radix(text.get(3..35)?, 16).ok()?.to_be_bytes();
        let span = u64::from_str_radix(text.get(36..52)?, 16).ok()?.to_be_bytes();
        let flags = u8::from_str_radix(text.get(53..55)?, 16).ok()?;
        trail.in_trace(trace, continued.then_some((span, flags & 1 == 1)), own)
    }
}

fn begin_trace(headers: &mut HeaderMap, entropy: &Entropy) -> TraceParent {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_hex(&mut text[3..19], entropy.next());
    write_hex(&mut text[19..35], entropy.next());
    write_hex(&mut text[36..52], entropy.next() | 1);
    let value = HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""));
    // A state has no meaning without the trace that it belongs to.
    headers.remove(TRACESTATE);
    headers.insert(TRACEPARENT, value.clone());
    TraceParent(value)
}

fn write_hex(out: &mut [u8], number: u64) {
    for (pair, byte) in out.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair.copy_from_slice(&hex::digits(byte));
    }
}

fn is_trace_parent(value: &[u8]) -> bool {
    let is_hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &[u8]| part.iter().all(|b| *b == b'0');
    value.len() == 55
        && value.starts_with(b"00-")
        && value[35] == b'-'
        && value[52] == b'-'
        && is_hex(&value[3..35])
        && !is_zero(&value[3..35])
        && is_hex(&value[36..52])
        && !is_zero(&value[36..52])
        && is_hex(&value[53..])
}
