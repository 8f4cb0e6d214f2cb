//! HTTP/2 connections to an upstream. Several requests share a connection, up to the limits of both
//! sides.
//!
//! Danger: the HTTP/2 library queues requests beyond the peer's SETTINGS_MAX_CONCURRENT_STREAMS
//! (RFC 9113, section 5.1.2), and sends them even if they were cancelled in the meantime. So every
//! request that is given to the library has a stream slot, and a [`FrameGate`] checks the bytes
//! that the library writes.
//!
//! [`FrameGate`]: crate::proxy::outbound::frame_gate::FrameGate

use std::sync::Arc;

use bytes::Bytes;
use h2::Reason;
use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;

use crate::forwarding::{BoxError, ForwardError};
use crate::gate::{Payload, SendRule};
use crate::proxy::outbound::failure;
pub(in crate::proxy) use connection::{Http2Connection, STREAMS_MAX, StreamSlot};
use response_body::Exchange;
pub(in crate::proxy) use response_body::Http2ResponseBody;

mod connection;
mod response_body;
#[cfg(test)]
mod tests;
mod upload;

/// The reason why a request got no answer.
pub(in crate::proxy) enum SendFailure<B> {
    /// The connection closed before it took the request, which is returned.
    Closed(Box<Request<Payload<B>>>),
    /// The request failed with this error.
    Failed(ForwardError),
}

impl StreamSlot {
    /// Sends a request at most once, and waits for the head of its answer. For `rule`, the request
    /// is withheld until its first frame is written.
    ///
    /// # Errors
    /// See [`SendFailure`].
    pub async fn send<B>(
        self,
        request: Request<Payload<B>>,
        rule: Option<Arc<SendRule>>,
    ) -> Result<Response<Http2ResponseBody>, SendFailure<B>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let failed = |error| Err(SendFailure::Failed(error));
        if self.0.is_closed() {
            return Err(SendFailure::Closed(Box::new(request)));
        }
        let (mut head, body) = request.into_parts();
        head.extensions.clear();
        let bodiless = body.is_end_stream();
        frame_head(&mut head.headers, body.size_hint().exact());
        let Http2Connection { sender, gate, abort, .. } = &*self.0;
        let opened = gate.open(rule.as_ref(), || {
            let (answer, stream) =
                sender.clone().send_request(Request::from_parts(head, ()), bodiless)?;
            Ok::<_, h2::Error>((answer.stream_id().as_u32(), (answer, stream)))
        });
        let (id, (answer, stream)) = match opened {
            Ok(opened) => opened,
            Err(error) => return failed(ForwardError::NeverSent(error.to_string())),
        };
        let mut exchange = Exchange {
            gate: gate.clone(),
            stream: id,
            abort: abort.clone(),
            upload: None,
            refused: false,
            _slot: self,
        };
        if !bodiless {
            exchange.upload = upload::start(body, stream, rule.clone());
        }
        match answer.await {
            Ok(answer) => {
                let length = answer
                    .headers()
                    .get(CONTENT_LENGTH)
                    .and_then(|length| length.to_str().ok()?.parse().ok());
                Ok(answer.map(|stream| Http2ResponseBody::new(stream, length, exchange)))
            }
            // The upstream ignores the request, even if a part of it still has to be written. The
            // other requests on the connection continue.
            Err(error) if was_refused(&error) => {
                exchange.refused = true;
                failed(ForwardError::NeverSent(error.to_string()))
            }
            // No byte of the request was written, and from now on no byte of it can be written.
            Err(error) if rule.is_some_and(|rule| rule.revoke()) => {
                failed(ForwardError::NeverSent(error.to_string()))
            }
            Err(error) => failed(failure::of_http2(&error)),
        }
    }
}

/// Sets the length of a request's body, and drops the fields that HTTP/2 does not have (RFC 9113,
/// section 8.2.2). If an empty body is sent with a length, the head already has the length.
fn frame_head(headers: &mut HeaderMap, length: Option<u64>) {
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    if let Some(length) = length.filter(|length| *length != 0) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Returns whether the upstream declared that it did not process the stream: with REFUSED_STREAM,
/// or with a GOAWAY that has a lower last stream (RFC 9113, sections 6.8 and 8.7). h2 reports a
/// remote GOAWAY only to the streams above that last stream.
fn was_refused(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)
            || error.is_go_away())
}
