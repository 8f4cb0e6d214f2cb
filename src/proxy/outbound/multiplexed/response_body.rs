//! The body of an answer on an HTTP/2 stream, and the exchange that ends with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::CancellationToken;

use super::connection::StreamSlot;
use super::upload::Upload;
use crate::forwarding::BoxError;
use crate::proxy::outbound::frame_gate::FrameGate;

/// An active request on a stream. Dropping it ends the stream, and if necessary the connection.
pub(super) struct Exchange {
    pub gate: Arc<FrameGate>,
    pub stream: u32,
    /// Ends the connection.
    pub abort: CancellationToken,
    pub upload: Option<Upload>,
    /// Whether the upstream declared that it does not process the request.
    pub refused: bool,
    pub _slot: StreamSlot,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.upload = None;
        if self.refused {
            self.gate.forget(self.stream);
        } else if self.gate.finish(self.stream) {
            self.abort.cancel();
        }
    }
}

/// The body of an answer. If it is dropped before its end, its stream is reset.
pub(in crate::proxy) struct Http2ResponseBody {
    stream: RecvStream,
    /// How many bytes of the announced length have not arrived yet.
    left: Option<u64>,
    in_trailers: bool,
    /// How many bytes of the body were read.
    taken: usize,
    ended: bool,
    exchange: Exchange,
}

impl Http2ResponseBody {
    pub(super) fn new(
        stream: RecvStream,
        length: Option<u64>,
        exchange: Exchange,
    ) -> Http2ResponseBody {
        // An answer to HEAD announces the length of a body that it does not have.
        let left = if stream.is_end_stream() { Some(0) } else { length };
        Http2ResponseBody { stream, left, in_trailers: false, taken: 0, ended: false, exchange }
    }

    /// Interprets an error. Returns `None` if the body is complete, because END_STREAM arrived
    /// before the connection ended. Otherwise the body is truncated, and this returns an error.
    ///
    /// After an error of this side the body is never complete: the library refused the answer, or
    /// the request was given up.
    fn end_or_error(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, BoxError>> {
        let connection_ended = error.is_io() || error.is_go_away() && error.is_remote();
        self.ended = true;
        let short = self.left.is_some_and(|left| left > 0);
        if connection_ended
            && !short
            && self.exchange.gate.has_ended(self.exchange.stream, self.taken)
        {
            return None;
        }
        Some(Err(error.into()))
    }
}

impl Body for Http2ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    /// Every end except END_STREAM is an error, even a reset with NO_ERROR or CANCEL, because the
    /// answer may be truncated. Events after END_STREAM are not errors. Examples are a reset of the
    /// rest of the request, and the end of the connection.
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if !this.in_trailers {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    this.taken += data.len();
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(this.end_or_error(error)),
                None => this.in_trailers = true,
            }
        }
        let trailers = ready!(this.stream.poll_trailers(cx));
        this.ended = true;
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => this.end_or_error(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
