//! The upstream: slow and unreliable, with a correct ledger. Each execution is on disk in its
//! ledger before any answer.
//!
//! It does not deduplicate: a request that arrives twice is executed twice, and the ledger shows
//! it. `GET /v1/by-key/KEY` returns the execution of a key.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::dice::Dice;

/// The fate of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Executed, and answered after this number of ms.
    Pay(u64),
    /// Executed with a refusal as the answer: 402.
    Decline,
    /// Executed, and the connection ends without an answer.
    DropAfter,
    /// The connection ends, and nothing is executed.
    DropBefore,
    /// Executed, and a 502 comes back.
    LostAfter,
    /// A 502, and nothing is executed.
    LostBefore,
    /// Executed, and the answer's body breaks off.
    Cut,
    /// 429, and nothing is executed.
    Busy,
    /// 503 with Retry-After, and nothing is executed.
    Away,
}

impl Act {
    /// Longer than the gateways' lease, so that it has to be renewed.
    pub const SLOW_MS: u64 = 2600;
    /// Longer than the gateways wait for an answer.
    pub const LATE_MS: u64 = 5000;

    fn thrown(dice: &mut Dice) -> Act {
        match dice.within(0..100) {
            0..58 => Act::Pay(dice.within(0..30)),
            58..74 => Act::Pay(dice.within(50..400)),
            74..77 => Act::Pay(Act::SLOW_MS),
            77..79 => Act::Pay(Act::LATE_MS),
            79..82 => Act::Decline,
            82..86 => Act::DropAfter,
            86..89 => Act::DropBefore,
            89..92 => Act::LostAfter,
            92..94 => Act::LostBefore,
            94..97 => Act::Cut,
            97..99 => Act::Busy,
            _ => Act::Away,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Act::Pay(ms) if ms >= Act::LATE_MS => "upstream answered too late",
            Act::Pay(ms) if ms >= Act::SLOW_MS => "upstream slower than the lease",
            Act::Pay(_) => "upstream answered",
            Act::Decline => "upstream declined",
            Act::DropAfter => "upstream dropped the answer after executing",
            Act::DropBefore => "upstream dropped the request",
            Act::LostAfter => "upstream answered 502 after executing",
            Act::LostBefore => "upstream answered 502 without executing",
            Act::Cut => "upstream's answer broke off",
            Act::Busy | Act::Away => "upstream answered a release status",
        }
    }

    fn executes(self) -> bool {
        !matches!(self, Act::DropBefore | Act::LostBefore | Act::Busy | Act::Away)
    }
}

/// The upstream's state of a key.
#[derive(Default)]
struct Known {
    arrived: u64,
    /// Executions in progress that are not on disk yet.
    begun: usize,
    /// Its last execution on disk.
    execution: Option<usize>,
}

struct Shared {
    dice: Mutex<Dice>,
    scripted: Mutex<HashMap<String, VecDeque<Act>>>,
    known: Mutex<HashMap<String, Known>>,
    ledger: Mutex<(File, usize)>,
    acts: Mutex<BTreeMap<&'static str, u64>>,
    ended: AtomicBool,
}

/// A running upstream.
pub struct Upstream {
    pub port: u16,
    shared: Arc<Shared>,
    ledger: tempfile::NamedTempFile,
}

impl Upstream {
    pub fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ledger = tempfile::NamedTempFile::new().unwrap();
        let shared = Arc::new(Shared {
            dice: Mutex::new(Dice::new(0)),
            scripted: Mutex::default(),
            known: Mutex::default(),
            ledger: Mutex::new((ledger.reopen().unwrap(), 0)),
            acts: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = accepting.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Upstream { port, shared, ledger }
    }

    /// Uses these dice, with each request's key, for all acts from now on.
    pub fn throw(&self, dice: Dice) {
        *self.shared.dice.lock().unwrap() = dice;
    }

    /// Sets the acts for the next requests of a key.
    pub fn script(&self, key: &str, acts: &[Act]) {
        self.shared.scripted.lock().unwrap().insert(key.to_owned(), acts.iter().copied().collect());
    }

    /// Returns all executions on disk: their numbers by key.
    pub fn ledger(&self) -> HashMap<String, Vec<u64>> {
        let mut executions: HashMap<String, Vec<u64>> = HashMap::new();
        for line in std::fs::read_to_string(self.ledger.path()).unwrap().lines() {
            let (number, key) = line.split_once(' ').unwrap();
            executions.entry(key.to_owned()).or_default().push(number.parse().unwrap());
        }
        executions
    }

    /// Returns the number of times of each act.
    pub fn acts(&self) -> BTreeMap<&'static str, u64> {
        self.shared.acts.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(asked) = IncomingRequest::read(&mut reader) {
            let lives = match (asked.line.strip_prefix("GET /v1/by-key/"), &asked.key) {
                (Some(rest), _) => {
                    self.answer_lookup(rest.split(' ').next().unwrap_or(""), reader.get_mut())
                }
                (None, Some(key)) => self.answer(key, reader.get_mut()),
                (None, None) => false,
            };
            if !lives {
                return;
            }
        }
    }

    /// Answers for a key. While its execution is being written, the answer is unknown.
    fn answer_lookup(&self, key: &str, to: &mut TcpStream) -> bool {
        let known = self.known.lock().unwrap().get(key).map(|known| (known.begun, known.execution));
        match known {
            Some((0, Some(number))) => respond(to, 200, "", &body(number, key)),
            None | Some((0, None)) => respond(to, 404, "", "{}"),
            Some(_) => respond(to, 202, "", "{}"),
        }
    }

    fn answer(&self, key: &str, to: &mut TcpStream) -> bool {
        let act = self.act(key);
        *self.acts.lock().unwrap().entry(act.name()).or_default() += 1;
        let number = if act.executes() { self.execute(key) } else { 0 };
        let fields = format!("X-Execution: {number}\r\n");
        match act {
            Act::Pay(ms) => {
                std::thread::sleep(Duration::from_millis(ms));
                respond(to, 201, &fields, &body(number, key))
            }
            Act::Decline => respond(to, 402, &fields, &body(number, key)),
            Act::DropAfter | Act::DropBefore => false,
            Act::LostAfter | Act::LostBefore => respond(to, 502, &fields, "lost"),
            Act::Busy => respond(to, 429, "", "{}"),
            Act::Away => respond(to, 503, "Retry-After: 1\r\n", "{}"),
            Act::Cut => {
                let body = body(number, key);
                let _ = write!(
                    to,
                    "HTTP/1.1 201 X\r\n{fields}Content-Length: {}\r\n\r\n{body}",
                    body.len() + 10
                );
                false
            }
        }
    }

    fn act(&self, key: &str) -> Act {
        if let Some(act) = self.scripted.lock().unwrap().get_mut(key).and_then(VecDeque::pop_front)
        {
            return act;
        }
        let arrived = {
            let mut known = self.known.lock().unwrap();
            let known = known.entry(key.to_owned()).or_default();
            known.arrived += 1;
            known.arrived
        };
        let dice = self.dice.lock().unwrap().of(key);
        Act::thrown(&mut dice.of(&arrived.to_string()))
    }

    /// Executes: first the execution is visible as begun, then it is written to disk.
    fn execute(&self, key: &str) -> usize {
        self.known.lock().unwrap().entry(key.to_owned()).or_default().begun += 1;
        let number = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.1 += 1;
            let number = ledger.1;
            writeln!(ledger.0, "{number} {key}").unwrap();
            ledger.0.sync_data().unwrap();
            number
        };
        let mut known = self.known.lock().unwrap();
        let known = known.entry(key.to_owned()).or_default();
        known.begun -= 1;
        known.execution = Some(number);
        number
    }
}

/// Returns the body of an execution's answer; each is unique.
fn body(number: usize, key: &str) -> String {
    format!("{{\"payment\":{number},\"key\":\"{key}\"}}")
}

/// Sends an answer with a JSON body. Returns whether the connection still lives.
pub fn respond(to: &mut TcpStream, status: u16, fields: &str, body: &str) -> bool {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{fields}Content-Length: {length}\r\n\r\n"
    );
    to.write_all(&[head.as_bytes(), body.as_bytes()].concat()).is_ok()
}

/// A request as it arrived.
pub struct IncomingRequest {
    pub line: String,
    pub key: Option<String>,
    /// Whether the client wants the service to deduplicate.
    pub dedups: bool,
}

impl IncomingRequest {
    /// Reads the next complete request.
    pub fn read(reader: &mut impl BufRead) -> Option<IncomingRequest> {
        let mut text = || {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            line.strip_suffix("\r\n").map(str::to_owned)
        };
        let (line, mut key, mut length, mut dedups) = (text()?, None, 0, false);
        loop {
            let field = text()?;
            match field.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("idempotency-key") => {
                    key = Some(value.to_owned())
                }
                Some((name, value)) if name.eq_ignore_ascii_case("x-dedup") => {
                    dedups = value == "true";
                }
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().ok()?
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(IncomingRequest { line, key, dedups })
    }
}
