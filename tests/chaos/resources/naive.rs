//! Gateways made by hand, with locks and keys in memory. Each flaw is one that such gateways have;
//! the checker must find it.

use std::collections::{HashMap, HashSet};
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::kinds::{KINDS, Kind, LATEST};
use crate::harness::upstream::read;
use crate::harness::{Answer, ReceivedRequest, Request};
use crate::now;
use crate::sagas::fleet::exchange;

/// The flaw of a handmade gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// None of those below.
    None,
    /// It looks and sends without a lock.
    NoLock,
    /// Its lock is free at the end of a lease that nobody renews.
    LeaseEnds,
    /// Its lock is free as soon as the connection to the upstream breaks.
    FreeInDoubt,
    /// Each spelling of a path has a lock of its own.
    LocksSpellings,
    /// It looks before it waits for the lock.
    LooksFirst,
    /// It forgets the key of a write when it has sent it.
    ForgetsKeys,
    /// It overwrites other versions and does not log it.
    OverwritesSilently,
}

/// The lease of [`Flaw::LeaseEnds`].
const LEASE: Duration = Duration::from_millis(150);
/// How long a lock rests while its write is in doubt.
const REST: Duration = LATEST.saturating_add(Duration::from_millis(200));
/// Longest wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(1500);
/// Longest wait for the upstream.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(4);

/// What is known of a key.
#[derive(Clone)]
enum Known {
    Running,
    Answered(Vec<u8>),
    InDoubt,
}

#[derive(Default)]
struct Memory {
    /// When each lock is free again, and who holds it.
    locks: HashMap<String, (Duration, String)>,
    keys: HashMap<String, Known>,
    overwritten: HashSet<String>,
}

struct Shared {
    flaw: Flaw,
    upstream: u16,
    memory: Mutex<Memory>,
    freed: Condvar,
}

/// A handmade gateway; it ends with its process.
pub struct Naive {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Naive {
    pub fn start(flaw: Flaw, upstream: u16) -> Naive {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (memory, freed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { flaw, upstream, memory, freed });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        Naive { port, shared }
    }

    /// Returns the tags that it logged as overwritten.
    pub fn overwritten(&self) -> HashSet<String> {
        self.shared.memory.lock().unwrap().overwritten.clone()
    }
}

impl Shared {
    /// Serves the single request of a connection.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let request = read(&mut reader)?;
        let mut words = request.line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let path = target.split('?').next()?;
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
        let decoded = decoded.trim_end_matches('/').to_owned();
        let kind = KINDS.iter().find(|kind| decoded.starts_with(&format!("/v1/{}/", kind.name)))?;
        let answer = match method {
            "GET" => match self.forward(&request, "GET", target) {
                Some(answer) => relayed(&answer, kind.tag(&answer.body)),
                None => problem(502, "upstream-unreachable", ""),
            },
            _ => {
                let lock = if self.flaw == Flaw::LocksSpellings { target } else { &decoded };
                self.write_once(&request, (method, target), kind, lock)
            }
        };
        reader.get_mut().write_all(&answer).ok()
    }

    /// Sends the request of a client to the upstream. A GET has neither content nor condition.
    fn forward(&self, request: &ReceivedRequest, method: &str, target: &str) -> Option<Answer> {
        let mut sent = Request::new(method, target);
        for (name, value) in &request.fields {
            let is_own = ["host", "content-length", "if-match", "if-none-match"].contains(&&**name);
            let is_of_content = method == "GET" && name.starts_with("content-");
            if !is_own && !is_of_content {
                sent = sent.field(name, value);
            }
        }
        if method != "GET" {
            sent = sent.field("Content-Length", &request.body.len().to_string());
            sent = sent.body(request.body.clone());
        }
        exchange(self.upstream, &sent, method, UPSTREAM_TIMEOUT)
    }

    /// Runs a write, if its key is new.
    fn write_once(
        &self,
        request: &ReceivedRequest,
        line: (&str, &str),
        kind: &Kind,
        lock: &str,
    ) -> Vec<u8> {
        let Some(key) = request.get("idempotency-key") else {
            return self.write(request, line, kind, lock).0;
        };
        {
            let mut memory = self.memory.lock().unwrap();
            match memory.keys.get(key) {
                Some(Known::Running) => return problem(409, "in-flight", ""),
                Some(Known::Answered(answer)) => return answer.clone(),
                Some(Known::InDoubt) => return problem(409, "outcome-uncertain", ""),
                None => memory.keys.insert(key.to_owned(), Known::Running),
            };
        }
        let (answer, known) = self.write(request, line, kind, lock);
        let mut memory = self.memory.lock().unwrap();
        match known.filter(|_| self.flaw != Flaw::ForgetsKeys) {
            Some(known) => memory.keys.insert(key.to_owned(), known),
            None => memory.keys.remove(key),
        };
        answer
    }

    /// Runs a write. Returns its answer, and what is known of its key from now on.
    fn write(
        &self,
        request: &ReceivedRequest,
        (method, target): (&str, &str),
        kind: &Kind,
        lock: &str,
    ) -> (Vec<u8>, Option<Known>) {
        let mut look = None;
        if self.flaw == Flaw::LooksFirst {
            look = self.forward(request, "GET", target);
        }
        if !self.take(lock, request) {
            return (problem(409, "resource-busy", ""), None);
        }
        let look = look.or_else(|| self.forward(request, "GET", target));
        let compared = self.compare(request, kind, look);
        let answer = match compared {
            Ok(()) => self.forward(request, method, target),
            Err(refusal) => {
                self.free(lock, request, Duration::ZERO);
                return (refusal, None);
            }
        };
        match answer.filter(|answer| answer.status != 503) {
            Some(answer) => {
                self.free(lock, request, Duration::ZERO);
                let bytes = relayed(&answer, None);
                let known = (answer.status != 429).then(|| Known::Answered(bytes.clone()));
                (bytes, known)
            }
            None => {
                let is_free = matches!(self.flaw, Flaw::FreeInDoubt | Flaw::LeaseEnds);
                let rest = if is_free { Duration::ZERO } else { REST };
                self.free(lock, request, rest);
                (problem(502, "outcome-uncertain", ""), Some(Known::InDoubt))
            }
        }
    }

    /// Evaluates the condition of a write. Returns the refusal.
    fn compare(
        &self,
        request: &ReceivedRequest,
        kind: &Kind,
        look: Option<Answer>,
    ) -> Result<(), Vec<u8>> {
        let current = match look {
            Some(look) if look.status == 200 => kind.tag(&look.body),
            Some(look) if look.status == 404 => None,
            _ => return Err(problem(502, "resource-unreadable", "")),
        };
        let failed = |tag: Option<&str>| {
            let field = tag.map(|tag| format!("ETag: {tag}\r\n"));
            Err(problem(412, "precondition-failed", &field.unwrap_or_default()))
        };
        match (request.get("if-match"), current) {
            (None, current) if request.get("if-none-match").is_some() => match current {
                Some(tag) => failed(Some(&tag)),
                None => Ok(()),
            },
            (None, _) => Ok(()),
            (Some(_), None) => failed(None),
            (Some(tags), Some(tag)) => {
                let is_named = tags == "*" || tags.split(", ").any(|named| named == tag);
                if !is_named && !kind.overwrites() {
                    return failed(Some(&tag));
                }
                if !is_named && self.flaw != Flaw::OverwritesSilently {
                    self.memory.lock().unwrap().overwritten.insert(tag);
                }
                Ok(())
            }
        }
    }

    /// Takes a lock, or waits for it.
    fn take(&self, lock: &str, request: &ReceivedRequest) -> bool {
        if self.flaw == Flaw::NoLock {
            return true;
        }
        let lease = if self.flaw == Flaw::LeaseEnds { LEASE } else { Duration::from_secs(3600) };
        let end = now() + LOCK_TIMEOUT;
        let mut memory = self.memory.lock().unwrap();
        loop {
            let until = memory.locks.get(lock).map_or(Duration::ZERO, |(until, _)| *until);
            let time = now();
            if time >= until {
                memory.locks.insert(lock.to_owned(), (time + lease, holder(request)));
                return true;
            }
            if time >= end {
                return false;
            }
            let wait = until.min(end) - time;
            memory = self.freed.wait_timeout(memory, wait).unwrap().0;
        }
    }

    /// Frees a lock after this time, unless another has it by now.
    fn free(&self, lock: &str, request: &ReceivedRequest, rest: Duration) {
        let mut memory = self.memory.lock().unwrap();
        if let Some((until, of)) = memory.locks.get_mut(lock)
            && *of == holder(request)
        {
            *until = now() + rest;
        }
        self.freed.notify_all();
    }
}

/// Returns who holds the lock. A key has one attempt at once.
fn holder(request: &ReceivedRequest) -> String {
    request.get("x-write").unwrap_or_default().to_owned()
}

fn relayed(answer: &Answer, tag: Option<String>) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    if answer.status != 204 {
        head +=
            &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", answer.body.len());
    }
    if let Some(tag) = tag.filter(|_| answer.status == 200) {
        head += &format!("ETag: {tag}\r\n");
    }
    [format!("{head}\r\n").as_bytes(), &answer.body].concat()
}

fn problem(status: u16, name: &str, fields: &str) -> Vec<u8> {
    let retryable = status != 412;
    let body = format!("{{\"type\":\"urn:naive:{name}\",\"retryable\":{retryable}}}");
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/problem+json\r\n{fields}");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
