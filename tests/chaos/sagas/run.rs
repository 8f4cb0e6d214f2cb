//! A run: the histories of one fleet, and their check.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::HISTORIES;
use super::checker::{History, Violation, check};
use super::customers::{Book, Notes, Script, Street};
use super::fleet::{Fleet, Over};
use super::services::{Act, LATEST, Line, Matter};
use crate::dice::Dice;
use crate::{now, pause};

/// The time in which the customers order, and everything fails.
const WINDOW: Duration = Duration::from_secs(40);
/// The time after the last fault in which each saga must end.
const ENDING: Duration = Duration::from_secs(60);
/// Longest wait for the last replay of an answer.
const REPLAYING: Duration = Duration::from_secs(10);

/// How often things happened that must happen.
pub type Tally = BTreeMap<String, usize>;

/// Runs the histories of a fleet, and checks them. Returns what happened. Panics on a violation.
pub fn run(over: Over, number: usize, seed: u64) -> Tally {
    let dice = Dice::new(seed).of(&format!("sagas {over:?} {number}"));
    let fleet = Fleet::start(over, &dice);
    let street = Street { fleet: &fleet, book: Book::default() };
    let scripts: Vec<Script> = (0..HISTORIES)
        .map(|n| format!("{number}-{n}"))
        .map(|order| Script::thrown(order.clone(), dice.of(&order), WINDOW))
        .collect();
    let began = now();
    live(&street, &scripts, &dice, began);
    let took = now() - began;
    scripts.iter().for_each(|script| look_again(&street, script));
    // An execution that should not come any more comes now.
    pause(LATEST.as_millis() as u64);
    let mut lines: Vec<Line> = fleet.services.iter().flat_map(|service| service.lines()).collect();
    lines.sort_by_key(|line| line.at);
    let mut violated = Vec::new();
    let mut tally = fleet.tally();
    for script in &scripts {
        let notes = street.book.note(&script.order, |notes| notes.clone());
        let history = history(&fleet, script, &notes, &lines);
        count(&history, script, &mut tally);
        let violations = check(&history);
        if !violations.is_empty() {
            violated.push((script, violations, history, notes));
        }
    }
    tally.insert("takeovers".into(), fleet.takeovers());
    eprintln!("sagas over {over:?}, run {number}, seed {seed}: {took:.1?}, {tally:?}");
    if violated.is_empty() {
        return tally;
    }
    let services = dice.of("services");
    for (script, violations, history, notes) in violated.iter().take(5) {
        eprintln!("{}", report(script, violations, history, notes, &services, began));
    }
    eprintln!("{}\n{:?}", fleet.log_tails(60), fleet.troubles.lock().unwrap());
    let all: Vec<_> = violated.iter().map(|(script, found, ..)| (&script.order, found)).collect();
    panic!("sagas over {over:?}, run {number}, seed {seed}: {all:?}");
}

/// Runs customers, faults and the operator until every saga has ended, or the time is over.
fn live(street: &Street<'_>, scripts: &[Script], dice: &Dice, began: Duration) {
    let is_over = AtomicBool::new(false);
    let last_fault = Mutex::new(Duration::MAX);
    let until = || last_fault.lock().unwrap().saturating_add(ENDING);
    let until: &(dyn Fn() -> Duration + Sync) = &until;
    std::thread::scope(|scope| {
        let operator = dice.of("operator");
        let is_over = &is_over;
        scope.spawn(move || street.operate(&operator, || is_over.load(Ordering::SeqCst)));
        let end = began + WINDOW;
        let faults = [
            scope.spawn(move || street.fleet.lose_processes(dice.of("processes"), end)),
            scope.spawn(move || street.fleet.lose_connections(dice.of("connections"), end)),
        ];
        let customers: Vec<_> = scripts
            .iter()
            .map(|script| {
                let dice = dice.of(&script.order).of("customer");
                scope.spawn(move || {
                    std::thread::sleep((began + script.at).saturating_sub(now()));
                    std::thread::scope(|scope| {
                        if let Some(after_ms) = script.cancelled_after {
                            scope.spawn(move || street.cancel(script, after_ms, until));
                        }
                        street.order(script, dice, until);
                    });
                })
            })
            .collect();
        let faults = faults.map(|fault| fault.join());
        // This is also set after a failed fault, because customers end with it.
        *last_fault.lock().unwrap() = now();
        let customers: Vec<_> = customers.into_iter().map(|customer| customer.join()).collect();
        is_over.store(true, Ordering::SeqCst);
        for ended in faults.into_iter().chain(customers) {
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Asks every gateway once more for the answer and for the state of an ended saga.
fn look_again(street: &Street<'_>, script: &Script) {
    for gateway in 0..street.fleet.ports.len() {
        let notes = street.book.note(&script.order, |notes| notes.clone());
        if notes.finals.is_empty() {
            return;
        }
        street.send(script, gateway, false, REPLAYING);
        if let Some(saga) = notes.saga {
            street.look(script, gateway, &saga, REPLAYING);
        }
    }
}

fn history(fleet: &Fleet, script: &Script, notes: &Notes, lines: &[Line]) -> History {
    let began = notes.began.unwrap_or_default();
    let ended = notes.finals.first().map_or(now(), |(at, _)| *at);
    let troubles = fleet.troubles.lock().unwrap();
    History {
        plan: script.plan,
        is_paid: script.amount > 0,
        lines: lines.iter().filter(|line| line.matter.order == script.order).cloned().collect(),
        finals: notes.finals.clone(),
        states: notes.states.clone(),
        refusals: notes.refusals.clone(),
        stuck: notes.stuck.clone(),
        has_vanished: notes.has_vanished,
        is_cancelled: notes.is_cancelled,
        is_troubled: troubles.iter().any(|(_, from, to)| *from <= ended && *to >= began),
    }
}

/// Counts what must happen in a run.
fn count(history: &History, script: &Script, tally: &mut Tally) {
    let mut add = |what: &str, is_so: bool| {
        *tally.entry(what.to_owned()).or_default() += usize::from(is_so);
    };
    let status = history.finals.first().map_or(0, |(_, answer)| answer.status);
    add("completed", status == 201);
    add("failed", status == 409);
    add("held", history.stuck.iter().any(|stuck| stuck.in_doubt));
    add("refused for good", history.stuck.iter().any(|stuck| !stuck.in_doubt));
    add("cancelled", script.cancelled_after.is_some() && status == 409);
    let body = history
        .finals
        .first()
        .map_or(String::new(), |(_, answer)| String::from_utf8_lossy(&answer.body).into_owned());
    add("timed out", body.contains("\"timeout\""));
}

/// Formats a history with violations.
fn report(
    script: &Script,
    violations: &[Violation],
    history: &History,
    notes: &Notes,
    services: &Dice,
    began: Duration,
) -> String {
    let mut text = format!("--- order {}: {violations:?}\n{script:?}\n", script.order);
    for (at, step) in script.plan.steps.iter().enumerate() {
        for is_undo in [false, true] {
            let (order, step) = (script.order.clone(), step.name.to_owned());
            let matter = Matter { order, step, is_undo };
            let dice = services.of(super::plan::SERVICES[at]);
            let acts: Vec<Act> = (1..=4).map(|n| Act::of(&dice, &matter, n)).collect();
            text += &format!("  script of {} {is_undo}: {acts:?}\n", matter.step);
        }
    }
    for line in &history.lines {
        let direction = if line.matter.is_undo { "undo" } else { "action" };
        text += &format!(
            "  {:>8.3?} {direction} {}: {:?} {}\n",
            (line.at - began).as_secs_f64(),
            line.matter.step,
            line.kind,
            line.key
        );
    }
    for (at, answer) in &notes.finals {
        let at = at.saturating_sub(began).as_secs_f64();
        let body = String::from_utf8_lossy(&answer.body);
        text += &format!("  {at:>8.3?} answer {} {body}\n", answer.status);
    }
    for (at, other) in &notes.others {
        text += &format!("  {:>8.3?} {other}\n", at.saturating_sub(began).as_secs_f64());
    }
    text + &format!("  saga {:?}, {:?}\n  states {:?}\n", notes.saga, notes.stuck, notes.states)
}
