//! Refusals as HTTP: one exhaustive match from a [`Refusal`] to a problem document (RFC 9457) that says what happened,
//! whether the same request may be sent again, and what to do.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, LINK, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::engine::{Dialect, Policy};
use crate::gate::{AnswerBody, Refusal};
use crate::key::Slot;
use crate::refusal::vendor_errors::{self, Said};
use crate::telemetry::Answer;

/// The methods that the gateway forwards, as `Allow` lists them.
pub const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

/// Renders problems. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Rejections {
    /// Where problem types are documented; `None` for `urn:onceward:problem:`.
    pub base_url: Option<String>,
}

/// What a route's dialect changes in a refusal.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The status of `key-reused`.
    pub mismatch_status: StatusCode,
    /// Whether a safe retry is also said in Stripe's own field.
    pub stripe_should_retry: bool,
    /// In whose words it is told.
    pub errors: Dialect,
}

impl Shape {
    /// Returns what a route's policy says of its refusals.
    pub fn of(policy: &Policy) -> Shape {
        let Policy { mismatch_status, stripe_should_retry, errors, .. } = policy;
        Shape {
            mismatch_status: *mismatch_status,
            stripe_should_retry: *stripe_should_retry,
            errors: *errors,
        }
    }
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
            stripe_should_retry: false,
            errors: Dialect::Problem,
        }
    }
}

/// What a problem document says.
struct Document {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    advice: &'static str,
    retry_after: Option<Duration>,
    operation: Option<Slot>,
    answer: Answer,
}

/// When to come back where an operator has to decide, in a dialect that calls such requests back. People take minutes:
/// clients that came back every second or two would only hammer.
const HELD_RETRY: Duration = Duration::from_secs(30);
/// How long to wait before trying again where nothing better is known.
const RETRY_SOON: Duration = Duration::from_secs(1);

fn document(problem: &Refusal, shape: Shape) -> Document {
    let doc = |status, kind, title, advice, answer| Document {
        status,
        kind,
        title,
        advice,
        retry_after: None,
        operation: None,
        answer,
    };
    let retry = |document: Document, after| Document { retry_after: Some(after), ..document };
    let of = |document: Document, slot: Slot| Document { operation: Some(slot), ..document };
    match problem {
        Refusal::KeyMissing { .. } => doc(
            StatusCode::BAD_REQUEST,
            "key-missing",
            "An idempotency key is required",
            "Add it, and use the same one for every retry of this request.",
            Answer::KeyMissing,
        ),
        Refusal::KeyInvalid { .. } => doc(
            StatusCode::BAD_REQUEST,
            "key-invalid",
            "The idempotency key is not valid",
            "Send one key, for example a UUID.",
            Answer::KeyInvalid,
        ),
        Refusal::ScopeMissing { .. } => doc(
            StatusCode::BAD_REQUEST,
            "scope-missing",
            "It is not clear whose idempotency key this is",
            "Add it: it names the account.",
            Answer::ScopeMissing,
        ),
        Refusal::ScopeRepeated { .. } => doc(
            StatusCode::BAD_REQUEST,
            "scope-invalid",
            "It is not clear whose idempotency key this is",
            "Send it once.",
            Answer::ScopeInvalid,
        ),
        Refusal::ScopeInvalid { .. } => doc(
            StatusCode::UNAUTHORIZED,
            "scope-invalid",
            "It is not proven whose idempotency key this is",
            "Get a new token, and send the same request with it.",
            Answer::ScopeInvalid,
        ),
        Refusal::ScopeUnavailable => retry(
            doc(
                StatusCode::SERVICE_UNAVAILABLE,
                "scope-unavailable",
                "Tokens can't be verified right now",
                "Send the same request again later.",
                Answer::ScopeUnavailable,
            ),
            RETRY_SOON,
        ),
        Refusal::KeyReused { slot, .. } => of(
            doc(
                shape.mismatch_status,
                "key-reused",
                "The idempotency key was used before",
                "Use a new key for a new request; send a retry unchanged and with the same credentials.",
                Answer::KeyReused,
            ),
            *slot,
        ),
        Refusal::InFlight { slot, retry_after } => of(
            retry(
                doc(
                    StatusCode::CONFLICT,
                    "in-flight",
                    "The first request is still being processed",
                    "Send the same request again later.",
                    Answer::InFlight,
                ),
                *retry_after,
            ),
            *slot,
        ),
        Refusal::OutcomeUncertain { slot, status, retry_after } => Document {
            operation: *slot,
            // Of a request that no key protects nothing is held: sent again, it would run again.
            retry_after: retry_after
                .or((slot.is_some() && shape.errors.sends_retry_after_while_held())
                    .then_some(HELD_RETRY)),
            ..doc(
                status
                    .and_then(|status| StatusCode::from_u16(status).ok())
                    .unwrap_or(StatusCode::CONFLICT),
                "outcome-uncertain",
                "It is not known whether the request was executed",
                match retry_after {
                    Some(_) => {
                        "Send the same request again, under the same key: what became of the first is then found out."
                    }
                    None => {
                        "Don't repeat it under another key: ask the operator, who can settle the operation, or look the payment up."
                    }
                },
                Answer::Uncertain,
            )
        },
        Refusal::ResponseNotStored { slot, .. } => of(
            doc(
                StatusCode::CONFLICT,
                "response-not-stored",
                "The request was executed, and its response was not kept",
                "Don't repeat it: look its result up.",
                Answer::ResponseNotStored,
            ),
            *slot,
        ),
        Refusal::ResultExpired { slot } => of(
            doc(
                StatusCode::CONFLICT,
                "result-expired",
                "The request was executed, and its result is no longer kept",
                "Don't repeat it: look its result up.",
                Answer::ResultExpired,
            ),
            *slot,
        ),
        Refusal::NotSent { slot } => of(
            retry(
                doc(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not-sent",
                    "The request was not sent",
                    "Send the same request again.",
                    Answer::NotSent,
                ),
                RETRY_SOON,
            ),
            *slot,
        ),
        Refusal::UpstreamUnreachable { slot } => Document {
            operation: *slot,
            ..retry(
                doc(
                    StatusCode::BAD_GATEWAY,
                    "upstream-unreachable",
                    "The upstream cannot be reached",
                    "Send the same request again later.",
                    Answer::UpstreamUnreachable,
                ),
                RETRY_SOON,
            )
        },
        Refusal::UpstreamFailed { timed_out } => retry(
            doc(
                if *timed_out { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY },
                "upstream-failed",
                "The upstream failed",
                "The method is safe to repeat: send the same request again later.",
                Answer::UpstreamUnreachable,
            ),
            RETRY_SOON,
        ),
        Refusal::StoreUnavailable { retry_after } => retry(
            doc(
                StatusCode::SERVICE_UNAVAILABLE,
                "store-unavailable",
                "Idempotency can't be guaranteed right now",
                "Send the same request again later.",
                Answer::StoreUnavailable,
            ),
            *retry_after,
        ),
        Refusal::RecordUnreadable { slot } => of(
            retry(
                doc(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store-unavailable",
                    "The record of this request can't be read",
                    "Ask the operator; the same request may be sent again and will not run twice.",
                    Answer::StoreUnavailable,
                ),
                RETRY_SOON,
            ),
            *slot,
        ),
        Refusal::QuotaReached { retry_after } => retry(
            doc(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "Too many new operations",
                "Send the same request again later; retries of what was answered are answered as ever.",
                Answer::Overloaded,
            ),
            *retry_after,
        ),
        Refusal::Overloaded => retry(
            doc(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "Too many requests at once",
                "Send the same request again later.",
                Answer::Overloaded,
            ),
            RETRY_SOON,
        ),
        Refusal::BodyTooLarge { .. } => doc(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "The request body is too large",
            "Send a smaller one.",
            Answer::BodyTooLarge,
        ),
        Refusal::UnsupportedEncoding => doc(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-encoding",
            "The request body can't be decoded",
            "Send it in gzip, deflate, br or zstd, or without Content-Encoding.",
            Answer::BadRequest,
        ),
        Refusal::BodyUnreadable => doc(
            StatusCode::BAD_REQUEST,
            "body-unreadable",
            "The request body can't be read",
            "Nothing was forwarded; send one JSON document (RFC 8259) in UTF-8, at most 128 levels deep.",
            Answer::BodyUnreadable,
        ),
        Refusal::BodyTimeout | Refusal::BodyBroken => {
            let timed_out = *problem == Refusal::BodyTimeout;
            retry(
                doc(
                    if timed_out { StatusCode::REQUEST_TIMEOUT } else { StatusCode::BAD_REQUEST },
                    "body-incomplete",
                    "The request body is incomplete",
                    "Nothing was forwarded; send the whole request again.",
                    Answer::BodyIncomplete,
                ),
                RETRY_SOON,
            )
        }
        Refusal::PathAmbiguous => doc(
            StatusCode::BAD_REQUEST,
            "path-ambiguous",
            "The path can be read in two ways",
            "Send the path as it is documented: no path parameters, dot or empty segments or encoded separators, in its letter case.",
            Answer::BadRequest,
        ),
        Refusal::MethodNotAllowed => doc(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "The method is not forwarded",
            "Use another method.",
            Answer::BadRequest,
        ),
        Refusal::HostInvalid => doc(
            StatusCode::BAD_REQUEST,
            "host-invalid",
            "The Host field is not valid",
            "Send exactly one Host field.",
            Answer::BadRequest,
        ),
        Refusal::Malformed { .. } => doc(
            StatusCode::BAD_REQUEST,
            "request-malformed",
            "The request is malformed",
            "It may be an attack, or come from a broken client or proxy; an HTTP/1.1 connection is closed.",
            Answer::BadRequest,
        ),
        Refusal::HeaderTooLarge { .. } => doc(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header-too-large",
            "The header block is too large",
            "Send fewer and shorter fields.",
            Answer::BadRequest,
        ),
    }
}

impl Rejections {
    /// The type of a problem, by its name.
    pub fn kind(&self, name: &str) -> String {
        match &self.base_url {
            Some(base) => format!("{}/{name}", base.trim_end_matches('/')),
            None => format!("urn:onceward:problem:{name}"),
        }
    }

    /// The response to a problem, and what to count it as.
    pub fn render<B>(&self, problem: &Refusal, shape: Shape) -> (Response<AnswerBody<B>>, Answer) {
        let document = document(problem, shape);
        // May this same request with this same key be sent again as it is?
        let retryable = document.retry_after.is_some();
        let kind = self.kind(document.kind);
        let detail = format!("{}. {}", sentence(&problem.to_string()), document.advice);
        let said = Said { problem, kind: document.kind, status: document.status, detail: &detail };
        let (media, body) = match vendor_errors::body(shape.errors, &said) {
            Some(body) => ("application/json", body),
            None => (
                "application/problem+json",
                problem_document(problem, &document, &kind, &detail, retryable),
            ),
        };
        let mut response = Response::new(AnswerBody::whole(Bytes::from(body.to_string())));
        *response.status_mut() = document.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
        if self.base_url.is_some()
            && let Ok(link) = HeaderValue::try_from(format!("<{kind}>; rel=\"describedby\""))
        {
            headers.insert(LINK, link);
        }
        if *problem == Refusal::UnsupportedEncoding {
            // What would do (RFC 9110, section 15.5.16).
            headers.insert(
                ACCEPT_ENCODING,
                HeaderValue::from_static("gzip, deflate, br, zstd, identity"),
            );
        }
        if matches!(problem, Refusal::ScopeInvalid { .. }) {
            // RFC 6750, section 3.
            headers.insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer error=\"invalid_token\""),
            );
        }
        if *problem == Refusal::MethodNotAllowed {
            headers.insert(ALLOW, HeaderValue::from_static(ALLOWED));
        }
        if let Some(after) = document.retry_after {
            // Rounded up: a client that comes back a moment too early comes back twice.
            let seconds = after.as_millis().div_ceil(1000).max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(1)));
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
            if shape.stripe_should_retry {
                headers.insert(STRIPE_SHOULD_RETRY, HeaderValue::from_static("true"));
            }
        } else if matches!(problem, Refusal::KeyReused { .. } | Refusal::OutcomeUncertain { .. })
            || shape.stripe_should_retry
        {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            headers.insert(STRIPE_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        (response, document.answer)
    }
}

/// A problem document (RFC 9457), with what else a client can act on.
fn problem_document(
    problem: &Refusal,
    document: &Document,
    kind: &str,
    detail: &str,
    retryable: bool,
) -> Value {
    let mut body = json!({
        "type": kind,
        "title": document.title,
        "status": document.status.as_u16(),
        "detail": detail,
        "retryable": retryable,
        // An official SDK takes any JSON body without this member for a success, whatever the status.
        "error": { "type": "idempotency_error", "code": document.kind, "message": detail },
    });
    if let Some(slot) = document.operation {
        body["operation"] = json!(slot.to_string());
    }
    if let Refusal::ResponseNotStored { status, .. } = problem {
        body["original_status"] = json!(status);
    }
    if let Refusal::KeyReused { explained: Some(explained), .. } = problem {
        body["original_state"] = json!(explained.state);
        body["original_opened_at"] = json!(rfc3339(explained.opened_unix_ms));
        if let Some(differing) = &explained.differing {
            body["differing"] = json!(differing);
        }
    }
    body
}

/// The text with a capital first letter.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + chars.as_str())
        .unwrap_or_default()
}
