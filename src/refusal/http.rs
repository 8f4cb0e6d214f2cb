//! Renders refusals as HTTP responses. A problem document (RFC 9457) states what happened, whether
//! the client may send the same request again, and what the client can do otherwise. A route can
//! choose the error format of a vendor instead.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, ETAG, LINK, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::vendor_errors::{self, RefusalText};
use super::{Refusal, RefusalKind};
use crate::clock::rfc3339;
use crate::engine::{Dialect, Policy};
use crate::key::Slot;
use crate::telemetry::Answer;

/// The methods that the gateway forwards, as `Allow` lists them.
pub const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

/// The `Retry-After` while an operator has to decide, for a saga and in an error format that
/// requires the field. Operators take minutes, so a shorter time would only add load.
const HELD_RETRY: Duration = Duration::from_secs(30);
/// The `Retry-After` where no better time is known.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The path below which the states of sagas are.
pub const SAGAS_PATH: &str = "/.well-known/onceward/sagas/";

/// Renders refusals as HTTP responses.
#[derive(Debug, Clone, Default)]
pub struct RefusalRenderer {
    /// The URL below which the problem types are documented; `None` for `urn:onceward:problem:`.
    pub base_url: Option<String>,
}

/// What a route changes in the response to a refusal.
#[derive(Debug, Clone, Copy)]
pub struct RefusalStyle {
    /// The status of `key-reused`.
    pub mismatch_status: StatusCode,
    /// Whether `Stripe-Should-Retry` also marks a safe retry.
    pub stripe_should_retry: bool,
    /// The error format.
    pub errors: Dialect,
}

impl RefusalStyle {
    /// Returns the style that a route's policy configures.
    pub fn of(policy: &Policy) -> RefusalStyle {
        let Policy { mismatch_status, stripe_should_retry, errors, .. } = policy;
        RefusalStyle {
            mismatch_status: *mismatch_status,
            stripe_should_retry: *stripe_should_retry,
            errors: *errors,
        }
    }
}

impl Default for RefusalStyle {
    fn default() -> RefusalStyle {
        RefusalStyle {
            mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
            stripe_should_retry: false,
            errors: Dialect::Problem,
        }
    }
}

impl RefusalRenderer {
    /// Returns the problem type with this short name.
    pub fn problem_type(&self, name: &str) -> String {
        match &self.base_url {
            Some(base) => format!("{}/{name}", base.trim_end_matches('/')),
            None => format!("urn:onceward:problem:{name}"),
        }
    }

    /// Returns the response to a refused request, and the label under which the metrics count it.
    pub fn render(&self, refusal: &Refusal, style: RefusalStyle) -> (Response<Bytes>, Answer) {
        let kind = refusal.kind();
        let status = refusal.status(style.mismatch_status);
        let retry_after = retry_after(refusal, style.errors);
        let problem_type = self.problem_type(kind.problem_name());
        let detail = format!("{}. {}", capitalized(&refusal.to_string()), advice(refusal));
        let text = RefusalText { refusal, status, detail: &detail };
        let (media, body) = match vendor_errors::body(style.errors, &text) {
            Some(body) => ("application/json", body),
            None => (
                "application/problem+json",
                problem_document(&text, &problem_type, retry_after.is_some()),
            ),
        };
        let mut response = Response::new(Bytes::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
        if self.base_url.is_some()
            && let Ok(link) =
                HeaderValue::try_from(format!("<{problem_type}>; rel=\"describedby\""))
        {
            headers.insert(LINK, link);
        }
        if let Some(saga) = refusal.saga()
            && let Ok(location) = HeaderValue::try_from(saga_location(saga))
        {
            headers.insert(LOCATION, location);
        }
        if let Refusal::PreconditionFailed { current: Some(current), .. }
        | Refusal::MergeConflict { current, .. } = refusal
        {
            headers.extend(current.to_field().map(|current| (ETAG, current)));
        }
        if let Some((name, value)) = remedy_field(kind) {
            headers.insert(name, HeaderValue::from_static(value));
        }
        insert_retry_fields(headers, kind, retry_after, style.stripe_should_retry);
        (response, kind.answer())
    }
}

/// Returns the path at which the client finds the state of its saga.
pub fn saga_location(saga: Slot) -> String {
    format!("{SAGAS_PATH}{saga}")
}

/// Adds the fields that state whether and when the same request may be sent again.
fn insert_retry_fields(
    headers: &mut HeaderMap,
    kind: RefusalKind,
    retry_after: Option<Duration>,
    stripe_should_retry: bool,
) {
    const TRUE: HeaderValue = HeaderValue::from_static("true");
    const FALSE: HeaderValue = HeaderValue::from_static("false");
    if let Some(after) = retry_after {
        // Rounded up: a client that retries a moment too early has to retry once more.
        let seconds = after.as_millis().div_ceil(1000).max(1);
        headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(1)));
        headers.insert(SHOULD_RETRY, TRUE);
        if stripe_should_retry {
            headers.insert(STRIPE_SHOULD_RETRY, TRUE);
        }
    } else if stripe_should_retry
        || matches!(kind, RefusalKind::KeyReused | RefusalKind::OutcomeUncertain)
    {
        // Client libraries repeat a 409, and some other statuses, unless a field forbids it.
        headers.insert(SHOULD_RETRY, FALSE);
        headers.insert(STRIPE_SHOULD_RETRY, FALSE);
    }
}

/// Returns the advice to the client. For an uncertain outcome, the advice depends on whether the
/// gateway can still find the outcome out.
fn advice(refusal: &Refusal) -> &'static str {
    if let Refusal::OutcomeUncertain { retry_after: Some(_), .. } = refusal {
        return "Send the same request again, under the same key: the gateway then finds out whether \
                the first request was executed.";
    }
    refusal.kind().advice()
}

/// Returns when the same request may be sent again with the same key; `None` where it may not be
/// sent unchanged.
fn retry_after(refusal: &Refusal, errors: Dialect) -> Option<Duration> {
    match refusal {
        Refusal::InFlight { retry_after, .. }
        | Refusal::StoreUnavailable { retry_after }
        | Refusal::QuotaReached { retry_after }
        | Refusal::ResourceBusy { retry_after }
        | Refusal::ResourceUncertain { retry_after, .. }
        | Refusal::OutboxFull { retry_after } => Some(*retry_after),
        Refusal::SagaStuck { .. } => Some(HELD_RETRY),
        // Without a key there is no protection: if the client sent the request again, it would run
        // again.
        Refusal::OutcomeUncertain { slot, retry_after, .. } => retry_after
            .or((slot.is_some() && errors.sends_retry_after_while_held()).then_some(HELD_RETRY)),
        Refusal::ScopeUnavailable
        | Refusal::NotSent { .. }
        | Refusal::UpstreamUnreachable { .. }
        | Refusal::UpstreamFailed { .. }
        | Refusal::RecordUnreadable { .. }
        | Refusal::ResourceUnreadable
        | Refusal::Overloaded
        | Refusal::BodyTimeout
        | Refusal::BodyBroken => Some(RETRY_SOON),
        Refusal::KeyMissing { .. }
        | Refusal::KeyInvalid { .. }
        | Refusal::ScopeMissing { .. }
        | Refusal::ScopeRepeated { .. }
        | Refusal::ScopeInvalid { .. }
        | Refusal::KeyReused { .. }
        | Refusal::SagaNotFound
        | Refusal::PreconditionFailed { .. }
        | Refusal::MergeConflict { .. }
        | Refusal::PreconditionRequired
        | Refusal::ConditionInvalid { .. }
        | Refusal::Barred { .. }
        | Refusal::ResponseNotStored { .. }
        | Refusal::ResultExpired { .. }
        | Refusal::BodyTooLarge { .. }
        | Refusal::UnsupportedEncoding
        | Refusal::BodyUnreadable
        | Refusal::PathAmbiguous
        | Refusal::MethodNotAllowed
        | Refusal::HostInvalid
        | Refusal::Malformed { .. }
        | Refusal::HeaderTooLarge { .. } => None,
    }
}

/// Returns the field that describes an acceptable request, where HTTP defines such a field for the
/// status.
fn remedy_field(kind: RefusalKind) -> Option<(HeaderName, &'static str)> {
    match kind {
        // RFC 9110, section 15.5.16.
        RefusalKind::UnsupportedEncoding => {
            Some((ACCEPT_ENCODING, "gzip, deflate, br, zstd, identity"))
        }
        // RFC 6750, section 3.
        RefusalKind::ScopeInvalid | RefusalKind::ScopeExpired => {
            Some((WWW_AUTHENTICATE, "Bearer error=\"invalid_token\""))
        }
        // RFC 9110, section 15.5.6.
        RefusalKind::MethodNotAllowed => Some((ALLOW, ALLOWED_METHODS)),
        RefusalKind::KeyMissing
        | RefusalKind::KeyInvalid
        | RefusalKind::ScopeMissing
        | RefusalKind::ScopeRepeated
        | RefusalKind::ScopeUnavailable
        | RefusalKind::KeyReused
        | RefusalKind::InFlight
        | RefusalKind::SagaStuck
        | RefusalKind::SagaNotFound
        | RefusalKind::PreconditionFailed
        | RefusalKind::MergeConflict
        | RefusalKind::PreconditionRequired
        | RefusalKind::ConditionInvalid
        | RefusalKind::ResourceBusy
        | RefusalKind::ResourceUncertain
        | RefusalKind::ResourceUnreadable
        | RefusalKind::Barred
        | RefusalKind::OutcomeUncertain
        | RefusalKind::ResponseNotStored
        | RefusalKind::ResultExpired
        | RefusalKind::NotSent
        | RefusalKind::UpstreamUnreachable
        | RefusalKind::UpstreamFailed
        | RefusalKind::UpstreamTimedOut
        | RefusalKind::StoreUnavailable
        | RefusalKind::RecordUnreadable
        | RefusalKind::Overloaded
        | RefusalKind::QuotaReached
        | RefusalKind::OutboxFull
        | RefusalKind::BodyTooLarge
        | RefusalKind::BodyUnreadable
        | RefusalKind::BodyTimeout
        | RefusalKind::BodyBroken
        | RefusalKind::PathAmbiguous
        | RefusalKind::HostInvalid
        | RefusalKind::Malformed
        | RefusalKind::HeaderTooLarge => None,
    }
}

/// Returns the problem document (RFC 9457), with further members that a client can act on.
fn problem_document(text: &RefusalText<'_>, problem_type: &str, retryable: bool) -> Value {
    let kind = text.refusal.kind();
    let mut body = json!({
        "type": problem_type,
        "title": kind.title(),
        "status": text.status.as_u16(),
        "detail": text.detail,
        // Whether this same request, with this same key, may be sent again as it is.
        "retryable": retryable,
        // An official SDK treats any JSON body without this member as a success, whatever the
        // status.
        "error": {
            "type": "idempotency_error",
            "code": kind.problem_name(),
            "message": text.detail,
        },
    });
    if let Some(slot) = text.refusal.operation() {
        body["operation"] = json!(slot.to_string());
    }
    if let Refusal::SagaStuck { slot, held } = text.refusal {
        body["saga"] = json!(slot.to_string());
        body["operation"] = json!(held.map(|held| held.to_string()));
    }
    if let Refusal::ResponseNotStored { status, .. } = text.refusal {
        body["original_status"] = json!(status);
    }
    if let Refusal::MergeConflict { members, .. } = text.refusal {
        body["members"] = json!(members);
    }
    if let Refusal::KeyReused { explained: Some(explained), .. } = text.refusal {
        body["original_state"] = json!(explained.state);
        body["original_opened_at"] = json!(rfc3339(explained.opened_unix_ms));
        if let Some(differing) = &explained.differing {
            body["differing"] = json!(differing);
        }
    }
    body
}

/// Returns the text with a capital first letter.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + chars.as_str())
        .unwrap_or_default()
}
