//! The profile `ucp`, sentence by sentence, with the shipped example file. The sentences are from
//! "Idempotency Key Requirements" and "Payload Matching" of the Universal Commerce Protocol's
//! message signatures, and from the headers and errors of its REST binding. docs/PROFILES.md quotes
//! them.

use crate::harness::{Answer, Connection, Gateway, PATIENCE, Request, Upstream, free_port, until};

const SHIPPED: &str = include_str!("../../config/ucp.toml");
const CREATE: &str = "/checkout-sessions";
const KEY: &str = "550e8400-e29b-41d4-a716-446655440000";
const PLATFORM: &str = "profile=\"https://platform.example/.well-known/ucp\"";
const BODY: &str = r#"{"line_items":[{"item":{"id":"item_123"},"quantity":2}]}"#;

fn gateway(upstream: &Upstream) -> Gateway {
    Gateway::with(upstream.port, "", SHIPPED)
}

fn send(method: &str, path: &str, key: &str, body: &str) -> Request {
    Request::new(method, path).field("UCP-Agent", PLATFORM).field("Idempotency-Key", key).json(body)
}

/// Returns status and code of a refusal, after checking that its other member is the content.
#[track_caller]
fn refused(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), ["code", "content"], "{body}");
    assert!(
        body["content"].as_str().unwrap().len() > 20
            && answer.get("content-type") == Some("application/json")
    );
    (answer.status, body["code"].as_str().unwrap().to_owned())
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[test]
fn entropy_a_key_has_22_characters_or_more() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    for short in ["k", &"k".repeat(21)] {
        assert_eq!(
            refused(&send("POST", CREATE, short, BODY).send(gateway.port)),
            is(400, "key-invalid")
        );
    }
    assert_eq!(upstream.executed(), 0);
    for long in [KEY, &"k".repeat(22), &"k".repeat(255)] {
        assert_eq!(send("POST", CREATE, long, BODY).send(gateway.port).status, 201);
    }
    let without =
        Request::new("POST", CREATE).field("UCP-Agent", PLATFORM).json(BODY).send(gateway.port);
    assert_eq!(
        refused(&without),
        is(400, "idempotency_key_required"),
        "the REST binding requires it"
    );
}

#[test]
fn uniqueness_a_key_belongs_to_one_client_and_one_operation_type() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let operations = [
        ("POST", CREATE),
        ("PUT", "/checkout-sessions/chk_1"),
        ("POST", "/checkout-sessions/chk_1/complete"),
        ("POST", "/checkout-sessions/chk_1/cancel"),
        ("POST", "/carts"),
        ("PUT", "/carts/cart_1"),
        ("POST", "/carts/cart_1/cancel"),
    ];
    for (n, (method, path)) in operations.into_iter().enumerate() {
        for other in ["", "-2"] {
            let agent = format!("profile=\"https://platform{other}.example/.well-known/ucp\"");
            let request = Request::new(method, path)
                .field("UCP-Agent", &agent)
                .field("Idempotency-Key", KEY)
                .json(BODY);
            let (first, again) = (request.send(gateway.port), request.send(gateway.port));
            assert_eq!(
                (first.status, first.replayed(), again.replayed()),
                (201, false, true),
                "{path} {agent}"
            );
        }
        assert_eq!(upstream.executed(), 2 * (n + 1));
    }
    // The same operation type on another session is another request under the same key.
    let another = send("POST", "/checkout-sessions/chk_2/complete", KEY, BODY).send(gateway.port);
    assert_eq!(refused(&another), is(409, "idempotency_conflict"));
    let unnamed =
        Request::new("POST", CREATE).field("Idempotency-Key", KEY).json(BODY).send(gateway.port);
    assert_eq!(refused(&unnamed), is(400, "scope-missing"), "all requests have UCP-Agent");
    assert_eq!(upstream.executed(), 14);
}

#[test]
fn server_storage_results_are_kept_for_48_hours() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let published = Request::new("GET", "/.well-known/idempotency").send(gateway.port).json();
    let routes = published["routes"].as_array().unwrap();
    assert!(
        routes.len() == 7 && routes.iter().all(|route| route["retention_seconds"] == 172_800),
        "{published}"
    );
    assert!(
        routes.iter().all(|route| route["compared"] == "raw" && route["key"]["min_length"] == 22),
        "{published}"
    );
}

#[test]
fn on_a_duplicate_with_a_matching_payload_the_cached_response_is_returned() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    for (n, status) in [200, 201, 400, 404, 422].into_iter().enumerate() {
        let request =
            send("POST", CREATE, &format!("{KEY}{n}"), BODY).act(&format!("status {status}"));
        let (first, again) = (request.send(gateway.port), request.send(gateway.port));
        assert_eq!((first.status, again.status, again.replayed()), (status, status, true));
        assert_eq!(first.body, again.body);
    }
    assert_eq!(upstream.executed(), 5, "not executed again");
}

#[test]
fn on_a_duplicate_with_a_mismatched_payload_it_is_409_and_the_raw_bytes_count() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    assert_eq!(send("POST", CREATE, KEY, r#"{"a":1,"b":2}"#).send(gateway.port).status, 201);
    for other in
        [r#"{"a":1,"b":3}"#, r#"{"b":2,"a":1}"#, r#"{"a":1, "b":2}"#, r#"{"a":1.0,"b":2}"#, ""]
    {
        let answer = send("POST", CREATE, KEY, other).send(gateway.port);
        assert_eq!(refused(&answer), is(409, "idempotency_conflict"), "{other}");
        assert_eq!(
            (answer.get("retry-after"), answer.get("x-should-retry")),
            (None, Some("false"))
        );
    }
    // Each retry has a new signature; signatures are not part of the payload.
    let signed = send("POST", CREATE, KEY, r#"{"a":1,"b":2}"#)
        .field("Signature", "sig1=:AAAA:")
        .field("Request-Id", "2");
    assert!(signed.send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_request_in_flight_is_409_with_retry_after_and_another_code() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let request = send("POST", CREATE, KEY, BODY).act("hold");
    request.send_aside(gateway.port);
    upstream.reached(1);
    let answer = request.send(gateway.port);
    assert_eq!(refused(&answer), is(409, "idempotency_in_flight"));
    assert!(answer.get("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn on_storage_failure_it_fails_closed_with_503_whatever_the_store_settings_are() {
    let upstream = Upstream::start();
    let redis = format!("redis://127.0.0.1:{}", free_port());
    let gateway =
        Gateway::spawn(upstream.port, &redis, "[store]\non_failure = \"fail_open\"\n", SHIPPED);
    until("it to listen", || Connection::try_open(gateway.port, PATIENCE).is_some());
    let answer = send("POST", CREATE, KEY, BODY).send(gateway.port);
    assert_eq!(refused(&answer), is(503, "store-unavailable"));
    assert!(answer.get("retry-after").is_some());
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn the_signed_key_and_all_that_is_signed_go_upstream_unchanged() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let signature = "sig1=(\"@method\" \"@authority\" \"@path\" \"@query\" \"ucp-agent\" \"idempotency-key\" \"content-digest\" \
                     \"content-type\");keyid=\"platform-2026\"";
    let body = "{ \"z\" : 1.0,\n\"a\":[ ] }";
    for key in [KEY, r"a\backslash;and=more,than-22"] {
        let signed = [
            ("UCP-Agent", PLATFORM),
            ("Idempotency-Key", key),
            ("Content-Digest", "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"),
            ("Signature-Input", signature),
            ("Signature", "sig1=:MEUCIQDTxNq8h7LGHpvVZQp1iHkFp9+3N8Mxk2zH1wK4YuVN8w==:"),
            ("Content-Type", "application/json; charset=utf-8"),
        ];
        let path = "/checkout-sessions/chk%201/complete?a=%7e&b=";
        let request = signed
            .iter()
            .fold(Request::new("POST", path), |request, (name, value)| request.field(name, value));
        assert_eq!(request.host("commerce.example").body(body).send(gateway.port).status, 201);
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(
            (seen.line.as_str(), seen.get("host")),
            (&*format!("POST {path} HTTP/1.1"), Some("commerce.example"))
        );
        for (name, value) in signed {
            assert_eq!(seen.all(&name.to_ascii_lowercase()), [value], "{name}");
        }
        assert_eq!(seen.body, body.as_bytes());
        for other in [format!("\"{key}\""), format!("\"{key}\";v=1")] {
            assert_eq!(
                refused(&send("POST", CREATE, &other, BODY).send(gateway.port)),
                is(400, "key-invalid"),
                "{other}"
            );
        }
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn an_unknown_outcome_is_held_however_often_the_same_request_comes_again() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let complete = send("POST", "/checkout-sessions/chk_1/complete", KEY, BODY);
    assert_eq!(
        refused(&complete.clone().act("drop").send(gateway.port)),
        is(502, "outcome-uncertain")
    );
    for _ in 0..3 {
        assert_eq!(refused(&complete.send(gateway.port)), is(409, "outcome-uncertain"));
    }
    assert_eq!(upstream.executed(), 1);
}
