//! A connection to the upstream that records whether a byte of the current request was written, and
//! that writes no byte that the send rule forbids.
//!
//! Danger: an upstream may answer, for example with 413, and close while the request is still being
//! written. The HTTP library would see the failed write before the answer that the system has
//! already received, and the answer would be lost. So a failed write is not reported, and the
//! connection is first read to its end. Its end is then an error, because the answer may be
//! truncated.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gate::SendRule;

/// Records whether a byte of the current request was written to a connection, and how many bytes
/// were read since the request began. An HTTP/1.1 connection carries one request at a time.
#[derive(Debug, Default)]
pub(in crate::proxy) struct WriteTracker {
    written: AtomicBool,
    too_late: AtomicBool,
    /// The error of a write that failed after a part of the request was written. The connection
    /// takes no further request.
    failed: OnceLock<io::ErrorKind>,
    /// The number of bytes that were read since the request began.
    read: AtomicUsize,
    rule: Mutex<Option<Arc<SendRule>>>,
}

impl WriteTracker {
    /// Begins a request. No byte of it is written yet.
    pub fn begin(&self, rule: Option<Arc<SendRule>>) {
        self.written.store(false, Ordering::Release);
        self.too_late.store(false, Ordering::Release);
        self.read.store(0, Ordering::Release);
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = rule;
    }

    /// Returns whether a byte of the request was written.
    pub fn written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// Returns whether the send rule stopped the request.
    pub fn too_late(&self) -> bool {
        self.too_late.load(Ordering::Acquire)
    }

    /// Returns how many bytes were read since the request began, including those of TLS.
    pub fn read(&self) -> usize {
        self.read.load(Ordering::Acquire)
    }

    /// Returns whether a write failed, so that the connection can only be read to its end.
    pub fn failed(&self) -> bool {
        self.failed.get().is_some()
    }

    fn check(&self) -> io::Result<()> {
        let rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        if rule.as_ref().is_some_and(|rule| !rule.allows()) {
            self.too_late.store(true, Ordering::Release);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the claim is too old to send on"));
        }
        Ok(())
    }

    /// Calls `write`, unless the send rule forbids it or an earlier write failed.
    fn write(&self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.check()?;
        if let Some(kind) = self.failed.get() {
            // The reader wakes this task, because a broken connection ends at once.
            return if self.written() { Poll::Pending } else { Poll::Ready(Err((*kind).into())) };
        }
        let written = write();
        match &written {
            Poll::Ready(Ok(1..)) => self.written.store(true, Ordering::Release),
            Poll::Ready(Err(error)) if self.written() => {
                let _ = self.failed.set(error.kind());
                return Poll::Pending;
            }
            _ => {}
        }
        written
    }

    /// Returns an error for the end of the connection if a write failed before.
    fn end(&self) -> io::Result<()> {
        self.failed.get().map_or(Ok(()), |kind| Err((*kind).into()))
    }
}

/// A connection that reports its reads and writes to a [`WriteTracker`].
pub(in crate::proxy) struct Wire<T> {
    io: T,
    tracker: Arc<WriteTracker>,
}

impl<T> Wire<T> {
    pub fn new(io: T, tracker: Arc<WriteTracker>) -> Wire<T> {
        Wire { io, tracker }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        self.tracker.read.fetch_add(read, Ordering::AcqRel);
        if read == 0 && buffer.remaining() > 0 {
            self.tracker.end()?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Wire { io, tracker } = &mut *self;
        tracker.write(|| Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Wire { io, tracker } = &mut *self;
        tracker.write(|| Pin::new(io).poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
