//! Reads of a bounded size. After a read that fills its buffer, the HTTP library allocates a larger
//! buffer and keeps it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one read. The HTTP/1.1 library begins with a buffer of 8 KiB, and doubles the buffer
/// whenever a read fills it. Reads that are one byte shorter than 16 KiB never fill the buffer of
/// 16 KiB. Without the bound, each of a streamed request's two buffers could grow to half a
/// megabyte.
const READ_MAX: usize = 16 * 1024 - 1;

/// Reads from a connection. If `bounded`, a read takes at most [`READ_MAX`] bytes.
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
