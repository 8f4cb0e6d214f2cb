//! Sagas made by hand: a service that calls the others and undoes by itself. Each flaw is one that
//! such services have; the checker must find it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::checker::History;
use super::fleet::exchange;
use super::plan::{Doubt, Plan, STEP_TIMEOUT, UNCERTAIN_AFTER, Undo};
use super::services::Service;
use crate::checker::FinalAnswer;
use crate::dice::Dice;
use crate::harness::{Answer, Request};
use crate::{now, pause};

/// The flaw of a handmade saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// None of those below.
    None,
    /// An attempt without an answer counts as failed, and the others are undone.
    TimeoutIsFailure,
    /// Another worker turns the saga back for one that sleeps, and does not bar what that one was
    /// about to send.
    NoBars,
    /// The keys of the steps come from the client's key, which the client uses again later.
    KeysOfTheClient,
    /// A refused step turns the saga back while a step beside it is in doubt.
    UndoesInDoubt,
}

/// How many attempts a step has.
const ATTEMPTS_MAX: usize = 12;
/// How long a worker sleeps between its log and its request.
const SLEEP: Duration = Duration::from_millis(1200);
/// When another worker takes a saga over.
const TAKEOVER: Duration = Duration::from_millis(400);

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done(u64),
    Refused(u16),
    Skipped,
    /// Given up without an outcome.
    Unknown,
}

/// What became of each step so far.
type Outcomes = Mutex<BTreeMap<usize, Outcome>>;

/// A handmade saga.
pub struct Naive<'s> {
    pub services: &'s [Service; 3],
    pub flaw: Flaw,
    pub plan: &'static Plan,
    pub order: String,
    /// The key of the client.
    pub client_key: String,
    pub is_paid: bool,
    pub dice: Dice,
}

impl Naive<'_> {
    /// Runs the saga, and returns its history without the lines of the ledgers.
    pub fn run(&self) -> History {
        let steps = self.plan.steps.len();
        let outcomes = Outcomes::default();
        // Half of the sagas have a worker that sleeps.
        let asleep = self.dice.of("sleeper").within(0..2 * steps as u64) as usize;
        let asleep = (self.flaw == Flaw::NoBars).then_some(asleep);
        std::thread::scope(|scope| {
            let mut begun = BTreeSet::new();
            loop {
                let known = outcomes.lock().unwrap().clone();
                let is_failed = failure(&known).is_some();
                let is_settled = begun.iter().all(|step| known.contains_key(step));
                if known.len() == steps
                    || is_failed && (is_settled || self.flaw == Flaw::UndoesInDoubt)
                {
                    break;
                }
                let may_begin = |step: &usize| !is_failed && self.may_begin(*step, &known);
                let next: Vec<usize> =
                    (0..steps).filter(may_begin).filter(|step| begun.insert(*step)).collect();
                for step in next {
                    let outcomes = &outcomes;
                    if asleep == Some(step) {
                        scope.spawn(move || {
                            pause(SLEEP.as_millis() as u64);
                            self.carry_out(step, None);
                        });
                        // Another worker finds a step without an answer.
                        pause(TAKEOVER.as_millis() as u64);
                        outcomes.lock().unwrap().insert(step, Outcome::Unknown);
                        continue;
                    }
                    scope.spawn(move || {
                        let outcome = self.act(step);
                        outcomes.lock().unwrap().insert(step, outcome);
                    });
                }
                pause(5);
            }
            let known = outcomes.lock().unwrap().clone();
            let failure = failure(&known);
            if failure.is_some() {
                self.undo(&known);
            }
            self.ended(&known, failure)
        })
    }

    fn may_begin(&self, step: usize, known: &BTreeMap<usize, Outcome>) -> bool {
        let is_past =
            |step: &usize| matches!(known.get(step), Some(Outcome::Done(_) | Outcome::Skipped));
        self.plan.steps[step].after.iter().all(is_past)
    }

    /// Undoes the executed steps in reverse order.
    fn undo(&self, known: &BTreeMap<usize, Outcome>) {
        for step in (0..self.plan.steps.len()).rev() {
            if let Some(Outcome::Done(number)) = known.get(&step)
                && self.plan.steps[step].undo == Undo::Request
            {
                while !matches!(self.carry_out(step, Some(*number)), Outcome::Done(_)) {}
            }
        }
    }

    /// Executes an action. After the pivot, it is tried until it is done.
    fn act(&self, step: usize) -> Outcome {
        let is_pivot = |pivot: usize| self.plan.steps[pivot].pivot;
        let is_last_chance =
            (0..step).any(|pivot| is_pivot(pivot) && self.plan.is_after(step, pivot));
        loop {
            let outcome = self.carry_out(step, None);
            if !(is_last_chance && matches!(outcome, Outcome::Refused(_))) {
                return outcome;
            }
        }
    }

    /// Sends an action, or the compensation of an execution, until it has an outcome.
    fn carry_out(&self, step: usize, undone: Option<u64>) -> Outcome {
        static ROUNDS: AtomicU64 = AtomicU64::new(0);
        let planned = &self.plan.steps[step];
        if undone.is_none() && planned.if_paid && !self.is_paid {
            return Outcome::Skipped;
        }
        let base = match self.flaw {
            Flaw::KeysOfTheClient => &self.client_key,
            _ => &self.order,
        };
        // What was refused is sent again under another key.
        let round = match self.flaw {
            Flaw::KeysOfTheClient if undone.is_none() => 0,
            _ => ROUNDS.fetch_add(1, Ordering::SeqCst),
        };
        let direction = if undone.is_some() { "undo" } else { "action" };
        let key = format!("{base}-{}-{direction}-{round}", planned.name);
        let target = match undone {
            Some(number) => format!("/undo/{}/{}/{number}", planned.name, self.order),
            None => format!("/action/{}/{}", planned.name, self.order),
        };
        let dedups = planned.doubt == Doubt::Forward;
        let request = Request::new("POST", &target)
            .field("Idempotency-Key", &key)
            .field("X-Dedup", if dedups { "true" } else { "false" });
        for _ in 0..ATTEMPTS_MAX {
            let answer = exchange(self.services[step].port, &request, "POST", STEP_TIMEOUT);
            match answer.as_ref().map(|answer| answer.status) {
                Some(201) => return Outcome::Done(id(answer.as_ref())),
                Some(429 | 503) => pause(100),
                Some(status @ 400..=499) => return Outcome::Refused(status),
                _ if self.flaw == Flaw::TimeoutIsFailure && undone.is_none() => {
                    return Outcome::Unknown;
                }
                _ if dedups => {}
                _ => match self.ask(step, &key) {
                    Some(number) => return Outcome::Done(number),
                    None => continue,
                },
            }
        }
        Outcome::Refused(429)
    }

    /// Asks for an outcome, when a late execution would have come.
    fn ask(&self, step: usize, key: &str) -> Option<u64> {
        pause(UNCERTAIN_AFTER.as_millis() as u64);
        let request = Request::new("GET", &format!("/probe/{key}"));
        let answer = exchange(self.services[step].port, &request, "GET", STEP_TIMEOUT);
        answer.filter(|answer| answer.status == 200).map(|answer| id(Some(&answer)))
    }

    fn ended(&self, known: &BTreeMap<usize, Outcome>, failure: Option<(usize, u16)>) -> History {
        let (status, body) = match failure {
            Some((step, status)) => {
                let status = (status > 0).then_some(status);
                (409, json!({ "step": self.plan.steps[step].name, "step_status": status }))
            }
            None => {
                let ids = self.plan.steps.iter().zip(known.values()).map(|(step, outcome)| {
                    let id = match outcome {
                        Outcome::Done(number) => json!(number),
                        _ => Value::Null,
                    };
                    (step.name.to_owned(), id)
                });
                (201, Value::Object(ids.collect::<Map<String, Value>>()))
            }
        };
        let body = body.to_string().into_bytes();
        History {
            plan: self.plan,
            is_paid: self.is_paid,
            lines: Vec::new(),
            finals: vec![(now(), FinalAnswer { status, fields: Vec::new(), body })],
            states: Vec::new(),
            refusals: Vec::new(),
            stuck: Vec::new(),
            has_vanished: false,
            is_cancelled: false,
            // It gives no reasons.
            is_troubled: true,
        }
    }
}

/// Returns the step that failed, and its status; 0 without one.
fn failure(known: &BTreeMap<usize, Outcome>) -> Option<(usize, u16)> {
    known.iter().find_map(|(step, outcome)| match outcome {
        Outcome::Refused(status) => Some((*step, *status)),
        Outcome::Unknown => Some((*step, 0)),
        Outcome::Done(_) | Outcome::Skipped => None,
    })
}

fn id(answer: Option<&Answer>) -> u64 {
    answer.and_then(|answer| answer.json()["id"].as_u64()).unwrap_or_default()
}
