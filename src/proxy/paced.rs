//! Reads of a bounded size: a reader that finds its buffer filled takes a larger one the next time, and keeps it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read at once. One less than the second of the sizes by which the HTTP/1.1 library's buffers grow, so that
/// they stop there: it has two of them for a request that streams through, and would let each grow to half a megabyte.
const READ_MAX: usize = 16 * 1024 - 1;

/// Reads; no more than [`READ_MAX`] bytes where `bounded`.
pub(super) fn read_some<T: AsyncRead + Unpin>(
    io: &mut T,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
    bounded: bool,
) -> Poll<io::Result<()>> {
    if !bounded || buffer.remaining() <= READ_MAX {
        return Pin::new(io).poll_read(cx, buffer);
    }
    let mut fewer = ReadBuf::new(buffer.initialize_unfilled_to(READ_MAX));
    ready!(Pin::new(io).poll_read(cx, &mut fewer))?;
    let length = fewer.filled().len();
    buffer.advance(length);
    Poll::Ready(Ok(()))
}

/// A connection whose reads are bounded.
pub(super) struct Paced<T>(pub T);

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        read_some(&mut self.0, cx, buffer, true)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
