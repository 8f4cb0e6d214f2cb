//! Bodies of requests, buffered or streaming, and bodies of answers, stored or streaming.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::forwarding::BoxError;
use crate::gate::budget::Hold;
use crate::gate::send_rule::SendRule;
use crate::gate::shared_permit::SharedPermit;
use crate::gate::stream::Stream;

/// A request body on its way to the upstream.
#[derive(Debug)]
pub enum Payload<B> {
    /// A buffered body. It is written only while the send rule allows that.
    Whole {
        /// The bytes, until the first frame is read.
        bytes: Option<Bytes>,
        /// The rule of a protected request.
        rule: Option<Arc<SendRule>>,
    },
    /// A body that streams through.
    Stream(Stream<B>),
}

impl<B> Payload<B> {
    /// Creates a buffered body.
    pub fn whole(bytes: Bytes, rule: Option<Arc<SendRule>>) -> Payload<B> {
        Payload::Whole { bytes: Some(bytes).filter(|b| !b.is_empty()), rule }
    }

    /// Returns the bytes of a buffered body, before its first frame is read.
    pub(super) fn whole_bytes(&self) -> Option<Bytes> {
        match self {
            Payload::Whole { bytes, .. } => bytes.clone(),
            Payload::Stream(_) => None,
        }
    }
}

impl<B> Default for Payload<B> {
    /// Creates an empty body. `std::mem::take` needs this when an attempt moves its request out to
    /// send it.
    fn default() -> Payload<B> {
        Payload::whole(Bytes::new(), None)
    }
}

/// The send rule did not allow the body to be written.
#[derive(Debug, thiserror::Error)]
#[error("the claim is too old to send on")]
pub struct TooLate;

impl<B> Body for Payload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Payload::Whole { bytes, rule } => {
                if bytes.is_some() && rule.as_ref().is_some_and(|rule| !rule.allows()) {
                    return Poll::Ready(Some(Err(TooLate.into())));
                }
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            Payload::Stream(body) => Poll::Ready(
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(Into::into)),
            ),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Payload::Whole { bytes, .. } => bytes.is_none(),
            Payload::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Whole { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Payload::Stream(body) => body.size_hint(),
        }
    }
}

/// An answer's body on its way to the client.
#[derive(Debug)]
pub struct AnswerBody<B> {
    first: Option<Bytes>,
    rest: Option<B>,
    /// The trailers of a body that does not stream. Boxed: they are rare, and bodies are moved
    /// often.
    trailers: Option<Box<HeaderMap>>,
    /// The memory of the body, given back when the body is written or dropped.
    hold: Option<Hold>,
    /// The permit of the request, if its answer streams through.
    permit: Option<SharedPermit>,
}

/// Bytes that keep their memory from the budget until they are written to the client and the last
/// part of them is dropped.
struct HeldBytes {
    bytes: Bytes,
    _hold: Hold,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<B> AnswerBody<B> {
    /// Creates a body from all of its bytes.
    pub fn whole(bytes: Bytes) -> AnswerBody<B> {
        AnswerBody {
            first: Some(bytes).filter(|b| !b.is_empty()),
            rest: None,
            trailers: None,
            hold: None,
            permit: None,
        }
    }

    /// Creates a body that streams through.
    pub fn stream(body: B) -> AnswerBody<B> {
        AnswerBody { first: None, rest: Some(body), trailers: None, hold: None, permit: None }
    }

    /// Converts the streaming part with `wrap`.
    pub fn map<C>(self, wrap: impl FnOnce(B) -> C) -> AnswerBody<C> {
        AnswerBody {
            first: self.first,
            rest: self.rest.map(wrap),
            trailers: self.trailers,
            hold: self.hold,
            permit: self.permit,
        }
    }

    /// Creates a body from its first bytes and the streaming rest.
    pub fn continued(first: Bytes, rest: B) -> AnswerBody<B> {
        AnswerBody {
            first: Some(first).filter(|b| !b.is_empty()),
            rest: Some(rest),
            trailers: None,
            hold: None,
            permit: None,
        }
    }

    /// Puts bytes that were read from a streaming body before its rest again.
    pub(in crate::gate) fn after(self, first: Bytes) -> AnswerBody<B> {
        AnswerBody { first: Some(first).filter(|b| !b.is_empty()), ..self }
    }

    /// Adds trailers to a body that does not stream.
    pub fn with_trailers(self, trailers: Option<HeaderMap>) -> AnswerBody<B> {
        AnswerBody { trailers: trailers.map(Box::new), ..self }
    }

    /// Returns the trailers of a body that does not stream.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_deref()
    }

    /// Keeps `hold`, the memory of the body, until the body is written or dropped.
    pub fn holding(self, hold: Hold) -> AnswerBody<B> {
        AnswerBody { hold: Some(hold), ..self }
    }

    /// Keeps a permit of a request in flight until the body is dropped.
    pub(crate) fn keeping(self, permit: SharedPermit) -> AnswerBody<B> {
        AnswerBody { permit: Some(permit), ..self }
    }

    /// Returns whether the rest of the body still streams from the upstream.
    pub(super) fn streams(&self) -> bool {
        self.rest.is_some()
    }
}

impl<B> Body for AnswerBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let body = self.get_mut();
        if let Some(first) = body.first.take() {
            // The connection drops the body after it has taken the last frame, long before a slow
            // client has read this frame. So the frame itself keeps the memory.
            let first = match body.hold.take() {
                Some(hold) => Bytes::from_owner(HeldBytes { bytes: first, _hold: hold }),
                None => first,
            };
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match &mut body.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => {
                Poll::Ready(body.trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        let mut hint = SizeHint::new();
        let Some(rest) = &self.rest else {
            // A body with an announced length has no trailers in HTTP/1.1 (RFC 9112, section
            // 7.1.2).
            let counted = SizeHint::with_exact(first);
            hint.set_lower(first);
            return if self.trailers.is_none() { counted } else { hint };
        };
        let rest = rest.size_hint();
        hint.set_lower(rest.lower() + first);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + first);
        }
        hint
    }
}
