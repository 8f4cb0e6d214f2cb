//! The checker: reads the ledgers and the answers of one saga, and reports broken promises.

use std::time::Duration;

use serde_json::Value;

use super::plan::{Plan, UNCERTAIN_AFTER, Undo};
use super::services::{Kind, Line};
use crate::checker::FinalAnswer;

/// The end of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Completed,
    Failed,
}

/// A decision that the operator had to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    pub at: Duration,
    pub step: usize,
    pub is_undo: bool,
    /// Whether it was unknown what became of the operation. If not, it was refused.
    pub in_doubt: bool,
}

/// Everything about one saga.
#[derive(Debug, Clone)]
pub struct History {
    pub plan: &'static Plan,
    /// Whether the steps that depend on the amount are executed.
    pub is_paid: bool,
    /// The lines of all ledgers about it, in the order of their times.
    pub lines: Vec<Line>,
    /// The final answers, with the time of each.
    pub finals: Vec<(Duration, FinalAnswer)>,
    /// What the state of the saga has as its status and its answer, each time after the end.
    pub states: Vec<Value>,
    /// Refusals that allow no retry.
    pub refusals: Vec<String>,
    pub stuck: Vec<Stuck>,
    /// Whether the state of a saga was not there, after a request had been accepted with 202.
    pub has_vanished: bool,
    /// Whether an operator cancelled it.
    pub is_cancelled: bool,
    /// Whether a process or a connection failed during the saga, so that a doubt or an attempt that
    /// was not executed needs no line in a ledger.
    pub is_troubled: bool,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A customer that had a 202 found no saga.
    Vanished,
    /// It has no final answer.
    NotEnded,
    /// A client got a refusal that allows no retry.
    Refused(String),
    /// Final answers differ, or the state of the saga has another one.
    AnswersDiffer,
    /// The answer names an execution that the ledgers do not have.
    Invented,
    /// It failed, and nothing in the ledgers is a reason.
    FailedForNothing,
    /// It was stuck, and nothing in the ledgers is a reason.
    StuckForNothing { step: usize },
    /// An action was executed more than once.
    ExecutedAgain { step: usize },
    /// The saga is completed without this action.
    NotExecuted { step: usize },
    /// The condition was false, and the action was executed.
    ExecutedThoughSkipped { step: usize },
    /// An action came before an action that it follows.
    TooEarly { step: usize },
    /// The saga is completed, and an action is undone.
    UndoneThoughCompleted { step: usize },
    /// The saga failed, and an executed action is not undone.
    NotUndone { step: usize },
    /// A compensation was executed more than once.
    UndoneAgain { step: usize },
    /// A compensation undid something else than the executed action.
    UndoneAnother { step: usize },
    /// A compensation came before that of a later step.
    UndoneOutOfOrder { step: usize },
    /// A compensation began while the outcome of an action was unknown.
    UndoneInDoubt { step: usize },
    /// An action was executed after a compensation had begun.
    LandedAfterUndo { step: usize },
    /// Something was executed after the final answer.
    LandedAfterEnd { step: usize },
    /// The saga failed after its pivot was executed.
    FailedAfterPivot,
}

impl Violation {
    /// Returns the name of the kind.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '(']).next().unwrap_or_default().to_owned()
    }
}

/// Inaccuracy of the times of a gateway, a store and a service.
const TOLERANCE: Duration = Duration::from_millis(150);

/// Returns the broken promises, each once, in order.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let end = answers(history, &mut found);
    for step in 0..history.plan.steps.len() {
        executions(history, step, &mut found);
        compensations(history, step, &mut found);
        match end {
            Some(End::Completed) => completed(history, step, &mut found),
            Some(End::Failed) => failed(history, step, &mut found),
            None => {}
        }
    }
    reasons(history, end, &mut found);
    found.sort();
    found.dedup();
    found
}

impl History {
    fn of(&self, step: usize, is_undo: bool) -> impl Iterator<Item = &Line> {
        let name = self.plan.steps[step].name;
        let is_it = move |line: &&Line| line.matter.step == name && line.matter.is_undo == is_undo;
        self.lines.iter().filter(is_it)
    }

    /// Returns the executions of an action or of a compensation: their times and numbers.
    fn executions(&self, step: usize, is_undo: bool) -> Vec<(Duration, u64)> {
        let executed = |line: &Line| match line.kind {
            Kind::Executed(number) | Kind::ByHand(number) => Some((line.at, number)),
            _ => None,
        };
        self.of(step, is_undo).filter_map(executed).collect()
    }

    /// Returns the times at which requests for an action or a compensation arrived, or it was done
    /// by hand.
    fn beginnings(&self, step: usize, is_undo: bool) -> Vec<Duration> {
        let begins = |line: &&Line| matches!(line.kind, Kind::Arrived(_) | Kind::ByHand(_));
        self.of(step, is_undo).filter(begins).map(|line| line.at).collect()
    }

    /// Returns when the first compensation began.
    fn turned(&self) -> Option<Duration> {
        (0..self.plan.steps.len())
            .filter_map(|step| self.beginnings(step, true).first().copied())
            .min()
    }

    fn is_skipped(&self, step: usize) -> bool {
        self.plan.steps[step].if_paid && !self.is_paid
    }

    /// Returns whether a line shows the outcome of the request that arrived at `arrived`.
    fn shows_outcome(&self, line: &Line, arrived: Duration) -> bool {
        match line.kind {
            Kind::Answered(_) | Kind::Probed(true) => true,
            // An earlier "absent" does not count: the request may still be executed.
            Kind::Probed(false) => line.at + TOLERANCE >= arrived + UNCERTAIN_AFTER,
            Kind::AnsweredLate => self.is_troubled,
            Kind::Arrived(_) | Kind::Executed(_) | Kind::Settled(_) | Kind::ByHand(_) => false,
        }
    }

    /// Returns whether the outcome of the latest request before `at` was unknown then, also to the
    /// operator.
    fn is_in_doubt(&self, step: usize, is_undo: bool, at: Duration) -> bool {
        let lines = || self.of(step, is_undo).filter(|line| line.at < at);
        let last = lines().filter(|line| matches!(line.kind, Kind::Arrived(_))).last();
        let Some(last) = last else { return false };
        let settles = |line: &Line| {
            self.shows_outcome(line, last.at)
                || matches!(line.kind, Kind::Settled(_) | Kind::ByHand(_))
        };
        !lines().any(|line| line.at > last.at && settles(line))
    }

    /// Returns whether the outcome of any request before `at` was unknown for a time.
    fn was_in_doubt(&self, step: usize, is_undo: bool, at: Duration) -> bool {
        let mut arrived = None;
        for line in self.of(step, is_undo).filter(|line| line.at < at) {
            match (line.kind, arrived) {
                (Kind::Arrived(_) | Kind::Settled(_), Some(_)) => return true,
                (Kind::Arrived(_), None) => arrived = Some(line.at),
                (_, Some(at)) if self.shows_outcome(line, at) => arrived = None,
                _ => {}
            }
        }
        arrived.is_some()
    }
}

/// Checks the answers. Returns the end that they show.
fn answers(history: &History, found: &mut Vec<Violation>) -> Option<End> {
    found.extend(history.refusals.iter().map(|why| Violation::Refused(why.clone())));
    if history.has_vanished {
        found.push(Violation::Vanished);
    }
    let Some((_, first)) = history.finals.first() else {
        found.push(Violation::NotEnded);
        return None;
    };
    let body: Value = serde_json::from_slice(&first.body).unwrap_or_default();
    let end = if first.status == 201 { End::Completed } else { End::Failed };
    let status = if end == End::Completed { "completed" } else { "failed" };
    let is_same = |state: &Value| {
        state["status"] == status
            && state["answer"]["status"] == first.status
            && state["answer"]["body"] == body
    };
    if history.finals.iter().any(|(_, other)| other != first) || !history.states.iter().all(is_same)
    {
        found.push(Violation::AnswersDiffer);
    }
    if end == End::Completed {
        let is_named = |step: usize| {
            let executed = history.executions(step, false);
            let by_hand = history.of(step, false).any(|line| matches!(line.kind, Kind::ByHand(_)));
            let named = body[history.plan.steps[step].name].as_u64();
            by_hand
                || match named {
                    Some(named) => executed.iter().any(|(_, number)| *number == named),
                    None => history.is_skipped(step),
                }
        };
        // What was done by hand has no answer, so the saga's answer can't be rendered.
        let has_hand = history.lines.iter().any(|line| matches!(line.kind, Kind::ByHand(_)));
        if !has_hand && !(0..history.plan.steps.len()).all(is_named) {
            found.push(Violation::Invented);
        }
    }
    Some(end)
}

/// Checks the executions of an action, whatever the end is.
fn executions(history: &History, step: usize, found: &mut Vec<Violation>) {
    let executed = history.executions(step, false);
    if executed.len() > 1 {
        found.push(Violation::ExecutedAgain { step });
    }
    if history.is_skipped(step) && !history.beginnings(step, false).is_empty() {
        found.push(Violation::ExecutedThoughSkipped { step });
    }
    let turned = history.turned();
    if turned.is_some_and(|turned| executed.iter().any(|(at, _)| *at > turned)) {
        found.push(Violation::LandedAfterUndo { step });
    }
    if turned.is_some_and(|turned| history.is_in_doubt(step, false, turned)) {
        found.push(Violation::UndoneInDoubt { step });
    }
    let end = history.finals.iter().map(|(at, _)| *at).min();
    let all = executed.iter().chain(&history.executions(step, true)).map(|(at, _)| *at).max();
    if end.zip(all).is_some_and(|(end, last)| last > end) {
        found.push(Violation::LandedAfterEnd { step });
    }
    let begun = history.beginnings(step, false).first().copied();
    for earlier in history.plan.steps[step].after {
        let executed = history.executions(*earlier, false).first().map(|(at, _)| *at);
        let is_early = |begun| executed.is_none_or(|executed| begun < executed);
        if begun.is_some_and(is_early) && !history.is_skipped(*earlier) {
            found.push(Violation::TooEarly { step });
        }
    }
}

/// Checks the compensations of a step, whatever the end is.
fn compensations(history: &History, step: usize, found: &mut Vec<Violation>) {
    let executed = history.executions(step, false);
    if history.executions(step, true).len() > 1 {
        found.push(Violation::UndoneAgain { step });
    }
    let is_another = |line: &Line| match line.kind {
        Kind::Arrived(of) => !executed.iter().any(|(_, number)| Some(*number) == of),
        Kind::ByHand(_) => executed.is_empty(),
        _ => false,
    };
    if history.of(step, true).any(is_another) {
        found.push(Violation::UndoneAnother { step });
    }
    let Some(begun) = history.beginnings(step, true).first().copied() else { return };
    for later in 0..history.plan.steps.len() {
        let needs_undo = history.plan.steps[later].undo == Undo::Request
            && !history.executions(later, false).is_empty();
        let undone = history.executions(later, true).first().map(|(at, _)| *at);
        let is_late = undone.is_none_or(|undone| undone > begun);
        if history.plan.is_after(later, step) && needs_undo && is_late {
            found.push(Violation::UndoneOutOfOrder { step });
        }
    }
}

fn completed(history: &History, step: usize, found: &mut Vec<Violation>) {
    if history.executions(step, false).is_empty() && !history.is_skipped(step) {
        found.push(Violation::NotExecuted { step });
    }
    if !history.beginnings(step, true).is_empty() {
        found.push(Violation::UndoneThoughCompleted { step });
    }
}

fn failed(history: &History, step: usize, found: &mut Vec<Violation>) {
    let is_executed = !history.executions(step, false).is_empty();
    let planned = &history.plan.steps[step];
    if is_executed && planned.undo == Undo::Request && history.executions(step, true).is_empty() {
        found.push(Violation::NotUndone { step });
    }
    if is_executed && planned.pivot {
        found.push(Violation::FailedAfterPivot);
    }
}

/// Checks that the ledgers bear out why the saga failed, and why it was stuck.
fn reasons(history: &History, end: Option<End>, found: &mut Vec<Violation>) {
    let refused = |step: usize, is_undo: bool, status: Option<u64>| {
        let mut lines = history.of(step, is_undo);
        lines.any(|line| match (line.kind, status) {
            (Kind::Answered(answered), Some(status)) => u64::from(answered) == status,
            (Kind::Answered(answered), None) => answered >= 400,
            _ => false,
        })
    };
    if end == Some(End::Failed) {
        let body: Value = serde_json::from_slice(&history.finals[0].1.body).unwrap_or_default();
        let is_borne_out = match (body["step"].as_str(), body["cause"].as_str()) {
            (Some(name), None) => {
                let status = body["step_status"].as_u64();
                let step = history.plan.position(name);
                // Without a status, no connection was possible.
                refused(step, false, status) || status.is_none() && history.is_troubled
            }
            (None, Some("cancel")) => history.is_cancelled,
            (None, Some("timeout")) => history.plan.timeout.is_some(),
            _ => false,
        };
        if !is_borne_out {
            found.push(Violation::FailedForNothing);
        }
    }
    for stuck in &history.stuck {
        let Stuck { at, step, is_undo, in_doubt } = *stuck;
        let is_borne_out = match in_doubt {
            true => history.is_troubled || history.was_in_doubt(step, is_undo, at),
            false => refused(step, is_undo, None),
        };
        if !is_borne_out {
            found.push(Violation::StuckForNothing { step });
        }
    }
}

#[cfg(test)]
mod tests;
