//! The services: unreliable, each with a correct ledger. An execution is on disk before any answer.
//!
//! `POST /action/STEP/ORDER` executes a step, and `POST /undo/STEP/ORDER/ID` its compensation. With
//! `X-Dedup: true`, the service deduplicates by the key; otherwise a request that arrives twice is
//! executed twice, and the ledger shows it. `GET /probe/KEY` answers from the ledger.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::plan::SERVICES;
use crate::dice::Dice;
use crate::upstream::{IncomingRequest, respond};
use crate::{now, pause};

/// The time of the latest executions after their request, in ms: from there to there. The gateway
/// has given up its attempt, and does not believe an "absent" yet.
const LATE_MS: std::ops::Range<u64> = 1800..2300;
/// Longer than an attempt may take.
const SLOW_MS: u64 = 1900;
/// The time after the last arrival of a request after which it is never executed any more.
pub const LATEST: Duration = Duration::from_millis(3000);

/// The fate of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Executed after this number of ms, and answered.
    Execute(u64),
    /// Executed at once, and answered after this number of ms.
    AnswerLate(u64),
    /// Not executed: the connection ends, and it is executed after this number of ms.
    ExecuteLate(u64),
    /// A definite no.
    Refuse,
    /// 429, and nothing is executed.
    Busy,
    /// 503 with Retry-After, and nothing is executed.
    Away,
    /// The connection ends, and nothing is executed.
    DropBefore,
    /// Executed, and the connection ends without an answer.
    DropAfter,
    /// 502, and nothing is executed.
    LostBefore,
    /// Executed, and a 502 comes back.
    LostAfter,
    /// Executed, and the answer's body breaks off.
    Cut,
}

/// Attempts after which a service behaves, so that each history ends.
const ATTEMPTS_MAX: u64 = 5;

impl Act {
    /// Returns the fate of the n-th request for a step of an order, the first is 1.
    pub fn of(dice: &Dice, matter: &Matter, attempt: u64) -> Act {
        let name = format!("{} {} {}", matter.order, matter.step, matter.is_undo);
        let mut own = dice.of(&name);
        // Some are busy for all attempts of a step.
        if own.percent(3) && attempt <= ATTEMPTS_MAX {
            return Act::Busy;
        }
        if attempt > ATTEMPTS_MAX {
            return Act::Execute(0);
        }
        let mut dice = own.of(&attempt.to_string());
        // Few steps are undone at all.
        if matter.is_undo && dice.percent(8) {
            return Act::Refuse;
        }
        match dice.within(0..100) {
            0..52 => Act::Execute(dice.within(0..40)),
            52..64 => Act::Execute(dice.within(100..600)),
            64..72 => Act::Refuse,
            72..77 => Act::Busy,
            77..80 => Act::Away,
            80..83 => Act::DropBefore,
            83..87 => Act::DropAfter,
            87..89 => Act::LostBefore,
            89..91 => Act::LostAfter,
            91..95 => Act::ExecuteLate(dice.within(LATE_MS)),
            95..98 => Act::AnswerLate(SLOW_MS),
            _ => Act::Cut,
        }
    }
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Matter {
    pub order: String,
    pub step: String,
    pub is_undo: bool,
}

/// What a line of a ledger records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A request was read. An undo names the execution that it undoes.
    Arrived(Option<u64>),
    /// It was executed, with this number, which no other execution of any service has.
    Executed(u64),
    /// An operator did it by hand, with this number.
    ByHand(u64),
    /// A status that leaves no doubt was sent: it was executed, refused, or not executed.
    Answered(u16),
    /// An answer came too late. Only a gateway that was stopped can have waited for it.
    AnsweredLate,
    /// A probe was answered: whether it was executed.
    Probed(bool),
    /// An operator settled it: whether it was executed.
    Settled(bool),
}

/// A line of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: Duration,
    pub kind: Kind,
    pub matter: Matter,
    pub key: String,
}

impl Line {
    fn text(&self) -> String {
        let (word, number) = match self.kind {
            Kind::Arrived(of) => ("arrived", of.unwrap_or(0)),
            Kind::Executed(number) => ("executed", number),
            Kind::ByHand(number) => ("by-hand", number),
            Kind::Answered(status) => ("answered", status.into()),
            Kind::AnsweredLate => ("late", 0),
            Kind::Probed(found) => ("probed", found.into()),
            Kind::Settled(found) => ("settled", found.into()),
        };
        let Matter { order, step, is_undo } = &self.matter;
        let direction = if *is_undo { "undo" } else { "action" };
        let at = self.at.as_nanos();
        format!("{at} {word} {number} {direction} {step} {order} {}\n", self.key)
    }

    fn read(text: &str) -> Line {
        let words: Vec<&str> = text.split(' ').collect();
        let [at, word, number, direction, step, order, key] = words[..] else { panic!("{text:?}") };
        let number: u64 = number.parse().unwrap();
        let kind = match word {
            "arrived" => Kind::Arrived((number > 0).then_some(number)),
            "executed" => Kind::Executed(number),
            "by-hand" => Kind::ByHand(number),
            "answered" => Kind::Answered(number as u16),
            "late" => Kind::AnsweredLate,
            "probed" => Kind::Probed(number == 1),
            "settled" => Kind::Settled(number == 1),
            _ => panic!("{text:?}"),
        };
        let matter =
            Matter { order: order.into(), step: step.into(), is_undo: direction == "undo" };
        Line { at: Duration::from_nanos(at.parse().unwrap()), kind, matter, key: key.into() }
    }
}

/// What a service knows of a key.
#[derive(Debug, Default, Clone)]
struct Known {
    matter: Option<Matter>,
    executed: Option<u64>,
    /// Requests that may still be executed.
    pending: usize,
}

struct Shared {
    dice: Dice,
    known: Mutex<HashMap<String, Known>>,
    arrivals: Mutex<HashMap<Matter, u64>>,
    ledger: Mutex<File>,
    /// The number of crashes. A request of an earlier life is neither executed nor answered.
    crashes: AtomicU64,
    ended: AtomicBool,
}

/// A running service.
pub struct Service {
    pub port: u16,
    shared: Arc<Shared>,
    ledger: tempfile::NamedTempFile,
}

/// The numbers of executions, over all services.
static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

impl Service {
    fn start(dice: Dice) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ledger = tempfile::NamedTempFile::new().unwrap();
        let shared = Arc::new(Shared {
            dice,
            known: Mutex::default(),
            arrivals: Mutex::default(),
            ledger: Mutex::new(ledger.reopen().unwrap()),
            crashes: AtomicU64::new(0),
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
        Service { port, shared, ledger }
    }

    /// Starts the services, with these dice for the fates of all requests.
    pub fn all(dice: &Dice) -> [Service; 3] {
        SERVICES.map(|name| Service::start(dice.of(name)))
    }

    /// Crashes: nothing that is under way is executed or answered any more.
    pub fn crash(&self) {
        self.shared.crashes.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns all lines on disk.
    pub fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(self.ledger.path()).unwrap();
        text.lines().map(Line::read).collect()
    }

    /// Returns the truth about a matter, for an operator: the number of its execution. `None` while
    /// a request may still be executed.
    pub fn truth(&self, matter: &Matter) -> Option<Option<u64>> {
        let known = self.shared.known.lock().unwrap();
        let of_matter = known.values().filter(|known| known.matter.as_ref() == Some(matter));
        let of_matter: Vec<&Known> = of_matter.collect();
        match of_matter.iter().find_map(|known| known.executed) {
            Some(number) => Some(Some(number)),
            None => of_matter.iter().all(|known| known.pending == 0).then_some(None),
        }
    }

    /// Executes a matter by hand.
    pub fn by_hand(&self, matter: &Matter) {
        let number = EXECUTIONS.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.write(Kind::ByHand(number), matter, "-");
    }

    /// Records that an operator settles a matter.
    pub fn settled(&self, matter: &Matter, found: bool) {
        self.shared.write(Kind::Settled(found), matter, "-");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn write(&self, kind: Kind, matter: &Matter, key: &str) {
        let mut ledger = self.ledger.lock().unwrap();
        let line = Line { at: now(), kind, matter: matter.clone(), key: key.to_owned() };
        ledger.write_all(line.text().as_bytes()).unwrap();
        if matches!(kind, Kind::Executed(_) | Kind::ByHand(_)) {
            ledger.sync_data().unwrap();
        }
    }

    fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut reader = BufReader::new(stream);
        while let Some(request) = IncomingRequest::read(&mut reader) {
            let life = self.crashes.load(Ordering::SeqCst);
            let target = request.line.split(' ').nth(1).unwrap_or("").to_owned();
            let words: Vec<&str> = target.split('/').skip(1).collect();
            let lives = match (&words[..], &request.key) {
                (["probe", key], _) => self.probe(key, reader.get_mut()),
                ([direction, step, order, rest @ ..], Some(key)) => {
                    let (step, order) = ((*step).to_owned(), (*order).to_owned());
                    let matter = Matter { order, step, is_undo: *direction == "undo" };
                    let of = rest.first().and_then(|id| id.parse().ok());
                    self.write(Kind::Arrived(of), &matter, key);
                    let visit = Visit { matter, key, life };
                    self.answer(&visit, request.dedups, reader.get_mut())
                }
                _ => false,
            };
            if !lives {
                return;
            }
        }
    }

    fn probe(&self, key: &str, to: &mut TcpStream) -> bool {
        let known = self.known.lock().unwrap();
        let of_key = known.get(key).cloned().unwrap_or_default();
        // Under the lock, so that no execution comes between the look and its line.
        if let Some(matter) = &of_key.matter {
            self.write(Kind::Probed(of_key.executed.is_some()), matter, key);
        }
        drop(known);
        match of_key.executed {
            Some(number) => respond(to, 200, "", &body(number)),
            None => respond(to, 404, "", "{}"),
        }
    }

    fn answer(&self, visit: &Visit<'_>, dedups: bool, to: &mut TcpStream) -> bool {
        {
            let mut known = self.known.lock().unwrap();
            known.entry(visit.key.to_owned()).or_default().matter = Some(visit.matter.clone());
        }
        if !dedups {
            return self.act(visit, to);
        }
        if let Some(number) = self.earlier(visit) {
            return self.respond(visit, 201, &body(number), to);
        }
        let lives = self.act(visit, to);
        if let Some(known) = self.known.lock().unwrap().get_mut(visit.key) {
            known.pending -= 1;
        }
        lives
    }

    fn act(&self, visit: &Visit<'_>, to: &mut TcpStream) -> bool {
        let attempt = {
            let mut arrivals = self.arrivals.lock().unwrap();
            let attempt = arrivals.entry(visit.matter.clone()).or_default();
            *attempt += 1;
            *attempt
        };
        match Act::of(&self.dice, &visit.matter, attempt) {
            Act::Execute(ms) => match self.execute(visit, ms) {
                Some(number) => self.respond(visit, 201, &body(number), to),
                None => false,
            },
            Act::AnswerLate(ms) => match self.execute(visit, 0) {
                Some(number) => {
                    pause(ms);
                    self.write(Kind::AnsweredLate, &visit.matter, visit.key);
                    respond(to, 201, "", &body(number))
                }
                None => false,
            },
            Act::ExecuteLate(ms) => {
                self.execute(visit, ms);
                false
            }
            Act::Refuse => self.respond(visit, 422, "{}", to),
            Act::Busy => self.respond(visit, 429, "{}", to),
            Act::Away => self.respond(visit, 503, "{}", to),
            Act::DropBefore => false,
            Act::DropAfter => {
                self.execute(visit, 0);
                false
            }
            Act::LostBefore => respond(to, 502, "", "lost"),
            Act::LostAfter => {
                self.execute(visit, 0);
                respond(to, 502, "", "lost")
            }
            Act::Cut => {
                if let Some(number) = self.execute(visit, 0) {
                    let body = body(number);
                    let head =
                        format!("HTTP/1.1 201 X\r\nContent-Length: {}\r\n\r\n", body.len() + 10);
                    let _ = to.write_all(&[head.as_bytes(), body.as_bytes()].concat());
                }
                false
            }
        }
    }

    /// Returns the execution of a key, as soon as no other request can execute it any more. Without
    /// an execution, the visit is pending from now on.
    fn earlier(&self, visit: &Visit<'_>) -> Option<u64> {
        loop {
            {
                let mut known = self.known.lock().unwrap();
                let of_key = known.get_mut(visit.key)?;
                if of_key.executed.is_none() && of_key.pending == 0 {
                    of_key.pending += 1;
                    return None;
                }
                if of_key.executed.is_some() {
                    return of_key.executed;
                }
            }
            pause(10);
        }
    }

    /// Executes after this number of ms. Returns the number; `None` if the service crashed before,
    /// or crashed before it could answer.
    fn execute(&self, visit: &Visit<'_>, after_ms: u64) -> Option<u64> {
        let has_crashed = || self.crashes.load(Ordering::SeqCst) != visit.life;
        self.known.lock().unwrap().get_mut(visit.key)?.pending += 1;
        pause(after_ms);
        let mut known = self.known.lock().unwrap();
        let of_key = known.get_mut(visit.key)?;
        of_key.pending -= 1;
        if has_crashed() {
            return None;
        }
        let number = EXECUTIONS.fetch_add(1, Ordering::SeqCst) + 1;
        self.write(Kind::Executed(number), &visit.matter, visit.key);
        of_key.executed = Some(number);
        drop(known);
        (!has_crashed()).then_some(number)
    }

    /// Sends an answer that leaves no doubt.
    fn respond(&self, visit: &Visit<'_>, status: u16, body: &str, to: &mut TcpStream) -> bool {
        if self.crashes.load(Ordering::SeqCst) != visit.life {
            return false;
        }
        self.write(Kind::Answered(status), &visit.matter, visit.key);
        let fields = if status == 503 { "Retry-After: 1\r\n" } else { "" };
        respond(to, status, fields, body)
    }
}

/// One request.
struct Visit<'v> {
    matter: Matter,
    key: &'v str,
    /// The life of the service in which it arrived.
    life: u64,
}

/// Returns the body of an execution's answer.
pub fn body(number: u64) -> String {
    format!("{{\"id\":{number}}}")
}
