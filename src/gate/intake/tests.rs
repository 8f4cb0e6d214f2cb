//! Tables of the fields that identify a caller, and of the bodies that have to be JSON.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Request};

use super::*;
use crate::engine::tests::policy;
use crate::engine::{CallerRule, OnMismatch};
use crate::gate::intake::body::claims_json;
use crate::key::{Pointer, path};

const TENANT: HeaderName = HeaderName::from_static("x-tenant");

fn headers(lines: &[(&str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers
            .append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

fn caller_of(lines: &[(&str, &[u8])]) -> Caller {
    let names = ["authorization", "x-api-key", "cookie"].map(HeaderName::from_static).to_vec();
    caller(&CallerRule::Headers(names), &Scope::shared(), &headers(lines)).unwrap()
}

fn scope_of(name: HeaderName, lines: &[(&str, &[u8])]) -> Result<Scope, Refusal> {
    scope(&ScopeRule::Headers(vec![name]), &headers(lines), None)
}

#[test]
fn the_first_caller_field_with_a_credential_is_the_caller() {
    let mine = caller_of(&[("x-api-key", b"mine")]);
    for nothing in [
        &b""[..],
        b" ",
        b"\t",
        b"Basic",
        b"bearer",
        b" Bearer ",
        b"DPOP",
        b"digest\t",
        b"Negotiate",
    ] {
        assert_eq!(caller_of(&[("authorization", nothing), ("x-api-key", b"mine")]), mine);
        assert_eq!(
            caller_of(&[
                ("authorization", nothing),
                ("authorization", nothing),
                ("x-api-key", b"mine")
            ]),
            mine
        );
        assert_eq!(caller_of(&[("authorization", nothing)]), Caller::nobody());
        assert_eq!(
            caller_of(&[("authorization", nothing), ("x-api-key", nothing)]),
            Caller::nobody()
        );
    }
    for word in
        [&b"sk_live_a"[..], b"Bearer:", b"Bearer,", b"Bearer Bearer", b"Basic Og==", b"\xe9"]
    {
        let named = caller_of(&[("authorization", word), ("x-api-key", b"mine")]);
        assert!(named != mine && named != Caller::nobody());
    }
}

#[test]
fn white_space_around_a_value_is_no_part_of_a_caller_or_a_scope() {
    let padded: [(&str, &[u8]); 1] = [("authorization", b" \tBearer a ")];
    assert_eq!(caller_of(&padded), caller_of(&[("authorization", b"Bearer a")]));
    assert_eq!(
        scope_of(TENANT, &[("x-tenant", b" alice\t")]),
        scope_of(TENANT, &[("x-tenant", b"alice")])
    );
    assert!(matches!(scope_of(TENANT, &[("x-tenant", b" \t")]), Err(Refusal::ScopeMissing { .. })));
}

#[test]
fn every_line_of_a_callers_field_counts() {
    let once = caller_of(&[("authorization", b"a")]);
    let twice = [&b"a"[..], b"b", b""]
        .map(|second| caller_of(&[("authorization", b"a"), ("authorization", second)]));
    assert!(
        twice.iter().all(|caller| *caller != once) && twice[0] != twice[1] && twice[1] != twice[2]
    );
}

#[test]
fn all_forms_of_a_path_give_one_identity_and_without_by_path_the_path_does_not_count() {
    let of = |by_path, path_case, path: &str| {
        variant(&Policy { by_path, path_case, ..policy() }, path, None)
    };
    let (exact, folded) = (path::PathCase::Sensitive, path::PathCase::Insensitive);
    assert_eq!(of(false, exact, "/a"), b"");
    assert_ne!(of(true, exact, "/a"), of(true, exact, "/b"));
    assert_ne!(of(true, exact, "/a"), of(true, exact, "/A"));
    assert_eq!(of(true, exact, "/a"), of(true, exact, "/%61/"));
    assert_eq!(of(true, folded, "/a"), of(true, folded, "/A"));
    // The slots of stored records depend on these bytes.
    let hex: String =
        of(true, exact, "/v1/payments").iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "72a62a97ef8bd561");

    let supersede = Policy { on_mismatch: OnMismatch::Supersede, ..policy() };
    let print = fingerprint("POST", "/a", None, Reading::new(b""), BodyHash::Raw);
    assert_eq!(variant(&supersede, "/a", Some(&print)), print.as_bytes());
    let both = Policy { by_path: true, ..supersede };
    assert_ne!(variant(&both, "/a", Some(&print)), variant(&both, "/b", Some(&print)));
    assert_ne!(variant(&both, "/a", Some(&print)), of(true, exact, "/a"));
}

#[test]
fn a_plain_scope_field_comes_once_and_has_a_value() {
    let repeated = |name: &str| Err(Refusal::ScopeRepeated { what: format!("the field {name}") });
    for second in [&b"alice"[..], b"bob", b""] {
        assert_eq!(
            scope_of(TENANT, &[("x-tenant", b"alice"), ("x-tenant", second)]),
            repeated("x-tenant")
        );
        assert_eq!(
            scope_of(TENANT, &[("x-tenant", second), ("x-tenant", b"alice")]),
            repeated("x-tenant")
        );
    }
    let missing =
        |found: Result<Scope, Refusal>| matches!(found, Err(Refusal::ScopeMissing { .. }));
    assert!(missing(scope_of(TENANT, &[])) && missing(scope_of(TENANT, &[("x-tenant", b"")])));
    assert!(missing(scope_of(AUTHORIZATION, &[("authorization", b"bearer")])));
    assert!(scope_of(AUTHORIZATION, &[("authorization", b"sk_live_a")]).is_ok());
    assert!(scope_of(TENANT, &[("x-tenant", b"basic")]).is_ok(), "a tenant's name");
}

#[test]
fn a_body_claims_json_by_its_media_type_or_by_its_first_character() {
    let json: (&str, &[u8]) = ("content-type", b"application/json");
    for (lines, body, claims) in [
        (&[json][..], &b"NaN"[..], true),
        (&[json], b"", false),
        (&[json], b" \r\n\t", false),
        (&[json], b"\xef\xbb\xbf", false),
        (&[("content-type", b"text/json; charset=utf-8")], b"x", true),
        (&[("content-type", b"application/vnd.pay+JSON")], b"x", true),
        (&[("content-type", b"text/plain"), json], b"x", true),
        (&[("content-type", b"text/plain, application/json")], b"x", true),
        (&[("content-type", b"text/plain; name=a.json")], b"x", false),
        (&[("content-type", b"text/plain")], b"  {", true),
        (&[], b"[1", true),
        (&[], b"\xef\xbb\xbf{", true),
        (&[], b"\xff\xfe{\0", true),
        (&[], b"\xfe\xff\0{", true),
        (&[], b"\0\0\0{", true),
        (&[], b"key=k", false),
        (&[("content-type", b"multipart/form-data; boundary=b")], b"--b\r\n", false),
    ] {
        assert_eq!(claims_json(&headers(lines), body), claims, "{lines:?} {body:?}");
    }
}

#[test]
fn a_body_that_claims_json_and_is_not_json_is_refused_if_a_key_may_be_in_it() {
    let mut policy = policy();
    let pointer = Pointer::parse("/key").unwrap();
    let (parts, ()) =
        Request::post("/pay").header("idempotency-key", "k").body(()).unwrap().into_parts();
    for source in [
        KeySource::Sent { header: None, body: Some(pointer.clone()), form: None },
        KeySource::Sent {
            header: Some(HeaderName::from_static("idempotency-key")),
            body: Some(pointer.clone()),
            form: None,
        },
        KeySource::Derived(vec![KeyPart::Body(pointer.clone())]),
    ] {
        policy.key.source = source;
        let found = |body: &'static [u8]| {
            let intake = Intake::from_head(&policy, &parts.headers, None).unwrap().unwrap();
            let content = Bytes::from_static(body).into();
            let identified = intake.with_body(&policy, &Hashing::default(), &parts, &content);
            identified.map(|identified| identified.unwrap().operation.slot)
        };
        assert_eq!(found(br#"{"key":"k","amount":NaN}"#), Err(Refusal::BodyUnreadable));
        assert!(matches!(found(br#"{"key":"k","key":"k"}"#), Err(Refusal::KeyInvalid { .. })));
        let (plain, marked) = (found(br#"{"key":"k"}"#), found(b"\xef\xbb\xbf{\"key\":\"k\"}"));
        // The byte order mark does not change the operation. Without a JSON media type only the
        // fingerprints differ, because the bodies are compared as bytes.
        assert_eq!(plain.unwrap(), marked.unwrap());
    }
}
