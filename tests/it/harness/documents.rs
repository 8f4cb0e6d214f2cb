//! An upstream with JSON documents, without versions or tags of its own. It keeps a ledger of the
//! writes that it executed.
//!
//! A write is executed as its `X-Fault` field states: `drop` (not executed, closed without an
//! answer), `lose` (executed, closed without an answer), `late MS` (closed without an answer, and
//! executed after this time), `slow MS` (executed after this time), `status CODE` (not executed),
//! `hold` (executed when released). A read is answered as its `X-Read-Fault` field states: `hold`,
//! `status CODE`, `slow MS` or `drop`. `Prefer: return=representation` is applied, and
//! `X-Locate: yes` adds a `Content-Location`. `X-Vary: yes` adds a member to a read document that
//! differs in each read. A write with `X-Dedup: yes` is executed once for its `X-Write` field.
//! `GET /by-write/ID` answers 200 if the write with this `X-Write` was executed.

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::upstream::{ReceivedRequest, read};

/// A write that the upstream has executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Execution {
    pub path: String,
    /// The document that it replaced.
    pub before: Option<Value>,
    /// The document that it wrote; `None` if it deleted the document.
    pub after: Option<Value>,
    /// The `X-Write` field of the request.
    pub write: String,
}

#[derive(Default)]
struct State {
    documents: HashMap<String, Value>,
    ledger: Vec<Execution>,
    seen: Vec<ReceivedRequest>,
    held: usize,
    is_released: bool,
    under_way: UnderWay,
    reads: u64,
}

/// Requests of writers that have arrived, and were not answered yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnderWay {
    /// Reads with an `X-Write` field.
    pub looks: usize,
    pub writes: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// An upstream with documents. Cheap to clone.
#[derive(Clone)]
pub struct Documents {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Documents {
    pub fn start() -> Documents {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = accepting.clone();
                std::thread::spawn(move || serve(&shared, stream));
            }
        });
        Documents { port, shared }
    }

    /// Writes a document, as somebody who does not pass the gateway.
    pub fn put(&self, path: &str, document: Value) {
        self.shared.state.lock().unwrap().documents.insert(path.to_owned(), document);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.shared.state.lock().unwrap().documents.get(path).cloned()
    }

    /// Returns the executed writes, in order.
    pub fn ledger(&self) -> Vec<Execution> {
        self.shared.state.lock().unwrap().ledger.clone()
    }

    /// Returns the received requests, in order.
    pub fn seen(&self) -> Vec<ReceivedRequest> {
        self.shared.state.lock().unwrap().seen.clone()
    }

    /// Returns how many requests are held now.
    pub fn held(&self) -> usize {
        self.shared.state.lock().unwrap().held
    }

    /// Returns the number of requests of writers that are not answered yet.
    #[allow(dead_code, reason = "only some of the test binaries that share this file look at that")]
    pub fn under_way(&self) -> UnderWay {
        self.shared.state.lock().unwrap().under_way
    }

    /// Lets all held requests go on, also those that are to come.
    pub fn release(&self) {
        self.shared.state.lock().unwrap().is_released = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn hold(&self) {
        let mut state = self.state.lock().unwrap();
        state.held += 1;
        while !state.is_released {
            state = self.changed.wait(state).unwrap();
        }
        state.held -= 1;
    }

    /// Returns whether the upstream deduplicates this write, and has received an earlier try of it.
    fn is_known(&self, request: &ReceivedRequest) -> bool {
        let same = |seen: &&ReceivedRequest| {
            !seen.line.starts_with("GET ") && seen.get("x-write") == request.get("x-write")
        };
        request.get("x-dedup").is_some()
            && self.state.lock().unwrap().seen.iter().filter(same).count() > 1
    }

    /// Executes a write. Returns the document that it wrote.
    fn execute(&self, request: &ReceivedRequest) -> Option<Value> {
        let (method, path) = target(request);
        let write = request.get("x-write").unwrap_or_default().to_owned();
        let mut state = self.state.lock().unwrap();
        if request.get("x-dedup").is_some()
            && let Some(done) = state.ledger.iter().find(|done| done.write == write)
        {
            return done.after.clone();
        }
        let before = state.documents.get(&path).cloned();
        let sent: Option<Value> = serde_json::from_slice(&request.body).ok();
        let after = match method.as_str() {
            "DELETE" => None,
            "PATCH" => Some(patched(before.clone().unwrap_or(json!({})), sent.unwrap())),
            _ => sent,
        };
        match &after {
            Some(document) => state.documents.insert(path.clone(), document.clone()),
            None => state.documents.remove(&path),
        };
        state.ledger.push(Execution { path, before, after: after.clone(), write });
        after
    }
}

/// Applies a merge patch (RFC 7396).
pub fn patched(document: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    let mut object = match document {
        Value::Object(object) => object,
        _ => serde_json::Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            object.remove(&name);
        } else {
            let member = object.remove(&name).unwrap_or(Value::Null);
            object.insert(name, patched(member, value));
        }
    }
    Value::Object(object)
}

/// Returns the method and the path, in one spelling.
fn target(request: &ReceivedRequest) -> (String, String) {
    let mut words = request.line.split(' ');
    let method = words.next().unwrap().to_owned();
    let path = words.next().unwrap().split('?').next().unwrap();
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    (method, path.trim_end_matches('/').to_owned())
}

fn serve(shared: &Shared, stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        shared.state.lock().unwrap().seen.push(request.clone());
        let (method, _) = target(&request);
        let is_read = method == "GET";
        let count = |change: fn(usize) -> usize| {
            let under_way = &mut shared.state.lock().unwrap().under_way;
            if !is_read {
                under_way.writes = change(under_way.writes);
            } else if request.get("x-write").is_some() {
                under_way.looks = change(under_way.looks);
            }
        };
        count(|count| count + 1);
        let answered = match is_read {
            true => answer_read(shared, &request, reader.get_mut()),
            false => answer_write(shared, &request, reader.get_mut()),
        };
        count(|count| count - 1);
        if !answered {
            return;
        }
    }
}

fn answer_read(shared: &Shared, request: &ReceivedRequest, stream: &mut TcpStream) -> bool {
    let fault = request.get("x-read-fault").unwrap_or_default();
    let (verb, rest) = fault.split_once(' ').unwrap_or((fault, ""));
    match verb {
        "hold" => shared.hold(),
        "status" => return respond(stream, rest, "", br#"{"read":"refused"}"#),
        "drop" => return false,
        "slow" => std::thread::sleep(Duration::from_millis(rest.parse().unwrap())),
        _ => {}
    }
    let (_, path) = target(request);
    let document = {
        let mut state = shared.state.lock().unwrap();
        state.reads += 1;
        let mut document = match path.strip_prefix("/by-write/") {
            Some(write) => {
                let is_executed = state.ledger.iter().any(|done| done.write == write);
                is_executed.then(|| json!({ "write": write }))
            }
            None => state.documents.get(&path).cloned(),
        };
        if let Some(Value::Object(document)) = &mut document
            && request.get("x-vary").is_some()
        {
            document.insert("reads".into(), json!(state.reads));
        }
        document
    };
    match document {
        Some(document) => respond(stream, "200", "", document.to_string().as_bytes()),
        None => respond(stream, "404", "", br#"{"error":"there is none"}"#),
    }
}

fn answer_write(shared: &Shared, request: &ReceivedRequest, stream: &mut TcpStream) -> bool {
    let fault = request.get("x-fault").unwrap_or_default();
    let (verb, rest) = fault.split_once(' ').unwrap_or((fault, ""));
    let pause = || std::thread::sleep(Duration::from_millis(rest.parse().unwrap()));
    match verb {
        "drop" => return false,
        // An upstream that deduplicates gives a later try no other answer.
        "status" if !shared.is_known(request) => {
            return respond(stream, rest, "", br#"{"write":"refused"}"#);
        }
        "slow" => pause(),
        "hold" => shared.hold(),
        "late" => {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            pause();
        }
        _ => {}
    }
    let written = shared.execute(request);
    if matches!(verb, "lose" | "late") {
        return false;
    }
    let mut fields = String::from("ETag: W/\"own\"\r\n");
    if request.get("prefer") == Some("return=representation") {
        fields.push_str("Preference-Applied: return=representation\r\n");
    }
    if request.get("x-locate").is_some() {
        fields.push_str(&format!("Content-Location: {}\r\n", target(request).1));
    }
    match written {
        Some(document) => respond(stream, "200", &fields, document.to_string().as_bytes()),
        None => respond(stream, "204", &fields, b""),
    }
}

/// Writes a response; returns whether the connection goes on.
fn respond(stream: &mut TcpStream, status: &str, fields: &str, body: &[u8]) -> bool {
    let length = match status {
        "204" => String::new(),
        _ => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
    };
    let head = format!("HTTP/1.1 {status} X\r\n{fields}{length}\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).is_ok()
}
