//! Hashes are a storage format: stored identities must be found and recognized for ever. The values
//! were computed by a second implementation.

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_body(body: &str, how: BodyHash<'_>) -> String {
    let body = Bytes::copy_from_slice(body.as_bytes());
    hex(fingerprint("POST", "/v1/payments", Some("a=1"), &body, how).as_bytes())
}

#[test]
fn an_operation_lies_where_it_always_lay() {
    let scope = Scope::of_fields([("x-api-key", b"t1".as_slice()), ("x-account", b"a".as_slice())]);
    assert_eq!(
        hex(scope.as_bytes()),
        "8a189e6519bed5690150a276dbf008b974d62dca6ffea8c6978b7fe66494404e"
    );
    let slot = Slot::of(Space::Enforced, "payments", &scope, b"k", b"v");
    assert_eq!(slot.to_string(), "op_d5a7556657d7c691f594a9229b265f945ad9cec7");
    let slot = Slot::of(Space::Shadow, "payments", &Scope::shared(), b"k", b"");
    assert_eq!(slot.to_string(), "op_a1b646f3e84e365cb2ccad8e5df0646f44b74eec");
    assert_eq!(
        format!("op_{}", hex(slot.hash())),
        slot.to_string(),
        "a reference is the hash in digits"
    );
    assert_eq!(format!("{slot:?}"), slot.to_string());
    assert_eq!(slot.partition(), u16::from(slot.hash()[0]));
    assert_eq!(Slot::from_hash(Space::Shadow, *slot.hash()), slot);
}

#[test]
fn a_caller_is_known_again() {
    let one = Caller::of_lines("cookie", [b"a=1".as_slice(), b"b=2"]);
    assert_eq!(
        hex(one.as_bytes()),
        "72c31b6cde4b65ec17c267256e2437a6b6cf910e833ea1d8a4239c2cedb5d4dc"
    );
    assert_eq!(
        hex(one.with_scope(&Scope::shared()).as_bytes()),
        "28c36083e1f8c2423db12cf057bb3e2a0d6a4b6a94885c3720b76bf1150902b4"
    );
    assert_eq!(
        hex(Caller::nobody().as_bytes()),
        "8b42e3ff1bcdacbe9eef078c2fb2cd0bad7f98b9df694b2d1e16b93f3df7183a"
    );
}

#[test]
fn a_request_has_the_fingerprint_that_it_always_had() {
    let ignore = [Pointer::parse("/sent_at").unwrap(), Pointer::parse("/items/0").unwrap()];
    let json = |ignore| BodyHash::Json { is_json: true, ignore };
    let body =
        r#"{"b":[1,-12.50,{},[],1e3],"a":"\u00e9","sent_at":7,"items":["x",true,null,0.001]}"#;
    assert_eq!(
        of_body(body, json(&[])),
        "cc605499bba5ec18ff7c0c0bb4a20001c5ae4438265ff64f6814e6600dcedd67"
    );
    assert_eq!(
        of_body(body, json(&ignore)),
        "b625ee0dfc4a4aaf98bfb2801cfaf42f1c51bde127fd81da38f3c1b40fd74c23"
    );
    let long = format!(r#"["{}",1]"#, "x".repeat(3000));
    assert_eq!(
        of_body(&long, json(&[])),
        "b74cc32be6e411d144096601caa95254b3ec0dd19e74bd1aa662123653fa4ef6"
    );
    assert_eq!(
        of_body(body, BodyHash::Raw),
        "b60af91cd6bb57a3dc43f6515db240c08693376365e94ccd6960431caae17af8"
    );
    assert_eq!(
        of_body(body, BodyHash::None),
        "d1738af0220bec237445cb84e03153882e8fa89abcd9e6bbdf2a1c44fae8304a"
    );
    let form = "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.pdf\"\r\n\
                Content-Type: application/pdf\r\n\r\n%PDF\r\n--b--\r\n";
    assert_eq!(
        of_body(form, BodyHash::Form { boundary: "b" }),
        "37ab17de10b0e96205d52c86e2e30e9cea0754021de41b49fceb5ea69e898521"
    );
}
