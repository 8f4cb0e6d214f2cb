//! One request, by both HTTP versions, in front of two origins. A request that one version refuses
//! is refused by the other too, and no origin receives it.

use crate::harness::frames::{DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, frame};
use crate::harness::{
    Connection, Frames, Gateway, Nginx, ROUTES, Request, Streams, Upstream, until,
};

/// One route that is read whole under a key, and one that is streamed.
const PATHS: [&str; 2] = ["/v1/payments", "/elsewhere"];

/// The indexed field `:status: 400` (RFC 7541, appendix A).
const STATUS_400: u8 = 0x80 | 12;

#[derive(Debug, Clone, Copy)]
struct Case {
    method: &'static str,
    /// In HTTP/1.1 this is the scheme of an absolute-form target; the target is then not a path.
    scheme: &'static str,
    /// `~` is replaced by the path.
    target: &'static str,
    fields: &'static [(&'static str, &'static str)],
    trailers: &'static [(&'static str, &'static str)],
}

const GOOD: Case = Case { method: "POST", scheme: "", target: "~", fields: &[], trailers: &[] };

const fn method(method: &'static str) -> Case {
    Case { method, ..GOOD }
}

const fn target(target: &'static str) -> Case {
    Case { target, ..GOOD }
}

const fn fields(fields: &'static [(&'static str, &'static str)]) -> Case {
    Case { fields, ..GOOD }
}

const fn trailers(trailers: &'static [(&'static str, &'static str)]) -> Case {
    Case { trailers, ..GOOD }
}

/// Requests that both versions accept.
const PASSED: [Case; 7] = [
    GOOD,
    Case { scheme: "http", ..GOOD },
    method("PATCH"),
    target("~?a=%20&b=[1]|{2}"),
    fields(&[("x-text", "caf\u{e9} \t~"), ("x-empty", ""), ("my_field", "1")]),
    trailers(&[("x-sum", "1")]),
    fields(&[("te", "trailers")]),
];

/// Requests that both versions refuse.
const REFUSED: &[Case] = &[
    method("post"),
    method("Post"),
    method("POSt"),
    method("PO ST"),
    method("PO(ST"),
    target("~#fragment"),
    target("~?a#b"),
    target("~\\..\\x"),
    target("~/<x>"),
    target("~ x"),
    target("~\u{e9}"),
    target("~\x01"),
    target("*"),
    target("?x"),
    target("x~"),
    target(""),
    Case { scheme: "ftp", ..GOOD },
    Case { scheme: "ws", ..GOOD },
    fields(&[("content_length", "5")]),
    fields(&[("Content_length", "0")]),
    fields(&[("transfer_encoding", "chunked")]),
    fields(&[("transfer-Encoding", "gzip")]),
    fields(&[("content-length", "+0")]),
    fields(&[("content-length", "00")]),
    fields(&[("content-length", "")]),
    fields(&[("content-length", "0"), ("content-length", "0")]),
    fields(&[("host", "b")]),
    fields(&[("x y", "1")]),
    fields(&[("x", "a\x01")]),
    fields(&[("x", "a\0")]),
    trailers(&[("content-length", "5")]),
    trailers(&[("transfer_encoding", "chunked")]),
    trailers(&[("host", "b")]),
    trailers(&[("authorization", "b")]),
    trailers(&[("idempotency-key", "b")]),
    trailers(&[("idempotency_key", "b")]),
    trailers(&[("x-forwarded-for", "6.6.6.6")]),
    trailers(&[("x", "1"), ("x y", "1")]),
];

/// Requests that HTTP/1.1 cannot express, or reads without that part.
const REFUSED_BY_HTTP2: &[Case] = &[
    fields(&[("x-tenant", " alice")]),
    fields(&[("x-tenant", "alice\t")]),
    fields(&[("idempotency-key", "k ")]),
    fields(&[("connection", "close")]),
    trailers(&[("x", " 1")]),
    trailers(&[(":path", "/late")]),
    trailers(&[("x", "1"), (":method", "GET")]),
    trailers(&[(":authority", "b")]),
    trailers(&[(":unknown", "b")]),
];

impl Case {
    fn path(&self, path: &str) -> String {
        self.target.replace('~', path)
    }

    /// Whether HTTP/1.1 refuses it; `None` where the connection ended without an answer.
    fn by_http1(&self, port: u16, path: &str, key: &str) -> Option<bool> {
        let host =
            if self.scheme.is_empty() { String::new() } else { format!("{}://a", self.scheme) };
        let lines = |fields: &[(&str, &str)]| -> String {
            fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
        };
        let framing = if self.fields.iter().any(|(name, _)| *name == "content-length") {
            String::from("\r\n")
        } else {
            format!("Transfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n", lines(self.trailers))
        };
        let mut connection = Connection::open(port);
        connection.try_write(
            format!(
                "{} {host}{} HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {key}\r\n{}{framing}",
                self.method,
                self.path(path),
                lines(self.fields)
            )
            .as_bytes(),
        );
        connection.try_read("POST").map(|answer| {
            assert!(matches!(answer.status, 201 | 400), "{self:?}: {answer:?}");
            answer.status == 400
        })
    }

    /// Whether HTTP/2 refuses it, with status 400 or by ending the stream or the connection.
    /// `named` puts the host in the target and not in a Host field.
    fn by_http2(&self, port: u16, path: &str, key: &str, named: bool) -> bool {
        let (scheme, path) =
            (if self.scheme.is_empty() { "http" } else { self.scheme }, self.path(path));
        let mut head =
            vec![(":method", self.method), (":scheme", scheme), (":path", path.as_str())];
        head.push(if named { (":authority", "a") } else { ("host", "a") });
        if !self.fields.iter().any(|(name, _)| *name == "idempotency-key") {
            head.push(("idempotency-key", key));
        }
        head.extend_from_slice(self.fields);
        let mut connection = Frames::open(port, &[]);
        if self.trailers.is_empty() {
            connection.headers(1, END_STREAM, &head);
        } else {
            connection.headers(1, 0, &head);
            connection.write(&frame(DATA, 0, 1, b"{}"));
            connection.headers(1, END_STREAM, self.trailers);
        }
        let end = connection.until(&[HEADERS, RST_STREAM, GOAWAY]);
        end.is_none_or(|frame| frame.kind != HEADERS || frame.payload[0] == STATUS_400)
    }
}

#[test]
fn what_one_version_refuses_the_other_refuses_too_and_no_origin_sees_it() {
    let (nginx, upstream) = (Nginx::start(), Upstream::start());
    for origin in [nginx.port, upstream.port] {
        let settings = "[limits]\nheader_timeout = \"2s\"\nbody_timeout = \"2s\"";
        let gateway = Gateway::with(origin, settings, ROUTES);
        let mut keys = (0..).map(|n| format!("key-{n}"));
        let mut key = || keys.next().unwrap();
        for path in PATHS {
            // nginx answers before it has read a body, so only the counting origin waits for
            // trailers that stream.
            let answers_early = |case: &&Case| {
                origin == nginx.port && path != PATHS[0] && !case.trailers.is_empty()
            };
            for case in REFUSED.iter().filter(|case| !answers_early(case)) {
                assert_ne!(
                    case.by_http1(gateway.port, path, &key()),
                    Some(false),
                    "HTTP/1.1: {path} {case:?}"
                );
                for named in [true, false] {
                    assert!(
                        case.by_http2(gateway.port, path, &key(), named),
                        "HTTP/2: {path} {case:?}, host named: {named}"
                    );
                }
            }
            for case in REFUSED_BY_HTTP2.iter().filter(|case| !answers_early(case)) {
                assert!(case.by_http2(gateway.port, path, &key(), true), "HTTP/2: {path} {case:?}");
            }
        }
        let mut passed = 0;
        for (path, case) in
            PATHS.iter().flat_map(|path| PASSED.iter().map(move |case| (path, case)))
        {
            assert_eq!(
                case.by_http1(gateway.port, path, &key()),
                Some(false),
                "HTTP/1.1: {path} {case:?}"
            );
            assert!(!case.by_http2(gateway.port, path, &key(), true), "HTTP/2: {path} {case:?}");
            passed += 2;
        }
        if origin == upstream.port {
            assert_eq!(upstream.executed(), passed, "{:?}", upstream.seen());
        } else {
            // A request before the last good ones would be logged before them.
            let seen = || {
                nginx
                    .seen()
                    .into_iter()
                    .filter(|(_, line)| !line.starts_with("GET /ready"))
                    .collect::<Vec<_>>()
            };
            until("the good requests to be logged", || seen().len() >= passed);
            let whole = |line: &&(String, String)| line.1.ends_with(" HTTP/1.1");
            assert_eq!(seen().iter().filter(whole).count(), passed, "{:?}", seen());
        }
    }
}

#[test]
fn a_method_in_small_letters_is_not_another_operation_of_a_key_that_was_used() {
    let upstream = Upstream::start();
    let routes = "[[routes]]\npath = \"/v1/payments\"\nkey = { header = \"Idempotency-Key\", required = true }";
    let gateway = Gateway::with(upstream.port, "", routes);
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    let client = Streams::open(gateway.port);
    for key in ["k", "other"] {
        let mut request = Streams::pay(key, "{}", &[]);
        *request.method_mut() = http::Method::from_bytes(b"post").unwrap();
        let answer = client.send(request);
        assert_eq!((answer.status, answer.problem().as_str()), (400, "request-malformed"));
    }
    let good = client.send(Streams::pay("k", "{}", &[]));
    assert!(good.replayed(), "the connection goes on: {good:?}");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_faulty_stream_leaves_the_others_of_its_connection_alone() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Frames::open(gateway.port, &[]);
    let head = |path: &'static str| {
        crate::harness::frames::request("POST", path, &[("idempotency-key", "k")])
    };
    connection.headers(1, END_STREAM, &head("/v1/payments#x"));
    assert_eq!(connection.until(&[HEADERS]).unwrap().payload[0], STATUS_400);
    // The next block is read with the same header table, and its stream uses the same connection.
    connection.headers(3, 0, &head("/v1/payments"));
    connection.headers(3, END_STREAM, &[(":path", "/late")]);
    assert_eq!(connection.until(&[HEADERS]).unwrap().payload[0], STATUS_400);
    assert_eq!(upstream.executed(), 0);
    connection.headers(5, END_STREAM, &head("/v1/payments"));
    assert_ne!(connection.until(&[HEADERS]).unwrap().payload[0], STATUS_400);
    assert_eq!(upstream.executed(), 1);
}
