//! Clients that pay: each has a key and a body, and sends them until it has an answer.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use crate::checker::{FinalAnswer, Saw, Try};
use crate::dice::Dice;
use crate::harness::{Answer, Connection, Request};
use crate::{GATEWAYS, now, pause};

/// Longest wait for an answer of a client that does not intend to leave.
const PATIENCE: Duration = Duration::from_secs(10);

/// The gateways' addresses, and the clients' results.
pub struct Street {
    pub ports: [AtomicU16; GATEWAYS],
    /// Active requests at each gateway.
    pub under_way: [AtomicUsize; GATEWAYS],
    /// Clients that left after a complete request, and in the middle of one.
    pub left: [AtomicUsize; 2],
    pub tries: Mutex<Vec<Try>>,
}

impl Street {
    pub fn new(ports: [u16; GATEWAYS]) -> Street {
        Street {
            ports: ports.map(AtomicU16::new),
            under_way: Default::default(),
            left: Default::default(),
            tries: Mutex::default(),
        }
    }

    /// Pays with a key until there is an answer, or the time is over. `key` names the history.
    pub fn pay(&self, key: usize, name: &str, dice: &mut Dice, until: impl Fn() -> Duration) {
        while now() < until() {
            match self.once(key, name, dice) {
                Saw::Final { .. } | Saw::Refused(_) => return,
                Saw::Again(_) | Saw::Uncertain | Saw::Broken | Saw::Left => {
                    pause(dice.within(50..500))
                }
            }
        }
    }

    /// Tries once, at either gateway; some clients leave.
    fn once(&self, key: usize, name: &str, dice: &mut Dice) -> Saw {
        let leaves = dice.percent(12).then(|| Duration::from_millis(dice.within(1..250)));
        let cut = dice.percent(3).then(|| dice.next() as usize);
        self.try_at(dice.gateway(), key, name, leaves, cut)
    }

    /// Tries once at this gateway, and records the result. `leaves` is how long the client waits;
    /// `cut` is where it leaves in mid-request.
    pub fn try_at(
        &self,
        gateway: usize,
        key: usize,
        name: &str,
        leaves: Option<Duration>,
        cut: Option<usize>,
    ) -> Saw {
        let from = now();
        self.under_way[gateway].fetch_add(1, Ordering::SeqCst);
        let saw = self.exchange(self.ports[gateway].load(Ordering::SeqCst), name, leaves, cut);
        self.under_way[gateway].fetch_sub(1, Ordering::SeqCst);
        self.tries.lock().unwrap().push(Try { key, gateway, from, to: now(), saw: saw.clone() });
        saw
    }

    fn exchange(&self, port: u16, name: &str, leaves: Option<Duration>, cut: Option<usize>) -> Saw {
        let Some(mut connection) = Connection::try_open(port, leaves.unwrap_or(PATIENCE)) else {
            return Saw::Broken;
        };
        let bytes = request(name).bytes();
        if let Some(cut) = cut {
            connection.try_write(&bytes[..cut % bytes.len()]);
            self.left[1].fetch_add(1, Ordering::SeqCst);
            return Saw::Left;
        }
        if !connection.try_write(&bytes) {
            return Saw::Broken;
        }
        let sent = now();
        match connection.try_read("POST") {
            Some(answer) => saw(&answer),
            None if leaves.is_some_and(|leaves| now() - sent >= leaves) => {
                self.left[0].fetch_add(1, Ordering::SeqCst);
                Saw::Left
            }
            None => Saw::Broken,
        }
    }
}

/// Returns the request of a key, always the same. The route of half of the keys makes duplicates
/// wait for an active request.
pub fn request(name: &str) -> Request {
    let target =
        if name.ends_with(['0', '2', '4', '6', '8']) { "/v1/payments" } else { "/v1/transfers" };
    let request = Request::new("POST", target)
        .field("Idempotency-Key", name)
        .field("Authorization", "Bearer customer");
    request.json(&format!("{{\"amount\":4200,\"order\":\"{name}\"}}"))
}

/// Interprets an answer as a client does.
fn saw(answer: &Answer) -> Saw {
    if answer.get("content-type") == Some("application/problem+json") {
        let kind = answer.problem();
        return match (kind.as_str(), answer.json()["retryable"] == true) {
            ("outcome-uncertain", true) => Saw::Uncertain,
            (_, true) => Saw::Again(kind),
            (_, false) => Saw::Refused(kind),
        };
    }
    match answer.status {
        429 | 502..=504 => Saw::Again(answer.status.to_string()),
        _ => Saw::Final { answer: FinalAnswer::of(answer), replayed: answer.replayed() },
    }
}
