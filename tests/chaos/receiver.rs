//! A receiver of webhooks that counts: it refuses, hangs and breaks off at random, and records
//! every attempt.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::deliveries::Attempt;
use crate::dice::Dice;
use crate::now;

/// The gateways' timeout of an attempt.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// The fate of an attempt.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Taken, and answered after this number of ms.
    Takes(u64),
    /// 500.
    Refuses,
    /// 429 with Retry-After.
    Defers,
    /// Taken, and the connection ends without an answer.
    TakesAndBreaks,
    /// The connection ends.
    Breaks,
    /// Taken, and answered after the timeout.
    TakesAndHangs,
    /// Answered after the timeout with a refusal.
    Hangs,
}

impl Fate {
    fn thrown(dice: &mut Dice) -> Fate {
        match dice.within(0..100) {
            0..64 => Fate::Takes(dice.within(0..10)),
            64..70 => Fate::Takes(dice.within(10..400)),
            70..80 => Fate::Refuses,
            80..83 => Fate::Defers,
            83..89 => Fate::TakesAndBreaks,
            89..94 => Fate::Breaks,
            94..97 => Fate::TakesAndHangs,
            _ => Fate::Hangs,
        }
    }

    fn takes(self) -> bool {
        matches!(self, Fate::Takes(_) | Fate::TakesAndBreaks | Fate::TakesAndHangs)
    }

    fn name(self) -> &'static str {
        match self {
            Fate::Takes(_) => "receiver took an event",
            Fate::Refuses | Fate::Defers => "receiver refused an event",
            Fate::TakesAndBreaks => "receiver took an event and broke off",
            Fate::Breaks => "receiver broke off",
            Fate::TakesAndHangs => "receiver took an event and hung",
            Fate::Hangs => "receiver hung",
        }
    }
}

struct Shared {
    dice: Mutex<Dice>,
    attempts: Mutex<Vec<Attempt>>,
    tries: Mutex<BTreeMap<String, u64>>,
    fates: Mutex<BTreeMap<&'static str, u64>>,
    is_calm: AtomicBool,
    ended: AtomicBool,
}

/// A running receiver. The path of a webhook names its sink.
pub struct Receiver {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Receiver {
    pub fn start(dice: Dice) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            dice: Mutex::new(dice),
            attempts: Mutex::default(),
            tries: Mutex::default(),
            fates: Mutex::default(),
            is_calm: AtomicBool::new(false),
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
        Receiver { port, shared }
    }

    /// Takes every event from now on, or not.
    pub fn set_calm(&self, is_calm: bool) {
        self.shared.is_calm.store(is_calm, Ordering::SeqCst);
    }

    /// Returns all attempts, in the order in which they arrived.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.shared.attempts.lock().unwrap().clone()
    }

    /// Returns the number of times of each fate.
    pub fn fates(&self) -> BTreeMap<&'static str, u64> {
        self.shared.fates.lock().unwrap().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some((sink, id, body)) = read(&mut reader) {
            let fate = self.fate(&sink, &id);
            *self.fates.lock().unwrap().entry(fate.name()).or_default() += 1;
            let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let attempt = Attempt::of(&sink, &id, &event, body, now(), fate.takes());
            let number = {
                let mut attempts = self.attempts.lock().unwrap();
                attempts.push(attempt);
                attempts.len() - 1
            };
            let answered = match fate {
                Fate::Takes(ms) => {
                    std::thread::sleep(Duration::from_millis(ms));
                    "200 X\r\n"
                }
                Fate::Refuses => "500 X\r\n",
                Fate::Defers => "429 X\r\nRetry-After: 1\r\n",
                Fate::TakesAndBreaks | Fate::Breaks => return,
                Fate::TakesAndHangs | Fate::Hangs => return std::thread::sleep(TIMEOUT * 3 / 2),
            };
            self.attempts.lock().unwrap()[number].answered = Some(now());
            let answer = format!("HTTP/1.1 {answered}Content-Length: 2\r\n\r\nok");
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn fate(&self, sink: &str, id: &str) -> Fate {
        let name = format!("{sink} {id}");
        let tries = {
            let mut tries = self.tries.lock().unwrap();
            let tries = tries.entry(name.clone()).or_default();
            *tries += 1;
            *tries
        };
        if self.is_calm.load(Ordering::SeqCst) {
            return Fate::Takes(0);
        }
        Fate::thrown(&mut self.dice.lock().unwrap().of(&format!("{name} {tries}")))
    }
}

/// Reads the next complete webhook: its sink, its id and its body.
fn read(reader: &mut BufReader<TcpStream>) -> Option<(String, String, Vec<u8>)> {
    let mut next_line = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let line = next_line()?;
    let sink = line.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let (mut id, mut length) = (String::new(), 0);
    loop {
        let line = next_line()?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("webhook-id") => {
                id = value.to_owned();
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((sink, id, body))
}
