//! The answer of a saga that ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::document::SagaDocument;
use super::log::{BackCause, StepFailure};
use super::machine::failure;
use super::plan::AnswerTemplate;
use super::render::answer;
use crate::record::{Reply, ReplyBody};

/// The status of a failed saga, unless the plan has another one.
const FAILED: u16 = 409;

/// The short name of the problem type of a failed saga.
pub(super) const PROBLEM: &str = "saga-failed";

const DETAIL: &str = "What was executed has been undone. The same request gets this answer again. To \
                      try again, send the request with another key";

/// Returns the answer of a saga that ends at `now_unix_ms`. `id` is its public id, and
/// `problem_type` the type of [`PROBLEM`].
pub(super) fn ending_reply(
    document: &SagaDocument,
    id: &str,
    completed: bool,
    (now_unix_ms, problem_type): (u64, &str),
) -> Reply {
    let plan = &document.plan;
    if completed {
        let status = plan.answer.status;
        let body = rendered(document, id, &plan.answer)
            .unwrap_or_else(|| json!({ "id": id, "status": "completed" }).to_string());
        return reply(status, "application/json", body, now_unix_ms);
    }
    let status = plan.failed.as_ref().map_or(FAILED, |failed| failed.status);
    match plan.failed.as_ref().and_then(|failed| rendered(document, id, failed)) {
        Some(body) => reply(status, "application/json", body, now_unix_ms),
        None => {
            let problem = problem(document, id, status, problem_type).to_string();
            reply(status, "application/problem+json", problem, now_unix_ms)
        }
    }
}

/// Returns the rendered body; `None` if the plan has none, or if it can't be rendered.
fn rendered(document: &SagaDocument, id: &str, template: &AnswerTemplate) -> Option<String> {
    let keys = document.done_keys();
    match answer(template, &document.scope(id, &keys)) {
        Ok(rendered) => rendered.body,
        Err(error) => {
            tracing::warn!(
                saga = %document.plan.saga, operation = %id, %error,
                "the answer of the saga can't be rendered: it has the default body"
            );
            None
        }
    }
}

/// Returns the problem document `saga-failed` (RFC 9457).
fn problem(document: &SagaDocument, id: &str, status: u16, problem_type: &str) -> Value {
    let mut problem = json!({
        "type": problem_type,
        "title": "The saga failed",
        "status": status,
        "detail": DETAIL,
        "retryable": false,
        // An official SDK treats any JSON body without this member as a success, whatever the
        // status.
        "error": { "type": "idempotency_error", "code": PROBLEM, "message": DETAIL },
        "operation": id,
        "saga": id,
        "step": null,
        "step_status": null,
    });
    match failure(&document.log).map(|failure| (failure.cause, failure.why)) {
        Some((BackCause::Step { step }, why)) => {
            problem["step"] = json!(document.plan.steps.get(step).map(|step| &step.name));
            problem["step_status"] = json!(why.and_then(status_of));
        }
        Some((BackCause::Timeout { .. }, _)) => problem["cause"] = json!("timeout"),
        Some((BackCause::Cancel { .. }, _)) => problem["cause"] = json!("cancel"),
        None => {}
    }
    problem
}

fn status_of(why: &StepFailure) -> Option<u16> {
    match why {
        StepFailure::Status(status) | StepFailure::Attempts { status: Some(status) } => {
            Some(*status)
        }
        StepFailure::Attempts { status: None }
        | StepFailure::Unrendered(_)
        | StepFailure::Condition(_)
        | StepFailure::Invalid(_)
        | StepFailure::Barred => None,
    }
}

fn reply(status: u16, media: &'static str, body: String, now_unix_ms: u64) -> Reply {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    let now: SystemTime = UNIX_EPOCH + Duration::from_millis(now_unix_ms);
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
        headers.insert(DATE, date);
    }
    Reply {
        status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
        headers,
        body: ReplyBody::Whole(Bytes::from(body)),
        trailers: None,
    }
}
