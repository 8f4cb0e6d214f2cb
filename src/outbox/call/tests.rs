//! The rules of calls: what an attempt does, what an outcome means, and what a requeue begins.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::note::{CallNote, CallStep, RoundState};
use super::outcome::{CallConclusion, NoteChange, concluded, is_never_sent};
use super::requeue::RequeueRule;
use crate::event::{EventDraft, finished};
use crate::gate::CallOutcome;
use crate::key::{Key, KeySyntax, Slot, Space};
use crate::outbox::caller::{CALL_KEY_BYTES, CallRequest, call_key};
use crate::outbox::conclusion::Conclusion;
use crate::record::{
    Cause, MEMBER_DEPTH_MAX, Reply, ReplyBody, Settler, State, StatusClass, chosen_member,
};
use crate::refusal::Refusal;
use crate::store::dead_letters::{Burial, DeadLetter, DeadLetterKind, RoundChange};
use crate::store::outbox::{EventContent, EventKey, EventOrder};
use crate::store::suite::slot;
use crate::template::json_value;

const AGE: Duration = Duration::from_secs(80);

fn operation() -> Slot {
    slot(Space::Enforced, 1)
}

fn note(state: RoundState) -> CallNote {
    CallNote {
        round: 3,
        state,
        is_untried: false,
        operation: operation().to_string(),
        announced: vec![StatusClass::Code(409), StatusClass::Class(5)],
        request: CallRequest {
            route: "shipments".into(),
            method: "POST".into(),
            target: "/v1/shipments".into(),
            body: Some("{}".into()),
        },
    }
}

fn reply(status: u16) -> Arc<Reply> {
    Arc::new(Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: ReplyBody::Whole(Bytes::from(vec![b'x'; 1000])),
        trailers: None,
    })
}

fn answered(status: u16) -> CallOutcome {
    CallOutcome::Answered { operation: operation(), reply: reply(status), replayed: false }
}

/// Returns the name of a conclusion, with the status or the pause in ms.
fn named(conclusion: &Conclusion) -> (&'static str, u64) {
    match conclusion {
        Conclusion::Delivered => ("delivered", 0),
        Conclusion::Refused => ("refused", 0),
        Conclusion::Retry { report, .. } => ("retry", report.status.unwrap_or(0).into()),
        Conclusion::Wait { pause } => ("wait", u64::try_from(pause.as_millis()).unwrap()),
        Conclusion::Bury { kind, report } => (kind.name(), report.status.unwrap_or(0).into()),
        Conclusion::Gone => ("gone", 0),
        Conclusion::StoreAway => ("store away", 0),
    }
}

#[test]
fn each_outcome_has_its_meaning_for_the_event_and_for_the_round() {
    let operation = operation();
    let second = Duration::from_secs(1);
    let uncertain = |retry_after| CallOutcome::Uncertain { operation, retry_after };
    let nothing = |was_released| CallOutcome::NothingToContinue { operation, was_released };
    let overloaded = CallOutcome::NotSent { refusal: Refusal::Overloaded, retryable: true };
    let too_large =
        CallOutcome::NotSent { refusal: Refusal::BodyTooLarge { limit: 1 }, retryable: false };
    let reused = CallOutcome::NotSent {
        refusal: Refusal::KeyReused { slot: operation, explained: None },
        retryable: false,
    };
    let unreadable = CallOutcome::NotSent {
        refusal: Refusal::RecordUnreadable { slot: operation },
        retryable: true,
    };
    let released = CallOutcome::Released { operation, reply: reply(503) };
    let in_flight = |retry_after| CallOutcome::InFlight { operation, retry_after };
    let away = CallOutcome::StoreUnavailable { retry_after: second };
    use NoteChange::{Expire, Keep, Refuse, TakeBack};
    // The outcome, its meaning, and the change of the note after a call that began the round and
    // after one that looked.
    let table = [
        (answered(201), ("delivered", 0), Keep, Keep),
        (answered(409), ("refused", 0), Keep, Keep),
        (answered(422), ("receiver", 422), Keep, Keep),
        (answered(302), ("receiver", 302), Keep, Keep),
        // Only a refusal is compensated, even if the route publishes other answers too.
        (answered(500), ("receiver", 500), Keep, Keep),
        (released, ("retry", 503), TakeBack, TakeBack),
        (overloaded, ("retry", 0), TakeBack, Keep),
        (away, ("retry", 0), TakeBack, Keep),
        (too_large, ("gateway", 0), Refuse, Keep),
        // There is a record under the key, so nothing shows that the round never began.
        (reused, ("gateway", 0), TakeBack, Keep),
        (unreadable, ("retry", 0), TakeBack, Keep),
        (in_flight(second), ("wait", 1000), Keep, Keep),
        (in_flight(60 * second), ("wait", 10_000), Keep, Keep),
        (uncertain(Some(second)), ("wait", 1000), Keep, Keep),
        (uncertain(None), ("wait", 10_000), Keep, Keep),
        (CallOutcome::Draining, ("wait", 100), TakeBack, Keep),
        (CallOutcome::Expired { operation }, ("gateway", 0), Expire, Expire),
        (nothing(false), ("gateway", 0), Expire, Expire),
        (nothing(true), ("retry", 0), TakeBack, TakeBack),
    ];
    for (outcome, meaning, began, looked) in table {
        for (continues, change) in [(false, began), (true, looked)] {
            // A look that was not sent shows nothing: the event waits.
            let waits = continues && is_never_sent(&outcome);
            let meaning = if waits { ("wait", 10_000) } else { meaning };
            let CallConclusion { conclusion, change: found } =
                concluded(&outcome, &note(RoundState::Began), continues, AGE);
            assert_eq!((named(&conclusion), found), (meaning, change), "{outcome:?} {continues}");
        }
    }
}

#[test]
fn an_open_outcome_is_looked_at_often_while_the_event_is_young() {
    let open = CallOutcome::Uncertain { operation: operation(), retry_after: None };
    for (age_s, pause_ms) in [(0, 1000), (8, 1000), (80, 10_000), (100_000, 30_000)] {
        let age = Duration::from_secs(age_s);
        let CallConclusion { conclusion, .. } =
            concluded(&open, &note(RoundState::Began), true, age);
        assert_eq!(named(&conclusion), ("wait", pause_ms), "{age_s}");
    }
}

#[test]
fn the_report_has_the_beginning_of_the_answer_and_the_operation() {
    let CallConclusion { conclusion, .. } =
        concluded(&answered(422), &note(RoundState::Began), false, AGE);
    let Conclusion::Bury { report, .. } = conclusion else { panic!("{conclusion:?}") };
    assert_eq!(report.answer.map(|answer| answer.len()), Some(256));
    assert!(report.error.unwrap().contains(&operation().to_string()));
}

#[test]
fn an_attempt_begins_a_round_once_and_then_only_looks() {
    let began = note(RoundState::Began);
    assert_eq!(CallStep::of(None, 0), CallStep::Begin);
    assert_eq!(CallStep::of(Some(began.clone()), 3), CallStep::Look(began.clone()));
    let taken_back = note(RoundState::TakenBack);
    assert_eq!(
        CallStep::of(Some(taken_back.clone()), 3),
        CallStep::BeginAgain(taken_back),
        "the round goes on with its request"
    );
    let expired = note(RoundState::OutcomeExpired);
    assert_eq!(CallStep::of(Some(expired.clone()), 3), CallStep::Look(expired));
    for state in [RoundState::Began, RoundState::TakenBack, RoundState::OutcomeExpired] {
        assert_eq!(CallStep::of(Some(note(state)), 4), CallStep::Begin, "{state:?}");
    }
}

/// Returns the content of an event with a note.
fn content(note: Option<&CallNote>) -> Bytes {
    let event = Bytes::from_static(b"\x01{\"data\":{\"a\":1");
    match note {
        Some(note) => EventDraft::parse(&event).unwrap().with_note(&note.encode()),
        None => event,
    }
}

fn letter(content: EventContent) -> DeadLetter {
    let order = EventOrder { opened_unix_ms: 1, version: 2, number: 0 };
    let report = EventContent::Plain(Bytes::new());
    DeadLetter {
        key: EventKey { sink: "ship".into(), slot: operation(), order },
        content,
        written_ms: 1,
        round: 3,
        buried_ms: 2,
        burial: Burial { kind: DeadLetterKind::Receiver, report },
    }
}

#[test]
fn a_note_is_read_as_it_was_written_and_never_delivered() {
    let began = note(RoundState::Began);
    let noted = content(Some(&began));
    let draft = EventDraft::parse(&noted).unwrap();
    assert_eq!(CallNote::of(&draft), Some(began));
    assert!(super::is_look(&draft, 3) && !super::is_look(&draft, 4));
    for (state, looks) in [(RoundState::TakenBack, false), (RoundState::OutcomeExpired, true)] {
        let other = content(Some(&note(state)));
        assert_eq!(super::is_look(&EventDraft::parse(&other).unwrap(), 3), looks, "{state:?}");
    }
    assert_eq!(finished(&noted, 5), finished(&content(None), 5));
}

#[test]
fn a_requeue_goes_on_with_a_round_that_was_not_executed_and_begins_one_after_an_outcome() {
    let of = |note: Option<&CallNote>| RequeueRule::of(&letter(EventContent::Plain(content(note))));
    let (next, same) = (RoundChange { from: 3, to: 4 }, RoundChange { from: 3, to: 3 });
    assert_eq!(of(None), RequeueRule::Begin(next), "the round never began");
    let earlier = CallNote { round: 2, ..note(RoundState::Began) };
    assert_eq!(of(Some(&earlier)), RequeueRule::Begin(next), "the last round never began");
    assert_eq!(of(Some(&note(RoundState::TakenBack))), RequeueRule::Begin(same));
    assert_eq!(of(Some(&note(RoundState::OutcomeExpired))), RequeueRule::Look(operation()));
    assert_eq!(of(Some(&note(RoundState::Began))), RequeueRule::Look(operation()));
    let mut refused = letter(EventContent::Plain(content(Some(&note(RoundState::Began)))));
    let report = Bytes::from_static(br#"{"first_ms":1,"last_ms":1,"count":1,"status":422}"#);
    refused.burial.report = EventContent::Plain(report);
    assert_eq!(RequeueRule::of(&refused), RequeueRule::Begin(next), "it has the answer");
    let sealed = letter(EventContent::Sealed(content(None)));
    assert_eq!(RequeueRule::of(&sealed), RequeueRule::Begin(same), "it may have a note");

    let letter = letter(EventContent::Plain(content(None)));
    let after = |state: Option<State>| RequeueRule::after_look(&letter, state.as_ref());
    let completed = |status| State::Completed { reply: reply(status), by: Settler::Upstream };
    assert_eq!(after(Some(completed(422))), RequeueRule::Begin(next));
    assert_eq!(after(Some(completed(201))), RequeueRule::Begin(same), "it is only delivered");
    let uncertain = State::Uncertain { cause: Cause::NotRepeated, since_ms: None, retry: None };
    for open in [State::InFlight { uncertain_since_ms: None }, uncertain, State::Released] {
        assert_eq!(after(Some(open.clone())), RequeueRule::Begin(same), "{open:?}");
    }
    for gone in [Some(State::Expired), None] {
        assert_eq!(after(gone.clone()), RequeueRule::Unknown, "{gone:?}");
    }
    assert_eq!(RequeueRule::again(&letter), next);
}

#[test]
fn a_requeue_begins_a_round_if_the_gateway_refused_every_call_of_the_last_one() {
    let (next, same) = (RoundChange { from: 3, to: 4 }, RoundChange { from: 3, to: 3 });
    for (is_untried, expected) in [(true, next), (false, same)] {
        let note = CallNote { is_untried, ..note(RoundState::TakenBack) };
        let found = RequeueRule::of(&letter(EventContent::Plain(content(Some(&note)))));
        assert_eq!(found, RequeueRule::Begin(expected), "{is_untried}");
    }
}

#[test]
fn the_deepest_chosen_member_can_be_read_by_templates() {
    for (depth, is_chosen) in [(MEMBER_DEPTH_MAX, true), (MEMBER_DEPTH_MAX + 1, false)] {
        let nested = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        let chosen = chosen_member(&Bytes::from(format!("{{\"a\":{nested}}}")), "/a");
        assert_eq!(chosen.is_ok(), is_chosen, "{depth}");
        let event = format!("{{\"data\":{{\"a\":{nested}}}}}");
        assert_eq!(json_value(&event).is_ok(), is_chosen, "{depth}");
    }
}

#[test]
fn each_event_sink_and_round_has_its_own_key() {
    let key = call_key("ev_1", "ship", 0);
    assert_eq!(key, call_key("ev_1", "ship", 0));
    assert_eq!(key.len(), CALL_KEY_BYTES);
    for syntax in [KeySyntax::UuidV4, KeySyntax::Uuid, KeySyntax::Word, KeySyntax::Bare] {
        assert!(Key::parse(key.as_bytes(), syntax, CALL_KEY_BYTES).is_ok(), "{key} {syntax:?}");
    }
    for other in
        [call_key("ev_2", "ship", 0), call_key("ev_1", "shi", 0), call_key("ev_1", "ship", 1)]
    {
        assert_ne!(key, other);
    }
}
