//! Requests with a form as body: a field is their key, or a part of it.

use crate::harness::{Answer, Gateway, Request, Upstream};

const FORM: &str = "application/x-www-form-urlencoded";

fn gateway(upstream: &Upstream, route: &str) -> Gateway {
    Gateway::with(upstream.port, "", &format!("[[routes]]\npath = \"/v1/payments\"\n{route}"))
}

fn send(gateway: &Gateway, media_type: &str, body: &str) -> Answer {
    let request = Request::new("POST", "/v1/payments").body(body.as_bytes());
    let typed =
        if media_type.is_empty() { request } else { request.field("Content-Type", media_type) };
    typed.send(gateway.port)
}

#[test]
fn a_form_is_known_by_one_of_its_fields() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "key = { form = \"txn id\", required = true }");
    assert_eq!(send(&gateway, FORM, "amount=1&txn+id=a%21b").status, 201);
    assert!(send(&gateway, FORM, "amount=1&txn+id=a%21b").replayed());
    for (media_type, body) in [
        (FORM, "amount=2&txn%20id=a!b"),
        ("", "txn%20id=a%21b"),
        ("Application/X-WWW-Form-URLencoded; charset=utf-8", "txn+id=a!b"),
    ] {
        assert_eq!(
            send(&gateway, media_type, body).problem(),
            "key-reused",
            "{media_type}: {body}"
        );
    }
    assert_eq!(send(&gateway, FORM, "txn+id=b").status, 201);
    for (body, problem) in [
        ("txn+id=a&txn+id=a", "key-invalid"),
        ("txn+id=a&amount=1&t%78n+id=b", "key-invalid"),
        ("txn+id=", "key-invalid"),
        ("txn+id=%FF", "key-invalid"),
        ("amount=1&TXN+id=a", "key-missing"),
    ] {
        let refused = send(&gateway, FORM, body);
        assert_eq!((refused.status, refused.problem().as_str()), (400, problem), "{body}");
    }
    assert_eq!(upstream.executed(), 2);
    assert!(
        upstream.seen().iter().all(|seen| seen.get("idempotency-key").is_none()),
        "the key stays where it came"
    );
}

#[test]
fn a_key_is_derived_from_fields_of_a_form() {
    let upstream = Upstream::start();
    let gateway = gateway(
        &upstream,
        "key = { derive = [\"path\", \"form:/txn_id\", \"form:/order[a~1b]\"] }",
    );
    let first = send(&gateway, FORM, "txn_id=7&order[a/b]=x&z=1");
    assert_eq!(first.status, 201, "{}", first.text());
    assert!(send(&gateway, FORM, "txn_id=7&order[a/b]=x&z=1").replayed());
    assert_eq!(
        send(&gateway, FORM, "order%5Ba%2Fb%5D=x&txn_id=%37").problem(),
        "key-reused",
        "the same key"
    );
    assert_eq!(send(&gateway, FORM, "txn_id=8&order[a/b]=x&z=1").status, 201);
    for (body, problem) in [
        ("txn_id=7", "key-missing"),
        ("txn_id=&order[a/b]=x", "key-missing"),
        ("txn_id=7&txn_id=7&order[a/b]=x", "key-invalid"),
    ] {
        let refused = send(&gateway, FORM, body);
        assert_eq!((refused.status, refused.problem().as_str()), (400, problem), "{body}");
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_route_takes_the_key_from_whatever_kind_of_body_comes() {
    let upstream = Upstream::start();
    let gateway = gateway(
        &upstream,
        "key = { header = \"Idempotency-Key\", body = \"/txn\", form = \"txn\" }",
    );
    assert_eq!(send(&gateway, FORM, "txn=k").status, 201);
    assert_eq!(send(&gateway, "application/json", r#"{"txn":"k"}"#).problem(), "key-reused");
    let form = |key: &str, body: &str| {
        let request = Request::new("POST", "/v1/payments").field("Idempotency-Key", key);
        request.field("Content-Type", FORM).body(body.as_bytes()).send(gateway.port)
    };
    assert_eq!(form("other", "txn=k").problem(), "key-invalid", "two different keys");
    assert_eq!(form("j", "a=1").status, 201, "one in the field alone");
    assert_eq!(
        upstream.seen().iter().filter(|seen| seen.get("idempotency-key").is_some()).count(),
        2,
        "the field is set"
    );
}

#[test]
fn a_refusal_names_the_kind_of_body_that_was_read_and_no_value() {
    let upstream = Upstream::start();
    let json = gateway(&upstream, "key = { derive = [\"path\", \"body:/txn_id\"] }");
    let form = gateway(&upstream, "key = { form = \"txn_id\", required = true }");
    for (gateway, media_type, body, piece) in [
        (&json, FORM, "secret=4242", "the body was read as a form"),
        (&form, "application/json", r#"{"txn_id":"4242"}"#, "the body was read as JSON"),
        (&json, "application/json", r#"{"secret":"4242"}"#, "the body was read as JSON"),
        (
            &form,
            "multipart/form-data; boundary=b",
            "--b\r\n\r\n4242",
            "a form in parts (multipart/form-data)",
        ),
        (&form, "text/plain", "txn_id=4242", "neither JSON nor a form"),
        (&form, FORM, "", "the request has no body"),
    ] {
        let refused = send(gateway, media_type, body);
        let text = refused.text();
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (400, "key-missing"),
            "{media_type}: {text}"
        );
        assert!(text.contains(piece) && text.contains("txn_id is required and missing"), "{text}");
        assert!(!text.contains("4242"), "{text}");
    }
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn a_body_without_a_type_is_a_form_whatever_it_begins_with() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "key = { form = \"k\" }");
    let send = |types: &[&str], body: &str| {
        let request = Request::new("POST", "/v1/payments").body(body.as_bytes());
        types
            .iter()
            .fold(request, |request, value| request.field("Content-Type", value))
            .send(gateway.port)
    };
    for (n, (types, body)) in
        [(&[][..], "[x]=1&k="), (&[], "{&k="), (&[], " {}&k="), (&[""], "a=1&k="), (&[";"], "k=")]
            .into_iter()
            .enumerate()
    {
        let body = format!("{body}b{n}");
        assert_eq!(send(types, &body).status, 201, "{body}");
        assert!(send(types, &body).replayed(), "{body}");
    }
    assert_eq!(upstream.executed(), 5);
}

#[test]
fn connection_does_not_take_away_how_a_body_is_read() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "key = { form = \"k\" }");
    let request = Request::new("POST", "/v1/payments").body("k=a").field("Content-Type", FORM);
    let request = request
        .field("Content-Encoding", "identity")
        .field("Connection", "Content-Type, content-encoding");
    assert_eq!(request.send(gateway.port).status, 201);
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        (seen.get("content-type"), seen.get("content-encoding")),
        (Some(FORM), Some("identity"))
    );
}
