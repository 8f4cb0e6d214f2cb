//! Writers: each reads resources and writes on them, one after the other, in its own way.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use super::checker::{Condition, Saw, Shown, Try, Write};
use super::kinds::{Doubt, Kind, LATEST, MEMBERS, OnStale, document, spelled};
use crate::checker::FinalAnswer;
use crate::dice::Dice;
use crate::harness::{Answer, Request};
use crate::sagas::fleet::exchange;
use crate::{now, pause};

/// Longest wait for an answer of a writer that does not intend to leave.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often a writer asks about a write in doubt that only an operator can settle.
const DOUBTS_MAX: usize = 3;
/// Tags of a resource that a writer may know.
const KNOWN_MAX: usize = 6;
/// The API keys of the tenant.
const API_KEYS: [&str; 2] = ["Bearer one", "Bearer two"];

/// What writers wrote, and what they saw.
#[derive(Default)]
pub struct Book {
    pub writes: Vec<Write>,
    pub shown: Vec<Shown>,
    /// Tags that anybody has seen, by path.
    known: HashMap<String, Vec<String>>,
    pub reads: usize,
}

/// The world of the writers.
pub struct Street {
    /// The ports of the gateways.
    pub ports: Vec<u16>,
    pub resources: Vec<(&'static Kind, String)>,
    /// How many writes in a hundred are lost, or late after the connection broke.
    pub lost: u64,
    pub book: Mutex<Book>,
}

/// A writer.
struct Writer<'s> {
    street: &'s Street,
    name: String,
    dice: Dice,
    api_key: &'static str,
}

/// A write, and its request.
struct Sending {
    write: Write,
    request: Request,
}

impl Street {
    pub fn new(ports: Vec<u16>, resources: Vec<(&'static Kind, String)>, lost: u64) -> Street {
        Street { ports, resources, lost, book: Mutex::default() }
    }

    /// Runs a writer: it begins no write after `end`, and waits for no answer after `until`.
    pub fn live(
        &self,
        number: usize,
        dice: Dice,
        end: Duration,
        until: &(dyn Fn() -> Duration + Sync),
    ) {
        let api_key = API_KEYS[number % API_KEYS.len()];
        let mut writer = Writer { street: self, name: format!("w{number}"), dice, api_key };
        let mut count = 0;
        while now() < end {
            pause(writer.dice.within(10..600));
            let (kind, path) = writer.dice.pick(&self.resources).clone();
            let Some(tags) = writer.look_around(kind, &path) else { continue };
            count += 1;
            writer.write(kind, &path, count, tags, until);
        }
    }

    /// Writes once on a resource, without faults. Returns whether it was done.
    pub fn write_calmly(&self, kind: &'static Kind, path: &str, id: &str, gateway: usize) -> bool {
        let dice = Dice::new(0);
        let mut writer = Writer { street: self, name: id.to_owned(), dice, api_key: API_KEYS[0] };
        let Some(tag) = writer.read(kind, path, path, gateway) else { return false };
        let condition = tag.map_or(Condition::Creates, |tag| Condition::Tags(vec![tag]));
        let mut sending = writer.sending(kind, path, path, id.to_owned(), "PUT", condition, false);
        let one = writer.once(&sending, gateway, &[], PATIENCE);
        let is_done = matches!(&one.saw, Saw::Answered(answer) if answer.status < 300);
        sending.write.tries.push(one);
        self.book.lock().unwrap().writes.push(sending.write);
        is_done
    }
}

impl Writer<'_> {
    /// Returns the tags that the writer goes by, the current one first; none if there is no
    /// document. `None` if the read failed.
    fn look_around(&mut self, kind: &'static Kind, path: &str) -> Option<Vec<String>> {
        let known = self.street.book.lock().unwrap().known.get(path).cloned().unwrap_or_default();
        let is_old = if kind.on_stale == OnStale::Merge { 50 } else { 15 };
        if self.dice.percent(is_old) && !known.is_empty() {
            return Some(vec![self.dice.pick(&known).clone()]);
        }
        let (target, gateway) = (spelled(path, &mut self.dice), self.gateway());
        let tag = self.read(kind, path, &target, gateway)?;
        // The writer thinks before it writes.
        if self.dice.percent(30) {
            pause(self.dice.within(0..300));
        }
        let other = self.dice.percent(10).then(|| known.first().cloned()).flatten();
        Some(tag.into_iter().chain(other).collect())
    }

    fn gateway(&mut self) -> usize {
        self.dice.within(0..self.street.ports.len() as u64) as usize
    }

    /// Reads a resource. Returns its tag, if it exists. `None` without an answer.
    fn read(
        &mut self,
        kind: &'static Kind,
        path: &str,
        target: &str,
        gateway: usize,
    ) -> Option<Option<String>> {
        let request = self.with_fields(Request::new("GET", target), kind);
        let answer = exchange(self.street.ports[gateway], &request, "GET", PATIENCE)?;
        match answer.status {
            200 => {
                let tag = answer.get("etag")?.to_owned();
                let expected = kind.tag(&answer.body);
                self.show(kind, path, &tag, Some(expected.unwrap_or_default()));
                Some(Some(tag))
            }
            404 => Some(None),
            _ => None,
        }
    }

    fn with_fields(&self, request: Request, kind: &Kind) -> Request {
        let request = request.field("Authorization", self.api_key).field("X-Tenant", "acme");
        if kind.varies { request.field("X-Vary", "yes") } else { request }
    }

    /// Notes the tag of an answer.
    fn show(&self, kind: &Kind, path: &str, tag: &str, expected: Option<String>) {
        let mut book = self.street.book.lock().unwrap();
        book.reads += usize::from(expected.is_some());
        let known = book.known.entry(path.to_owned()).or_default();
        if !known.iter().any(|other| other == tag) {
            known.push(tag.to_owned());
            if known.len() > KNOWN_MAX {
                known.remove(0);
            }
        }
        let (kind, path, tag) = (kind.name, path.to_owned(), tag.to_owned());
        book.shown.push(Shown { kind, path, tag, expected });
    }

    /// Throws the dice for a write, and sends it until it has an answer.
    fn write(
        &mut self,
        kind: &'static Kind,
        path: &str,
        count: usize,
        tags: Vec<String>,
        until: &(dyn Fn() -> Duration + Sync),
    ) {
        let id = format!("{}-{count}", self.name);
        let has_key = self.dice.percent(60);
        let (method, condition) = match tags.is_empty() {
            true => ("PUT", Condition::Creates),
            false => self.condition(kind, tags, has_key),
        };
        let target = spelled(path, &mut self.dice);
        let mut sending = self.sending(kind, path, &target, id, method, condition, has_key);
        if has_key && self.dice.percent(20) {
            self.send_twice(&mut sending);
        }
        match has_key {
            true => self.send_until_answered(&mut sending, until),
            false => self.send_without_key(&mut sending),
        }
        self.street.book.lock().unwrap().writes.push(sending.write);
    }

    fn condition(
        &mut self,
        kind: &Kind,
        mut tags: Vec<String>,
        has_key: bool,
    ) -> (&'static str, Condition) {
        let method =
            *self.dice.pick(&["PUT", "PUT", "PUT", "PUT", "PATCH", "PATCH", "PATCH", "DELETE"]);
        let merges = kind.on_stale == OnStale::Merge && self.dice.percent(60);
        let method = if merges { "PATCH" } else { method };
        let condition = match self.dice.within(0..100) {
            0..8 => Condition::Exists,
            8..13 => Condition::Tags(tags.iter().map(|tag| format!("W/{tag}")).collect()),
            13..16 => Condition::Creates,
            16..30 if kind.is_optional && has_key => Condition::Absent,
            _ => {
                tags.reverse();
                Condition::Tags(tags)
            }
        };
        // Only a PUT creates.
        let method = if condition == Condition::Creates { "PUT" } else { method };
        (method, condition)
    }

    #[allow(clippy::too_many_arguments)]
    fn sending(
        &mut self,
        kind: &'static Kind,
        path: &str,
        target: &str,
        id: String,
        method: &str,
        condition: Condition,
        has_key: bool,
    ) -> Sending {
        let mut request = self.with_fields(Request::new(method, target), kind);
        request = request.field("X-Write", &id);
        request = match &condition {
            Condition::Absent => request,
            Condition::Exists => request.field("If-Match", "*"),
            Condition::Creates => request.field("If-None-Match", "*"),
            Condition::Tags(tags) => request.field("If-Match", &tags.join(", ")),
        };
        if has_key {
            request = request.field("Idempotency-Key", &id);
        }
        if has_key && kind.doubt == Doubt::Forward {
            request = request.field("X-Dedup", "yes");
        }
        let patch = (method == "PATCH").then(|| self.members(kind));
        let body = match &patch {
            Some(members) => members.iter().map(|member| (*member, json!(id))).collect(),
            None => document(&id),
        };
        request = match method {
            "DELETE" => request,
            "PATCH" => {
                request.field("Content-Type", "application/merge-patch+json").body(body.to_string())
            }
            _ => request.json(&body.to_string()),
        };
        let write = Write {
            id,
            kind,
            path: path.to_owned(),
            condition,
            patch,
            has_key,
            tries: Vec::new(),
            is_given_up: false,
        };
        Sending { write, request }
    }

    /// Chooses the members of a patch.
    fn members(&mut self, kind: &Kind) -> Vec<&'static str> {
        match kind.on_stale {
            OnStale::Merge => vec![*self.dice.pick(&MEMBERS)],
            _ => vec!["by", "version"],
        }
    }

    /// Chooses what the upstream does about one try.
    fn faults(&mut self) -> Vec<String> {
        let ms = self.dice.within(100..LATEST.as_millis() as u64);
        let loses = self.dice.percent(self.street.lost);
        let write = match self.dice.within(0..100) {
            0..25 if loses => Some("drop".to_owned()),
            25..50 if loses => Some("lose".to_owned()),
            50.. if loses => Some(format!("late {ms}")),
            0..8 => Some(format!("slow {}", ms / 2)),
            8..10 => Some("status 422".to_owned()),
            10..12 => Some("status 429".to_owned()),
            12..13 => Some("status 503".to_owned()),
            _ => None,
        };
        let look = match self.dice.within(0..100) {
            0..8 => Some(format!("look slow {}", ms / 2)),
            8..10 => Some("look drop".to_owned()),
            10..12 => Some("look status 500".to_owned()),
            _ => None,
        };
        write.into_iter().chain(look).collect()
    }

    /// Sends duplicates side by side.
    fn send_twice(&mut self, sending: &mut Sending) {
        let gateways = [self.gateway(), self.gateway()];
        let faults = [self.faults(), self.faults()];
        let sent = &*sending;
        let writer = &*self;
        let tries: Vec<Try> = std::thread::scope(|scope| {
            let both: Vec<_> = gateways
                .iter()
                .zip(&faults)
                .map(|(gateway, faults)| {
                    scope.spawn(move || writer.once(sent, *gateway, faults, PATIENCE))
                })
                .collect();
            both.into_iter().map(|one| one.join().unwrap()).collect()
        });
        sending.write.tries.extend(tries);
        sending.write.tries.sort_by_key(|one| one.at);
    }

    /// Sends a write with its key until it has an answer.
    fn send_until_answered(
        &mut self,
        sending: &mut Sending,
        until: &(dyn Fn() -> Duration + Sync),
    ) {
        loop {
            let tries = &sending.write.tries;
            let doubts = tries.iter().filter(|one| one.saw == Saw::Uncertain).count();
            let has_ended = tries
                .iter()
                .any(|one| matches!(one.saw, Saw::Answered(_) | Saw::Failed | Saw::Refused(_)));
            if has_ended {
                // The answer stays.
                if self.dice.percent(30) {
                    self.send(sending);
                }
                return;
            }
            if sending.write.kind.doubt != Doubt::Probe && doubts >= DOUBTS_MAX {
                return;
            }
            if now() > until() {
                sending.write.is_given_up = true;
                return;
            }
            self.send(sending);
            pause(self.dice.within(50..600));
        }
    }

    /// Sends a write without a key. A repetition may find the version of its own first try.
    fn send_without_key(&mut self, sending: &mut Sending) {
        for _ in 0..3 {
            self.send(sending);
            let has_answer = !matches!(
                sending.write.tries.last().map(|one| &one.saw),
                Some(Saw::Uncertain | Saw::Nothing | Saw::Again(_))
            );
            if has_answer || !sending.write.names_version() || self.dice.percent(40) {
                return;
            }
            pause(self.dice.within(50..600));
        }
    }

    fn send(&mut self, sending: &mut Sending) {
        let (gateway, faults) = (self.gateway(), self.faults());
        let patience = match self.dice.percent(6) {
            true => Duration::from_millis(self.dice.within(5..400)),
            false => PATIENCE,
        };
        let one = self.once(sending, gateway, &faults, patience);
        sending.write.tries.push(one);
    }

    /// Sends a write once.
    fn once(
        &self,
        sending: &Sending,
        gateway: usize,
        faults: &[String],
        patience: Duration,
    ) -> Try {
        let Sending { write, request } = sending;
        let mut request = request.clone();
        for fault in faults {
            request = match fault.strip_prefix("look ") {
                Some(fault) => request.field("X-Read-Fault", fault),
                None => request.field("X-Fault", fault),
            };
        }
        let began = now();
        let answer = exchange(self.street.ports[gateway], &request, "PUT", patience);
        let at = now();
        if let Some(tag) = answer.as_ref().and_then(|answer| answer.get("etag"))
            && answer.as_ref().is_some_and(|answer| answer.status == 412)
        {
            self.show(write.kind, &write.path, tag, None);
        }
        let saw = answer.map_or(Saw::Nothing, |answer| saw(&answer));
        Try { began, at, gateway, faults: faults.to_vec(), saw }
    }
}

/// Reads an answer as a writer does.
fn saw(answer: &Answer) -> Saw {
    if answer.get("content-type") != Some("application/problem+json") {
        return match answer.status {
            429 => Saw::Again("429".into()),
            _ => Saw::Answered(FinalAnswer::of(answer)),
        };
    }
    let problem = answer.problem();
    match (&*problem, answer.json()["retryable"] == true) {
        ("precondition-failed" | "merge-conflict", _) => Saw::Failed,
        ("outcome-uncertain", _) => Saw::Uncertain,
        // The look failed, and nothing was done.
        ("resource-unreadable", _) | (_, true) => Saw::Again(problem),
        (_, false) => Saw::Refused(problem),
    }
}
