//! Stories of records with a publication.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::*;
use crate::record::{
    AnnouncedMember, AnnouncedRule, AnnouncedState, MemberSource, MissingReason, StatusClass,
};

fn announcements() -> Announcements {
    let member = |name: &str, value| AnnouncedMember { name: name.into(), value };
    let value = RawValue::from_string("{\"id\": 9007199254740993}".into()).unwrap();
    Announcements {
        source: "urn:onceward".into(),
        rules: vec![
            AnnouncedRule {
                on: vec![AnnouncedState::Completed],
                statuses: vec![StatusClass::Class(2), StatusClass::Code(409)],
                to: vec!["ledger".into(), "mail".into()],
                kind: Some("com.example.payment.created".into()),
                members: vec![
                    member("order", MemberSource::Value(value)),
                    member("note", MemberSource::Missing(MissingReason::Absent)),
                    member("answer", MemberSource::Response(String::new())),
                ],
            },
            AnnouncedRule {
                on: vec![AnnouncedState::Uncertain, AnnouncedState::Released],
                statuses: Vec::new(),
                to: vec!["ledger".into()],
                kind: None,
                members: Vec::new(),
            },
        ],
        uncertain_announced: false,
        hops: 0,
        event_bytes: 65_536,
    }
}

fn open(announcements: Announcements) -> Option<Publication> {
    Some(Publication::Open(Arc::new(announcements)))
}

/// Every kind of record with a publication, by the name of its golden file.
pub(super) fn golden() -> Vec<(&'static str, Record)> {
    let in_flight = || base(State::InFlight { uncertain_since_ms: None });
    let announced = Announcements { uncertain_announced: true, hops: 2, ..announcements() };
    let uncertain = State::Uncertain { cause: Cause::TimedOut, since_ms: None, retry: None };
    vec![
        (
            "in-flight-with-publication",
            Record { publication: open(announcements()), ..in_flight() },
        ),
        (
            "uncertain-with-publication",
            Record { publication: open(announced), extras: extras(), ..base(uncertain) },
        ),
        (
            "in-flight-sealed-with-publication",
            Record {
                publication: Some(Publication::Sealed(Bytes::from_static(b"sealed"))),
                ..in_flight()
            },
        ),
    ]
}

#[test]
fn a_version_that_reads_no_publications_refuses_the_record() {
    for (name, record) in golden() {
        let format = encode(&record).payload[0];
        assert!(format > FORMAT_WITH_TRAILERS, "{name} has format {format}");
    }
}

#[test]
fn a_settled_record_has_no_publication() {
    let settled = Record { publication: open(announcements()), ..base(State::Released) };
    let Encoded { head, payload } = encode(&settled);
    assert_eq!(decode(&head, payload).unwrap().publication, None);
    for (name, record) in golden() {
        let Encoded { mut head, payload } = encode(&record);
        for state in [COMPLETED, RELEASED, EXPIRED] {
            head[16] = state;
            let forged = forge(head, FORMAT_WITH_PUBLICATION, &payload[PREFIX_BYTES..]);
            assert_eq!(forged, Err(CodecError::Malformed), "{name}");
        }
    }
}

#[test]
fn announcements_that_this_version_does_not_read_are_malformed() {
    let text = announcements().encode();
    assert_eq!(Announcements::decode(&text), Some(announcements()));
    let more = String::from_utf8(text.to_vec()).unwrap().replacen('{', "{\"new\":1,", 1);
    assert_eq!(Announcements::decode(more.as_bytes()), None);
}

#[test]
fn a_rule_matches_its_states_and_of_a_completed_operation_its_statuses() {
    let announcements = announcements();
    let [completed, others] = &announcements.rules[..] else { panic!("two rules") };
    for (state, status, matches) in [
        (AnnouncedState::Completed, Some(201), (true, false)),
        (AnnouncedState::Completed, Some(409), (true, false)),
        (AnnouncedState::Completed, Some(404), (false, false)),
        (AnnouncedState::Uncertain, None, (false, true)),
        (AnnouncedState::Released, Some(429), (false, true)),
    ] {
        let found = (completed.matches(state, status), others.matches(state, status));
        assert_eq!(found, matches, "{state:?} {status:?}");
    }
    assert_eq!(others.kind_of(AnnouncedState::Uncertain), "onceward.operation.uncertain");
    assert_eq!(completed.kind_of(AnnouncedState::Completed), "com.example.payment.created");
}

#[test]
fn a_status_class_is_a_code_or_a_class_and_nothing_else() {
    for text in ["200", "599", "2xx", "5xx"] {
        let class = StatusClass::try_from(text.to_owned()).unwrap();
        assert_eq!(String::from(class), text);
    }
    for text in ["", "20", "2000", "099", "600", "0xx", "6xx", "xx", "2x", "+20", "-2xx"] {
        assert!(StatusClass::try_from(text.to_owned()).is_err(), "{text}");
    }
    let class = |text: &str| StatusClass::try_from(text.to_owned()).unwrap();
    for (one, other, overlap) in
        [("2xx", "201", true), ("2xx", "2xx", true), ("201", "200", false), ("4xx", "5xx", false)]
    {
        assert_eq!(class(one).overlaps(class(other)), overlap, "{one} {other}");
        assert_eq!(class(other).overlaps(class(one)), overlap, "{other} {one}");
    }
}
