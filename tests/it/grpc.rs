//! gRPC calls with a key: the first answer and every replay have the status in their trailers.

use bytes::Bytes;
use http::{HeaderMap, Request as HttpRequest};

use crate::harness::{Authority, Connection, Gateway, Origin, Request, Upstream, until};

const HERE: &str = "127.0.0.1";
const PATH: &str = "/pay.Payments/Create";
const ROUTE: &str = "[[routes]]\nname = \"payments\"\npath = \"/pay.Payments/Create\"\n";
const FORMAT_2: &str = "format = 2\n";

/// A server behind TLS, and a gateway with its own store in front of it.
struct Setup {
    origin: Origin,
    authority: Authority,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Setup {
        let authority = Authority::new();
        Setup {
            origin: Origin::start(authority.server(HERE, &["h2"])),
            authority,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn gateway(&self, store: &str, more: &str, route: &str) -> Gateway {
        let url = format!("file:{}", self.dir.path().join("data").display());
        let settings = format!(
            "[upstream]\nca_file = \"{}\"\n[store]\n{store}{more}",
            self.authority.ca_file().display()
        );
        let upstream = format!("https://{HERE}:{}", self.origin.port);
        let gateway = Gateway::launch(&upstream, &url, &settings, route, |command| {
            command.env("SEALING_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
        });
        until("the gateway to be ready", || gateway.is_ready());
        gateway
    }
}

/// An answer as a gRPC client sees it.
#[derive(Debug, PartialEq)]
struct Called {
    status: u16,
    /// Without the fields that each answer gets anew.
    headers: HeaderMap,
    replayed: bool,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// The answer had only a head.
    ended_with_head: bool,
}

impl Called {
    fn grpc_status(&self) -> Option<&str> {
        let fields = self.trailers.as_ref().unwrap_or(&self.headers);
        fields.get("grpc-status").map(|status| status.to_str().unwrap())
    }

    #[track_caller]
    fn is_problem(&self, status: u16, kind: &str) {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        let found = problem["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        assert_eq!((self.status, found.as_str()), (status, kind), "{self:?}");
    }

    /// Returns the part that a replay shares with the first answer.
    fn lasting(self) -> Called {
        Called { replayed: false, ..self }
    }
}

/// Calls like a gRPC library: over HTTP/2, with `TE: trailers`.
fn call(gateway: &Gateway, key: &str, act: &str) -> Called {
    let port = gateway.port;
    let request = HttpRequest::post(format!("http://{HERE}:{port}{PATH}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .header("idempotency-key", key)
        .header("x-act", act)
        .body(())
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect((HERE, port)).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let (response, mut body) =
            sender.ready().await.unwrap().send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 7]), true).unwrap();
        let (mut head, mut body) = response.await.unwrap().into_parts();
        let ended_with_head = body.is_end_stream();
        let mut bytes = vec![];
        while let Some(data) = body.data().await {
            bytes.extend_from_slice(&data.unwrap());
        }
        let trailers = body.trailers().await.unwrap();
        let replayed = head.headers.remove("idempotent-replayed").is_some();
        Called {
            status: head.status.as_u16(),
            headers: head.headers,
            replayed,
            body: bytes,
            trailers,
            ended_with_head,
        }
    })
}

fn stop(mut gateway: Gateway) {
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

#[test]
fn a_call_is_replayed_with_its_trailers_and_runs_once() {
    const SEALED: &str = "[encryption]\nkeys = [{ id = \"one\", env = \"SEALING_KEY\" }]\n";
    for sealing in ["", SEALED] {
        let setup = Setup::new();
        let gateway = setup.gateway(FORMAT_2, sealing, ROUTE);
        let mut firsts = vec![];
        for (key, act, status) in
            [("paid", "grpc 0", "0"), ("refused", "grpc 9", "9"), ("bare", "grpc-head 5", "5")]
        {
            let first = call(&gateway, key, act);
            assert_eq!(
                (first.status, first.replayed, first.grpc_status()),
                (200, false, Some(status)),
                "{first:?}"
            );
            assert_eq!(first.trailers.is_none(), key == "bare", "{first:?}");
            assert_eq!(first.ended_with_head, key == "bare", "{first:?}");
            let second = call(&gateway, key, act);
            assert!(second.replayed, "{second:?}");
            assert_eq!(second.lasting(), first);
            firsts.push((key, act, first));
        }
        assert_eq!(setup.origin.seen()[0].get("te"), Some("trailers"), "servers insist on it");
        stop(gateway);
        // The configured format affects writes only; each format is read.
        let gateway = setup.gateway("", sealing, ROUTE);
        for (key, act, first) in firsts {
            assert_eq!(call(&gateway, key, act).lasting(), first);
        }
        assert_eq!(setup.origin.executed(), 3);
    }
}

#[test]
fn under_the_first_format_a_call_with_trailers_is_answered_once_and_never_runs_again() {
    let setup = Setup::new();
    let gateway = setup.gateway("", "", ROUTE);
    let first = call(&gateway, "k", "grpc 0");
    assert_eq!(
        (first.status, first.grpc_status(), first.body.len()),
        (200, Some("0"), 7),
        "{first:?}"
    );
    call(&gateway, "k", "grpc 0").is_problem(409, "response-not-stored");
    // Without trailers the first format can store the answer.
    let bare = call(&gateway, "bare", "grpc-head 5");
    assert_eq!(call(&gateway, "bare", "grpc-head 5").lasting(), bare);
    call(&gateway, "away", "grpc 14").is_problem(502, "outcome-uncertain");
    assert_eq!(setup.origin.executed(), 3);

    let config = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), config.replace("[store]\n", "[store]\nformat = 2\n")).unwrap();
    gateway.signal("HUP");
    until("the configuration to be taken", || {
        gateway.metric("onceward_config_reloads_total{result=\"applied\"}") == 1.0
    });
    let first = call(&gateway, "later", "grpc 0");
    assert_eq!(call(&gateway, "later", "grpc 0").lasting(), first);
    call(&gateway, "k", "grpc 0").is_problem(409, "response-not-stored");
}

#[test]
fn a_status_that_a_hop_could_have_made_leaves_the_outcome_open() {
    let setup = Setup::new();
    let gateway = setup.gateway(FORMAT_2, "", ROUTE);
    for act in ["grpc 2", "grpc 4", "grpc 14", "grpc-head 14", "grpc-cut"] {
        let key = act.replace(' ', "-");
        call(&gateway, &key, act).is_problem(502, "outcome-uncertain");
        call(&gateway, &key, act).is_problem(409, "outcome-uncertain");
    }
    assert_eq!(setup.origin.executed(), 5);
    let listed = gateway.ask("GET", "/v1/operations?state=uncertain").text();
    assert!(listed.contains("the gRPC status 14, which does not say whether it acted"), "{listed}");
}

#[test]
fn a_trailer_that_is_dropped_goes_to_the_first_client_alone() {
    let setup = Setup::new();
    let gateway = setup.gateway(FORMAT_2, "", &format!("{ROUTE}drop_headers = [\"X-Once\"]\n"));
    let has = |called: &Called| called.trailers.as_ref().unwrap().contains_key("x-once");
    let (first, second) = (call(&gateway, "k", "grpc 0"), call(&gateway, "k", "grpc 0"));
    assert!(has(&first) && !has(&second) && second.replayed, "{first:?} {second:?}");
    assert_eq!(second.grpc_status(), Some("0"));
}

/// Returns the bytes of an answer over HTTP/1.1, on a connection that then ends.
fn raw(gateway: &Gateway, key: &str, act: &str, te: Option<&str>) -> String {
    use std::io::{Read, Write};
    let mut request = Request::new("POST", PATH).field("Idempotency-Key", key).act(act);
    if let Some(te) = te {
        request = request.field("TE", te);
    }
    let mut stream = std::net::TcpStream::connect((HERE, gateway.port)).unwrap();
    stream.write_all(&request.field("Connection", "close").json("{}").bytes()).unwrap();
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).to_lowercase()
}

#[test]
fn an_http_1_1_client_gets_trailers_where_it_takes_them() {
    let setup = Setup::new();
    let gateway = setup.gateway(FORMAT_2, "", ROUTE);
    let behind = |answer: &str| {
        answer.split_once("\r\n0\r\n").map(|(_, trailers)| trailers.to_owned()).unwrap()
    };
    for te in [Some("trailers"), Some("gzip, Trailers"), None, Some("gzip")] {
        let answer = raw(&gateway, "k", "grpc 0", te);
        let takes = te.is_some_and(|te| te.to_lowercase().contains("trailers"));
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert_eq!(answer.contains("\r\ntrailer: grpc-status"), takes, "{te:?} {answer}");
        assert_eq!(behind(&answer).contains("grpc-status: 0\r\n"), takes, "{te:?} {answer}");
    }
    assert_eq!(setup.origin.executed(), 1);
}

#[test]
fn an_upstream_with_http_1_1_gets_what_the_client_takes_and_its_trailers_are_bounded() {
    let upstream = Upstream::start();
    let gateway = Gateway::on(upstream.port, "memory:", &format!("[store]\n{FORMAT_2}"), ROUTE);
    let trailers = |fields: &str| format!("type application/grpc, chunked 2|ok|0|{fields}||");
    let first = call(
        &gateway,
        "k",
        &trailers("grpc-status: 0|Content-Length: 9|Idempotent-Replayed: true"),
    );
    let names: Vec<&str> =
        first.trailers.as_ref().unwrap().keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["grpc-status"], "neither what frames a message nor a foreign mark");
    assert_eq!(call(&gateway, "k", "").lasting(), first);
    let seen = &upstream.seen()[0];
    assert_eq!((seen.get("te"), seen.get("connection")), (Some("trailers"), Some("te")));

    // Trailers of other answers are not needed, and not kept.
    let other = call(&gateway, "other", "type application/json, chunked 2|{}|0|x-sum: 1||");
    assert_eq!((other.status, &other.trailers), (201, &None), "{other:?}");

    let long = format!("grpc-status: 0|x-long: {}", "a".repeat(17 << 10));
    call(&gateway, "long", &trailers(&long)).is_problem(502, "outcome-uncertain");
    let many: String = (0..129).map(|n| format!("|x-{n}: 1")).collect();
    call(&gateway, "many", &trailers(&format!("grpc-status: 0{many}")))
        .is_problem(502, "outcome-uncertain");
    assert_eq!(upstream.executed(), 4);
    let mut plain = Connection::open(gateway.port);
    plain.exchange(&Request::new("POST", PATH).field("Idempotency-Key", "plain").json("{}"));
    assert_eq!(upstream.seen()[4].get("te"), None, "nobody asked for trailers");
}
