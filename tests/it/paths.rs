//! Paths in other spellings. A path that an upstream could resolve into a protected resource is
//! refused; any other path is forwarded unchanged. Where the path is part of the key, all spellings
//! have one identity. A probe's path never has more than one segment for the key.

use crate::harness::{Gateway, Request, Upstream};

fn post(target: &str) -> Request {
    Request::new("POST", target).field("Authorization", "a").json("{}")
}

#[test]
fn a_path_that_an_upstream_could_resolve_into_a_protected_one_is_refused() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\nkey = { required = true }",
    );
    for target in [
        "/v1/payments;x=1",
        "/v1;a/payments",
        "/x/..;/v1/payments",
        "/v1%2Fpayments",
        "/%2Fv1/payments",
        "/v1/x%2f..%2fpayments",
        "/v1%252Fpayments",
        "/v1/payments;x/y",
        "/v1/payments%3Fx/y",
        "/v1/payments%0A",
        "/v1/%u0070ayments",
        "/v1%5Cpayments",
        "/v1/%2e/payments",
        "/v1/../v1/payments",
        "//v1/payments?x=1",
        "//host/v1/payments",
    ] {
        for request in [post(target), post(target).field("Idempotency-Key", "k")] {
            let refused = request.send(gateway.port);
            assert_eq!(
                (refused.status, refused.problem().as_str()),
                (400, "path-ambiguous"),
                "{target}"
            );
            assert_eq!(refused.json()["retryable"], false);
        }
    }
    assert_eq!(upstream.executed(), 0);
    assert_eq!(post("/v1/payments/").send(gateway.port).problem(), "key-missing", "the same route");
}

#[test]
fn a_path_that_leads_to_nothing_protected_passes_as_it_came() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\npath = \"/v1/payments\"\nkey = { required = true }",
    );
    let passed = [
        "/cb/https://x",
        "/a/../b;c//d%2F%2e",
        "//",
        "/v1/payments/x;y",
        "/V1/payments",
        "/%zz/a%20b?q=../;x",
    ];
    for target in passed {
        assert_eq!(post(target).send(gateway.port).status, 201, "{target}");
    }
    assert_eq!(
        Request::new("GET", "/v1//payments").send(gateway.port).status,
        201,
        "under this method nothing is protected"
    );
    let lines: Vec<String> = upstream.seen().iter().map(|seen| seen.line.clone()).collect();
    let expected: Vec<String> =
        passed.iter().map(|target| format!("POST {target} HTTP/1.1")).collect();
    assert_eq!(lines[..passed.len()], expected);
    assert_eq!(lines.last().unwrap(), "GET /v1//payments HTTP/1.1");
}

#[test]
fn another_letter_case_is_refused_where_the_upstream_makes_no_difference() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/payments/{id}\"\nkey = { derive = [\"path\"] }\ncase = \"insensitive\"";
    let gateway = Gateway::with(upstream.port, "", routes);
    assert_eq!(post("/V1/Payments/7").send(gateway.port).problem(), "path-ambiguous");
    assert_eq!(post("/v1/payments/abc").send(gateway.port).status, 201);
    assert_eq!(
        post("/v1/payments/ABC").send(gateway.port).problem(),
        "key-reused",
        "the same resource under the same key"
    );
    assert_eq!(post("/other").send(gateway.port).status, 201);
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn spellings_of_one_path_derive_one_key() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/{id}\"\nkey = { derive = [\"path\", \"query:of\"] }";
    let gateway = Gateway::with(upstream.port, "", routes);
    assert_eq!(post("/v1/pay:ments?of=a+b").send(gateway.port).status, 201);
    assert!(post("/v1/pay:ments?of=a+b").send(gateway.port).replayed());
    for target in [
        "/v1/p%61y:ments?of=a+b",
        "/v1/pay:ments/?of=a+b",
        "/v1/pay%3Aments?of=a+b",
        "/v1/pay:ments?of=a%20b",
    ] {
        // The fingerprint covers the request as received, so another spelling is refused and does
        // not run.
        assert_eq!(post(target).send(gateway.port).problem(), "key-reused", "{target}");
    }
    for target in [
        "/v1/pay:ments;x?of=a",
        "/v1/pay:ments%2F?of=a",
        "/v1/x/../pay:ments?of=a",
        "/v1/pay%253Aments?of=a",
        "/v1/pay:ments%3Fx?of=a",
    ] {
        assert_eq!(post(target).send(gateway.port).problem(), "path-ambiguous", "{target}");
    }
    assert_eq!(upstream.executed(), 1);
}

/// Keys that are more or less than one segment of a path to some upstream.
const NO_SEGMENT: [&str; 11] = [
    "../../../admin/users",
    "%2e%2e",
    "..;",
    "..",
    ".",
    "a/b",
    "a\\b",
    ";x",
    "a%2Fadmin%2Fusers",
    "a?admin",
    "..%u002Fa",
];

const SOON: &str = "[upstream]\nresponse_timeout = \"1s\"\n";

/// Sends a request that loses its answer. The problem document shows that a retry cannot find the
/// outcome.
fn lost_for_good(gateway: &Gateway, key: &str) {
    let lost = Request::pay(key, "{}").act("drop").send(gateway.port);
    assert_eq!(
        (lost.status, lost.problem().as_str(), lost.get("retry-after")),
        (502, "outcome-uncertain", None),
        "{key}"
    );
    assert_eq!(
        (lost.json()["retryable"].as_bool(), lost.get("x-should-retry")),
        (Some(false), Some("false")),
        "{key}"
    );
}

#[test]
fn a_key_that_is_no_segment_is_never_probed_and_its_operation_stays_held() {
    let upstream = Upstream::start();
    upstream.answer_questions("body found");
    let probe = "probe = { path = \"/v1/payments/by-key/{key}\", found = [\"201\"], headers = { Authorization = \"mine\" } }";
    let route = format!(
        "[[routes]]\npath = \"/v1/payments\"\non_uncertain = \"probe\"\nuncertain_after = \"1s\"\n{probe}"
    );
    let gateway = Gateway::with(upstream.port, SOON, &route);
    for key in NO_SEGMENT {
        lost_for_good(&gateway, key);
        let held = Request::pay(key, "{}").send(gateway.port);
        assert_eq!(
            (held.status, held.problem().as_str(), held.get("retry-after")),
            (409, "outcome-uncertain", None),
            "{key}"
        );
        assert_eq!(held.json()["retryable"], false, "{key}");
        assert!(
            held.json()["operation"].as_str().is_some() && held.text().contains("operator"),
            "{}",
            held.text()
        );
    }
    assert_eq!(
        upstream.payments_and_questions(),
        (NO_SEGMENT.len(), 0),
        "nothing was asked, and nothing ran again"
    );
    assert_eq!(gateway.metric("onceward_probes_withheld_total"), NO_SEGMENT.len() as f64);
    let logs = gateway.logs();
    assert!(
        logs.contains("probe not sent")
            && !logs.contains("admin/users")
            && !logs.contains("a?admin"),
        "{logs}"
    );
    let other = Request::pay("a:b@1", "{}");
    assert_eq!(other.clone().act("drop").send(gateway.port).json()["retryable"], true);
    assert_eq!(other.send(gateway.port).text(), "found", "other keys are asked for");
}

#[test]
fn in_the_background_such_a_key_is_never_probed_either() {
    let upstream = Upstream::start();
    upstream.answer_questions("body found");
    let gateway = crate::doubt::asking_by_itself(&upstream, "1s");
    NO_SEGMENT.iter().for_each(|key| lost_for_good(&gateway, key));
    lost_and_asked(&gateway, &upstream);
    let withheld = || gateway.metric("onceward_probes_withheld_total");
    crate::harness::until("every one to be looked at", || withheld() >= NO_SEGMENT.len() as f64);
    assert_eq!(upstream.payments_and_questions(), (NO_SEGMENT.len() + 1, 1));
    assert!(!gateway.logs().contains("admin/users"));
    for key in NO_SEGMENT {
        assert_eq!(
            Request::pay(key, "{}").send(gateway.port).problem(),
            "outcome-uncertain",
            "{key}"
        );
    }
}

/// Loses one more operation, with a key that can be probed. Once it was probed, the reconciler has
/// run.
fn lost_and_asked(gateway: &Gateway, upstream: &Upstream) {
    assert_eq!(Request::pay("plain", "{}").act("drop").send(gateway.port).status, 502);
    crate::harness::until("the upstream to be asked", || upstream.payments_and_questions().1 == 1);
}

/// A route for each of the two values of `identity`.
const IDENTITIES: &str = r#"
[[routes]]
name = "by-path"
path = "/by-path/{*rest}"
identity = ["path"]

[[routes]]
name = "by-route"
path = "/by-route/{*rest}"
"#;

#[test]
fn one_key_is_an_operation_of_its_own_on_each_path_where_the_path_is_part_of_the_identity() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", IDENTITIES);
    let pay = |target: &str| post(target).field("Idempotency-Key", "k").send(gateway.port);
    let (first, other) = (pay("/by-path/7/pay"), pay("/by-path/8/pay"));
    assert_eq!((first.status, other.status), (201, 201));
    for (target, answer) in [("/by-path/7/pay", &first), ("/by-path/8/pay", &other)] {
        let again = pay(target);
        assert!(again.replayed() && again.body == answer.body, "{target}");
    }
    // Another spelling of a path is the same operation but another request, so nothing runs.
    for same in ["/by-path/%37/pay", "/by-path/7/pay/"] {
        assert_eq!(pay(same).problem(), "key-reused", "{same}");
    }
    for odd in ["/by-path/7%2Fpay", "/by-path/7;a/pay", "/by-path/x/../7/pay"] {
        assert_eq!(pay(odd).problem(), "path-ambiguous", "{odd}");
    }
    assert_eq!(upstream.executed(), 2);

    assert_eq!(pay("/by-route/7/pay").status, 201);
    assert_eq!(pay("/by-route/8/pay").problem(), "key-reused", "one operation on the whole route");
    assert_eq!(upstream.executed(), 3);
}

#[test]
fn an_operation_is_found_by_its_key_on_its_path() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", IDENTITIES);
    assert_eq!(post("/by-path/7/pay").field("Idempotency-Key", "k").send(gateway.port).status, 201);
    let look = |path: &str| {
        let body = format!(r#"{{"route":"by-path","key":"k"{path}}}"#);
        Request::new("POST", "/v1/operations/lookup")
            .host("127.0.0.1")
            .json(&body)
            .send(gateway.admin)
    };
    for path in ["/by-path/7/pay", "/by-path/%37/pay/"] {
        assert_eq!(look(&format!(r#","path":"{path}""#)).json()["state"], "completed", "{path}");
    }
    for (path, status, problem) in [
        ("", 400, "lookup-invalid"),
        (r#","path":"by-path/7/pay""#, 400, "lookup-invalid"),
        (r#","path":"/by-path/7;a/pay""#, 400, "lookup-invalid"),
        (r#","path":"/by-path/8/pay""#, 404, "operation-unknown"),
    ] {
        let answer = look(path);
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{path}");
    }
    let page = gateway.ask("GET", "/operations").text();
    assert!(page.contains(r#"id="path""#) && page.contains("(of by-path)"), "{page}");
}
