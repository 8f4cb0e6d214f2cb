//! Reads of a resource: the gateway makes the tag of the representation, and answers 304 to a
//! client that has it.
//!
//! Danger: a representation with the wrong tag makes a client keep an old version. So a tag is made
//! only from a whole body, and every other answer is relayed without one.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG, EXPIRES,
    UPGRADE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::answer::Answered;
use super::budget::Hold;
use super::context::RequestContext;
use super::intake::Content;
use super::payload::AnswerBody;
use super::resource_write::resource_slot;
use super::response::{is_event_stream, join};
use super::share::AddressShare;
use super::state::{Gate, ProtectedRoute};
use crate::engine::{EntityTag, Policy, ReadConditions, ReadVerdict, ResourceRule, VersionSource};
use crate::key::Slot;
use crate::refusal::{FailedCondition, Refusal};
use crate::telemetry::{Answer, UntaggedReason};

/// The fields of a 304 (RFC 9110, section 15.4.5), besides `ETag`.
static NOT_MODIFIED_FIELDS: [HeaderName; 5] =
    [CACHE_CONTROL, CONTENT_LOCATION, DATE, EXPIRES, VARY];

/// A read of a resource, without what the upstream does not get to see.
pub struct ResourceRead {
    conditions: ReadConditions,
    /// Whether the client wants only the head.
    is_head: bool,
    /// The slot of the resource.
    resource: Slot,
}

/// A representation, with its tag or without one.
pub(super) struct Representation<RB> {
    pub tag: Result<EntityTag, UntaggedReason>,
    pub body: AnswerBody<RB>,
    /// The bytes of the body, if it has a tag.
    pub whole: Option<Bytes>,
}

/// The part of a body that has arrived.
#[derive(Default)]
struct Arrived {
    first: Option<Bytes>,
    rest: BytesMut,
    trailers: Option<HeaderMap>,
}

/// How far a body was read.
enum Reached {
    End,
    Limit,
    NoMemory,
    Broken,
}

impl ResourceRead {
    /// Changes the head of a read into the one that the upstream gets: a GET without conditions for
    /// the whole representation, without a content coding.
    ///
    /// # Errors
    /// A field that names the tenant of the resource is missing, or comes more than once.
    pub fn prepare<B>(
        policy: &Policy,
        rule: &ResourceRule,
        request: &mut Request<B>,
    ) -> Result<ResourceRead, Refusal> {
        let resource = resource_slot(policy, rule, request.uri().path(), request.headers())?;
        let headers = request.headers_mut();
        let conditions = ReadConditions::take(headers);
        headers.insert(ACCEPT, rule.accept.clone());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let is_head = request.method() == Method::HEAD;
        if is_head {
            // A HEAD opens no tunnel, and as a GET it could.
            request.headers_mut().remove(UPGRADE);
            *request.method_mut() = Method::GET;
        }
        Ok(ResourceRead { conditions, is_head, resource })
    }
}

impl Gate {
    /// Makes the answer to a read from the upstream's answer.
    ///
    /// # Errors
    /// The upstream's answer broke off before a byte of it was relayed, the client wants another
    /// version, or no turn to make the tag of a large body came in time.
    pub async fn answer_read<RB>(
        &self,
        guarded: &ProtectedRoute,
        rule: &ResourceRule,
        read: ResourceRead,
        answered: Answered<RB>,
        context: &RequestContext,
    ) -> Result<Answered<RB>, Refusal>
    where
        RB: Body<Data = Bytes> + Unpin,
    {
        let Answered { response, answer } = answered;
        let (mut parts, mut body) = response.into_parts();
        if parts.status == StatusCode::OK {
            let address = context.address_share.as_ref();
            let within = guarded.response_timeout;
            let found = self.represent(rule, &parts.headers, body, address, within).await?;
            parts.headers.remove(ETAG);
            match found.tag {
                Ok(tag) => {
                    parts.headers.extend(tag.to_field().map(|tag| (ETAG, tag)));
                    if let Some(whole) = &found.whole {
                        let (policy, resource) = (&guarded.route.policy, &read.resource);
                        self.keep_version(policy, rule, resource, &tag, whole).await;
                    }
                    match read.conditions.verdict(&tag) {
                        ReadVerdict::Whole => {}
                        ReadVerdict::NotModified => return Ok(not_modified(&parts.headers)),
                        ReadVerdict::Failed => {
                            return Err(Refusal::PreconditionFailed {
                                current: Some(tag),
                                why: FailedCondition::Read,
                            });
                        }
                    }
                }
                Err(reason) => guarded.meter.resources.count_untagged(reason),
            }
            body = found.body;
        }
        if read.is_head {
            let has_length =
                !parts.status.is_informational() && parts.status != StatusCode::NO_CONTENT;
            if let Some(length) = body.size_hint().exact().filter(|_| has_length) {
                parts.headers.insert(CONTENT_LENGTH, length.into());
            }
            body = AnswerBody::whole(Bytes::new());
        }
        Ok(Answered { response: Response::from_parts(parts, body), answer })
    }

    /// Reads a representation within the rule's limit, and makes its tag.
    pub(super) async fn represent<RB>(
        &self,
        rule: &ResourceRule,
        headers: &HeaderMap,
        mut body: AnswerBody<RB>,
        address: Option<&Arc<AddressShare>>,
        within: Duration,
    ) -> Result<Representation<RB>, Refusal>
    where
        RB: Body<Data = Bytes> + Unpin,
    {
        if is_event_stream(headers) {
            return Ok(Representation { tag: Err(UntaggedReason::Streamed), body, whole: None });
        }
        if body.size_hint().lower() > rule.bytes as u64 {
            return Ok(Representation { tag: Err(UntaggedReason::TooLarge), body, whole: None });
        }
        let mut hold = self.passing_room(address);
        let mut arrived = Arrived::default();
        // A body that takes longer is a stream, and its beginning waits for the client.
        let reached = timeout(within, arrived.read(&mut body, rule.bytes, &mut hold))
            .await
            .unwrap_or(Reached::Limit);
        let Arrived { first, rest, trailers } = arrived;
        let bytes = join(first, rest);
        let reason = match reached {
            Reached::End => {
                let _turn = self.heavy_work.turn_to_read(address, headers, &bytes).await?;
                let tag = tag(rule, headers, &bytes, &hold).await;
                let whole = Some(bytes.clone());
                let body = AnswerBody::whole(bytes).with_trailers(trailers).holding(hold);
                return Ok(Representation { tag, body, whole });
            }
            Reached::Broken => return Err(Refusal::UpstreamFailed { timed_out: false }),
            Reached::Limit => UntaggedReason::Streamed,
            Reached::NoMemory => UntaggedReason::NoMemory,
        };
        Ok(Representation { tag: Err(reason), body: body.after(bytes).holding(hold), whole: None })
    }
}

/// Returns the 304 for a representation with these fields.
fn not_modified<RB>(headers: &HeaderMap) -> Answered<RB> {
    let mut response = Response::new(AnswerBody::whole(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    for name in NOT_MODIFIED_FIELDS.iter().chain([&ETAG]) {
        for value in headers.get_all(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    Answered { response, answer: Answer::NotModified }
}

/// Makes the tag of a whole body. A member is read from the decoded body, because some upstreams
/// compress whatever the request accepts.
async fn tag(
    rule: &ResourceRule,
    headers: &HeaderMap,
    bytes: &Bytes,
    hold: &Hold,
) -> Result<EntityTag, UntaggedReason> {
    let decoded = match &rule.versions {
        VersionSource::Hash | VersionSource::Upstream => None,
        VersionSource::Member(_) => {
            let content = Content::read(headers, bytes, rule.bytes, &mut hold.beside()).await;
            Some(content.map_err(|_| UntaggedReason::NoMemory)?)
        }
    };
    let bytes = decoded.as_ref().map_or(bytes, Content::bytes);
    EntityTag::of_representation(&rule.versions, bytes).ok_or(UntaggedReason::NoMember)
}

impl Arrived {
    /// Reads a body up to its end, or until more than `limit` bytes or no memory is left. All that
    /// was read is kept.
    async fn read<B>(&mut self, body: &mut B, limit: usize, hold: &mut Hold) -> Reached
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Reached::Broken };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    continue;
                }
            };
            length += data.len();
            let has_memory = hold.grow(data.len());
            if !has_memory {
                // These bytes are in memory already.
                hold.overdraw(data.len());
            }
            match &self.first {
                None if !data.is_empty() => self.first = Some(data),
                None => {}
                Some(_) => self.rest.extend_from_slice(&data),
            }
            if length > limit {
                return Reached::Limit;
            }
            if !has_memory {
                return Reached::NoMemory;
            }
        }
        Reached::End
    }
}
