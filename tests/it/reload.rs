//! Configuration reloads during requests: a request ends under the configuration with which it
//! began.

use crate::harness::{
    Connection, Gateway, ROUTES, RedisServer, Request, Upstream, free_port, until,
};

const REFUNDS: &str = "[[routes]]\nname = \"refunds\"\npath = \"/v1/refunds\"\n";

fn refund(key: &str) -> Request {
    Request::new("POST", "/v1/refunds").field("Idempotency-Key", key).json("{}")
}

fn reloads(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("onceward_config_reloads_total{{result=\"{result}\"}}"))
}

/// Writes another file and signals the process.
#[track_caller]
fn reload(gateway: &Gateway, config: &str, result: &str) {
    let before = reloads(gateway, result);
    std::fs::write(gateway.config(), config).unwrap();
    gateway.signal("HUP");
    until(&format!("the configuration to be {result}"), || reloads(gateway, result) > before);
}

/// Checks that reloading a faulty file changes nothing, and that the log contains the reasons.
#[track_caller]
fn is_refused(gateway: &Gateway, config: &str, why: &[&str]) {
    let before = gateway.logs().len();
    let applied = reloads(gateway, "applied");
    reload(gateway, config, "refused");
    until("the reason", || why.iter().all(|why| gateway.logs()[before..].contains(why)));
    assert_eq!(reloads(gateway, "applied"), applied);
}

#[test]
fn a_new_route_works_after_sighup_on_connections_that_were_there() {
    let upstream = Upstream::start();
    let long = "[upstream]\nidle_timeout = \"60s\"\n";
    let gateway = Gateway::with(upstream.port, long, ROUTES);
    let mut connection = Connection::open(gateway.port);
    assert_eq!(connection.exchange(&Request::pay("k", "{}")).status, 201);
    assert!(
        !connection.exchange(&refund("r")).replayed()
            && !connection.exchange(&refund("r")).replayed()
    );
    let began = gateway.metric("onceward_config_in_force_since_timestamp_seconds");
    assert!(began > 1_700_000_000.0, "{began}");

    reload(&gateway, &format!("{long}{ROUTES}{REFUNDS}"), "applied");
    assert!(gateway.metric("onceward_config_in_force_since_timestamp_seconds") >= began);
    assert_eq!(connection.exchange(&refund("r")).status, 201);
    assert!(connection.exchange(&refund("r")).replayed());
    assert!(
        connection.exchange(&Request::pay("k", "{}")).replayed(),
        "what was answered stays answered"
    );
    assert_eq!(
        (upstream.executed(), upstream.connections()),
        (4, 1),
        "the connection to the upstream stays too"
    );
    gateway.logged("configuration reloaded");
}

#[test]
fn a_file_with_faults_changes_nothing_and_the_log_names_file_line_and_key() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let faulty = ROUTES.replace("lease = \"3s\"", "lease = \"3 bananas\"\nmod = \"off\"");
    let file = gateway.config().display().to_string();
    is_refused(
        &gateway,
        &faulty,
        &[
            &format!("{file}:5:9: routes[0].lease: "),
            &format!("{file}:6:1: routes[0].mod: no such key"),
        ],
    );
    is_refused(&gateway, "[[routes", &[&format!("{file}:1:")]);
    is_refused(
        &gateway,
        &format!(
            "[admin_auth]\ntokens = [{{ name = \"a\", role = \"read\", env = \"NOWHERE\" }}]\n{ROUTES}"
        ),
        &["the environment variable NOWHERE is not set"],
    );
    std::fs::remove_file(gateway.config()).unwrap();
    let asked = gateway.ask("POST", "/v1/reload");
    assert_eq!((asked.status, asked.problem()), (409, "reload-refused".to_owned()));
    assert!(asked.json()["detail"].as_str().unwrap().contains(&format!("can't read {file}")));
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    assert!(Request::pay("k", "{}").send(gateway.port).replayed());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn what_a_running_process_cannot_change_is_refused_by_name() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let settings = "[store]\nnamespace = \"other\"\ntimeout = \"400ms\"\nack = \"replicas:1\"\n[limits]\nconnections = 9\nin_flight = 9\n";
    let refused = "store.namespace, store.timeout, store.ack, limits.connections can't be changed without a restart";
    is_refused(&gateway, &format!("{settings}{ROUTES}{REFUNDS}"), &[refused]);
    assert!(
        !refund("r").send(gateway.port).replayed() && !refund("r").send(gateway.port).replayed()
    );
}

#[test]
fn a_reload_that_would_change_identities_is_refused_unless_the_start_accepted_it() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let store = format!("file:{}", dir.path().join("data").display());
    let mut gateway = Gateway::on(upstream.port, &store, "", ROUTES);
    let pay = Request::pay("k", "{}");
    assert_eq!(pay.send(gateway.port).status, 201);
    let renamed = ROUTES.replace("payments\"", "payouts\"").replace("/v1/payouts", "/v1/payments");
    is_refused(&gateway, &renamed, &["route \"payments\" is not configured any more"]);
    assert!(pay.send(gateway.port).replayed());
    // An added route must keep its name.
    reload(&gateway, &format!("{ROUTES}{REFUNDS}"), "applied");
    is_refused(
        &gateway,
        &format!("{renamed}{REFUNDS}"),
        &["route \"payouts\" covers POST /v1/payments in its place"],
    );
    assert_eq!(gateway.metric("onceward_vanished_routes"), 0.0);
    // Removing it again is reported.
    reload(&gateway, ROUTES, "applied");
    assert_eq!(gateway.metric("onceward_vanished_routes"), 1.0);
    until("the warning", || {
        gateway.logs().contains("route \"refunds\" is not configured any more")
    });
    reload(&gateway, &format!("{ROUTES}{REFUNDS}"), "applied");
    assert_eq!(gateway.metric("onceward_vanished_routes"), 0.0);
    gateway.signal("TERM");
    assert!(gateway.wait().success());

    let url = format!("http://127.0.0.1:{}", upstream.port);
    let gateway = Gateway::launch(&url, &store, "", &format!("{ROUTES}{REFUNDS}"), |command| {
        command.arg("--accept-new-identities");
    });
    until("the gateway to be ready", || gateway.is_ready());
    reload(&gateway, &renamed, "applied");
    let again = pay.send(gateway.port);
    assert!(again.status == 201 && !again.replayed(), "as was accepted");
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_wait_goes_on_under_what_it_began_with_and_counts_under_what_follows() {
    let upstream = Upstream::start();
    let wait = format!("{ROUTES}on_in_flight = \"wait\"\nwait_timeout = \"60s\"\n");
    let mut gateway = Gateway::with(upstream.port, "", &wait);
    let first = Request::pay("k", "{}").act("hold").send_aside(gateway.port);
    upstream.reached(1);
    let waiting = Request::pay("k", "{}").act("hold").send_aside(gateway.port);
    until("the duplicate to wait", || gateway.metric("onceward_waiters") == 1.0);

    reload(&gateway, &format!("[limits]\nin_flight = 1\n{ROUTES}"), "applied");
    // The running request takes the only place, so the next one begins with a refusal either way.
    assert_eq!(Request::pay("other", "{}").send(gateway.port).problem(), "overloaded");
    reload(&gateway, &format!("[limits]\nin_flight = 4\n{ROUTES}"), "applied");
    assert_eq!(
        Request::pay("k", "{}").act("hold").send(gateway.port).problem(),
        "in-flight",
        "no waiting any more"
    );
    assert!(!waiting.is_finished() && !first.is_finished());

    // The shutdown waits for requests that began before the reload.
    gateway.signal("TERM");
    until("the end to begin", || gateway.logs().contains("stopping"));
    assert!(gateway.has_ended().is_none());
    upstream.release();
    assert_eq!(first.join().unwrap().status, 201);
    let answer = waiting.join().unwrap();
    assert!(answer.status == 201 && answer.replayed(), "{answer:?}");
    assert!(gateway.wait().success());
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn limits_and_tokens_follow_a_reload_by_the_admin_api_which_takes_an_operator() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let tokens = r#"
        [limits]
        request_body = "10B"
        [admin_auth]
        tokens = [{ name = "on-call", role = "operate", env = "ADMIN_TOKEN" }, { name = "grafana", role = "read", env = "READ_TOKEN" }]
    "#;
    std::fs::write(gateway.config(), format!("{tokens}{ROUTES}")).unwrap();
    let asked = gateway.ask("POST", "/v1/reload");
    assert_eq!(
        (asked.status, asked.json()["result"].as_str()),
        (200, Some("applied")),
        "{asked:?}"
    );
    assert_eq!(
        Request::pay("large", "[1,2,3,4,5,6]").send(gateway.port).problem(),
        "body-too-large"
    );
    let ask = |token: &str| {
        let request = Request::new("POST", "/v1/reload").host("127.0.0.1");
        request.field("Authorization", &format!("Bearer {token}")).send(gateway.admin).status
    };
    assert_eq!(gateway.ask("POST", "/v1/reload").status, 401);
    assert_eq!((ask("letmesee"), ask("letmein")), (403, 200));
    until("who asked to be logged", || gateway.logs().contains("by=\"on-call\""));
}

#[test]
fn before_the_store_has_agreed_to_the_first_configuration_no_other_is_taken() {
    let (upstream, port) = (Upstream::start(), free_port());
    let gateway = Gateway::spawn(upstream.port, &format!("redis://127.0.0.1:{port}"), "", ROUTES);
    until("the admin port", || std::net::TcpStream::connect(("127.0.0.1", gateway.admin)).is_ok());
    is_refused(&gateway, &format!("{ROUTES}{REFUNDS}"), &["not compared yet"]);
    let _redis = RedisServer::with(port, &[]);
    until("the gateway to be ready", || gateway.is_ready());
    assert!(
        !refund("r").send(gateway.port).replayed() && !refund("r").send(gateway.port).replayed()
    );
    std::fs::write(gateway.config(), format!("{ROUTES}{REFUNDS}")).unwrap();
    // A server that has just started may not answer in time.
    until("the configuration to be applied", || gateway.ask("POST", "/v1/reload").status == 200);
    assert_eq!(refund("r").send(gateway.port).status, 201);
    assert!(refund("r").send(gateway.port).replayed());
}
