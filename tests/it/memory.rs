//! Bounds on the memory that hostile clients can occupy while each of them respects the limits:
//! `buffered_bytes` plus the sum that docs/OPERATING.md names for a process, its connections and
//! its requests in flight.

use std::any::Any;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block, frame, request,
};
use crate::harness::{
    Connection, Frames, Gateway, ROUTES, Request, Upstream, dial, resident_bytes, until,
};

const MIB: usize = 1 << 20;

/// The gateway's limits: connections, and the same number of requests in flight.
const PLACES: usize = 100;
const BUFFERED: usize = 16 * MIB;

/// The allowed growth: `buffered_bytes`, 32 KiB for each connection and each request in flight, and
/// 24 MiB for the rest of the process. Part of the latter is in use before the first connection.
const GROWTH_MAX: usize = BUFFERED + 2 * PLACES * 32 * 1024 + 16 * MIB;

/// Everything that an attack keeps open.
type Kept = Vec<Box<dyn Any>>;

/// The source address of the n-th connection.
type From = fn(usize) -> String;

/// Opens connections from some addresses, and misuses them.
type Attack = fn(&Gateway, From, &mut Kept);

/// Starts an origin that sends endlessly for the path `/large`, and otherwise neither reads on nor
/// answers.
fn hostile_origin() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut head = [0; 64];
                let length = stream.read(&mut head).unwrap_or(0);
                if !head[..length].starts_with(b"GET /large") {
                    std::thread::sleep(Duration::from_secs(120));
                    return;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
                while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
            });
        }
    });
    port
}

/// Sends requests of 1,700 fields of one byte each, on all streams.
fn many_fields(gateway: &Gateway, from: From, kept: &mut Kept) {
    let first = [block(&request("GET", "/slow", &[])), b"\x40\x01x\x01y".to_vec()].concat();
    let fields = |stream: u32| {
        let first = if stream == 1 { first.clone() } else { block(&request("GET", "/slow", &[])) };
        frame(HEADERS, END_STREAM | END_HEADERS, stream, &[first, vec![0xbe; 1700]].concat())
    };
    for n in 0..PLACES {
        let mut connection = opened(gateway, from, n);
        (0..128).all(|stream| connection.write(&fields(2 * stream + 1)));
        kept.push(Box::new(connection));
    }
}

/// Sends requests with the maximum number and length of fields, on all streams.
fn large_heads(gateway: &Gateway, from: From, kept: &mut Kept) {
    let (names, value) = ((0..120).map(|n| format!("x{n}")).collect::<Vec<_>>(), "y".repeat(480));
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    let head = block(&request("GET", "/slow", &many));
    let (first, rest) = head.split_at(16_000);
    let last = rest.chunks(16_000).count() - 1;
    for n in 0..PLACES {
        let mut connection = opened(gateway, from, n);
        (0..128).all(|stream| {
            let id = 2 * stream + 1;
            let mut frames = frame(HEADERS, END_STREAM, id, first);
            for (n, part) in rest.chunks(16_000).enumerate() {
                frames.extend(frame(
                    CONTINUATION,
                    if n == last { END_HEADERS } else { 0 },
                    id,
                    part,
                ));
            }
            connection.write(&frames)
        });
        kept.push(Box::new(connection));
    }
}

/// Sends trailers that nobody reads, since their bodies are not read, and bodies in small frames.
fn trailers_and_small_frames(gateway: &Gateway, from: From, kept: &mut Kept) {
    let value = "y".repeat(100);
    let trailers = block(&vec![("x", value.as_str()); 120]);
    for n in 0..PLACES {
        let mut connection = opened(gateway, from, n);
        (0..100).all(|stream| {
            let id = 2 * stream + 1;
            let open = frame(HEADERS, END_HEADERS, id, &block(&request("POST", "/upload", &[])));
            let small = frame(DATA, 0, id, b"x").repeat(5);
            connection.write(
                &[open, small, frame(HEADERS, END_STREAM | END_HEADERS, id, &trailers)].concat(),
            )
        });
        kept.push(Box::new(connection));
    }
}

/// Uploads to an origin that doesn't read, as far as the windows are open.
fn uploads_by_http2(gateway: &Gateway, from: From, kept: &mut Kept) {
    for n in 0..PLACES {
        let mut connection = opened(gateway, from, n);
        let settings = connection.until(&[SETTINGS]).unwrap().payload;
        let setting = |id: u16| {
            let found = settings.chunks(6).find(|pair| pair[..2] == id.to_be_bytes());
            found.map_or(65_535, |pair| u32::from_be_bytes(pair[2..6].try_into().unwrap()) as usize)
        };
        let opened = connection.until(&[WINDOW_UPDATE]).unwrap().payload;
        let mut left = 65_535 + u32::from_be_bytes(opened.try_into().unwrap()) as usize;
        connection.write(&frame(SETTINGS, ACK, 0, &[]));
        for stream in 0..16 {
            let id = 2 * stream + 1;
            let mut bytes = setting(4).min(left);
            left -= bytes;
            let open = frame(HEADERS, END_HEADERS, id, &block(&request("POST", "/upload", &[])));
            let mut goes_on = connection.write(&open);
            while goes_on && bytes > 0 {
                let length = bytes.min(16_384);
                goes_on = connection.write(&frame(DATA, 0, id, &vec![b'x'; length]));
                bytes -= length;
            }
        }
        kept.push(Box::new(connection));
    }
}

/// Does the same over HTTP/1.1.
fn uploads_by_http1(gateway: &Gateway, from: From, kept: &mut Kept) {
    let mut uploads: Vec<(TcpStream, usize)> = (0..PLACES)
        .map(|n| {
            let mut stream = dial(&from(n), gateway.port);
            let _ = stream.write_all(
                b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n",
            );
            stream.set_nonblocking(true).unwrap();
            (stream, 6 * MIB)
        })
        .collect();
    // Until no connection accepts bytes for a while.
    let mut silent = 0;
    while silent < 20 {
        silent += 1;
        for (stream, left) in &mut uploads {
            while *left > 0 {
                let Ok(written @ 1..) = stream.write(&[b'x'; 1 << 16]) else { break };
                (*left, silent) = (left.saturating_sub(written), 0);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    kept.push(Box::new(uploads));
}

/// Sends heads without an end.
fn unfinished_heads(gateway: &Gateway, from: From, kept: &mut Kept) {
    for n in 0..PLACES {
        let mut stream = dial(&from(n), gateway.port);
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = stream.write_all(
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(60_000)).as_bytes(),
        );
        kept.push(Box::new(stream));
    }
}

/// Requests large answers and doesn't read them.
fn unread_answers_by_http1(gateway: &Gateway, from: From, kept: &mut Kept) {
    for n in 0..PLACES {
        let mut stream = dial(&from(n), gateway.port);
        let _ = stream.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
        kept.push(Box::new(stream));
    }
}

/// Does the same over HTTP/2, with all windows open.
fn unread_answers_by_http2(gateway: &Gateway, from: From, kept: &mut Kept) {
    const ALL: u32 = (1 << 31) - 1;
    for n in 0..20 {
        let mut connection = Frames::over(dial(&from(n), gateway.port), &[(4, ALL)]);
        connection.write(&frame(WINDOW_UPDATE, 0, 0, &(ALL - 65_535).to_be_bytes()));
        for stream in 0..100 {
            connection.headers(2 * stream + 1, END_STREAM, &request("GET", "/large", &[]));
        }
        kept.push(Box::new(connection));
    }
}

/// Requests replays of a megabyte and doesn't read them.
fn unread_replays(gateway: &Gateway, from: From, kept: &mut Kept) {
    let pay = Request::pay("large", "{}").act("large 1000000").bytes();
    for n in 0..PLACES {
        let mut stream = dial(&from(n), gateway.port);
        let _ = stream.write_all(&pay.repeat(5));
        kept.push(Box::new(stream));
    }
}

/// An HTTP/2 connection with a short timeout for writes.
fn opened(gateway: &Gateway, from: From, n: usize) -> Frames {
    let stream = dial(&from(n), gateway.port);
    let connection = Frames::over(stream.try_clone().unwrap(), &[]);
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    connection
}

/// The highest memory use of a process, sampled until this is dropped.
struct Most {
    bytes: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Most {
    fn of(process: u32) -> Most {
        let most = Most { bytes: Arc::default(), over: Arc::default() };
        let (bytes, over) = (most.bytes.clone(), most.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                bytes.fetch_max(resident_bytes(process), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        most
    }
}

impl Drop for Most {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Runs every attack against its own gateway, and calls `meanwhile` while its connections are open.
fn attack(from: From, meanwhile: impl Fn(&str, &Gateway)) {
    let attacks: [(&str, Attack); 9] = [
        ("many fields", many_fields),
        ("large heads", large_heads),
        ("trailers and small frames", trailers_and_small_frames),
        ("uploads by HTTP/2", uploads_by_http2),
        ("uploads by HTTP/1.1", uploads_by_http1),
        ("unfinished heads", unfinished_heads),
        ("unread answers by HTTP/1.1", unread_answers_by_http1),
        ("unread answers by HTTP/2", unread_answers_by_http2),
        ("unread replays", unread_replays),
    ];
    for (name, attack) in attacks {
        let payments = Upstream::start();
        let (hostile, payments_port) = (hostile_origin(), payments.port);
        let settings = format!(
            "[limits]\nbuffered_bytes = \"{}MiB\"\nconnections = {}\nin_flight = {PLACES}\n[upstream]\n\
             response_timeout = \"10s\"\n[upstreams.payments]\nurl = \
             \"http://127.0.0.1:{payments_port}\"\n",
            BUFFERED / MIB,
            PLACES + 1
        );
        let gateway =
            Gateway::with(hostile, &settings, &format!("{ROUTES}upstream = \"payments\"\n"));
        let before = gateway.resident_bytes();
        let most = Most::of(gateway.process());
        let mut kept = Kept::new();
        attack(&gateway, from, &mut kept);
        let mut seen = (0, 0);
        until("memory to grow no more", || {
            let now = most.bytes.load(Ordering::Relaxed);
            seen = if now > seen.0 { (now, 0) } else { (seen.0, seen.1 + 1) };
            seen.1 > 100
        });
        meanwhile(name, &gateway);
        let grown = most.bytes.load(Ordering::Relaxed).saturating_sub(before);
        eprintln!("{name}: {} MiB at first, and {} MiB more", before / MIB, grown / MIB);
        assert!(
            grown < GROWTH_MAX,
            "{name}: memory grew by {} MiB, and may by {}",
            grown / MIB,
            GROWTH_MAX / MIB
        );
        drop(kept);
        // An upload by a client that left is detected when nothing has moved for
        // `response_timeout`.
        until("all room to be given back", || gateway.metric("onceward_buffered_bytes") == 0.0);
    }
}

#[test]
fn one_hostile_address_takes_bounded_memory_and_others_are_served() {
    attack(
        |_| "127.0.0.9".into(),
        |name, gateway| {
            let mut other = Connection::from("127.0.0.1", gateway.port);
            assert_eq!(other.exchange(&Request::pay("other", "{}")).status, 201, "{name}");
        },
    );
}

#[test]
fn many_hostile_addresses_take_bounded_memory() {
    attack(
        |n| format!("127.0.1.{}", 1 + n % 50),
        |name, gateway| assert_eq!(gateway.ask("GET", "/readyz").status, 200, "{name}"),
    );
}

#[test]
fn too_many_fields_are_431_in_http2_as_in_http1_and_the_connection_goes_on() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let mut connection = Frames::open(gateway.port, &[]);
    let fields =
        |name: &'static str, count: usize| request("GET", "/", &vec![(name, "a=b"); count]);
    // 128 fields pass, 129 don't. Each piece of a divided cookie counts as a field.
    for (stream, (fields, passes)) in [
        (fields("x", 128), true),
        (fields("x", 129), false),
        (fields("cookie", 129), false),
        (fields("cookie", 128), true),
        (fields("x", 1700), false),
        (fields("x", 3), true),
    ]
    .into_iter()
    .enumerate()
    {
        let before = upstream.executed();
        let id = 2 * u32::try_from(stream).unwrap() + 1;
        let head = block(&fields);
        connection.write(&frame(HEADERS, END_STREAM, id, &head[..head.len().min(16_000)]));
        connection.write(&frame(CONTINUATION, END_HEADERS, id, &head[head.len().min(16_000)..]));
        let answer = connection.until(&[HEADERS, RST_STREAM]).unwrap();
        assert_eq!(answer.kind, HEADERS);
        assert_eq!(upstream.executed() - before, usize::from(passes), "{} fields", fields.len());
    }
    // Rendered as in HTTP/1.1.
    let streams = crate::harness::Streams::open(gateway.port);
    let many = vec![("x-many", "a"); 129];
    let answer = streams.send(crate::harness::Streams::pay("k", "{}", &many));
    assert_eq!((answer.status, answer.problem().as_str()), (431, "header-too-large"));
    assert_eq!(streams.send(crate::harness::Streams::pay("k", "{}", &[])).status, 201);
}
