//! What the outcomes of calls mean.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::story::{Action, Undo, step};
use crate::gate::CallOutcome;
use crate::key::{Caller, Hashing, OperationParts, Scope, Slot, Space};
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::saga::kept::KeptAnswer;
use crate::saga::outcome::{AnswerRules, StepOutcome};

fn reply(status: u16) -> Arc<Reply> {
    Arc::new(Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"1\""))]),
        body: ReplyBody::Whole(Bytes::from_static(b"{\"id\":1.0}")),
        trailers: None,
    })
}

fn slot() -> Slot {
    let scope = Scope::internal("saga", "checkout");
    let parts = OperationParts {
        space: Space::Enforced,
        route: "checkout/a",
        scope: &scope,
        key: b"key",
        variant: &[],
    };
    Hashing::default().identity(&parts, Caller::nobody()).0
}

fn answered(status: u16) -> CallOutcome {
    CallOutcome::Answered { operation: slot(), reply: reply(status), replayed: false }
}

fn kept(status: u16) -> StepOutcome {
    let (body, etag) = (Some("{\"id\":1.0}".into()), Some("\"1\"".to_owned()));
    StepOutcome::Success(KeptAnswer { status, body, location: None, etag })
}

#[test]
fn stored_answers_are_a_success_or_a_definite_no_by_the_plan() {
    let mut step = step("a", &[]);
    step.sending.success = vec!["2xx".into(), "409".into()];
    let action = AnswerRules::new(&step, Action).unwrap();
    let undo = AnswerRules::new(&step, Undo).unwrap();
    for (status, of_action, of_undo) in [
        (201, kept(201), kept(201)),
        (409, kept(409), kept(409)),
        (404, StepOutcome::Failure { status: 404 }, kept(404)),
        (422, StepOutcome::Failure { status: 422 }, StepOutcome::Failure { status: 422 }),
        // Only a probe or an operator stores this status.
        (302, kept(302), kept(302)),
    ] {
        assert_eq!(action.outcome(&answered(status)), of_action, "action, {status}");
        assert_eq!(undo.outcome(&answered(status)), of_undo, "compensation, {status}");
    }
    step.sending.failure.push("404".into());
    assert!(AnswerRules::new(&step, Undo).is_ok(), "gone beats a failure of the same status");
}

#[test]
fn every_other_outcome_of_a_call_has_its_meaning() {
    let rules = AnswerRules::new(&step("a", &[]), Action).unwrap();
    let (operation, second) = (slot(), Duration::from_secs(1));
    let not_sent = |refusal, retryable| CallOutcome::NotSent { refusal, retryable };
    let busy = StepOutcome::Busy { retry_after_ms: 1_000 };
    let invalid = StepOutcome::Invalid { why: "body-too-large".into() };
    let held = StepOutcome::Uncertain { retry_after_ms: None };
    for (call, outcome) in [
        (
            CallOutcome::Released { operation, reply: reply(503) },
            StepOutcome::NotExecuted { status: Some(503) },
        ),
        (not_sent(Refusal::Overloaded, true), busy.clone()),
        (not_sent(Refusal::BodyTooLarge { limit: 1 }, false), invalid),
        (
            CallOutcome::InFlight { operation, retry_after: second },
            StepOutcome::InFlight { retry_after_ms: 1_000 },
        ),
        (
            CallOutcome::Uncertain { operation, retry_after: Some(second) },
            StepOutcome::Uncertain { retry_after_ms: Some(1_000) },
        ),
        (CallOutcome::Uncertain { operation, retry_after: None }, held),
        (CallOutcome::Expired { operation }, StepOutcome::Lost),
        (CallOutcome::NothingToContinue { operation, was_released: true }, StepOutcome::Released),
        (CallOutcome::NothingToContinue { operation, was_released: false }, StepOutcome::Absent),
        (CallOutcome::StoreUnavailable { retry_after: second }, busy.clone()),
        (CallOutcome::Draining, busy),
    ] {
        assert_eq!(rules.outcome(&call), outcome, "{call:?}");
    }
}

#[test]
fn a_body_that_is_not_stored_is_not_kept() {
    let mut reply = Arc::unwrap_or_clone(reply(201));
    reply.body = ReplyBody::NotStored;
    assert_eq!(KeptAnswer::of(&reply).body, None);
}
