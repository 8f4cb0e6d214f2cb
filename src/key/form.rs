//! One field of a form body (`application/x-www-form-urlencoded`), decoded as in the URL standard.
//!
//! Danger: if a field is repeated, some upstreams read the first, some the last, and some both.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// The result of looking up a field of a form by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormField<'b> {
    /// No field.
    Missing,
    /// One field, with its value as bytes, which may be invalid UTF-8. An empty value is a value.
    Value(Cow<'b, [u8]>),
    /// More than one field, with equal or different values.
    Repeated,
}

/// Looks up a field by its decoded name. Every byte sequence is a form, so there are no errors.
///
/// Values are compared as bytes. The standard replaces invalid UTF-8, which would make different
/// values equal.
pub fn form_field<'b>(body: &'b [u8], name: &str) -> FormField<'b> {
    let mut found = FormField::Missing;
    for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &pair[pair.len()..]),
        };
        if *decoded(key) != *name.as_bytes() {
            continue;
        }
        if found != FormField::Missing {
            return FormField::Repeated;
        }
        found = FormField::Value(decoded(value));
    }
    found
}

/// Decodes a name or a value: `+` is a space, and percent-encoded bytes are decoded. A `%` without
/// two hexadecimal digits stays.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced: Vec<u8> =
        text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect::<Vec<u8>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_decoded_by_the_url_standard() {
        let value = |bytes: &'static [u8]| FormField::Value(Cow::Borrowed(bytes));
        for (body, expected) in [
            (&b"id=7"[..], value(b"7")),
            (b"a=1&id=7&b=2", value(b"7")),
            (b"&&id=7&", value(b"7")),
            (b"id=a+b%20c%2Bd", value(b"a b c+d")),
            (b"%69d=7", value(b"7")),
            (b"id=a=b", value(b"a=b")),
            (b"id=%zz%4", value(b"%zz%4")),
            (b"id=%FF", value(b"\xff")),
            (b"id=7;id=8", value(b"7;id=8")),
            (b"id=", value(b"")),
            (b"id", value(b"")),
            (b"", FormField::Missing),
            (b"=7", FormField::Missing),
            (b"ID=7&id2=8&xid=9&x=id", FormField::Missing),
            (b"id=7&id=7", FormField::Repeated),
            (b"id=7&i%64=8", FormField::Repeated),
            (b"id&id", FormField::Repeated),
        ] {
            assert_eq!(form_field(body, "id"), expected, "{:?}", String::from_utf8_lossy(body));
        }
        assert_eq!(form_field(b"order[id]=1&order%5Bno%5D=2", "order[no]"), value(b"2"));
        assert_eq!(form_field(b"order+no=2", "order no"), value(b"2"));
    }

    #[test]
    fn values_that_are_not_utf8_stay_different() {
        assert_ne!(form_field(b"id=%FE", "id"), form_field(b"id=%FF", "id"));
    }
}
