//! The rules as a table: heads and trailers, and their faults.

use super::*;

const LIMIT: usize = 4096;

/// A good HTTP/2 head with some of it replaced.
fn checked(method: &str, path: &str, fields: &[(&str, &str)]) -> Result<BodyFraming, Refusal> {
    let target = RequestTarget::Pseudo { scheme: Some(b"http"), path: path.as_bytes() };
    let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    check_head(Version::HTTP_2, method.as_bytes(), target, fields, LIMIT)
}

#[test]
fn good_heads_pass() {
    assert_eq!(
        checked("POST", "/a?b", &[("content-length", "5"), ("te", "trailers")]),
        Ok(BodyFraming::Length(Some(5)))
    );
    assert_eq!(checked("OPTIONS", "*", &[]), Ok(BodyFraming::Length(None)));
    assert_eq!(
        checked("M-SEARCH", "/", &[("x", ""), ("y", "a\t b"), ("my_field", "\u{e9}")]),
        Ok(BodyFraming::Length(None))
    );
}

#[test]
fn faulty_heads_are_refused_for_their_fault() {
    use Malformation::{
        ConnectionField, ContentLength, ControlByte, FieldName, FieldValue, Method, Target,
    };
    for (method, path, why) in [
        ("post", "/", Method),
        ("Post", "/", Method),
        ("GET", "", Target),
        ("GET", "?x", Target),
        ("GET", "*", Target),
        ("OPTIONS", "**", Target),
        ("GET", "/a#b", Target),
        ("GET", "/a\\b", Target),
        ("GET", "/a b", Target),
        ("GET", "/\u{e9}", Target),
        ("GET", "http://a/", Target),
        ("GET", "a", Target),
    ] {
        assert_eq!(checked(method, path, &[]), Err(why.into()), "{method} {path}");
    }
    for (name, value, why) in [
        ("content_length", "5", FieldName),
        ("transfer_encoding", "chunked", FieldName),
        ("x y", "1", FieldName),
        ("", "1", FieldName),
        ("content-length", "+5", ContentLength),
        ("content-length", "05", ContentLength),
        ("x-tenant", " alice", FieldValue),
        ("x-tenant", "alice\t", FieldValue),
        ("x", "a\u{1}", ControlByte),
        ("connection", "close", ConnectionField),
        ("keep-alive", "1", ConnectionField),
        ("proxy-connection", "close", ConnectionField),
        ("transfer-encoding", "chunked", ConnectionField),
        ("upgrade", "websocket", ConnectionField),
        ("te", "gzip", ConnectionField),
    ] {
        assert_eq!(checked("POST", "/", &[(name, value)]), Err(why.into()), "{name}: {value}");
    }
    assert_eq!(checked("POST", "/", &[("content-length", "5"); 2]), Err(ContentLength.into()));
    assert_eq!(checked("TRACE", "/", &[]), Err(Refusal::MethodNotAllowed));
    let large = Err(Refusal::HeaderTooLarge { limit: LIMIT });
    assert_eq!(checked("GET", "/", &[("x", "1"); FIELDS_MAX + 1]), large);
    assert_eq!(checked("GET", "/", &[(&"x".repeat(NAME_BYTES_MAX + 1), "1")]), large);
    let ftp = RequestTarget::Pseudo { scheme: Some(b"ftp"), path: b"/" };
    assert_eq!(check_head(Version::HTTP_2, b"GET", ftp, [], LIMIT), Err(Target.into()));
}

#[test]
fn trailers_neither_frame_nor_route_nor_identify_the_caller() {
    let of = |name: &'static str, value: &'static str| {
        trailers(&HeaderMap::from_iter([(
            http::HeaderName::from_static(name),
            http::HeaderValue::from_static(value),
        )]))
    };
    assert_eq!(of("x-sum", "1"), Ok(()));
    for name in [
        "content-length",
        "content_length",
        "host",
        "authorization",
        "idempotency_key",
        "x_forwarded_for",
    ] {
        assert_eq!(of(name, "1"), Err(Malformation::Trailer), "{name}");
    }
    assert_eq!(of("x-sum", " 1"), Err(Malformation::FieldValue));
    let many = (0..=FIELDS_MAX).map(|n| {
        (http::HeaderName::try_from(format!("x-{n}")).unwrap(), http::HeaderValue::from_static("1"))
    });
    assert_eq!(trailers(&many.collect()), Err(Malformation::Trailer));
}
