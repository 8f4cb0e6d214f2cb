//! The policy that clients read at `/.well-known/idempotency`.

use serde_json::json;

use crate::harness::{Connection, Gateway, Request, Upstream};

const PATH: &str = "/.well-known/idempotency";

/// Three routes. The second is in shadow mode, and the last covers nothing that clients could rely
/// on.
const MANY: &str = r#"
[[routes]]
name = "secret-name"
path = "/v1/payments"
methods = ["POST"]
key = { required = true, syntax = "strict", max_length = 64 }
scope = { header = "X-Secret-Tenant" }
retention = "36h"
tombstone = "7d"
on_in_flight = "wait"
wait_timeout = "5s"

[[routes]]
path = "/v1/watched"
mode = "shadow"

[[routes]]
path = "/v1/{*rest}"
methods = ["POST", "PATCH"]
key = { body = "/id~1key" }
errors = "stripe"
mismatch_status = 400
on_mismatch = "replay"
on_uncertain = "forward"
fingerprint = { body = "raw" }

[[routes]]
path = "/v2/{*rest}"
key = { derive = ["path", "header:X-Secret-Part"] }

[[routes]]
path = "/internal/{*rest}"
mode = "off"
"#;

fn get(path: &str) -> Request {
    Request::new("GET", path)
}

#[test]
fn clients_read_what_is_protected_and_what_duplicates_get() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::with(upstream.port, "problem_base_url = \"https://docs.example/p\"", MANY);
    let answer = get(PATH).send(gateway.port);
    assert_eq!((answer.status, answer.get("content-type")), (200, Some("application/json")));
    assert_eq!(answer.get("cache-control"), Some("public, max-age=300"));
    let routes = answer.json()["routes"].clone();
    let refused = |status: u16, kind: &str, may_retry: bool| json!({ "status": status, "type": format!("https://docs.example/p/{kind}"), "may_retry": may_retry });
    let with = |mut value: serde_json::Value, name: &str, seconds: u64| {
        value[name] = seconds.into();
        value
    };
    assert_eq!(
        routes[0],
        json!({
            "paths": ["/v1/payments"],
            "methods": ["POST"],
            "protected": true,
            "key": { "header": "idempotency-key", "required": true, "syntax": "strict", "max_length": 64 },
            "compared": "json",
            "retention_seconds": 129_600,
            "duplicates": {
                "completed": { "replayed": true },
                "in_flight": with(refused(409, "in-flight", true), "after_seconds", 5),
                "another_request": refused(422, "key-reused", false),
                "another_caller": refused(422, "key-reused", false),
                "uncertain": refused(409, "outcome-uncertain", false),
                "expired": with(refused(409, "result-expired", false), "for_seconds", 604_800),
            },
        })
    );
    // This route hides the paths that it covers from the route after it, so it must be published.
    assert_eq!(
        (&routes[1]["paths"][0], &routes[1]["protected"]),
        (&json!("/v1/watched"), &json!(false))
    );
    assert_eq!(routes[2]["key"]["body"], "/id~1key");
    assert_eq!(
        (&routes[2]["methods"], &routes[2]["compared"]),
        (&json!(["POST", "PATCH"]), &json!("raw"))
    );
    let duplicates = &routes[2]["duplicates"];
    assert_eq!(
        (&duplicates["another_request"], &duplicates["another_caller"]["status"]),
        (&json!({ "replayed": true }), &json!(400))
    );
    assert_eq!(
        (&duplicates["uncertain"]["may_retry"], &duplicates["expired"]),
        (&json!(true), &json!(null))
    );
    assert_eq!(routes[3]["key"], json!({ "derived": true }));
    assert_eq!(
        routes.as_array().unwrap().len(),
        4,
        "what is passed through behind all that is protected is nobody's business"
    );
    let text = answer.text().to_ascii_lowercase();
    assert!(!text.contains("secret") && !text.contains("127.0.0.1"), "{text}");
    assert_eq!(upstream.executed(), 0);
}

#[test]
fn what_is_published_is_what_is_answered() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let published = get(PATH).send(gateway.port).json()["routes"][0].clone();
    assert_eq!(published["paths"], json!(["/v1/payments"]));
    assert!(
        !Request::pay("k", "{}").send(gateway.port).replayed()
            && Request::pay("k", "{}").send(gateway.port).replayed()
    );
    Request::pay("lost", "{}").act("drop").send(gateway.port);
    let asked = [
        ("another_request", Request::pay("k", "[]")),
        ("uncertain", Request::pay("lost", "{}").act("drop")),
    ];
    for (case, request) in asked {
        let (policy, got) = (&published["duplicates"][case], request.send(gateway.port));
        assert_eq!(
            (&policy["status"], &policy["type"]),
            (&json!(got.status), &got.json()["type"]),
            "{case}"
        );
        assert_eq!(policy["may_retry"], got.json()["retryable"], "{case}");
    }
}

#[test]
fn a_client_that_has_read_it_gets_304_while_it_is_unchanged() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let first = get(PATH).send(gateway.port);
    let tag = first.get("etag").unwrap().to_owned();
    for asked in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
        let again = get(PATH).field("If-None-Match", &asked).send(gateway.port);
        assert_eq!(
            (again.status, again.get("etag"), again.body.len()),
            (304, Some(tag.as_str()), 0),
            "{asked}"
        );
    }
    assert_eq!(get(PATH).field("If-None-Match", "\"other\"").send(gateway.port).status, 200);

    let mut connection = Connection::open(gateway.port);
    let head = connection.exchange(&Request::new("HEAD", PATH));
    let length = first.body.len().to_string();
    assert_eq!(
        (head.status, head.get("content-length"), head.get("etag")),
        (200, Some(length.as_str()), Some(tag.as_str()))
    );
    assert_eq!(connection.exchange(&get(PATH)).body, first.body, "no body came with the head");

    let other = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\nretention = \"25h\"",
    );
    assert_ne!(
        get(PATH).send(other.port).get("etag"),
        Some(tag.as_str()),
        "another policy has another tag"
    );
}

#[test]
fn the_upstream_keeps_the_path_where_the_operator_configures_it() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/payments\"\n";
    let own = format!(
        "{routes}[[routes]]\npath = \"/.well-known/{{*rest}}\"\nmethods = [\"GET\"]\nmode = \"off\"\n"
    );
    let (off, covered) = (
        Gateway::with(upstream.port, "publish_policy = false", routes),
        Gateway::with(upstream.port, "", &own),
    );
    for (gateway, seen) in [(&off, 1), (&covered, 2)] {
        assert!(get(PATH).send(gateway.port).get("etag").is_none());
        assert_eq!(upstream.executed(), seen);
    }
    // The upstream gets other methods in any case, and also paths that only look similar.
    let usual = Gateway::start(upstream.port);
    Request::new("POST", PATH).send(usual.port);
    get(&format!("{PATH}/more")).send(usual.port);
    assert_eq!(upstream.executed(), 4);
    assert_eq!(get(&format!("{PATH}?v=1")).send(usual.port).status, 200);
    assert_eq!(upstream.executed(), 4);
    assert_eq!(usual.ask("GET", PATH).status, 404, "it is on the public port only");
    assert_eq!(usual.metric("onceward_requests_total{route=\"-\",outcome=\"published\"}"), 1.0);
}
