//! Finds keys, and parts of keys, in the body of a request.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use crate::engine::KeyRule;
use crate::key::{
    Document, FormField, Key, KeyError, Member, Pointer, Reading, UnclearJson, form_field,
};
use crate::refusal::{BodyKind, KeyFault, Refusal};

impl BodyKind {
    /// Returns the kind of a body.
    pub(super) fn of(headers: &HeaderMap, body: &[u8]) -> BodyKind {
        let has = |word: &[u8]| {
            headers.get_all(CONTENT_TYPE).iter().any(|value| essence_has(value, word))
        };
        if body.is_empty() {
            BodyKind::None
        } else if claims_json(headers, body) {
            BodyKind::Json
        } else if is_form(headers) {
            BodyKind::Form
        } else if has(b"multipart/form-data") {
            BodyKind::Multipart
        } else {
            BodyKind::Other
        }
    }
}

/// Returns the media type if there is exactly one. Of two media types, an upstream may use either.
pub(super) fn content_type(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Returns whether the media type is a type of JSON (RFC 8259; RFC 6839, section 3.1).
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || essence.len() > 5
            && essence
                .get(essence.len() - 5..)
                .is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
}

/// Returns the JSON document in which the gate looks for a key, or `None` if the body is of another
/// kind.
///
/// # Errors
/// The body claims to be JSON and can't be read, or two parsers could interpret it differently. An
/// upstream with a more tolerant parser might find a key there, and would execute a request that
/// the gate did not protect.
pub(super) fn document_with_key<'r, 'b>(
    headers: &HeaderMap,
    body: &'r Reading<'b>,
) -> Result<Option<&'r Document<'b>>, Refusal> {
    match body.document() {
        Ok(document) => Ok(Some(document)),
        Err(UnclearJson::Ambiguous) => Err(invalid(KeyFault::AmbiguousBody)),
        Err(UnclearJson::TooDeep) => Err(Refusal::BodyUnreadable),
        Err(UnclearJson::NotJson) if claims_json(headers, body.bytes()) => {
            Err(Refusal::BodyUnreadable)
        }
        Err(UnclearJson::NotJson) => Ok(None),
    }
}

/// Returns whether a body claims to be JSON, by any of its media types or by its first character.
/// The first character counts, because many upstreams parse a body and ignore its media type. An
/// empty body does not claim to be JSON.
pub(super) fn claims_json(headers: &HeaderMap, body: &[u8]) -> bool {
    // Bytes of byte order marks, and the zero bytes of UTF-16 and UTF-32.
    let is_mark = |byte: &u8| matches!(byte, 0 | 0xef | 0xbb | 0xbf | 0xfe | 0xff);
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace() && !is_mark(byte));
    match first {
        None => false,
        Some(b'{' | b'[') => true,
        Some(_) => headers.get_all(CONTENT_TYPE).iter().any(|value| essence_has(value, b"json")),
    }
}

/// Returns whether a media type, without its parameters, contains a word, in any letter case.
pub(in crate::gate) fn essence_has(media_type: &HeaderValue, word: &[u8]) -> bool {
    let essence = media_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// Reads the key from a member of a JSON body.
pub(super) fn body_key(
    rule: &KeyRule,
    pointer: &Pointer,
    headers: &HeaderMap,
    body: &Reading<'_>,
) -> Result<Option<Key>, Refusal> {
    let Some(document) = document_with_key(headers, body)? else { return Ok(None) };
    match document.member(pointer) {
        Member::Missing => Ok(None),
        Member::Text(text) => key_of(rule, text).map(Some),
        Member::Other => Err(invalid(KeyFault::NotText)),
    }
}

fn key_of(rule: &KeyRule, text: &str) -> Result<Key, Refusal> {
    let key = Key::from_body(text, rule.syntax, rule.max_length);
    key.and_then(|key| key.at_least(rule.min_length)).map_err(invalid)
}

/// Returns whether the gate reads a body as a form. It does so if any of the media types is that of
/// a form, or if the body has no media type, or only empty ones. Some servers parse every body
/// without a media type as a form.
fn is_form(headers: &HeaderMap) -> bool {
    let essence = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().len()
    };
    let mut types =
        headers.get_all(CONTENT_TYPE).iter().filter(|value| essence(value) > 0).peekable();
    types.peek().is_none() || types.any(|value| essence_has(value, b"x-www-form-urlencoded"))
}

/// Looks up a field of a form. A body that is not a form has no fields.
pub(super) fn field_of_form<'b>(
    name: &str,
    headers: &HeaderMap,
    body: &Reading<'b>,
) -> FormField<'b> {
    if is_form(headers) { form_field(body.bytes(), name) } else { FormField::Missing }
}

/// Reads the key from a field of a form.
pub(super) fn form_key(
    rule: &KeyRule,
    name: &str,
    headers: &HeaderMap,
    body: &Reading<'_>,
) -> Result<Option<Key>, Refusal> {
    match field_of_form(name, headers, body) {
        FormField::Missing => Ok(None),
        FormField::Repeated => Err(invalid(KeyFault::Twice)),
        FormField::Value(value) => {
            let text = std::str::from_utf8(&value).map_err(|_| invalid(KeyError::Character))?;
            key_of(rule, text).map(Some)
        }
    }
}

/// Returns the refusal of a request with a malformed key.
pub(super) fn invalid(why: impl Into<KeyFault>) -> Refusal {
    Refusal::KeyInvalid { why: why.into() }
}

/// Returns the refusal of a request if its body lacks the key or a part of the key.
pub(super) fn missing_in_body(what: String, headers: &HeaderMap, body: &Reading<'_>) -> Refusal {
    Refusal::KeyMissing { what, body: Some(BodyKind::of(headers, body.bytes())) }
}
