//! Reads of a bounded size: a reader that gets a full buffer allocates a larger one for the next
//! read, and keeps it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one read. A buffer of the HTTP/1.1 library doubles from 8 KiB whenever a read fills it,
/// and reads of one byte less than 16 KiB stop it at that size. A streamed request has two such
/// buffers, and each could grow to half a megabyte.
const READ_MAX: usize = 16 * 1024 - 1;

/// Reads, with `bounded` at most [`READ_MAX`] bytes.
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

/// A connection with bounded reads.
pub(super) struct BoundedReads<T>(pub T);

impl<T: AsyncRead + Unpin> AsyncRead for BoundedReads<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        read_some(&mut self.0, cx, buffer, true)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for BoundedReads<T> {
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
