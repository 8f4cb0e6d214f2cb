//! The profile `acp`, sentence by sentence: section 6 of the Agentic Commerce Protocol's RFC
//! "Agentic Checkout", with the example configuration that is shipped. Test names begin with the
//! section. docs/PROFILES.md has the sentences.

use serde_json::{Value, json};

use crate::harness::{Answer, Gateway, Request, Upstream, free_port, until};

const SHIPPED: &str = include_str!("../../config/acp.toml");
const CREATE: &str = "/checkout_sessions";
const ITEM: &str = r#"{"items":[{"id":"item_123","quantity":1}]}"#;

fn gateway(upstream: &Upstream) -> Gateway {
    Gateway::with(upstream.port, "", SHIPPED)
}

/// Starts the example with more settings in each of its routes.
fn gateway_with(port: u16, lines: &str) -> Gateway {
    Gateway::with(
        port,
        "",
        &SHIPPED.replace("profile = \"acp\"\n", &format!("profile = \"acp\"\n{lines}\n")),
    )
}

/// A POST as the protocol's clients send it.
fn post(path: &str, key: &str, body: &str) -> Request {
    Request::new("POST", path)
        .field("Authorization", "Bearer merchant-1")
        .field("Idempotency-Key", key)
        .json(body)
}

/// Returns status, type and code of a refusal. Its only other member must be the message.
fn refused(answer: &Answer) -> (u16, String, String) {
    let body = answer.json();
    assert_eq!(
        body.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["code", "message", "type"],
        "{body}"
    );
    assert!(
        body["message"].as_str().unwrap().len() > 20
            && answer.get("content-type") == Some("application/json")
    );
    let word = |name: &str| body[name].as_str().unwrap().to_owned();
    (answer.status, word("type"), word("code"))
}

fn is(status: u16, kind: &str, code: &str) -> (u16, String, String) {
    (status, kind.to_owned(), code.to_owned())
}

fn published(gateway: &Gateway) -> Value {
    Request::new("GET", "/.well-known/idempotency").send(gateway.port).json()["routes"][0].clone()
}

#[test]
fn s61_a_post_without_a_key_is_rejected_with_idempotency_key_required() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    for path in ["", "/cs_1", "/cs_1/complete", "/cs_1/cancel"] {
        let request = Request::new("POST", &format!("{CREATE}{path}"))
            .field("Authorization", "Bearer merchant-1")
            .json(ITEM);
        let answer = request.send(gateway.port);
        assert_eq!(
            refused(&answer),
            is(400, "invalid_request", "idempotency_key_required"),
            "{path}"
        );
    }
    assert_eq!(upstream.executed(), 0);
    let get =
        Request::new("GET", "/checkout_sessions/cs_1").field("Authorization", "Bearer merchant-1");
    assert_eq!(get.send(gateway.port).status, 201, "only a POST needs one");
}

#[test]
fn s61_a_key_is_an_opaque_string_of_at_most_255_characters() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    for key in [&"k".repeat(255), "8e03978e-40d5-43e8-bc93-6894a57f9324", "a/b;c=d,e:%20"] {
        assert_eq!(post(CREATE, key, ITEM).send(gateway.port).status, 201, "{key}");
    }
    let long = post(CREATE, &"k".repeat(256), ITEM).send(gateway.port);
    assert_eq!(refused(&long), is(400, "invalid_request", "key-invalid"));
    assert_eq!(upstream.executed(), 3);
}

#[test]
fn s61_a_key_belongs_to_the_authenticated_identity_and_the_endpoint_path() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let mut bodies = Vec::new();
    for path in ["", "/cs_1", "/cs_2", "/cs_1/complete", "/cs_2/complete", "/cs_1/cancel"] {
        for identity in ["Bearer merchant-1", "Bearer merchant-2"] {
            let request = Request::new("POST", &format!("{CREATE}{path}"))
                .field("Idempotency-Key", "one-key")
                .json(ITEM);
            let request = request.field("Authorization", identity);
            let (first, again) = (request.send(gateway.port), request.send(gateway.port));
            assert_eq!(
                (first.status, first.replayed(), again.replayed()),
                (201, false, true),
                "{path} {identity}"
            );
            assert_eq!(first.body, again.body);
            bodies.push(first.body);
        }
    }
    bodies.sort();
    bodies.dedup();
    assert_eq!((bodies.len(), upstream.executed()), (12, 12), "each of them is independent");
}

#[test]
fn s62_bodies_are_compared_by_semantic_json_equality() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    for (n, (first, second, equivalent)) in [
        (r#"{"a":1,"b":{"c":2,"d":3}}"#, r#"{ "b": { "d": 3, "c": 2 }, "a": 1 }"#, true),
        (r#"{"amount":1}"#, r#"{"amount":1.0}"#, true),
        (r#"{"amount":1.50}"#, r#"{"amount":1.5}"#, true),
        (r#"{"buyer":null}"#, "{}", false),
        (r#"{"buyer":null}"#, r#"{"buyer":""}"#, false),
        (r#"{"items":["a","b"]}"#, r#"{"items":["b","a"]}"#, false),
        (r#"{"amount":1}"#, r#"{"amount":"1"}"#, false),
        (r#"{"amount":9007199254740993}"#, r#"{"amount":9007199254740992}"#, false),
        // Section 6.7: members of extensions participate.
        (r#"{"items":[]}"#, r#"{"items":[],"discounts":{"codes":["SAVE"]}}"#, false),
        (r#"{"discounts":{"codes":["SAVE"]}}"#, r#"{"discounts":{"codes":["MORE"]}}"#, false),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key-{n}");
        assert_eq!(post(CREATE, &key, first).send(gateway.port).status, 201);
        let answer = post(CREATE, &key, second).send(gateway.port);
        if equivalent {
            assert!(answer.status == 201 && answer.replayed(), "{first} {second}");
        } else {
            assert_eq!(
                refused(&answer),
                is(422, "invalid_request", "idempotency_conflict"),
                "{first} {second}"
            );
        }
    }
    assert_eq!(upstream.executed(), 10);
}

#[test]
fn s62_headers_are_excluded_from_the_comparison() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let varying = |request_id: &str, signature: &str, language: &str, version: &str| {
        let request =
            post(CREATE, "key", ITEM).field("Request-Id", request_id).field("Signature", signature);
        request
            .field("Timestamp", request_id)
            .field("Accept-Language", language)
            .field("API-Version", version)
    };
    assert_eq!(varying("1", "s1", "en-US", "2026-01-16").send(gateway.port).status, 201);
    assert!(varying("2", "s2", "de-DE", "2026-04-17").send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn s63_the_same_key_and_body_get_the_original_response_with_the_same_status() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    for (n, status) in
        [200, 201, 202, 400, 401, 402, 403, 404, 405, 409, 422, 429].into_iter().enumerate()
    {
        // Create, update and complete alike.
        let path = [CREATE, "/checkout_sessions/cs_1", "/checkout_sessions/cs_1/complete"][n % 3];
        let request = post(path, &format!("key-{n}"), ITEM)
            .act(&format!("status {status}, field X-Session=cs_{n}"));
        let first = request.send(gateway.port);
        assert_eq!((first.status, first.get("idempotent-replayed")), (status, None));
        let again = request.send(gateway.port);
        assert_eq!(
            (again.status, again.get("idempotent-replayed"), &again.body),
            (status, Some("true"), &first.body)
        );
        assert_eq!(
            (again.get("x-session"), again.get("date")),
            (first.get("x-session"), first.get("date"))
        );
    }
    assert_eq!(upstream.executed(), 12, "nothing is executed again on a replay");
}

#[test]
fn s64_a_different_body_is_a_permanent_conflict() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    assert_eq!(post(CREATE, "key", ITEM).send(gateway.port).status, 201);
    let answer = post(CREATE, "key", "{}").send(gateway.port);
    assert_eq!(refused(&answer), is(422, "invalid_request", "idempotency_conflict"));
    assert_eq!((answer.get("retry-after"), answer.get("x-should-retry")), (None, Some("false")));
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn s64_a_request_in_flight_is_a_conflict_with_retry_after() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let request = post(CREATE, "key", ITEM).act("hold");
    let first = request.send_aside(gateway.port);
    upstream.reached(1);
    let answer = request.send(gateway.port);
    assert_eq!(refused(&answer), is(409, "invalid_request", "idempotency_in_flight"));
    assert!(answer.get("retry-after").unwrap().parse::<u32>().unwrap() >= 1, "in seconds");
    upstream.release();
    let first = first.join().unwrap();
    let again = request.send(gateway.port);
    assert!(again.replayed() && again.body == first.body);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn s65_a_5xx_is_never_cached_and_runs_afresh_only_where_it_proves_that_nothing_was_done() {
    let upstream = Upstream::start();
    let gateway = gateway_with(
        upstream.port,
        "release_status = [\"307\", \"308\", \"417\", \"501\", \"503 retry-after\"]",
    );
    // A 503 with Retry-After precedes any execution, and 501 is on this route's list.
    for (n, script) in ["status 503, field Retry-After=1", "status 501"].into_iter().enumerate() {
        let key = format!("fresh-{n}");
        let first = post(CREATE, &key, ITEM).act(script).send(gateway.port);
        assert!(first.status >= 500 && !first.replayed());
        let fresh = post(CREATE, &key, ITEM).send(gateway.port);
        assert_eq!((fresh.status, fresh.replayed()), (201, false), "{script}");
        assert_eq!(upstream.executed(), 2 * (n + 1));
    }
    // The outcome of all others is unknown. This is stricter than the RFC, which lets each of them
    // run again.
    for (n, (script, status, kind)) in [
        ("status 500", 500, "processing_error"),
        ("status 502", 502, "processing_error"),
        ("status 503", 503, "service_unavailable"),
        ("status 504", 504, "processing_error"),
        ("drop", 502, "processing_error"),
    ]
    .into_iter()
    .enumerate()
    {
        let request = post(CREATE, &format!("lost-{n}"), ITEM);
        let first = request.clone().act(script).send(gateway.port);
        assert_eq!(refused(&first), is(status, kind, "outcome-uncertain"), "{script}");
        let again = request.send(gateway.port);
        assert_eq!(
            refused(&again),
            is(409, "invalid_request", "idempotency_in_flight"),
            "{script}"
        );
        assert_eq!(
            (again.get("retry-after"), again.get("x-should-retry")),
            (Some("30"), Some("true")),
            "{script}"
        );
        assert_eq!(upstream.executed(), 5 + n, "{script}");
    }
}

#[test]
fn s65_after_a_timeout_duplicates_are_in_flight_until_the_outcome_is_known() {
    let upstream = Upstream::start();
    let probe = "on_uncertain = \"probe\"\nprobe = { path = \"/by-key/{key}\" }";
    let text = SHIPPED.replace("[upstream]\n", "[upstream]\nresponse_timeout = \"1s\"\n");
    let gateway = Gateway::with(
        upstream.port,
        "",
        &text.replace("profile = \"acp\"\n", &format!("profile = \"acp\"\n{probe}\n")),
    );
    upstream.answer_questions("status 500");
    let first = post(CREATE, "key", ITEM).act("hold").send(gateway.port);
    assert_eq!(refused(&first), is(504, "processing_error", "outcome-uncertain"));
    let asked = post(CREATE, "key", ITEM).send(gateway.port);
    assert_eq!(refused(&asked), is(409, "invalid_request", "idempotency_in_flight"));
    assert!(asked.get("retry-after").is_some());
    upstream.answer_questions("status 200, body {\"id\":\"cs_1\"}");
    let found = post(CREATE, "key", ITEM).send(gateway.port);
    assert_eq!(
        (found.status, found.replayed(), found.text().as_str()),
        (200, true, r#"{"id":"cs_1"}"#)
    );
    assert_eq!(upstream.payments_and_questions().0, 1);
}

#[test]
fn s65_where_nothing_reached_the_upstream_a_retry_runs_afresh() {
    let gateway = gateway_with(free_port(), "");
    for _ in 0..2 {
        let answer = post(CREATE, "key", ITEM).send(gateway.port);
        assert_eq!(refused(&answer), is(502, "service_unavailable", "upstream-unreachable"));
        assert_eq!(answer.get("x-should-retry"), Some("true"));
    }
}

#[test]
fn s66_results_are_kept_for_24_hours_and_then_a_key_is_new() {
    let upstream = Upstream::start();
    let shipped = gateway(&upstream);
    assert_eq!(published(&shipped)["retention_seconds"], 86_400);
    assert_eq!(
        published(&shipped)["duplicates"]["expired"],
        Value::Null,
        "afterwards there is no error"
    );
    assert_eq!(published(&shipped)["duplicates"]["uncertain"]["may_retry"], json!(true));
    let short = gateway_with(upstream.port, "retention = \"500ms\"");
    assert_eq!(post(CREATE, "key", ITEM).send(short.port).status, 201);
    until("the key to be new", || {
        let answer = post(CREATE, "key", "{}").send(short.port);
        answer.status == 201 && !answer.replayed()
    });
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn s31_the_key_is_echoed_on_all_post_responses() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream);
    let echo =
        |request: Request| request.send(gateway.port).get("idempotency-key").map(str::to_owned);
    for (request, what) in [
        (post(CREATE, "key", ITEM), "a first answer"),
        (post(CREATE, "key", ITEM), "a replay"),
        (post(CREATE, "key", "{}"), "a conflict"),
        (post("/checkout_sessions/cs_1", "key", "{}").act("drop"), "an unknown outcome"),
        (post("/checkout_sessions/cs_1", "key", "{}"), "its duplicate"),
        (
            Request::new("POST", CREATE).field("Idempotency-Key", "key").json(ITEM),
            "without an identity",
        ),
    ] {
        assert_eq!(echo(request).as_deref(), Some("key"), "{what}");
    }
    let upstreams_own = post(CREATE, "key-2", ITEM).act("field Idempotency-Key=another");
    assert_eq!(echo(upstreams_own).as_deref(), Some("key-2"));
}
