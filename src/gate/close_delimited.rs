//! Answers whose end is only the end of their connection.

use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use serde::de::IgnoredAny;

use super::identify::is_json;

/// Marks a response, as an extension, that is neither counted nor chunked and came over a connection whose end
/// nobody vouches for (RFC 9112, section 6.3): without TLS, whose close_notify would. Whoever forwards sets it.
#[derive(Debug, Clone, Copy)]
pub struct CloseDelimited;

/// Whether a close-delimited body may have been cut: it claims to be JSON, and what is there is not one JSON text.
/// An encoded text counts as unreadable. Other types show no cut.
pub(super) fn may_be_cut(headers: &HeaderMap, body: &[u8]) -> bool {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let text = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let is_encoded = headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    is_json(headers) && (is_encoded || serde_json::from_slice::<IgnoredAny>(text).is_err())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::CONTENT_TYPE;

    use super::*;

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
            ("text/html", "", "{\"id\":1", false),
            ("", "", "{\"id\":1", false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(CONTENT_TYPE, content_type), (CONTENT_ENCODING, coding)] {
                if !value.is_empty() {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            let text_start = text.get(..20).unwrap_or(text);
            assert_eq!(may_be_cut(&headers, text.as_bytes()), cut, "{content_type} {coding} {text_start}");
        }
    }
}
