//! An upstream that runs the script in a request's `X-Act` field, and counts the requests that it
//! executed.
//!
//! Steps of a script, in order: `wait MS`, `hold` (until released), `status CODE`, `field
//! NAME=VALUE`, `type TEXT` (the content type), `body TEXT`, `hex DIGITS` (a body of any bytes),
//! `large BYTES`. The last step may be `drop` (close without an answer), `cut` (close in the middle
//! of the body), `rubbish` (an answer that is not HTTP), `events` (an event stream), `to_close` (an
//! answer without a length that ends with its connection; with TLS after a close_notify), `torn`
//! (the same without close_notify) or `chunked TEXT` (these bytes as the body of a chunked answer,
//! `|` for the end of a line). Without a script it answers 201 with a unique body.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::until;

/// A received request.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    pub line: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Returns the values of all lines of a field.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file look at all lines"
    )]
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<ReceivedRequest>>,
    answers: AtomicU64,
    connections: AtomicU64,
    /// Its TLS identity; without one it serves plain HTTP.
    identity: Mutex<Option<Arc<ServerConfig>>>,
    /// The scripts of requests without their own script, by the beginning of the request line.
    lines: Mutex<HashMap<String, String>>,
    /// The script of a GET without its own script.
    questions: Mutex<String>,
    /// The script of any other request without its own script.
    others: Mutex<String>,
    released: Mutex<bool>,
    release: Condvar,
    ended: AtomicBool,
}

/// A scripted upstream.
pub struct Upstream {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Upstream {
    pub fn start() -> Upstream {
        Upstream::listen(None)
    }

    /// Starts an upstream behind TLS.
    pub fn with_tls(identity: Arc<ServerConfig>) -> Upstream {
        Upstream::listen(Some(identity))
    }

    fn listen(identity: Option<Arc<ServerConfig>>) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { identity: Mutex::new(identity), ..Shared::default() });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let shared = accepting.clone();
                let identity = shared.identity.lock().unwrap().clone();
                std::thread::spawn(move || match identity {
                    None => serve(&shared, stream),
                    Some(identity) => serve(
                        &shared,
                        StreamOwned::new(ServerConnection::new(identity).unwrap(), stream),
                    ),
                });
            }
        });
        Upstream { port, shared }
    }

    /// Presents another certificate on new connections.
    pub fn identify_as(&self, identity: Arc<ServerConfig>) {
        *self.shared.identity.lock().unwrap() = Some(identity);
    }

    /// Returns the number of executed requests.
    pub fn executed(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    /// Sets the script with which each GET is answered from now on.
    pub fn answer_questions(&self, script: &str) {
        *self.shared.questions.lock().unwrap() = script.to_owned();
    }

    /// Sets the script with which each request but GET is answered from now on, unless it has its
    /// own.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file answer events"
    )]
    pub fn answer_others(&self, script: &str) {
        *self.shared.others.lock().unwrap() = script.to_owned();
    }

    /// Sets the script with which each request is answered from now on if its line begins with this
    /// text, such as `POST /v1/charges`, and it has no script of its own.
    #[allow(dead_code, reason = "only some of the test binaries that share this file do that")]
    pub fn answer_line(&self, line: &str, script: &str) {
        self.shared.lines.lock().unwrap().insert(line.to_owned(), script.to_owned());
    }

    /// Returns the number of payments and of questions (GETs) that have arrived.
    pub fn payments_and_questions(&self) -> (usize, usize) {
        let seen = self.seen();
        let questions = seen.iter().filter(|seen| seen.line.starts_with("GET ")).count();
        (seen.len() - questions, questions)
    }

    /// Returns the number of executions of each key.
    pub fn by_key(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for seen in self.seen() {
            *counts.entry(seen.get("idempotency-key").unwrap_or("-").to_owned()).or_default() += 1;
        }
        counts
    }

    pub fn seen(&self) -> Vec<ReceivedRequest> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Waits until this many requests have arrived.
    #[track_caller]
    pub fn reached(&self, executed: usize) {
        until(&format!("{executed} executions"), || self.executed() >= executed);
    }

    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Releases all requests with `hold`.
    pub fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.release.notify_all();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.release();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A connection that can be closed gracefully.
trait Close: Read + Write {
    fn close_gracefully(&mut self) {}
}

impl Close for TcpStream {}

impl Close for StreamOwned<ServerConnection, TcpStream> {
    fn close_gracefully(&mut self) {
        self.conn.send_close_notify();
        let _ = self.flush();
    }
}

fn serve(shared: &Shared, stream: impl Close) {
    let mut reader = BufReader::new(stream);
    while let Some(seen) = read(&mut reader) {
        let by_default = || {
            let lines = shared.lines.lock().unwrap();
            let script = lines.iter().find(|(line, _)| seen.line.starts_with(line.as_str()));
            if let Some((_, script)) = script {
                script.clone()
            } else if seen.line.starts_with("GET ") {
                shared.questions.lock().unwrap().clone()
            } else {
                shared.others.lock().unwrap().clone()
            }
        };
        let script = seen.get("x-act").map_or_else(by_default, str::to_owned);
        let head = seen.line.starts_with("HEAD ");
        shared.seen.lock().unwrap().push(seen);
        if !answer(shared, reader.get_mut(), &script, head) {
            return;
        }
    }
}

pub fn read(reader: &mut impl BufRead) -> Option<ReceivedRequest> {
    let mut text = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0).map(|_| line.trim_end().to_owned())
    };
    let line = text()?;
    let mut fields = vec![];
    loop {
        let line = text()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut seen = ReceivedRequest { line, fields, body: vec![] };
    if seen.get("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                return Some(seen);
            }
            seen.body.extend_from_slice(&chunk[..size]);
        }
    }
    seen.body = vec![0; seen.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut seen.body).ok()?;
    Some(seen)
}

/// Runs a step that ends the connection. `head` is the status and the fields.
fn end_early(writer: &mut impl Close, (verb, rest): (&str, &str), head: &str, body: &[u8], n: u64) {
    match verb {
        "to_close" | "torn" => {
            let _ = write!(writer, "HTTP/1.{} {head}\r\n", u8::from(verb == "to_close"));
            let _ = writer.write_all(body).and_then(|()| writer.flush());
            if verb == "to_close" {
                writer.close_gracefully();
            }
        }
        "chunked" => {
            let chunks = rest.replace('|', "\r\n");
            let _ = write!(writer, "HTTP/1.1 {head}Transfer-Encoding: chunked\r\n\r\n{chunks}");
            let _ = writer.flush();
        }
        "drop" => {}
        "rubbish" => {
            let _ = writer.write_all(b"\0\x01 this is no HTTP\r\n\r\n");
        }
        "cut" => {
            let _ = write!(writer, "HTTP/1.1 {head}Content-Length: {}\r\n\r\n", body.len() + 10);
            let _ = writer.write_all(body);
        }
        "events" => {
            let _ = write!(
                writer,
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {n}\n\n"
            );
        }
        other => panic!("unknown step {other}"),
    }
}

/// Runs a script; returns `false` if the connection ends with it.
fn answer(shared: &Shared, writer: &mut impl Close, script: &str, head: bool) -> bool {
    let n = shared.answers.fetch_add(1, Ordering::SeqCst);
    let (mut status, mut fields) = (201, String::from("Content-Type: application/json\r\n"));
    let mut body = format!("{{\"payment\":{n}}}").into_bytes();
    for step in script.split(',').map(str::trim).filter(|step| !step.is_empty()) {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        match verb {
            "wait" => std::thread::sleep(Duration::from_millis(rest.parse().unwrap())),
            "hold" => {
                let mut released = shared.released.lock().unwrap();
                while !*released {
                    released = shared.release.wait(released).unwrap();
                }
            }
            "status" => status = rest.parse().unwrap(),
            "field" => {
                let (name, value) = rest.split_once('=').unwrap();
                fields.push_str(&format!("{name}: {value}\r\n"));
            }
            "body" => body = rest.as_bytes().to_vec(),
            "hex" => {
                body = rest
                    .as_bytes()
                    .chunks(2)
                    .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                    .collect()
            }
            "large" => body = vec![b'x'; rest.parse().unwrap()],
            "type" => fields = format!("Content-Type: {rest}\r\n"),
            _ => {
                let head = format!("{status} X\r\n{fields}");
                end_early(writer, (verb, rest), &head, &body, n);
                return false;
            }
        }
    }
    let length = if matches!(status, 204 | 304) {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    let mut out = format!("HTTP/1.1 {status} X\r\n{fields}{length}\r\n").into_bytes();
    if !head && !matches!(status, 204 | 304) {
        out.extend_from_slice(&body);
    }
    writer.write_all(&out).and_then(|()| writer.flush()).is_ok()
}
