//! The process log: its content, and the secrets that it must never contain.

use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::harness::{
    Authority, Connection, Gateway, Origin, RedisServer, Request, Streams, Upstream, until,
};

const ROUTES: &str = r#"
[[routes]]
path = "/v1/payments"
[[routes]]
path = "/v1/charges"
upstream = "shared"
"#;

/// The bytes of an HTTP/2 connection with a single request: malformed, and with a secret in its
/// target.
fn malformed_http_2() -> Vec<u8> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // END_STREAM and END_HEADERS, on stream 1.
    const FLAGS_AND_STREAM: [u8; 5] = [5, 0, 0, 0, 1];
    const POST: u8 = 0x83;
    const SCHEME_HTTP: u8 = 0x86;
    const PATH: u8 = 0x04;
    let path = b"/v1/pay ments?card=canary-target";
    let fields = [&[POST, SCHEME_HTTP, PATH, path.len() as u8][..], path].concat();
    [PREFACE, &SETTINGS, &[0, 0, fields.len() as u8, 1], &FLAGS_AND_STREAM, &fields].concat()
}

#[test]
fn no_secret_reaches_the_log_whatever_is_logged() {
    let authority = Authority::new();
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let shared = Origin::start(authority.server("127.0.0.1", &["h2"]));
    let settings = format!(
        "[upstreams.shared]\nurl = \"https://127.0.0.1:{}\"\nca_file = \"{}\"",
        shared.port,
        authority.ca_file().display()
    );
    for format in ["plain", "json"] {
        let url = format!("http://127.0.0.1:{}", upstream.port);
        let mut gateway = Gateway::launch(&url, &redis.url(), &settings, ROUTES, |command| {
            command.env("ONCEWARD_LOG", "trace").args(["--log-format", format]);
        });
        until("the gateway to be ready", || gateway.is_ready());
        let ask = |path: &str, script: &str, amount: u8| {
            let key = format!("canary-key-{format}-{}", script.len());
            let request = Request::new("POST", &format!("{path}?token=canary-query"))
                .field("Idempotency-Key", &key);
            let request = request
                .field("Authorization", "Bearer canary-token")
                .field("Cookie", "session=canary-cookie");
            request
                .act(script)
                .json(&format!("{{\"card\":\"canary-body\",\"amount\":{amount}}}"))
                .send(gateway.port)
        };
        let answered = "field Set-Cookie=canary-answer, body canary-answer";
        assert_eq!(ask("/v1/payments", answered, 1).status, 201);
        assert!(ask("/v1/payments", answered, 1).replayed());
        assert_eq!(ask("/v1/payments", answered, 2).problem(), "key-reused");
        assert_eq!(ask("/v1/payments", "rubbish", 1).problem(), "outcome-uncertain");
        assert_eq!(ask("/v1/charges", "", 1).status, 201);
        let client = Streams::open(gateway.port);
        let fields =
            [("authorization", "Bearer canary-token"), ("cookie", "session=canary-cookie")];
        assert_eq!(
            client
                .send(Streams::pay(&format!("canary-{format}"), "\"canary-body\"", &fields))
                .status,
            201
        );
        let mut malformed = Connection::open(gateway.port);
        malformed.write(&malformed_http_2());
        malformed.half_close();
        until("the malformed request to be refused", || malformed.is_closed());
        let mut malformed = Connection::open(gateway.port);
        malformed.write(b"POST /canary HTTP/1.1\r\nHost: canary\r\nAuthorization : canary\r\n\r\n");
        assert_eq!(malformed.read().status, 400);
        gateway.signal("TERM");
        until("the last line", || gateway.logs().contains("stopping"));
        assert_eq!(gateway.wait().code(), Some(0));
        let logs = gateway.logs();
        assert!(logs.contains("DEBUG") && logs.contains("executed"), "it logs: {logs}");
        let leaked: Vec<_> = logs.lines().filter(|line| line.contains("canary")).collect();
        assert!(leaked.is_empty(), "{}", leaked.join("\n"));
    }
}

#[test]
fn what_is_logged_is_changed_while_the_process_runs_by_who_may() {
    let upstream = Upstream::start();
    let tokens = "[admin_auth]\ntokens = [{ name = \"on-call\", role = \"operate\", env = \"ADMIN_TOKEN\" }, { name = \"grafana\", role = \"read\", env = \"READ_TOKEN\" }]";
    let gateway = Gateway::launch(
        &format!("http://127.0.0.1:{}", upstream.port),
        "memory:",
        tokens,
        crate::harness::ROUTES,
        |command| {
            command.env("ONCEWARD_LOG", "warn");
        },
    );
    until("the gateway to be ready", || gateway.is_ready());
    let level = |token: &str, filter: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
        command.args(["log", "level"]).args(filter).env("ONCEWARD_ADMIN_TOKEN", token);
        let out =
            command.args(["--admin", &format!("127.0.0.1:{}", gateway.admin)]).output().unwrap();
        (
            out.status.code().unwrap(),
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).trim().to_owned(),
        )
    };
    assert_eq!(level("letmesee", &[]), (0, "warn".to_owned()));
    let refused = Request::pay("", "{}");
    assert_eq!(refused.send(gateway.port).problem(), "key-invalid");
    assert_eq!(level("letmesee", &["info"]).0, 1, "who may only look changes nothing");
    let (code, output) = level("letmein", &["inof"]);
    assert!(code == 1 && output.contains("found \"inof\""), "{output}");
    assert_eq!(level("letmesee", &[]), (0, "warn".to_owned()));
    assert!(!gateway.logs().contains("refused"), "{}", gateway.logs());

    let (code, output) = level("letmein", &["warn,onceward::layer=info"]);
    assert!(code == 0 && output.contains("onceward::layer=info"), "{output}");
    assert_eq!(refused.send(gateway.port).problem(), "key-invalid");
    until("the next refusal to be logged", || gateway.logs().contains("refused"));
    gateway.logged("log filter changed");
    let logs = gateway.logs();
    assert!(logs.contains("operator=\"on-call\""), "{logs}");
    assert!(!logs.contains("serving"), "{logs}");
}

/// A full pipe, and its reader, which reads nothing.
fn full_pipe() -> (PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(writer.as_fd()).unwrap();
    fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    fcntl_setfl(writer.as_fd(), flags).unwrap();
    (reader, writer)
}

#[test]
fn a_log_that_nobody_reads_holds_neither_requests_nor_health_nor_the_end() {
    let upstream = Upstream::start();
    let url = format!("http://127.0.0.1:{}", upstream.port);
    let (mut unread_errors, errors) = full_pipe();
    let (_unread_output, output) = full_pipe();
    let settings = "[access_log]\nformat = \"json\"\npath = \"-\"\n";
    let mut gateway =
        Gateway::launch(&url, "memory:", settings, crate::harness::ROUTES, |command| {
            command.stdout(output).stderr(errors);
        });
    until("the gateway to be ready", || gateway.is_ready());
    for n in 0..20 {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
    assert_eq!(gateway.ask("GET", "/healthz").status, 200);
    assert_eq!(gateway.metric("onceward_log_lines_total{result=\"exported\"}"), 0.0);
    gateway.signal("TERM");
    until("the end", || gateway.has_ended().is_some());
    assert!(gateway.wait().success());

    // A late reader gets the lines that waited for it.
    gateway.start_again();
    assert_eq!(Request::pay("last", "{}").send(gateway.port).status, 201);
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        unread_errors.read_to_string(&mut text).unwrap();
        text
    });
    until("the log to be read", || {
        gateway.metric("onceward_log_lines_total{result=\"exported\"}") > 0.0
    });
    gateway.signal("TERM");
    assert!(gateway.wait().success());
    drop(gateway);
    let text = read.join().unwrap();
    assert!(
        text.contains("serving") && text.contains("stopping"),
        "{}",
        text.trim_start_matches('.')
    );
}

#[test]
fn why_a_gateway_does_not_start_is_printed_before_it_ends() {
    let upstream = Upstream::start();
    let mut gateway =
        Gateway::spawn(upstream.port, "memory:", "nonsense = 1", crate::harness::ROUTES);
    assert_eq!(gateway.wait().code(), Some(2));
    until("the reason", || {
        gateway.logs().contains("nonsense") && gateway.logs().trim_end().ends_with("1 fault")
    });
}
