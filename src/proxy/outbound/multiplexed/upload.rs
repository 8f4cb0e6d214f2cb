//! Writes the body of a request to its HTTP/2 stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use tokio::task::AbortHandle;

use crate::forwarding::BoxError;
use crate::gate::{Payload, SendRule};

/// The handle of the task that writes a request's body. Dropping it stops the task.
pub(super) struct Upload(AbortHandle);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes a body. If it can't be written at once, starts a task that writes it, and returns the
/// handle of the task.
pub(super) fn start<B>(
    body: Payload<B>,
    stream: SendStream<Bytes>,
    rule: Option<Arc<SendRule>>,
) -> Option<Upload>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let mut upload = Box::pin(async move {
        let mut stream = stream;
        if let Err(reason) = upload(body, &mut stream, rule.as_deref()).await {
            stream.send_reset(reason);
        }
    });
    match upload.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(()) => None,
        Poll::Pending => Some(Upload(tokio::spawn(upload).abort_handle())),
    }
}

/// Writes a body in pieces that fit into the peer's windows. Each piece is written only if the send
/// rule allows it.
async fn upload<B>(
    mut body: Payload<B>,
    stream: &mut SendStream<Bytes>,
    rule: Option<&SendRule>,
) -> Result<(), Reason>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let unless_reset =
        |stream: &mut SendStream<Bytes>, cx: &mut Context<'_>| match stream.poll_reset(cx) {
            Poll::Ready(reset) => Err(reset.unwrap_or(Reason::CANCEL)),
            Poll::Pending => Ok(()),
        };
    loop {
        let frame = std::future::poll_fn(|cx| {
            unless_reset(stream, cx)?;
            Pin::new(&mut body).poll_frame(cx).map(Ok::<_, Reason>)
        });
        let frame = match frame.await? {
            None => return stream.send_data(Bytes::new(), true).map_err(|_| Reason::CANCEL),
            Some(frame) => frame.map_err(|_| Reason::CANCEL)?,
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            // Trailers are dropped, as for HTTP/1.1 upstreams. The gateway has not looked for keys,
            // scopes and callers in trailers, but an upstream may merge trailers into the head (RFC
            // 9110, section 6.5.1).
            Err(_) => continue,
        };
        let last = body.is_end_stream();
        if data.is_empty() && last {
            return stream.send_data(data, true).map_err(|_| Reason::CANCEL);
        }
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let capacity = std::future::poll_fn(|cx| {
                unless_reset(stream, cx)?;
                stream
                    .poll_capacity(cx)
                    .map(|capacity| capacity.and_then(Result::ok).ok_or(Reason::CANCEL))
            });
            let capacity = capacity.await?;
            if rule.is_some_and(|rule| !rule.allows()) {
                return Err(Reason::CANCEL);
            }
            let piece = data.split_to(capacity.min(data.len()));
            if !piece.is_empty() {
                stream.send_data(piece, last && data.is_empty()).map_err(|_| Reason::CANCEL)?;
            }
        }
        if last {
            return Ok(());
        }
    }
}
