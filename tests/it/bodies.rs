//! Bodies that tell requests apart: forms by their parts, and encoded ones that nobody here can read.

use crate::harness::{Gateway, ROUTES, Request, Upstream};

/// A form with this boundary.
fn form(boundary: &str, amount: &str) -> Request {
    let body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n{amount}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"receipt\"; filename=\"r.txt\"\r\n\
         Content-Type: text/plain\r\n\r\nthanks\r\n--{boundary}--\r\n"
    );
    let media = format!("multipart/form-data; boundary={boundary}");
    Request::new("POST", "/v1/payments").field("Idempotency-Key", "k").field("Content-Type", &media).body(body)
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
fn a_body_that_has_to_be_read_must_not_be_encoded() {
    let upstream = Upstream::start();
    for route in [
        "key = { body = \"/key\" }",
        "key = { header = \"Idempotency-Key\", body = \"/key\" }",
        "key = { derive = [\"path\", \"body:/order\"] }",
        "fingerprint = { ignore = [\"/sent_at\"] }",
    ] {
        let gateway = Gateway::with(upstream.port, "", &format!("[[routes]]\npath = \"/v1/payments\"\n{route}"));
        let pay = Request::pay("k", r#"{"key":"k","order":1}"#);
        for coding in ["gzip", "identity, br", "x-unknown"] {
            let refused = pay.clone().field("Content-Encoding", coding).send(gateway.port);
            assert_eq!((refused.status, refused.problem().as_str()), (415, "unsupported-encoding"), "{route}: {coding}");
            assert_eq!((refused.get("accept-encoding"), refused.get("retry-after")), (Some("identity"), None));
        }
        let before = upstream.executed();
        assert_eq!(pay.field("Content-Encoding", "Identity").send(gateway.port).status, 201, "{route}");
        assert_eq!(upstream.executed(), before + 1);
    }
    assert_eq!(upstream.executed(), 4, "no encoded body was forwarded");
}

#[test]
fn an_encoded_body_that_nobody_reads_is_compared_as_it_is() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ROUTES);
    let pay = |body: &[u8]| Request::pay("k", "").body(body).field("Content-Encoding", "gzip");
    assert_eq!(pay(b"\x1f\x8b1").send(gateway.port).status, 201);
    assert!(pay(b"\x1f\x8b1").send(gateway.port).replayed());
    assert_eq!(pay(b"\x1f\x8b2").send(gateway.port).problem(), "key-reused");
    assert_eq!(upstream.executed(), 1);
}
