//! Handmade histories: a correct one passes, and each kind of violation in it is reported, and
//! nothing else.

use super::*;

const S: Duration = Duration::from_secs(1);

fn final_answer(execution: u64) -> FinalAnswer {
    FinalAnswer {
        status: 201,
        fields: vec![("date".into(), "Tue, 24 Nov 2026 00:19:15 GMT".into())],
        body: format!("{{\"payment\":{execution},\"key\":\"k\"}}").into_bytes(),
    }
}

fn tried(key: usize, gateway: usize, at: u32, saw: Saw) -> Try {
    Try { key, gateway, from: S * at, to: S * (at + 1), saw }
}

fn answer(execution: u64, replayed: bool) -> Saw {
    Saw::Final { answer: final_answer(execution), replayed }
}

/// Two keys: one paid at once, one after a gateway was killed.
fn good() -> History {
    History {
        keys: 20,
        tries: vec![
            tried(0, 0, 0, answer(1, false)),
            tried(0, 1, 2, answer(1, true)),
            tried(1, 0, 0, Saw::Broken),
            tried(1, 1, 2, Saw::Uncertain),
            tried(1, 1, 4, answer(2, true)),
            tried(2, 1, 0, Saw::Again("in-flight".into())),
            tried(2, 1, 2, Saw::Left),
        ],
        executed: HashMap::from([(0, vec![1]), (1, vec![2])]),
        written: HashMap::from([(0, S / 10), (1, S * 5)]),
        outages: vec![Outage { gateway: 0, from: S / 2, to: S, lack: Lack::Life }],
        replays: vec![
            (0, 0, Some(final_answer(1))),
            (0, 1, Some(final_answer(1))),
            (1, 0, Some(final_answer(2))),
            (1, 1, Some(final_answer(2))),
        ],
        unsettled: 1,
    }
}

#[track_caller]
fn reports(expected: Violation, spoil: impl FnOnce(&mut History)) {
    let mut history = good();
    spoil(&mut history);
    assert_eq!(check(&history), [expected]);
}

#[test]
fn a_good_history_is_no_violation() {
    assert_eq!(check(&good()), []);
}

#[test]
fn a_second_execution_is_reported() {
    reports(Violation::ExecutedAgain { key: 1, executions: 2 }, |history| {
        history.executed.get_mut(&1).unwrap().push(3);
    });
}

#[test]
fn a_second_execution_without_any_answer_is_reported() {
    reports(Violation::ExecutedAgain { key: 2, executions: 2 }, |history| {
        history.executed.insert(2, vec![8, 9]);
    });
}

#[test]
fn an_answer_that_differs_in_status_fields_or_body_is_reported() {
    let changes: [fn(&mut FinalAnswer); 3] = [
        |answer| answer.status = 200,
        |answer| answer.fields.push(("x".into(), "1".into())),
        |answer| answer.body.push(b' '),
    ];
    for change in changes {
        reports(Violation::AnswersDiffer { key: 0 }, |history| {
            let Saw::Final { answer, .. } = &mut history.tries[1].saw else { unreachable!() };
            change(answer);
        });
    }
}

#[test]
fn an_answer_of_no_execution_is_reported() {
    reports(Violation::Invented { key: 0 }, |history| _ = history.executed.remove(&0));
    reports(Violation::Invented { key: 0 }, |history| {
        history.executed.insert(0, vec![7]).map_or((), drop)
    });
}

#[test]
fn a_replay_that_passes_for_the_first_answer_is_reported() {
    reports(Violation::NotMarked { key: 0 }, |history| history.tries[1].saw = answer(1, false));
}

#[test]
fn an_answer_that_one_gateway_has_lost_or_changed_is_reported() {
    reports(Violation::Lost { key: 0, gateway: 1 }, |history| history.replays[1].2 = None);
    reports(Violation::Lost { key: 0, gateway: 1 }, |history| {
        history.replays[1].2 = Some(final_answer(9))
    });
    reports(Violation::Lost { key: 1, gateway: 0 }, |history| history.replays.truncate(2));
}

#[test]
fn doubt_without_a_reason_is_reported() {
    reports(Violation::NeedlesslyUncertain { key: 1 }, |history| history.outages.clear());
    // Another gateway's failure is no reason, nor is a failure that came later or was over before.
    reports(Violation::NeedlesslyUncertain { key: 1 }, |history| history.outages[0].gateway = 1);
    reports(Violation::NeedlesslyUncertain { key: 1 }, |history| {
        (history.outages[0].from, history.outages[0].to) = (S * 4, S * 5);
    });
    reports(Violation::NeedlesslyUncertain { key: 1 }, |history| {
        history.tries[2].from = S * 3 / 2;
    });
    // Nor is a store failure that ended long enough before.
    reports(Violation::NeedlesslyUncertain { key: 1 }, |history| {
        history.outages[0].lack = Lack::Store;
        (history.tries[3].from, history.tries[3].to) = (S * 6, S * 7);
        history.written.remove(&1);
    });
}

#[test]
fn doubt_about_what_was_written_is_right() {
    let mut history = good();
    history.outages.clear();
    history.written.insert(1, S);
    assert_eq!(check(&history), []);
}

#[test]
fn a_refusal_without_a_retry_is_reported() {
    reports(Violation::Refused { key: 2, why: "key-reused".into() }, |history| {
        history.tries[5].saw = Saw::Refused("key-reused".into());
    });
}

#[test]
fn too_much_that_is_left_in_doubt_is_reported() {
    reports(Violation::Unsettled { operations: 2 }, |history| history.unsettled = 2);
}
