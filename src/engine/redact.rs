//! Redaction: members of a result that must not be stored are replaced.
//!
//! Danger: an answer must never change after a client got it, so a result is redacted before any
//! client gets it. A body that can't be parsed may contain such a member, so it is not stored at
//! all.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::key::{Pointer, UnclearJson, with_values_replaced};
use crate::record::{Reply, ReplyBody};

/// The replacement for a value. It is a text that no reader takes for a real value.
pub(super) const REDACTED: &str = "[redacted]";

/// Fields that describe the exact bytes of the upstream's body (RFC 9110, section 8.8.3; RFC 9530;
/// RFC 3230; RFC 1864).
const OF_THE_BYTES: [HeaderName; 5] = [
    ETAG,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Returns the reply with the values at these pointers replaced. A body becomes
/// [`ReplyBody::NotStored`] if it is encoded, if it claims to be JSON and is malformed, or if two
/// parsers could interpret it differently.
pub fn redacted(reply: Reply, pointers: &[Pointer]) -> Reply {
    let ReplyBody::Whole(body) = &reply.body else { return reply };
    if pointers.is_empty() || body.is_empty() {
        return reply;
    }
    if is_encoded(&reply.headers) {
        return Reply { body: ReplyBody::NotStored, ..reply };
    }
    match with_values_replaced(body, pointers, REDACTED) {
        Ok(replaced) if replaced == *body => reply,
        Ok(replaced) => {
            let mut reply = Reply { body: ReplyBody::Whole(replaced), ..reply };
            for name in &OF_THE_BYTES {
                reply.headers.remove(name);
            }
            reply
        }
        Err(UnclearJson::NotJson) if !claims_json(&reply.headers) => reply,
        Err(_) => Reply { body: ReplyBody::NotStored, ..reply },
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    !codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

/// Returns whether the media type is a kind of JSON, including sequences of documents.
fn claims_json(headers: &HeaderMap) -> bool {
    let mut types =
        headers.get_all(CONTENT_TYPE).iter().map(|value| value.as_bytes().to_ascii_lowercase());
    types.any(|name| name.windows(4).any(|part| part == b"json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use bytes::Bytes;
    use http::StatusCode;

    fn reply(fields: &[(&'static str, &'static str)], body: &'static str) -> Reply {
        let fields = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let body = ReplyBody::Whole(Bytes::from_static(body.as_bytes()));
        Reply { status: StatusCode::CREATED, headers: fields.collect(), body, trailers: None }
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
    const PAID: &str = r#"{"id":1, "card":{"number":"4242"}}"#;

    #[test]
    fn values_are_redacted_and_unreadable_bodies_are_not_stored() {
        let pointers = [Pointer::parse("/card/number").unwrap()];
        for (fields, body, kept) in [
            (&[JSON][..], PAID, Some(r#"{"id":1, "card":{"number":"[redacted]"}}"#)),
            (
                &[("content-type", "application/vnd.a+JSON")],
                PAID,
                Some(r#"{"id":1, "card":{"number":"[redacted]"}}"#),
            ),
            // JSON under any media type, or none.
            (&[], PAID, Some(r#"{"id":1, "card":{"number":"[redacted]"}}"#)),
            (
                &[("content-type", "text/plain")],
                PAID,
                Some(r#"{"id":1, "card":{"number":"[redacted]"}}"#),
            ),
            (
                &[JSON, ("content-encoding", "identity")],
                PAID,
                Some(r#"{"id":1, "card":{"number":"[redacted]"}}"#),
            ),
            (&[JSON], r#"{"id":1}"#, Some(r#"{"id":1}"#)),
            (&[JSON], "", Some("")),
            (&[JSON, ("content-encoding", "gzip")], "", Some("")),
            (&[("content-type", "text/html")], "<p>paid</p>", Some("<p>paid</p>")),
            (&[JSON, ("content-encoding", "gzip")], "\u{1f}", None),
            (&[("content-type", "text/plain"), ("content-encoding", "gzip")], "\u{1f}", None),
            (&[JSON], r#"{"card":{"number":"42"#, None),
            (&[JSON], r#"{"card":1,"card":{"number":"4242"}}"#, None),
            (&[("content-type", "text/plain")], r#"{"card":1,"card":{"number":"4242"}}"#, None),
            (
                &[("content-type", "application/x-ndjson")],
                "{}\n{\"card\":{\"number\":\"4242\"}}",
                None,
            ),
        ] {
            let found = redacted(reply(fields, body), &pointers);
            let expected = kept.map_or(ReplyBody::NotStored, |text| {
                ReplyBody::Whole(Bytes::from_static(text.as_bytes()))
            });
            assert_eq!(found.body, expected, "{fields:?} {body}");
            assert_eq!(
                redacted(found.clone(), &pointers),
                found,
                "a second time it changes nothing: {body}"
            );
            assert_eq!(
                redacted(reply(fields, body), &[]),
                reply(fields, body),
                "there are no pointers: {body}"
            );
        }
    }

    #[test]
    fn a_changed_body_loses_the_fields_that_describe_its_bytes() {
        let pointers = [Pointer::parse("/card/number").unwrap()];
        let fields = [
            JSON,
            ("etag", "\"1\""),
            ("content-digest", "sha-256=:x:"),
            ("digest", "x"),
            ("content-md5", "x"),
            ("location", "/1"),
        ];
        let changed = redacted(reply(&fields, PAID), &pointers);
        let mut left: Vec<_> = changed.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "location"]);
        assert_eq!(
            redacted(reply(&fields, "{}"), &pointers).headers.len(),
            fields.len(),
            "an unchanged body keeps them"
        );
    }
}
