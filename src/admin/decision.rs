//! A change that an operator makes to an operation. It has a version, a reason and the operator's
//! name.
//!
//! Danger: an operator decides on the state that the screen shows. A change without a version could
//! settle a different state, so it is refused ([`AdminRefusal::VersionMissing`]). A change with an
//! old version is refused too.

use std::str::FromStr;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::auth::Operator;
use super::problem::AdminRefusal;
use super::state::Admin;
use super::view::ResolveRequest;
use crate::engine::{Decision, Verdict};
use crate::event::{Context, REASON_BYTES_MAX};
use crate::gate::{InternalCaller, OperatorError};
use crate::key::Slot;
use crate::record::{Held, Reply, ReplyBody, Version};

/// Fields of a connection or of message framing. No stored reply has them.
const FRAMING: [HeaderName; 7] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Statuses of responses that never have a body (RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5).
const BODILESS: [StatusCode; 3] =
    [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];

/// An existing operation, and the version that the operator decided on.
pub(super) struct OperatorChange {
    slot: Slot,
    route: Arc<str>,
    /// Whether the operation is that of a saga's step.
    is_step: bool,
    version: Version,
}

/// The reason of a change. It is not empty, and not longer than the event log can store.
pub(super) struct Reason(String);

impl Reason {
    /// Parses a reason.
    pub(super) fn parse(text: Option<&str>) -> Result<Reason, AdminRefusal> {
        let text = text.unwrap_or_default().trim();
        if text.is_empty() || text.len() > REASON_BYTES_MAX {
            return Err(AdminRefusal::reason());
        }
        Ok(Reason(text.to_owned()))
    }

    /// Parses the reason of a change that needs none.
    pub(super) fn parse_optional(text: Option<&str>) -> Result<Option<Reason>, AdminRefusal> {
        let text = text.filter(|text| !text.trim().is_empty());
        text.map(|text| Reason::parse(Some(text))).transpose()
    }

    /// Returns the reason.
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl OperatorChange {
    /// Loads the operation, with the version from `If-Match`.
    pub(super) async fn of(
        admin: &Admin,
        operation: &str,
        headers: &HeaderMap,
    ) -> Result<OperatorChange, AdminRefusal> {
        let (slot, held) = find(admin, operation).await?;
        let tag = headers.get(header::IF_MATCH).ok_or(AdminRefusal::VersionMissing)?;
        let version = tag.to_str().ok().and_then(parse_tag).ok_or(AdminRefusal::VersionInvalid)?;
        Ok(OperatorChange::on(admin, slot, &held, version))
    }

    /// Loads the operation, with this version.
    pub(super) async fn at(
        admin: &Admin,
        operation: &str,
        version: Version,
    ) -> Result<OperatorChange, AdminRefusal> {
        let (slot, held) = find(admin, operation).await?;
        Ok(OperatorChange::on(admin, slot, &held, version))
    }

    fn on(admin: &Admin, slot: Slot, held: &Held, version: Version) -> OperatorChange {
        let route = held.record.route.clone();
        // The routes of steps are named SAGA/STEP and SAGA/STEP/undo.
        let saga = route.split('/').next().unwrap_or_default();
        let is_step = admin.gate.is_called_by(&held.record, InternalCaller::Saga(saga));
        OperatorChange { slot, route, is_step, version }
    }

    /// Applies the decision. If the event log is enabled, the same store command writes operator
    /// and reason to it. They are also in the process log.
    pub(super) async fn apply(
        self,
        admin: &Admin,
        operator: &Operator,
        decision: Decision,
        Reason(reason): Reason,
    ) -> Result<(Slot, Held), AdminRefusal> {
        let done = match decision {
            Decision::Resolve(_) | Decision::Found(_) => "resolved",
            Decision::Release | Decision::NotFound => "released",
            Decision::Retry => "allowed to run again",
            Decision::Expire => "expired",
        };
        let by = Context {
            operator: Some(operator.0.clone()),
            reason: Some(reason.clone()),
            ..Context::default()
        };
        let policy = admin.policy(&self.route);
        if let Decision::Resolve(reply) = &decision
            && self.is_step
            && policy.statuses.verdict(reply.status, &reply.headers) != Verdict::Store
        {
            return Err(AdminRefusal::Invalid(format!(
                "the saga could not tell from the status {} whether the step is done: take one that \
                 is in success or in failure of the step",
                reply.status.as_u16()
            )));
        }
        let held =
            admin.gate.settle_by_hand(&self.slot, decision, Some(self.version), policy, by).await?;
        tracing::info!(
            operation = %self.slot, route = %self.route, operator = operator.0, reason,
            "operation {done} by an operator"
        );
        Ok((self.slot, held))
    }
}

/// Returns the current state of an operation.
pub(super) async fn find(admin: &Admin, operation: &str) -> Result<(Slot, Held), AdminRefusal> {
    let slot = Slot::from_reference(operation)?;
    let held = admin.gate.store().records.load(&slot).await?.ok_or(OperatorError::Unknown)?;
    Ok((slot, held))
}

/// Parses a version from a strong entity tag (RFC 9110, section 8.8.3).
pub(super) fn parse_tag(tag: &str) -> Option<Version> {
    tag.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok().map(Version)
}

/// Returns the reply that an operator entered. Adds a date and a media type if they are missing.
pub(super) fn entered_reply(
    now_unix_ms: u64,
    request: &ResolveRequest,
) -> Result<Reply, AdminRefusal> {
    let body = BASE64.decode(&request.body_base64);
    let body =
        body.map_err(|error| AdminRefusal::Invalid(format!("body_base64 is not base64: {error}")))?;
    let status = StatusCode::from_u16(request.status)
        .ok()
        .filter(|status| (200..=599).contains(&status.as_u16()));
    let status = status.ok_or_else(|| {
        AdminRefusal::Invalid("status is a final HTTP status: 200 to 599".to_owned())
    })?;
    if BODILESS.contains(&status) && !body.is_empty() {
        return Err(AdminRefusal::Invalid(format!(
            "an answer with the status {} has no body",
            status.as_u16()
        )));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let (name, value) = field(name, value).map_err(AdminRefusal::Invalid)?;
        headers.append(name, value);
    }
    if !body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        let kind = if json { "application/json" } else { "text/plain; charset=utf-8" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    if !headers.contains_key(header::DATE) {
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_millis(now_unix_ms);
        if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
            headers.insert(header::DATE, date);
        }
    }
    Ok(Reply { status, headers, body: ReplyBody::Whole(Bytes::from(body)), trailers: None })
}

fn field(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let name = HeaderName::from_str(name).map_err(|_| format!("`{name}` is not a header name"))?;
    let value = HeaderValue::from_str(value)
        .map_err(|_| format!("the value of {name} is not a header value"))?;
    if FRAMING.contains(&name) {
        return Err(format!("{name} can't be set: framing is computed from the body"));
    }
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_one_strong_entity_tag() {
        assert_eq!(parse_tag("\"18446744073709551615\""), Some(Version(u64::MAX)));
        for other in [
            "*",
            "7",
            "\"\"",
            "W/\"7\"",
            "\"7\", \"8\"",
            "\"-1\"",
            "\"18446744073709551616\"",
            "\"",
        ] {
            assert_eq!(parse_tag(other), None, "{other}");
        }
    }

    #[test]
    fn a_reason_is_not_empty_and_fits_the_log() {
        for none in [None, Some(""), Some(" \n\t"), Some(&"é".repeat(REASON_BYTES_MAX / 2 + 1))] {
            assert!(Reason::parse(none).is_err(), "{none:?}");
        }
        assert_eq!(Reason::parse(Some(" ticket 4711 ")).ok().unwrap().0, "ticket 4711");
        assert!(Reason::parse(Some(&"é".repeat(REASON_BYTES_MAX / 2))).is_ok());
    }

    #[test]
    fn an_entered_reply_has_a_date_and_a_media_type_and_no_framing() {
        let request = |name: &str| ResolveRequest {
            status: 201,
            headers: [(name.to_owned(), "x".to_owned())].into(),
            body_base64: BASE64.encode("{}"),
            reason: None,
        };
        let reply = entered_reply(784_111_777_000, &request("X-Note")).unwrap();
        assert_eq!(reply.headers["content-type"], "application/json");
        assert_eq!(
            (&reply.headers["date"], &reply.headers["x-note"]),
            (&"Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap(), &"x".parse().unwrap())
        );
        for name in ["Content-Length", "transfer-encoding", "Connection", "a b"] {
            assert!(entered_reply(0, &request(name)).is_err(), "{name}");
        }
        for status in [0, 101, 199, 600, 999] {
            assert!(
                entered_reply(0, &ResolveRequest { status, ..ResolveRequest::default() }).is_err(),
                "{status}"
            );
        }
        for status in [204, 205, 304] {
            let bare = ResolveRequest { status, ..ResolveRequest::default() };
            assert!(entered_reply(0, &bare).is_ok(), "{status}");
            assert!(
                entered_reply(0, &ResolveRequest { body_base64: BASE64.encode("{}"), ..bare })
                    .is_err(),
                "{status} with a body"
            );
        }
    }
}
