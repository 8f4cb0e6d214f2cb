//! Refusals in the vendors' error formats, as their clients expect them.

use serde_json::{Value, json};

use crate::harness::{Answer, Gateway, Request, Upstream, free_port, until};

/// One route for each vendor error format.
const ROUTES: &str = r#"
[[routes]]
path = "/stripe"
profile = "stripe"
key = { required = true }

[[routes]]
path = "/square"
profile = "square"
key = { required = true }
on_in_flight = "reject"
fingerprint = { body = "json", ignore = ["/idempotency_key"] }

[[routes]]
path = "/paypal"
profile = "paypal"

[[routes]]
path = "/acp"
errors = "acp"
key = { required = true }

[[routes]]
path = "/ucp"
errors = "ucp"
mismatch_status = 409
key = { required = true }

[[routes]]
path = "/plain"
profile = "stripe"
errors = "problem"
"#;

/// Builds a payment of this amount, with the key where the vendor expects it.
fn pay(vendor: &str, key: &str, amount: u32) -> Request {
    let request = Request::new("POST", &format!("/{vendor}"));
    let body = json!({ "amount": amount });
    match vendor {
        "square" => request.json(&json!({ "idempotency_key": key, "amount": amount }).to_string()),
        "paypal" => request.field("PayPal-Request-Id", key).json(&body.to_string()),
        _ => request.field("Idempotency-Key", key).json(&body.to_string()),
    }
}

/// Returns the members from which a library chooses its error class, besides the status: `[type,
/// code]`, `[category, code, field]`, `[name, issue, field]` or `[code]`. Checks that errors of the
/// protocols have these members and the text, and no others.
fn words(vendor: &str, answer: &Answer) -> Vec<String> {
    assert_eq!(answer.get("content-type"), Some("application/json"), "{answer:?}");
    let body = answer.json();
    let pointers: &[&str] = match vendor {
        "stripe" => &["/error/type", "/error/code"],
        "square" => &["/errors/0/category", "/errors/0/code", "/errors/0/field"],
        "paypal" => &["/name", "/details/0/issue", "/details/0/field"],
        "acp" => &["/type", "/code"],
        _ => &["/code"],
    };
    if let "acp" | "ucp" = vendor {
        assert_eq!(body.as_object().unwrap().len(), pointers.len() + 1, "{body}");
    }
    let message =
        ["/error/message", "/errors/0/detail", "/details/0/description", "/message", "/content"];
    let explains = |pointer: &&str| {
        body.pointer(pointer).and_then(Value::as_str).is_some_and(|text| text.len() > 20)
    };
    assert!(message.iter().any(explains), "{body}");
    pointers
        .iter()
        .filter_map(|pointer| body.pointer(pointer))
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

/// Whether the refusal invites a retry: the field that SDKs check first.
fn invites(answer: &Answer) -> Option<bool> {
    assert_eq!(
        answer.get("retry-after").is_some(),
        answer.get("x-should-retry") == Some("true"),
        "{answer:?}"
    );
    answer.get("x-should-retry").map(|value| value == "true")
}

#[test]
fn another_payload_under_a_key_is_each_vendors_own_error() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ROUTES);
    for (vendor, status, expected) in [
        ("stripe", 400, &["idempotency_error", "key-reused"][..]),
        ("square", 400, &["INVALID_REQUEST_ERROR", "IDEMPOTENCY_KEY_REUSED", "idempotency_key"]),
        ("paypal", 422, &["UNPROCESSABLE_ENTITY", "DUPLICATE_REQUEST_ID", "PayPal-Request-Id"]),
        ("acp", 422, &["invalid_request", "idempotency_conflict"]),
        ("ucp", 409, &["idempotency_conflict"]),
    ] {
        assert_eq!(pay(vendor, "k", 1).send(gateway.port).status, 201);
        let refused = pay(vendor, "k", 2).send(gateway.port);
        assert_eq!(
            (refused.status, words(vendor, &refused)),
            (status, expected.iter().map(|w| (*w).to_owned()).collect())
        );
        assert_eq!(
            (invites(&refused), refused.get("stripe-should-retry")),
            (Some(false), Some("false")),
            "{vendor}"
        );
        let body = refused.json();
        let reference = ["operation", "message", "content"]
            .iter()
            .find_map(|name| body[name].as_str())
            .unwrap();
        assert!(reference.contains("op_"), "{vendor}: {body}");
    }
    assert_eq!(upstream.executed(), 5);
}

#[test]
fn a_running_request_is_each_vendors_own_conflict() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ROUTES);
    for (n, (vendor, expected)) in [
        ("stripe", &["invalid_request_error", "idempotency_key_in_use"][..]),
        ("square", &["INVALID_REQUEST_ERROR", "CONFLICT"]),
        ("paypal", &["RESOURCE_CONFLICT", "PREVIOUS_REQUEST_IN_PROGRESS"]),
        ("acp", &["invalid_request", "idempotency_in_flight"]),
        ("ucp", &["idempotency_in_flight"]),
    ]
    .into_iter()
    .enumerate()
    {
        pay(vendor, "k", 1).act("hold").send_aside(gateway.port);
        upstream.reached(n + 1);
        let refused = pay(vendor, "k", 1).act("hold").send(gateway.port);
        assert_eq!(
            (refused.status, words(vendor, &refused)),
            (409, expected.iter().map(|w| (*w).to_owned()).collect())
        );
        assert_eq!(invites(&refused), Some(true), "{vendor}");
    }
    assert_eq!(upstream.executed(), 5);
}

#[test]
fn a_key_that_is_missing_or_malformed_is_each_vendors_own_bad_request() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ROUTES);
    for (vendor, missing, malformed) in [
        (
            "stripe",
            &["invalid_request_error", "key-missing"][..],
            &["invalid_request_error", "key-invalid"][..],
        ),
        (
            "square",
            &["INVALID_REQUEST_ERROR", "MISSING_REQUIRED_PARAMETER", "idempotency_key"],
            &["INVALID_REQUEST_ERROR", "INVALID_VALUE", "idempotency_key"],
        ),
        (
            "paypal",
            &["INVALID_REQUEST", "MISSING_REQUIRED_PARAMETER", "PayPal-Request-Id"],
            &["INVALID_REQUEST", "INVALID_PARAMETER_SYNTAX", "PayPal-Request-Id"],
        ),
        (
            "acp",
            &["invalid_request", "idempotency_key_required"],
            &["invalid_request", "key-invalid"],
        ),
        ("ucp", &["idempotency_key_required"], &["key-invalid"]),
    ] {
        let without = Request::new("POST", &format!("/{vendor}")).json("{}");
        for (request, expected) in
            [(without, missing), (pay(vendor, &"k".repeat(300), 1), malformed)]
        {
            let refused = request.send(gateway.port);
            assert_eq!(
                (refused.status, words(vendor, &refused)),
                (400, expected.iter().map(|w| (*w).to_owned()).collect())
            );
        }
    }
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn a_body_that_can_not_be_read_is_each_vendors_own_bad_request() {
    let upstream = Upstream::start();
    for (vendor, expected) in [
        ("stripe", &["invalid_request_error", "body-unreadable"][..]),
        ("square", &["INVALID_REQUEST_ERROR", "EXPECTED_JSON_BODY"]),
        ("paypal", &["INVALID_REQUEST", "MALFORMED_REQUEST_JSON"]),
    ] {
        let route = format!(
            "[[routes]]\npath = \"/{vendor}\"\nprofile = \"{vendor}\"\nkey = {{ body = \"/key\" }}"
        );
        let gateway = Gateway::with(upstream.port, "", &route);
        let refused = Request::new("POST", &format!("/{vendor}"))
            .json(r#"{"key":"k","amount":NaN}"#)
            .send(gateway.port);
        let expected: Vec<_> = expected.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!((refused.status, words(vendor, &refused)), (400, expected));
        assert_ne!(invites(&refused), Some(true), "{vendor}");
    }
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn an_outcome_that_nobody_knows_is_each_vendors_own_failure() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ROUTES);
    for (vendor, lost, held) in [
        (
            "acp",
            &["processing_error", "outcome-uncertain"][..],
            &["invalid_request", "idempotency_in_flight"][..],
        ),
        ("ucp", &["outcome-uncertain"], &["outcome-uncertain"]),
        ("stripe", &["api_error", "outcome-uncertain"], &["api_error", "outcome-uncertain"]),
        ("square", &["API_ERROR", "BAD_GATEWAY"], &["API_ERROR", "CONFLICT"]),
        (
            "paypal",
            &["INTERNAL_SERVER_ERROR", "OUTCOME_UNCERTAIN"],
            &["RESOURCE_CONFLICT", "OUTCOME_UNCERTAIN"],
        ),
    ] {
        for (status, expected) in [(502, lost), (409, held)] {
            let refused = pay(vendor, "k", 1).act("drop").send(gateway.port);
            assert_eq!(
                (refused.status, words(vendor, &refused)),
                (status, expected.iter().map(|w| (*w).to_owned()).collect())
            );
            assert_eq!(invites(&refused), Some(vendor == "acp"), "{vendor}");
        }
    }
    assert_eq!(upstream.executed(), 5);
}

#[test]
fn an_upstream_out_of_reach_is_a_failure_to_try_again() {
    let gateway = Gateway::with(free_port(), "", ROUTES);
    for (vendor, expected) in [
        ("stripe", &["api_error", "upstream-unreachable"][..]),
        ("square", &["API_ERROR", "BAD_GATEWAY"]),
        ("paypal", &["INTERNAL_SERVER_ERROR", "UPSTREAM_UNREACHABLE"]),
        ("acp", &["service_unavailable", "upstream-unreachable"]),
        ("ucp", &["upstream-unreachable"]),
    ] {
        let refused = pay(vendor, "k", 1).send(gateway.port);
        assert_eq!(
            (refused.status, words(vendor, &refused)),
            (502, expected.iter().map(|w| (*w).to_owned()).collect())
        );
        assert_eq!(invites(&refused), Some(true), "{vendor}");
    }
}

#[test]
fn a_route_may_keep_problem_documents_under_a_vendors_profile() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", ROUTES);
    assert_eq!(pay("plain", "k", 1).send(gateway.port).status, 201);
    let refused = pay("plain", "k", 2).send(gateway.port);
    assert_eq!((refused.status, refused.problem().as_str()), (400, "key-reused"));
    until("it to be counted", || {
        gateway.metric("onceward_requests_total{route=\"/plain\",outcome=\"key_reused\"}") == 1.0
    });
}
