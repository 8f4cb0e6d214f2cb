//! The report on shadow routes: the answers that requests would get if the policy were enforced.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Gateway, ROUTES, Request, Upstream, until};

const LOG: &str = "[log]\nenabled = true";

const WATCHED: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
mode = "shadow"
scope = { header = "X-Tenant" }
on_in_flight = "wait"
"#;

fn report(gateway: &Gateway, words: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .arg("report")
        .args(words)
        .args(["--admin", &format!("127.0.0.1:{}", gateway.admin)])
        .output()
        .unwrap();
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
    )
}

fn answer(gateway: &Gateway) -> Value {
    let (code, text) = report(gateway, &["--since", "90m", "--json"]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_report_shows_by_client_what_enforcing_would_have_replayed_and_refused() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, LOG, WATCHED);
    let (code, output) = report(&gateway, &[]);
    assert!(
        code == 0 && output.contains(": nothing.") && output.contains("In shadow mode: payments."),
        "{output}"
    );

    let pay = |tenant: &str, body: &str| {
        Request::pay("k", body).field("X-Tenant", tenant).send(gateway.port).status
    };
    for tenant in ["alice", "bob"] {
        assert_eq!(pay(tenant, r#"{"amount":4200}"#), 201);
    }
    until("both first requests to be watched", || {
        gateway.metric("onceward_shadow_total{route=\"payments\",would=\"execute\"}") == 2.0
    });
    for (count, tenant, body) in [
        (3, "alice", r#"{"amount":4200}"#),
        (1, "bob", r#"{"amount":4200}"#),
        (2, "bob", r#"{"amount":9900}"#),
    ] {
        (0..count).for_each(|_| assert_eq!(pay(tenant, body), 201));
    }
    assert_eq!(upstream.executed(), 8, "watching refuses nothing");

    until("all duplicates to be counted", || {
        answer(&gateway)["would_refuse"] == 2 && answer(&gateway)["would_replay"] == 4
    });
    let counted = answer(&gateway);
    let rows = counted["rows"].as_array().unwrap();
    let scopes: Vec<&str> = rows.iter().map(|row| row["scope"].as_str().unwrap()).collect();
    let row = |scope: &str, would: &str, requests: u64| json!({"route": "payments", "scope": scope, "would": would, "requests": requests});
    let mut refused = row(scopes[1], "refuse", 2);
    refused["problem"] = "key-reused".into();
    assert_eq!(
        counted["rows"],
        json!([row(scopes[0], "replay", 3), refused, row(scopes[1], "replay", 1)]),
        "{counted}"
    );
    assert_ne!(scopes[0], scopes[1]);
    assert_eq!((&counted["cut"], &counted["shadow_routes"]), (&false.into(), &json!(["payments"])));
    assert!(
        counted["lag_ms"].is_u64() && counted["since"].as_str().unwrap().ends_with(":00:00.000Z"),
        "{counted}"
    );

    let (code, text) = report(&gateway, &["--since", "90m"]);
    assert!(
        code == 0 && text.contains("ROUTE     CLIENT            WOULD   WHY         REQUESTS"),
        "{text}"
    );
    assert!(
        text.contains(&format!("payments  {}  refuse  key-reused         2", scopes[1])),
        "{text}"
    );
    assert!(
        text.contains(
            "In total 4 would have got the stored response, and 2 would have been refused."
        ),
        "{text}"
    );
    let names_client = text.contains("alice") || text.contains("bob");
    assert!(!names_client, "clients are identified by a hash: {text}");
    assert_eq!(report(&gateway, &["--since", "yesterday"]).0, 2);
    assert_eq!(gateway.ask("GET", "/v1/report?since=yesterday").problem(), "request-invalid");
    // With an explanation, the report names the possible callers of a tenant mark.
    let asked = Request::new("POST", "/v1/scope")
        .host("127.0.0.1")
        .json(r#"{"route":"payments","scope":{"x-tenant":"bob"}}"#);
    assert_eq!(asked.send(gateway.admin).json()["scope"], scopes[1]);
    let later = gateway.ask("GET", "/v1/report?since=2100-01-01T00:00:00Z").json();
    assert_eq!((&later["rows"], &later["would_replay"]), (&json!([]), &0.into()));
}

#[test]
fn where_nothing_can_be_reported_the_reason_is_given() {
    let upstream = Upstream::start();
    let (logging, silent) =
        (Gateway::with(upstream.port, LOG, ROUTES), Gateway::start(upstream.port));
    let (code, output) = report(&logging, &[]);
    assert!(code == 0 && output.contains("No route is in shadow mode"), "{output}");
    let (code, output) = report(&silent, &[]);
    assert!(code == 1 && output.contains("set enabled = true under [log]"), "{output}");
    assert_eq!(silent.ask("GET", "/v1/report").problem(), "read-model-off");
}

#[test]
fn clients_of_a_route_without_a_scope_are_distinguished_by_what_they_send() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        LOG,
        "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nmode = \"shadow\"\n",
    );
    let pay = |client: &str| {
        Request::pay("k", "{}").field("Authorization", client).send(gateway.port).status
    };
    let watched = |would: &str| {
        gateway.metric(&format!("onceward_shadow_total{{route=\"payments\",would=\"{would}\"}}"))
    };
    assert_eq!(pay("alice"), 201);
    until("the first request to be watched", || watched("execute") == 1.0);
    assert_eq!([pay("alice"), pay("bob")], [201, 201]);
    until("both to be counted", || answer(&gateway)["rows"].as_array().unwrap().len() == 2);
    let counted = answer(&gateway);
    assert_ne!(counted["rows"][0]["scope"], counted["rows"][1]["scope"], "{counted}");
}
