//! The decisions of operators.

use super::*;

#[test]
fn an_operator_settles_only_what_is_uncertain() {
    let resolve = || Decision::Resolve(whole(200));
    let decide = |state, now, decision| {
        decide(&held(record(state, OTHER), now), decision, Fence(3), &policy())
    };
    for decision in [resolve(), Decision::Release] {
        assert_eq!(decide(in_flight(), 2000, decision.clone()), Err(DecisionDenied::InFlight));
        assert_eq!(
            decide(in_flight(), 99_000, decision.clone()),
            Err(DecisionDenied::InFlight),
            "the sweeper marks it first"
        );
        assert_eq!(
            decide(completed(), 99_000, decision.clone()),
            Err(DecisionDenied::Settled("completed"))
        );
        assert_eq!(
            decide(State::Released, 99_000, decision),
            Err(DecisionDenied::Settled("released"))
        );
    }
    let resolved = decide(uncertain(), 1001, resolve()).unwrap();
    assert_eq!(
        resolved.record.state,
        State::Completed { reply: whole(200), by: Settler::Operator }
    );
    assert_eq!(resolved.record.fence, Fence(3), "the lost attempt can no longer write");
    assert_eq!(resolved.lifetime.keep, policy().retention);
}

#[test]
fn an_operator_may_release_only_after_the_waiting_time_for_the_lost_request() {
    let decide = |state, now| {
        decide(&held(record(state, OTHER), now), Decision::Release, Fence(3), &policy())
    };
    assert_eq!(decide(uncertain(), 31_000), Err(DecisionDenied::TooEarly { wait: 30 * SECOND }));
    assert_eq!(
        decide(uncertain(), 60_999),
        Err(DecisionDenied::TooEarly { wait: Duration::from_millis(1) })
    );
    assert_eq!(decide(uncertain(), 61_000).unwrap().record.state, State::Released);
    let earlier = State::Uncertain { cause: Cause::Broken, since_ms: Some(500), retry: None };
    assert_eq!(
        decide(earlier, 60_500).unwrap().record.state,
        State::Released,
        "an older uncertainty counts from its own time"
    );
}

#[test]
fn an_operators_release_is_kept_for_those_who_look_late_and_a_probes_release_is_not() {
    let keep = |decision, policy: &Policy| {
        let lifetime =
            decide(&held(record(uncertain(), OTHER), 99_000), decision, Fence(3), policy)
                .unwrap()
                .lifetime;
        assert_eq!((lifetime.due, lifetime.tombstone), (None, None));
        lifetime.keep
    };
    let policy = policy();
    assert_eq!(keep(Decision::Release, &policy), policy.unsettled_retention);
    assert_eq!(keep(Decision::NotFound, &policy), policy.marker_retention());
    let short = Policy { unsettled_retention: SECOND, ..policy };
    assert_eq!(keep(Decision::Release, &short), short.marker_retention(), "not shorter");
}

#[test]
fn only_a_result_can_be_expired_and_its_key_stays_barred_for_as_long_as_without_the_decision() {
    let kept = Policy { retention: 1000 * SECOND, tombstone: 100 * SECOND, ..policy() };
    let none = Policy { tombstone: Duration::ZERO, ..kept.clone() };
    // The record was written at 1 s of the store's clock.
    let rows = [
        (&kept, 1_000, 1100 * SECOND),
        (&kept, 901_000, 200 * SECOND),
        (&none, 901_000, 100 * SECOND),
        (&none, 999_000, none.marker_retention()),
        // The retention was shortened in the meantime.
        (&none, 9_999_000, none.marker_retention()),
    ];
    for (policy, now_ms, keep) in rows {
        let before = record(completed(), OTHER);
        let next =
            decide(&held(before.clone(), now_ms), Decision::Expire, Fence(3), policy).unwrap();
        let after = Record {
            version: before.version.next(),
            fence: Fence(3),
            state: State::Expired,
            ..before
        };
        assert_eq!(next.record, after, "caller and fingerprint stay: strangers learn nothing");
        assert_eq!(
            (next.lifetime.keep, next.lifetime.due, next.lifetime.tombstone),
            (keep, None, None),
            "at {now_ms}"
        );
    }
    let decide = |state| {
        decide(&held(record(state, OTHER), 2000), Decision::Expire, Fence(3), &kept).unwrap_err()
    };
    assert_eq!(decide(in_flight()), DecisionDenied::InFlight);
    assert_eq!(decide(uncertain()), DecisionDenied::NoResult("uncertain"));
    assert_eq!(decide(State::Released), DecisionDenied::NoResult("released"));
    assert_eq!(decide(State::Expired), DecisionDenied::NoResult("expired"));
}
