//! Truncated answers: none of them is taken for a complete one.

use crate::harness::frame_origin::STATUS_200;
use crate::harness::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, block, frame,
};
use crate::harness::{
    Answer, Authority, Connection, FrameOrigin, Gateway, Request, Upstream, until,
};

const HERE: &str = "127.0.0.1";

fn by_tls(authority: &Authority, port: u16) -> Gateway {
    let settings = format!("[upstream]\nca_file = \"{}\"\n", authority.ca_file().display());
    Gateway::to(&format!("https://{HERE}:{port}"), &settings)
}

#[track_caller]
fn is_stored(gateway: &Gateway, pay: &Request) -> Answer {
    let (first, second) = (pay.send(gateway.port), pay.send(gateway.port));
    assert!(first.status < 300 && !first.replayed(), "{first:?}");
    assert!(second.replayed() && second.body == first.body, "{second:?}");
    second
}

#[track_caller]
fn is_in_doubt(gateway: &Gateway, pay: &Request) {
    let first = pay.send(gateway.port);
    assert_eq!((first.status, first.problem().as_str()), (502, "outcome-uncertain"), "{first:?}");
    let second = pay.send(gateway.port);
    assert_eq!(
        (second.status, second.problem().as_str()),
        (409, "outcome-uncertain"),
        "{second:?}"
    );
}

#[test]
fn an_answer_that_ends_with_its_tls_connection_is_whole_only_with_a_close_notify() {
    let authority = Authority::new();
    let upstream = Upstream::with_tls(authority.server(HERE, &["http/1.1"]));
    let gateway = by_tls(&authority, upstream.port);
    for (n, body) in [
        "body {\"id\":1}",
        "type text/plain, body paid",
        "body {\"id\":",
        "large 300000",
        "type text/plain, body ",
    ]
    .iter()
    .enumerate()
    {
        is_stored(
            &gateway,
            &Request::pay(&format!("whole{n}"), "{}").act(&format!("{body}, to_close")),
        );
        is_in_doubt(
            &gateway,
            &Request::pay(&format!("torn{n}"), "{}").act(&format!("{body}, torn")),
        );
    }
    assert_eq!(upstream.by_key().values().max(), Some(&1));
    // A passed-through answer breaks off.
    let unprotected = |script: &str| {
        let mut connection = Connection::open(gateway.port);
        connection.write(&Request::new("GET", "/others").act(script).bytes());
        connection.try_read("GET")
    };
    assert_eq!(
        unprotected("type text/plain, body paid, to_close").map(|answer| answer.text()),
        Some("paid".to_owned())
    );
    assert_eq!(unprotected("type text/plain, body paid, torn"), None);
}

#[test]
fn an_answer_that_ends_with_its_plain_connection_is_in_doubt_where_it_claims_json_and_is_not() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let stored = [
        "body {\"id\":1}",
        "type application/problem+json, body []",
        "hex efbbbf7b7d",
        "type text/plain, body {\"id\":",
        "type text/html, body ",
    ];
    for (n, body) in stored.iter().enumerate() {
        is_stored(
            &gateway,
            &Request::pay(&format!("stored{n}"), "{}").act(&format!("{body}, to_close")),
        );
    }
    let cut = [
        "body {\"id\":",
        "type application/problem+json, body [",
        "hex ",
        "body {}, field Content-Encoding=gzip",
        "field Transfer-Encoding=gzip, body {",
    ];
    for (n, body) in cut.iter().enumerate() {
        is_in_doubt(
            &gateway,
            &Request::pay(&format!("cut{n}"), "{}").act(&format!("{body}, to_close")),
        );
    }
    // An answer with a length may have a body that is not JSON.
    is_stored(&gateway, &Request::pay("counted", "{}").act("body {\"id\":"));
    // A release status counts whatever follows it.
    let released =
        Request::pay("released", "{}").act("status 429, body {, to_close").send(gateway.port);
    assert_eq!((released.status, released.text().as_str()), (429, "{"));
    is_stored(&gateway, &Request::pay("released", "{}"));
    assert_eq!(upstream.by_key().values().max(), Some(&2), "the released one");
}

#[test]
fn an_answer_in_a_transfer_coding_that_was_not_asked_for_is_in_doubt() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    // Nothing here decodes the coding, and its field is not forwarded, so clients would get
    // unreadable bytes.
    let coded = [
        "type text/plain, field Transfer-Encoding=gzip, body paid, to_close",
        "field Transfer-Encoding=gzip, body {}, to_close",
        "field Transfer-Encoding=gzip, chunked 2|{}|0||",
        "field Transfer-Encoding=deflate, chunked 2|{}|0||",
    ];
    for (n, script) in coded.iter().enumerate() {
        is_in_doubt(&gateway, &Request::pay(&format!("coded{n}"), "{}").act(script));
    }
    // A content coding is decoded by the client. It is stored with its field where the length shows
    // that the answer is complete.
    let stored = is_stored(
        &gateway,
        &Request::pay("k", "{}").act("field Content-Encoding=br, hex 0b028065"),
    );
    assert_eq!(
        (stored.get("content-encoding"), &stored.body[..]),
        (Some("br"), &[0x0b, 0x02, 0x80, 0x65][..])
    );
    // An answer that is cut before its length is in doubt.
    is_in_doubt(
        &gateway,
        &Request::pay("cut", "{}").act("field Content-Encoding=br, hex 0b028065, cut"),
    );
    assert_eq!(upstream.by_key().values().max(), Some(&1));
}

#[test]
fn a_probe_is_not_answered_by_a_cut_text() {
    let upstream = Upstream::start();
    let route = "[[routes]]\npath = \"/v1/payments\"\non_uncertain = \"probe\"\nprobe = { path = \"/v1/by-key/{key}\", found = [\"201\"] }";
    let gateway = Gateway::with(upstream.port, "", route);
    let pay = Request::pay("k", "{}");
    assert_eq!(pay.clone().act("drop").send(gateway.port).status, 502);
    upstream.answer_questions("body {\"id\":, to_close");
    assert_eq!(pay.send(gateway.port).status, 409);
    upstream.answer_questions("body {\"id\":1}, to_close");
    let found = pay.send(gateway.port);
    assert!(found.replayed() && found.text() == "{\"id\":1}", "{found:?}");
    assert_eq!(upstream.payments_and_questions(), (1, 2));
}

#[test]
fn a_chunked_answer_is_whole_only_with_its_last_chunk_and_the_end_of_its_trailers() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for (n, chunks) in ["2|{}|0||", "2|{}|0|X-A: b||"].iter().enumerate() {
        is_stored(
            &gateway,
            &Request::pay(&format!("whole{n}"), "{}").act(&format!("chunked {chunks}")),
        );
    }
    let cut = ["", "2|{}", "2|{}|", "2|{}|0", "2|{}|0|", "2|{}|0|X-A: b", "2|{}|0|X-A: b|", "5|{}"];
    for (n, chunks) in cut.iter().enumerate() {
        is_in_doubt(
            &gateway,
            &Request::pay(&format!("cut{n}"), "{}").act(&format!("chunked {chunks}")),
        );
    }
}

/// Makes the frames of an answer on a stream.
type AnswerFrames = Box<dyn Fn(u32) -> Vec<u8> + Send>;

fn head(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, STATUS_200)
}

/// A head that announces three bytes.
fn counted(flags: u8, stream: u32) -> Vec<u8> {
    let fields = [STATUS_200, &block(&[("content-length", "3")])].concat();
    frame(HEADERS, END_HEADERS | flags, stream, &fields)
}

fn data(flags: u8, stream: u32) -> Vec<u8> {
    frame(DATA, flags, stream, b"{}")
}

fn reset(stream: u32, reason: u8) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, reason])
}

/// Answers that end before their end.
fn cut_answers() -> Vec<(&'static str, AnswerFrames)> {
    vec![
        (
            "reset, no error",
            Box::new(|stream| [head(stream), data(0, stream), reset(stream, 0)].concat()),
        ),
        (
            "reset, cancel",
            Box::new(|stream| [head(stream), data(0, stream), reset(stream, 8)].concat()),
        ),
        ("reset before data", Box::new(|stream| [head(stream), reset(stream, 0)].concat())),
        ("reset instead of an answer", Box::new(|stream| reset(stream, 0))),
        (
            "shorter than announced",
            Box::new(|stream| [counted(0, stream), data(END_STREAM, stream)].concat()),
        ),
        (
            "longer than announced",
            Box::new(|stream| {
                [counted(0, stream), data(0, stream), data(END_STREAM, stream)].concat()
            }),
        ),
        ("no data of what was announced", Box::new(|stream| counted(END_STREAM, stream))),
        (
            "goaway with an error",
            Box::new(|stream| {
                [head(stream), data(0, stream), frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2])]
                    .concat()
            }),
        ),
    ]
}

/// Answers that are whole.
fn whole_answers() -> Vec<(&'static str, AnswerFrames)> {
    vec![
        ("data", Box::new(|stream| [head(stream), data(END_STREAM, stream)].concat())),
        (
            "trailers",
            Box::new(|stream| {
                let trailers =
                    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[("x-a", "b")]));
                [head(stream), data(0, stream), trailers].concat()
            }),
        ),
        (
            "reset behind the end",
            Box::new(|stream| [head(stream), data(END_STREAM, stream), reset(stream, 0)].concat()),
        ),
    ]
}

#[test]
fn an_http_2_answer_is_whole_only_with_the_end_of_its_stream() {
    let authority = Authority::new();
    let origin = FrameOrigin::start(authority.server(HERE, &["h2"]), &[]);
    let gateway = by_tls(&authority, origin.port);
    for (name, frames) in cut_answers() {
        origin.answer_by(frames);
        is_in_doubt(&gateway, &Request::pay(&name.replace(' ', "-"), "{}"));
    }
    for (name, frames) in whole_answers() {
        origin.answer_by(frames);
        assert_eq!(is_stored(&gateway, &Request::pay(&name.replace(' ', "-"), "{}")).text(), "{}");
    }
    until("each to be executed once", || origin.executed() == 11);
}
