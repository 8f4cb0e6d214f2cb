//! The forms of a key that a route can require.

/// The required form of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySyntax {
    /// A structured-field string, or visible ASCII without quotes.
    Lenient,
    /// A structured-field string only (RFC 9651, section 3.3.3), as in the IETF draft.
    Strict,
    /// Visible ASCII without quotes, never a structured-field string: the field's value is the key,
    /// byte for byte. An upstream that verifies a signature over the field (RFC 9421) receives the
    /// signed bytes.
    Bare,
    /// A UUID of version 4.
    UuidV4,
    /// A UUID of any version except the zero UUID.
    Uuid,
    /// A word of letters, digits, `_` and `-`.
    Word,
}

/// Description of [`KeySyntax::Bare`].
pub(super) const BARE: &str = "the bare key, without quotes";

impl KeySyntax {
    /// Returns a description of the required form, if a decoded key has another form.
    pub(super) fn differing_form(self, text: &str) -> Option<&'static str> {
        let (has_form, expected) = match self {
            KeySyntax::Lenient | KeySyntax::Strict => return None,
            KeySyntax::Bare => (text.bytes().all(|b| matches!(b, 0x21..=0x7e) && b != b'"'), BARE),
            KeySyntax::UuidV4 => (is_uuid(text, Some(b'4')), "a UUID of version 4"),
            KeySyntax::Uuid => (is_uuid(text, None), "a UUID, and not the zero UUID"),
            KeySyntax::Word => (
                text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'),
                "letters, digits, _ and - only",
            ),
        };
        (!has_form).then_some(expected)
    }
}

fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => *b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
        && match version {
            Some(version) => {
                bytes[14] == version && matches!(bytes[19], b'8' | b'9' | b'a' | b'b' | b'A' | b'B')
            }
            None => bytes.iter().any(|b| !matches!(b, b'0' | b'-')),
        }
}
