//! A run: the writes of one fleet, and their check.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use super::checker::{Condition, History, Saw, Violation, Write, check};
use super::fleet::{Fleet, Over};
use super::kinds::{Kind, LATEST, OnStale, document, resources};
use super::writers::{Book, Street};
use crate::dice::Dice;
use crate::harness::documents::{Documents, Execution};
use crate::{now, pause};

/// Writers of a run.
const WRITERS: usize = 200;
/// How many writes in a hundred the upstream loses.
const LOST: u64 = 7;
/// The time in which writers begin writes, and everything fails.
const WINDOW: Duration = Duration::from_secs(22);
/// The time after the last fault in which each write must end.
const ENDING: Duration = Duration::from_secs(20);

/// Violations of each kind that are shown with their histories.
const REPORTED_MAX: usize = 2;

/// How often things happened that must happen.
pub type Tally = BTreeMap<String, usize>;

/// Runs writers and faults, and checks what they did. Returns what happened. Panics on a violation.
pub fn run(over: Over, number: usize, seed: u64) -> Tally {
    let dice = Dice::new(seed).of(&format!("resources {over:?} {number}"));
    let fleet = Fleet::start(over);
    let first = begin(&fleet.upstream, &resources());
    let street = Street::new(fleet.ports.clone(), resources(), LOST);
    let began = now();
    live(&fleet, &street, &dice, began);
    let took = now() - began;
    // An execution that should not come any more comes now.
    pause(LATEST.as_millis() as u64);
    let unwritable = write_calmly(&street);
    let troubles = fleet.troubles.lock().unwrap().clone();
    let Book { writes, shown, reads, .. } = street.book.into_inner().unwrap();
    let history = History {
        writes,
        ledger: fleet.upstream.ledger(),
        first,
        overwritten: fleet.overwritten(),
        logged: fleet.overwrites_in_logs(),
        shown,
        troubles: troubles.iter().map(|(_, from, to)| (*from, *to)).collect(),
        unwritable,
    };
    let mut tally = fleet.tally();
    tally.extend(count(&history));
    tally.insert("read".into(), reads);
    tally.insert("released unsent".into(), fleet.logged("operation released: its gateway"));
    eprintln!("resources over {over:?}, run {number}, seed {seed}: {took:.1?}, {tally:?}");
    let found = check(&history);
    if found.is_empty() {
        return tally;
    }
    let mut shown = BTreeMap::<String, usize>::new();
    for violation in &found {
        let shown = shown.entry(violation.name()).or_default();
        *shown += 1;
        if *shown <= REPORTED_MAX {
            eprintln!("{}", report(violation, &history, began));
        }
    }
    let log = fleet.log_tails(60);
    let since = |at: &Duration| at.saturating_sub(began);
    let troubles: Vec<_> =
        troubles.iter().map(|(fault, from, to)| (fault, since(from), since(to))).collect();
    eprintln!("{log}\n{troubles:.3?}");
    panic!("resources over {over:?}, run {number}, seed {seed}: {found:?}");
}

/// Writes the first document of each resource but one of each kind. Returns them.
pub fn begin(
    upstream: &Documents,
    resources: &[(&'static Kind, String)],
) -> HashMap<String, Value> {
    let mut first = HashMap::new();
    for (_, path) in resources.iter().filter(|(_, path)| !path.ends_with('0')) {
        first.insert(path.clone(), document(path));
        upstream.put(path, document(path));
    }
    first
}

/// Runs writers and faults until every write has ended, or the time is over.
fn live(fleet: &Fleet, street: &Street, dice: &Dice, began: Duration) {
    let end = began + WINDOW;
    let last_fault = Mutex::new(Duration::MAX);
    let until = || last_fault.lock().unwrap().saturating_add(ENDING);
    let until: &(dyn Fn() -> Duration + Sync) = &until;
    std::thread::scope(|scope| {
        let faults = [
            scope.spawn(move || fleet.lose_processes(dice.of("processes"), end)),
            scope.spawn(move || fleet.lose_connections(dice.of("connections"), end)),
        ];
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let dice = dice.of(&format!("writer {n}"));
                scope.spawn(move || street.live(n, dice, end, until))
            })
            .collect();
        let faults = faults.map(|fault| fault.join());
        // This is also set after a failed fault, because writers end with it.
        *last_fault.lock().unwrap() = now();
        let writers: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        for ended in faults.into_iter().chain(writers) {
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Writes on each resource through each gateway. Returns the resources on which that is impossible.
fn write_calmly(street: &Street) -> Vec<String> {
    let end = now() + ENDING;
    std::thread::scope(|scope| {
        let written: Vec<_> = street
            .resources
            .iter()
            .map(|(kind, path)| {
                scope.spawn(move || {
                    (0..street.ports.len()).all(|gateway| {
                        let mut ids = (0..).map(|n| format!("calm {path} {gateway} {n}"));
                        let mut write =
                            || street.write_calmly(kind, path, &ids.next().unwrap(), gateway);
                        loop {
                            if write() {
                                return true;
                            }
                            if now() > end {
                                return false;
                            }
                            pause(100);
                        }
                    })
                })
            })
            .collect();
        let written = written.into_iter().map(|written| written.join().unwrap());
        let resources = street.resources.iter().zip(written);
        resources.filter(|(_, is_done)| !is_done).map(|((_, path), _)| path.clone()).collect()
    })
}

/// Counts what must happen in a run.
pub fn count(history: &History) -> Tally {
    let mut tally = Tally::new();
    let mut add = |what: &str, is_so: bool| {
        *tally.entry(what.to_owned()).or_default() += usize::from(is_so);
    };
    for write in &history.writes {
        let saw = |saw: &Saw| write.tries.iter().any(|one| one.saw == *saw);
        let again = |why: &str| saw(&Saw::Again(why.into()));
        add("stale", saw(&Saw::Failed) && matches!(write.condition, Condition::Tags(_)));
        add("in doubt", saw(&Saw::Uncertain));
        add("beside one in doubt", again("resource-uncertain"));
        add("busy", again("resource-busy"));
        add("unreadable", again("resource-unreadable"));
        let finals = |one: &&super::checker::Try| matches!(one.saw, Saw::Answered(_));
        add("answered again", write.has_key && write.tries.iter().filter(finals).count() > 1);
    }
    for execution in &history.ledger {
        add("executed", true);
        add("merged", is_merged(history, execution));
        add("created", execution.before.is_none());
        add("deleted", execution.after.is_none());
    }
    add("overwritten", false);
    *tally.entry("overwritten".into()).or_default() += history.overwritten.len();
    tally
}

/// Returns whether a patch changed a version that its writer does not name.
fn is_merged(history: &History, execution: &Execution) -> bool {
    let write = history.writes.iter().find(|write| write.id == execution.write);
    write.is_some_and(|write| match (&write.condition, &execution.before) {
        (Condition::Tags(tags), Some(before)) if write.kind.on_stale == OnStale::Merge => {
            write.kind.tag_of(before).is_some_and(|tag| !tags.contains(&tag))
        }
        _ => false,
    })
}

/// Formats a violation with what is known about its write and its resource.
fn report(violation: &Violation, history: &History, began: Duration) -> String {
    let mut text = format!("--- {violation:?}\n");
    let Some(id) = violation.write() else { return text };
    let of = |id: &str| history.writes.iter().find(|write| write.id == id);
    let Some(write) = of(id) else { return text };
    text += &tries(write, began);
    let lines: Vec<_> =
        history.ledger.iter().filter(|execution| execution.path == write.path).collect();
    let at: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].write == id).collect();
    for at in at {
        for execution in &lines[at.saturating_sub(2)..(at + 2).min(lines.len())] {
            let tag = |document: &Option<Value>| {
                document.as_ref().and_then(|document| write.kind.tag_of(document))
            };
            let (before, after) = (tag(&execution.before), tag(&execution.after));
            text += &format!("  ledger: {} {before:?} -> {after:?}\n", execution.write);
            text += &of(&execution.write).map_or(String::new(), |write| tries(write, began));
        }
    }
    text
}

fn tries(write: &Write, began: Duration) -> String {
    let Write { id, path, condition, has_key, .. } = write;
    let mut text = format!("  write {id} on {path}, key {has_key}, {condition:?}\n");
    for one in &write.tries {
        let (from, to) = (one.began.saturating_sub(began), one.at.saturating_sub(began));
        let saw = match &one.saw {
            Saw::Answered(answer) => format!("answered {}", answer.status),
            saw => format!("{saw:?}"),
        };
        text +=
            &format!("    {from:.3?} to {to:.3?} at {}: {:?}: {saw}\n", one.gateway, one.faults);
    }
    text
}
