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

const DETAIL: &str = "Every step that was executed and can be undone has been undone. The same \
                      request gets this answer again. To try again, send the request with another \
                      key";

/// The answer of a saga that ends.
pub(super) struct EndingReply {
    pub reply: Reply,
    /// Whether its template can't be rendered, so that it has the default body.
    pub is_unrendered: bool,
}

/// Returns the answer of a saga that ends at `now_unix_ms`. `id` is its public id, and
/// `problem_type` the type of [`PROBLEM`].
pub(super) fn ending_reply(
    document: &SagaDocument,
    id: &str,
    completed: bool,
    (now_unix_ms, problem_type): (u64, &str),
) -> EndingReply {
    const JSON: &str = "application/json";
    let plan = &document.plan;
    let template = if completed { Some(&plan.answer) } else { plan.failed.as_ref() };
    let status = template.map_or(FAILED, |template| template.status);
    let (body, is_unrendered) = match template.map(|template| rendered(document, id, template)) {
        Some(Ok(body)) => (body, false),
        Some(Err(Unrendered)) => (None, true),
        None => (None, false),
    };
    let (media, body) = match body {
        Some(body) => (JSON, body),
        None if completed => (JSON, json!({ "id": id, "status": "completed" }).to_string()),
        None => {
            let problem = problem(document, id, status, problem_type);
            ("application/problem+json", problem.to_string())
        }
    };
    EndingReply { reply: reply(status, media, body, now_unix_ms), is_unrendered }
}

/// A template can't be rendered.
struct Unrendered;

/// Returns the rendered body; `None` if the template has none.
fn rendered(
    document: &SagaDocument,
    id: &str,
    template: &AnswerTemplate,
) -> Result<Option<String>, Unrendered> {
    let keys = document.done_keys();
    let rendered = answer(template, &document.scope(id, &keys));
    rendered.map(|rendered| rendered.body).map_err(|error| {
        tracing::warn!(
            saga = %document.plan.saga, operation = %id, %error,
            "the answer of the saga can't be rendered: it has the default body"
        );
        Unrendered
    })
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
