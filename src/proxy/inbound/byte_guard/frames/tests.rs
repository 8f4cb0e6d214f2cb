//! Frames that are counted, and floods of such frames.

use super::*;
use crate::proxy::inbound::byte_guard::hpack::FIELD_BYTES;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
}

fn opened(now: Instant) -> FrameScanner {
    let mut frames = FrameScanner::new(now);
    assert_eq!(
        frames.scan(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || now),
        (24, FrameVerdict::Incomplete)
    );
    frames
}

/// Scans bytes one by one. Returns how many passed, and the verdict on the next ones.
fn scan_byte_by_byte(
    frames: &mut FrameScanner,
    bytes: &[u8],
    now: Instant,
) -> (usize, FrameVerdict) {
    let mut start = 0;
    for end in 1..=bytes.len() {
        let (safe, found) = frames.scan(&bytes[start..end], || now);
        start += safe;
        if found != FrameVerdict::Incomplete {
            return (start, found);
        }
    }
    (start, FrameVerdict::Incomplete)
}

#[test]
fn too_many_idle_frames_end_with_a_whole_one_however_they_are_cut() {
    let now = Instant::now();
    for (kind, payload) in [
        (2, &b"12345"[..]),
        (3, b"1234"),
        (4, b""),
        (6, b"12345678"),
        (WINDOW_UPDATE, b"1234"),
        (9, b""),
        (DATA, b""),
        (200, b"x"),
    ] {
        let flood = frame(kind, 0, payload).repeat(IDLE_FRAMES_MAX as usize + 5);
        let end = frame(kind, 0, payload).len() * (IDLE_FRAMES_MAX as usize + 1);
        assert_eq!(opened(now).scan(&flood, || now), (end, FrameVerdict::Refused), "type {kind}");
        let found = scan_byte_by_byte(&mut opened(now), &flood, now);
        assert_eq!(found, (end, FrameVerdict::Refused), "type {kind}, byte by byte");
    }
}

#[test]
fn frames_that_carry_something_and_slow_ones_are_not_counted() {
    let now = Instant::now();
    let mut frames = opened(now);
    for (kind, flags, payload) in
        [(DATA, 0, &b"x"[..]), (DATA, END_STREAM, b""), (HEADERS, END_HEADERS, b"\x82")]
    {
        let bytes = frame(kind, flags, payload).repeat(5000);
        // All blocks of a stream except the first are trailers. There a pseudo-header field is a
        // fault.
        let bytes = if kind == HEADERS { frame(kind, flags, b"\x90").repeat(5000) } else { bytes };
        assert_eq!(frames.scan(&bytes, || now), (bytes.len(), FrameVerdict::Incomplete));
    }
    // This client gets an answer in the smallest possible frames, and acknowledges each of them
    // twice.
    for _ in 0..5000 {
        frames.wrote(10);
        let bytes = frame(WINDOW_UPDATE, 0, b"1234").repeat(2);
        assert_eq!(frames.scan(&bytes, || now), (bytes.len(), FrameVerdict::Incomplete));
    }
    for period in 1..10 {
        let later = now + PERIOD * period;
        let bytes = frame(6, 0, b"12345678").repeat(IDLE_FRAMES_MAX as usize);
        assert_eq!(frames.scan(&bytes, || later), (bytes.len(), FrameVerdict::Incomplete));
    }
}

#[test]
fn a_faulty_block_is_marked_in_its_last_frame_however_it_is_cut() {
    let now = Instant::now();
    let mark = b"\0\x12onceward-malformed\x011";
    let path = b"\x04\x02/#";
    let of = |flags: u8, before: &[u8], fragment: &[u8], behind: &[u8]| {
        frame(HEADERS, flags, &[before, fragment, behind].concat())
    };
    for (sent, marked) in [
        (of(END_HEADERS, b"", path, b""), of(END_HEADERS, b"", &[&path[..], mark].concat(), b"")),
        (
            of(END_HEADERS | PADDED | PRIORITY, b"\x03\0\0\0\x03\x10", path, b"\0\0\0"),
            of(
                END_HEADERS | PADDED | PRIORITY,
                b"\x03\0\0\0\x03\x10",
                &[&path[..], mark].concat(),
                b"\0\0\0",
            ),
        ),
    ] {
        assert_eq!(
            opened(now).scan(&sent, || now),
            (0, FrameVerdict::Replaced(sent.len(), marked.clone()))
        );
        let found = scan_byte_by_byte(&mut opened(now), &sent, now);
        assert_eq!(found, (0, FrameVerdict::Replaced(sent.len(), marked)));
    }
    let (first, last) = (frame(HEADERS, 0, b"\x04\x02"), frame(CONTINUATION, END_HEADERS, b"/#"));
    let found = opened(now).scan(&[&first[..], &last].concat(), || now);
    let marked = frame(CONTINUATION, END_HEADERS, &[b"/#", &mark[..]].concat());
    assert_eq!(
        found,
        (first.len(), FrameVerdict::Replaced(last.len(), marked)),
        "its path is in two frames"
    );
}

#[test]
fn pseudo_header_fields_are_a_fault_in_trailers_alone() {
    let now = Instant::now();
    let mut frames = opened(now);
    let (head, trailers) =
        (frame(HEADERS, END_HEADERS, b"\x84"), frame(HEADERS, END_HEADERS | END_STREAM, b"\x84"));
    assert_eq!(frames.scan(&head, || now), (head.len(), FrameVerdict::Incomplete));
    assert!(matches!(frames.scan(&trailers, || now), (0, FrameVerdict::Replaced(10, _))));
}

#[test]
fn a_push_promise_is_refused_before_a_byte_of_it_passes() {
    let now = Instant::now();
    let promise = frame(PUSH_PROMISE, END_HEADERS, b"\0\0\0\x02\x82");
    assert_eq!(opened(now).scan(&promise, || now), (0, FrameVerdict::Refused));
    assert_eq!(scan_byte_by_byte(&mut opened(now), &promise, now), (0, FrameVerdict::Refused));
}

#[test]
fn trailers_that_are_too_long_for_the_library_are_refused() {
    let now = Instant::now();
    let mut frames = opened(now);
    frames.scan(&frame(HEADERS, END_HEADERS, b"\x82"), || now);
    // The client puts a field of 200 bytes into the dynamic table, and then refers to it many
    // times.
    let (name, value) = (b"\x40\x01a\x7f\x49", [b'x'; 200]);
    let few = [&name[..], &value, &[0xbe; 40]].concat();
    assert_eq!(frames.scan(&opening(0, END_HEADERS, &few), || now).1, FrameVerdict::Incomplete);
    let many = opening(0, END_HEADERS | END_STREAM, &[0xbe; 100]);
    assert_eq!(frames.scan(&many, || now), (0, FrameVerdict::Refused));
}

#[test]
fn blocks_that_nobody_can_read_are_refused_before_a_byte_of_them_passes() {
    let now = Instant::now();
    for (flags, payload) in [
        (END_HEADERS, &b"\x80"[..]),
        (END_HEADERS, b"\x04\x02/"),
        (END_HEADERS | PADDED, b""),
        (END_HEADERS | PADDED, b"\x02\0"),
        (END_HEADERS | PRIORITY, b"\0\0\0"),
        (END_HEADERS | PRIORITY, b"\0\0\0\x01\x10\x82"),
    ] {
        assert_eq!(
            opened(now).scan(&frame(HEADERS, flags, payload), || now),
            (0, FrameVerdict::Refused),
            "{payload:x?}"
        );
    }
}

/// Returns the bytes that begin the n-th stream of a connection.
fn opening(n: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[HEADERS, flags], &(2 * n + 1).to_be_bytes(), payload].concat()
}

#[test]
fn blocks_of_many_fields_are_passed_on_one_by_one_and_end_the_connection_when_they_are_many() {
    let now = Instant::now();
    let mut frames = opened(now);
    // Each block costs more memory than is passed on at once.
    let block = |n| opening(n, END_HEADERS | END_STREAM, &[0x82; 500]);
    let flood: Vec<u8> = (0..30).flat_map(block).collect();
    let (mut at, mut passed) = (0, Vec::new());
    loop {
        match frames.scan(&flood[at..], || now) {
            (length, FrameVerdict::Pause) => passed.push(length),
            other => break assert_eq!(other, (509, FrameVerdict::Refused)),
        }
        at += passed.last().unwrap();
    }
    assert_eq!(passed, [509; 20]);
}

#[test]
fn fields_are_found_behind_padding_and_priority_and_in_continuations() {
    let now = Instant::now();
    let mut frames = opened(now);
    let first = opening(0, PADDED | PRIORITY, b"\x0312345\x82\x86\x84\0\0\0");
    let rest = frame(CONTINUATION, 0, b"\x82\x86");
    let bytes = [first, rest].concat();
    assert_eq!(
        scan_byte_by_byte(&mut frames, &bytes, now),
        (bytes.len(), FrameVerdict::Incomplete)
    );
    assert_eq!(frames.open_bytes(), 5 * FIELD_BYTES);
    frames.scan(&frame(CONTINUATION, END_HEADERS, b""), || now);
    assert_eq!((frames.open_bytes(), frames.take_unread()), (0, 0));
}

#[test]
fn bodies_and_trailers_wait_to_be_taken_and_trailers_of_many_fields_end_the_connection() {
    let now = Instant::now();
    let mut frames = opened(now);
    frames.scan(&opening(0, END_HEADERS, b"\x82"), || now);
    frames.scan(&[frame(DATA, 0, b"x"), frame(DATA, 0, b"")].concat(), || now);
    assert_eq!(frames.take_unread(), DATA_BYTES_MIN);
    let padded = [&[200][..], &[b'x'; 30_000], &[0; 200]].concat();
    let length = u32::try_from(padded.len()).unwrap().to_be_bytes();
    let data = [&length[1..], &[DATA, PADDED, 0, 0, 0, 1], &padded[..]].concat();
    assert_eq!(scan_byte_by_byte(&mut frames, &data, now), (data.len(), FrameVerdict::Incomplete));
    assert_eq!(frames.take_unread(), 30_000, "padding is nothing that waits");
    // The first name of the static table that isn't a pseudo-header field, ten times.
    let few = opening(0, END_HEADERS | END_STREAM, &[0x90; 10]);
    assert_eq!(frames.scan(&few, || now), (few.len(), FrameVerdict::Incomplete));
    assert_eq!(frames.take_unread(), 10 * FIELD_BYTES);
    let trailers = opening(0, END_HEADERS | END_STREAM, &[0x90; 200]);
    assert_eq!(frames.scan(&trailers, || now), (trailers.len(), FrameVerdict::Refused));
}
