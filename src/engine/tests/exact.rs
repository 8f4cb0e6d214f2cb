//! Every field of the records that the rules write, and the findings of probes.

use super::*;
use crate::key::Pointer;

const KEPT: Option<Bytes> = Some(Bytes::from_static(b"k"));

fn extras() -> Extras {
    Extras { leaves: Some(Bytes::from_static(b"leaves")), ..Extras::default() }
}

/// An uncertain record of a lost attempt. The key is kept for a probe.
fn uncertain_with_key() -> Record {
    Record { kept: KEPT, extras: extras(), ..record(uncertain(), OTHER) }
}

fn written(settlement: Settlement) -> Record {
    match settlement {
        Settlement::Write(next) => next.record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_settled_record_has_a_new_version_and_no_key_and_a_marker_keeps_nothing() {
    let running = Record { kept: KEPT, extras: extras(), ..record(in_flight(), OWN) };
    let claim = Claim { fence: OWN, record: running.clone() };
    let settled =
        |outcome| written(settle(Some(&running), &claim, &outcome, &policy(), Version(99)));
    let done = Record { version: Version(8), kept: None, state: completed(), ..running.clone() };
    assert_eq!(settled(Outcome::Answered(whole(201))), done);
    let marker = Record { version: Version(8), ..record(State::Released, OWN) };
    assert_eq!(settled(Outcome::NeverSent), marker);
    let lost = State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None };
    assert_eq!(
        settled(Outcome::InDoubt(Cause::Broken)),
        Record { version: Version(8), state: lost, ..running.clone() }
    );
}

#[test]
fn a_decision_has_a_new_version_and_fence_and_keeps_a_key_only_if_the_outcome_is_unknown() {
    let decided = |record, decision| {
        decide(&held(record, 99_000), decision, Fence(3), &policy()).map(|next| next.record)
    };
    let by = |by| Record {
        version: Version(8),
        fence: Fence(3),
        kept: None,
        publication: None,
        state: State::Completed { reply: whole(201), by },
        ..uncertain_with_key()
    };
    assert_eq!(
        decided(uncertain_with_key(), Decision::Resolve(whole(201))),
        Ok(by(Settler::Operator))
    );
    assert_eq!(decided(uncertain_with_key(), Decision::Found(whole(201))), Ok(by(Settler::Probe)));
    let retry = State::Uncertain { cause: Cause::Broken, since_ms: Some(1000), retry: Some(OTHER) };
    let retried = Record {
        version: Version(8),
        fence: Fence(3),
        state: retry.clone(),
        ..uncertain_with_key()
    };
    assert_eq!(decided(uncertain_with_key(), Decision::Retry), Ok(retried));
    // A second decision names the lost attempt, not the first decision.
    let once_more = Record { fence: Fence(2), state: retry.clone(), ..uncertain_with_key() };
    let expected =
        Record { version: Version(8), fence: Fence(3), state: retry, ..uncertain_with_key() };
    assert_eq!(decided(once_more, Decision::Retry), Ok(expected));
    let marker = Record { version: Version(8), ..record(State::Released, Fence(3)) };
    assert_eq!(decided(uncertain_with_key(), Decision::Release), Ok(marker));
    let result = Record { kept: KEPT, ..record(completed(), OTHER) };
    let gone = Record {
        version: Version(8),
        fence: Fence(3),
        kept: None,
        publication: None,
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
    let lost = Record { version: Version(8), ..record(uncertain(), OWN) };
    assert_eq!(
        written(settled(&retried(OWN), Outcome::InDoubt(Cause::Broken))),
        lost,
        "its request may wait in a queue"
    );
    let running = record(State::InFlight { uncertain_since_ms: Some(1000) }, OTHER);
    for current in [retried(OTHER), running] {
        assert_eq!(settled(&current, Outcome::Answered(whole(201))), Settlement::Stale);
    }
}

#[test]
fn an_outcome_shows_whether_the_upstream_did_nothing() {
    let not_executed = |outcome: Outcome| outcome.was_not_executed(&policy());
    assert!(not_executed(Outcome::NeverSent) && not_executed(Outcome::Answered(whole(429))));
    assert!(
        !not_executed(Outcome::Answered(whole(201)))
            && !not_executed(Outcome::Answered(whole(409)))
    );
    assert!(
        !not_executed(Outcome::Answered(whole(503)))
            && !not_executed(Outcome::InDoubt(Cause::TimedOut))
    );
}

#[test]
fn only_an_attempt_from_uncertain_that_was_not_executed_restores_the_uncertainty() {
    let claim = |uncertain_since_ms| Claim {
        fence: OWN,
        record: record(State::InFlight { uncertain_since_ms }, OWN),
    };
    let restores =
        |since_ms, outcome: &Outcome| claim(since_ms).restores_uncertainty(outcome, &policy());
    for was_not_executed in
        [Outcome::NeverSent, Outcome::Answered(whole(429)), Outcome::Answered(whole(409))]
    {
        assert!(
            restores(Some(900), &was_not_executed) && !restores(None, &was_not_executed),
            "{was_not_executed:?}"
        );
    }
    for other in [Outcome::Answered(whole(201)), Outcome::InDoubt(Cause::Broken)] {
        assert!(!restores(Some(900), &other) && !restores(None, &other), "{other:?}");
    }
}

#[test]
fn only_tokens_and_client_certificates_verify_a_scope() {
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
fn clients_may_retry_an_uncertain_outcome_unless_an_operator_has_to_decide() {
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
fn the_answer_to_a_probe_means_found_absent_or_unclear() {
    let answer = |status, body: &'static [u8]| {
        Arc::unwrap_or_clone(reply(status, ReplyBody::Whole(Bytes::from_static(body))))
    };
    let created = |body: &'static [u8]| {
        Finding::Found(reply(201, ReplyBody::Whole(Bytes::from_static(body))))
    };
    let plain = probe(None);
    assert_eq!(plain.finding(answer(200, b"{}")), created(b"{}"), "with the configured status");
    assert_eq!(plain.finding(answer(404, b"")), Finding::Absent);
    assert_eq!(plain.finding(answer(500, b"")), Finding::Unclear);

    let first = probe(Some("/data/0"));
    assert_eq!(
        first.finding(answer(200, br#"{"data":[{"id":1}]}"#)),
        created(br#"{"id":1}"#),
        "only the element"
    );
    assert_eq!(first.finding(answer(200, br#"{"data":[]}"#)), Finding::Absent);
    assert_eq!(first.finding(answer(200, b"<html>")), Finding::Unclear);
    let mut encoded = answer(200, br#"{"data":[{"id":1}]}"#);
    encoded.headers.insert(http::header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert_eq!(
        first.finding(encoded.clone()),
        Finding::Unclear,
        "an encoded answer can't be searched"
    );
    assert!(
        matches!(plain.finding(encoded), Finding::Found(_)),
        "an answer that is not searched may be encoded"
    );
}

#[test]
fn a_background_probe_stores_a_found_result_and_releases_an_absent_one_only_after_the_waiting_time()
{
    let believed = |now_ms, finding| {
        believe_in_background(&held(uncertain_with_key(), now_ms), finding, Fence(3), &policy())
    };
    let state = |next: Option<Next>| next.map(|next| next.record.state.name());
    assert_eq!(state(believed(2000, Finding::Found(whole(201)))), Some("completed"));
    assert_eq!(believed(2000, Finding::Absent), None, "too early");
    assert_eq!(state(believed(61_000, Finding::Absent)), Some("released"));
    assert_eq!(believed(99_000, Finding::Unclear), None);
}
