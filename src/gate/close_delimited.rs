//! Answers that end when their connection is closed.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::de::IgnoredAny;

use crate::gate::intake::body::essence_has;

/// A response extension. The forwarding service adds it to a response that has neither a length nor
/// chunks, and came over a connection without TLS (RFC 9112, section 6.3). No close_notify confirms
/// that the body of such a response is complete.
#[derive(Debug, Clone, Copy)]
pub struct CloseDelimited;

/// Returns whether a close-delimited body may have been cut off: its media type is JSON, and it is
/// not one JSON text. An encoded JSON body counts as cut off. In bodies of other types a cut can't
/// be detected.
pub(super) fn may_be_cut(headers: &HeaderMap, body: &[u8]) -> bool {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let text = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let is_encoded = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    claims_one_json_text(headers)
        && (is_encoded || serde_json::from_slice::<IgnoredAny>(text).is_err())
}

/// Returns whether any media type contains "json", in any letter case. Types for several JSON texts
/// in one body, and types for supersets of JSON, don't count.
fn claims_one_json_text(headers: &HeaderMap) -> bool {
    const OTHERS: [&[u8]; 5] = [b"ndjson", b"json-seq", b"jsonl", b"stream+json", b"json5"];
    let claims = |value| {
        essence_has(value, b"json") && !OTHERS.iter().any(|other| essence_has(value, other))
    };
    headers.get_all(CONTENT_TYPE).iter().any(claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn json_that_does_not_parse_may_be_cut() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for (content_type, coding, text, cut) in [
            ("application/json", "", "{\"id\":1}", false),
            ("application/json", "identity", " [1, 2]\n", false),
            ("application/problem+json; charset=utf-8", "", "{\"id\":1}", false),
            ("application/json", "", "\u{feff}{}", false),
            ("application/json", "", "{\"a\":1,\"a\":2}", false),
            ("application/json", "", deep.as_str(), false),
            ("application/json", "", &deep[1..], true),
            ("application/json", "", "", true),
            ("Application/JSON", "", "{\"id\":1", true),
            ("application/problem+json", "", "{\"id\":", true),
            ("application/json", "", "{} {}", true),
            ("application/json", "gzip", "{}", true),
            ("text/json", "", "{\"id\":1", true),
            ("application/json; charset=\"\u{e9}\"", "", "{\"id\":1", true),
            ("application/json, text/plain", "", "{\"id\":1", true),
            ("\"application/json\"", "", "{\"id\":1", true),
            ("application/x-amz-json-1.1", "", "{\"id\":1", true),
            ("application/x-ndjson", "", "{}\n{", false),
            ("application/stream+json", "", "{}\n{", false),
            ("text/html", "", "{\"id\":1", false),
            ("", "", "{\"id\":1", false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(CONTENT_TYPE, content_type), (CONTENT_ENCODING, coding)] {
                if !value.is_empty() {
                    headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
                }
            }
            let text_start = text.get(..20).unwrap_or(text);
            assert_eq!(
                may_be_cut(&headers, text.as_bytes()),
                cut,
                "{content_type} {coding} {text_start}"
            );
        }
    }
}
