//! Fingerprints of bodies: forms are compared by their parts, and bodies in an unreadable encoding
//! by their bytes.

use crate::harness::{Gateway, ROUTES, Request, Upstream, until};

/// A multipart form with this boundary.
fn form(boundary: &str, amount: &str) -> Request {
    let body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n{amount}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"receipt\"; filename=\"r.txt\"\r\n\
         Content-Type: text/plain\r\n\r\nthanks\r\n--{boundary}--\r\n"
    );
    let media = format!("multipart/form-data; boundary={boundary}");
    Request::new("POST", "/v1/payments")
        .field("Idempotency-Key", "k")
        .field("Content-Type", &media)
        .body(body)
}

#[test]
fn a_retried_form_is_the_same_though_its_boundary_is_not() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let first = form("first", "10").send(gateway.port);
    let again = form("----second", "10").send(gateway.port);
    assert!(again.replayed() && again.body == first.body, "{again:?}");
    assert_eq!(form("first", "11").send(gateway.port).problem(), "key-reused");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_body_with_the_key_has_to_match_its_content_encoding() {
    let upstream = Upstream::start();
    for route in [
        "key = { body = \"/key\" }",
        "key = { header = \"Idempotency-Key\", body = \"/key\" }",
        "key = { derive = [\"path\", \"body:/order\"] }",
    ] {
        let gateway = Gateway::with(
            upstream.port,
            "",
            &format!("[[routes]]\npath = \"/v1/payments\"\n{route}"),
        );
        let pay = Request::pay("k", r#"{"key":"k","order":1}"#);
        for coding in ["gzip", "identity, br", "x-unknown"] {
            let refused = pay.clone().field("Content-Encoding", coding).send(gateway.port);
            assert_eq!(
                (refused.status, refused.problem().as_str()),
                (415, "unsupported-encoding"),
                "{route}: {coding}"
            );
            let accepted = Some("gzip, deflate, br, zstd, identity");
            assert_eq!(
                (refused.get("accept-encoding"), refused.get("retry-after")),
                (accepted, None)
            );
        }
        let before = upstream.executed();
        assert_eq!(
            pay.field("Content-Encoding", "Identity").send(gateway.port).status,
            201,
            "{route}"
        );
        assert_eq!(upstream.executed(), before + 1);
    }
    assert_eq!(upstream.executed(), 3, "none of the others was forwarded");
}

#[test]
fn a_body_that_does_not_match_its_content_encoding_is_compared_as_it_is() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ROUTES);
    let pay = |body: &[u8]| Request::pay("k", "").body(body).field("Content-Encoding", "gzip");
    assert_eq!(pay(b"\x1f\x8b1").send(gateway.port).status, 201);
    assert!(pay(b"\x1f\x8b1").send(gateway.port).replayed());
    assert_eq!(pay(b"\x1f\x8b2").send(gateway.port).problem(), "key-reused");
    assert_eq!(upstream.executed(), 1);
}

/// Starts a gateway that reads the key from the body.
const IN_THE_BODY: [&str; 3] = [
    "key = { body = \"/key\" }",
    "key = { header = \"Idempotency-Key\", body = \"/key\" }",
    "key = { derive = [\"path\", \"body:/key\"] }",
];

fn keyed_by_body(upstream: &Upstream, route: &str) -> Gateway {
    Gateway::with(
        upstream.port,
        "",
        &format!("[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\n{route}"),
    )
}

fn in_utf_16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn a_body_that_claims_json_and_can_not_be_read_reaches_nobody_where_the_key_is_in_it() {
    let upstream = Upstream::start();
    let good = r#"{"key":"k"}"#;
    let deep = format!("{{\"key\":\"k\",\"a\":{}{}}}", "[".repeat(130), "]".repeat(130));
    let bodies: Vec<Vec<u8>> = vec![
        [&b"\xff\xfe"[..], &in_utf_16(good)].concat(),
        in_utf_16(good),
        br#"{"key":"k","amount":NaN}"#.to_vec(),
        br#"{"key":"k","amount":1"#.to_vec(),
        br#"{"key":"k"} {"key":"l"}"#.to_vec(),
        br#"{"key":"k",}"#.to_vec(),
        b"{\"key\":\"k\",\"name\":\"caf\xe9\"}".to_vec(),
        [b"\xef\xbb\xbf\xef\xbb\xbf", good.as_bytes()].concat(),
        deep.into_bytes(),
    ];
    for route in IN_THE_BODY {
        let gateway = keyed_by_body(&upstream, route);
        for body in &bodies {
            for media in
                ["application/json", "Application/Vnd.Pay+JSON; charset=utf-16", "text/plain", ""]
            {
                let pay = Request::new("POST", "/v1/payments")
                    .field("Content-Type", media)
                    .body(body.clone());
                let refused = pay.send(gateway.port);
                let shown = String::from_utf8_lossy(body);
                assert_eq!(
                    (refused.status, refused.problem().as_str()),
                    (400, "body-unreadable"),
                    "{route}: {shown}"
                );
                assert_eq!(
                    (refused.get("retry-after"), &refused.json()["retryable"]),
                    (None, &false.into())
                );
            }
        }
        let comment =
            Request::new("POST", "/v1/payments").json("/* for the till */ {\"key\":\"k\"}");
        assert_eq!(comment.send(gateway.port).problem(), "body-unreadable", "{route}");
        let counted = gateway
            .metric("onceward_requests_total{route=\"payments\",outcome=\"body_unreadable\"}");
        assert_eq!(counted, 1.0 + 4.0 * bodies.len() as f64);
    }
    let either = keyed_by_body(&upstream, IN_THE_BODY[1]);
    let refused = Request::pay("k", r#"{"key":"other","amount":NaN}"#).send(either.port);
    assert_eq!(refused.problem(), "body-unreadable", "a field does not replace the body");
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let upstream = Upstream::start();
    let marked = b"\xef\xbb\xbf{\"key\":\"k\", \"amount\":1.0}";
    for route in IN_THE_BODY.into_iter().chain(["key = { required = true }"]) {
        let gateway = keyed_by_body(&upstream, route);
        let pay = |body: &[u8]| {
            let pay = if route.contains("body") {
                Request::new("POST", "/v1/payments")
            } else {
                Request::pay("k", "")
            };
            pay.field("Content-Type", "application/json").body(body).send(gateway.port)
        };
        assert_eq!(pay(marked).status, 201, "{route}");
        assert_eq!(upstream.seen().pop().unwrap().body, marked, "the upstream gets it as it came");
        assert!(
            pay(br#"{"amount":1,"key":"k"}"#).replayed(),
            "{route}: with and without it, a body is one document"
        );
        assert_eq!(pay(br#"{"amount":2,"key":"k"}"#).problem(), "key-reused", "{route}");
    }
    assert_eq!(upstream.executed(), 4);
}

#[test]
fn a_body_that_claims_nothing_has_no_key() {
    let upstream = Upstream::start();
    let gateway = keyed_by_body(&upstream, "key = { body = \"/key\" }");
    for (media, body) in [
        ("application/x-www-form-urlencoded", "key=k"),
        ("text/plain", "key: k"),
        ("application/json", ""),
        ("application/json", "\r\n"),
        ("", "\u{feff}"),
    ] {
        for _ in 0..2 {
            let passed = Request::new("POST", "/v1/payments")
                .field("Content-Type", media)
                .body(body)
                .send(gateway.port);
            assert!(passed.status == 201 && !passed.replayed(), "{media}: {body:?}");
        }
    }
    let derived = keyed_by_body(&upstream, "key = { derive = [\"body:/key\"] }");
    let form =
        Request::new("POST", "/v1/payments").field("Content-Type", "text/plain").body("key: k");
    assert_eq!(form.send(derived.port).problem(), "key-missing");
    assert_eq!(upstream.executed(), 10);
}

#[test]
fn what_would_be_unreadable_is_counted_where_a_route_only_watches() {
    let upstream = Upstream::start();
    let gateway = keyed_by_body(&upstream, "mode = \"shadow\"\nkey = { body = \"/key\" }");
    assert_eq!(
        Request::new("POST", "/v1/payments")
            .json(r#"{"key":"k","amount":NaN}"#)
            .send(gateway.port)
            .status,
        201
    );
    let counted = "onceward_shadow_total{route=\"payments\",would=\"refuse_body_unreadable\"}";
    until("it to be counted", || gateway.metric(counted) == 1.0);
}
