//! The checker of events: compares the attempts that a receiver got with the changes of operations
//! and with the answers of clients.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

/// An attempt, as the receiver got it, with times since the tests began.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    pub sink: String,
    pub event: Change,
    /// The event's id.
    pub id: String,
    /// When the operation began.
    pub opened: String,
    pub body: Vec<u8>,
    /// The order in the request, which names the key.
    pub order: String,
    /// The status and the execution in the answer.
    pub status: Option<u64>,
    pub execution: Option<u64>,
    pub at: Duration,
    /// When the receiver sent its answer; `None` without one.
    pub answered: Option<Duration>,
    pub is_taken: bool,
}

/// A change of an operation, as the event log or an event has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub operation: String,
    pub version: u64,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Claimed,
    Uncertain,
    Completed,
    Released,
}

/// A key with a final answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredKey {
    pub name: String,
    pub status: u64,
    pub execution: Option<u64>,
}

/// Everything that happened to events.
#[derive(Debug, Clone, Default)]
pub struct Deliveries {
    /// The changes of all operations in the event log. Empty if the store has lost its log.
    pub changes: Vec<Change>,
    pub answered: Vec<AnsweredKey>,
    pub attempts: Vec<Attempt>,
    /// Events that became dead letters, by sink and id.
    pub dead: BTreeSet<(String, String)>,
    /// Events that still wait at the end.
    pub waiting: u64,
    /// When the only gateway of a store was killed. Its successor attempts at once what the
    /// receiver may still be answering to the dead one.
    pub kills: Vec<Duration>,
}

/// A broken promise about events.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A change has no event that was delivered or buried.
    NoEvent { sink: String, change: Change },
    /// A key with a final answer has no event with it.
    NoEventOfAnswer { sink: String, key: String },
    /// An event has no change.
    NoChange { id: String },
    /// The same id came with other bytes.
    TwoContents { id: String },
    /// A later event of an operation came before an earlier one was delivered or buried.
    OutOfOrder { sink: String, operation: String },
    /// An operation had two attempts under way.
    TwoAtOnce { sink: String, operation: String },
    /// Events wait although nothing is wrong any more.
    Waiting { events: u64 },
}

/// The sinks and the states that the routes publish to them.
pub const SINKS: [(&str, &[State]); 2] = [
    ("ledger", &[State::Completed, State::Uncertain, State::Released]),
    ("mail", &[State::Completed, State::Released]),
];

impl Attempt {
    pub fn of(
        sink: &str,
        id: &str,
        event: &Value,
        body: Vec<u8>,
        at: Duration,
        is_taken: bool,
    ) -> Attempt {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let data = &event["data"];
        let state = match data["state"].as_str() {
            Some("completed") => State::Completed,
            Some("uncertain") => State::Uncertain,
            _ => State::Released,
        };
        let change = Change {
            operation: text(&event["subject"]),
            version: text(&event["sequence"]).parse().unwrap(),
            state,
        };
        Attempt {
            sink: sink.to_owned(),
            event: change,
            id: id.to_owned(),
            opened: text(&data["opened_at"]),
            body,
            order: text(&data["order"]),
            status: data["status"].as_u64(),
            execution: data["payment"].as_u64(),
            at,
            answered: None,
            is_taken,
        }
    }
}

/// Returns the broken promises, each once, in order.
pub fn check(deliveries: &Deliveries) -> Vec<Fault> {
    let mut found = Vec::new();
    changes_have_events(deliveries, &mut found);
    answers_have_events(deliveries, &mut found);
    events_have_changes(deliveries, &mut found);
    attempts_are_in_order(deliveries, &mut found);
    if deliveries.waiting > 0 {
        found.push(Fault::Waiting { events: deliveries.waiting });
    }
    found.sort();
    found.dedup();
    found
}

/// Returns whether an event was delivered or buried.
fn has_ended(deliveries: &Deliveries, attempt: &Attempt) -> bool {
    attempt.is_taken || deliveries.dead.contains(&(attempt.sink.clone(), attempt.id.clone()))
}

fn changes_have_events(deliveries: &Deliveries, found: &mut Vec<Fault>) {
    let ended: BTreeSet<(&str, &Change)> = deliveries
        .attempts
        .iter()
        .filter(|attempt| has_ended(deliveries, attempt))
        .map(|attempt| (attempt.sink.as_str(), &attempt.event))
        .collect();
    for change in published(&deliveries.changes) {
        for (sink, states) in SINKS {
            if states.contains(&change.state) && !ended.contains(&(sink, change)) {
                found.push(Fault::NoEvent { sink: sink.to_owned(), change: change.clone() });
            }
        }
    }
}

/// Returns the changes that must have an event: results, the first time that an operation is
/// uncertain, and its release from there. The log does not show whether another release follows a
/// given-up claim, which has no event, or an answer, which has one.
fn published(changes: &[Change]) -> Vec<&Change> {
    let mut operations: BTreeMap<&str, (BTreeSet<u64>, State, bool)> = BTreeMap::new();
    let mut published = Vec::new();
    for change in changes {
        let new = (BTreeSet::new(), State::Released, false);
        let (versions, before, was_uncertain) = operations.entry(&change.operation).or_insert(new);
        // After a loss, a change is written again.
        if !versions.insert(change.version) {
            continue;
        }
        let is_published = match change.state {
            State::Claimed => false,
            State::Completed => true,
            State::Uncertain => !*was_uncertain,
            State::Released => *before == State::Uncertain,
        };
        match change.state {
            State::Uncertain => *was_uncertain = true,
            // Any other claim continues the operation.
            State::Claimed if *before == State::Released => *was_uncertain = false,
            _ => {}
        }
        *before = change.state;
        published.extend(is_published.then_some(change));
    }
    published
}

fn answers_have_events(deliveries: &Deliveries, found: &mut Vec<Fault>) {
    for answered in &deliveries.answered {
        for (sink, _) in SINKS {
            let has_it = |attempt: &&Attempt| {
                attempt.sink == sink
                    && attempt.event.state == State::Completed
                    && attempt.order == answered.name
                    && attempt.status == Some(answered.status)
                    && attempt.execution == answered.execution
            };
            let mut events = deliveries.attempts.iter().filter(has_it);
            if !events.any(|event| has_ended(deliveries, event)) {
                let (sink, key) = (sink.to_owned(), answered.name.clone());
                found.push(Fault::NoEventOfAnswer { sink, key });
            }
        }
    }
}

fn events_have_changes(deliveries: &Deliveries, found: &mut Vec<Fault>) {
    let known: BTreeSet<&Change> = deliveries.changes.iter().collect();
    let answers: BTreeMap<&str, &AnsweredKey> =
        deliveries.answered.iter().map(|answered| (answered.name.as_str(), answered)).collect();
    let mut contents: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for attempt in &deliveries.attempts {
        let is_another_answer = attempt.event.state == State::Completed
            && answers.get(attempt.order.as_str()).is_some_and(|answered| {
                (Some(answered.status), answered.execution) != (attempt.status, attempt.execution)
            });
        let has_change = known.is_empty() || known.contains(&attempt.event);
        if is_another_answer || !has_change {
            found.push(Fault::NoChange { id: attempt.id.clone() });
        }
        if contents.entry(&attempt.id).or_insert(&attempt.body) != &&attempt.body[..] {
            found.push(Fault::TwoContents { id: attempt.id.clone() });
        }
    }
}

/// Checks the first attempts of each operation and sink. Later attempts of an event can follow a
/// takeover or a requeue. A store that lost everything has lost the leases of relays as well:
/// restored events come late, and another relay can begin while an attempt is under way.
fn attempts_are_in_order(deliveries: &Deliveries, found: &mut Vec<Fault>) {
    let mut operations: BTreeMap<(&str, &str, &str), Vec<&Attempt>> = BTreeMap::new();
    for attempt in &deliveries.attempts {
        let Attempt { sink, event, opened, .. } = attempt;
        operations.entry((sink, &event.operation, opened)).or_default().push(attempt);
    }
    for ((sink, operation, _), attempts) in operations {
        let (sink, operation) = (sink.to_owned(), operation.to_owned());
        let first_taken = |version: u64| {
            let of = attempts.iter().filter(|attempt| attempt.event.version == version);
            of.filter(|attempt| attempt.is_taken).map(|attempt| attempt.at).min()
        };
        let is_dead = |attempt: &Attempt| {
            deliveries.dead.contains(&(attempt.sink.clone(), attempt.id.clone()))
        };
        let overtakes = |later: &Attempt, earlier: &Attempt| {
            !deliveries.changes.is_empty()
                && later.event.version > earlier.event.version
                && !is_dead(earlier)
                && first_taken(earlier.event.version).is_none_or(|taken| taken > later.at)
        };
        if attempts.iter().any(|later| attempts.iter().any(|earlier| overtakes(later, earlier))) {
            found.push(Fault::OutOfOrder { sink: sink.clone(), operation: operation.clone() });
        }
        let is_during = |one: &Attempt, other: &Attempt| {
            let was_killed = |kill: &Duration| one.at <= *kill && *kill <= other.at;
            one.at < other.at
                && one.answered.is_some_and(|answered| other.at < answered)
                && !deliveries.kills.iter().any(was_killed)
        };
        let are_two_at_once = !deliveries.changes.is_empty()
            && attempts.iter().any(|one| attempts.iter().any(|other| is_during(one, other)));
        if are_two_at_once {
            found.push(Fault::TwoAtOnce { sink, operation });
        }
    }
}

#[cfg(test)]
mod tests;
