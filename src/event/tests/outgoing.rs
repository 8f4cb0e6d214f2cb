//! Stories of events for sinks.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use serde_json::{Value, json};

use crate::event::{
    AnnouncedChange, ChangedSaga, ChangedStep, MalformedEvent, OutgoingEvent, StoppedStep,
    events_of, finished,
};
use crate::key::{Slot, Space};
use crate::record::{
    AnnouncedMember, AnnouncedRule, AnnouncedState, Announcements, MemberSource, Record, Reply,
    ReplyBody, SpanId, State, Version,
};
use crate::store::suite::{claim, slot};

const CHANGED_MS: u64 = 1_800_000_000_123;
const EVENT_BYTES: u64 = 4096;

fn rule(kind: Option<&str>, to: &[&str], members: &[(&str, &str)]) -> AnnouncedRule {
    let members = members.iter().map(|(name, pointer)| AnnouncedMember {
        name: (*name).into(),
        value: MemberSource::Response((*pointer).into()),
    });
    AnnouncedRule {
        on: vec![AnnouncedState::Completed],
        statuses: Vec::new(),
        to: to.iter().map(|sink| (*sink).to_owned()).collect(),
        kind: kind.map(str::to_owned),
        members: members.collect(),
    }
}

fn announcements(rules: Vec<AnnouncedRule>, event_bytes: u64) -> Announcements {
    let source = "urn:onceward".to_owned();
    Announcements { source, rules, uncertain_announced: false, hops: 0, event_bytes }
}

fn reply(body: &'static str) -> Reply {
    Reply {
        status: StatusCode::CREATED,
        headers: HeaderMap::new(),
        body: ReplyBody::Whole(Bytes::from_static(body.as_bytes())),
        trailers: None,
    }
}

/// The operation of every story.
fn operation() -> Slot {
    slot(Space::Enforced, 1)
}

/// Returns the events of a completion with this answer, each with its sinks.
fn completed(
    announcements: &Announcements,
    reply: &Reply,
    record: &Record,
) -> Vec<(Value, Vec<String>)> {
    let slot = operation();
    let change = AnnouncedChange {
        slot: &slot,
        record,
        announcements,
        states: &[AnnouncedState::Completed],
        status: Some(reply.status.as_u16()),
        settled_by: Some("upstream"),
        reply: Some(reply),
        saga: None,
    };
    let whole =
        |content: &[u8]| serde_json::from_slice(&finished(content, CHANGED_MS).unwrap()).unwrap();
    events_of(change).into_iter().map(|event| (whole(&event.content), event.to)).collect()
}

/// Returns the data of the only event of a completion.
fn data(members: &[(&str, &str)], reply: &Reply) -> Value {
    let announcements = announcements(vec![rule(None, &["ledger"], members)], EVENT_BYTES);
    completed(&announcements, reply, &claim(8, 1))[0].0["data"].clone()
}

#[test]
fn an_event_is_a_cloud_event_about_its_operation() {
    let span = Some(SpanId { trace: [0x7a; 16], span: [0x5a; 8] });
    let mut record = claim(8, 1);
    record.extras.span = span;
    let announcements = announcements(vec![rule(None, &["ledger", "mail"], &[])], EVENT_BYTES);
    let events = completed(&announcements, &reply("{}"), &record);
    let [(event, to)] = &events[..] else { panic!("one event, not {events:?}") };
    assert_eq!(to, &["ledger", "mail"]);
    let reference = operation().to_string();
    let expected = json!({
        "specversion": "1.0",
        "id": event["id"],
        "source": "urn:onceward",
        "type": "onceward.operation.completed",
        "subject": reference,
        "time": "2027-01-15T08:00:00.123Z",
        "datacontenttype": "application/json",
        "partitionkey": reference,
        "sequence": "00000000000000000008",
        "traceparent": "00-7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a-5a5a5a5a5a5a5a5a-01",
        "data": {
            "operation": reference,
            "route": "payments",
            "state": "completed",
            "status": 201,
            "settled_by": "upstream",
            "opened_at": "2027-01-15T07:59:59.999Z",
            "closed_at": "2027-01-15T08:00:00.123Z",
        },
    });
    assert_eq!(*event, expected);
    let id = event["id"].as_str().unwrap();
    assert!(id.len() == 35 && id.starts_with("ev_"), "{id}");
}

#[test]
fn an_event_that_does_not_complete_the_operation_has_no_end_and_no_source() {
    let (slot, record) = (operation(), claim(8, 1));
    let mut rule = rule(None, &["ledger"], &[("id", "/id")]);
    rule.on = vec![AnnouncedState::Uncertain];
    let announcements = announcements(vec![rule], EVENT_BYTES);
    let change = AnnouncedChange {
        slot: &slot,
        record: &record,
        announcements: &announcements,
        states: &[AnnouncedState::Uncertain],
        status: None,
        settled_by: None,
        reply: None,
        saga: None,
    };
    let events = events_of(change);
    let event: Value =
        serde_json::from_slice(&finished(&events[0].content, CHANGED_MS).unwrap()).unwrap();
    let data = &event["data"];
    assert_eq!(
        [&data["status"], &data["settled_by"], &data["closed_at"]],
        [&Value::Null, &Value::Null, &Value::Null]
    );
    assert_eq!(data["missing"], json!({ "id": "absent" }), "there is no response");
}

/// Returns the change of a saga in which a step fails for good where nothing can be undone.
fn stopped() -> ChangedSaga {
    let step = ChangedStep {
        name: "ship".into(),
        direction: "action".into(),
        status: "failed".into(),
        attempts: 2,
        operation: Some("op_1".into()),
        upstream_status: Some(422),
        cause: Some("status".into()),
    };
    let stuck = StoppedStep {
        step: "ship".into(),
        direction: "action".into(),
        cause: "refused".into(),
        operation: Some("op_1".into()),
    };
    ChangedSaga {
        events: vec!["saga.step".into(), "saga.stuck".into(), "saga.later".into()],
        status: "stuck".into(),
        steps: vec![step],
        stuck: vec![stuck],
        failure: None,
        decision: None,
    }
}

/// Returns the events of a saga's change: all events of one sink, under one type.
fn of_saga(saga: &ChangedSaga, on: &[AnnouncedState], reply: Option<&Reply>) -> Vec<Value> {
    let (slot, record) = (operation(), claim(8, 1));
    let mut rule = rule(Some("com.example.saga"), &["ledger"], &[("order", "/order")]);
    rule.on = on.to_vec();
    let announcements = announcements(vec![rule], EVENT_BYTES);
    let mut states: Vec<AnnouncedState> = saga.announced().collect();
    states.extend(reply.map(|_| AnnouncedState::Completed));
    let change = AnnouncedChange {
        slot: &slot,
        record: &record,
        announcements: &announcements,
        states: &states,
        status: reply.map(|reply| reply.status.as_u16()),
        settled_by: reply.map(|_| "upstream"),
        reply,
        saga: Some(saga),
    };
    let whole = |event: OutgoingEvent| {
        serde_json::from_slice(&finished(&event.content, CHANGED_MS).unwrap()).unwrap()
    };
    events_of(change).into_iter().map(whole).collect()
}

#[test]
fn a_change_of_a_saga_is_an_event_for_each_of_its_names_that_a_rule_asks_for() {
    let found = of_saga(&stopped(), &AnnouncedState::OF_SAGAS, None);
    let [step, stuck] = &found[..] else { panic!("{found:?}") };
    assert_ne!(step["id"], stuck["id"], "they have one type");
    assert_eq!(step["sequence"], stuck["sequence"], "they are one change");
    let saga = json!({
        "steps": [{
            "name": "ship", "direction": "action", "status": "failed", "attempts": 2,
            "operation": "op_1", "upstream_status": 422, "cause": "status",
        }],
        "stuck": [{
            "step": "ship", "direction": "action", "cause": "refused", "operation": "op_1",
        }],
    });
    for event in [step, stuck] {
        let data = &event["data"];
        assert_eq!((&data["state"], &data["saga"]), (&json!("stuck"), &saga));
        let open = [&data["status"], &data["settled_by"], &data["closed_at"]];
        assert_eq!(open, [&Value::Null; 3], "the saga has not ended");
        assert_eq!(data["missing"], json!({ "order": "absent" }), "nor has it an answer");
    }
    assert_eq!(
        of_saga(&stopped(), &[AnnouncedState::SagaStuck], None),
        std::slice::from_ref(stuck)
    );
    assert_eq!(of_saga(&stopped(), &[AnnouncedState::SagaFailed], None), Vec::<Value>::new());
}

#[test]
fn the_end_of_a_saga_has_its_answer_and_its_last_step_has_not() {
    let events = vec!["saga.step".to_owned(), "saga.completed".to_owned()];
    let ended = ChangedSaga { events, status: "completed".into(), ..ChangedSaga::default() };
    let answer = reply(r#"{"order":"r-1"}"#);
    let found = of_saga(&ended, &AnnouncedState::OF_SAGAS, Some(&answer));
    let [step, end, operation] = &found[..] else { panic!("{found:?}") };
    for (event, order) in [(end, "r-1"), (operation, "r-1")] {
        let data = &event["data"];
        assert_eq!((&data["status"], &data["order"]), (&json!(201), &json!(order)));
        assert_eq!(data["closed_at"], "2027-01-15T08:00:00.123Z");
    }
    assert_eq!(step["data"]["status"], Value::Null);
    assert_eq!(step["data"]["missing"], json!({ "order": "absent" }));
    assert_eq!(step["data"]["closed_at"], Value::Null);
    assert!(operation["data"].get("saga").is_none(), "as every completed operation");
}

#[test]
fn the_id_is_the_same_for_one_change_and_type_and_differs_otherwise() {
    let id = |kind: Option<&str>, version| {
        let announcements = announcements(vec![rule(kind, &["ledger"], &[])], EVENT_BYTES);
        let record = Record { version: Version(version), ..claim(8, 1) };
        completed(&announcements, &reply("{}"), &record)[0].0["id"].clone()
    };
    assert_eq!(id(None, 8), id(None, 8));
    assert_ne!(id(None, 8), id(None, 9));
    assert_ne!(id(None, 8), id(Some("com.example.paid"), 8));
}

#[test]
fn chosen_members_are_taken_from_the_response_as_it_has_them() {
    let members = [("payment", "/id"), ("note", "/note"), ("a \"name\"", "/sum"), ("whole", "")];
    let found = data(&members, &reply(r#"{"id":9007199254740993,"note":null,"sum":1.50}"#));
    assert_eq!(found["payment"].to_string(), "9007199254740993");
    assert_eq!(found["note"], Value::Null);
    assert!(found.as_object().unwrap().contains_key("note"), "null is a value");
    assert_eq!(found["a \"name\""], json!(1.5));
    assert_eq!(found["whole"]["sum"], json!(1.5));
    assert_eq!(found.get("missing"), None);
}

#[test]
fn a_member_without_a_value_is_left_out_and_its_reason_is_named() {
    let mut encoded = reply("{\"id\":1}");
    encoded.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let not_stored = Reply { body: ReplyBody::NotStored, ..reply("") };
    for (reply, reason) in [
        (reply("{}"), "absent"),
        (reply("paid"), "not-json"),
        (encoded, "encoded"),
        (not_stored, "not-stored"),
    ] {
        let found = data(&[("payment", "/id")], &reply);
        assert_eq!(found.get("payment"), None, "{reason}");
        assert_eq!(found["missing"], json!({ "payment": reason }));
    }
}

#[test]
fn a_member_that_parsers_may_read_differently_is_left_out() {
    let nested = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    // Brackets inside a text are no levels.
    let text = format!(r#"{{"\"":"{}\"[["}}"#, "[".repeat(100));
    for (value, is_chosen) in [
        (nested(62), true),
        (nested(63), false),
        (format!(r#"{{"b":{},"c":[]}}"#, nested(62)), false),
        (text, true),
        (r#"{"b":1,"b":2}"#.into(), false),
        (r#"{"b":[{"c":1,"\u0063":2}]}"#.into(), false),
    ] {
        let body = ReplyBody::Whole(format!("{{\"id\":{value}}}").into());
        let found = data(&[("payment", "/id")], &Reply { body, ..reply("") });
        assert_eq!(found.get("payment").is_some(), is_chosen, "{value}");
        let missing = (!is_chosen).then(|| json!({ "payment": "not-json" }));
        assert_eq!(found.get("missing"), missing.as_ref(), "{value}");
    }
}

#[test]
fn events_that_are_too_large_together_have_no_chosen_members() {
    let rules = || {
        vec![rule(Some("a"), &["ledger"], &[("payment", "/id")]), rule(Some("b"), &["mail"], &[])]
    };
    let truncated = |event_bytes| {
        let events =
            completed(&announcements(rules(), event_bytes), &reply("{\"id\":1}"), &claim(8, 1));
        events.into_iter().map(|(event, _)| event["data"].clone()).collect::<Vec<_>>()
    };
    let whole = truncated(EVENT_BYTES);
    assert_eq!((&whole[0]["payment"], whole[0].get("truncated")), (&json!(1), None));
    let short = truncated(300);
    assert_eq!((short[0].get("payment"), &short[0]["truncated"]), (None, &json!(true)));
    assert_eq!(short[1].get("truncated"), None, "it had nothing to leave out");
}

#[test]
fn other_content_is_malformed() {
    for content in [&b""[..], b"\x40{\"data\":{", b"{"] {
        assert_eq!(finished(content, CHANGED_MS), Err(MalformedEvent));
    }
}

#[test]
fn a_rule_that_does_not_match_makes_no_event() {
    let mut other = rule(None, &["ledger"], &[]);
    other.on = vec![AnnouncedState::Released];
    let announcements = announcements(vec![other], EVENT_BYTES);
    let record = Record { state: State::Released, ..claim(8, 1) };
    assert_eq!(completed(&announcements, &reply("{}"), &record), []);
}
