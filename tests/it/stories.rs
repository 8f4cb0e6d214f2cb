//! The table of answers, case by case, over a real connection to a real process.

use crate::harness::{Connection, Gateway, Request, Upstream, until};

#[test]
fn a_duplicate_gets_the_first_answer_and_the_upstream_sees_one_request() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = Request::pay("k1", r#"{"amount":1}"#)
        .act("status 202, field X-Trace=t1, field Set-Cookie=a=1, field Set-Cookie=b=2, field Idempotent-Replayed=true");
    let first = pay.send(gateway.port);
    let second = pay.send(gateway.port);
    assert_eq!((first.status, second.status), (202, 202));
    assert!(!first.replayed(), "the upstream's own mark is removed: {first:?}");
    assert!(second.replayed());
    assert_eq!(first.body, second.body);
    for name in ["date", "content-type", "content-length", "x-trace", "set-cookie"] {
        let all = |answer: &crate::harness::Answer| {
            answer
                .fields
                .iter()
                .filter(|(n, _)| n == name)
                .map(|(_, v)| v.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(all(&first), all(&second), "{name}");
        assert!(!all(&first).is_empty(), "{name}");
    }
    assert_eq!(upstream.executed(), 1);
    assert_eq!(gateway.metric("onceward_duplicates_prevented_total{route=\"payments\"}"), 1.0);
}

#[test]
fn layout_and_quotes_make_no_other_request_but_a_new_amount_does() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    assert_eq!(Request::pay("k", r#"{"amount":1,"to":"x"}"#).send(gateway.port).status, 201);
    assert!(Request::pay("\"k\"", r#"{ "to": "x", "amount": 1.0 }"#).send(gateway.port).replayed());
    let other = Request::pay("k", r#"{"amount":2,"to":"x"}"#).send(gateway.port);
    assert_eq!((other.status, other.problem().as_str()), (422, "key-reused"));
    assert_eq!(other.get("x-should-retry"), Some("false"));
    assert_eq!(other.json()["retryable"], false);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn another_caller_never_gets_a_replay() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = Request::pay("k", "{}");
    assert_eq!(pay.clone().field("Authorization", "Bearer alice").send(gateway.port).status, 201);
    for field in [("Authorization", "Bearer mallory"), ("X-Api-Key", "Bearer alice")] {
        let answer = pay.clone().field(field.0, field.1).send(gateway.port);
        assert_eq!((answer.status, answer.problem().as_str()), (422, "key-reused"));
    }
    assert_eq!(pay.send(gateway.port).status, 422, "no credentials are another caller too");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_duplicate_of_a_running_request_is_asked_to_retry_later() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    let second = pay.send(gateway.port);
    assert_eq!((second.status, second.problem().as_str()), (409, "in-flight"));
    assert!(second.get("retry-after").is_some() && second.get("x-should-retry") == Some("true"));
    assert!(second.json()["operation"].as_str().unwrap().starts_with("op_"));
    assert!(second.json()["error"]["message"].is_string(), "an official SDK looks for this member");
    upstream.release();
    assert_eq!(first.join().unwrap().status, 201);
    assert!(pay.send(gateway.port).replayed());
}

const WAITING: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
on_in_flight = "wait"
wait_timeout = "15s"
lease = "3s"
"#;

#[test]
fn waiting_duplicates_get_the_answer_of_the_first() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", WAITING);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    let waiting: Vec<_> = (0..20).map(|_| pay.send_aside(gateway.port)).collect();
    until("all to wait", || gateway.metric("onceward_waiters") == 20.0);
    upstream.release();
    let first = first.join().unwrap();
    for answer in waiting {
        let answer = answer.join().unwrap();
        assert!(answer.replayed());
        assert_eq!(answer.body, first.body);
    }
    assert_eq!(upstream.executed(), 1);
    until("nobody to wait", || gateway.metric("onceward_waiters") == 0.0);
}

#[test]
fn exactly_one_waiter_takes_over_when_the_first_is_released() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", WAITING);
    // The upstream answers a release status, so exactly one waiter runs next.
    let refused = Request::pay("k", "{}").act("hold, status 429");
    let first = refused.send_aside(gateway.port);
    upstream.reached(1);
    let accepted = Request::pay("k", "{}").act("wait 300");
    let waiting: Vec<_> = (0..10).map(|_| accepted.send_aside(gateway.port)).collect();
    until("all to wait", || gateway.metric("onceward_waiters") == 10.0);
    upstream.release();
    assert_eq!(first.join().unwrap().status, 429);
    let answers: Vec<_> = waiting.into_iter().map(|answer| answer.join().unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.replayed()).count(), 1, "one ran");
    assert!(answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body));
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_waiter_gives_up_when_its_time_is_over() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", &WAITING.replace("15s", "200ms"));
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    assert_eq!(pay.send(gateway.port).problem(), "in-flight");
    upstream.release();
    assert_eq!(first.join().unwrap().status, 201);
}

#[test]
fn a_hot_key_has_bounded_waiters() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "[limits]\nwaiters_per_key = 5", WAITING);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    let waiting: Vec<_> = (0..5).map(|_| pay.send_aside(gateway.port)).collect();
    until("five to wait", || gateway.metric("onceward_waiters") == 5.0);
    for _ in 0..20 {
        let answer = pay.send(gateway.port);
        assert_eq!((answer.status, answer.problem().as_str()), (503, "overloaded"));
    }
    upstream.release();
    assert!(waiting.into_iter().all(|answer| answer.join().unwrap().replayed()));
    assert_eq!(first.join().unwrap().status, 201);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn missing_and_malformed_keys_are_refused_before_anything_is_forwarded() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\nkey = { required = true }",
    );
    let bare = Request::new("POST", "/v1/payments").json("{}");
    let missing = bare.send(gateway.port);
    assert_eq!((missing.status, missing.problem().as_str()), (400, "key-missing"));
    assert!(
        missing.json()["detail"].as_str().unwrap().contains("idempotency-key"),
        "{}",
        missing.text()
    );
    let long = "x".repeat(256);
    for key in ["", "a b", "a\"b", "\"abc", "caf\u{e9}", &long] {
        let answer = bare.clone().field("Idempotency-Key", key).send(gateway.port);
        assert_eq!((answer.status, answer.problem().as_str()), (400, "key-invalid"), "{key}");
    }
    let twice =
        bare.clone().field("Idempotency-Key", "a").field("Idempotency-Key", "a").send(gateway.port);
    assert_eq!(twice.problem(), "key-invalid");
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn requests_without_a_key_or_a_route_pass_untouched_whatever_their_size() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "[limits]\nrequest_body = \"1KiB\"\nresponse_body = \"1KiB\"",
        "[[routes]]\npath = \"/v1/payments\"",
    );
    let body = vec![b'y'; 3 << 20];
    for target in ["/v1/payments", "/elsewhere?x=1&y=%2F"] {
        let answer = Request::new("POST", target)
            .field("X-Kept", "v")
            .act("large 100000")
            .body(body.clone())
            .send(gateway.port);
        assert_eq!((answer.status, answer.body.len()), (201, 100_000));
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(
            (seen.line.as_str(), seen.get("x-kept")),
            (format!("POST {target} HTTP/1.1").as_str(), Some("v"))
        );
        assert!(seen.body == body, "the body is as it was");
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn keys_can_be_in_the_body() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v2/payments\"\nprofile = \"square\"\nerrors = \"problem\"\nkey = { header = \"Idempotency-Key\", body = \"/idempotency_key\" }";
    let gateway = Gateway::with(upstream.port, "", routes);
    let pay = |body: &str| Request::new("POST", "/v2/payments").json(body).send(gateway.port);
    assert_eq!(pay(r#"{"idempotency_key":"k","amount":1}"#).status, 201);
    assert!(pay(r#"{"amount":1,"idempotency_key":"k"}"#).replayed());
    assert_eq!(pay(r#"{"amount":2,"idempotency_key":"k"}"#).problem(), "key-reused");
    for other in ["7", "null", "{}"] {
        assert_eq!(
            pay(&format!(r#"{{"idempotency_key":{other}}}"#)).problem(),
            "key-invalid",
            "{other}"
        );
    }
    assert_eq!(pay(r#"{"idempotency_key":"k","idempotency_key":"l"}"#).problem(), "key-invalid");
    let both = Request::new("POST", "/v2/payments")
        .field("Idempotency-Key", "other")
        .json(r#"{"idempotency_key":"k"}"#);
    assert_eq!(both.send(gateway.port).problem(), "key-invalid");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn keys_can_be_derived_and_keep_tenants_apart() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/orders/{id}\"\nkey = { derive = [\"path\", \"query:page\", \"body:/order/id\"] }";
    let gateway = Gateway::with(upstream.port, "", routes);
    let order = |tenant: &str, target: &str, body: &str| {
        Request::new("POST", target).field("Authorization", tenant).json(body).send(gateway.port)
    };
    assert_eq!(order("a", "/orders/1?page=2", r#"{"order":{"id":7}}"#).status, 201);
    assert!(order("a", "/orders/1?page=2", r#"{"order":{"id":7}}"#).replayed());
    assert!(
        !order("b", "/orders/1?page=2", r#"{"order":{"id":7}}"#).replayed(),
        "another tenant's order 7"
    );
    assert!(!order("a", "/orders/1?page=2", r#"{"order":{"id":8}}"#).replayed());
    let missing = order("a", "/orders/1", r#"{"order":{"id":7}}"#);
    assert_eq!(missing.problem(), "key-missing");
    assert!(missing.text().contains("page"));
    assert_eq!(upstream.executed(), 3);
}

#[test]
fn scopes_separate_key_spaces_and_must_be_there() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/payments\"\nscope = { header = \"X-Tenant\" }";
    let gateway = Gateway::with(upstream.port, "", routes);
    let pay = Request::pay("k", "{}");
    for tenant in ["a", "b"] {
        assert!(!pay.clone().field("X-Tenant", tenant).send(gateway.port).replayed());
        assert!(pay.clone().field("X-Tenant", tenant).send(gateway.port).replayed());
    }
    assert_eq!(pay.send(gateway.port).problem(), "scope-missing");
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_proxy_in_front_can_vouch_for_the_caller() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/payments\"\nscope = { header = \"X-Tenant\" }\ncaller = \"scope\"";
    let gateway = Gateway::with(upstream.port, "", routes);
    let pay = Request::pay("k", "{}").field("X-Tenant", "a");
    assert_eq!(pay.clone().field("Authorization", "token-1").send(gateway.port).status, 201);
    assert!(
        pay.field("Authorization", "token-2").send(gateway.port).replayed(),
        "a rotated token is the same caller"
    );
}

#[test]
fn a_vendors_dialect_shapes_the_refusal() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/charges\"\nprofile = \"stripe\"",
    );
    let pay = |body: &str| {
        Request::new("POST", "/v1/charges")
            .field("Idempotency-Key", "k")
            .json(body)
            .send(gateway.port)
    };
    assert_eq!(pay("{}").status, 201);
    let reused = pay(r#"{"amount":1}"#);
    assert_eq!(
        (reused.status, reused.json()["error"]["type"].as_str()),
        (400, Some("idempotency_error"))
    );
    assert_eq!(reused.get("stripe-should-retry"), Some("false"));
}

#[test]
fn responses_that_are_not_kept_are_relayed_once_and_never_run_again() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "[limits]\nresponse_body = \"1KiB\"",
        "[[routes]]\npath = \"/v1/payments\"",
    );
    for (key, script, length) in [("large", "large 5000", Some(5000)), ("events", "events", None)] {
        let pay = Request::pay(key, "{}").act(script);
        let first = pay.send(gateway.port);
        assert!(matches!(first.status, 200 | 201));
        assert!(length.is_none_or(|length| first.body.len() == length));
        let second = pay.send(gateway.port);
        assert_eq!((second.status, second.problem().as_str()), (409, "response-not-stored"));
        assert_eq!(second.json()["original_status"], first.status);
        assert_eq!(second.json()["retryable"], false);
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_release_status_lets_the_next_request_run() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let was_not_executed = [
        ("a", "status 429"),
        ("b", "status 401"),
        ("c", "status 503, field Retry-After=1"),
        ("d", "status 307, field Location=/v2/payments"),
        ("e", "status 308, field Location=/v2/payments"),
    ];
    for (key, refused) in was_not_executed {
        let first = Request::pay(key, "{}").act(refused).send(gateway.port);
        assert!(
            matches!(first.status, 429 | 401 | 503 | 307 | 308)
                && first.get("content-type") == Some("application/json"),
            "relayed as it is"
        );
        let second = Request::pay(key, "{}").send(gateway.port);
        assert!(second.status == 201 && !second.replayed());
    }
    assert_eq!(upstream.executed(), 10);
}

#[test]
fn an_error_that_the_upstream_decided_on_is_its_answer() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for status in [404, 422, 500] {
        let pay = Request::pay(&format!("k{status}"), "{}").act(&format!("status {status}"));
        assert_eq!(pay.send(gateway.port).status, status);
        let again = pay.send(gateway.port);
        assert!(again.status == status && again.replayed());
    }
    assert_eq!(upstream.executed(), 3);
}

#[test]
fn dropped_fields_reach_only_the_first_client() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\ndrop_headers = [\"Set-Cookie\"]",
    );
    let pay = Request::pay("k", "{}").act("field Set-Cookie=session=1, field X-Kept=yes");
    let (first, second) = (pay.send(gateway.port), pay.send(gateway.port));
    assert_eq!((first.get("set-cookie"), second.get("set-cookie")), (Some("session=1"), None));
    assert_eq!((first.get("x-kept"), second.get("x-kept")), (Some("yes"), Some("yes")));
}

#[test]
fn after_its_retention_a_key_is_new_unless_a_tombstone_stands() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\nname = \"short\"\npath = \"/short\"\nretention = \"1s\"\n[[routes]]\nname = \"tomb\"\npath = \"/tomb\"\nretention = \"1s\"\ntombstone = \"1h\"";
    let gateway = Gateway::with(upstream.port, "", routes);
    let pay = |path: &str| {
        Request::new("POST", path)
            .field("Idempotency-Key", "k")
            .field("Authorization", "a")
            .json("{}")
    };
    assert_eq!(
        (pay("/short").send(gateway.port).status, pay("/tomb").send(gateway.port).status),
        (201, 201)
    );
    until("the result to be gone", || !pay("/short").send(gateway.port).replayed());
    until("the result to be gone, with a tombstone", || {
        pay("/tomb").send(gateway.port).status == 409
    });
    assert_eq!(pay("/tomb").send(gateway.port).problem(), "result-expired");
    let stranger = Request::new("POST", "/tomb")
        .field("Idempotency-Key", "k")
        .field("Authorization", "b")
        .json("{}");
    assert_eq!(stranger.send(gateway.port).problem(), "key-reused");
    let seen = upstream.seen();
    assert_eq!(seen.iter().filter(|seen| seen.line.contains("/tomb")).count(), 1);
}

#[test]
fn with_supersede_each_fingerprint_runs_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\non_mismatch = \"supersede\"",
    );
    for _ in 0..2 {
        for amount in [1, 2, 3] {
            assert_eq!(
                Request::pay("k", &format!("{{\"amount\":{amount}}}")).send(gateway.port).status,
                201
            );
        }
    }
    assert_eq!(upstream.executed(), 3);
}

#[test]
fn with_replay_another_request_gets_the_first_answer_but_another_caller_does_not() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\nprofile = \"modern-treasury\"",
    );
    let pay = |body: &str| Request::pay("k", body);
    assert_eq!(pay("{}").send(gateway.port).status, 201);
    assert!(pay(r#"{"amount":2}"#).send(gateway.port).replayed());
    assert_eq!(pay("{}").field("Authorization", "x").send(gateway.port).problem(), "key-reused");
}

#[test]
fn shadow_watches_and_never_refuses() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nmode = \"shadow\"\nkey = { required = true }",
    );
    let pay = |key: &str, body: &str| Request::pay(key, body).send(gateway.port);
    let shadow = |would: &str| {
        gateway.metric(&format!("onceward_shadow_total{{route=\"payments\",would=\"{would}\"}}"))
    };
    assert_eq!(pay("k", "{}").status, 201);
    until("the first to be settled", || {
        let again = pay("k", "{}");
        assert!(again.status == 201 && !again.replayed());
        shadow("replay") >= 1.0
    });
    assert_eq!(pay("k", r#"{"amount":2}"#).status, 201);
    assert_eq!(pay("a b", "{}").status, 201);
    assert_eq!(Request::new("POST", "/v1/payments").json("{}").send(gateway.port).status, 201);
    until("all to be counted", || {
        shadow("refuse_key_reused") == 1.0
            && shadow("refuse_key_invalid") == 1.0
            && shadow("refuse_key_missing") == 1.0
    });
}

#[test]
fn a_pipelining_client_gets_its_answers_in_order() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Connection::open(gateway.port);
    let requests: Vec<_> = (0..10)
        .map(|n| Request::pay(&format!("k{n}"), "{}").act(&format!("body answer-{n}")))
        .collect();
    let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
    connection.write(&bytes);
    for n in 0..10 {
        assert_eq!(connection.read().text(), format!("answer-{n}"));
    }
}
