//! What the rules write, to the last field, and what an upstream's answer to a question is worth.

use super::*;
use crate::key::Pointer;

const KEPT: Option<Bytes> = Some(Bytes::from_static(b"k"));

fn extras() -> Extras {
    Extras { leaves: Some(Bytes::from_static(b"leaves")), span: None }
}

/// An uncertain record of a lost attempt, whose key is kept so that it can be asked for.
fn doubted() -> Record {
    Record { kept: KEPT, extras: extras(), ..record(uncertain(), OTHER) }
}

fn written(settlement: Settlement) -> Record {
    match settlement {
        Settlement::Write(next) => next.record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_settled_has_its_own_version_and_keeps_no_key_and_a_marker_nothing_at_all() {
    let running = Record { kept: KEPT, extras: extras(), ..record(in_flight(), OWN) };
    let claim = Claim { fence: OWN, record: running.clone() };
    let settled =
        |outcome| written(settle(Some(&running), &claim, &outcome, &policy(), Version(99)));
    let done = Record { version: Version(8), kept: None, state: completed(), ..running.clone() };
    assert_eq!(settled(Outcome::Answered(whole(201))), done);
    let marker = Record { version: Version(8), ..record(State::Released, OWN) };
    assert_eq!(settled(Outcome::NeverSent), marker);
    let doubt = State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None };
    assert_eq!(
        settled(Outcome::InDoubt(Cause::Broken)),
        Record { version: Version(8), state: doubt, ..running.clone() }
    );
}

#[test]
fn a_decision_has_its_own_version_and_fence_and_keeps_a_key_only_where_an_outcome_is_owed() {
    let decided = |record, decision| {
        decide(&held(record, 99_000), decision, Fence(3), &policy()).map(|next| next.record)
    };
    let by = |by| Record {
        version: Version(8),
        fence: Fence(3),
        kept: None,
        state: State::Completed { reply: whole(201), by },
        ..doubted()
    };
    assert_eq!(decided(doubted(), Decision::Resolve(whole(201))), Ok(by(Settler::Operator)));
    assert_eq!(decided(doubted(), Decision::Found(whole(201))), Ok(by(Settler::Probe)));
    let retry = State::Uncertain { cause: Cause::Broken, since_ms: Some(1000), retry: Some(OTHER) };
    let retried =
        Record { version: Version(8), fence: Fence(3), state: retry.clone(), ..doubted() };
    assert_eq!(decided(doubted(), Decision::Retry), Ok(retried));
    // A second decision names the attempt that was lost, and not the first decision.
    let once_more = Record { fence: Fence(2), state: retry.clone(), ..doubted() };
    let expected = Record { version: Version(8), fence: Fence(3), state: retry, ..doubted() };
    assert_eq!(decided(once_more, Decision::Retry), Ok(expected));
    let marker = Record { version: Version(8), ..record(State::Released, Fence(3)) };
    assert_eq!(decided(doubted(), Decision::Release), Ok(marker));
    let result = Record { kept: KEPT, ..record(completed(), OTHER) };
    let gone = Record {
        version: Version(8),
        fence: Fence(3),
        kept: None,
        state: State::Expired,
        ..result.clone()
    };
    assert_eq!(decided(result, Decision::Expire), Ok(gone));
}

#[test]
fn the_lost_attempt_may_settle_after_an_operators_retry_until_a_duplicate_runs() {
    let claim = Claim { fence: OWN, record: record(in_flight(), OWN) };
    let retried = |lost| {
        record(
            State::Uncertain { cause: Cause::Broken, since_ms: Some(1000), retry: Some(lost) },
            Fence(3),
        )
    };
    let settled =
        |record: &Record, outcome| settle(Some(record), &claim, &outcome, &policy(), Version(99));
    let answered = Record { version: Version(8), state: completed(), ..record(in_flight(), OWN) };
    assert_eq!(written(settled(&retried(OWN), Outcome::Answered(whole(201)))), answered);
    let doubt = Record { version: Version(8), ..record(uncertain(), OWN) };
    assert_eq!(
        written(settled(&retried(OWN), Outcome::InDoubt(Cause::Broken))),
        doubt,
        "its request may sit in a queue"
    );
    let running = record(State::InFlight { doubt_since_ms: Some(1000) }, OTHER);
    for stands in [retried(OTHER), running] {
        assert_eq!(settled(&stands, Outcome::Answered(whole(201))), Settlement::Stale);
    }
}

#[test]
fn an_outcome_says_whether_the_upstream_did_nothing() {
    let doing = |outcome: Outcome| outcome.was_not_executed(&policy());
    assert!(doing(Outcome::NeverSent) && doing(Outcome::Answered(whole(429))));
    assert!(!doing(Outcome::Answered(whole(201))) && !doing(Outcome::Answered(whole(409))));
    assert!(!doing(Outcome::Answered(whole(503))) && !doing(Outcome::InDoubt(Cause::TimedOut)));
}

#[test]
fn only_an_attempt_from_uncertain_that_did_nothing_gives_its_doubt_back() {
    let claim = |doubt_since_ms| Claim {
        fence: OWN,
        record: record(State::InFlight { doubt_since_ms }, OWN),
    };
    let gives = |doubt, outcome: &Outcome| claim(doubt).restores_uncertainty(outcome, &policy());
    for was_not_executed in
        [Outcome::NeverSent, Outcome::Answered(whole(429)), Outcome::Answered(whole(409))]
    {
        assert!(
            gives(Some(900), &was_not_executed) && !gives(None, &was_not_executed),
            "{was_not_executed:?}"
        );
    }
    for other in [Outcome::Answered(whole(201)), Outcome::InDoubt(Cause::Broken)] {
        assert!(!gives(Some(900), &other) && !gives(None, &other), "{other:?}");
    }
}

#[test]
fn a_scope_is_verified_where_somebody_vouches_for_it() {
    let header = http::HeaderName::from_static("authorization");
    let token =
        TokenRule { header: header.clone(), claim: "sub".into(), issuer: None, audience: None };
    assert!(
        ScopeRule::Token(Arc::new(token)).is_verified()
            && ScopeRule::ClientCertificate.is_verified()
    );
    assert!(!ScopeRule::Shared.is_verified() && !ScopeRule::Headers(vec![header]).is_verified());
}

#[test]
fn an_uncertain_outcome_is_retried_where_no_operator_has_to_decide_first() {
    let retry = |on_uncertain| Policy { on_uncertain, ..policy() }.uncertain_retry_after();
    assert_eq!(retry(OnUncertain::Hold), None);
    assert_eq!(retry(OnUncertain::Forward), Some(RETRY_AFTER_MAX));
    assert_eq!(retry(OnUncertain::Probe(Arc::new(probe(None)))), Some(RETRY_AFTER_MAX));
}

fn probe(found_if: Option<&str>) -> Probe {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    Probe {
        method: http::Method::GET,
        path: "/by-key/{key}".into(),
        statuses: StatusRules::new(&list(&["200"]), &list(&["404"]), &[]).unwrap(),
        found_if: found_if.and_then(Pointer::parse),
        map_status: Some(StatusCode::CREATED),
        headers: HeaderMap::new(),
        background: false,
    }
}

#[test]
fn an_upstreams_answer_is_taken_for_what_it_plainly_says() {
    let answer = |status, body: &'static [u8]| {
        Arc::unwrap_or_clone(reply(status, ReplyBody::Whole(Bytes::from_static(body))))
    };
    let created = |body: &'static [u8]| {
        Finding::Found(reply(201, ReplyBody::Whole(Bytes::from_static(body))))
    };
    let plain = probe(None);
    assert_eq!(
        plain.finding(answer(200, b"{}")),
        created(b"{}"),
        "with the status that it is given"
    );
    assert_eq!(plain.finding(answer(404, b"")), Finding::Absent);
    assert_eq!(plain.finding(answer(500, b"")), Finding::Unclear);

    let first = probe(Some("/data/0"));
    assert_eq!(
        first.finding(answer(200, br#"{"data":[{"id":1}]}"#)),
        created(br#"{"id":1}"#),
        "the element alone"
    );
    assert_eq!(first.finding(answer(200, br#"{"data":[]}"#)), Finding::Absent);
    assert_eq!(first.finding(answer(200, b"<html>")), Finding::Unclear);
    let mut encoded = answer(200, br#"{"data":[{"id":1}]}"#);
    encoded.headers.insert(http::header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert_eq!(
        first.finding(encoded.clone()),
        Finding::Unclear,
        "what can't be looked into says nothing"
    );
    assert!(
        matches!(plain.finding(encoded), Finding::Found(_)),
        "where nothing is looked for, it may be encoded"
    );
}

#[test]
fn in_the_background_a_found_result_is_stored_and_an_absent_frees_the_key_only_when_it_counts() {
    let told = |now_ms, finding| {
        believe_in_background(&held(doubted(), now_ms), finding, Fence(3), &policy())
    };
    let state = |next: Option<Next>| next.map(|next| next.record.state.name());
    assert_eq!(state(told(2000, Finding::Found(whole(201)))), Some("completed"));
    assert_eq!(told(2000, Finding::Absent), None, "too early");
    assert_eq!(state(told(61_000, Finding::Absent)), Some("released"));
    assert_eq!(told(99_000, Finding::Unclear), None);
}
