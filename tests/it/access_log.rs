//! The access log: one line for each request, with its outcome and without a client's secrets.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Connection, Gateway, ROUTES, Request, Streams, Upstream, until};

fn settings(format: &str, path: &Path) -> String {
    format!("[access_log]\nformat = {format:?}\npath = {:?}\n", path.display().to_string())
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits for this many lines, and returns them.
#[track_caller]
fn lines(path: &Path, count: usize) -> Vec<String> {
    until(&format!("{count} lines"), || {
        text(path).lines().count() >= count && text(path).ends_with('\n')
    });
    let lines: Vec<String> = text(path).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), count, "{}", lines.join("\n"));
    lines
}

/// Starts a gateway that writes JSON lines, and lets duplicates of one account wait.
fn logging_json(upstream: &Upstream, file: &Path) -> Gateway {
    let routes = format!("{ROUTES}scope = {{ header = \"X-Account\" }}\non_in_flight = \"wait\"\n");
    Gateway::with(upstream.port, &settings("json", file), &routes)
}

#[test]
fn each_request_has_a_line_with_its_outcome_and_no_secret() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let file = dir.path().join("access.log");
    let gateway = logging_json(&upstream, &file);
    let pay = |key: &str, amount: u8| {
        Request::new("POST", "/v1/payments?token=canary-query")
            .field("Idempotency-Key", key)
            .field("Authorization", "Bearer canary-token")
            .field("User-Agent", "canary-agent")
            .field("X-Account", "canary-account")
            .json(&format!("{{\"card\":\"canary-body\",\"amount\":{amount}}}"))
    };
    assert_eq!(pay("canary-key", 1).act("body 12345").send(gateway.port).status, 201);
    assert!(pay("canary-key", 1).send(gateway.port).replayed());
    assert_eq!(pay("canary-key", 2).send(gateway.port).problem(), "key-reused");
    assert_eq!(Request::new("GET", "/v1/other/a%0Ab").send(gateway.port).status, 201);
    let mut malformed = Connection::open(gateway.port);
    // A malformed request after a valid one, in the same packet.
    malformed.write(b"GET /sound HTTP/1.1\r\nHost: a\r\n\r\nPOST /canary HTTP/1.1\r\nHost: a\r\nAuthorization : canary\r\n\r\n");
    assert_eq!((malformed.read().status, malformed.read().status), (201, 400));
    let lines = lines(&file, 6);
    assert!(lines.iter().all(|line| !line.contains("canary")), "{}", lines.join("\n"));
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: &Value, name: &str| line[name].as_str().unwrap_or("none").to_owned();
    let found: Vec<_> = lines
        .iter()
        .map(|line| {
            (of(line, "method"), of(line, "path"), line["status"].as_u64(), of(line, "outcome"))
        })
        .collect();
    let expected = [
        ("POST", "/v1/payments", 201, "executed"),
        ("POST", "/v1/payments", 201, "replayed"),
        ("POST", "/v1/payments", 422, "key_reused"),
        ("GET", "/v1/other/a%0Ab", 201, "passed"),
        ("GET", "/sound", 201, "passed"),
        ("-", "-", 400, "refused"),
    ];
    let expected = expected.map(|(method, path, status, outcome)| {
        (method.into(), path.into(), Some(status), outcome.into())
    });
    assert_eq!(found, expected);
    let first = &lines[0];
    assert_eq!(
        (first["bytes"].as_u64(), of(first, "client"), of(first, "route")),
        (Some(5), "127.0.0.1".into(), "payments".into())
    );
    assert!(first["upstream_ms"].as_f64().unwrap() <= first["duration_ms"].as_f64().unwrap());
    assert!(lines[1].get("upstream_ms").is_none(), "a replay asks nobody: {}", lines[1]);
    for line in &lines[..3] {
        assert_eq!(
            (of(line, "operation"), of(line, "scope")),
            (of(first, "operation"), of(first, "scope"))
        );
        assert!(
            of(line, "operation").starts_with("op_")
                && of(line, "scope").len() == 16
                && of(line, "trace").len() == 32,
            "{line}"
        );
    }
    assert_eq!(gateway.metric("onceward_access_log_lines_total{result=\"exported\"}"), 6.0);
}

#[test]
fn a_client_that_leaves_and_a_duplicate_that_waits_have_lines_that_show_it() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let file = dir.path().join("access.log");
    let gateway = logging_json(&upstream, &file);
    let client = Streams::open(gateway.port);
    let leaves =
        client.begin(Streams::pay("other", "{}", &[("x-account", "a"), ("x-act", "hold")]));
    upstream.reached(1);
    let waits = Request::pay("other", "{}").field("X-Account", "a").send_aside(gateway.port);
    until("the duplicate to wait", || gateway.metric("onceward_waiters") == 1.0);
    leaves.reset();
    until("a line of who left", || text(&file).contains("\"client_left\""));
    upstream.release();
    assert!(waits.join().unwrap().replayed());
    until("a line of who waited", || text(&file).contains("waited_ms"));
}

#[test]
fn nothing_that_a_client_sends_makes_a_line_of_its_own_or_a_field_of_another() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let file = dir.path().join("access.log");
    let settings = format!("trusted_proxies = [\"127.0.0.1\"]\n{}", settings("combined", &file));
    let gateway = Gateway::with(
        upstream.port,
        &settings,
        "[[routes]]\nname = \"all \\\"of\\\" it\"\npath = \"/{*rest}\"\n",
    );
    let forged = "203.0.113.7 - - [25/Nov/2026:00:00:00 +0000] \\\"GET /forged HTTP/1.1\\\" 200 1";
    let requests = [
        ("/v1/a%0D%0A203.0.113.7%20forged", "198.51.100.4"),
        ("/v1/b", "10.0.0.1, 198.51.100.5"),
        ("/v1/c", forged),
        ("/v1/a\"%20200%20-", forged),
        ("/v1/\\x22", forged),
    ];
    for (n, (target, client)) in requests.into_iter().enumerate() {
        let request = Request::new("POST", target)
            .field("X-Forwarded-For", client)
            .field("Idempotency-Key", &format!("k{n}"))
            .body("x");
        let status = request.send(gateway.port).status;
        assert!(status == 201 || status == 400, "{status}");
    }
    let lines = lines(&file, 5);
    let clients: Vec<&str> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(
        clients,
        ["198.51.100.4", "198.51.100.5", "127.0.0.1", "127.0.0.1", "127.0.0.1"],
        "what is no address is not believed"
    );
    for line in &lines {
        assert!(
            !line.contains("GET /forged") && line.is_ascii() && !line.contains(char::is_control),
            "{line}"
        );
        // Six quotes: two of the request, and two of each field that is left out.
        assert_eq!(line.matches('"').count(), 6, "{line}");
        assert_eq!(line.split(' ').count(), 19, "{line}");
    }
    assert!(
        lines[0].contains("\"POST /v1/a%0D%0A203.0.113.7%20forged HTTP/1.1\" 201 "),
        "{}",
        lines[0]
    );
    assert!(lines[0].contains(" all\\x20\\x22of\\x22\\x20it executed op_"), "{}", lines[0]);
}

#[test]
fn a_file_that_was_moved_away_is_opened_anew_by_a_reload_whether_or_not_it_is_taken() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let (file, first, second) =
        (dir.path().join("log"), dir.path().join("log.1"), dir.path().join("log.2"));
    let gateway = Gateway::with(upstream.port, &settings("json", &file), ROUTES);
    let mut connection = Connection::open(gateway.port);
    let mut pay = |key: &str| assert_eq!(connection.exchange(&Request::pay(key, "{}")).status, 201);
    pay("a");
    lines(&file, 1);
    std::fs::rename(&file, &first).unwrap();
    assert_eq!(gateway.ask("POST", "/v1/reload").status, 200);
    pay("b");
    lines(&file, 1);
    std::fs::rename(&file, &second).unwrap();
    std::fs::write(gateway.config(), "this is no configuration").unwrap();
    assert_eq!(gateway.ask("POST", "/v1/reload").status, 409);
    pay("c");
    for file in [&first, &second, &file] {
        lines(file, 1);
    }
    // A configuration is refused if its access log can't be opened.
    std::fs::write(
        gateway.config(),
        format!("{}{ROUTES}", settings("json", Path::new("/nowhere/log"))),
    )
    .unwrap();
    let refused = gateway.ask("POST", "/v1/reload");
    assert!(
        refused.status == 409 && refused.text().contains("can't open the access log /nowhere/log"),
        "{refused:?}"
    );
    pay("d");
    lines(&file, 2);
}

#[test]
fn a_disk_that_is_full_costs_lines_and_no_request() {
    let upstream = Upstream::start();
    let mut gateway =
        Gateway::with(upstream.port, &settings("json", Path::new("/dev/full")), ROUTES);
    for key in ["a", "b", "c"] {
        assert_eq!(Request::pay(key, "{}").send(gateway.port).status, 201);
    }
    until("the lines to be counted", || {
        gateway.metric("onceward_access_log_lines_total{result=\"dropped\"}") == 3.0
    });
    until("the reason", || gateway.logs().contains("the access log can't be written"));
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

#[test]
fn a_named_pipe_is_written_to_while_it_is_read_and_holds_neither_start_nor_reload_without_a_reader()
{
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let (pipe, other) = (dir.path().join("pipe"), dir.path().join("other"));
    assert!(Command::new("mkfifo").args([&pipe, &other]).status().unwrap().success());
    let store = format!("file:{}", dir.path().join("data").display());
    let mut without = Gateway::spawn(upstream.port, &store, &settings("json", &pipe), ROUTES);
    until("it to give up", || without.has_ended().is_some());
    assert_eq!(without.wait().code(), Some(1));
    let reason = "it is a named pipe without a reader: start its reader first";
    until("the reason", || {
        without.logs().contains(&format!("can't open the access log {}: {reason}", pipe.display()))
    });

    let read = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).unwrap()
    });
    // The reader waits for a writer, which the gateway becomes at its start.
    let mut gateway = Gateway::spawn(upstream.port, &store, &settings("json", &pipe), ROUTES);
    until("the gateway to find its reader", || {
        if gateway.has_ended().is_some() {
            gateway = Gateway::spawn(upstream.port, &store, &settings("json", &pipe), ROUTES);
        }
        gateway.is_ready()
    });
    assert_eq!(Request::pay("a", "{}").send(gateway.port).status, 201);
    std::fs::write(gateway.config(), format!("{}{ROUTES}", settings("json", &other))).unwrap();
    let refused = gateway.ask("POST", "/v1/reload");
    assert!(refused.status == 409 && refused.text().contains(reason), "{refused:?}");
    assert_eq!(Request::pay("b", "{}").send(gateway.port).status, 201);
    gateway.signal("TERM");
    assert!(gateway.wait().success());
    assert_eq!(read.join().unwrap().lines().count(), 2);
}

#[test]
fn what_was_answered_last_is_written_before_the_process_ends() {
    let (upstream, dir) = (Upstream::start(), tempfile::tempdir().unwrap());
    let file = dir.path().join("access.log");
    let mut gateway = Gateway::with(upstream.port, &settings("combined", &file), ROUTES);
    let last = Request::pay("k", "{}").act("hold").send_aside(gateway.port);
    upstream.reached(1);
    gateway.signal("TERM");
    upstream.release();
    assert_eq!(last.join().unwrap().status, 201);
    assert!(gateway.wait().success());
    assert_eq!(text(&file).lines().count(), 1);
}
