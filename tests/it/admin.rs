//! Operators: the admin API, its commands and its access rules.

use std::process::Command;

use crate::harness::{Answer, Connection, Gateway, Request, Upstream, until};

pub fn cli(gateway: &Gateway, words: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .arg("operations")
        .args(words)
        .args(["--admin", &format!("127.0.0.1:{}", gateway.admin)])
        .output()
        .unwrap();
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
    )
}

/// Creates an operation with a lost answer, and returns its reference.
pub fn lose(gateway: &Gateway, key: &str) -> String {
    let lost = Request::pay(key, "{}").act("drop").send(gateway.port);
    lost.json()["operation"].as_str().unwrap().to_owned()
}

#[test]
fn an_uncertain_operation_is_listed_and_resolved_and_its_duplicates_replay_the_decision() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "secret-key");
    let (code, listed) = cli(&gateway, &["list", "--state", "uncertain"]);
    assert!(code == 0 && listed.contains(&operation) && listed.contains("broke"), "{listed}");
    assert!(!listed.contains("secret-key"));

    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), r#"{"payment":"settled"}"#).unwrap();
    let file = body.path().to_str().unwrap();
    let (code, output) = cli(
        &gateway,
        &[
            "resolve",
            &operation,
            "--status",
            "201",
            "--body",
            file,
            "--reason",
            "seen in the bank's file",
        ],
    );
    assert_eq!(code, 0, "{output}");
    let again = Request::pay("secret-key", "{}").act("drop").send(gateway.port);
    assert!(again.status == 201 && again.replayed());
    assert_eq!(
        (again.text().as_str(), again.get("content-type")),
        (r#"{"payment":"settled"}"#, Some("application/json"))
    );
    assert_eq!(cli(&gateway, &["resolve", &operation, "--status", "200"]).0, 1, "it is settled");
    gateway.logged("seen in the bank's file");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_released_operation_runs_again_but_not_before_the_lost_request_had_its_time() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    let (code, output) = cli(&gateway, &["release", &operation]);
    assert!(code == 1 && output.contains("too early"), "{output}");
    until("uncertain_after to pass", || cli(&gateway, &["release", &operation]).0 == 0);
    // docs/OPERATING.md has operators search the log for this text.
    until("the decision in the log", || {
        gateway
            .logs()
            .lines()
            .any(|line| line.contains("by an operator") && line.contains(&operation))
    });
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    assert_eq!(upstream.executed(), 2);
}

/// Routes with each kind of key and scope that an operator can state.
const KEYED: &str = r#"
[hashing]
secrets = [{ env = "HASHING_SECRET" }]
[[routes]]
name = "payments"
path = "/v1/payments"
scope = { headers = ["X-Shop", "X-Till"] }
[[routes]]
name = "orders"
path = "/v1/orders"
key = { body = "/id" }
[[routes]]
name = "derived"
path = "/v1/derived"
key = { derive = ["path", "body:/order"] }
upstream_key = { header = "Idempotency-Key" }
[[routes]]
name = "watched"
path = "/v1/watched"
mode = "shadow"
"#;

#[test]
fn an_operation_is_found_by_its_key_and_the_key_is_in_no_log() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TOKENS, KEYED);
    let look = |body: &str| {
        let request = Request::new("POST", "/v1/operations/lookup").host("127.0.0.1").json(body);
        request.field("Authorization", "Bearer letmesee").send(gateway.admin)
    };
    let found = |answer: &Answer| answer.json()["route"].as_str().map(str::to_owned);
    let pay = Request::pay("\"canary-key\"", "{}").field("X-Shop", "s").field("X-Till", "7");
    assert_eq!(pay.send(gateway.port).status, 201);
    for key in ["canary-key", r#"\"canary-key\""#] {
        let answer = look(&format!(
            r#"{{"route":"payments","key":"{key}","scope":{{"x-shop":"s","x-till":"7"}}}}"#
        ));
        assert_eq!(found(&answer).as_deref(), Some("payments"), "{}", answer.text());
        assert!(answer.get("etag").is_some() && !answer.text().contains("canary"));
    }
    let order = Request::new("POST", "/v1/orders").json(r#"{"id":"canary order"}"#);
    assert_eq!(order.send(gateway.port).status, 201);
    assert_eq!(
        found(&look(r#"{"route":"orders","key":"canary order"}"#)).as_deref(),
        Some("orders")
    );
    assert_eq!(
        Request::new("POST", "/v1/derived").json(r#"{"order":7}"#).send(gateway.port).status,
        201
    );
    let digest = upstream.seen().pop().unwrap().get("idempotency-key").unwrap().to_owned();
    assert_eq!(
        found(&look(&format!(r#"{{"route":"derived","key":"{digest}"}}"#))).as_deref(),
        Some("derived")
    );

    for (body, status, problem) in [
        (
            r#"{"route":"payments","key":"canary-key","scope":{"x-shop":"s","x-till":"8"}}"#,
            404,
            "operation-unknown",
        ),
        (
            r#"{"route":"payments","key":"canary-key","scope":{"x-shop":"s"}}"#,
            400,
            "lookup-invalid",
        ),
        (
            r#"{"route":"payments","key":"canary key","scope":{"x-shop":"s","x-till":"7"}}"#,
            400,
            "lookup-invalid",
        ),
        (r#"{"route":"derived","key":"canary-key"}"#, 400, "lookup-invalid"),
        (r#"{"route":"watched","key":"canary-key"}"#, 400, "lookup-invalid"),
        (r#"{"route":"payment","key":"canary-key"}"#, 404, "route-unknown"),
        (r#"{"route":"payments"}"#, 400, "request-invalid"),
    ] {
        let answer = look(body);
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{body}");
        assert!(!answer.text().contains("canary"), "{}", answer.text());
    }
    assert!(!gateway.logs().contains("canary"));
}

/// Sends a change to the admin API.
fn change(
    gateway: &Gateway,
    operation: &str,
    verb: &str,
    version: Option<&str>,
    body: &str,
) -> Answer {
    let request = Request::new("POST", &format!("/v1/operations/{operation}/{verb}"))
        .host("127.0.0.1")
        .json(body);
    version
        .into_iter()
        .fold(request, |request, version| request.field("If-Match", version))
        .send(gateway.admin)
}

#[test]
fn a_decision_on_what_has_moved_is_lost() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    let seen = gateway.ask("GET", &format!("/v1/operations/{operation}"));
    let version = seen.get("etag").unwrap().to_owned();
    let resolve = |status: u16| {
        change(
            &gateway,
            &operation,
            "resolve",
            Some(&version),
            &format!(r#"{{"status":{status},"reason":"seen"}}"#),
        )
    };
    assert_eq!(resolve(201).status, 200);
    let lost = resolve(500);
    assert_eq!((lost.status, lost.problem().as_str()), (412, "operation-moved"));
    let pinned = version.trim_matches('"');
    let (code, output) =
        cli(&gateway, &["expire", &operation, "--reason", "seen", "--version", pinned]);
    assert!(code == 1 && output.contains("412") && output.contains("look again"), "{output}");
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
}

#[test]
fn a_change_names_the_version_that_it_was_decided_on_and_a_reason() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    let seen = gateway.ask("GET", &format!("/v1/operations/{operation}"));
    let version = seen.get("etag").unwrap();
    let long = format!(r#"{{"status":201,"reason":"{}"}}"#, "x".repeat(1025));
    for verb in ["resolve", "retry", "release", "expire"] {
        let bodies = if verb == "resolve" {
            [r#"{"status":201}"#, r#"{"status":201,"reason":" "}"#]
        } else {
            ["{}", r#"{"reason":""}"#]
        };
        let reasoned =
            if verb == "resolve" { r#"{"status":201,"reason":"r"}"# } else { r#"{"reason":"r"}"# };
        let refusal = |version, body| {
            let answer = change(&gateway, &operation, verb, version, body);
            (answer.status, answer.problem())
        };
        assert_eq!(refusal(None, reasoned), (428, "if-match-required".into()), "{verb}");
        for unclear in ["*", "7", "W/\"7\"", "\"7\", \"8\""] {
            assert_eq!(
                refusal(Some(unclear), reasoned),
                (400, "if-match-invalid".into()),
                "{verb} {unclear}"
            );
        }
        for body in bodies {
            assert_eq!(
                refusal(Some(version), body),
                (400, "request-invalid".into()),
                "{verb} {body}"
            );
        }
        assert_eq!(refusal(Some("\"7\""), reasoned), (412, "operation-moved".into()), "{verb}");
    }
    assert_eq!(
        change(&gateway, &operation, "resolve", Some(version), &long).status,
        400,
        "no reason is cut"
    );
    assert_eq!(
        gateway.ask("GET", &format!("/v1/operations/{operation}")).json(),
        seen.json(),
        "nothing was changed"
    );
}

#[test]
fn whatever_the_admin_api_refuses_is_a_problem_document() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let refusal = |method: &str, target: &str| {
        let answer = gateway.ask(method, target);
        (answer.status, answer.problem())
    };
    assert_eq!(refusal("GET", "/v1/nothing"), (404, "not-found".into()));
    assert_eq!(refusal("DELETE", "/v1/operations"), (405, "method-not-allowed".into()));
    assert_eq!(refusal("GET", "/v1/operations?limit=many"), (400, "request-invalid".into()));
    assert_eq!(refusal("GET", "/v1/operations?state=lost"), (400, "state-unknown".into()));
    assert_eq!(refusal("GET", "/v1/operations/op_1"), (404, "operation-unknown".into()));
    assert_eq!(refusal("GET", "/v1/operations/%ff"), (400, "request-invalid".into()));
    assert_eq!(refusal("GET", "/v1/log/verify?cursor=nowhere"), (400, "request-invalid".into()));
    let nobody = "/v1/operations/op_0000000000000000000000000000000000000000/release";
    assert_eq!(refusal("POST", nobody), (404, "operation-unknown".into()));
}

#[test]
fn an_expired_result_is_gone_and_its_duplicates_never_run() {
    let (upstream, redis) = (Upstream::start(), crate::harness::RedisServer::start());
    let embedded = Gateway::start(upstream.port);
    let shared = Gateway::on(upstream.port, &redis.url(), "", crate::harness::ROUTES);
    for (n, gateway) in [&embedded, &shared].into_iter().enumerate() {
        let pay = Request::pay("k", "{}").act("body canary-result");
        assert_eq!(pay.send(gateway.port).status, 201);
        let operation = cli(gateway, &["list"]).1.split_whitespace().next().unwrap().to_owned();
        let (code, output) =
            cli(gateway, &["expire", &operation, "--reason", "asked by the customer"]);
        assert!(code == 0 && output.contains("expired"), "{output}");
        let late = pay.send(gateway.port);
        assert_eq!((late.status, late.problem().as_str()), (409, "result-expired"));
        assert_eq!(
            Request::pay("k", "{}").field("Authorization", "another").send(gateway.port).problem(),
            "key-reused"
        );
        let (code, output) = cli(gateway, &["expire", &operation]);
        assert!(
            code == 1 && output.contains("only the result of a completed operation"),
            "{output}"
        );
        assert!(cli(gateway, &["list", "--state", "expired"]).1.contains(&operation));
        gateway.logged("asked by the customer");
        assert_eq!(upstream.executed(), n + 1);
    }
    let key = redis.cli(&["--scan", "--pattern", "*:r:*"]);
    assert!(!redis.cli(&["get", &key]).contains("canary"), "the result is gone");
    // The route keeps no tombstones, and still the key stays blocked until its retention would have
    // ended.
    assert!(redis.cli(&["pttl", &key]).parse::<u64>().unwrap() > 80_000_000, "a day");
}

#[test]
fn a_running_operation_is_left_alone() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let pay = Request::pay("k", "{}").act("hold");
    let first = pay.send_aside(gateway.port);
    upstream.reached(1);
    let operation = pay.send(gateway.port).json()["operation"].as_str().unwrap().to_owned();
    let (code, output) = cli(&gateway, &["release", &operation]);
    assert!(code == 1 && output.contains("in flight"), "{output}");
    assert_eq!(cli(&gateway, &["show", "op_0000000000000000000000000000000000000000"]).0, 1);
    let (code, shown) = cli(&gateway, &["show", &operation]);
    let seen = gateway.ask("GET", &format!("/v1/operations/{operation}")).json();
    assert!(code == 0 && shown.contains("in_flight"), "{shown}");
    for fact in ["opened_at", "version"] {
        assert!(shown.contains(seen[fact].as_str().unwrap()), "{fact}: {shown}");
    }
    assert_eq!(
        cli(&gateway, &["list", "--limit", "0"]).0,
        2,
        "none of them would be all that there are"
    );
    upstream.release();
    assert_eq!(first.join().unwrap().status, 201);
}

pub const TOKENS: &str = r#"
[admin_auth]
tokens = [
  { name = "on-call", role = "operate", env = "ADMIN_TOKEN" },
  { name = "dashboard", role = "read", env = "READ_TOKEN" },
]
"#;

#[test]
fn with_tokens_nobody_comes_in_without_one() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TOKENS, crate::harness::ROUTES);
    let ask = |method: &str, target: &str, token: Option<&str>| {
        let mut request = Request::new(method, target).host("127.0.0.1");
        if let Some(token) = token {
            request = request.field("Authorization", &format!("Bearer {token}"));
        }
        request.json("{}").send(gateway.admin).status
    };
    let release = "/v1/operations/op_0000000000000000000000000000000000000000/release";
    for token in [None, Some("wrong"), Some(""), Some("letmei")] {
        assert_eq!(ask("GET", "/v1/operations", token), 401, "{token:?}");
        assert_eq!(ask("POST", release, token), 401, "{token:?}");
    }
    assert_eq!(ask("GET", "/v1/operations", Some("letmesee")), 200);
    for target in ["/v1/report", "/v1/log"] {
        // A reader is authorized, and gets 501 because there is no event log.
        assert_eq!(
            (ask("GET", target, None), ask("GET", target, Some("letmesee"))),
            (401, 501),
            "{target}"
        );
    }
    assert_eq!(ask("POST", release, Some("letmesee")), 403);
    assert_eq!(ask("POST", release, Some("letmein")), 404);
    for target in ["//v1/operations", "/%2e%2e/v1/operations", "/healthz/../v1/operations"] {
        assert_eq!(ask("GET", target, None), 404, "{target}");
    }
    assert!(!gateway.logs().contains("letmein"));
}

#[test]
fn a_web_page_can_not_act_in_an_operators_name() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let ask = Request::new("GET", "/v1/operations");
    assert_eq!(
        ask.clone()
            .host("127.0.0.1")
            .field("Origin", "https://evil.example")
            .send(gateway.admin)
            .status,
        401
    );
    assert_eq!(ask.clone().host("evil.example").send(gateway.admin).status, 401, "a rebound name");
    assert_eq!(ask.host("localhost:1").send(gateway.admin).status, 200);
    for path in
        ["/", "/healthz", "/readyz", "/metrics", "/v1/openapi.json", "/v1/statistics", "/nowhere"]
    {
        let rebound = Request::new("GET", path).host("evil.example:8081").send(gateway.admin);
        assert_eq!(rebound.status, 401, "{path}: {}", rebound.text());
    }
    assert_eq!(Request::new("GET", "/metrics").host("[::1]:8081").send(gateway.admin).status, 200);
}

#[test]
fn with_tokens_too_nothing_that_needs_none_answers_to_a_foreign_name_on_loopback() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TOKENS, crate::harness::ROUTES);
    for path in ["/healthz", "/readyz", "/metrics", "/v1/openapi.json"] {
        let asked = |host: &str| Request::new("GET", path).host(host).send(gateway.admin).status;
        assert_eq!(
            (asked("evil.example"), asked("localhost:1"), asked("LOCALHOST")),
            (401, 200, 200),
            "{path}"
        );
    }
}

#[test]
fn half_requests_and_slow_ones_keep_no_probe_from_its_answer() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let opened = |count: usize, text: &str| -> Vec<Connection> {
        let open = |_| {
            let mut connection = Connection::open(gateway.admin);
            connection.write(text.as_bytes());
            connection
        };
        (0..count).map(open).collect()
    };
    let probes_are_answered = || {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(gateway.ask("GET", path).status, 200, "{path}");
        }
    };
    #[allow(clippy::disallowed_methods)]
    let began = std::time::Instant::now();
    let half = opened(300, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    probes_are_answered();
    drop(half);
    // Their bodies never arrive. Some get no permit while the earlier connections are still being
    // closed.
    let slow = "POST /v1/scope HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n";
    let mut slow_ones = opened(130, slow);
    until("all others to be taken", || {
        slow_ones.extend(opened(1, slow));
        gateway.ask("GET", "/v1/operations").status == 503
    });
    assert_eq!(gateway.ask("GET", "/metrics").problem(), "overloaded");
    probes_are_answered();
    drop(slow_ones);
    until("them to be given back", || gateway.ask("GET", "/v1/operations").status == 200);
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "nobody waited for a timeout");
}

#[test]
fn silent_connections_are_not_waited_for_on_the_admin_port() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TOKENS, crate::harness::ROUTES);
    let patience = std::time::Duration::from_secs(20);
    let idle = ["", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
        .map(|beginning| {
            let mut connection = Connection::try_open(gateway.admin, patience).unwrap();
            connection.write(beginning.as_bytes());
            (beginning, connection)
        });
    for (beginning, mut connection) in idle {
        assert!(connection.ends(), "it still waits behind {beginning:?}");
    }
}

#[test]
fn the_admin_api_is_not_on_the_public_port() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for target in ["/healthz", "/readyz", "/metrics", "/v1/operations"] {
        let answer = Request::new("GET", target).send(gateway.port);
        assert!(answer.text().contains("payment"), "{target} is the upstream's: {}", answer.text());
    }
    assert_eq!(upstream.executed(), 4);
}

#[test]
fn an_open_admin_port_without_tokens_is_refused() {
    let upstream = Upstream::start();
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args([
            "run",
            "--upstream",
            &format!("http://127.0.0.1:{}", upstream.port),
            "--store",
            "memory:",
        ])
        .args(["--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0"])
        .output()
        .unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("token"), "{out:?}");
}

#[test]
fn a_gateway_without_an_upstream_prints_the_reason() {
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .arg("run")
        .env_remove("ONCEWARD_UPSTREAM")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--upstream"), "{out:?}");
}

#[test]
fn health_reports_whether_the_gateway_lives() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::start(upstream.port);
    let health = |words: &[&str]| {
        let admin = format!("127.0.0.1:{}", gateway.admin);
        Command::new(env!("CARGO_BIN_EXE_onceward"))
            .arg("health")
            .args(words)
            .args(["--admin", &admin])
            .status()
            .unwrap()
            .code()
    };
    assert_eq!((health(&[]), health(&["--ready"])), (Some(0), Some(0)));
    gateway.kill();
    let admin = format!("127.0.0.1:{}", gateway.admin);
    let code = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["health", "--admin", &admin])
        .status()
        .unwrap()
        .code();
    assert_eq!(code, Some(1));
}

#[test]
fn logs_and_metrics_name_no_key_no_credential_and_no_body() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for script in ["", "drop", "status 429"] {
        for _ in 0..2 {
            let pay = Request::pay("canary-key", r#"{"card":"canary-body"}"#)
                .act(script)
                .field("Authorization", "canary-token");
            pay.field("Cookie", "canary-cookie").send(gateway.port);
        }
    }
    let mut half = Connection::open(gateway.port);
    half.write(b"POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: canary key\r\n\r\n");
    half.read();
    let texts = gateway.logs()
        + &gateway.ask("GET", "/metrics").text()
        + &gateway.ask("GET", "/v1/operations").text();
    assert!(texts.contains("op_"), "there is something to read");
    assert!(!texts.contains("canary"), "{texts}");
}
