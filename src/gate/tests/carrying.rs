//! The key and the identifying fields that the upstream gets, for every spelling of the key.

use http::header::{AUTHORIZATION, CONNECTION};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::engine::tests::policy;
use crate::engine::{KeyPart, KeyPlace, OnFailure, ScopeRule, UpstreamKey};
use crate::key::{KeySyntax, Pointer};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Returns the header fields that the upstream gets, for a request with this spelling of the key.
fn carried(policy: &Policy, spelling: &str) -> HeaderMap {
    let request = Request::post("/pay")
        .header(KEY, spelling)
        .header(REQUEST_ID, "the client's")
        .body(())
        .unwrap();
    let (mut parts, mut body) = (request.into_parts().0, Bytes::from_static(br#"{"key":"k"}"#));
    let intake = Intake::from_head(policy, &parts.headers, None).unwrap().unwrap();
    let content = body.clone().into();
    let identified = intake.with_body(policy, &Hashing::default(), &parts, &content);
    let key = identified.unwrap().unwrap().key;
    UpstreamKeyPlacement::new(policy, &parts, &body, &key).unwrap().apply(&mut parts, &mut body);
    parts.headers
}

/// Policies that send the key to the upstream in its own field, renamed, or shortened.
fn policies(syntax: KeySyntax) -> [Policy; 4] {
    let wanted = |name: HeaderName, max_length| {
        Some(UpstreamKey { place: KeyPlace::Header(name), max_length })
    };
    let with = |upstream_key| {
        let mut policy = policy();
        policy.key.syntax = syntax;
        Policy { upstream_key, ..policy }
    };
    [
        with(None),
        with(wanted(REQUEST_ID, 4096)),
        with(wanted(REQUEST_ID, 22)),
        with(wanted(KEY, 22)),
    ]
}

/// The field in which the upstream gets the key.
fn field_for(policy: &Policy) -> HeaderName {
    match &policy.upstream_key {
        Some(UpstreamKey { place: KeyPlace::Header(name), .. }) => name.clone(),
        _ => KEY,
    }
}

/// The spellings of one key: without quotes, with quotes, and with parameters.
fn spellings(text: &str) -> Vec<String> {
    let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut all = vec![
        text.to_owned(),
        quoted.clone(),
        format!("{quoted};v=1"),
        format!("{quoted};a; b=\"x\""),
    ];
    all.retain(|spelling| HeaderValue::from_str(spelling).is_ok());
    all
}

proptest! {
    #[test]
    fn any_two_spellings_of_one_key_leave_as_the_same_bytes(text in "[ -~]{1,60}") {
        use crate::key::Key;
        for syntax in [KeySyntax::Lenient, KeySyntax::Strict, KeySyntax::Word] {
            let read = |spelling: &String| {
                let key = Key::parse(spelling.as_bytes(), syntax, 255).ok()?;
                Some((key, spelling.clone()))
            };
            let all: Vec<_> = spellings(&text).iter().filter_map(read).collect();
            for policy in policies(syntax) {
                for (key, spelling) in &all {
                    let same = all.iter().filter(|(other, _)| other == key);
                    let fields = carried(&policy, spelling);
                    for (_, other) in same {
                        prop_assert_eq!(&fields, &carried(&policy, other));
                    }
                    let renamed = field_for(&policy) != KEY;
                    prop_assert_eq!(fields.get_all(KEY).iter().count(), usize::from(!renamed));
                    prop_assert_eq!(fields.get_all(REQUEST_ID).iter().count(), 1);
                }
            }
        }
    }

    #[test]
    fn two_keys_never_leave_as_the_same_bytes(a in "[ -~]{1,8}", b in "[ -~]{1,8}") {
        prop_assume!(a != b);
        let quoted = |text: &str| {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
        };
        for policy in policies(KeySyntax::Lenient) {
            prop_assert_ne!(carried(&policy, &quoted(&a)), carried(&policy, &quoted(&b)));
        }
    }
}

#[test]
fn a_derived_key_and_a_key_in_the_body_change_no_field() {
    let body_key =
        crate::engine::KeySource::Sent { header: None, body: Pointer::parse("/key"), form: None };
    for source in [crate::engine::KeySource::Derived(vec![KeyPart::Path]), body_key] {
        let mut policy = policy();
        policy.key.source = source;
        let fields = carried(&policy, "\"k\"");
        assert_eq!(
            (&fields[KEY], &fields[REQUEST_ID]),
            (&"\"k\"".parse().unwrap(), &"the client's".parse().unwrap())
        );
    }
}

#[test]
fn connection_keeps_its_other_options() {
    let mut policy = policy();
    policy.scope = ScopeRule::Headers(vec![HeaderName::from_static("x-tenant")]);
    policy.upstream_key = Some(UpstreamKey { place: KeyPlace::Header(REQUEST_ID), max_length: 40 });
    for (lines, expected) in [
        (&["keep-alive"][..], &["keep-alive"][..]),
        (&["close, X-Private"], &["close, X-Private"]),
        (&["Idempotency-Key"], &[]),
        (&["Upgrade, idempotency-key", "X-TENANT,X-Private"], &["Upgrade,X-Private"]),
        (&["authorization ,\tx-request-id", ""], &[]),
        (&["a b, authorization"], &["a b"]),
    ] {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONNECTION, HeaderValue::from_static(line));
        }
        headers.insert(AUTHORIZATION, HeaderValue::from_static("a"));
        keep_identifying_fields(&policy, &mut headers);
        assert_eq!(headers.get_all(CONNECTION).iter().collect::<Vec<_>>(), expected, "{lines:?}");
        assert!(headers.contains_key(AUTHORIZATION));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_store_the_upstream_also_gets_all_spellings_of_a_key_in_one_form() {
    for policy in policies(KeySyntax::Lenient) {
        let name = field_for(&policy);
        let scene =
            Scene::with(&[Fault::Refused; 8], Policy { on_failure: OnFailure::FailOpen, ..policy });
        let seen: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
        let upstream = || {
            let seen = seen.clone();
            service_fn(move |request: Request<Payload<Full<Bytes>>>| {
                seen.lock().unwrap().push(request.headers().clone());
                async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))) }
            })
        };
        for spelling in ["\"k\";v=1", "k"] {
            let request = buffered(&scene.gate, &scene.guarded, spelling);
            let answered = scene.gate.handle(&scene.guarded, request, upstream()).await.unwrap();
            assert_eq!(answered.answer, Answer::Unprotected);
        }
        let seen = seen.lock().unwrap();
        assert_eq!(
            seen.iter().map(|fields| fields[&name].to_str().unwrap()).collect::<Vec<_>>(),
            ["k", "k"]
        );
    }
}
