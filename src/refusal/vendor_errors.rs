//! Refusals in the words of payment vendors, so that a vendor's own client library raises the error that it has for the
//! case. What a library reads is here: its error class hangs on the status and these words, never on the prose.
//!
//! Sources: Stripe's API reference (error types and codes), Square's API reference (categories and codes), PayPal's REST
//! reference (error object), the RFC "Agentic Checkout" of the Agentic Commerce Protocol (sections 3.1 and 6.4), the
//! specification of the Universal Commerce Protocol (error handling); what no public page says of a vendor keeps the name of
//! the problem.

use http::StatusCode;
use serde_json::{Value, json};

use crate::engine::Dialect;
use crate::gate::Refusal;

/// What a refusal says, whatever its shape.
pub(crate) struct Said<'a> {
    /// Why it was refused.
    pub problem: &'a Refusal,
    /// The problem's name, the last part of its type.
    pub kind: &'a str,
    pub status: StatusCode,
    /// For people.
    pub detail: &'a str,
}

/// Whose fault it is, which is what error classes tell apart.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    /// The request has to change.
    Request,
    /// Whoever sent it has to prove who they are.
    Credentials,
    /// The service, or what is behind it, did not do it, or nobody knows.
    Service,
}

/// The words for one problem.
struct Words {
    class: Class,
    /// Stripe's code, where it has one.
    stripe: Option<&'static str>,
    /// Square's code.
    square: &'static str,
    /// The issue in PayPal's details, where it has one.
    paypal: Option<&'static str>,
    /// The code of the Agentic Commerce Protocol, where it has one. The Universal one names no codes for these cases, and gets
    /// the same where they have one meaning in both.
    acp: Option<&'static str>,
}

/// What the Agentic Commerce Protocol calls a request that has no outcome yet.
const IN_FLIGHT: &str = "idempotency_in_flight";

fn words(problem: &Refusal, status: StatusCode) -> Words {
    use Class::{Credentials, Request, Service};
    let say = |class, square| Words { class, stripe: None, square, paypal: None, acp: None };
    match problem {
        // Stripe tells this one by its type, see `stripe`.
        Refusal::KeyReused { .. } => Words {
            // Second-hand, as PayPal's pages say nothing of another payload.
            paypal: Some("DUPLICATE_REQUEST_ID"),
            acp: Some("idempotency_conflict"),
            ..say(Request, "IDEMPOTENCY_KEY_REUSED")
        },
        Refusal::InFlight { .. } => Words {
            stripe: Some("idempotency_key_in_use"),
            paypal: Some("PREVIOUS_REQUEST_IN_PROGRESS"),
            acp: Some(IN_FLIGHT),
            ..say(Request, "CONFLICT")
        },
        Refusal::KeyMissing { .. } => Words {
            paypal: Some("MISSING_REQUIRED_PARAMETER"),
            acp: Some("idempotency_key_required"),
            ..say(Request, "MISSING_REQUIRED_PARAMETER")
        },
        Refusal::ScopeMissing { .. } => Words {
            paypal: Some("MISSING_REQUIRED_PARAMETER"),
            ..say(Request, "MISSING_REQUIRED_PARAMETER")
        },
        Refusal::ScopeInvalid { expired } => {
            say(Credentials, if *expired { "ACCESS_TOKEN_EXPIRED" } else { "UNAUTHORIZED" })
        }
        Refusal::ScopeRepeated { .. } => {
            Words { paypal: Some("INVALID_PARAMETER_SYNTAX"), ..say(Request, "INVALID_VALUE") }
        }
        Refusal::BodyUnreadable => {
            Words { paypal: Some("MALFORMED_REQUEST_JSON"), ..say(Request, "EXPECTED_JSON_BODY") }
        }
        Refusal::KeyInvalid { .. } => {
            Words { paypal: Some("INVALID_PARAMETER_SYNTAX"), ..say(Request, "INVALID_VALUE") }
        }
        Refusal::OutcomeUncertain { .. } => match status {
            StatusCode::BAD_GATEWAY => say(Service, "BAD_GATEWAY"),
            StatusCode::SERVICE_UNAVAILABLE => say(Service, "SERVICE_UNAVAILABLE"),
            StatusCode::GATEWAY_TIMEOUT => say(Service, "GATEWAY_TIMEOUT"),
            _ => say(Service, "CONFLICT"),
        },
        Refusal::ResponseNotStored { .. } | Refusal::ResultExpired { .. } => {
            say(Service, "CONFLICT")
        }
        Refusal::UpstreamUnreachable { .. } => say(Service, "BAD_GATEWAY"),
        Refusal::UpstreamFailed { timed_out: true } => say(Service, "GATEWAY_TIMEOUT"),
        Refusal::UpstreamFailed { timed_out: false } => say(Service, "BAD_GATEWAY"),
        Refusal::NotSent { .. }
        | Refusal::StoreUnavailable { .. }
        | Refusal::RecordUnreadable { .. }
        | Refusal::ScopeUnavailable
        | Refusal::Overloaded
        | Refusal::QuotaReached { .. } => say(Service, "SERVICE_UNAVAILABLE"),
        Refusal::BodyTooLarge { .. } => say(Request, "REQUEST_ENTITY_TOO_LARGE"),
        Refusal::UnsupportedEncoding => say(Request, "UNSUPPORTED_MEDIA_TYPE"),
        Refusal::BodyTimeout => say(Request, "REQUEST_TIMEOUT"),
        Refusal::MethodNotAllowed => say(Request, "METHOD_NOT_ALLOWED"),
        Refusal::BodyBroken
        | Refusal::PathAmbiguous
        | Refusal::HostInvalid
        | Refusal::Malformed { .. }
        | Refusal::HeaderTooLarge { .. } => say(Request, "BAD_REQUEST"),
    }
}

/// The body of a refusal in a vendor's shape; `None` where it is told as a problem document.
pub(crate) fn body(dialect: Dialect, said: &Said<'_>) -> Option<Value> {
    let words = words(said.problem, said.status);
    let mut body = match dialect {
        Dialect::Problem => return None,
        Dialect::Stripe => stripe(said, &words),
        Dialect::Square => square(said, &words),
        Dialect::PayPal => paypal(said, &words),
        Dialect::Acp => return Some(acp(said, &words)),
        Dialect::Ucp => return Some(ucp(said, &words)),
    };
    // Libraries leave alone what they don't know; an operator's colleague asks for this.
    if let Some(slot) = said.problem.operation() {
        body["operation"] = json!(slot.to_string());
    }
    Some(body)
}

fn stripe(said: &Said<'_>, words: &Words) -> Value {
    let kind = match (said.problem, words.class) {
        (Refusal::KeyReused { .. }, _) => "idempotency_error",
        (_, Class::Request | Class::Credentials) => "invalid_request_error",
        (_, Class::Service) => "api_error",
    };
    json!({ "error": { "type": kind, "code": words.stripe.unwrap_or(said.kind), "message": said.detail } })
}

fn square(said: &Said<'_>, words: &Words) -> Value {
    let category = match words.class {
        Class::Request => "INVALID_REQUEST_ERROR",
        Class::Credentials => "AUTHENTICATION_ERROR",
        Class::Service => "API_ERROR",
    };
    let mut error = json!({ "category": category, "code": words.square, "detail": said.detail });
    if is_about_the_key(said.problem) {
        error["field"] = json!("idempotency_key");
    }
    json!({ "errors": [error] })
}

fn paypal(said: &Said<'_>, words: &Words) -> Value {
    let name = match said.status {
        StatusCode::UNAUTHORIZED => "AUTHENTICATION_FAILURE",
        StatusCode::CONFLICT => "RESOURCE_CONFLICT",
        StatusCode::UNPROCESSABLE_ENTITY => "UNPROCESSABLE_ENTITY",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "UNSUPPORTED_MEDIA_TYPE",
        StatusCode::TOO_MANY_REQUESTS => "RATE_LIMIT_REACHED",
        status if status.is_client_error() => "INVALID_REQUEST",
        _ => "INTERNAL_SERVER_ERROR",
    };
    let issue = words
        .paypal
        .map_or_else(|| said.kind.replace('-', "_").to_ascii_uppercase(), str::to_owned);
    let mut detail = json!({ "issue": issue, "description": said.detail });
    if is_about_the_key(said.problem) {
        detail["field"] = json!("PayPal-Request-Id");
        detail["location"] = json!("header");
    }
    // The reference under which a vendor's support looks a call up; the operation's is the one that there is here.
    let reference = said.problem.operation().map(|slot| slot.to_string()).unwrap_or_default();
    json!({ "name": name, "message": said.detail, "debug_id": reference, "details": [detail], "links": [] })
}

/// No member may be added (`additionalProperties` is false), so the reference is a part of the message.
fn acp(said: &Said<'_>, words: &Words) -> Value {
    let is_held =
        matches!(said.problem, Refusal::OutcomeUncertain { slot: Some(_), status: None, .. });
    let kind = match (said.problem, words.class) {
        _ if is_held => "invalid_request",
        (_, Class::Request | Class::Credentials) => "invalid_request",
        (Refusal::UpstreamUnreachable { .. }, Class::Service) => "service_unavailable",
        (_, Class::Service) if said.status == StatusCode::SERVICE_UNAVAILABLE => {
            "service_unavailable"
        }
        (_, Class::Service) => "processing_error",
    };
    let code = if is_held { IN_FLIGHT } else { words.acp.unwrap_or(said.kind) };
    json!({ "type": kind, "code": code, "message": with_reference(said) })
}

fn ucp(said: &Said<'_>, words: &Words) -> Value {
    json!({ "code": words.acp.unwrap_or(said.kind), "content": with_reference(said) })
}

/// The text for people, with the operation's reference where it is known.
fn with_reference(said: &Said<'_>) -> String {
    match said.problem.operation() {
        Some(slot) => format!("{} Operation: {slot}.", said.detail),
        None => said.detail.to_owned(),
    }
}

fn is_about_the_key(problem: &Refusal) -> bool {
    matches!(
        problem,
        Refusal::KeyReused { .. } | Refusal::KeyMissing { .. } | Refusal::KeyInvalid { .. }
    )
}
