//! A client's request body, with the checks that end it early.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::gate::{Malformation, Refusal};
use crate::proxy::inbound::byte_guard::MARK;
use crate::proxy::inbound::inflow::{CountedBody, Inflow};
use crate::proxy::rules;

/// A client's request body. Its trailers are checked by the rules.
pub struct RequestBody {
    body: CountedBody,
    fault: Arc<OnceLock<Refusal>>,
}

/// Why a request body can't be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The connection or the stream failed.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The trailer section breaks the rules.
    #[error(transparent)]
    Refused(#[from] Malformation),
    /// The client reset its stream before the body's end.
    #[error("the stream was reset before the end of the body")]
    Reset,
}

impl RequestBody {
    /// Wraps a body. Also returns a cell, which gets the fault of the body if one is found. On
    /// HTTP/2, `inflow` counts the bytes of the body.
    pub(in crate::proxy) fn new(
        body: Incoming,
        inflow: Option<Arc<Inflow>>,
    ) -> (RequestBody, Arc<OnceLock<Refusal>>) {
        let fault = Arc::new(OnceLock::new());
        (RequestBody { body: CountedBody::new(body, inflow), fault: fault.clone() }, fault)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
            // The library reports a reset with NO_ERROR as the body's end. A server may send one
            // (RFC 9113, section 8.1). From a client it means that the rest of the request never
            // arrives.
            let cut = self.body.is_framed() && !self.body.is_end_stream();
            return Poll::Ready(cut.then_some(Err(RequestBodyError::Reset)));
        };
        let frame = frame?;
        if let Some(trailers) = frame.trailers_ref() {
            let checked = if trailers.contains_key(MARK) {
                Err(Malformation::Trailer)
            } else {
                rules::trailers(trailers)
            };
            if let Err(why) = checked {
                let _ = self.fault.set(why.into());
                return Poll::Ready(Some(Err(why.into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
