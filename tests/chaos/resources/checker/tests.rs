//! Handmade histories: correct ones pass, and each kind of violation in them is reported, and
//! nothing else.

use serde_json::json;

use super::*;
use crate::resources::kinds::KINDS;

const PATH: &str = "/v1/orders/r1";

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap()
}

fn ms(at: u64) -> Duration {
    Duration::from_millis(at)
}

fn document(by: &str) -> Value {
    json!({ "by": by, "version": by })
}

/// Returns the tag of the document that a write wrote.
fn tag(by: &str) -> String {
    kind("orders").tag_of(&document(by)).unwrap()
}

fn answered(status: u16, body: &str) -> Saw {
    Saw::Answered(FinalAnswer { status, fields: Vec::new(), body: body.as_bytes().to_vec() })
}

fn write(id: &str, condition: Condition, saw: &[Saw]) -> Write {
    let one = |(n, saw): (usize, &Saw)| {
        let at = 100 * n as u64;
        Try { began: ms(at), at: ms(at + 50), gateway: 0, faults: Vec::new(), saw: saw.clone() }
    };
    Write {
        id: id.into(),
        kind: kind("orders"),
        path: PATH.into(),
        condition,
        patch: None,
        has_key: true,
        tries: saw.iter().enumerate().map(one).collect(),
        is_given_up: false,
    }
}

fn named(by: &str) -> Condition {
    Condition::Tags(vec![tag(by)])
}

fn executed(id: &str, before: Option<&str>) -> Execution {
    let before = before.map(document);
    Execution { path: PATH.into(), before, after: Some(document(id)), write: id.into() }
}

/// Two writes, one after the other, and one that came too late.
fn sound() -> History {
    History {
        writes: vec![
            write("a", named(""), &[Saw::Nothing, answered(200, "a"), answered(200, "a")]),
            write("b", named("a"), &[Saw::Again("resource-busy".into()), answered(200, "b")]),
            write("c", named("a"), &[Saw::Failed]),
        ],
        ledger: vec![executed("a", Some("")), executed("b", Some("a"))],
        first: HashMap::from([(PATH.to_owned(), document(""))]),
        shown: vec![shown(&tag("b"))],
        ..History::default()
    }
}

fn shown(tag: &str) -> Shown {
    Shown { kind: "orders", path: PATH.into(), tag: tag.into(), expected: None }
}

/// Changes the sound history; returns what the checker reports.
fn changed(change: impl FnOnce(&mut History)) -> Vec<Violation> {
    let mut history = sound();
    change(&mut history);
    check(&history)
}

fn of(write: &str) -> String {
    write.to_owned()
}

#[test]
fn a_sound_history_passes() {
    assert_eq!(check(&sound()), []);
}

#[test]
fn a_write_over_another_version_is_a_lost_update() {
    let lost = [Violation::LostUpdate { write: of("b") }];
    assert_eq!(changed(|history| history.ledger[1] = executed("b", Some("x"))), lost);
    assert_eq!(changed(|history| history.ledger[1] = executed("b", None)), lost);
    let elsewhere = |history: &mut History| {
        history.ledger[1].path = "/v1/orders/r2".into();
        history.shown.clear();
    };
    assert_eq!(changed(elsewhere), lost);
    let weak = Condition::Tags(vec![format!("W/{}", tag("a"))]);
    assert_eq!(changed(|history| history.writes[1].condition = weak), lost);
    assert_eq!(changed(|history| history.writes[1].condition = Condition::Creates), lost);
    assert_eq!(changed(|history| history.writes.truncate(1)), lost, "nobody sent it");
    let exists = |history: &mut History| {
        history.writes[1].condition = Condition::Exists;
        history.ledger[1] = executed("b", None);
    };
    assert_eq!(changed(exists), lost);
    let in_trouble = |history: &mut History| {
        exists(history);
        history.troubles = vec![(ms(120), ms(130))];
    };
    assert_eq!(changed(in_trouble), [], "no look was possible");
}

#[test]
fn an_overwritten_version_is_in_the_log() {
    let overwrites = |history: &mut History| {
        history.writes[1].kind = kind("prices");
        history.ledger[1] = executed("b", Some("x"));
    };
    let found = [Violation::NotLogged { write: of("b") }];
    assert_eq!(changed(overwrites), found);
    let in_the_events = |history: &mut History| {
        overwrites(history);
        history.overwritten = HashSet::from([tag("x")]);
    };
    assert_eq!(changed(in_the_events), []);
    let in_the_log = |history: &mut History| {
        overwrites(history);
        history.logged = format!("tag={:?}", tag("x"));
    };
    assert_eq!(changed(in_the_log), found, "its gateway saw the outcome");
    let of_a_dead_gateway = |history: &mut History| {
        in_the_log(history);
        history.writes[1].tries.pop();
    };
    assert_eq!(changed(of_a_dead_gateway), []);
}

#[test]
fn a_patch_is_merged_only_if_its_members_are_unchanged() {
    let merges = |members: [&'static str; 1]| {
        changed(|history| {
            let before = json!({ "by": "x", "version": "a" });
            history.writes[1].kind = kind("profiles");
            history.writes[1].patch = Some(members.to_vec());
            history.ledger[1].before = Some(before);
        })
    };
    assert_eq!(merges(["version"]), []);
    assert_eq!(merges(["by"]), [Violation::LostUpdate { write: of("b") }]);
}

#[test]
fn a_write_is_executed_at_most_once() {
    let twice = |history: &mut History| history.ledger.push(executed("b", Some("a")));
    let found = [Violation::ExecutedAgain { write: of("b") }];
    assert_eq!(changed(twice), found);
    let without_key = |history: &mut History| {
        twice(history);
        history.writes[1].has_key = false;
    };
    assert_eq!(changed(without_key), found, "the version is not there any more");
    let of_any_version = |history: &mut History| {
        without_key(history);
        history.writes[1].condition = Condition::Exists;
    };
    assert_eq!(changed(of_any_version), []);
}

#[test]
fn answers_agree_with_the_ledger_and_with_each_other() {
    let not_executed = [Violation::NotExecuted { write: of("b") }];
    let removed = |history: &mut History| {
        history.ledger.pop();
        history.shown.clear();
    };
    assert_eq!(changed(removed), not_executed);
    let refused = [Violation::RefusedThoughExecuted { write: of("b") }];
    let fails = |history: &mut History| history.writes[1].tries[1].saw = Saw::Failed;
    assert_eq!(changed(fails), refused);
    let rejects = |history: &mut History| history.writes[1].tries[1].saw = answered(422, "b");
    assert_eq!(changed(rejects), refused);
    let repeats = |history: &mut History| {
        history.writes[1].has_key = false;
        history.writes[1].tries[1].saw = Saw::Failed;
    };
    assert_eq!(changed(repeats), [], "the version may be its own first try's");
    let differs = |history: &mut History| history.writes[0].tries[2].saw = answered(200, "x");
    assert_eq!(changed(differs), [Violation::AnswersDiffer { write: of("a") }]);
}

#[test]
fn a_writer_gets_an_answer_and_a_doubt_has_a_reason() {
    let why = "key-reused".to_owned();
    let refuses = |history: &mut History| {
        history.writes[0].tries[0].saw = Saw::Refused("key-reused".into());
    };
    assert_eq!(changed(refuses), [Violation::Refused { write: of("a"), why }]);
    let given_up = |history: &mut History| history.writes[2].is_given_up = true;
    assert_eq!(changed(given_up), [Violation::NotEnded { write: of("c") }]);
    let doubts = |history: &mut History| history.writes[0].tries[0].saw = Saw::Uncertain;
    assert_eq!(changed(doubts), [Violation::UncertainForNothing { write: of("a") }]);
    let for_a_loss = |history: &mut History| {
        doubts(history);
        history.writes[0].tries[0].faults = vec!["late 200".into()];
    };
    assert_eq!(changed(for_a_loss), []);
    let in_trouble = |history: &mut History| {
        doubts(history);
        history.troubles = vec![(ms(0), ms(20))];
    };
    assert_eq!(changed(in_trouble), []);
}

#[test]
fn each_tag_is_that_of_a_version_and_in_the_end_anybody_can_write() {
    let (path, other) = (PATH.to_owned(), tag("x"));
    let wrong = [Violation::WrongTag { path: path.clone(), tag: other.clone() }];
    assert_eq!(changed(|history| history.shown.push(shown(&other))), wrong);
    let beside = |history: &mut History| history.shown[0].expected = Some(tag("a"));
    let wrong = [Violation::WrongTag { path: path.clone(), tag: tag("b") }];
    assert_eq!(changed(beside), wrong, "it is not that of the document beside it");
    let unwritable = |history: &mut History| history.unwritable.push(path.clone());
    assert_eq!(changed(unwritable), [Violation::Unwritable { path: path.clone() }]);
}
