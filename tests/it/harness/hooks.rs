//! A receiver of webhooks, which records what it gets.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{ReceivedRequest, until};

/// One attempt, as the receiver got it.
#[derive(Debug, Clone)]
pub struct Hook {
    pub request: ReceivedRequest,
    /// The status that it was answered with.
    pub status: u16,
}

impl Hook {
    /// Returns the event's id.
    pub fn id(&self) -> &str {
        self.request.get("webhook-id").unwrap()
    }

    /// Returns the event.
    pub fn event(&self) -> serde_json::Value {
        serde_json::from_slice(&self.request.body).unwrap()
    }

    /// Returns a text member of the event.
    pub fn text(&self, name: &str) -> String {
        self.event()[name].as_str().unwrap().to_owned()
    }
}

/// Decides the status of an attempt. It gets the event, and the number of earlier attempts.
type Decide = dyn Fn(&serde_json::Value, usize) -> u16 + Send + Sync;

struct Shared {
    hooks: Mutex<Vec<Hook>>,
    tries: Mutex<BTreeMap<String, usize>>,
    decide: Mutex<Arc<Decide>>,
    ended: AtomicBool,
}

/// A receiver of webhooks; stops when dropped.
pub struct Hooks {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Hooks {
    /// Starts a receiver that takes everything.
    pub fn start() -> Hooks {
        Hooks::deciding(|_, _| 200)
    }

    /// Starts a receiver that answers with these statuses.
    pub fn deciding(
        decide: impl Fn(&serde_json::Value, usize) -> u16 + Send + Sync + 'static,
    ) -> Hooks {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            hooks: Mutex::default(),
            tries: Mutex::default(),
            decide: Mutex::new(Arc::new(decide)),
            ended: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = accepting.clone();
                std::thread::spawn(move || serve(&shared, stream));
            }
        });
        Hooks { port, shared }
    }

    /// Changes the answers.
    pub fn decide(
        &self,
        decide: impl Fn(&serde_json::Value, usize) -> u16 + Send + Sync + 'static,
    ) {
        *self.shared.decide.lock().unwrap() = Arc::new(decide);
    }

    /// Returns the number of attempts that began, also those without an answer.
    pub fn begun(&self) -> usize {
        self.shared.tries.lock().unwrap().values().sum()
    }

    /// Returns all answered attempts, in order.
    pub fn attempts(&self) -> Vec<Hook> {
        self.shared.hooks.lock().unwrap().clone()
    }

    /// Returns the attempts that were answered with 200.
    pub fn delivered(&self) -> Vec<Hook> {
        self.attempts().into_iter().filter(|hook| hook.status == 200).collect()
    }

    /// Waits until this many different events were delivered. Returns all deliveries.
    #[track_caller]
    pub fn wait_for(&self, events: usize) -> Vec<Hook> {
        let count = || {
            let hooks = self.shared.hooks.lock().unwrap();
            let delivered = hooks.iter().filter(|hook| hook.status == 200);
            delivered.map(Hook::id).collect::<std::collections::BTreeSet<_>>().len()
        };
        until(&format!("{events} delivered events"), || count() >= events);
        self.delivered()
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(shared: &Shared, stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        let event: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let id = event["id"].as_str().unwrap().to_owned();
        let before = {
            let mut tries = shared.tries.lock().unwrap();
            let tries = tries.entry(id).or_default();
            *tries += 1;
            *tries - 1
        };
        let decide = shared.decide.lock().unwrap().clone();
        let status = decide(&event, before);
        shared.hooks.lock().unwrap().push(Hook { request, status });
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<ReceivedRequest> {
    let mut next_line = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let line = next_line()?;
    let mut fields = Vec::new();
    loop {
        let line = next_line()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ")?;
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut request = ReceivedRequest { line, fields, body: Vec::new() };
    let length = request.get("content-length").map_or(0, |length| length.parse().unwrap());
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}
