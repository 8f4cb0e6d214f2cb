//! Paths: the form in which the gateway compares them, and the ways in which a hop behind the
//! gateway may interpret them.
//!
//! Danger: two hops can interpret a path in different ways. A hop may cut path parameters (`;x`),
//! resolve dot segments, merge slashes, treat `\` as `/`, decode `%2F` and decode the result again,
//! or end the path at a decoded `?`. A segment that none of these steps changes is *opaque*. Only
//! opaque segments may be part of an identity, or be filled into a path.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Whether the upstream distinguishes paths by letter case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PathCase {
    /// `/Payments` and `/payments` are two resources.
    #[default]
    Sensitive,
    /// `/Payments` and `/payments` are the same resource. A path that differs from a route's path
    /// only in letter case is refused, not matched.
    Insensitive,
}

impl PathCase {
    /// Folds a text so that two texts are equal exactly if the upstream can treat them as equal.
    pub fn fold(self, bytes: Vec<u8>) -> Vec<u8> {
        let literal = vec![false; bytes.len()];
        Decoded { bytes, literal }.fold_case(self).bytes
    }
}

/// Characters to encode in a value that is filled into a path: all but the unreserved ones (RFC
/// 3986, section 2.3).
const IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path after repeated percent-decoding until nothing is left to decode, including `%u002F`,
/// which IIS decodes to `/`. The order of decoding doesn't matter: two escapes never overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// For each byte, whether it was in the path as such, and not in an escape.
    pub literal: Vec<bool>,
}

impl Decoded {
    /// Decodes a path, or a part of one, in linear time.
    pub fn of(text: &str) -> Decoded {
        let mut decoded = Decoded {
            bytes: Vec::with_capacity(text.len()),
            literal: Vec::with_capacity(text.len()),
        };
        for byte in text.bytes() {
            decoded.bytes.push(byte);
            decoded.literal.push(true);
            // A decoded byte may complete another escape.
            while decoded.replace_last_escape() {}
        }
        decoded
    }

    /// Decodes the escape at the end of the bytes. Returns whether there was one.
    fn replace_last_escape(&mut self) -> bool {
        if let [.., b'%', high, low] = self.bytes[..]
            && let Some(byte) = byte_of(high, low)
        {
            self.replace_last(3, &[byte]);
            return true;
        }
        if let [.., b'%', b'u' | b'U', a, b, c, d] = self.bytes[..]
            && let (Some(high), Some(low)) = (byte_of(a, b), byte_of(c, d))
        {
            // Half a surrogate pair is not a character. Any replacement will do here.
            let c = char::from_u32(u32::from(high) << 8 | u32::from(low))
                .unwrap_or(char::REPLACEMENT_CHARACTER);
            self.replace_last(6, c.encode_utf8(&mut [0; 4]).as_bytes());
            return true;
        }
        false
    }

    /// Replaces the last `count` bytes with their decoded form.
    fn replace_last(&mut self, count: usize, bytes: &[u8]) {
        let kept = self.bytes.len().saturating_sub(count);
        self.bytes.truncate(kept);
        self.literal.truncate(kept);
        self.bytes.extend_from_slice(bytes);
        self.literal.resize(self.bytes.len(), false);
    }

    /// Removes differences of letter case if the upstream ignores letter case: converts to upper
    /// case, then to lower case, by Unicode's rules (some upstreams read `\u{212a}`, the Kelvin
    /// sign, as a `k`, and `\u{130}` as an `i`).
    pub fn fold_case(mut self, case: PathCase) -> Decoded {
        if case == PathCase::Sensitive || self.bytes.is_ascii() {
            if case == PathCase::Insensitive {
                self.bytes.make_ascii_lowercase();
            }
            return self;
        }
        let mut folded =
            Decoded { bytes: Vec::with_capacity(self.bytes.len()), literal: Vec::new() };
        let mut at = 0;
        for chunk in self.bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                // A letter must stay one letter: the upper case of `\u{df}` has two letters, and so
                // has the lower case of `\u{130}`.
                let mut upper = c.to_uppercase();
                let upper = if upper.len() == 1 { upper.next() } else { None }.unwrap_or(c);
                let lower = upper.to_lowercase().next().unwrap_or(upper);
                folded.bytes.extend_from_slice(lower.encode_utf8(&mut [0; 4]).as_bytes());
                folded.literal.resize(folded.bytes.len(), self.literal[at]);
                at += c.len_utf8();
            }
            folded.bytes.extend_from_slice(chunk.invalid());
            folded.literal.resize(folded.bytes.len(), false);
            at += chunk.invalid().len();
        }
        folded
    }
}

/// Returns whether some reader ends the path at this decoded byte. A query begins at `?`, and a
/// fragment at `#`. Some readers also stop at control characters: NUL ends a text in C, and
/// patterns with `$` ignore a line end.
pub fn ends_paths(byte: u8) -> bool {
    matches!(byte, b'?' | b'#') || byte.is_ascii_control()
}

/// Returns the byte of two hexadecimal digits.
fn byte_of(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// Returns whether a path has no byte that a folding could change, except for letter case. Takes
/// one scan.
pub fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    path.bytes().all(|byte| {
        let plain = match byte {
            b'/' | b'.' => !after_slash,
            b'-' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
            | b'=' | b':' | b'@' => true,
            _ => byte.is_ascii_alphanumeric(),
        };
        after_slash = byte == b'/';
        plain
    })
}

/// Returns a path for matching: unreserved characters decoded (RFC 3986, section 6.2.2.2), and one
/// trailing slash removed.
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

/// Returns whether a segment stays the same segment under every folding: it is neither empty nor a
/// dot segment, it contains no separator, no path parameter and nothing that ends a path, encoded
/// or not, and decoding it once decodes it completely.
pub fn is_opaque(segment: &str) -> bool {
    let decoded = Decoded::of(segment).bytes;
    let separates = |byte: &u8| matches!(byte, b'/' | b'\\' | b';') || ends_paths(*byte);
    !matches!(&decoded[..], b"" | b"." | b"..")
        && !decoded.iter().any(separates)
        && percent_decode_str(segment).eq(decoded.iter().copied())
}

/// Returns whether no folding changes a path, apart from letter case and a trailing slash: all its
/// segments are opaque.
pub fn is_opaque_throughout(path: &str) -> bool {
    let bare = without_trailing_slash(path);
    is_plain(path)
        || bare == "/"
        || bare.strip_prefix('/').is_some_and(|inner| inner.split('/').all(is_opaque))
}

/// Returns the form of a path in a derived key: decoded once, without a trailing slash, and in
/// lower case if the upstream ignores letter case. All spellings of a path with opaque segments
/// have the same form.
pub fn identity(path: &str, case: PathCase) -> Vec<u8> {
    case.fold(percent_decode_str(without_trailing_slash(path)).collect())
}

/// Replaces every `place` in a path template by a value. The template may have a query.
///
/// Returns `None` if the filled segment would not be opaque: the value `..` leads to another
/// resource, and so does `a/b` behind a hop that decodes `%2F`. The gateway must not send a request
/// to such a path. In a query the value is encoded and can be anything.
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
        if !is_opaque(&segment) {
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
            ("%u002F", "/"),
            ("%U002f", "/"),
            ("%u00252F", "/"),
            ("%25u00%32%46", "/"),
            ("%%75002F", "/"),
            ("%u00e9", "\u{e9}"),
            ("%ud800", "\u{fffd}"),
            ("%u002", "%u002"),
            ("%2%u0046", "/"),
            ("%u002%u0046", "/"),
        ] {
            assert_eq!(Decoded::of(text).bytes, bytes.as_bytes(), "{text}");
        }
        assert_eq!(Decoded::of("/%2f%61").literal, [true, false, false]);
        let deep = format!("%{}2F", "25".repeat(30_000));
        assert_eq!(Decoded::of(&deep).bytes, b"/", "in linear time");
        let deep = format!("%{}u002F", "u0025".repeat(30_000));
        assert_eq!(Decoded::of(&deep).bytes, b"/", "in linear time");
    }

    #[test]
    fn plain_paths_are_known_in_one_scan() {
        for plain in
            ["/", "/v1/payments", "/v1/payments/", "/a.b/c..d/e.", "/a:b@c,d+e=f&g'(h)*!$~_-"]
        {
            assert!(is_plain(plain) && is_opaque_throughout(plain), "{plain}");
        }
        for odd in
            ["//", "/a//b", "/./a", "/a/..", "/.a", "/a;b", "/a%20b", "/a\\b", "/a|b", "/\u{e4}"]
        {
            assert!(!is_plain(odd), "{odd}");
        }
    }

    #[test]
    fn opaque_is_what_no_folding_changes() {
        for opaque in
            ["a", "...", ".a", "a%20b", "caf%C3%A9", "50%25", "a%3Ab", "%zz", "a|b", "a.", "%41"]
        {
            assert!(
                is_opaque(opaque) && is_opaque_throughout(&format!("/{opaque}/b/")),
                "{opaque}"
            );
        }
        for other in [
            "", ".", "..", "%2e", ".%2E", "%252e", "a;b", "a%3Bb", "a%2Fb", "a%252Fb", "a\\b",
            "a%5cb", "a%2541", "a%3Fb", "a%23", "a%0A", "%u0061",
        ] {
            assert!(!is_opaque(other) && !is_opaque_throughout(&format!("/{other}/b/")), "{other}");
        }
    }

    #[test]
    fn spellings_of_one_path_are_one_identity() {
        let same = |a: &str, b: &str, case| identity(a, case) == identity(b, case);
        for other in
            ["/v1/p%61yments:x", "/v1/payments:x/", "/v1/payments%3Ax", "/v1/payments%3ax/"]
        {
            assert!(same("/v1/payments:x", other, PathCase::Sensitive), "{other}");
        }
        assert!(!same("/a", "/A", PathCase::Sensitive) && same("/a", "/A", PathCase::Insensitive));
        for other in ["/%C3%89K", "/%c3%a9%E2%84%AA", "/\u{e9}k/"] {
            assert!(same("/\u{e9}k", other, PathCase::Insensitive), "{other}");
        }
        assert!(!same("/\u{df}", "/ss", PathCase::Insensitive), "one letter is not two");
        assert!(
            !same("/\u{e9}", "/\u{c9}", PathCase::Sensitive)
                && !same("/e", "/\u{e9}", PathCase::Insensitive)
        );
        assert!(
            same("/%FF\u{c9}", "/%FF\u{e9}", PathCase::Insensitive),
            "beside bytes that are no text"
        );
        assert_eq!(identity("/", PathCase::Sensitive), b"/");
    }

    #[test]
    fn a_value_fills_one_segment_or_nothing() {
        let path = |value| fill("/v1/by-key/{key}/state?of={key}", "{key}", value);
        assert_eq!(path("a~k 1").unwrap(), "/v1/by-key/a~k%201/state?of=a~k%201");
        for bad in [
            "",
            ".",
            "..",
            "../../../admin/users",
            "%2e%2e",
            "..;",
            "a/b",
            "a\\b",
            ";x",
            "a%2Fb",
            "a%41",
            "a?b",
            "a#b",
            "a\n",
            "%u002F",
        ] {
            assert_eq!(path(bad), None, "{bad}");
        }
        let in_a_query = fill("/v1/payments?key={key}", "{key}", "../a/b;c&d");
        assert_eq!(in_a_query.unwrap(), "/v1/payments?key=..%2Fa%2Fb%3Bc%26d");
        assert_eq!(fill("/v1/{key}.", "{key}", "."), None, "the whole segment counts");
        assert_eq!(fill("/v1/{key}.json", "{key}", ".").unwrap(), "/v1/..json");
    }
}
