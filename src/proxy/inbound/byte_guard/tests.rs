//! Bytes that are refused and bytes that pass. The verdict does not depend on the pieces in which
//! the bytes arrive. Hyper reads the passed bytes in the same way.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::gate::Malformation;
use crate::proxy::inbound::byte_guard::chunked::{ChunkStep, EXTENSION_BYTES_MAX};
use crate::proxy::rules::{FIELDS_MAX, TRAILER_BYTES_MAX};

const HEAD_BYTES_MAX: usize = 1024;

/// Scans bytes in pieces of these sizes. The last size is repeated. Returns how many bytes pass,
/// and the refusal.
fn scan_in_pieces(bytes: &[u8], pieces: &[usize]) -> Scan {
    let mut scanner = Scanner::new(HEAD_BYTES_MAX);
    let (mut start, mut end, mut piece) = (0, 0, 0);
    while end < bytes.len() {
        end = (end + pieces[piece.min(pieces.len() - 1)].max(1)).min(bytes.len());
        piece += 1;
        let found = scanner.scan(&bytes[start..end]);
        start += found.safe;
        if found.refused.is_some() {
            return Scan { safe: start, ..found };
        }
    }
    Scan { safe: start, refused: None }
}

/// Returns the verdict on these bytes, which must not depend on how they are cut.
#[track_caller]
fn scan(bytes: &[u8]) -> Scan {
    let whole = scan_in_pieces(bytes, &[usize::MAX / 2]);
    assert_eq!(scan_in_pieces(bytes, &[1]), whole, "byte by byte: {}", bytes.escape_ascii());
    whole
}

#[test]
fn what_is_plain_passes() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a?b=%20&c=[1]|{2} HTTP/1.0\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a:80/b HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\t5 \r\n\r\nGET /",
        "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:Chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\
         0000000a;n=\"v w\"\r\n0123456789\r\n00\r\nX-Sum: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \u{e9} caf\t~ !\r\nY:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\
         \r\n",
    ] {
        assert_eq!(scan(text.as_bytes()), Scan { safe: text.len(), refused: None }, "{text:?}");
    }
}

/// Checks that each head is refused and none of its bytes pass, alone and behind a good request.
#[track_caller]
fn are_refused(heads: &[(&str, Malformation)]) {
    for &(text, why) in heads {
        let refused = || Some(Refusal::Malformed { why });
        assert_eq!(scan(text.as_bytes()), Scan { safe: 0, refused: refused() }, "{text:?}");
        let good = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
        let behind = scan(format!("{good}{text}").as_bytes());
        assert_eq!(behind, Scan { safe: good.len(), refused: refused() }, "{text:?}");
    }
}

#[test]
fn lines_that_can_be_read_in_two_ways_are_refused_and_no_byte_of_their_head_passes() {
    use Malformation::{ControlByte, LineEnding, Method, RequestLine, Target, Version};
    are_refused(&[
        ("GET / HTTP/1.1\nHost: a\n\n", LineEnding),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", LineEnding),
        ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", LineEnding),
        ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", LineEnding),
        ("GET / HTTP/1.1\rHost: a\r\r", LineEnding),
        ("GET / HTTP/1.1\r\nHost: a\r\n\rX", LineEnding),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\n: b\r\n\r\n", LineEnding),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", LineEnding),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", LineEnding),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", LineEnding),
        ("GET /\r\n", LineEnding),
        ("GET  / HTTP/1.1\r\n\r\n", Target),
        ("GET / HTTP/1.1 \r\n\r\n", RequestLine),
        ("GET / a HTTP/1.1\r\n\r\n", RequestLine),
        ("GET\t/ HTTP/1.1\r\n\r\n", RequestLine),
        (" GET / HTTP/1.1\r\n\r\n", RequestLine),
        ("get / HTTP/1.1\r\n\r\n", Method),
        ("Get / HTTP/1.1\r\n\r\n", Method),
        ("G(T / HTTP/1.1\r\n\r\n", RequestLine),
        ("GET\0 / HTTP/1.1\r\n\r\n", ControlByte),
        ("GET /\0 HTTP/1.1\r\n\r\n", ControlByte),
        ("GET /\u{7f} HTTP/1.1\r\n\r\n", ControlByte),
        ("GET /\u{e9} HTTP/1.1\r\n\r\n", Target),
        ("GET /a#b HTTP/1.1\r\n\r\n", Target),
        ("GET /a\\b HTTP/1.1\r\n\r\n", Target),
        ("GET a HTTP/1.1\r\n\r\n", Target),
        ("GET a:1 HTTP/1.1\r\n\r\n", Target),
        ("GET * HTTP/1.1\r\n\r\n", Target),
        ("OPTIONS ** HTTP/1.1\r\n\r\n", Target),
        ("GET ftp://a/ HTTP/1.1\r\n\r\n", Target),
        ("GET http://u@a/ HTTP/1.1\r\n\r\n", Target),
        ("GET http://:80/x HTTP/1.1\r\n\r\n", Target),
        ("GET http:///x HTTP/1.1\r\n\r\n", Target),
        ("GET http://a:b/x HTTP/1.1\r\n\r\n", Target),
        ("GET / HTTP/1.2\r\n\r\n", Version),
        ("GET / HTTP/2.0\r\n\r\n", Version),
        ("GET / HTTP/01.1\r\n\r\n", Version),
        ("GET / http/1.1\r\n\r\n", Version),
        ("PRI * HTTP/2.0\r\n\r\n", Target),
    ]);
}

#[test]
fn fields_that_can_be_read_in_two_ways_are_refused_and_no_byte_of_their_head_passes() {
    use Malformation::{
        ContentLength, ControlByte, FieldName, Folded, LengthAndCoding, LineEnding,
        TransferEncoding,
    };
    are_refused(&[
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Folded),
        ("GET / HTTP/1.1\r\nX: a\r\n\tb\r\n\r\n", Folded),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\n: a\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost\r\n\r\n", LineEnding),
        ("GET / HTTP/1.1\r\nHo st: a\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nH\u{e9}: a\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nH\0: a\r\n\r\n", ControlByte),
        ("GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", ControlByte),
        ("GET / HTTP/1.1\r\nX: a\u{b}b\r\n\r\n", ControlByte),
        ("GET / HTTP/1.1\r\nX: \u{7f}\r\n\r\n", ControlByte),
        ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 5 5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 05\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 5.0\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nContent_Length: 5\r\n\r\n", FieldName),
        ("POST / HTTP/1.1\r\nTransfer_Encoding: chunked\r\n\r\n", FieldName),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n", TransferEncoding),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            TransferEncoding,
        ),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding),
        (
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            LengthAndCoding,
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            LengthAndCoding,
        ),
    ]);
}

#[test]
fn chunks_that_can_be_read_in_two_ways_are_refused() {
    use Malformation::{
        ChunkEnd, ChunkExtension, ChunkSize, ControlByte, FieldName, Folded, LineEnding, Trailer,
    };
    let long_extension = format!("5;{}\r\n", "x".repeat(EXTENSION_BYTES_MAX + 1));
    let many_extensions = format!("1;{}\r\na\r\n", "x".repeat(100)).repeat(11);
    let long_trailers = format!("0\r\nX: {}\r\n\r\n", "x".repeat(TRAILER_BYTES_MAX));
    let many_trailers = format!("0\r\n{}\r\n", "X:\r\n".repeat(FIELDS_MAX + 1));
    for (text, why) in [
        ("+5\r\nhello\r\n0\r\n\r\n", ChunkSize),
        ("-5\r\nhello\r\n0\r\n\r\n", ChunkSize),
        ("0x5\r\nhello\r\n0\r\n\r\n", ChunkSize),
        ("5 \r\nhello\r\n0\r\n\r\n", ChunkSize),
        (" 5\r\nhello\r\n0\r\n\r\n", ChunkSize),
        ("5\t;a\r\nhello\r\n0\r\n\r\n", ChunkSize),
        ("5_0\r\n", ChunkSize),
        (";a\r\n", ChunkSize),
        ("\r\n", LineEnding),
        ("g\r\n", ChunkSize),
        ("000000005\r\nhello\r\n", ChunkSize),
        ("FFFFFFFFFFFFFFFF\r\n", ChunkSize),
        ("100000005\r\nhello\r\n", ChunkSize),
        ("5\0\r\n", ControlByte),
        ("5\nhello\r\n0\r\n\r\n", LineEnding),
        ("5\rhello\r\n", LineEnding),
        ("5;a\nhello\r\n0\r\n\r\n", LineEnding),
        ("5;a\rb\r\nhello\r\n", LineEnding),
        ("5;a\0\r\nhello\r\n", ControlByte),
        (&long_extension, ChunkExtension),
        (&many_extensions, ChunkExtension),
        ("5\r\nhello!\r\n0\r\n\r\n", ChunkEnd),
        ("5\r\nhello\n0\r\n\r\n", LineEnding),
        ("5\r\nhello\r0\r\n\r\n", LineEnding),
        ("0\r\n\n", LineEnding),
        ("0\r\nX: 1\n\r\n", LineEnding),
        ("0\r\n X: 1\r\n\r\n", Folded),
        ("0\r\nX : 1\r\n\r\n", FieldName),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", FieldName),
        ("0\r\nX: \0\r\n\r\n", ControlByte),
        ("0\r\nContent-Length: 5\r\n\r\n", Trailer),
        ("0\r\ntransfer_encoding: chunked\r\n\r\n", Trailer),
        ("0\r\nX: 1\r\nHost: b\r\n\r\n", Trailer),
        ("0\r\nIdempotency-Key: b\r\n\r\n", Trailer),
        (&long_trailers, Trailer),
        (&many_trailers, Trailer),
    ] {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let found = scan(format!("{head}{text}").as_bytes());
        assert_eq!(found.refused, Some(Refusal::Malformed { why }), "{text:?}");
        assert!(found.safe >= head.len() && found.safe < head.len() + text.len(), "{text:?}");
    }
}

#[test]
fn what_is_too_large_is_refused_as_such() {
    let of = |text: String| scan(text.as_bytes());
    let large = Scan { safe: 0, refused: Some(Refusal::HeaderTooLarge { limit: HEAD_BYTES_MAX }) };
    let head = |value: usize| format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(value));
    let most = HEAD_BYTES_MAX - head(0).len();
    assert_eq!(of(head(most)).refused, None, "exactly the limit");
    assert_eq!(of(head(most + 1)), large);
    assert_eq!(
        of("x".repeat(HEAD_BYTES_MAX + 1).to_uppercase()),
        large,
        "a method that doesn't end"
    );
    assert_eq!(of(format!("GET / HTTP/1.1\r\n{}: x\r\n\r\n", "x".repeat(257))), large);
    assert_eq!(of(format!("GET / HTTP/1.1\r\n{}\r\n", "X:\r\n".repeat(FIELDS_MAX + 1))), large);
    assert_eq!(of(format!("GET / HTTP/1.1\r\n{}\r\n", "X:\r\n".repeat(FIELDS_MAX))).refused, None);
}

#[test]
fn connect_and_trace_are_refused() {
    for method in ["CONNECT a:1", "TRACE /"] {
        let found = scan(format!("{method} HTTP/1.1\r\nHost: a:1\r\n\r\n").as_bytes());
        assert_eq!(found, Scan { safe: 0, refused: Some(Refusal::MethodNotAllowed) });
    }
}

/// The body lengths of the requests that passed whole, as the scanner followed them.
fn followed(bytes: &[u8]) -> Vec<u64> {
    let mut scanner = Scanner::new(HEAD_BYTES_MAX);
    let (mut start, mut lengths, mut current) = (0, Vec::new(), None);
    for end in 1..=bytes.len() {
        let (was_head, was_data) =
            (matches!(scanner.part, RequestPart::Head(_)), in_data(&scanner));
        let found = scanner.scan(&bytes[start..end]);
        start += found.safe;
        match &scanner.part {
            RequestPart::Sized(left) if was_head => current = Some(*left),
            RequestPart::Chunked(_) if was_head => current = Some(0),
            RequestPart::Chunked(chunked) if in_data(&scanner) && !was_data => {
                current = current.map(|length| length + chunked.left);
            }
            RequestPart::Head(_) if was_head && found.safe > 0 => lengths.push(0),
            RequestPart::Head(_) if !was_head => lengths.extend(current.take()),
            _ => {}
        }
    }
    lengths
}

fn in_data(scanner: &Scanner) -> bool {
    matches!(&scanner.part, RequestPart::Chunked(ChunkScanner { step: ChunkStep::Data, .. }))
}

/// Parses the same bytes with hyper: returns the body lengths of the whole requests, and the error.
fn parsed(bytes: &[u8]) -> (Vec<u64>, Option<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let lengths = Arc::new(Mutex::new(Vec::new()));
        let found = lengths.clone();
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let found = found.clone();
            async move {
                if let Ok(body) = request.into_body().collect().await {
                    found.lock().unwrap().push(body.to_bytes().len() as u64);
                }
                Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new()))
            }
        });
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let served = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .max_headers(FIELDS_MAX)
            .serve_connection(TokioIo::new(server), service)
            .await;
        let complaint =
            served.err().filter(|error| error.is_parse() && !error.is_incomplete_message());
        let lengths = lengths.lock().unwrap().clone();
        (lengths, complaint.map(|error| error.to_string()))
    })
}

/// Bytes that look like requests, with some tricks of attackers.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop_oneof![
        8 => Just("GET / HTTP/1.1\r\n"),
        8 => Just("POST /a?b HTTP/1.1\r\n"),
        1 => Just("POST /a HTTP/1.0\r\n"),
        1 => Just("GET http://a/b HTTP/1.1\r\n"),
        8 => Just("Host: a\r\n"),
        4 => Just("Content-Length: 5\r\n"),
        2 => Just("Content-Length: 0\r\n"),
        6 => Just("Transfer-Encoding: chunked\r\n"),
        1 => Just("Transfer-Encoding: gzip, chunked\r\n"),
        2 => Just("Connection: close\r\n"),
        1 => Just("Upgrade: websocket\r\nConnection: upgrade\r\n"),
        1 => Just("Expect: 100-continue\r\n"),
        12 => Just("\r\n"),
        6 => Just("5\r\nhello\r\n"),
        4 => Just("0\r\n\r\n"),
        2 => Just("a;x=y\r\n0123456789\r\n"),
        2 => Just("hello"),
        1 => Just("0\r\nX: 1\r\n\r\n"),
        1 => Just("\n"),
        1 => Just("\r"),
        1 => Just(" "),
        1 => Just("\0"),
        1 => Just("x"),
    ];
    let whole = prop_oneof![
        Just("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        Just("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
        Just(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x\r\n\
             abc\r\n0\r\nX-T: 1\r\n\r\n"
        ),
    ];
    let text = proptest::collection::vec(prop_oneof![2 => pieces, 1 => whole], 0..12)
        .prop_map(|all| all.concat().into_bytes());
    let flips = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
    (text, flips).prop_map(|(mut text, flips)| {
        for (index, byte) in flips {
            if !text.is_empty() {
                let at = index.index(text.len());
                text[at] = byte;
            }
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_verdict_does_not_depend_on_how_bytes_are_cut(
        bytes in hostile(),
        pieces in proptest::collection::vec(1usize..40, 1..20),
    ) {
        prop_assert_eq!(scan_in_pieces(&bytes, &pieces), scan_in_pieces(&bytes, &[usize::MAX / 2]));
    }

    #[test]
    fn no_bytes_make_the_scanner_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let found = scan(&bytes);
        prop_assert!(found.safe <= bytes.len());
    }

    #[test]
    fn what_passes_is_read_the_same_by_the_parser_behind(bytes in hostile()) {
        let passed = &bytes[..scan(&bytes).safe];
        let (lengths, complaint) = parsed(passed);
        prop_assert_eq!(complaint, None);
        let followed = followed(passed);
        // After `Connection: close` the parser reads nothing more. Up to there, both must have read
        // the same.
        prop_assert_eq!(&lengths[..], &followed[..lengths.len().min(followed.len())]);
        let closes = String::from_utf8_lossy(passed).contains("close")
            || passed.windows(8).any(|w| w == b"HTTP/1.0");
        prop_assert!(closes || lengths.len() == followed.len(), "{:?} and {:?}", lengths, followed);
    }
}
