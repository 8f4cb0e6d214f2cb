//! Handmade histories: correct ones pass, and each kind of violation in them is reported, and
//! nothing else.

use serde_json::json;

use super::*;
use crate::sagas::plan::PLANS;
use crate::sagas::services::Matter;

const RESERVE: usize = 0;
const CHARGE: usize = 1;
const SHIP: usize = 2;

fn plan(name: &str) -> &'static Plan {
    PLANS.iter().find(|plan| plan.name == name).unwrap()
}

fn ms(at: u64) -> Duration {
    Duration::from_millis(at)
}

fn answer(status: u16, body: &Value) -> FinalAnswer {
    let body = body.to_string().into_bytes();
    FinalAnswer { status, fields: Vec::new(), body }
}

/// Lines of a request that is executed and answered: `at`, then 10 ms and 20 ms later.
fn executed(at: u64, plan: &Plan, step: usize, undone: Option<u64>, number: u64) -> Vec<Line> {
    let kinds = [Kind::Arrived(undone), Kind::Executed(number), Kind::Answered(201)];
    let at = |n: usize| ms(at + 10 * n as u64);
    let is_undo = undone.is_some();
    kinds.into_iter().enumerate().map(|(n, kind)| line(at(n), plan, step, is_undo, kind)).collect()
}

fn line(at: Duration, plan: &Plan, step: usize, is_undo: bool, kind: Kind) -> Line {
    let step = plan.steps[step].name.to_owned();
    let matter = Matter { order: "o".into(), step, is_undo };
    Line { at, kind, matter, key: "k".into() }
}

fn history(plan: &'static Plan, lines: Vec<Line>, end: FinalAnswer) -> History {
    let status = if end.status == 201 { "completed" } else { "failed" };
    let body: Value = serde_json::from_slice(&end.body).unwrap();
    let state = json!({ "status": status, "answer": { "status": end.status, "body": body } });
    let mut lines = lines;
    lines.sort_by_key(|line| line.at);
    History {
        plan,
        is_paid: true,
        lines,
        finals: vec![(ms(9_000), end)],
        states: vec![state],
        refusals: Vec::new(),
        stuck: Vec::new(),
        has_vanished: false,
        is_cancelled: false,
        is_troubled: false,
    }
}

/// Three steps one after the other, and their answer.
fn completed(name: &str) -> History {
    let plan = plan(name);
    let lines = (0..3).flat_map(|step| executed(100 * step, plan, step as usize, None, 1 + step));
    let body = json!({ "order": "o", "reserve": 1, "charge": 2, "ship": 3 });
    history(plan, lines.collect(), answer(201, &body))
}

/// The third step is refused, and the others are undone in reverse order.
fn undone(name: &str) -> History {
    let plan = plan(name);
    let mut lines = executed(0, plan, RESERVE, None, 1);
    lines.extend(executed(100, plan, CHARGE, None, 2));
    lines.push(line(ms(200), plan, SHIP, false, Kind::Arrived(None)));
    lines.push(line(ms(210), plan, SHIP, false, Kind::Answered(422)));
    lines.extend(executed(6_000, plan, CHARGE, Some(2), 4));
    lines.extend(executed(6_100, plan, RESERVE, Some(1), 5));
    history(plan, lines, answer(409, &json!({ "step": "ship", "step_status": 422 })))
}

impl History {
    /// Removes the lines of a step and a direction.
    fn without(mut self, step: usize, is_undo: bool) -> History {
        let name = self.plan.steps[step].name;
        self.lines.retain(|line| line.matter.step != name || line.matter.is_undo != is_undo);
        self
    }

    fn with(mut self, lines: impl IntoIterator<Item = Line>) -> History {
        self.lines.extend(lines);
        self.lines.sort_by_key(|line| line.at);
        self
    }

    fn ends_with(mut self, body: &Value) -> History {
        self.finals[0].1 = answer(self.finals[0].1.status, body);
        self.states[0]["answer"]["body"] = body.clone();
        self
    }
}

#[track_caller]
fn finds(history: &History, violations: &[Violation]) {
    assert_eq!(check(history), violations, "{history:#?}");
}

#[test]
fn histories_that_keep_every_promise_have_no_violation() {
    for name in ["line", "branches", "join", "pivot"] {
        finds(&completed(name), &[]);
    }
    for name in ["line", "branches", "join"] {
        finds(&undone(name), &[]);
    }
    let mut skipped = completed("sometimes").without(CHARGE, false);
    skipped.is_paid = false;
    finds(&skipped.ends_with(&json!({ "reserve": 1, "charge": null, "ship": 3 })), &[]);
}

#[test]
fn a_saga_without_an_end_is_found() {
    let mut endless = completed("line");
    endless.finals.clear();
    endless.states.clear();
    finds(&endless, &[Violation::NotEnded]);
    let mut vanished = completed("line");
    vanished.has_vanished = true;
    finds(&vanished, &[Violation::Vanished]);
    let mut refused = completed("line");
    refused.refusals.push("key-reused".into());
    finds(&refused, &[Violation::Refused("key-reused".into())]);
}

#[test]
fn other_answers_of_the_same_saga_are_found() {
    let mut other = completed("line");
    other.finals.push((ms(9_100), answer(201, &json!({ "reserve": 1, "charge": 2, "ship": 4 }))));
    finds(&other, &[Violation::AnswersDiffer]);
    let mut other = completed("line");
    other.states[0]["status"] = json!("failed");
    finds(&other, &[Violation::AnswersDiffer]);
}

#[test]
fn an_answer_with_another_execution_is_found() {
    let invented = completed("line").ends_with(&json!({ "reserve": 1, "charge": 7, "ship": 3 }));
    finds(&invented, &[Violation::Invented]);
}

#[test]
fn a_failure_without_a_reason_is_found() {
    for body in [
        json!({ "step": "ship", "step_status": 404 }),
        json!({ "step": "charge", "step_status": null }),
        json!({ "step": null, "cause": "cancel" }),
        json!({ "step": null, "cause": "timeout" }),
    ] {
        finds(&undone("line").ends_with(&body), &[Violation::FailedForNothing]);
    }
    let mut cancelled = undone("line").ends_with(&json!({ "step": null, "cause": "cancel" }));
    cancelled.is_cancelled = true;
    finds(&cancelled, &[]);
}

#[test]
fn a_stuck_saga_without_a_reason_is_found() {
    for in_doubt in [true, false] {
        let mut stuck = completed("line");
        stuck.stuck.push(Stuck { at: ms(50), step: RESERVE, is_undo: false, in_doubt });
        finds(&stuck, &[Violation::StuckForNothing { step: RESERVE }]);
    }
    // What the operator settled is still shown as stuck for a moment.
    let plan = plan("line");
    let mut held = completed("line").without(SHIP, false).with([
        line(ms(200), plan, SHIP, false, Kind::Arrived(None)),
        line(ms(210), plan, SHIP, false, Kind::Executed(3)),
        line(ms(300), plan, SHIP, false, Kind::Settled(true)),
    ]);
    held.stuck.push(Stuck { at: ms(310), step: SHIP, is_undo: false, in_doubt: true });
    finds(&held, &[]);
}

#[test]
fn an_action_that_is_executed_twice_or_never_is_found() {
    let plan = plan("line");
    let again = completed("line").with(executed(300, plan, SHIP, None, 9));
    finds(&again, &[Violation::ExecutedAgain { step: SHIP }]);
    let never = completed("line").without(SHIP, false);
    finds(&never, &[Violation::Invented, Violation::NotExecuted { step: SHIP }]);
}

#[test]
fn an_action_that_its_condition_excludes_is_found() {
    let mut history = completed("sometimes");
    history.is_paid = false;
    finds(&history, &[Violation::ExecutedThoughSkipped { step: CHARGE }]);
}

#[test]
fn an_action_before_an_action_that_it_follows_is_found() {
    let plan = plan("line");
    let early = completed("line").without(CHARGE, false).with(executed(5, plan, CHARGE, None, 2));
    finds(&early, &[Violation::TooEarly { step: CHARGE }]);
}

#[test]
fn a_compensation_of_a_completed_saga_is_found() {
    let plan = plan("line");
    let half = completed("line").with(executed(300, plan, SHIP, Some(3), 9));
    finds(&half, &[Violation::UndoneThoughCompleted { step: SHIP }]);
}

#[test]
fn an_action_that_is_not_undone_or_undone_twice_is_found() {
    finds(&undone("line").without(RESERVE, true), &[Violation::NotUndone { step: RESERVE }]);
    let again = undone("line").with(executed(6_200, plan("line"), RESERVE, Some(1), 9));
    finds(&again, &[Violation::UndoneAgain { step: RESERVE }]);
}

#[test]
fn a_compensation_of_another_execution_is_found() {
    let plan = plan("line");
    let other =
        undone("line").without(RESERVE, true).with(executed(6_100, plan, RESERVE, Some(7), 5));
    finds(&other, &[Violation::UndoneAnother { step: RESERVE }]);
}

#[test]
fn compensations_in_another_order_are_found() {
    let (line, branches) = (plan("line"), plan("branches"));
    let early = executed(5_900, line, RESERVE, Some(1), 5);
    let early = undone("line").without(RESERVE, true).with(early);
    finds(&early, &[Violation::UndoneOutOfOrder { step: RESERVE }]);
    let free = executed(5_900, branches, RESERVE, Some(1), 5);
    finds(&undone("branches").without(RESERVE, true).with(free), &[]);
}

#[test]
fn a_compensation_beside_an_action_in_doubt_is_found() {
    let plan = plan("branches");
    let lost = |lines: &[(u64, Kind)]| {
        let lines = lines.iter().map(|(at, kind)| line(ms(*at), plan, SHIP, false, *kind));
        let history = undone("branches").without(SHIP, false).with(lines);
        history.ends_with(&json!({ "step": null, "cause": "cancel" }))
    };
    let in_doubt = [Violation::UndoneInDoubt { step: SHIP }];
    let arrived = (200, Kind::Arrived(None));
    for (lines, violations) in [
        (&[arrived][..], &in_doubt[..]),
        // An "absent" counts when a late execution would have come.
        (&[arrived, (3_000, Kind::Probed(false))], &in_doubt),
        (&[arrived, (3_700, Kind::Probed(false))], &[]),
        (&[arrived, (3_700, Kind::Probed(false)), (4_000, Kind::Arrived(None))], &in_doubt),
        (&[arrived, (300, Kind::Settled(false))], &[]),
        (&[arrived, (300, Kind::AnsweredLate)], &in_doubt),
    ] {
        let mut history = lost(lines);
        history.is_cancelled = true;
        finds(&history, violations);
    }
}

#[test]
fn an_action_that_lands_after_a_compensation_is_found() {
    let plan = plan("branches");
    let mut late = undone("branches");
    late.lines.retain(|line| line.matter.step != "charge");
    let lines = [
        line(ms(100), plan, CHARGE, false, Kind::Arrived(None)),
        line(ms(4_000), plan, CHARGE, false, Kind::Settled(false)),
        line(ms(6_150), plan, CHARGE, false, Kind::Executed(2)),
    ];
    let late = late.with(lines).with(executed(6_200, plan, CHARGE, Some(2), 4));
    finds(&late, &[Violation::LandedAfterUndo { step: CHARGE }]);
}

#[test]
fn an_execution_after_the_answer_is_found() {
    let plan = plan("line");
    let late = executed(9_100, plan, RESERVE, Some(1), 5);
    let late = undone("line").without(RESERVE, true).with(late);
    finds(&late, &[Violation::LandedAfterEnd { step: RESERVE }]);
}

#[test]
fn a_saga_that_fails_after_its_pivot_is_found() {
    let failed = undone("pivot").without(CHARGE, true);
    finds(&failed, &[Violation::FailedAfterPivot]);
}
