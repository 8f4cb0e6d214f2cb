//! Tables of the rules. Each test checks every row of its table in every combination.

#![allow(clippy::type_complexity)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::*;
use crate::key::{BodyHash, Caller, Fingerprint, KeySyntax, fingerprint};
use crate::record::{
    Cause, Extras, Fence, Held, Record, Reply, ReplyBody, Settler, State, Version,
};

mod exact;
mod lock;
mod operator;
mod publishing;
mod sagas;
mod statuses;
mod writes;

const OWN: Fence = Fence(1);
const OTHER: Fence = Fence(2);
const SECOND: Duration = Duration::from_secs(1);

/// A policy with the documented defaults.
pub(crate) fn policy() -> Policy {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    Policy {
        route: "payments".into(),
        mode: Mode::Enforce,
        path_case: crate::key::path::PathCase::Sensitive,
        key: KeyRule {
            source: KeySource::Sent {
                header: Some(http::HeaderName::from_static("idempotency-key")),
                body: None,
                form: None,
            },
            required: true,
            min_length: 1,
            max_length: 255,
            syntax: KeySyntax::Lenient,
        },
        by_path: false,
        echo_key: false,
        upstream_key: None,
        scope: ScopeRule::Shared,
        caller: CallerRule::Headers(vec![http::header::AUTHORIZATION]),
        fingerprint: FingerprintRule::Json(vec![]),
        on_in_flight: OnInFlight::Reject,
        wait_timeout: 10 * SECOND,
        on_mismatch: OnMismatch::Reject,
        mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
        on_uncertain: OnUncertain::Hold,
        uncertain_after: 60 * SECOND,
        statuses: StatusRules::new(
            &list(&["2xx", "3xx", "4xx", "500", "501"]),
            &list(&["401", "403", "407", "408", "417", "425", "429", "503 retry-after"]),
            &list(&["502", "503", "504"]),
        )
        .unwrap(),
        drop_headers: vec![],
        redact: vec![],
        retention: 3600 * SECOND,
        tombstone: Duration::ZERO,
        unsettled_retention: 7200 * SECOND,
        lease: 30 * SECOND,
        on_failure: OnFailure::FailClosed,
        stripe_should_retry: false,
        errors: Dialect::Problem,
        fields: Vec::new(),
        publish: None,
        resource: None,
        explain: false,
        cors: None,
    }
}

fn print(body: &'static [u8]) -> Fingerprint {
    fingerprint("POST", "/", None, &Bytes::from_static(body), BodyHash::Raw)
}

fn alice() -> Caller {
    Caller::of_field("authorization", b"alice")
}

fn asked() -> ClaimRequest {
    ClaimRequest { caller: alice(), fingerprint: print(b"a"), fence: OWN }
}

fn reply(status: u16, body: ReplyBody) -> Arc<Reply> {
    Arc::new(Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body,
        trailers: None,
    })
}

fn whole(status: u16) -> Arc<Reply> {
    reply(status, ReplyBody::Whole(Bytes::from_static(b"paid")))
}

fn record(state: State, fence: Fence) -> Record {
    let marker = state == State::Released;
    Record {
        version: Version(7),
        fence,
        route: "payments".into(),
        fingerprint: (!marker).then(|| print(b"a")),
        caller: (!marker).then(alice),
        opened_unix_ms: 5,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state,
    }
}

fn held(record: Record, now_ms: u64) -> Held {
    Held { record, written_ms: 1000, due_ms: 31_000, now_ms }
}

fn in_flight() -> State {
    State::InFlight { uncertain_since_ms: None }
}

fn uncertain() -> State {
    State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None }
}

fn completed() -> State {
    State::Completed { reply: whole(201), by: Settler::Upstream }
}

fn not_stored() -> State {
    State::Completed { reply: reply(200, ReplyBody::NotStored), by: Settler::Upstream }
}

/// Every state, with the answer to each kind of request.
#[test]
fn admit_has_one_answer_for_every_case() {
    use Admission as A;
    let refuse = A::Refuse;
    let busy = refuse(DuplicateRefusal::in_flight(&policy()));
    let reused = || refuse(DuplicateRefusal::KeyReused);
    let expired = refuse(DuplicateRefusal::ResultExpired);
    let not_stored_refusal = refuse(DuplicateRefusal::ResponseNotStored { status: 200 });
    let on_hold = || refuse(DuplicateRefusal::uncertain(None));
    let replay = || A::Replay(whole(201));
    // The same answer in all columns, or in all but "other body".
    let always = |answer: A| [answer.clone(), answer.clone(), answer.clone(), answer];
    let unless_other = |answer: A| [answer.clone(), answer.clone(), reused(), answer];
    let late = 31_000;
    // state, fence, now | same request, waiting route, other body, other body under "replay"
    let rows: [(State, Fence, u64, [A; 4]); 12] = [
        (in_flight(), OTHER, 30_999, [busy.clone(), A::Wait, reused(), busy.clone()]),
        (in_flight(), OTHER, late, unless_other(A::MarkUncertain)),
        (in_flight(), OWN, 30_999, unless_other(A::Run)),
        (in_flight(), OWN, late, unless_other(A::Run)),
        (uncertain(), OTHER, late, unless_other(on_hold())),
        (uncertain(), OWN, late, unless_other(on_hold())),
        (completed(), OTHER, late, unless_other(replay())),
        (completed(), OWN, late, unless_other(replay())),
        (not_stored(), OTHER, late, unless_other(not_stored_refusal)),
        (State::Expired, OTHER, late, unless_other(expired)),
        (State::Released, OTHER, late, always(A::Claim(ClaimOver::Marker(Version(7))))),
        (State::Released, OWN, late, always(refuse(DuplicateRefusal::NotSent))),
    ];
    let waiting = Policy { on_in_flight: OnInFlight::Wait, ..policy() };
    let replaying = Policy { on_mismatch: OnMismatch::Replay, ..policy() };
    let other_body = ClaimRequest { fingerprint: print(b"b"), ..asked() };
    for (state, fence, now, [same, wait, other, replay]) in rows {
        let held = held(record(state.clone(), fence), now);
        assert_eq!(
            admit(Some(&held), &asked(), &policy()),
            same,
            "same request, {state:?} {fence:?} {now}"
        );
        assert_eq!(
            admit(Some(&held), &asked(), &waiting),
            wait,
            "waiting route, {state:?} {fence:?} {now}"
        );
        assert_eq!(
            admit(Some(&held), &other_body, &policy()),
            other,
            "other body, {state:?} {fence:?} {now}"
        );
        assert_eq!(
            admit(Some(&held), &other_body, &replaying),
            replay,
            "other body under replay, {state:?} {fence:?} {now}"
        );
    }
    assert_eq!(admit(None, &asked(), &policy()), A::Claim(ClaimOver::Nothing));
}

#[test]
fn a_stranger_learns_nothing_in_any_state_under_any_policy() {
    let mallory = ClaimRequest { caller: Caller::of_field("authorization", b"mallory"), ..asked() };
    for state in [in_flight(), uncertain(), completed(), not_stored(), State::Expired] {
        for fence in [OWN, OTHER] {
            for now in [2000, 31_000] {
                for on_mismatch in [OnMismatch::Reject, OnMismatch::Replay, OnMismatch::Supersede] {
                    for on_in_flight in [OnInFlight::Reject, OnInFlight::Wait] {
                        let policy = Policy { on_mismatch, on_in_flight, ..policy() };
                        let held = held(record(state.clone(), fence), now);
                        assert_eq!(
                            admit(Some(&held), &mallory, &policy),
                            Admission::Refuse(DuplicateRefusal::KeyReused),
                            "{state:?}"
                        );
                    }
                }
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Becomes {
    Completed,
    Uncertain(Cause),
    Marker,
    Done,
    Stale,
}

fn becomes(settlement: &Settlement) -> Becomes {
    match settlement {
        Settlement::Done => Becomes::Done,
        Settlement::Stale => Becomes::Stale,
        Settlement::Write(next) => match &next.record.state {
            State::Completed { .. } => Becomes::Completed,
            State::Uncertain { cause, .. } => Becomes::Uncertain(*cause),
            State::Released => Becomes::Marker,
            other => panic!("settle never writes {other:?}"),
        },
    }
}

/// Every state of the record, with the settlement for each outcome.
#[test]
fn settle_has_one_answer_for_every_case() {
    use Becomes::{Completed, Done, Marker, Stale, Uncertain};
    let fresh = Claim { fence: OWN, record: record(in_flight(), OWN) };
    let again = Claim {
        fence: OWN,
        record: record(State::InFlight { uncertain_since_ms: Some(900) }, OWN),
    };
    let outcomes = [
        Outcome::Answered(whole(201)),
        Outcome::Answered(whole(429)),
        Outcome::Answered(whole(503)),
        Outcome::Answered(whole(409)),
        Outcome::NeverSent,
        Outcome::InDoubt(Cause::TimedOut),
    ];
    let doubted = || State::InFlight { uncertain_since_ms: Some(900) };
    let as_before = || Uncertain(Cause::NotRepeated);
    let unclear = || Uncertain(Cause::Status(503));
    let timed_out = || Uncertain(Cause::TimedOut);
    let all_stale = || [Stale, Stale, Stale, Stale, Stale, Stale];
    let restored = || [Completed, as_before(), unclear(), as_before(), as_before(), timed_out()];
    // state and fence | 201 stored, 429 released, 503 uncertain, 409 stored, never sent, in doubt
    let rows: [(Option<(State, Fence)>, [Becomes; 6]); 11] = [
        (None, [Stale, Stale, Stale, Stale, Marker, Stale]),
        (Some((in_flight(), OWN)), [Completed, Marker, unclear(), Completed, Marker, timed_out()]),
        (Some((in_flight(), OTHER)), all_stale()),
        (Some((uncertain(), OWN)), [Completed, Marker, unclear(), Completed, Marker, timed_out()]),
        (Some((uncertain(), OTHER)), all_stale()),
        (Some((completed(), OWN)), all_stale()),
        (Some((completed(), OTHER)), all_stale()),
        (Some((State::Expired, OWN)), all_stale()),
        (Some((State::Expired, OTHER)), all_stale()),
        (Some((State::Released, OWN)), [Stale, Done, Stale, Stale, Marker, Stale]),
        (Some((State::Released, OTHER)), [Stale, Stale, Stale, Stale, Marker, Stale]),
    ];
    // An attempt that began from an uncertain operation never frees the key, even if a sweeper has
    // marked the operation in the meantime.
    let rows_again: [(Option<(State, Fence)>, [Becomes; 6]); 6] = [
        (None, [Stale, Stale, Stale, Stale, Marker, Stale]),
        (Some((doubted(), OWN)), restored()),
        (Some((uncertain(), OWN)), restored()),
        (Some((doubted(), OTHER)), all_stale()),
        (Some((State::Released, OTHER)), all_stale()),
        (Some((completed(), OTHER)), all_stale()),
    ];
    let all = rows
        .into_iter()
        .map(|row| (&fresh, row))
        .chain(rows_again.into_iter().map(|row| (&again, row)));
    for (claim, (current, expected)) in all {
        let current = current.map(|(state, fence)| record(state, fence));
        for (outcome, expected) in outcomes.iter().zip(expected) {
            let settlement = settle(current.as_ref(), claim, outcome, &policy(), Version(99));
            assert_eq!(
                becomes(&settlement),
                expected,
                "{:?} {outcome:?}",
                current.as_ref().map(|r| (&r.state, r.fence))
            );
            if let Settlement::Write(next) = settlement {
                let version = current.as_ref().map_or(Version(99), |record| record.version.next());
                assert_eq!(
                    (next.record.version, next.record.fence),
                    (version, OWN),
                    "every change has its own version"
                );
            }
        }
    }
}

#[test]
fn a_marker_names_nobody_and_outlives_every_store_command() {
    let claim = Claim { fence: OWN, record: record(in_flight(), OWN) };
    let Settlement::Write(next) =
        settle(Some(&claim.record), &claim, &Outcome::NeverSent, &policy(), Version(9))
    else {
        panic!("a claim that was never sent is released")
    };
    assert_eq!(
        (next.record.caller, next.record.fingerprint, next.record.state),
        (None, None, State::Released)
    );
    assert_eq!((next.lifetime.keep, next.lifetime.due), (60 * SECOND, None));
    assert_eq!(Policy { wait_timeout: 90 * SECOND, ..policy() }.marker_retention(), 90 * SECOND);
}

#[test]
fn an_attempt_that_began_from_uncertain_restores_the_time_of_the_uncertainty() {
    let record = record(State::InFlight { uncertain_since_ms: Some(900) }, OWN);
    let claim = Claim { fence: OWN, record: record.clone() };
    let Settlement::Write(next) =
        settle(Some(&record), &claim, &Outcome::NeverSent, &policy(), Version(9))
    else {
        panic!("the operation becomes uncertain again")
    };
    assert_eq!(
        next.record.state,
        State::Uncertain { cause: Cause::NotRepeated, since_ms: Some(900), retry: None }
    );
    assert_eq!((next.record.caller, next.record.fingerprint), (record.caller, record.fingerprint));
}

#[test]
fn what_was_sent_again_and_lost_rests_anew() {
    let record = record(State::InFlight { uncertain_since_ms: Some(900) }, OWN);
    let claim = Claim { fence: OWN, record: record.clone() };
    let Settlement::Write(next) =
        settle(Some(&record), &claim, &Outcome::InDoubt(Cause::Broken), &policy(), Version(9))
    else {
        panic!("the operation becomes uncertain")
    };
    assert_eq!(
        next.record.state,
        State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None }
    );
    let next = expire(&held(record, 31_000), &policy()).unwrap();
    assert_eq!(
        next.record.state,
        State::Uncertain { cause: Cause::LeaseEnded, since_ms: None, retry: None }
    );
}

#[test]
fn an_abandoned_claim_over_an_uncertain_record_can_not_be_written_any_more() {
    const LOST: Fence = Fence(33);
    let current =
        record(State::Uncertain { cause: Cause::Broken, since_ms: None, retry: Some(LOST) }, OTHER);
    let over = ClaimOver::Uncertain { version: current.version, since_ms: 900, opened_unix_ms: 4 };
    let claim =
        Claim { fence: OWN, record: claim(&asked(), over, Version(1), 5, &policy()).record };
    assert_eq!((claim.record.version, claim.record.opened_unix_ms), (current.version.next(), 4));
    let Settlement::Write(next) =
        settle(Some(&current), &claim, &Outcome::NeverSent, &policy(), Version(9))
    else {
        panic!("the record that it claimed over is written again")
    };
    assert_eq!((next.record.version, next.record.fence), (current.version.after_next(), OTHER));
    assert_eq!(
        next.record.state,
        State::Uncertain { cause: Cause::Broken, since_ms: Some(900), retry: Some(LOST) }
    );
    let moved = Record { version: Version(40), ..current };
    assert_eq!(
        settle(Some(&moved), &claim, &Outcome::NeverSent, &policy(), Version(9)),
        Settlement::Stale
    );
}

#[test]
fn lifetimes_follow_the_policy() {
    let tombstoned = Policy { tombstone: 10 * SECOND, ..policy() };
    let next = claim(&asked(), ClaimOver::Nothing, Version(1), 5, &tombstoned);
    assert_eq!(next.lifetime.keep, tombstoned.unsettled_retention);
    assert_eq!(next.lifetime.due, Some(tombstoned.lease));
    assert_eq!(next.lifetime.tombstone, Some(tombstoned.retention + tombstoned.tombstone));
    assert_eq!(
        claim(&asked(), ClaimOver::Nothing, Version(1), 5, &policy()).lifetime.tombstone,
        None
    );
    let own = Claim { fence: OWN, record: next.record };
    let settled = |outcome| match settle(Some(&own.record), &own, &outcome, &tombstoned, Version(9))
    {
        Settlement::Write(next) => next.lifetime,
        other => panic!("{other:?}"),
    };
    let result = settled(Outcome::Answered(whole(201)));
    assert_eq!(
        (result.keep, result.due, result.tombstone),
        (tombstoned.retention, None, Some(tombstoned.retention + tombstoned.tombstone))
    );
    let doubt = settled(Outcome::InDoubt(Cause::Broken));
    assert_eq!(
        (doubt.keep, doubt.due),
        (tombstoned.unsettled_retention, Some(tombstoned.unsettled_retention)),
        "it is listed for as long as it is tombstoned"
    );
}

#[test]
fn a_lease_that_ends_makes_uncertain_and_never_absent() {
    let running = held(record(in_flight(), OTHER), 30_999);
    assert_eq!(expire(&running, &policy()), None);
    let over = held(record(in_flight(), OTHER), 31_000);
    let next = expire(&over, &policy()).unwrap();
    assert_eq!(
        next.record.state,
        State::Uncertain { cause: Cause::LeaseEnded, since_ms: None, retry: None }
    );
    assert_eq!(
        (next.record.fence, next.record.version),
        (OTHER, Version(9)),
        "the claiming attempt may still complete it"
    );
    for state in [uncertain(), completed(), State::Released, State::Expired] {
        assert_eq!(expire(&held(record(state, OTHER), 99_000), &policy()), None);
    }
}
