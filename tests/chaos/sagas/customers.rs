//! Customers: each orders once, in its own way, until it has an answer.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use super::checker::Stuck;
use super::fleet::{Fleet, exchange};
use super::plan::{PLANS, Plan};
use crate::checker::FinalAnswer;
use crate::dice::Dice;
use crate::harness::{Answer, Request};
use crate::{now, pause};

/// Longest wait for an answer of a customer that does not intend to leave.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way in which a customer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Waits for each answer.
    Waits,
    /// Leaves again and again.
    Leaves,
    /// Wants no answer at once, and looks at the state of the saga.
    Polls,
    /// Sends duplicates side by side, some of each manner.
    Crowds,
}

/// The script of a history.
#[derive(Debug, Clone)]
pub struct Script {
    /// The order, which is also the idempotency key.
    pub order: String,
    pub plan: &'static Plan,
    pub amount: u32,
    pub manner: Manner,
    pub at: Duration,
    /// The time from the first answer with the saga's id to the operator's cancel, in ms.
    pub cancelled_after: Option<u64>,
}

impl Script {
    pub fn thrown(order: String, mut dice: Dice, window: Duration) -> Script {
        let cancelled_after = dice.percent(12).then(|| dice.within(0..1500));
        let manners = [Manner::Waits, Manner::Leaves, Manner::Polls, Manner::Crowds];
        let manner = *dice.pick(&manners);
        Script {
            order,
            plan: dice.pick(&PLANS),
            amount: if dice.percent(75) { 42 } else { 0 },
            // The id comes at once with this manner only.
            manner: if cancelled_after.is_some() { Manner::Polls } else { manner },
            at: Duration::from_millis(dice.within(0..window.as_millis() as u64)),
            cancelled_after,
        }
    }

    /// Returns the request, always the same but for this preference.
    fn request(&self, is_async: bool) -> Request {
        let request = Request::new("POST", &format!("/v1/{}", self.plan.name))
            .field("Idempotency-Key", &self.order)
            .field("Authorization", "Bearer customer");
        let request = if is_async { request.field("Prefer", "respond-async") } else { request };
        request.json(&format!("{{\"order\":\"{}\",\"amount\":{}}}", self.order, self.amount))
    }
}

/// What is known of a history.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// The id of the saga.
    pub saga: Option<String>,
    pub began: Option<Duration>,
    pub finals: Vec<(Duration, FinalAnswer)>,
    pub states: Vec<Value>,
    pub refusals: Vec<String>,
    pub stuck: Vec<Stuck>,
    pub is_cancelled: bool,
    /// Whether a request was accepted with 202.
    pub is_accepted: bool,
    /// Whether the state of an accepted saga was not there.
    pub has_vanished: bool,
    /// The kinds of all other answers, with their times.
    pub others: Vec<(Duration, String)>,
}

/// The notes of all histories, by order.
#[derive(Default)]
pub struct Book(Mutex<HashMap<String, Notes>>);

impl Book {
    pub fn note<T>(&self, order: &str, change: impl FnOnce(&mut Notes) -> T) -> T {
        change(self.0.lock().unwrap().entry(order.to_owned()).or_default())
    }

    /// Returns the order of a saga.
    pub fn order_of(&self, saga: &str) -> Option<String> {
        let notes = self.0.lock().unwrap();
        let mut found = notes.iter().filter(|(_, notes)| notes.saga.as_deref() == Some(saga));
        found.next().map(|(order, _)| order.clone())
    }

    fn has_ended(&self, order: &str) -> bool {
        self.note(order, |notes| !notes.finals.is_empty() || !notes.refusals.is_empty())
    }
}

/// The world of a customer.
pub struct Street<'f> {
    pub fleet: &'f Fleet,
    pub book: Book,
}

impl Street<'_> {
    /// Runs a customer until it has its answer, or `until` is over.
    pub fn order(&self, script: &Script, dice: Dice, until: &(dyn Fn() -> Duration + Sync)) {
        self.book.note(&script.order, |notes| notes.began = Some(now()));
        let crowd = [Manner::Waits, Manner::Leaves, Manner::Polls];
        let manners = match script.manner {
            Manner::Crowds => &crowd[..],
            _ => &[script.manner],
        };
        std::thread::scope(|scope| {
            for (n, manner) in manners.iter().enumerate() {
                let mut dice = dice.of(&n.to_string());
                scope.spawn(move || {
                    while now() < until() && !self.book.has_ended(&script.order) {
                        self.once(script, *manner, &mut dice);
                        pause(dice.within(30..400));
                    }
                });
            }
        });
    }

    /// Sends the request once, or looks at the state of the saga.
    fn once(&self, script: &Script, manner: Manner, dice: &mut Dice) {
        let gateway = dice.within(0..self.fleet.ports.len() as u64) as usize;
        let patience = match manner {
            Manner::Leaves if dice.percent(70) => Duration::from_millis(dice.within(5..700)),
            _ => PATIENCE,
        };
        let saga = self.book.note(&script.order, |notes| notes.saga.clone());
        match (manner, saga) {
            (Manner::Polls, Some(saga)) => {
                let look = self.look(script, gateway, &saga, patience);
                if matches!(look, Look::Ended | Look::Gone) {
                    self.send(script, gateway, look == Look::Gone, patience);
                }
            }
            _ => self.send(script, gateway, manner == Manner::Polls, patience),
        }
    }

    /// Sends the request to a gateway, and notes the answer.
    pub fn send(&self, script: &Script, gateway: usize, is_async: bool, patience: Duration) {
        let port = self.fleet.ports[gateway].0;
        let answer = exchange(port, &script.request(is_async), "POST", patience);
        let at = now();
        self.book.note(&script.order, |notes| {
            let Some(answer) = answer else {
                notes.others.push((at, format!("nothing from {gateway}")));
                return;
            };
            let path = answer.get("location").and_then(|path| path.rsplit('/').next());
            if let Some(saga) = path {
                notes.saga.get_or_insert_with(|| saga.to_owned());
            }
            match kind(&answer) {
                Read::Final => notes.finals.push((at, FinalAnswer::of(&answer))),
                Read::Refused(why) => notes.refusals.push(why),
                Read::Accepted => {
                    notes.is_accepted = true;
                    notes.others.push((at, format!("202 from {gateway}")));
                }
                Read::Again(why) => notes.others.push((at, format!("{why} from {gateway}"))),
            }
        });
    }

    /// Looks at the state of a saga.
    pub fn look(&self, script: &Script, gateway: usize, saga: &str, patience: Duration) -> Look {
        let request = Request::new("GET", &format!("/.well-known/onceward/sagas/{saga}"))
            .field("Authorization", "Bearer customer");
        // From here on: an acceptance after this moment may belong to a later claim.
        let was_accepted = self.book.note(&script.order, |notes| notes.is_accepted);
        let port = self.fleet.ports[gateway].0;
        let answer = exchange(port, &request, "GET", patience);
        let at = now();
        self.book.note(&script.order, |notes| match answer {
            Some(answer) if answer.status == 200 => {
                let state = answer.json();
                let has_ended = state["status"] == "completed" || state["status"] == "failed";
                if has_ended {
                    notes.states.push(state);
                }
                if has_ended { Look::Ended } else { Look::Unknown }
            }
            Some(answer) if answer.status == 404 => {
                notes.has_vanished |= was_accepted;
                notes.others.push((at, format!("no saga at {gateway}")));
                Look::Gone
            }
            _ => Look::Unknown,
        })
    }
}

/// The state of a saga for a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Ended,
    /// There is no such saga.
    Gone,
    /// It runs, or the gateway does not answer.
    Unknown,
}

/// The meaning of an answer for a customer.
enum Read {
    Final,
    /// The saga runs, and the customer may leave.
    Accepted,
    Again(String),
    Refused(String),
}

fn kind(answer: &Answer) -> Read {
    if answer.get("content-type") == Some("application/problem+json") {
        let problem = answer.problem();
        return match (&*problem, answer.json()["retryable"] == true) {
            ("saga-failed", _) => Read::Final,
            (_, true) => Read::Again(problem),
            (_, false) => Read::Refused(problem),
        };
    }
    match answer.status {
        201 => Read::Final,
        202 => Read::Accepted,
        status => Read::Refused(format!("{status} {}", answer.text())),
    }
}
