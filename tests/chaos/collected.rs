//! Collects what a store and a receiver have about events, once nothing changes any more.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::deliveries::{AnsweredKey, Change, Deliveries, Fault, State, check};
use crate::harness::{Gateway, PATIENCE};
use crate::receiver::Receiver;
use crate::{now, pause};

/// The events of a store, and the changes that made them.
pub struct Collected(Deliveries);

impl Collected {
    /// Waits until nothing waits, requeues what was buried, and waits again: a requeued event must
    /// be sent.
    pub fn from(
        gateway: &Gateway,
        receiver: &Receiver,
        answered: Vec<AnsweredKey>,
        log: bool,
    ) -> Collected {
        receiver.set_calm(true);
        let waiting = wait(gateway);
        let dead = requeue_all(gateway, receiver);
        let waiting = waiting + wait(gateway);
        let changes = if log { changes(gateway) } else { Vec::new() };
        receiver.set_calm(false);
        let (attempts, kills) = (receiver.attempts(), Vec::new());
        Collected(Deliveries { changes, answered, attempts, dead, waiting, kills })
    }

    /// Adds the times when the only gateway of the store was killed.
    pub fn with_kills(mut self, kills: Vec<Duration>) -> Collected {
        self.0.kills = kills;
        self
    }

    pub fn summary(&self) -> String {
        let Deliveries { changes, answered, attempts, dead, .. } = &self.0;
        let taken = attempts.iter().filter(|attempt| attempt.is_taken).count();
        let attempts = attempts.len();
        format!(
            "{} changes, {} answers, {attempts} attempts, {taken} taken, {} buried",
            changes.len(),
            answered.len(),
            dead.len()
        )
    }

    /// Panics with the broken promises, and with the attempts and changes of the first operation.
    pub fn check(&self, run: &str) {
        let found = check(&self.0);
        let Some(first) = found.first() else { return };
        let Deliveries { changes, attempts, .. } = &self.0;
        let is_of = |operation: &str| match first {
            Fault::NoEvent { change, .. } => change.operation == operation,
            Fault::OutOfOrder { operation: of, .. } | Fault::TwoAtOnce { operation: of, .. } => {
                of == operation
            }
            Fault::NoEventOfAnswer { .. } | Fault::Waiting { .. } => false,
            Fault::NoChange { id } | Fault::TwoContents { id } => attempts
                .iter()
                .any(|attempt| attempt.id == *id && attempt.event.operation == operation),
        };
        let mut text = String::new();
        for change in changes.iter().filter(|change| is_of(&change.operation)) {
            text += &format!("  {change:?}\n");
        }
        for attempt in attempts.iter().filter(|attempt| is_of(&attempt.event.operation)) {
            let body = String::from_utf8_lossy(&attempt.body);
            text += &format!(
                "  {} at {:.3?} to {:.3?}, taken {}: {body}\n",
                attempt.sink, attempt.at, attempt.answered, attempt.is_taken
            );
        }
        panic!("{run}: {found:#?}\n{text}");
    }
}

/// Waits until no event waits. Returns the number of those that still do.
fn wait(gateway: &Gateway) -> u64 {
    let end = now() + 2 * PATIENCE;
    loop {
        let answer = gateway.ask("GET", "/v1/sinks");
        let sinks = answer.json()["sinks"].as_array().cloned().unwrap_or_default();
        let waiting = sinks.iter().filter_map(|sink| sink["backlog"].as_u64()).sum();
        if (!sinks.is_empty() && waiting == 0) || now() > end {
            return if sinks.is_empty() { 1 } else { waiting };
        }
        pause(100);
    }
}

/// Requeues all dead letters, and waits until each was sent again. Returns their sinks and events.
fn requeue_all(gateway: &Gateway, receiver: &Receiver) -> BTreeSet<(String, String)> {
    let mut dead = BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let page = gateway.ask("GET", &format!("/v1/dead-letters?limit=100{cursor}")).json();
        for letter in page["dead_letters"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            assert_eq!(letter["kind"], "receiver", "a receiver refused it: {letter}");
            dead.insert((text(&letter["sink"]), text(&letter["event"]["id"])));
            let before = receiver.attempts().len();
            let path = format!("/v1/dead-letters/{}/requeue", text(&letter["id"]));
            assert_eq!(gateway.ask("POST", &path).status, 200);
            let is_sent = || {
                let id = &letter["event"]["id"];
                let attempts = receiver.attempts();
                attempts[before..].iter().any(|attempt| attempt.is_taken && *id == attempt.id)
            };
            crate::harness::until("a requeued event to be sent", is_sent);
        }
        let Some(next) = page["cursor"].as_str() else { return dead };
        cursor = format!("&cursor={next}");
    }
}

/// Reads the whole event log.
fn changes(gateway: &Gateway) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut from = "since=1970-01-01T00:00:00Z".to_owned();
    loop {
        let page = gateway.ask("GET", &format!("/v1/log?limit=1000&{from}")).json();
        let events = page["events"].as_array().unwrap();
        if events.is_empty() {
            return changes;
        }
        changes.extend(events.iter().filter_map(change));
        from = format!("after={}", page["cursor"].as_str().unwrap());
    }
}

fn change(event: &Value) -> Option<Change> {
    let state = match event["kind"].as_str()? {
        "claimed" => State::Claimed,
        "uncertain" => State::Uncertain,
        "completed" | "found" | "resolved" => State::Completed,
        "released" | "retried" => State::Released,
        other => panic!("an unexpected change: {other}"),
    };
    let (operation, version) = (event["operation"].as_str()?, event["version"].as_str()?);
    Some(Change { operation: operation.to_owned(), version: version.parse().unwrap(), state })
}
