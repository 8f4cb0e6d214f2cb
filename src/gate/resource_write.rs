//! Writes on a resource: what a write brings along, and the look at the current version.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LOCATION, CONTENT_TYPE, ETAG, EXPECT,
    IF_MATCH, IF_NONE_MATCH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use tokio::time::timeout;

use super::budget::Hold;
use super::intake::scope::scope_field;
use super::payload::{AnswerBody, Payload};
use super::response::ReceivedBody;
use super::state::{Gate, ProtectedRoute};
use super::upstream_service::UpstreamService;
use crate::engine::{
    CONDITIONAL_FIELDS, CurrentVersion, EntityTag, IfMatchRule, Policy, ResourceRule,
    WriteCondition,
};
use crate::key::Slot;
use crate::key::path::identity;
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;

/// The field with which a client asks for the representation in the answer (RFC 7240).
static PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
static PREFER: HeaderName = HeaderName::from_static("prefer");

/// Fields that make some upstreams read another method than that of the request.
static METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// What a write on a resource brings along, besides the request.
#[derive(Debug)]
pub(super) struct ResourceWrite {
    pub rule: Arc<ResourceRule>,
    /// The slot of the resource; `None` if the upstream compares versions itself.
    pub resource: Option<Slot>,
    pub condition: WriteCondition,
    /// Whether the request is a merge patch (RFC 7396), as it is.
    pub is_patch: bool,
    /// The path of the request.
    path: Box<str>,
}

/// The current version of a resource, or the answer for the writer.
pub(super) enum Look<RB> {
    /// The version, and the representation if it was read whole.
    Found(CurrentVersion, Option<Bytes>),
    /// The upstream does not let the writer read the resource: the writer gets this answer.
    Denied(Box<Denied<RB>>),
}

/// The answer to a writer who may not read the resource.
pub(super) struct Denied<RB> {
    pub reply: Reply,
    /// The body, if it is too large to be stored.
    pub body: Option<AnswerBody<RB>>,
}

impl ResourceWrite {
    /// Takes what a write brings along from its head. Returns `None` for other requests. The
    /// upstream gets no condition that the gateway evaluates.
    ///
    /// # Errors
    /// The condition is not valid, or a field that names the tenant is missing or repeated.
    pub fn take(policy: &Policy, parts: &mut Parts) -> Result<Option<Box<ResourceWrite>>, Refusal> {
        let Some(rule) = &policy.resource else { return Ok(None) };
        if !ResourceRule::is_write(&parts.method) {
            return Ok(None);
        }
        let path = parts.uri.path().into();
        let rule = rule.clone();
        if !rule.makes_tags() {
            let condition = match has_condition(&parts.headers) {
                true => WriteCondition::Exists,
                false => WriteCondition::Absent,
            };
            return Ok(Some(Box::new(ResourceWrite {
                rule,
                resource: None,
                condition,
                path,
                is_patch: false,
            })));
        }
        let condition = WriteCondition::take(&mut parts.headers)?;
        let resource = Some(resource_slot(policy, &rule, parts.uri.path(), &parts.headers)?);
        let is_patch = is_merge_patch(parts);
        Ok(Some(Box::new(ResourceWrite { rule, resource, condition, path, is_patch })))
    }

    /// Returns whether the write is refused because it has no condition.
    pub fn lacks_condition(&self) -> bool {
        self.condition == WriteCondition::Absent && self.rule.if_match == IfMatchRule::Required
    }

    /// Gives the answer to the write a tag if it has the new representation, and removes the
    /// upstream's own tag: the gateway would not recognise it. Returns the tag and the
    /// representation.
    pub fn tag_answer(&self, reply: &mut Reply, policy: &Policy) -> Option<(EntityTag, Bytes)> {
        reply.headers.remove(ETAG);
        let ReplyBody::Whole(body) = &reply.body else { return None };
        let has_representation = reply.status.is_success()
            && !reply.headers.contains_key(CONTENT_ENCODING)
            // Replaced values would make another tag.
            && policy.redact.is_empty()
            && body.len() <= self.rule.bytes
            && (applies_representation(&reply.headers) || self.is_located_in(&reply.headers));
        let tag = has_representation
            .then(|| EntityTag::of_representation(&self.rule.versions, body))
            .flatten()?;
        let body = body.clone();
        reply.headers.extend(tag.to_field().map(|tag| (ETAG, tag)));
        Some((tag, body))
    }

    /// Returns whether `Content-Location` names the resource itself (RFC 9110, section 8.7).
    fn is_located_in(&self, headers: &HeaderMap) -> bool {
        let location = headers.get(CONTENT_LOCATION).and_then(|value| value.to_str().ok());
        location.is_some_and(|location| location == &*self.path)
    }
}

/// Returns the slot of the resource with this path.
///
/// # Errors
/// A field that names the tenant is missing or repeated.
pub(super) fn resource_slot(
    policy: &Policy,
    rule: &ResourceRule,
    path: &str,
    headers: &HeaderMap,
) -> Result<Slot, Refusal> {
    let tenant = rule.per.iter().map(|name| scope_field(name, headers));
    let tenant: Vec<_> = tenant.collect::<Result<_, Refusal>>()?;
    Ok(Slot::of_resource(&rule.upstream, &identity(path, policy.path_case), tenant))
}

fn is_merge_patch(parts: &Parts) -> bool {
    let media = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = media.and_then(|value| value.split(';').next()).unwrap_or_default();
    parts.method == Method::PATCH
        && media.trim().eq_ignore_ascii_case("application/merge-patch+json")
        && !parts.headers.contains_key(CONTENT_ENCODING)
}

/// Refuses a write without a key and without a condition, if the upstream compares versions.
///
/// # Errors
/// [`Refusal::PreconditionRequired`].
pub fn require_condition(
    rule: &ResourceRule,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let is_refused = !rule.makes_tags()
        && rule.if_match == IfMatchRule::Required
        && ResourceRule::is_write(method)
        && !has_condition(headers);
    if is_refused { Err(Refusal::PreconditionRequired) } else { Ok(()) }
}

fn has_condition(headers: &HeaderMap) -> bool {
    let creates = |value: &HeaderValue| value.as_bytes().trim_ascii() == b"*";
    headers.contains_key(IF_MATCH) || headers.get(IF_NONE_MATCH).is_some_and(creates)
}

fn applies_representation(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(&PREFERENCE_APPLIED).iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split([',', ';'])).any(
        |preference| {
            let mut parts = preference.splitn(2, '=').map(str::trim);
            let is_return = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("return"));
            is_return
                && parts.next().is_some_and(|value| value.trim_matches('"') == "representation")
        },
    )
}

/// Returns the request that looks at the current version, with the credentials of the write.
pub(super) fn look_request<B>(
    rule: &ResourceRule,
    policy: &Policy,
    write: &Request<Payload<B>>,
) -> Request<Payload<B>> {
    let mut look = Request::new(Payload::default());
    *look.uri_mut() = write.uri().clone();
    *look.extensions_mut() = write.extensions().clone();
    let key = policy.upstream_key_field();
    let is_of_write = |name: &HeaderName| {
        name.as_str().starts_with("content-")
            || [EXPECT, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
            || *name == PREFER
            || METHOD_OVERRIDES.contains(name)
            || CONDITIONAL_FIELDS.contains(name)
            || key == Some(name)
    };
    let headers = write.headers().iter().filter(|(name, _)| !is_of_write(name));
    let headers: HeaderMap = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
    *look.headers_mut() = headers;
    look.headers_mut().insert(ACCEPT, rule.accept.clone());
    look.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    look
}

impl Gate {
    /// Looks at the current version of the resource of a write, for at most the response timeout:
    /// the lock is kept only for so long.
    pub(super) async fn look_at<S, B>(
        &self,
        guarded: &ProtectedRoute,
        rule: &ResourceRule,
        look: Request<Payload<B>>,
        service: &mut S,
        hold: &mut Hold,
    ) -> Look<S::ResponseBody>
    where
        S: UpstreamService<B>,
    {
        let looking = self.read_version(guarded, rule, look, service, hold);
        let seen = timeout(guarded.response_timeout, looking).await;
        seen.unwrap_or(Look::Found(CurrentVersion::Unknown, None))
    }

    async fn read_version<S, B>(
        &self,
        guarded: &ProtectedRoute,
        rule: &ResourceRule,
        look: Request<Payload<B>>,
        service: &mut S,
        hold: &mut Hold,
    ) -> Look<S::ResponseBody>
    where
        S: UpstreamService<B>,
    {
        let sent = async {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(look).await
        };
        let unknown = Look::Found(CurrentVersion::Unknown, None);
        let Ok(response) = sent.await else { return unknown };
        let (mut head, body) = response.into_parts();
        match head.status {
            StatusCode::OK => {
                let within = guarded.response_timeout;
                let body = AnswerBody::stream(body);
                let found = self.represent(rule, &head.headers, body, None, within).await;
                match found {
                    Ok(found) => match found.tag {
                        Ok(tag) => Look::Found(CurrentVersion::Tagged(tag), found.whole),
                        Err(_) => Look::Found(CurrentVersion::Untagged, None),
                    },
                    Err(_) => unknown,
                }
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Look::Found(CurrentVersion::Missing, None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.prepare_fields(&mut head.headers);
                let mut reply = Reply {
                    status: head.status,
                    headers: head.headers,
                    body: ReplyBody::NotStored,
                    trailers: None,
                };
                let body = match self.read_body(&reply, body, hold).await {
                    ReceivedBody::Whole(bytes, _) => {
                        reply.body = ReplyBody::Whole(bytes);
                        None
                    }
                    ReceivedBody::Streams(body) => Some(body),
                    ReceivedBody::Broken => return unknown,
                };
                Look::Denied(Box::new(Denied { reply, body }))
            }
            _ => unknown,
        }
    }
}
