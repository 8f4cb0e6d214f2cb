//! Answers that come before the request is completely written, from upstreams that then close or
//! reset. Complete answers count.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::frame_origin::INITIAL_WINDOW_SIZE;
use crate::harness::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, block, frame,
};
use crate::harness::{Answer, Authority, FrameOrigin, Gateway, Request, until};

const HERE: &str = "127.0.0.1";

const LIMITS: &str = "[limits]\nrequest_body = \"32MiB\"\n";

/// Starts an upstream that reads only a request's head, answers by its `X-Act` field (`|` for the
/// end of a line) and closes. The unread rest of the request makes its system reset the connection.
fn early(identity: Option<Arc<ServerConfig>>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(AtomicUsize::new(0));
    let count = heads.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // Otherwise the answer may be delayed here until the connection is reset.
            stream.set_nodelay(true).unwrap();
            let (count, identity) = (count.clone(), identity.clone());
            std::thread::spawn(move || match identity {
                None => answer_head(stream, &count),
                Some(identity) => {
                    let mut stream =
                        StreamOwned::new(ServerConnection::new(identity).unwrap(), stream);
                    answer_head(&mut stream, &count);
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            });
        }
    });
    (port, heads)
}

fn answer_head(mut stream: impl Read + Write, heads: &AtomicUsize) {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return;
        }
        head.push(byte[0]);
    }
    heads.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8(head).unwrap();
    let act =
        head.lines().find_map(|line| line.strip_prefix("x-act: ")).unwrap().replace('|', "\r\n");
    stream.write_all(act.as_bytes()).and_then(|()| stream.flush()).unwrap();
}

/// A payment that is larger than any socket's buffers.
fn large(key: &str, act: &str) -> Request {
    Request::new("POST", "/v1/payments")
        .field("Idempotency-Key", key)
        .body("x".repeat(4 << 20))
        .act(act)
}

#[track_caller]
fn is_stored(gateway: &Gateway, pay: &Request, text: &str) {
    let (first, second) = (pay.send(gateway.port), pay.send(gateway.port));
    assert_eq!(
        (first.status, first.text().as_str(), first.replayed()),
        (413, text, false),
        "{first:?}"
    );
    assert!(second.replayed() && second.status == 413 && second.text() == text, "{second:?}");
}

#[track_caller]
fn is_in_doubt(gateway: &Gateway, pay: &Request, first: &Answer) {
    assert_eq!((first.status, first.problem().as_str()), (502, "outcome-uncertain"), "{first:?}");
    assert_eq!(pay.send(gateway.port).status, 409);
}

#[test]
fn an_answer_that_came_before_the_connection_was_reset_counts_if_it_is_whole() {
    let authority = Authority::new();
    let plain = early(None);
    let tls = early(Some(authority.server(HERE, &["http/1.1"])));
    let ca_file = format!("[upstream]\nca_file = \"{}\"\n", authority.ca_file().display());
    let by_tls = Gateway::to(&format!("https://{HERE}:{}", tls.0), &format!("{ca_file}{LIMITS}"));
    let gateways =
        [(Gateway::to(&format!("http://{HERE}:{}", plain.0), LIMITS), &plain.1), (by_tls, &tls.1)];
    for (gateway, heads) in &gateways {
        // The answer or the failed write may come first; the order is random.
        for round in 0..2 {
            let pay = |name: &str, act: &str| {
                large(&format!("{name}{round}"), &format!("HTTP/1.1 413 X|{act}"))
            };
            is_stored(gateway, &pay("counted", "Content-Length: 5||large"), "large");
            is_stored(gateway, &pay("chunked", "Transfer-Encoding: chunked||5|large|0||"), "large");
            is_stored(gateway, &pay("empty", "Content-Length: 0||"), "");
            for (name, act) in [
                ("cut", "Content-Length: 9||large"),
                ("unended", "Transfer-Encoding: chunked||5|large|"),
                ("half-a-head", "Content-Le"),
            ] {
                let pay = pay(name, act);
                is_in_doubt(gateway, &pay, &pay.send(gateway.port));
            }
        }
        assert_eq!(heads.load(Ordering::SeqCst), 12, "each is sent once");
    }
    // Nothing proves that an answer is complete if it ends with a broken connection.
    let endless = large("endless", "HTTP/1.1 413 X|Content-Type: text/plain||large");
    is_in_doubt(&gateways[0].0, &endless, &endless.send(gateways[0].0.port));
}

#[test]
fn an_http_2_answer_that_came_before_a_reset_or_the_end_of_the_connection_counts_if_it_is_whole() {
    const STATUS_413: (&str, &str) = (":status", "413");
    let head = |flags| frame(HEADERS, END_HEADERS | flags, 1, &block(&[STATUS_413]));
    let data = |flags| frame(DATA, flags, 1, b"large");
    let reset = |reason: u8| frame(RST_STREAM, 0, 1, &[0, 0, 0, reason]);
    let goaway = |last: u8| frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]);
    let whole = [head(0), data(END_STREAM)].concat();
    let counted = frame(HEADERS, END_HEADERS, 1, &block(&[STATUS_413, ("content-length", "9")]));
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-a", "b")]));
    // The upstream's frames, whether the connection ends after them, and the answer that counts.
    for (name, frames, ends, counts) in [
        ("no error", [whole.clone(), reset(0)].concat(), false, Some("large")),
        ("cancel", [whole.clone(), reset(8)].concat(), false, Some("large")),
        ("end", whole.clone(), true, Some("large")),
        ("end without a body", head(END_STREAM), true, Some("")),
        ("end behind trailers", [head(0), data(0), trailers].concat(), true, Some("large")),
        ("goaway", [whole.clone(), goaway(1)].concat(), true, Some("large")),
        ("goaway below it", [whole, goaway(0)].concat(), true, Some("large")),
        (
            "shorter than announced",
            [counted, data(0), frame(DATA, END_STREAM, 1, &[])].concat(),
            true,
            None,
        ),
        ("cut by a reset", [head(0), data(0), reset(0)].concat(), false, None),
        ("cut by the end", [head(0), data(0)].concat(), true, None),
        ("cut by a goaway", [head(0), data(0), goaway(1)].concat(), true, None),
    ] {
        let authority = Authority::new();
        let origin =
            FrameOrigin::start(authority.server(HERE, &["h2"]), &[(INITIAL_WINDOW_SIZE, 5)]);
        let ca_file = format!("[upstream]\nca_file = \"{}\"\n", authority.ca_file().display());
        let gateway = Gateway::to(&format!("https://{HERE}:{}", origin.port), &ca_file);
        let pay = Request::pay("k", &format!("\"{}\"", "x".repeat(100)));
        let first = pay.send_aside(gateway.port);
        until("a part of the body", || {
            origin.arrivals().iter().any(|arrival| arrival.body.len() == 5)
        });
        origin.write_to_all(&frames);
        if ends {
            origin.end_connections();
        }
        let first = first.join().unwrap();
        match counts {
            Some(text) => {
                assert_eq!((first.status, first.text().as_str()), (413, text), "{name}: {first:?}");
                let second = pay.send(gateway.port);
                assert!(second.replayed() && second.text() == text, "{name}: {second:?}");
            }
            None => is_in_doubt(&gateway, &pay, &first),
        }
        assert_eq!((origin.arrivals().len(), origin.executed()), (1, 0), "{name}");
    }
}
