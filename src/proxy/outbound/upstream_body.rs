//! Bodies of answers, which give their connection back when they have ended.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::forwarding::BoxError;
use crate::gate::Payload;
use crate::proxy::fields;
use crate::proxy::outbound::multiplexed::MultiplexedAnswer;
use crate::proxy::outbound::pool::{Connection, Pool};

/// A connection, and where it goes back to.
pub(in crate::proxy) type Lent<B> = (Connection<Payload<B>>, Pool<Payload<B>>);

/// A response body; its connection goes back to the pool when it has ended, and is reset when it is dropped before.
pub struct UpstreamBody<B: Send + 'static> {
    pub(in crate::proxy) body: BodySource,
    pub(in crate::proxy) lent: Option<Lent<B>>,
}

/// Where a response body comes from.
pub(in crate::proxy) enum BodySource {
    /// A connection that carries one request at a time.
    Own(Incoming),
    /// A stream of an HTTP/2 connection.
    Shared(MultiplexedAnswer),
}

impl Body for BodySource {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            BodySource::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            BodySource::Shared(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            BodySource::Own(body) => body.is_end_stream(),
            BodySource::Shared(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            BodySource::Own(body) => body.size_hint(),
            BodySource::Shared(body) => body.size_hint(),
        }
    }
}

impl<B: Send + 'static> UpstreamBody<B> {
    fn finish(&mut self) {
        if let Some((connection, pool)) = self.lent.take() {
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
            Some(Err(_)) => this.lent = None,
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
        // A body without content (204, HEAD) has ended before anybody asked for a frame.
        if self.body.is_end_stream() {
            self.finish();
        }
    }
}
