//! Identity checks: a start that would change the identities of stored records is refused.

use std::process::Command;

use crate::harness::{Gateway, RedisServer, Request, Upstream, until};

fn route(name: &str, scope: &str) -> String {
    format!(
        "[[routes]]\nname = {name:?}\npath = \"/v1/payments\"\nscope = {{ header = {scope:?} }}\n"
    )
}

const HASHING: &str = "[hashing]\nsecrets = [{ env = \"SECRET_A\" }]\n";
const OTHER_HASHING: &str = "[hashing]\nsecrets = [{ env = \"SECRET_B\" }]\n";
const BOTH_HASHING: &str =
    "[hashing]\nsecrets = [{ env = \"SECRET_B\" }, { env = \"SECRET_A\" }]\n";

fn launch(upstream: u16, store: &str, settings: &str, routes: &str, accept: bool) -> Gateway {
    Gateway::launch(&format!("http://127.0.0.1:{upstream}"), store, settings, routes, |command| {
        command.env("SECRET_A", "a".repeat(32)).env("SECRET_B", "b".repeat(32));
        // Container files often leave a variable out by setting it to an empty value.
        command.env(
            "ONCEWARD_ACCEPT_NEW_IDENTITIES",
            if accept && store.starts_with("redis") { "1" } else { "" },
        );
        if accept && !store.starts_with("redis") {
            command.arg("--accept-new-identities");
        }
    })
}

fn starts(upstream: u16, store: &str, settings: &str, routes: &str, accept: bool) -> Gateway {
    let gateway = launch(upstream, store, settings, routes, accept);
    until("the gateway to be ready", || gateway.is_ready());
    gateway
}

#[track_caller]
fn is_refused(store: &str, settings: &str, routes: &str, reason: &str) {
    let mut refused = launch(9, store, settings, routes, false);
    assert_eq!(ended(&mut refused), Some(1), "{reason}");
    until("the reason", || {
        refused.logs().contains(reason) && refused.logs().contains("--accept-new-identities")
    });
    assert!(std::net::TcpStream::connect(("127.0.0.1", refused.port)).is_err());
}

/// Waits for a gateway that ends by itself, and returns its exit code.
#[track_caller]
fn ended(gateway: &mut Gateway) -> Option<i32> {
    until("the gateway to end", || gateway.has_ended().is_some());
    gateway.wait().code()
}

#[test]
fn a_store_of_an_earlier_version_misses_a_route_that_is_gone() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let (usual, refunds) = (
        route("payments", "X-Account"),
        route("refunds", "X-Account").replace("/v1/pay", "/v1/re"),
    );
    stop(starts(upstream.port, &redis.url(), "", &format!("{usual}{refunds}"), false));
    // Earlier versions keep no paths.
    assert_eq!(redis.cli(&["del", "onceward:{p0}:paths"]), "1");
    is_refused(&redis.url(), "", &usual, "route \"refunds\" is not configured any more");
    stop(starts(upstream.port, &redis.url(), "", &format!("{usual}{refunds}"), false));
    stop(starts(upstream.port, &redis.url(), "", &usual, false));
}

fn stop(mut gateway: Gateway) {
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
}

fn a_change_is_refused_until_it_is_accepted(store: &str) {
    let upstream = Upstream::start();
    let pay = Request::pay("k", "{}").field("X-Account", "alice").field("X-Api-Key", "alice");
    let (usual, renamed) = (route("payments", "X-Account"), route("payouts", "X-Account"));
    let gateway = starts(upstream.port, store, "", &usual, false);
    assert_eq!(pay.send(gateway.port).status, 201);
    stop(gateway);

    is_refused(store, "", &renamed, "route \"payments\" is not configured any more");
    is_refused(
        store,
        "",
        &route("payments", "X-Api-Key"),
        "scope by x-api-key, and before by the key, scope by x-account",
    );
    is_refused(store, HASHING, &usual, "[hashing] is configured, and records were written without");

    // The refused starts changed nothing, and an added route is not a change.
    let added =
        format!("{usual}{}", route("refunds", "X-Account").replace("/v1/payments", "/v1/refunds"));
    let gateway = starts(upstream.port, store, "", &added, false);
    assert!(pay.send(gateway.port).replayed());
    stop(gateway);
    is_refused(store, "", &renamed, "route \"payouts\" covers POST /v1/payments in its place");
    // Removing an added route is no change either: each start only logs a warning.
    for _ in 0..2 {
        let gateway = starts(upstream.port, store, "", &usual, false);
        until("the warning", || {
            gateway.logs().contains("requests for POST /v1/refunds pass unprotected now")
        });
        assert_eq!(gateway.metric("onceward_vanished_routes"), 1.0);
        assert!(pay.send(gateway.port).replayed());
        stop(gateway);
    }
    let moved =
        format!("{usual}{}", route("credits", "X-Account").replace("/v1/payments", "/v1/refunds"));
    is_refused(store, "", &moved, "route \"credits\" covers POST /v1/refunds in its place");

    stop(starts(upstream.port, store, "", &renamed, true));
    let gateway = starts(upstream.port, store, "", &renamed, false);
    assert_eq!(pay.send(gateway.port).status, 201);
    stop(gateway);
    is_refused(store, "", &usual, "route \"payouts\" is not configured any more");
    assert_eq!(upstream.executed(), 2, "as was accepted");

    stop(starts(upstream.port, store, HASHING, &renamed, true));
    is_refused(store, OTHER_HASHING, &renamed, "hashing secret with the check value");
    is_refused(store, "", &renamed, "[hashing] is not configured");
    stop(starts(upstream.port, store, BOTH_HASHING, &renamed, false));
    stop(starts(upstream.port, store, OTHER_HASHING, &renamed, false));
}

#[test]
fn a_path_that_joins_or_leaves_the_identity_is_a_change() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let store = format!("file:{}", dir.path().join("data").display());
    let usual = route("payments", "X-Account");
    let (same, by_path) =
        (format!("{usual}identity = [\"route\"]\n"), format!("{usual}identity = [\"path\"]\n"));
    let pay = Request::pay("k", "{}").field("X-Account", "alice");
    let gateway = starts(upstream.port, &store, "", &usual, false);
    assert_eq!(pay.send(gateway.port).status, 201);
    stop(gateway);
    let gateway = starts(upstream.port, &store, "", &same, false);
    assert!(pay.send(gateway.port).replayed(), "what is written out is the default");
    stop(gateway);
    is_refused(
        &store,
        "",
        &by_path,
        "by the key and the path, scope by x-account, and before by the key, scope by x-account",
    );
    stop(starts(upstream.port, &store, "", &by_path, true));
    is_refused(&store, "", &usual, "before by the key and the path, scope by x-account");
}

#[test]
fn on_the_embedded_store_a_change_is_refused_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    a_change_is_refused_until_it_is_accepted(&format!(
        "file:{}",
        dir.path().join("data").display()
    ));
}

#[test]
fn on_redis_a_change_is_refused_until_it_is_accepted() {
    let redis = RedisServer::start();
    a_change_is_refused_until_it_is_accepted(&redis.url());
    assert_eq!(redis.cli(&["ttl", "onceward:{p0}:identities"]), "-1", "kept for ever");
    assert_eq!(redis.cli(&["ttl", "onceward:{p0}:paths"]), "-1");
}

#[test]
fn a_store_that_does_not_answer_at_the_start_is_asked_before_anything_is_claimed() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let (usual, renamed) = (route("payments", "X-Account"), route("payouts", "X-Account"));
    drop(starts(upstream.port, &redis.url(), "", &usual, false));
    redis.signal("STOP");
    let same = launch(upstream.port, &redis.url(), "", &usual, false);
    let mut other = launch(upstream.port, &redis.url(), "", &renamed, false);
    let pay = Request::pay("k", "{}").field("X-Account", "alice");
    for gateway in [&same, &other] {
        until("the admin port", || {
            std::net::TcpStream::connect(("127.0.0.1", gateway.admin)).is_ok()
        });
        assert_eq!(gateway.ask("GET", "/readyz").status, 503);
        assert_eq!(pay.send(gateway.port).problem(), "store-unavailable");
    }
    redis.signal("CONT");
    until("the same routes to serve", || pay.send(same.port).status == 201);
    assert_eq!(ended(&mut other), Some(1));
    until("the reason", || other.logs().contains("route \"payments\" is not configured any more"));
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn the_doctor_reports_whether_a_configuration_fits() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let store = format!("file:{}", dir.path().join("data").display());
    let doctor = |routes: &str| {
        let file = dir.path().join("onceward.toml");
        std::fs::write(&file, format!("[upstream]\nurl = \"http://127.0.0.1:9\"\n{routes}"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
        let out =
            command.args(["doctor", "--store", &store, "--config"]).arg(&file).output().unwrap();
        (
            out.status.code().unwrap(),
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
        )
    };
    let usual = route("payments", "X-Account");
    let (code, output) = doctor(&usual);
    assert!(code == 0 && output.contains("ok    the store keeps no identities yet"), "{output}");
    stop(starts(upstream.port, &store, "", &usual, false));
    let (code, output) = doctor(&usual);
    assert!(code == 0 && output.contains("ok    the store's identities agree"), "{output}");
    let (code, output) = doctor(&route("payouts", "X-Account"));
    assert!(
        code == 1 && output.contains("WARN  route \"payments\" is not configured any more"),
        "{output}"
    );
    assert!(output.contains("route \"payouts\" covers POST /v1/payments"), "{output}");
    let (code, output) =
        doctor(&route("payouts", "X-Account").replace("/v1/payments", "/v1/payouts"));
    assert!(
        code == 1 && output.contains("WARN  route \"payments\" is not configured any more"),
        "{output}"
    );
    assert!(output.contains("requests for POST /v1/payments pass unprotected now"), "{output}");
}
