//! Hostile HTTP/2, written frame by frame.

use crate::harness::frames::{
    ACK, CONTINUATION, DATA, END_STREAM, Frame, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, block, frame, request,
};
use crate::harness::{Frames, Gateway, ROUTES, Request, Upstream, until};

/// The first byte of an answer's header block: `:status` from the static table (RFC 7541, appendix
/// A).
const STATUS_400: u8 = 0x80 | 12;

#[test]
fn malformed_requests_are_stream_errors_and_reach_nobody() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let good = |more: &[(&'static str, &'static str)]| request("POST", "/v1/payments", more);
    let pseudo = |replaced: &'static str, with: &[(&'static str, &'static str)]| {
        let mut fields = good(&[]);
        let at = fields.iter().position(|(name, _)| *name == replaced).unwrap();
        fields.splice(at..=at, with.iter().copied());
        fields
    };
    let heads = [
        good(&[("X-Upper", "1")]),
        good(&[("x-lf", "a\nb")]),
        good(&[("x-cr", "a\rb")]),
        good(&[("x-crlf", "a\r\nidempotency-key: b")]),
        good(&[("x-nul", "a\0b")]),
        good(&[("x:colon", "a")]),
        good(&[("x space", "a")]),
        good(&[("x\r\n", "a")]),
        good(&[("", "a")]),
        good(&[("connection", "close")]),
        good(&[("keep-alive", "1")]),
        good(&[("proxy-connection", "close")]),
        good(&[("transfer-encoding", "chunked")]),
        good(&[("upgrade", "websocket")]),
        good(&[("te", "gzip")]),
        good(&[("content-length", "+0")]),
        good(&[("content-length", "5")]),
        good(&[("content-length", "0"), ("content-length", "5")]),
        good(&[("host", "b")]),
        good(&[("host", "a"), ("host", "b")]),
        good(&[("x", "1"), (":path", "/late")]),
        good(&[(":status", "200")]),
        good(&[(":unknown", "1")]),
        pseudo(":path", &[("x", "no path")]),
        pseudo(":path", &[(":path", "")]),
        pseudo(":path", &[(":path", "/a"), (":path", "/b")]),
        pseudo(":path", &[(":path", "/a b")]),
        pseudo(":path", &[(":path", "/a\r\nx: y")]),
        pseudo(":path", &[(":path", "no slash")]),
        pseudo(":path", &[(":path", "/v1/../v1/payments")]),
        pseudo(":path", &[(":path", "/v1/payments;x=1")]),
        pseudo(":path", &[(":path", "/x/..;/v1%2Fpayments")]),
        pseudo(":path", &[(":path", "/v1\\payments")]),
        pseudo(":method", &[("x", "no method")]),
        pseudo(":method", &[(":method", "POST"), (":method", "GET")]),
        pseudo(":method", &[(":method", "PO ST")]),
        pseudo(":scheme", &[("x", "no scheme")]),
        pseudo(":authority", &[(":authority", "a"), (":authority", "b")]),
        pseudo(":authority", &[(":authority", "u@a")]),
        pseudo(":authority", &[(":authority", "a b")]),
        pseudo(":authority", &[("host", "a b")]),
    ];
    for fields in heads {
        let mut connection = Frames::open(gateway.port, &[]);
        let with_key: Vec<_> = fields.iter().copied().chain([("idempotency-key", "k")]).collect();
        connection.headers(1, END_STREAM, &with_key);
        let end = connection.until(&[RST_STREAM, GOAWAY, HEADERS]);
        assert!(is_refused(end.as_ref()), "{fields:?}: {end:?}");
    }
    assert_eq!(upstream.executed(), 0);
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201, "and the key is free");
}

#[test]
fn a_body_of_another_length_than_announced_is_a_stream_error_and_reaches_nobody() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for (announced, data) in [("5", &b"abc"[..]), ("3", b"abcde"), ("0", b"a")] {
        let mut connection = Frames::open(gateway.port, &[]);
        connection.headers(
            1,
            0,
            &request(
                "POST",
                "/v1/payments",
                &[("idempotency-key", "k"), ("content-length", announced)],
            ),
        );
        connection.write(&frame(DATA, END_STREAM, 1, data));
        let end = connection.until(&[RST_STREAM, GOAWAY, HEADERS]);
        assert!(is_refused(end.as_ref()), "{announced}: {end:?}");
    }
    assert_eq!(upstream.executed(), 0);
}

/// Whether a stream ended with an error, or with the status 400.
fn is_refused(end: Option<&Frame>) -> bool {
    end.is_some_and(|frame| frame.kind != HEADERS || frame.payload[0] == STATUS_400)
}

/// Floods a gateway with these bytes until it closes the connection. Others are served meanwhile.
#[track_caller]
fn flood(gateway: &Gateway, begin: &[u8], mut bytes: impl FnMut(u32) -> Vec<u8>) {
    let mut connection = Frames::open(gateway.port, &[]);
    connection.write(begin);
    let before = gateway.resident_bytes();
    let mut rounds = 0..1_000_000;
    until("the connection to be closed", || {
        assert_eq!(
            Request::new("GET", "/others").send(gateway.port).status,
            201,
            "others are served"
        );
        !rounds.by_ref().take(2000).all(|round| connection.write(&bytes(round)))
    });
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
}

#[test]
fn floods_end_their_connection_and_cost_no_memory() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let head = block(&request("GET", "/", &[]));
    let reset = |round: u32| {
        let stream = 2 * round + 1;
        [frame(HEADERS, END_STREAM | 4, stream, &head), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
            .concat()
    };
    flood(&gateway, &[], reset);
    flood(&gateway, &frame(HEADERS, 0, 1, &head), |_| frame(CONTINUATION, 0, 1, b"\0\x01x\x01y"));
    flood(&gateway, &frame(HEADERS, 0, 1, &head), |_| frame(CONTINUATION, 0, 1, b""));
    flood(&gateway, &[], |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]));
    flood(&gateway, &[], |_| frame(PING, 0, 0, b"12345678"));
    flood(&gateway, &[], |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]));
    flood(&gateway, &[], |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]));
    flood(&gateway, &frame(HEADERS, 4, 1, &block(&request("POST", "/", &[]))), |_| {
        frame(DATA, 0, 1, b"")
    });
    assert_eq!(Request::pay("after", "{}").send(gateway.port).status, 201);
}

#[test]
fn a_flood_ends_with_a_goaway() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Frames::open(gateway.port, &[]);
    // One more than allowed. The answers are read, so that none of them is lost when the connection
    // ends.
    connection.write(&frame(PING, 0, 0, b"12345678").repeat(1001));
    assert!(connection.ending().is_some());
    assert!(connection.next().is_none(), "and it is closed");
}

#[test]
fn pings_and_settings_of_a_decent_client_are_answered() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Frames::open(gateway.port, &[]);
    for _ in 0..100 {
        connection.write(&frame(PING, 0, 0, b"12345678"));
        let pong = connection.until(&[PING]).unwrap();
        assert_eq!((pong.flags & ACK, &pong.payload[..]), (ACK, &b"12345678"[..]));
    }
    // A client may take a complete body in small steps.
    connection.headers(1, END_STREAM, &request("GET", "/", &[("x-act", "large 200000")]));
    connection.until(&[HEADERS]).unwrap();
    let mut left = 200_000;
    while left > 0 {
        let data = connection.until(&[DATA]).unwrap();
        left -= data.payload.len();
        let taken = u32::try_from(data.payload.len().max(1)).unwrap().to_be_bytes();
        connection.write(
            &[frame(WINDOW_UPDATE, 0, 0, &taken), frame(WINDOW_UPDATE, 0, 1, &taken)].concat(),
        );
    }
}

#[test]
fn a_client_that_opens_no_window_is_let_go() {
    let upstream = Upstream::start();
    let settings = "[limits]\nidle_timeout = \"700ms\"\nheader_timeout = \"300ms\"";
    let gateway = Gateway::with(upstream.port, settings, ROUTES);
    assert_eq!(Request::pay("k", "{}").act("large 500000").send(gateway.port).status, 201);
    const INITIAL_WINDOW_SIZE: u16 = 4;
    for window in [0, 1] {
        let mut connection = Frames::open(gateway.port, &[(INITIAL_WINDOW_SIZE, window)]);
        for stream in 0..50 {
            let fields = [
                ("idempotency-key", "k"),
                ("content-type", "application/json"),
                ("x-act", "large 500000"),
            ];
            connection.headers(2 * stream + 1, 0, &request("POST", "/v1/payments", &fields));
            connection.write(&frame(DATA, END_STREAM, 2 * stream + 1, b"{}"));
        }
        // The client answers pings like a healthy one.
        let connection = std::thread::spawn(move || {
            while let Some(next) = connection.next() {
                if next.kind == PING && next.flags & ACK == 0 {
                    connection.write(&frame(PING, ACK, 0, &next.payload));
                }
            }
        });
        until("the connection to be given up", || connection.is_finished());
        until("it to be counted out", || gateway.metric("onceward_connections") == 0.0);
    }
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn an_upload_that_its_client_resets_is_never_executed_whatever_the_error_code() {
    const NO_ERROR: u32 = 0;
    const CANCEL: u32 = 8;
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for code in [NO_ERROR, CANCEL] {
        let key = format!("k{code}");
        let fields = request(
            "POST",
            "/v1/payments",
            &[("content-type", "application/json"), ("idempotency-key", &key)],
        );
        let mut client = Frames::open(gateway.port, &[]);
        client.headers(1, 0, &fields);
        client.write(&frame(DATA, 0, 1, b"[1"));
        // The received part is valid JSON, but not the body that the client meant to send.
        client.write(&frame(DATA, 0, 1, b"]"));
        client.write(&frame(PING, 0, 0, b"at work "));
        client.until(&[PING]).expect("the connection goes on");
        client.write(&frame(RST_STREAM, 0, 1, &code.to_be_bytes()));
        let whole = Request::pay(&key, "[1, 2]").send(gateway.port);
        assert!(whole.status == 201 && !whole.replayed(), "reset with {code}: {whole:?}");
    }
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_client_that_takes_no_notice_of_the_end_holds_nobody_up() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::start(upstream.port);
    // The client answers no PING and ignores GOAWAY.
    let mut asleep = Frames::open(gateway.port, &[]);
    asleep.headers(1, END_STREAM, &request("GET", "/", &[]));
    assert!(asleep.until(&[HEADERS]).is_some());
    gateway.signal("TERM");
    #[allow(clippy::disallowed_methods)]
    let began = std::time::Instant::now();
    assert!(gateway.wait().success());
    assert!(
        began.elapsed() < std::time::Duration::from_secs(20),
        "far less than the drain timeout"
    );
}
