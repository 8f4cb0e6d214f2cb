//! Stories of records and their comparisons.

use super::*;

const CAUSES: [Cause; 10] = [
    Cause::Broken,
    Cause::Unreadable(AnswerFault::TooManyFields),
    Cause::Unreadable(AnswerFault::HeadTooLarge),
    Cause::Unreadable(AnswerFault::Malformed),
    Cause::TimedOut,
    Cause::Status(503),
    Cause::Status(14),
    Cause::LeaseEnded,
    Cause::Stopped,
    Cause::NotRepeated,
];

fn completed() -> State {
    let reply = Reply {
        status: StatusCode::CREATED,
        headers: HeaderMap::new(),
        body: ReplyBody::NotStored,
        trailers: None,
    };
    State::Completed { reply: Arc::new(reply), by: Settler::Upstream }
}

fn saga(phase: SagaPhase) -> State {
    State::Saga { phase, content: PrivateContent::Open(Bytes::from_static(b"log")) }
}

fn uncertain(cause: Cause) -> State {
    State::Uncertain { cause, since_ms: None, retry: None }
}

fn record(state: State) -> Record {
    Record {
        version: Version(7),
        fence: Fence(1),
        route: "payments".into(),
        fingerprint: Some(Fingerprint::from_bytes([1; 32])),
        caller: Some(Caller::nobody()),
        opened_unix_ms: 5,
        kept: Some(Bytes::from_static(b"k")),
        publication: None,
        extras: Extras { leaves: Some(Bytes::from_static(b"l")), ..Extras::default() },
        state,
    }
}

#[test]
fn versions_count_on_and_over_the_end() {
    assert_eq!((Version(7).next(), Version(7).after_next()), (Version(8), Version(9)));
    assert_eq!(
        (Version(u64::MAX).next(), Version(u64::MAX).after_next()),
        (Version(0), Version(1))
    );
}

#[test]
fn a_tombstone_keeps_the_caller_and_nothing_of_the_result() {
    let tombstone = Record { kept: None, extras: Extras::default(), ..record(State::Expired) };
    assert_eq!(record(completed()).tombstone(), tombstone);
}

#[test]
fn a_write_is_known_again_by_version_fence_and_state() {
    let stored = record(uncertain(Cause::Broken));
    assert!(
        stored.is_same_write(&Record { opened_unix_ms: 9, ..record(uncertain(Cause::TimedOut)) }),
        "by nothing else"
    );
    for other in [
        Record { version: Version(8), ..stored.clone() },
        Record { fence: Fence(2), ..stored.clone() },
        Record { state: State::InFlight { uncertain_since_ms: None }, ..stored.clone() },
    ] {
        assert!(!stored.is_same_write(&other) && !other.is_same_write(&stored), "{other:?}");
    }
}

#[test]
fn an_attempt_under_way_and_a_saga_have_a_lease_and_it_ends_on_time() {
    let is_over = |state, now_ms| {
        Held { record: record(state), written_ms: 1000, due_ms: 2000, now_ms }.lease_is_over()
    };
    let in_flight = || State::InFlight { uncertain_since_ms: None };
    for leased in [in_flight, || saga(SagaPhase::Stuck)] {
        assert!(!is_over(leased(), 1999) && is_over(leased(), 2000) && is_over(leased(), 2001));
    }
    for other in [uncertain(Cause::Broken), State::Released, State::Barred] {
        assert!(!is_over(other, 2001));
    }
}

#[test]
fn each_state_has_a_name_and_three_of_them_owe_an_outcome() {
    let named = |state: State| (state.name(), state.is_unsettled());
    assert_eq!(named(State::InFlight { uncertain_since_ms: None }), ("in_flight", true));
    assert_eq!(named(uncertain(Cause::Stopped)), ("uncertain", true));
    assert_eq!(named(completed()), ("completed", false));
    assert_eq!(named(State::Released), ("released", false));
    assert_eq!(named(State::Expired), ("expired", false));
    assert_eq!(named(saga(SagaPhase::Running)), ("saga", true));
    assert_eq!(named(State::Barred), ("barred", false));
}

#[test]
fn each_cause_has_a_description_of_its_own() {
    let descriptions: std::collections::BTreeSet<String> =
        CAUSES.iter().map(Cause::describe).collect();
    assert_eq!(descriptions.len(), CAUSES.len(), "{descriptions:?}");
    assert!(
        descriptions.contains("the upstream answered 503, which does not say whether it acted"),
        "{descriptions:?}"
    );
    assert!(
        descriptions.contains(
            "the upstream answered with the gRPC status 14, which does not say whether it acted"
        ),
        "{descriptions:?}"
    );
}
