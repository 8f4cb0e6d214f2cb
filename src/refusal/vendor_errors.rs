//! Refusals in the error formats of payment vendors, so that a vendor's own client library raises
//! the matching error. The library's error classes depend on the status and on the codes here,
//! never on the prose.
//!
//! Sources: Stripe's API reference (error types and codes), Square's API reference (categories and
//! codes), PayPal's REST reference (error object), the RFC "Agentic Checkout" of the Agentic
//! Commerce Protocol (sections 3.1 and 6.4), the specification of the Universal Commerce Protocol
//! (error handling). Where no public page of a vendor has a code for a case, the code is the name
//! of the problem.

use http::StatusCode;
use serde_json::{Value, json};

use super::{Refusal, RefusalKind};
use crate::engine::Dialect;

/// The content of a refusal, whatever its format.
pub(super) struct RefusalText<'a> {
    /// The refusal.
    pub refusal: &'a Refusal,
    /// The status of the response.
    pub status: StatusCode,
    /// The text for people.
    pub detail: &'a str,
}

/// The party that has to act. Vendors' error classes distinguish these parties.
#[derive(Clone, Copy, PartialEq)]
enum FaultClass {
    /// The request has to change.
    Request,
    /// The sender has to prove their identity.
    Credentials,
    /// The service or its upstream did not execute the request, or nobody knows whether it did.
    Service,
}

/// The codes of one kind of refusal.
struct VendorCodes {
    class: FaultClass,
    /// Stripe's code, where it has one.
    stripe: Option<&'static str>,
    /// Square's code.
    square: &'static str,
    /// The issue in PayPal's details, where it has one.
    paypal: Option<&'static str>,
    /// The code of the Agentic Commerce Protocol, where it has one. The Universal Commerce Protocol
    /// has no codes for these cases, so its refusals have the same code.
    acp: Option<&'static str>,
    /// Whether the refusal is about the key, which the formats name as the faulty field.
    key_field: bool,
}

/// The Agentic Commerce Protocol's code for a request that has no outcome yet.
const IN_FLIGHT: &str = "idempotency_in_flight";

impl VendorCodes {
    fn new(class: FaultClass, square: &'static str) -> VendorCodes {
        VendorCodes { class, stripe: None, square, paypal: None, acp: None, key_field: false }
    }

    /// Stripe distinguishes this case by its type, see `stripe`.
    fn of_reused_key() -> VendorCodes {
        VendorCodes {
            // This code is from other sources: PayPal's own pages do not describe a used id with
            // another payload.
            paypal: Some("DUPLICATE_REQUEST_ID"),
            acp: Some("idempotency_conflict"),
            key_field: true,
            ..VendorCodes::new(FaultClass::Request, "IDEMPOTENCY_KEY_REUSED")
        }
    }

    fn of(kind: RefusalKind) -> VendorCodes {
        use FaultClass::{Credentials, Request, Service};
        let new = VendorCodes::new;
        match kind {
            RefusalKind::KeyReused => VendorCodes::of_reused_key(),
            RefusalKind::InFlight => VendorCodes {
                stripe: Some("idempotency_key_in_use"),
                paypal: Some("PREVIOUS_REQUEST_IN_PROGRESS"),
                acp: Some(IN_FLIGHT),
                ..new(Request, "CONFLICT")
            },
            RefusalKind::KeyMissing => VendorCodes {
                paypal: Some("MISSING_REQUIRED_PARAMETER"),
                acp: Some("idempotency_key_required"),
                key_field: true,
                ..new(Request, "MISSING_REQUIRED_PARAMETER")
            },
            RefusalKind::KeyInvalid => VendorCodes {
                paypal: Some("INVALID_PARAMETER_SYNTAX"),
                key_field: true,
                ..new(Request, "INVALID_VALUE")
            },
            RefusalKind::ScopeMissing => VendorCodes {
                paypal: Some("MISSING_REQUIRED_PARAMETER"),
                ..new(Request, "MISSING_REQUIRED_PARAMETER")
            },
            RefusalKind::ScopeRepeated => VendorCodes {
                paypal: Some("INVALID_PARAMETER_SYNTAX"),
                ..new(Request, "INVALID_VALUE")
            },
            RefusalKind::BodyUnreadable => VendorCodes {
                paypal: Some("MALFORMED_REQUEST_JSON"),
                ..new(Request, "EXPECTED_JSON_BODY")
            },
            RefusalKind::ScopeInvalid => new(Credentials, "UNAUTHORIZED"),
            RefusalKind::ScopeExpired => new(Credentials, "ACCESS_TOKEN_EXPIRED"),
            RefusalKind::OutcomeUncertain
            | RefusalKind::SagaStuck
            | RefusalKind::Barred
            | RefusalKind::ResponseNotStored
            | RefusalKind::ResultExpired
            | RefusalKind::ResourceUncertain => new(Service, "CONFLICT"),
            RefusalKind::UpstreamUnreachable
            | RefusalKind::UpstreamFailed
            | RefusalKind::ResourceUnreadable => new(Service, "BAD_GATEWAY"),
            RefusalKind::UpstreamTimedOut => new(Service, "GATEWAY_TIMEOUT"),
            RefusalKind::NotSent
            | RefusalKind::StoreUnavailable
            | RefusalKind::RecordUnreadable
            | RefusalKind::ScopeUnavailable
            | RefusalKind::Overloaded
            | RefusalKind::QuotaReached
            | RefusalKind::OutboxFull => new(Service, "SERVICE_UNAVAILABLE"),
            RefusalKind::BodyTooLarge => new(Request, "REQUEST_ENTITY_TOO_LARGE"),
            RefusalKind::UnsupportedEncoding => new(Request, "UNSUPPORTED_MEDIA_TYPE"),
            RefusalKind::BodyTimeout => new(Request, "REQUEST_TIMEOUT"),
            RefusalKind::PreconditionFailed
            | RefusalKind::MergeConflict
            | RefusalKind::ResourceBusy => new(Request, "CONFLICT"),
            RefusalKind::PreconditionRequired => new(Request, "MISSING_REQUIRED_PARAMETER"),
            RefusalKind::ConditionInvalid => new(Request, "INVALID_VALUE"),
            RefusalKind::SagaNotFound => new(Request, "NOT_FOUND"),
            RefusalKind::MethodNotAllowed => new(Request, "METHOD_NOT_ALLOWED"),
            RefusalKind::BodyBroken
            | RefusalKind::PathAmbiguous
            | RefusalKind::HostInvalid
            | RefusalKind::Malformed
            | RefusalKind::HeaderTooLarge => new(Request, "BAD_REQUEST"),
        }
    }
}

/// Returns the body of a refusal in a vendor's format; `None` where the format is the problem
/// document.
pub(super) fn body(dialect: Dialect, text: &RefusalText<'_>) -> Option<Value> {
    let codes = VendorCodes::of(text.refusal.kind());
    let mut body = match dialect {
        Dialect::Problem => return None,
        Dialect::Stripe => stripe(text, &codes),
        Dialect::Square => square(text, &codes),
        Dialect::PayPal => paypal(text, &codes),
        Dialect::Acp => return Some(acp(text, &codes)),
        Dialect::Ucp => return Some(ucp(text, &codes)),
    };
    // Client libraries ignore unknown members. Clients need this one when they ask an operator
    // about the operation.
    if let Some(slot) = text.refusal.operation() {
        body["operation"] = json!(slot.to_string());
    }
    Some(body)
}

fn stripe(text: &RefusalText<'_>, codes: &VendorCodes) -> Value {
    let kind = text.refusal.kind();
    let error_type = match codes.class {
        FaultClass::Request if kind == RefusalKind::KeyReused => "idempotency_error",
        FaultClass::Request | FaultClass::Credentials => "invalid_request_error",
        FaultClass::Service => "api_error",
    };
    let code = codes.stripe.unwrap_or(kind.problem_name());
    json!({ "error": { "type": error_type, "code": code, "message": text.detail } })
}

fn square(text: &RefusalText<'_>, codes: &VendorCodes) -> Value {
    let category = match codes.class {
        FaultClass::Request => "INVALID_REQUEST_ERROR",
        FaultClass::Credentials => "AUTHENTICATION_ERROR",
        FaultClass::Service => "API_ERROR",
    };
    let is_uncertain = text.refusal.kind() == RefusalKind::OutcomeUncertain;
    let code = square_gateway_code(text.status).filter(|_| is_uncertain).unwrap_or(codes.square);
    let mut error = json!({ "category": category, "code": code, "detail": text.detail });
    if codes.key_field {
        error["field"] = json!("idempotency_key");
    }
    json!({ "errors": [error] })
}

/// Returns Square's code for the status of an attempt with an uncertain outcome, where it has one.
fn square_gateway_code(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::BAD_GATEWAY => Some("BAD_GATEWAY"),
        StatusCode::SERVICE_UNAVAILABLE => Some("SERVICE_UNAVAILABLE"),
        StatusCode::GATEWAY_TIMEOUT => Some("GATEWAY_TIMEOUT"),
        _ => None,
    }
}

fn paypal(text: &RefusalText<'_>, codes: &VendorCodes) -> Value {
    let problem_name = text.refusal.kind().problem_name();
    let issue = codes
        .paypal
        .map_or_else(|| problem_name.replace('-', "_").to_ascii_uppercase(), str::to_owned);
    let mut detail = json!({ "issue": issue, "description": text.detail });
    if codes.key_field {
        detail["field"] = json!("PayPal-Request-Id");
        detail["location"] = json!("header");
    }
    // PayPal's support finds a call by its `debug_id`. Here this member has the operation's
    // reference.
    let reference = text.refusal.operation().map(|slot| slot.to_string()).unwrap_or_default();
    json!({
        "name": paypal_name(text.status),
        "message": text.detail,
        "debug_id": reference,
        "details": [detail],
        "links": [],
    })
}

/// Returns PayPal's name of the errors with this status.
fn paypal_name(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "AUTHENTICATION_FAILURE",
        StatusCode::CONFLICT => "RESOURCE_CONFLICT",
        StatusCode::UNPROCESSABLE_ENTITY => "UNPROCESSABLE_ENTITY",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "UNSUPPORTED_MEDIA_TYPE",
        StatusCode::TOO_MANY_REQUESTS => "RATE_LIMIT_REACHED",
        status if status.is_client_error() => "INVALID_REQUEST",
        _ => "INTERNAL_SERVER_ERROR",
    }
}

/// Returns the body in the format of the Agentic Commerce Protocol. The format allows no further
/// members (`additionalProperties` is false), so the message contains the operation's reference.
fn acp(text: &RefusalText<'_>, codes: &VendorCodes) -> Value {
    let kind = text.refusal.kind();
    // The protocol treats a duplicate that waits for an operator as a request that is still in
    // flight.
    let is_held =
        matches!(text.refusal, Refusal::OutcomeUncertain { slot: Some(_), status: None, .. });
    let is_unavailable =
        kind == RefusalKind::UpstreamUnreachable || text.status == StatusCode::SERVICE_UNAVAILABLE;
    let error_type = match codes.class {
        FaultClass::Request | FaultClass::Credentials => "invalid_request",
        FaultClass::Service if is_held => "invalid_request",
        FaultClass::Service if is_unavailable => "service_unavailable",
        FaultClass::Service => "processing_error",
    };
    let code = if is_held { IN_FLIGHT } else { codes.acp.unwrap_or(kind.problem_name()) };
    json!({ "type": error_type, "code": code, "message": with_reference(text) })
}

fn ucp(text: &RefusalText<'_>, codes: &VendorCodes) -> Value {
    let code = codes.acp.unwrap_or(text.refusal.kind().problem_name());
    json!({ "code": code, "content": with_reference(text) })
}

/// Returns the text for people, with the operation's reference where it is known.
fn with_reference(text: &RefusalText<'_>) -> String {
    match text.refusal.operation() {
        Some(slot) => format!("{} Operation: {slot}.", text.detail),
        None => text.detail.to_owned(),
    }
}
