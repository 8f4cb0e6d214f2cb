//! Which changes make events, and what a claim stores about that.

use super::*;
use crate::key::Pointer;
use crate::record::{AnnouncedState, Announcements, MemberSource, MissingReason, Publication};

const SLOT_VERSION: Version = Version(7);

fn announcements() -> Arc<Announcements> {
    Arc::new(Announcements {
        source: "urn:onceward".into(),
        rules: Vec::new(),
        uncertain_announced: false,
        hops: 0,
        event_bytes: 65_536,
    })
}

fn publishing(state: State) -> Record {
    Record { publication: Some(Publication::Open(announcements())), ..record(state, Fence(1)) }
}

fn claimed(record: &Record) -> Claim {
    Claim { fence: record.fence, record: record.clone() }
}

/// Settles the record with an outcome of its own attempt.
fn settled(before: &Record, outcome: Outcome) -> Next {
    match settle(Some(before), &claimed(before), &outcome, &policy(), Version(99)) {
        Settlement::Write(next) => next,
        other => panic!("{outcome:?} writes, and gave {other:?}"),
    }
}

fn change(next: &Next) -> Option<(AnnouncedState, Option<u16>, Option<&'static str>)> {
    let announcement = next.announcement.as_ref()?;
    let Announcement { state, status, settled_by, .. } = announcement;
    Some((*state, status.map(|status| status.as_u16()), settled_by.map(SettledBy::name)))
}

#[test]
fn an_answer_is_announced_with_its_status_and_source() {
    let next = settled(&publishing(in_flight()), Outcome::Answered(whole(201)));
    assert_eq!(change(&next), Some((AnnouncedState::Completed, Some(201), Some("upstream"))));
    assert_eq!(next.record.publication, None, "a settled record makes no more events");
}

#[test]
fn a_late_answer_over_an_uncertain_record_comes_from_the_claimant() {
    let next = settled(&publishing(uncertain()), Outcome::Answered(whole(201)));
    assert_eq!(change(&next), Some((AnnouncedState::Completed, Some(201), Some("claimant"))));
}

#[test]
fn a_release_status_is_announced_and_a_claim_that_was_given_up_is_not() {
    let released = settled(&publishing(in_flight()), Outcome::Answered(whole(429)));
    assert_eq!(change(&released), Some((AnnouncedState::Released, Some(429), None)));
    let given_up = settled(&publishing(in_flight()), Outcome::NeverSent);
    assert_eq!(given_up.record.state, State::Released);
    assert_eq!(change(&given_up), None);
}

#[test]
fn a_request_that_was_never_sent_releases_an_uncertain_record_with_an_event() {
    let next = settled(&publishing(uncertain()), Outcome::NeverSent);
    assert_eq!(change(&next), Some((AnnouncedState::Released, None, None)));
}

#[test]
fn an_operation_announces_once_that_it_is_uncertain() {
    let first = settled(&publishing(in_flight()), Outcome::InDoubt(Cause::Broken));
    assert_eq!(change(&first), Some((AnnouncedState::Uncertain, None, None)));
    let again = Record {
        state: State::InFlight { uncertain_since_ms: Some(900) },
        version: SLOT_VERSION,
        ..first.record
    };
    for outcome in [Outcome::InDoubt(Cause::TimedOut), Outcome::NeverSent] {
        let second = settled(&again, outcome);
        assert!(matches!(second.record.state, State::Uncertain { .. }));
        assert_eq!(change(&second), None);
    }
    let done = settled(&again, Outcome::Answered(whole(200)));
    assert_eq!(change(&done), Some((AnnouncedState::Completed, Some(200), Some("upstream"))));
}

#[test]
fn an_ended_lease_is_announced_as_uncertain() {
    let next = expire(&held(publishing(in_flight()), 40_000), &policy()).unwrap();
    assert_eq!(change(&next), Some((AnnouncedState::Uncertain, None, None)));
}

#[test]
fn decisions_are_announced_as_their_outcome_and_a_retry_is_not() {
    let held = held(publishing(uncertain()), 10_000_000);
    let decided = |decision| decide(&held, decision, Fence(5), &policy()).unwrap();
    let resolved = decided(Decision::Resolve(whole(201)));
    assert_eq!(change(&resolved), Some((AnnouncedState::Completed, Some(201), Some("operator"))));
    let found = decided(Decision::Found(whole(200)));
    assert_eq!(change(&found), Some((AnnouncedState::Completed, Some(200), Some("probe"))));
    let released = decided(Decision::Release);
    assert_eq!(change(&released), Some((AnnouncedState::Released, None, None)));
    let mut announced = held.clone();
    let Some(Publication::Open(before)) = &mut announced.record.publication else { panic!("open") };
    Arc::make_mut(before).uncertain_announced = true;
    let retried = decide(&announced, Decision::Retry, Fence(5), &policy()).unwrap();
    assert_eq!(change(&retried), None);
    assert_eq!(retried.record.publication, announced.record.publication);
}

#[test]
fn the_end_of_a_retention_is_not_announced() {
    let next = decide(&held(publishing(completed()), 2000), Decision::Expire, Fence(5), &policy());
    assert_eq!(change(&next.unwrap()), None);
}

#[test]
fn a_record_without_a_publication_announces_nothing() {
    let next = settled(&record(in_flight(), Fence(1)), Outcome::Answered(whole(201)));
    assert_eq!((change(&next), next.record.publication), (None, None));
}

#[test]
fn a_sealed_publication_stays_so_that_the_change_is_refused() {
    let sealed = Some(Publication::Sealed(Bytes::from_static(b"sealed")));
    let before = Record { publication: sealed.clone(), ..record(in_flight(), Fence(1)) };
    let next = settled(&before, Outcome::Answered(whole(201)));
    assert_eq!((change(&next), next.record.publication), (None, sealed));
}

#[test]
fn a_claim_over_an_uncertain_record_keeps_the_publication_of_the_first_claim() {
    let (old, new) = (Publication::Open(announcements()), Publication::Sealed(Bytes::new()));
    let over = ClaimOver::Uncertain { version: SLOT_VERSION, since_ms: 1, opened_unix_ms: 1 };
    let of = |over, current| publication_of_claim(over, current, Some(&new));
    assert_eq!(of(over, Some(&old)), Some(old.clone()));
    assert_eq!(of(over, None), None, "the operation began before its route published");
    for over in [ClaimOver::Nothing, ClaimOver::Marker(SLOT_VERSION)] {
        assert_eq!(of(over, Some(&old)), Some(new.clone()));
    }
}

fn rules(members: &[(&str, Side, &str)]) -> PublishRules {
    let members = members.iter().map(|(name, side, pointer)| PublishedMember {
        name: (*name).into(),
        side: *side,
        pointer: (*pointer).into(),
    });
    PublishRules {
        source: "urn:onceward".into(),
        event_bytes: 1000,
        rules: vec![PublishRule {
            on: vec![AnnouncedState::Completed],
            statuses: Vec::new(),
            to: vec!["ledger".into()],
            kind: None,
            members: members.collect(),
        }],
    }
}

/// Returns the sources of the members that a claim of this request stores.
fn stored(
    members: &[(&str, Side, &str)],
    body: &'static str,
    is_decoded: bool,
) -> Vec<MemberSource> {
    let (content, redact) =
        (Bytes::from_static(body.as_bytes()), [Pointer::parse("/card/number").unwrap()]);
    let request = PublishedRequest { content: &content, is_decoded, redact: &redact, hops: 2 };
    let Publication::Open(announcements) = rules(members).publication(request) else {
        panic!("a new publication is not sealed")
    };
    assert_eq!((announcements.hops, announcements.event_bytes), (2, 1000));
    announcements.rules[0].members.iter().map(|member| member.value.clone()).collect()
}

#[test]
fn a_claim_stores_the_members_of_the_request_and_the_places_in_the_response() {
    let value = |text: &str| {
        MemberSource::Value(
            serde_json::value::to_raw_value(
                &serde_json::from_str::<serde_json::Value>(text).unwrap(),
            )
            .unwrap(),
        )
    };
    let members = [
        ("order", Side::Request, "/order/id"),
        ("note", Side::Request, "/note"),
        ("card", Side::Request, "/card"),
        ("none", Side::Request, "/none"),
        ("payment", Side::Response, "/id"),
    ];
    let body = r#"{"order":{"id":7},"note":null,"card":{"number":"4242"}}"#;
    let expected = [
        value("7"),
        value("null"),
        value(r#"{"number":"[redacted]"}"#),
        MemberSource::Missing(MissingReason::Absent),
        MemberSource::Response("/id".into()),
    ];
    assert_eq!(stored(&members, body, true), expected);
}

#[test]
fn a_member_of_a_body_that_is_not_readable_json_is_missing_for_a_reason() {
    let members = [("order", Side::Request, "/order")];
    for (body, is_decoded, reason) in [
        ("{\"order\":1}", false, MissingReason::Encoded),
        ("order=1", true, MissingReason::NotJson),
        ("{\"order\":1,\"order\":2}", true, MissingReason::NotJson),
    ] {
        assert_eq!(stored(&members, body, is_decoded), [MemberSource::Missing(reason)], "{body}");
    }
}
