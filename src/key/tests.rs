//! Stories of keys, scopes and fingerprints: which are equal, and which are refused.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

mod formats;

fn key(value: &[u8]) -> Result<String, KeyError> {
    Key::parse(value, KeySyntax::Lenient, 255).map(|key| key.as_str().to_owned())
}

fn json(body: &str) -> Fingerprint {
    json_without(body, &[])
}

fn json_without(body: &str, ignore: &[&str]) -> Fingerprint {
    let ignore: Vec<Pointer> = ignore.iter().map(|p| Pointer::parse(p).unwrap()).collect();
    let how = BodyHash::Json { is_json: true, ignore: &ignore };
    fingerprint("POST", "/v1/payments", None, &Bytes::copy_from_slice(body.as_bytes()), how)
}

#[test]
fn a_quoted_and_a_bare_key_are_the_same_key() {
    assert_eq!(key(b"\"abc\"").unwrap(), "abc");
    assert_eq!(key(b"abc").unwrap(), "abc");
    assert_eq!(key(b"\"abc\";a=1").unwrap(), "abc");
    assert_eq!(key(br#""a\"b\\c""#).unwrap(), r#"a"b\c"#);
    assert_eq!(
        key(b"8e03978e-40d5-43e8-bc93-6894a57f9324").unwrap(),
        "8e03978e-40d5-43e8-bc93-6894a57f9324"
    );
    assert_eq!(key(b"\"with space\"").unwrap(), "with space");
}

#[test]
fn a_malformed_key_is_refused_with_its_reason() {
    let rows: [(&[u8], KeyError); 10] = [
        (b"", KeyError::Empty),
        (b"\"\"", KeyError::Empty),
        (b"a b", KeyError::Character),
        (b"a\tb", KeyError::Character),
        (b"ab\"c", KeyError::Character),
        (b"caf\xc3\xa9", KeyError::Character),
        (b"a\x7f", KeyError::Character),
        (b"\"abc", KeyError::Quoting),
        (b"\"abc\" x", KeyError::Quoting),
        (b"\"a\", \"b\"", KeyError::Quoting),
    ];
    for (value, expected) in rows {
        assert_eq!(key(value).unwrap_err(), expected, "{}", String::from_utf8_lossy(value));
    }
}

#[test]
fn the_length_that_counts_is_the_decoded_one() {
    let quoted = format!("\"{}\"", "\\\\".repeat(4));
    assert_eq!(Key::parse(quoted.as_bytes(), KeySyntax::Lenient, 4).unwrap().as_str().len(), 4);
    assert_eq!(
        Key::parse(b"abcde", KeySyntax::Lenient, 4).unwrap_err(),
        KeyError::TooLong { max: 4 }
    );
}

#[test]
fn in_a_body_a_key_is_a_text_of_printable_ascii() {
    let key =
        |text: &str| Key::from_body(text, KeySyntax::Lenient, 4).map(|key| key.as_str().to_owned());
    for taken in ["abcd", "a b", "\"a\"", " ", "~"] {
        assert_eq!(key(taken).as_deref(), Ok(taken), "taken as it is");
    }
    for odd in ["a\tb", "a\n", "\0", "\u{7f}", "\u{e9}"] {
        assert_eq!(key(odd), Err(KeyError::Character), "{odd:?}");
    }
    assert_eq!(key(""), Err(KeyError::Empty));
    assert_eq!(key("abcde"), Err(KeyError::TooLong { max: 4 }));
    assert!(matches!(Key::from_body("a.b", KeySyntax::Word, 4), Err(KeyError::Form { .. })));
}

#[test]
fn a_route_can_ask_for_a_form() {
    let form = |value: &str, syntax| Key::parse(value.as_bytes(), syntax, 255).is_ok();
    assert!(!form("abc", KeySyntax::Strict));
    assert!(form("\"abc\"", KeySyntax::Strict));
    assert!(form("8e03978e-40d5-43e8-bc93-6894a57f9324", KeySyntax::UuidV4));
    assert!(!form("8e03978e-40d5-13e8-bc93-6894a57f9324", KeySyntax::UuidV4));
    assert!(form("8e03978e-40d5-13e8-bc93-6894a57f9324", KeySyntax::Uuid));
    assert!(!form("00000000-0000-0000-0000-000000000000", KeySyntax::Uuid));
    for (value, taken) in [
        ("a;b=\\1,c", true),
        ("\"abc\"", false),
        ("\"abc\";v=1", false),
        ("a\"b", false),
        ("a b", false),
    ] {
        assert_eq!(form(value, KeySyntax::Bare), taken, "{value}");
        assert_eq!(Key::from_body(value, KeySyntax::Bare, 255).is_ok(), taken, "{value}");
    }
    assert!(form("a_B-9", KeySyntax::Word));
    assert!(!form("a.b", KeySyntax::Word));
}

#[test]
fn a_key_can_have_a_shortest_length() {
    let key = |text: &str| {
        Key::parse(text.as_bytes(), KeySyntax::Lenient, 255).and_then(|key| key.at_least(3))
    };
    assert_eq!((key("abc").is_ok(), key("\"abc\"").is_ok()), (true, true));
    for short in ["ab", "\"ab\"", "\"\\\"\\\"\""] {
        assert_eq!(
            key(short),
            Err(KeyError::TooShort { min: 3 }),
            "{short}: the decoded key counts"
        );
    }
}

#[test]
fn a_key_never_shows_itself() {
    assert_eq!(format!("{:?}", Key::parse(b"secret", KeySyntax::Lenient, 255).unwrap()), "Key(..)");
}

#[test]
fn json_is_compared_by_value() {
    for (a, b) in [
        (r#"{"a":1,"b":2}"#, r#"{ "b" : 2 , "a" : 1 }"#),
        (r#"{"a":10}"#, r#"{"a":10.0}"#),
        (r#"{"a":10}"#, r#"{"a":1e1}"#),
        (r#"{"a":10}"#, r#"{"a":1E+1}"#),
        (r#"{"a":0.001}"#, r#"{"a":1E-3}"#),
        (r#"{"a":120}"#, r#"{"a":1.2e2}"#),
        (r#"{"a":-0.0}"#, r#"{"a":0}"#),
        (r#"{"a":0e999}"#, r#"{"a":0}"#),
        (r#"{"caf\u00e9":"\u0041\n"}"#, "{\"café\":\"A\\n\"}"),
        ("[1,[2,{}]]", "[ 1 , [ 2 , { } ] ]"),
    ] {
        assert_eq!(json(a), json(b), "{a} {b}");
    }
}

#[test]
fn json_that_differs_in_value_differs_in_fingerprint() {
    for (a, b) in [
        (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#),
        (r#"{"a":0.1}"#, r#"{"a":0.10000000000000000001}"#),
        (r#"{"a":1}"#, r#"{"a":"1"}"#),
        (r#"{"a":1}"#, r#"{"a":-1}"#),
        (r#"{"a":12}"#, r#"{"a":1.2}"#),
        (r#"{"a":100}"#, r#"{"a":1}"#),
        (r#"{"a":1e400}"#, r#"{"a":1e401}"#),
        (r#"{"a":0.01}"#, r#"{"a":0.1}"#),
        (r#"{"a":1.01}"#, r#"{"a":1.1}"#),
        (r#"{"a":null}"#, r#"{}"#),
        (r#"["a","b"]"#, r#"["ab"]"#),
        (r#"[[1],2]"#, r#"[[1,2]]"#),
        (r#"{"a":true}"#, r#"{"a":"true"}"#),
        (r#"{"a":{"b":1}}"#, r#"{"a":[{"b":1}]}"#),
    ] {
        assert_ne!(json(a), json(b), "{a} {b}");
    }
}

#[test]
fn a_document_without_one_clear_value_is_compared_as_bytes() {
    // The second of each pair is equal by some reader's rule, but has other bytes.
    let deep = |pad: &str| format!("{}{pad}{}", "[".repeat(200), "]".repeat(200));
    for (a, b) in [
        (r#"{"a":1,"a":2}"#.to_owned(), r#"{"a":1, "a":2}"#.to_owned()),
        (r#"{"a":1,"\u0061":2}"#.to_owned(), r#"{"a":1, "\u0061":2}"#.to_owned()),
        (deep(""), deep(" ")),
        ("{\"a\":1".to_owned(), "{\"a\": 1".to_owned()),
        (
            r#"{"a":1e99999999999999999999}"#.to_owned(),
            r#"{"a": 1e99999999999999999999}"#.to_owned(),
        ),
    ] {
        assert_eq!(json(&a), json(&a));
        assert_ne!(json(&a), json(&b), "{a}");
    }
}

/// Whether a body is compared by value, so that surrounding white space doesn't matter.
fn is_by_value(body: &str) -> bool {
    json(body) == json(&format!(" {body} "))
}

#[test]
fn nesting_is_compared_by_value_up_to_its_bound() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let nested = |levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));
        assert!(is_by_value(&nested(JSON_DEPTH_MAX)), "{open}");
        assert!(!is_by_value(&nested(JSON_DEPTH_MAX + 1)), "{open}");
    }
}

#[test]
fn a_member_is_hashed_by_its_value_and_a_missing_one_is_reported() {
    let hashed = |body: &str, at: &str| {
        let mut hasher = PartHasher::new("test");
        let found = Document::parse(body.as_bytes())
            .unwrap()
            .hash_member(&mut hasher, &Pointer::parse(at).unwrap());
        (found, hasher.finish())
    };
    assert_eq!(hashed(r#"{"a":{"b":1.0}}"#, "/a/b"), hashed(r#"{ "a": [1] }"#, "/a/0"));
    assert!(hashed(r#"{"a":1}"#, "/a").0);
    assert_ne!(hashed(r#"{"a":1}"#, "/a"), hashed(r#"{"a":2}"#, "/a"));
    let nothing = (false, PartHasher::new("test").finish());
    for body in [r#"{"a":null}"#, "{}", "[1]", "1"] {
        assert_eq!(hashed(body, "/a"), nothing, "{body}");
    }
}

#[test]
fn huge_exponents_cost_nothing() {
    assert_ne!(json(r#"[1e9000000000000000000]"#), json(r#"[1e-9000000000000000000]"#));
}

#[test]
fn ignored_members_do_not_count() {
    let a = r#"{"metadata":{"sent_at":1,"x":2},"list":[{"t":1}]}"#;
    let b = r#"{"metadata":{"sent_at":9,"x":2},"list":[{"t":5}]}"#;
    assert_ne!(json(a), json(b));
    assert_eq!(
        json_without(a, &["/metadata/sent_at", "/list/0/t"]),
        json_without(b, &["/metadata/sent_at", "/list/0/t"])
    );
    let c = r#"{"metadata":{"sent_at":9,"x":3},"list":[{"t":5}]}"#;
    assert_ne!(
        json_without(a, &["/metadata/sent_at", "/list/0/t"]),
        json_without(c, &["/metadata/sent_at", "/list/0/t"])
    );
}

#[test]
fn every_part_of_a_request_counts() {
    let body = Bytes::from_static(b"x");
    let base = fingerprint("POST", "/a", Some("q=1"), &body, BodyHash::Raw);
    for other in [
        fingerprint("PUT", "/a", Some("q=1"), &body, BodyHash::Raw),
        fingerprint("POST", "/b", Some("q=1"), &body, BodyHash::Raw),
        fingerprint("POST", "/a", Some("q=2"), &body, BodyHash::Raw),
        fingerprint("POST", "/a", None, &body, BodyHash::Raw),
        fingerprint("POST", "/a", Some("q=1"), &Bytes::from_static(b"y"), BodyHash::Raw),
    ] {
        assert_ne!(base, other);
    }
    let none = |body: &'static [u8]| {
        fingerprint("POST", "/a", None, &Bytes::from_static(body), BodyHash::None)
    };
    assert_eq!(none(b"x"), none(b"y"));
    assert_ne!(
        fingerprint("POST", "/a", Some(""), &body, BodyHash::Raw),
        fingerprint("POST", "/a", None, &body, BodyHash::Raw)
    );
}

#[test]
fn slots_keep_routes_scopes_and_keys_apart() {
    let scope = |tenant: &'static [u8]| Scope::of_fields([("x-api-key", tenant)]);
    let slot = |route, tenant, key| Slot::of(Space::Enforced, route, &scope(tenant), key, b"");
    let base = slot("payments", b"t1", b"k");
    assert_ne!(base, slot("refunds", b"t1", b"k"));
    assert_ne!(base, slot("payments", b"t2", b"k"));
    assert_ne!(base, slot("payments", b"t1", b"l"));
    assert_eq!(base, slot("payments", b"t1", b"k"));
    assert_ne!(base, Slot::of(Space::Shadow, "payments", &scope(b"t1"), b"k", b""));
}

#[test]
fn a_reference_leads_back_to_its_slot() {
    let slot = Slot::of(Space::Enforced, "payments", &Scope::shared(), b"k", b"");
    assert_eq!(Slot::from_reference(&slot.to_string()).unwrap(), slot);
    for bad in ["", "op_", "op_12", "op_zz"] {
        assert!(Slot::from_reference(bad).is_err());
    }
}

#[test]
fn callers_differ_by_field_and_value() {
    let a = Caller::of_field("authorization", b"Bearer a");
    assert_ne!(a, Caller::of_field("authorization", b"Bearer b"));
    assert_ne!(a, Caller::of_field("x-api-key", b"Bearer a"));
    assert_ne!(a, Caller::nobody());
}

#[test]
fn every_line_of_a_callers_field_counts() {
    let cookies = |lines: &[&'static [u8]]| Caller::of_lines("cookie", lines.iter().copied());
    assert_ne!(cookies(&[b"theme=dark", b"sid=A"]), cookies(&[b"theme=dark", b"sid=B"]));
    assert_eq!(cookies(&[b"sid=A"]), Caller::of_field("cookie", b"sid=A"));
}

#[test]
fn pointers_are_unescaped() {
    assert_eq!(Pointer::parse("/a~1b/m~0n").unwrap().tokens(), ["a/b", "m~n"]);
    assert!(Pointer::parse("a").is_none());
    assert!(Pointer::parse("/a~2").is_none());
    for text in ["/a~1b/m~0n", "/~01", "/", "/a//0"] {
        assert_eq!(Pointer::parse(text).unwrap().to_string(), text, "written as it was read");
    }
}

#[test]
fn texts_numbers_and_booleans_have_a_text_and_nothing_else_has() {
    const MAX: usize = 8;
    let at = Pointer::parse("/a").unwrap();
    for (value, text) in [
        (r#""o-17""#, Some("o-17")),
        (r#""\u00e9""#, Some("\u{e9}")),
        (r#""123456789""#, None),
        ("true", Some("true")),
        ("1999", Some("1999")),
        ("12.50", Some("12.5")),
        ("-0.05", Some("-0.05")),
        ("1e2", Some("100")),
        ("125e-1", Some("12.5")),
        ("1e-3", Some("0.001")),
        ("0.0", Some("0")),
        ("12345678", Some("12345678")),
        ("123456789", None),
        ("1e9", None),
        ("1e-9", None),
        ("1e9223372036854775806", None),
        ("null", None),
        ("[1]", None),
        ("{}", None),
    ] {
        let body = format!(r#"{{"a":{value}}}"#);
        let document = Document::parse(body.as_bytes()).unwrap();
        assert_eq!(document.scalar(&at, MAX).as_deref(), text, "{value}");
    }
    assert_eq!(Document::parse(b"[]").unwrap().scalar(&at, MAX), None);
}

#[test]
fn a_body_that_was_looked_into_has_the_fingerprint_of_one_that_was_not() {
    let body = Bytes::from_static(br#"{"a":1,"b":[2]}"#);
    let ignore = [Pointer::parse("/a").unwrap()];
    let how = BodyHash::Json { is_json: true, ignore: &ignore };
    let reading = Reading::new(&body);
    assert!(reading.document().is_ok());
    assert_eq!(
        fingerprint("POST", "/", None, reading, how),
        fingerprint("POST", "/", None, &body, how)
    );
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<String>().prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Layout is not value: compact and pretty documents are equal, and equal fingerprints mean
    /// equal values.
    #[test]
    fn fingerprints_agree_with_values(a in any_json(), b in any_json()) {
        let compact = serde_json::to_string(&a).unwrap();
        let pretty = serde_json::to_string_pretty(&a).unwrap();
        prop_assert_eq!(json(&compact), json(&pretty));
        let other = serde_json::to_string(&b).unwrap();
        prop_assert_eq!(a == b, json(&compact) == json(&other));
    }

    /// For any input, an accepted key is printable, not empty and within its limit, and quoting it
    /// gives the same key.
    #[test]
    fn accepted_keys_are_clean(value in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(key) = Key::parse(&value, KeySyntax::Lenient, 20) {
            prop_assert!(!key.as_str().is_empty() && key.as_str().len() <= 20);
            prop_assert!(key.as_str().bytes().all(|b| (0x20..=0x7e).contains(&b)));
            let quoted = format!("\"{}\"", key.as_str().replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(Key::parse(quoted.as_bytes(), KeySyntax::Strict, 20).unwrap(), key);
        }
    }

    /// Any bytes can be fingerprinted.
    #[test]
    fn any_body_has_a_fingerprint(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let body = Bytes::from(body);
        let how = BodyHash::Json { is_json: true, ignore: &[] };
        let a = fingerprint("POST", "/", None, &body, how);
        prop_assert_eq!(a, fingerprint("POST", "/", None, &body, how));
    }
}
