//! A request gets the same verdict in both versions of HTTP.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::proxy::inbound::guarded_bytes::{GuardVerdict, GuardedBytes};
use crate::proxy::inbound::inspect;

const LIMIT: usize = 4096;

/// The parts of a request. Both versions of HTTP can express them.
#[derive(Debug, Clone)]
struct RequestParts {
    method: String,
    path: String,
    host: String,
    fields: Vec<(String, String)>,
}

impl RequestParts {
    fn as_http1(&self) -> Vec<u8> {
        let fields: String =
            self.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{} {} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", self.method, self.path, self.host)
            .into_bytes()
    }

    fn as_http2(&self) -> Vec<u8> {
        let pseudo = [(":method", &self.method), (":authority", &self.host), (":path", &self.path)];
        let pseudo = pseudo.map(|(name, value)| (name.to_owned(), value.clone()));
        let scheme = (":scheme".to_owned(), "http".to_owned());
        let mut block = Vec::new();
        for (name, value) in pseudo.iter().chain([&scheme]).chain(&self.fields) {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        bytes.extend_from_slice(&u32::try_from(block.len()).unwrap().to_be_bytes()[1..]);
        bytes.extend_from_slice(&[1, 1 | 4, 0, 0, 0, 1]);
        [bytes, block].concat()
    }
}

/// Returns whether a server with guard and inspection accepts these bytes. Its service accepts
/// every request.
async fn accepts(bytes: &[u8], verdict_of: fn(&[u8]) -> Option<bool>) -> bool {
    let (mut client, server) = duplex(1 << 16);
    let verdict = Arc::new(GuardVerdict::default());
    let guarded = GuardedBytes::new(server, verdict.clone(), LIMIT);
    let service = service_fn(move |request: Request<Incoming>| {
        let refused = inspect::check(&request, &verdict, LIMIT).is_err();
        let mut response = Response::new(Empty::<Bytes>::new());
        if refused {
            *response.status_mut() = StatusCode::BAD_REQUEST;
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    tokio::spawn(builder.serve_connection(TokioIo::new(guarded), service).into_owned());
    client.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    loop {
        if let Some(accepted) = verdict_of(&answer) {
            return accepted;
        }
        if client.read_buf(&mut answer).await.unwrap() == 0 {
            return false;
        }
    }
}

fn http1_verdict(answer: &[u8]) -> Option<bool> {
    let whole = answer.windows(4).any(|window| window == b"\r\n\r\n");
    whole.then(|| answer.starts_with(b"HTTP/1.1 200"))
}

/// A request is accepted if it gets a 200 and the server ends neither its stream nor its
/// connection.
fn http2_verdict(mut frames: &[u8]) -> Option<bool> {
    while let Some(([a, b, c, kind, ..], rest)) = frames.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let payload = rest.get(..length)?;
        match kind {
            1 => return Some(payload.first() == Some(&0x88)),
            3 | 7 => return Some(false),
            _ => frames = &rest[length..],
        }
    }
    None
}

fn verdicts(parts: &RequestParts) -> (bool, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        (
            accepts(&parts.as_http1(), http1_verdict).await,
            accepts(&parts.as_http2(), http2_verdict).await,
        )
    })
}

fn parts() -> impl Strategy<Value = RequestParts> {
    let method = prop_oneof![
        6 => Just("POST".to_owned()),
        3 => Just("OPTIONS".to_owned()),
        1 => Just("TRACE".to_owned()),
        2 => "[A-Zp-s!_]{0,4}",
    ];
    let path = prop_oneof![
        6 => Just("/v1/payments".to_owned()),
        2 => "/[a-c%?*{}|^\"'\\[\\]@~]{0,6}",
        4 => "[/a?#*.\\\\<>`\u{1}\u{e9} ]{0,4}",
    ];
    let host = prop_oneof![8 => Just("a".to_owned()), 2 => "[a:@\\[\\]8.]{0,4}"];
    let name = prop_oneof![
        Just("content-length".to_owned()),
        Just("content_length".to_owned()),
        Just("transfer_encoding".to_owned()),
        Just("x_forwarded_for".to_owned()),
        Just("host".to_owned()),
        "[a-c_!^ (]{0,3}",
    ];
    let value =
        prop_oneof![Just("0".to_owned()), Just("a".to_owned()), "[a0+\t \u{1}\u{7f}\u{e9},]{0,4}"];
    let fields = proptest::collection::vec(
        (name, value.prop_map(|value| value.trim_matches([' ', '\t']).to_owned())),
        0..3,
    );
    (method, path, host, fields).prop_map(|(method, path, host, fields)| RequestParts {
        method,
        path,
        host,
        fields,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn both_versions_give_the_same_verdict(parts in parts()) {
        // A second Host field with the same host is a fault only in HTTP/1.1. In HTTP/2 the host is
        // in the target, so the Host field is the first one.
        prop_assume!(
            !parts.fields.iter().any(|(name, value)| name == "host" && *value == parts.host)
        );
        let (http1, http2) = verdicts(&parts);
        prop_assert_eq!(http1, http2);
    }
}

#[test]
fn the_property_sees_requests_of_both_kinds() {
    let of = |method: &str, path: &str| RequestParts {
        method: method.into(),
        path: path.into(),
        host: "a".into(),
        fields: vec![("x".into(), "1".into())],
    };
    for (parts, expected) in
        [(of("POST", "/v1"), true), (of("post", "/v1"), false), (of("POST", "/v1#x"), false)]
    {
        assert_eq!(verdicts(&parts), (expected, expected), "{parts:?}");
    }
}
