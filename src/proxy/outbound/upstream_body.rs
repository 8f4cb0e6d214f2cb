//! Bodies of answers. A body returns its connection to the pool when it has ended.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::forwarding::BoxError;
use crate::gate::Payload;
use crate::proxy::fields;
use crate::proxy::outbound::multiplexed::Http2ResponseBody;
use crate::proxy::outbound::pool::{Http1Connection, Pool};

/// A connection that an answer uses, and the pool to which it returns.
pub(in crate::proxy) type BorrowedConnection<B> = (Http1Connection<Payload<B>>, Pool<Payload<B>>);

/// The body of an upstream's answer. Its connection returns to the pool when the body has ended. If
/// the body is dropped before its end, the connection is reset.
pub struct UpstreamBody<B: Send + 'static> {
    pub(in crate::proxy) body: BodySource,
    pub(in crate::proxy) borrowed: Option<BorrowedConnection<B>>,
}

/// The protocol-specific body of an answer.
pub(in crate::proxy) enum BodySource {
    /// A body on an HTTP/1.1 connection, which carries one request at a time.
    Http1(Incoming),
    /// A body on a stream of an HTTP/2 connection.
    Http2(Http2ResponseBody),
}

impl Body for BodySource {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            BodySource::Http1(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            BodySource::Http2(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            BodySource::Http1(body) => body.is_end_stream(),
            BodySource::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            BodySource::Http1(body) => body.size_hint(),
            BodySource::Http2(body) => body.size_hint(),
        }
    }
}

impl<B: Send + 'static> UpstreamBody<B> {
    fn finish(&mut self) {
        if let Some((connection, pool)) = self.borrowed.take() {
            pool.give_back(connection);
        }
    }
}

impl<B: Send + Unpin + 'static> Body for UpstreamBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let mut frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            fields::strip_trailers(trailers);
        }
        match &frame {
            Some(Ok(_)) if this.body.is_end_stream() => this.finish(),
            Some(Ok(_)) => {}
            None => this.finish(),
            Some(Err(_)) => this.borrowed = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Send + 'static> Drop for UpstreamBody<B> {
    fn drop(&mut self) {
        // An answer without content (204, HEAD) has ended without a poll for a frame.
        if self.body.is_end_stream() {
            self.finish();
        }
    }
}
