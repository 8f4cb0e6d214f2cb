//! Paths: the form in which they are compared, and the readings that a hop behind the gateway may give them.
//!
//! Danger: two hops can read one path in two ways. One cuts path parameters (`;x`), resolves dot segments, merges
//! slashes, takes `\` for `/`, or decodes `%2F` and what a decoding yields. A segment that none of these steps changes is
//! called *opaque*. Only opaque segments may stand in an identity, or be filled into a path.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Whether the upstream tells paths apart by letter case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PathCase {
    /// `/Payments` and `/payments` are two resources.
    #[default]
    Sensitive,
    /// They are one. A spelling in other letter case than the route's is refused, not matched.
    Insensitive,
}

impl PathCase {
    /// Compares two texts, of which letters differ in case only where they are ASCII.
    pub fn equal(self, a: &[u8], b: &[u8]) -> bool {
        match self {
            PathCase::Sensitive => a == b,
            PathCase::Insensitive => a.eq_ignore_ascii_case(b),
        }
    }
}

/// Everything but the unreserved characters (RFC 3986, section 2.3) is encoded in what is filled into a path.
const IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path after percent-decoding until nothing is left to decode. The order of decoding makes no difference: two escapes
/// never overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// For each byte, whether it stood in the path as it is, and not in an escape.
    pub literal: Vec<bool>,
}

impl Decoded {
    /// Decodes a path, or a part of one, in linear time.
    pub fn of(text: &str) -> Decoded {
        let mut decoded = Decoded { bytes: Vec::with_capacity(text.len()), literal: Vec::with_capacity(text.len()) };
        for byte in text.bytes() {
            decoded.bytes.push(byte);
            decoded.literal.push(true);
            // A decoded byte may complete another escape.
            while let [.., b'%', high, low] = decoded.bytes[..]
                && let Some(byte) = byte_of(high, low)
            {
                let kept = decoded.bytes.len() - 3;
                decoded.bytes.truncate(kept);
                decoded.literal.truncate(kept);
                decoded.bytes.push(byte);
                decoded.literal.push(false);
            }
        }
        decoded
    }
}

/// The byte that two hexadecimal digits stand for.
fn byte_of(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// Returns whether a path has no byte that a folding could change, except for letter case. Takes one scan.
pub fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    path.bytes().all(|byte| {
        let plain = match byte {
            b'/' | b'.' => !after_slash,
            b'-' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => true,
            _ => byte.is_ascii_alphanumeric(),
        };
        after_slash = byte == b'/';
        plain
    })
}

/// Returns a path as routes match it: unreserved characters decoded (RFC 3986, section 6.2.2.2), one trailing slash cut.
pub fn as_matched(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(without_trailing_slash(path));
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let byte = match rest.as_bytes()[at + 1..] {
            [high, low, ..] => byte_of(high, low),
            _ => None,
        };
        match byte {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                decoded.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            _ => {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    decoded.push_str(rest);
    if decoded.len() > 1 && decoded.ends_with('/') {
        decoded.pop();
    }
    Cow::Owned(decoded)
}

fn without_trailing_slash(path: &str) -> &str {
    if path.len() > 1 { path.strip_suffix('/').unwrap_or(path) } else { path }
}

/// Returns whether a segment stays the same one segment under every folding: it is neither empty nor a dot segment, it
/// holds no separator and no path parameter, encoded or not, and decoding it once decodes it wholly.
pub fn is_opaque(segment: &str) -> bool {
    let decoded = Decoded::of(segment).bytes;
    let separates = |byte: &u8| matches!(byte, b'/' | b'\\' | b';');
    !matches!(&decoded[..], b"" | b"." | b"..")
        && !decoded.iter().any(separates)
        && percent_decode_str(segment).eq(decoded.iter().copied())
}

/// Returns whether no folding changes a path (letter case and a trailing slash aside): all its segments are opaque.
pub fn is_opaque_throughout(path: &str) -> bool {
    let bare = without_trailing_slash(path);
    is_plain(path) || bare == "/" || bare.strip_prefix('/').is_some_and(|inner| inner.split('/').all(is_opaque))
}

/// Returns a path as it enters a derived key: decoded once, without a trailing slash, and in lower case where letter case
/// makes no difference. All spellings of a path whose segments are opaque have the same form.
pub fn identity(path: &str, case: PathCase) -> Vec<u8> {
    let mut bytes: Vec<u8> = percent_decode_str(without_trailing_slash(path)).collect();
    if case == PathCase::Insensitive {
        bytes.make_ascii_lowercase();
    }
    bytes
}

/// Fills a value into a template of a path, which may have a query, wherever `place` stands.
///
/// Returns `None` where the path would not be the template with one opaque segment there: the value `..` leads to another
/// resource, and so does `a/b` behind a hop that decodes `%2F`. A request to such a path must not be sent. In a query the
/// value is encoded, and can be any.
pub fn fill(template: &str, place: &str, value: &str) -> Option<String> {
    let encoded = utf8_percent_encode(value, IN_A_PATH).to_string();
    let (path, query) = template.find('?').map_or((template, ""), |at| template.split_at(at));
    let mut filled = String::with_capacity(template.len() + encoded.len());
    for segment in path.strip_prefix('/')?.split('/') {
        filled.push('/');
        if !segment.contains(place) {
            filled.push_str(segment);
            continue;
        }
        let segment = segment.replace(place, &encoded);
        // Decoded and then read again, these would end the path. Control characters end it for some readers at once.
        let ends_paths = |byte: u8| matches!(byte, b'?' | b'#') || byte.is_ascii_control();
        if !is_opaque(&segment) || percent_decode_str(&segment).any(ends_paths) {
            return None;
        }
        filled.push_str(&segment);
    }
    filled.push_str(&query.replace(place, &encoded));
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_until_none_is_left() {
        for (text, bytes) in [
            ("/a", "/a"),
            ("%2F", "/"),
            ("%252f", "/"),
            ("%25252F", "/"),
            ("%25%32%46", "/"),
            ("%2%35", "%"),
            ("%%32%46", "/"),
            ("%2", "%2"),
            ("%zz%", "%zz%"),
            ("50%25", "50%"),
        ] {
            assert_eq!(Decoded::of(text).bytes, bytes.as_bytes(), "{text}");
        }
        assert_eq!(Decoded::of("/%2f%61").literal, [true, false, false]);
        let deep = format!("%{}2F", "25".repeat(30_000));
        assert_eq!(Decoded::of(&deep).bytes, b"/", "in linear time");
    }

    #[test]
    fn plain_paths_are_known_in_one_scan() {
        for plain in ["/", "/v1/payments", "/v1/payments/", "/a.b/c..d/e.", "/a:b@c,d+e=f&g'(h)*!$~_-"] {
            assert!(is_plain(plain) && is_opaque_throughout(plain), "{plain}");
        }
        for odd in ["//", "/a//b", "/./a", "/a/..", "/.a", "/a;b", "/a%20b", "/a\\b", "/a|b", "/\u{e4}"] {
            assert!(!is_plain(odd), "{odd}");
        }
    }

    #[test]
    fn opaque_is_what_no_folding_changes() {
        for opaque in ["a", "...", ".a", "a%20b", "caf%C3%A9", "50%25", "a%3Ab", "%zz", "a|b", "a.", "%41"] {
            assert!(is_opaque(opaque) && is_opaque_throughout(&format!("/{opaque}/b/")), "{opaque}");
        }
        for other in ["", ".", "..", "%2e", ".%2E", "%252e", "a;b", "a%3Bb", "a%2Fb", "a%252Fb", "a\\b", "a%5cb", "a%2541"] {
            assert!(!is_opaque(other) && !is_opaque_throughout(&format!("/{other}/b/")), "{other}");
        }
    }

    #[test]
    fn spellings_of_one_path_are_one_identity() {
        let same = |a: &str, b: &str, case| identity(a, case) == identity(b, case);
        for other in ["/v1/p%61yments:x", "/v1/payments:x/", "/v1/payments%3Ax", "/v1/payments%3ax/"] {
            assert!(same("/v1/payments:x", other, PathCase::Sensitive), "{other}");
        }
        assert!(!same("/a", "/A", PathCase::Sensitive) && same("/a", "/A", PathCase::Insensitive));
        assert_eq!(identity("/", PathCase::Sensitive), b"/");
    }

    #[test]
    fn a_value_fills_one_segment_or_nothing() {
        let path = |value| fill("/v1/by-key/{key}/state?of={key}", "{key}", value);
        assert_eq!(path("a~k 1").unwrap(), "/v1/by-key/a~k%201/state?of=a~k%201");
        for bad in
            ["", ".", "..", "../../../admin/users", "%2e%2e", "..;", "a/b", "a\\b", ";x", "a%2Fb", "a%41", "a?b", "a#b", "a\n"]
        {
            assert_eq!(path(bad), None, "{bad}");
        }
        let in_a_query = fill("/v1/payments?key={key}", "{key}", "../a/b;c&d");
        assert_eq!(in_a_query.unwrap(), "/v1/payments?key=..%2Fa%2Fb%3Bc%26d");
        assert_eq!(fill("/v1/{key}.", "{key}", "."), None, "the whole segment counts");
        assert_eq!(fill("/v1/{key}.json", "{key}", ".").unwrap(), "/v1/..json");
    }
}
