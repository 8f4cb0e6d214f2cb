//! Every refusal as clients get it, with one row for each kind, and the part of it that the event
//! log records.

use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::key::{SLOT_BYTES, Slot, Space};

const SLOT: Slot = Slot::from_hash(Space::Enforced, [7; SLOT_BYTES]);
const AFTER: Duration = Duration::from_millis(2_500);

/// A refusal, its status, the name of its problem, its `Retry-After`, its `X-Should-Retry`, and
/// whether the event log records it.
type Row = (Refusal, u16, &'static str, Option<&'static str>, Option<&'static str>, bool);

fn rows() -> Vec<Row> {
    let (slot, what) = (SLOT, "the key".to_owned());
    let unsettled =
        |slot, retry_after| Refusal::OutcomeUncertain { slot, status: None, retry_after };
    let (one, three, yes, no) = (Some("1"), Some("3"), Some("true"), Some("false"));
    let mut rows = vec![
        (
            Refusal::KeyMissing { what: what.clone(), body: None },
            400,
            "key-missing",
            None,
            None,
            true,
        ),
        (Refusal::KeyInvalid { why: KeyFault::Twice }, 400, "key-invalid", None, None, true),
        (Refusal::ScopeMissing { what: what.clone() }, 400, "scope-missing", None, None, true),
        (Refusal::ScopeRepeated { what }, 400, "scope-invalid", None, None, true),
        (Refusal::ScopeInvalid { expired: false }, 401, "scope-invalid", None, None, true),
        (Refusal::ScopeInvalid { expired: true }, 401, "scope-invalid", None, None, true),
        (Refusal::ScopeUnavailable, 503, "scope-unavailable", one, yes, false),
        (Refusal::KeyReused { slot, explained: None }, 422, "key-reused", None, no, true),
        (
            Refusal::InFlight { slot, retry_after: AFTER, saga: false },
            409,
            "in-flight",
            three,
            yes,
            true,
        ),
        (Refusal::SagaStuck { slot, held: None }, 409, "saga-stuck", Some("30"), yes, true),
        (Refusal::SagaNotFound, 404, "saga-not-found", None, None, false),
        (Refusal::Barred { slot }, 409, "barred", None, None, false),
        (unsettled(Some(slot), None), 409, "outcome-uncertain", None, no, true),
        (unsettled(Some(slot), Some(AFTER)), 409, "outcome-uncertain", three, yes, true),
        (
            Refusal::ResponseNotStored { slot, status: 201 },
            409,
            "response-not-stored",
            None,
            None,
            true,
        ),
        (Refusal::ResultExpired { slot }, 409, "result-expired", None, None, true),
        (Refusal::NotSent { slot }, 503, "not-sent", one, yes, false),
        (Refusal::UpstreamUnreachable { slot: None }, 502, "upstream-unreachable", one, yes, false),
        (Refusal::UpstreamFailed { timed_out: false }, 502, "upstream-failed", one, yes, false),
        (Refusal::UpstreamFailed { timed_out: true }, 504, "upstream-failed", one, yes, false),
        (
            Refusal::StoreUnavailable { retry_after: AFTER },
            503,
            "store-unavailable",
            three,
            yes,
            false,
        ),
        (Refusal::RecordUnreadable { slot }, 503, "store-unavailable", one, yes, false),
        (Refusal::Overloaded, 503, "overloaded", one, yes, false),
        (Refusal::QuotaReached { retry_after: AFTER }, 503, "overloaded", three, yes, false),
        (Refusal::OutboxFull { retry_after: AFTER }, 503, "outbox-full", three, yes, false),
        (Refusal::UnsupportedEncoding, 415, "unsupported-encoding", None, None, true),
        (Refusal::BodyUnreadable, 400, "body-unreadable", None, None, true),
        (Refusal::BodyTimeout, 408, "body-incomplete", one, yes, false),
        (Refusal::BodyBroken, 400, "body-incomplete", one, yes, false),
        (Refusal::PathAmbiguous, 400, "path-ambiguous", None, None, false),
        (Refusal::MethodNotAllowed, 405, "method-not-allowed", None, None, false),
        (Refusal::HostInvalid, 400, "host-invalid", None, None, false),
        (Malformation::LineEnding.into(), 400, "request-malformed", None, None, false),
        (Refusal::HeaderTooLarge { limit: 1 }, 431, "header-too-large", None, None, false),
    ];
    rows.extend(further_rows());
    rows
}

fn further_rows() -> Vec<Row> {
    let (slot, current) = (SLOT, None);
    let (one, three, yes) = (Some("1"), Some("3"), Some("true"));
    vec![
        (
            Refusal::PreconditionFailed { current, why: FailedCondition::Stale },
            412,
            "precondition-failed",
            None,
            None,
            false,
        ),
        (
            Refusal::MergeConflict {
                current: EntityTag::parse(b"\"7\"").unwrap(),
                members: vec!["/plan".to_owned()],
            },
            412,
            "merge-conflict",
            None,
            None,
            false,
        ),
        (Refusal::PreconditionRequired, 428, "precondition-required", None, None, false),
        (InvalidCondition::Both.into(), 400, "condition-invalid", None, None, false),
        (Refusal::ResourceBusy { retry_after: AFTER }, 409, "resource-busy", three, yes, false),
        (
            Refusal::ResourceUncertain { slot, retry_after: AFTER },
            409,
            "resource-uncertain",
            three,
            yes,
            false,
        ),
        (Refusal::BodyTooLarge { limit: 1 }, 413, "body-too-large", None, None, false),
        (Refusal::ResourceUnreadable, 502, "resource-unreadable", one, yes, false),
    ]
}

#[test]
fn a_refusal_has_its_status_its_problem_type_and_its_retry_fields() {
    for (refusal, status, name, retry_after, should_retry, is_observed) in rows() {
        let (response, _) = RefusalRenderer::default().render(&refusal, RefusalStyle::default());
        let field = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(
            (response.status().as_u16(), field("retry-after"), field("x-should-retry")),
            (status, retry_after, should_retry),
            "{refusal:?}"
        );
        let document: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(document["type"], format!("urn:onceward:problem:{name}"), "{refusal:?}");
        assert_eq!(document["retryable"], retry_after.is_some(), "{refusal:?}");
        let observed = refusal.observed(StatusCode::UNPROCESSABLE_ENTITY);
        let expected = is_observed.then(|| (StatusCode::from_u16(status).unwrap(), name));
        assert_eq!(observed, expected, "{refusal:?}");
    }
}

/// Returns the number of kinds. A new kind stops this from compiling, so that its row is not
/// forgotten.
const fn kinds_count(kind: RefusalKind) -> usize {
    use RefusalKind::*;
    match kind {
        KeyMissing | KeyInvalid | ScopeMissing | ScopeRepeated | ScopeInvalid | ScopeExpired
        | ScopeUnavailable | KeyReused | InFlight | SagaStuck | SagaNotFound | Barred
        | OutcomeUncertain | ResponseNotStored | ResultExpired | NotSent | UpstreamUnreachable
        | UpstreamFailed | UpstreamTimedOut | StoreUnavailable | RecordUnreadable | Overloaded
        | QuotaReached | OutboxFull | BodyTooLarge | UnsupportedEncoding | BodyUnreadable
        | BodyTimeout | BodyBroken | PathAmbiguous | MethodNotAllowed | HostInvalid | Malformed
        | HeaderTooLarge | PreconditionFailed | MergeConflict | PreconditionRequired
        | ConditionInvalid | ResourceBusy | ResourceUncertain | ResourceUnreadable => 41,
    }
}

#[test]
fn the_table_has_every_kind() {
    let kinds: HashSet<RefusalKind> = rows().iter().map(|row| row.0.kind()).collect();
    assert_eq!(kinds.len(), kinds_count(RefusalKind::KeyMissing), "{kinds:?}");
}

#[test]
fn a_failed_precondition_has_the_current_tag() {
    let current = EntityTag::parse(b"\"7\"");
    let refusal = Refusal::PreconditionFailed { current, why: FailedCondition::Stale };
    let (response, _) = RefusalRenderer::default().render(&refusal, RefusalStyle::default());
    assert_eq!(response.headers()["etag"], "\"7\"");
}

#[test]
fn a_refusal_about_a_saga_has_its_location() {
    let in_flight = |saga| Refusal::InFlight { slot: SLOT, retry_after: AFTER, saga };
    let stuck = |held| Refusal::SagaStuck { slot: SLOT, held };
    let held = Slot::from_hash(Space::Enforced, [9; SLOT_BYTES]);
    let saga = serde_json::json!(SLOT.to_string());
    let (none, null) = (serde_json::Value::Null, serde_json::Value::Null);
    for (refusal, has_location, member, operation) in [
        (in_flight(true), true, none.clone(), saga.clone()),
        (in_flight(false), false, none, saga.clone()),
        (stuck(None), true, saga.clone(), null),
        (stuck(Some(held)), true, saga, serde_json::json!(held.to_string())),
    ] {
        let (response, _) = RefusalRenderer::default().render(&refusal, RefusalStyle::default());
        let location = response.headers().get("location").map(|value| value.to_str().unwrap());
        let expected = format!("/.well-known/onceward/sagas/{SLOT}");
        assert_eq!(location, has_location.then_some(&*expected), "{refusal:?}");
        let document: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((&document["saga"], &document["operation"]), (&member, &operation));
    }
}
