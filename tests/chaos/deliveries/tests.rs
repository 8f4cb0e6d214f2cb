//! Handmade histories of events: a correct one passes, and each fault in it is reported, and
//! nothing else.

use super::*;

const S: Duration = Duration::from_secs(1);

fn change(version: u64, state: State) -> Change {
    Change { operation: "op_1".into(), version, state }
}

fn attempt(sink: &str, version: u64, state: State, at: u32, is_taken: bool) -> Attempt {
    let completed = (state == State::Completed).then_some(());
    Attempt {
        sink: sink.into(),
        event: change(version, state),
        id: format!("ev_{version}"),
        opened: "2026-01-01T00:00:00Z".into(),
        body: format!("event {version}").into_bytes(),
        order: "k1".into(),
        status: completed.map(|()| 201),
        execution: completed.map(|()| 7),
        at: S * at,
        answered: Some(S * at + S / 2),
        is_taken,
    }
}

/// An operation that becomes uncertain and is found. One sink refuses an event at first, and the
/// other one for ever.
fn good() -> Deliveries {
    Deliveries {
        changes: vec![
            change(1, State::Claimed),
            change(2, State::Uncertain),
            change(3, State::Completed),
        ],
        answered: vec![AnsweredKey { name: "k1".into(), status: 201, execution: Some(7) }],
        attempts: vec![
            attempt("ledger", 2, State::Uncertain, 1, false),
            attempt("ledger", 2, State::Uncertain, 2, true),
            attempt("ledger", 3, State::Completed, 4, true),
            attempt("mail", 3, State::Completed, 5, false),
        ],
        dead: BTreeSet::from([("mail".to_owned(), "ev_3".to_owned())]),
        waiting: 0,
        kills: Vec::new(),
    }
}

#[track_caller]
fn reports(expected: &[Fault], spoil: impl FnOnce(&mut Deliveries)) {
    let mut deliveries = good();
    spoil(&mut deliveries);
    assert_eq!(check(&deliveries), expected);
}

#[test]
fn a_good_history_of_events_has_no_fault() {
    reports(&[], |_| {});
}

#[test]
fn a_change_without_an_event_is_a_fault() {
    let lost = Fault::NoEvent { sink: "ledger".into(), change: change(2, State::Uncertain) };
    reports(&[lost], |deliveries| {
        deliveries.attempts.drain(..2);
    });
}

#[test]
fn an_event_that_nobody_took_and_nobody_buried_is_a_fault() {
    let lost = Fault::NoEvent { sink: "mail".into(), change: change(3, State::Completed) };
    let answer = Fault::NoEventOfAnswer { sink: "mail".into(), key: "k1".into() };
    reports(&[lost, answer], |deliveries| deliveries.dead.clear());
}

#[test]
fn an_operation_is_announced_as_uncertain_once() {
    reports(&[], |deliveries| {
        deliveries.changes.insert(2, change(4, State::Claimed));
        deliveries.changes.insert(3, change(5, State::Uncertain));
    });
}

#[test]
fn a_release_from_uncertain_has_an_event_and_a_given_up_claim_may_have_none() {
    let released = change(8, State::Released);
    let missing = ["ledger", "mail"]
        .map(|sink| Fault::NoEvent { sink: sink.to_owned(), change: released.clone() });
    reports(&missing, |deliveries| {
        deliveries.changes.extend([change(7, State::Uncertain), released.clone()]);
        deliveries.changes.extend([change(9, State::Claimed), change(10, State::Released)]);
    });
}

#[test]
fn an_event_without_its_change_is_a_fault() {
    reports(&[Fault::NoChange { id: "ev_9".into() }], |deliveries| {
        deliveries.attempts.push(attempt("ledger", 9, State::Released, 6, true));
    });
}

#[test]
fn an_event_with_another_answer_is_a_fault() {
    let found = [
        Fault::NoEventOfAnswer { sink: "ledger".into(), key: "k1".into() },
        Fault::NoChange { id: "ev_3".into() },
    ];
    reports(&found, |deliveries| deliveries.attempts[2].execution = Some(8));
}

#[test]
fn one_id_with_two_contents_is_a_fault() {
    reports(&[Fault::TwoContents { id: "ev_2".into() }], |deliveries| {
        deliveries.attempts[1].body.push(b'.');
    });
}

#[test]
fn a_later_event_before_an_earlier_one_is_a_fault() {
    let found = Fault::OutOfOrder { sink: "ledger".into(), operation: "op_1".into() };
    reports(&[found], |deliveries| {
        let later = &mut deliveries.attempts[2];
        (later.at, later.answered) = (S * 7 / 4, Some(S * 15 / 8));
    });
}

#[test]
fn two_attempts_at_once_are_a_fault() {
    let found = Fault::TwoAtOnce { sink: "ledger".into(), operation: "op_1".into() };
    reports(&[found], |deliveries| deliveries.attempts[1].at = S + S / 4);
}

#[test]
fn an_attempt_beside_the_last_one_of_a_killed_gateway_is_no_fault() {
    reports(&[], |deliveries| {
        deliveries.attempts[1].at = S + S / 4;
        deliveries.kills = vec![S + S / 8];
    });
    let found = Fault::TwoAtOnce { sink: "ledger".into(), operation: "op_1".into() };
    reports(&[found], |deliveries| {
        deliveries.attempts[1].at = S + S / 4;
        deliveries.kills = vec![S / 2, S * 2];
    });
}

#[test]
fn events_that_wait_in_the_end_are_a_fault() {
    reports(&[Fault::Waiting { events: 2 }], |deliveries| deliveries.waiting = 2);
}
