//! The canonical spelling of a key for the upstream.
//!
//! Danger: an upstream that deduplicates compares the bytes that it receives. A key in two
//! spellings is two operations there, and a retry under `on_uncertain = "forward"` runs twice.

use super::KeySyntax;

/// Returns the header field value for this key, however the client spelled it. `key` is the decoded
/// key: printable ASCII, not empty.
///
/// The value is the bare key if a bare value parses to the same key, and a structured-field string
/// (RFC 9651, section 4.1.6) otherwise. Under [`KeySyntax::Strict`] it is always a structured-field
/// string, because that syntax has no bare keys.
pub fn key_field_value(key: &str, syntax: KeySyntax) -> String {
    let reads_back_bare = key.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && byte != b'"');
    if reads_back_bare && syntax != KeySyntax::Strict {
        return key.to_owned();
    }
    let mut value = String::with_capacity(key.len() + 2);
    value.push('"');
    for character in key.chars() {
        if matches!(character, '"' | '\\') {
            value.push('\\');
        }
        value.push(character);
    }
    value.push('"');
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::Key;

    const SYNTAXES: [KeySyntax; 6] = [
        KeySyntax::Lenient,
        KeySyntax::Strict,
        KeySyntax::Bare,
        KeySyntax::Uuid,
        KeySyntax::UuidV4,
        KeySyntax::Word,
    ];

    #[test]
    fn a_key_is_bare_where_that_reads_back_and_quoted_where_it_does_not() {
        for (key, lenient, strict) in [
            ("order-7", "order-7", r#""order-7""#),
            ("a;v=1,b", "a;v=1,b", r#""a;v=1,b""#),
            (r"a\b", r"a\b", r#""a\\b""#),
            ("a b", r#""a b""#, r#""a b""#),
            (" a", r#"" a""#, r#"" a""#),
            (r#"a"b"#, r#""a\"b""#, r#""a\"b""#),
        ] {
            assert_eq!(key_field_value(key, KeySyntax::Lenient), lenient);
            assert_eq!(key_field_value(key, KeySyntax::Strict), strict);
        }
    }

    proptest! {
        #[test]
        fn the_spelling_reads_back_as_the_same_key_under_every_syntax(text in "[ -~]{1,40}") {
            for syntax in SYNTAXES {
                let quoted = key_field_value(&text, KeySyntax::Strict);
                let Ok(key) = Key::parse(quoted.as_bytes(), syntax, 40) else { continue };
                let value = key_field_value(key.as_str(), syntax);
                prop_assert_eq!(Key::parse(value.as_bytes(), syntax, 40), Ok(key));
            }
        }
    }
}
