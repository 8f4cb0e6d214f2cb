//! Bodies within limits: read whole, discarded, or streamed with a limit on silence.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Sleep, sleep, timeout};

use crate::forwarding::BoxError;
use crate::refusal::Refusal;

/// Reads a request body of at most `limit` bytes, in at most `within`. `reserve` reserves memory
/// for the given number of further bytes, and returns `false` if no memory is left.
///
/// # Errors
/// The body is too large, too slow or broken, or there is no memory for it.
pub async fn read_whole<B>(
    body: &mut B,
    limit: usize,
    within: Duration,
    reserve: impl FnMut(usize) -> bool,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    // Refuses a body by its announced length, before a byte is buffered.
    if body.size_hint().lower() > limit as u64 {
        return Err(Refusal::BodyTooLarge { limit });
    }
    timeout(within, collect(body, limit, reserve)).await.unwrap_or(Err(Refusal::BodyTimeout))
}

async fn collect<B>(
    body: &mut B,
    limit: usize,
    mut reserve: impl FnMut(usize) -> bool,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::BodyBroken)?;
        let Ok(data) = frame.into_data() else { continue };
        if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len() > limit {
            return Err(Refusal::BodyTooLarge { limit });
        }
        if !reserve(data.len()) {
            return Err(Refusal::Overloaded);
        }
        match first {
            None => first = Some(data),
            Some(_) => rest.extend_from_slice(&data),
        }
    }
    Ok(match first {
        None => Bytes::new(),
        Some(first) if rest.is_empty() => first,
        Some(first) => [first, rest.freeze()].concat().into(),
    })
}

/// Most bytes of an unwanted request body that are read and discarded. After that the client can
/// read its refusal instead of a connection reset, and reuse the connection.
const DISCARD_BYTES_MAX: usize = 4 << 20;

/// How long discarding may take.
const DISCARD_MAX: Duration = Duration::from_secs(2);

/// Reads and discards a request body in the background. A body that is larger or slower than the
/// limits ends the connection.
pub fn discard<B>(mut body: B)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let reading = async {
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > DISCARD_BYTES_MAX {
                    return;
                }
            }
        };
        let _ = timeout(DISCARD_MAX, pin!(reading)).await;
    });
}

/// A streamed response body that fails when the upstream is silent for too long.
pub struct SilenceLimit<B> {
    body: B,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> SilenceLimit<B> {
    /// Limits the silence between two frames. No timer runs while frames are ready.
    pub fn new(body: B, limit: Duration) -> SilenceLimit<B> {
        SilenceLimit { body, limit, timer: None }
    }
}

/// The upstream stopped sending in the middle of a response.
#[derive(Debug, thiserror::Error)]
#[error("the upstream fell silent in the middle of its response")]
struct FellSilent;

impl<B> Body for SilenceLimit<B>
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
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(this.limit)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(FellSilent.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
