//! The checker: reads the ledger and the answers of all writes, and reports broken promises.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use super::kinds::{Kind, OnStale};
use crate::checker::FinalAnswer;
use crate::harness::documents::Execution;

/// The condition of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is none.
    Absent,
    /// The resource exists.
    Exists,
    /// The resource does not exist.
    Creates,
    /// The resource has one of these versions.
    Tags(Vec<String>),
}

/// What a writer saw of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    /// The answer of the upstream, or its replay.
    Answered(FinalAnswer),
    /// The condition does not hold.
    Failed,
    /// Nobody knows whether the write was executed.
    Uncertain,
    /// A refusal that allows a retry.
    Again(String),
    /// A refusal that allows no retry.
    Refused(String),
    /// No whole answer.
    Nothing,
}

/// One try of a write.
#[derive(Debug, Clone)]
pub struct Try {
    pub began: Duration,
    pub at: Duration,
    pub gateway: usize,
    /// What the upstream is asked to do.
    pub faults: Vec<String>,
    pub saw: Saw,
}

/// A write.
#[derive(Debug, Clone)]
pub struct Write {
    /// The `X-Write` field, and the key if it has one.
    pub id: String,
    pub kind: &'static Kind,
    pub path: String,
    pub condition: Condition,
    /// The members that it changes, if it is a patch.
    pub patch: Option<Vec<&'static str>>,
    pub has_key: bool,
    pub tries: Vec<Try>,
    /// Whether its sender waited for an answer in vain.
    pub is_given_up: bool,
}

/// A tag that an answer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub kind: &'static str,
    pub path: String,
    pub tag: String,
    /// The tag of the document beside it, if the answer has one.
    pub expected: Option<String>,
}

/// Everything about a run.
#[derive(Default)]
pub struct History {
    pub writes: Vec<Write>,
    /// The executed writes, in order.
    pub ledger: Vec<Execution>,
    /// The documents before the first write, by path.
    pub first: HashMap<String, Value>,
    /// The tags that the event log names as overwritten.
    pub overwritten: HashSet<String>,
    /// The lines of the gateways' logs that name overwritten versions.
    pub logged: String,
    pub shown: Vec<Shown>,
    /// The times in which something failed.
    pub troubles: Vec<(Duration, Duration)>,
    /// Resources on which nobody could write after all faults.
    pub unwritable: Vec<String>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A write replaced a version that its condition does not name.
    LostUpdate { write: String },
    /// A write replaced another version, as its route permits, and the log does not name it.
    NotLogged { write: String },
    /// A write was executed more than once.
    ExecutedAgain { write: String },
    /// A write was answered as done, and was not executed.
    NotExecuted { write: String },
    /// A write was refused, and was executed.
    RefusedThoughExecuted { write: String },
    /// Answers under one key differ.
    AnswersDiffer { write: String },
    /// A writer got a refusal that allows no retry.
    Refused { write: String, why: String },
    /// A writer got no final answer.
    NotEnded { write: String },
    /// A write was in doubt without a reason.
    UncertainForNothing { write: String },
    /// An answer has a tag that is not that of a version.
    WrongTag { path: String, tag: String },
    /// Nobody could write after all faults.
    Unwritable { path: String },
}

impl Violation {
    /// Returns the name of the kind.
    pub fn name(&self) -> String {
        format!("{self:?}").split(' ').next().unwrap_or_default().to_owned()
    }

    /// Returns the write.
    pub fn write(&self) -> Option<&str> {
        match self {
            Violation::LostUpdate { write }
            | Violation::NotLogged { write }
            | Violation::ExecutedAgain { write }
            | Violation::NotExecuted { write }
            | Violation::RefusedThoughExecuted { write }
            | Violation::AnswersDiffer { write }
            | Violation::Refused { write, .. }
            | Violation::NotEnded { write }
            | Violation::UncertainForNothing { write } => Some(write),
            Violation::WrongTag { .. } | Violation::Unwritable { .. } => None,
        }
    }
}

impl History {
    /// Returns all versions of a resource.
    fn versions<'h>(&'h self, path: &'h str) -> impl Iterator<Item = &'h Value> {
        let executed = self.ledger.iter().filter(move |execution| execution.path == path);
        self.first.get(path).into_iter().chain(executed.filter_map(|one| one.after.as_ref()))
    }

    /// Whether a patch changes no member that differs between a version that it names and the one
    /// before it.
    fn may_merge(&self, write: &Write, tags: &[String], before: &Value) -> bool {
        let Some(members) = &write.patch else { return false };
        let is_named =
            |version: &&Value| write.kind.tag_of(version).is_some_and(|tag| tags.contains(&tag));
        let is_same = |version: &Value| {
            members.iter().all(|member| version.get(member) == before.get(member))
        };
        self.versions(&write.path).filter(is_named).any(is_same)
    }

    /// Whether anything failed during a write.
    fn is_troubled(&self, write: &Write) -> bool {
        let began = write.tries.iter().map(|one| one.began).min().unwrap_or_default();
        let ended = write.tries.iter().map(|one| one.at).max().unwrap_or_default();
        self.troubles.iter().any(|(from, to)| *from <= ended && *to >= began)
    }
}

impl Write {
    /// Whether an executed write can't be executed again, because no version has a tag twice.
    pub fn names_version(&self) -> bool {
        matches!(self.condition, Condition::Tags(_)) && !self.kind.overwrites()
    }

    /// Whether a refusal is about this very try, and not about what an earlier one left.
    fn is_one(&self) -> bool {
        self.has_key || self.tries.len() == 1
    }

    /// Whether its gateway saw the outcome. Kinds that overwrite have no probes.
    fn was_seen(&self) -> bool {
        self.saw(|saw| matches!(saw, Saw::Answered(answer) if answer.status < 300))
    }

    /// Whether a look may have failed.
    fn could_not_look(&self, history: &History) -> bool {
        let fails = |fault: &String| fault == "look drop" || fault.starts_with("look status");
        self.tries.iter().any(|one| one.faults.iter().any(fails)) || history.is_troubled(self)
    }

    fn saw(&self, is_it: impl Fn(&Saw) -> bool) -> bool {
        self.tries.iter().any(|one| is_it(&one.saw))
    }
}

/// Returns the broken promises, each once, in order.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut executed: HashMap<&str, Vec<&Execution>> = HashMap::new();
    for execution in &history.ledger {
        executed.entry(&execution.write).or_default().push(execution);
    }
    for write in &history.writes {
        let executions = executed.remove(&*write.id).unwrap_or_default();
        for execution in &executions {
            found.extend(replaced(history, write, execution));
        }
        answers(history, write, executions.len(), &mut found);
    }
    // A write that nobody sent.
    let unknown = executed.keys().map(|id| Violation::LostUpdate { write: (*id).to_owned() });
    found.extend(unknown);
    found.extend(tags(history));
    let unwritable = history.unwritable.iter();
    found.extend(unwritable.map(|path| Violation::Unwritable { path: path.clone() }));
    found.sort();
    found.dedup();
    found
}

/// Checks the version that an execution replaced.
fn replaced(history: &History, write: &Write, execution: &Execution) -> Option<Violation> {
    let id = write.id.clone();
    let lost = || Some(Violation::LostUpdate { write: id.clone() });
    if execution.path != write.path {
        return lost();
    }
    let before = execution.before.as_ref();
    let is_named = match &write.condition {
        Condition::Absent => true,
        // Without a look, the gateway takes it for existing.
        Condition::Exists => before.is_some() || write.could_not_look(history),
        Condition::Creates => before.is_none(),
        Condition::Tags(tags) => {
            let Some(tag) = before.and_then(|before| write.kind.tag_of(before)) else {
                return lost();
            };
            if !tags.contains(&tag) && write.kind.on_stale == OnStale::Merge {
                return if history.may_merge(write, tags, before?) { None } else { lost() };
            }
            if !tags.contains(&tag) && write.kind.overwrites() {
                // If the gateway of a write has not seen the outcome, the write's event has no tag.
                let is_logged = history.overwritten.contains(&tag)
                    || !write.was_seen() && history.logged.contains(tag.trim_matches('"'));
                return (!is_logged).then_some(Violation::NotLogged { write: id });
            }
            tags.contains(&tag)
        }
    };
    if is_named { None } else { lost() }
}

/// Checks the answers to a write.
fn answers(history: &History, write: &Write, executions: usize, found: &mut Vec<Violation>) {
    let id = || write.id.clone();
    if executions > 1 && (write.has_key || write.names_version()) {
        found.push(Violation::ExecutedAgain { write: id() });
    }
    let finals: Vec<&FinalAnswer> = write
        .tries
        .iter()
        .filter_map(|one| match &one.saw {
            Saw::Answered(answer) => Some(answer),
            _ => None,
        })
        .collect();
    let is_done = finals.iter().any(|answer| answer.status < 300);
    if is_done && executions == 0 {
        found.push(Violation::NotExecuted { write: id() });
    }
    let has_failed = write.saw(|saw| *saw == Saw::Failed) && write.names_version();
    let is_refused = has_failed || finals.iter().any(|answer| answer.status >= 300);
    if is_refused && write.is_one() && executions > 0 {
        found.push(Violation::RefusedThoughExecuted { write: id() });
    }
    if write.has_key && finals.windows(2).any(|pair| pair[0] != pair[1]) {
        found.push(Violation::AnswersDiffer { write: id() });
    }
    for one in &write.tries {
        if let Saw::Refused(why) = &one.saw {
            found.push(Violation::Refused { write: id(), why: why.clone() });
        }
    }
    if write.is_given_up {
        found.push(Violation::NotEnded { write: id() });
    }
    if write.saw(|saw| *saw == Saw::Uncertain) && !has_reason(history, write) {
        found.push(Violation::UncertainForNothing { write: id() });
    }
}

/// Returns whether something that happened explains that a write was in doubt.
fn has_reason(history: &History, write: &Write) -> bool {
    // A 503 is no outcome.
    let losses = ["drop", "lose", "late", "status 503"];
    let loses = |fault: &String| losses.iter().any(|loss| fault.starts_with(loss));
    write.tries.iter().any(|one| one.faults.iter().any(loses)) || history.is_troubled(write)
}

/// Checks that each tag of an answer is that of a version.
fn tags(history: &History) -> Vec<Violation> {
    let kinds: HashMap<&str, &Kind> =
        super::kinds::KINDS.iter().map(|kind| (kind.name, kind)).collect();
    let mut versions: HashSet<(&str, String)> = HashSet::new();
    let executed = history.ledger.iter().map(|one| (&one.path, one.after.as_ref()));
    let first = history.first.iter().map(|(path, document)| (path, Some(document)));
    for (path, document) in executed.chain(first) {
        let name = path.split('/').nth(2).unwrap_or_default();
        let tag = document.and_then(|document| kinds.get(name)?.tag_of(document));
        versions.extend(tag.map(|tag| (&**path, tag)));
    }
    let is_wrong = |shown: &&Shown| match &shown.expected {
        Some(expected) => *expected != shown.tag,
        None => !versions.contains(&(&*shown.path, shown.tag.clone())),
    };
    let wrong = history.shown.iter().filter(is_wrong);
    wrong
        .map(|shown| Violation::WrongTag { path: shown.path.clone(), tag: shown.tag.clone() })
        .collect()
}

#[cfg(test)]
mod tests;
