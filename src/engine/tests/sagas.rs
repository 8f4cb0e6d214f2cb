//! Sagas and bars: what a request may do, and which records follow.

use super::*;
use crate::record::{
    AnnouncedState, Announcements, Lifetime, PrivateContent, Publication, SagaPhase,
};

const PHASES: [SagaPhase; 3] = [SagaPhase::Running, SagaPhase::Compensating, SagaPhase::Stuck];

fn open(text: &'static str) -> PrivateContent {
    PrivateContent::Open(Bytes::from_static(text.as_bytes()))
}

fn saga(phase: SagaPhase) -> State {
    State::Saga { phase, content: open("log") }
}

/// Every state in which an operation can be.
fn states() -> [State; 9] {
    [
        in_flight(),
        uncertain(),
        completed(),
        State::Released,
        State::Expired,
        saga(SagaPhase::Running),
        saga(SagaPhase::Compensating),
        saga(SagaPhase::Stuck),
        State::Barred,
    ]
}

fn announcing(state: State) -> Record {
    let announcements = Announcements {
        source: "urn:onceward".into(),
        rules: Vec::new(),
        uncertain_announced: false,
        hops: 0,
        event_bytes: 65_536,
    };
    let publication = Some(Publication::Open(std::sync::Arc::new(announcements)));
    Record { publication, ..record(state, OWN) }
}

#[test]
fn a_duplicate_of_a_saga_waits_or_is_refused_also_after_the_end_of_its_lease() {
    use Admission as A;
    let waiting = Policy { on_in_flight: OnInFlight::Wait, ..policy() };
    let busy = || A::Refuse(DuplicateRefusal::saga_in_flight(&policy()));
    let stuck = || A::Refuse(DuplicateRefusal::SagaStuck);
    let other_body = ClaimRequest { fingerprint: print(b"b"), ..asked() };
    let stranger = ClaimRequest { caller: Caller::nobody(), ..asked() };
    for (phase, rejected, waited) in [
        (SagaPhase::Running, busy(), A::Wait),
        (SagaPhase::Compensating, busy(), A::Wait),
        (SagaPhase::Stuck, stuck(), stuck()),
    ] {
        assert_eq!(admit(Some(&held(record(saga(phase), OWN), 0)), &asked(), &waiting), A::Run);
        for now in [30_999, 31_000] {
            let held = held(record(saga(phase), OTHER), now);
            assert_eq!(admit(Some(&held), &asked(), &policy()), rejected, "{phase:?} {now}");
            assert_eq!(admit(Some(&held), &asked(), &waiting), waited, "{phase:?} {now}");
            for (request, policy) in [(&other_body, &waiting), (&stranger, &waiting)] {
                let reused = A::Refuse(DuplicateRefusal::KeyReused);
                assert_eq!(admit(Some(&held), request, policy), reused, "{phase:?}");
            }
            assert_eq!(expire(&held, &policy()), None, "a saga is never uncertain");
        }
    }
}

#[test]
fn a_bar_refuses_every_request() {
    let barred = Record { caller: None, fingerprint: None, ..record(State::Barred, OTHER) };
    let other_body = ClaimRequest { fingerprint: print(b"b"), ..asked() };
    for request in [asked(), other_body] {
        let held = held(barred.clone(), 31_000);
        let refused = Admission::Refuse(DuplicateRefusal::Barred);
        assert_eq!(admit(Some(&held), &request, &policy()), refused);
    }
}

#[test]
fn a_saga_that_was_claimed_too_late_is_given_up_before_anybody_runs_it() {
    let own = Claim { fence: OWN, record: record(saga(SagaPhase::Running), OWN) };
    let given_up = settle(Some(&own.record), &own, &Outcome::NeverSent, &policy(), Version(9));
    let Settlement::Write(next) = given_up else { panic!("{given_up:?}") };
    assert_eq!((next.record.state, next.record.fence), (State::Released, OWN));
    assert_eq!(next.announcement, None, "a route without rules publishes nothing");
}

#[test]
fn a_saga_that_is_given_up_has_failed_for_those_that_know_of_its_start() {
    let own = Claim { fence: OWN, record: announcing(saga(SagaPhase::Running)) };
    assert!(announcements_of_saga(&own.record).is_some(), "its start is an event");
    let given_up = settle(Some(&own.record), &own, &Outcome::NeverSent, &policy(), Version(9));
    let Settlement::Write(next) = given_up else { panic!("{given_up:?}") };
    let announced = next.announcement.unwrap();
    assert_eq!((announced.state, announced.status), (AnnouncedState::SagaFailed, None));
    for state in states().into_iter().filter(|state| !matches!(state, State::Saga { .. })) {
        assert_eq!(announcements_of_saga(&announcing(state.clone())), None, "{state:?}");
    }
}

#[test]
fn a_saga_with_an_accepted_duplicate_keeps_its_lease_and_is_not_given_up() {
    let own = Claim { fence: OWN, record: record(saga(SagaPhase::Running), OWN) };
    let held = Held { record: own.record.clone(), written_ms: 1_000, due_ms: 9_000, now_ms: 3_000 };
    let accepted = saga_acceptance(&held, u64::MAX, &policy());
    assert_eq!(accepted.lifetime.due, Some(Duration::from_millis(6_000)));
    let version = accepted.record.version;
    assert!(![held.record.version, held.record.version.next()].contains(&version));
    assert_eq!(accepted.record, Record { version, ..held.record });
    let given_up = settle(Some(&accepted.record), &own, &Outcome::NeverSent, &policy(), Version(9));
    assert_eq!(given_up, Settlement::Stale);
}

#[test]
fn a_late_outcome_changes_neither_a_saga_nor_a_bar() {
    let own = Claim { fence: OWN, record: record(in_flight(), OWN) };
    let outcomes = [
        Outcome::Answered(whole(201)),
        Outcome::Answered(whole(429)),
        Outcome::NeverSent,
        Outcome::InDoubt(Cause::Broken),
    ];
    for state in states().into_iter().skip(5) {
        for fence in [OWN, OTHER] {
            let current = record(state.clone(), fence);
            // The owner's own claim is given up: see the story above.
            let is_given_up = |outcome: &&Outcome| {
                **outcome == Outcome::NeverSent
                    && fence == OWN
                    && matches!(current.state, State::Saga { .. })
            };
            for outcome in outcomes.iter().filter(|outcome| !is_given_up(outcome)) {
                let settled = settle(Some(&current), &own, outcome, &policy(), Version(9));
                assert_eq!(settled, Settlement::Stale, "{state:?} {outcome:?}");
            }
        }
    }
}

#[test]
fn operators_decide_about_sagas_elsewhere() {
    let decisions = || {
        [
            Decision::Resolve(whole(201)),
            Decision::Found(whole(201)),
            Decision::Release,
            Decision::Retry,
            Decision::Expire,
        ]
    };
    for decision in decisions() {
        for phase in PHASES {
            let held = held(record(saga(phase), OWN), 900_000);
            let denied = decide(&held, decision.clone(), OTHER, &policy());
            assert_eq!(denied, Err(DecisionDenied::Saga));
        }
        let held = held(record(State::Barred, OWN), 900_000);
        let denied = decide(&held, decision, OTHER, &policy()).unwrap_err().to_string();
        assert!(denied.starts_with("the operation is barred"), "{denied}");
    }
    assert!(DecisionDenied::Saga.to_string().contains("`onceward sagas`"));
}

#[test]
fn a_saga_begins_like_an_attempt() {
    for (over, version) in
        [(ClaimOver::Nothing, Version(99)), (ClaimOver::Marker(Version(7)), Version(8))]
    {
        let attempt = claim(&asked(), over, Version(99), 17, &policy());
        let begun = saga_claim(&asked(), over, Version(99), 17, &policy(), open("plan"));
        let state = State::Saga { phase: SagaPhase::Running, content: open("plan") };
        assert_eq!(begun.record, Record { state, ..attempt.record });
        assert_eq!((begun.record.version, begun.lifetime), (version, attempt.lifetime));
        assert_eq!(begun.announcement, None);
    }
}

#[test]
fn a_saga_that_goes_on_keeps_its_owner_and_its_publication_and_gets_a_whole_lease() {
    let before = announcing(saga(SagaPhase::Running));
    let next = saga_progress(&before, SagaPhase::Compensating, open("more"), &policy());
    let state = State::Saga { phase: SagaPhase::Compensating, content: open("more") };
    assert_eq!(next.record, Record { version: Version(8), state, ..before });
    let lifetime = Lifetime { keep: 7200 * SECOND, due: Some(30 * SECOND), tombstone: None };
    assert_eq!((next.lifetime, next.announcement), (lifetime, None));
}

#[test]
fn a_saga_is_taken_over_only_after_its_lease_and_only_with_its_key() {
    let left = held(announcing(saga(SagaPhase::Stuck)), 31_000);
    let next = saga_takeover(&left, OTHER, &policy()).unwrap();
    assert_eq!(next.record, Record { version: Version(9), fence: OTHER, ..left.record.clone() });
    assert_eq!(next.lifetime.due, Some(30 * SECOND));
    assert_eq!(saga_takeover(&Held { now_ms: 30_999, ..left }, OTHER, &policy()), None);
    let content = PrivateContent::Sealed(Bytes::from_static(b"sealed"));
    let sealed = State::Saga { phase: SagaPhase::Running, content };
    for state in states().into_iter().filter(|state| !matches!(state, State::Saga { .. })) {
        let held = held(record(state.clone(), OWN), 31_000);
        assert_eq!(saga_takeover(&held, OTHER, &policy()), None, "{state:?}");
    }
    assert_eq!(saga_takeover(&held(record(sealed, OWN), 31_000), OTHER, &policy()), None);
}

#[test]
fn an_operator_changes_a_saga_under_its_owner_and_never_with_a_version_of_the_owner() {
    let before = announcing(saga(SagaPhase::Stuck));
    let decided = |now, random| {
        let held = held(before.clone(), now);
        saga_decision(&held, SagaPhase::Running, open("more"), random, &policy())
    };
    let state = State::Saga { phase: SagaPhase::Running, content: open("more") };
    let next = decided(30_999, 5 << 32 | 5);
    let version = next.record.version;
    assert_eq!(next.record, Record { version, state, ..before.clone() });
    let skipped = version.0 - before.version.0;
    assert!(
        (1_000..=Version::SKIPPED_MAX).contains(&skipped),
        "more than an owner writes: {skipped}"
    );
    assert_eq!(next.lifetime.due, Some(30 * SECOND));
    // Otherwise no gateway would take the saga over for another lease.
    assert_eq!(decided(31_000, 0).lifetime.due, Some(Duration::ZERO));
    let owners = saga_progress(&before, SagaPhase::Running, open("own"), &policy());
    assert!(!decided(30_999, 0).record.is_same_write(&owners.record));
    assert!(!decided(30_999, 0).record.is_same_write(&decided(30_999, 1).record));
}

#[test]
fn a_saga_ends_with_its_answer_and_announces_it_like_an_operation() {
    let before = announcing(saga(SagaPhase::Compensating));
    let tombstoned = Policy { tombstone: 60 * SECOND, ..policy() };
    let next = saga_end(&before, &whole(409), &tombstoned);
    let state = State::Completed { reply: whole(409), by: Settler::Upstream };
    assert_eq!(next.record, Record { version: Version(8), publication: None, state, ..before });
    let lifetime = Lifetime { keep: 3600 * SECOND, due: None, tombstone: Some(3660 * SECOND) };
    assert_eq!(next.lifetime, lifetime);
    let announced = next.announcement.unwrap();
    assert_eq!(
        (announced.state, announced.status),
        (AnnouncedState::Completed, Some(StatusCode::CONFLICT))
    );
    let silent = saga_end(&record(saga(SagaPhase::Running), OWN), &whole(201), &policy());
    assert_eq!(silent.announcement, None, "a route without rules publishes nothing");
}

#[test]
fn only_an_operation_that_was_not_begun_is_barred() {
    let barred = |over: Option<&Record>| bar(over, OTHER, Version(99), 17, &policy());
    let next = barred(None).unwrap();
    assert_eq!((next.record.version, next.record.opened_unix_ms), (Version(99), 17));
    let lifetime = Lifetime { keep: 7200 * SECOND, due: None, tombstone: None };
    assert_eq!((next.record.state, next.lifetime), (State::Barred, lifetime));
    for state in states() {
        let seen = record(state.clone(), OWN);
        let next = barred(Some(&seen));
        if state != State::Released {
            assert_eq!(next, None, "{state:?}: its outcome decides");
            continue;
        }
        let expected = Record { version: Version(8), fence: OTHER, state: State::Barred, ..seen };
        assert_eq!(next.unwrap().record, expected);
    }
}

#[test]
fn an_uncertain_record_that_is_kept_is_uncertain_since_the_same_time() {
    let before = held(announcing(uncertain()), 900);
    let next = kept(&before, &policy()).unwrap();
    let since = |record: &Record| match record.state {
        State::Uncertain { since_ms, .. } => since_ms,
        _ => None,
    };
    assert_eq!(since(&next.record), Some(before.written_ms));
    assert_eq!(next.record.version, before.record.version.after_next());
    assert_eq!(next.record.publication, before.record.publication);
    let keep = policy().unsettled_retention;
    assert_eq!((next.lifetime.keep, next.lifetime.due), (keep, Some(keep)));
    let again = kept(&Held { record: next.record, written_ms: 900, ..before }, &policy());
    assert_eq!(since(&again.unwrap().record), Some(before.written_ms));
    for state in states().into_iter().filter(|state| *state != uncertain()) {
        assert_eq!(kept(&held(record(state.clone(), OWN), 900), &policy()), None, "{state:?}");
    }
}
