//! A connection to the upstream that knows whether a byte of the current request was written, and writes none that the
//! send rule forbids.
//!
//! Danger: an upstream may answer and close while the request is still being written, such as with 413. The failed write
//! then reaches the HTTP library before the answer that the system has already received, and an answer that exists would
//! count as none. So the failure of a write is not reported: the connection is read to its end first. Its end is then an
//! error, since it cannot be told from an answer that was cut.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gate::SendRule;

/// What is known of the request that a connection carries. HTTP/1.1 carries one at a time.
#[derive(Debug, Default)]
pub(in crate::proxy) struct WriteTracker {
    written: AtomicBool,
    too_late: AtomicBool,
    /// A write of a request that was partly written failed: the connection takes no further request.
    failed: OnceLock<io::ErrorKind>,
    /// Bytes that were read since the request began.
    read: AtomicUsize,
    rule: Mutex<Option<Arc<SendRule>>>,
}

impl WriteTracker {
    /// Begins a request: nothing of it is written yet.
    pub fn begin(&self, rule: Option<Arc<SendRule>>) {
        self.written.store(false, Ordering::Release);
        self.too_late.store(false, Ordering::Release);
        self.read.store(0, Ordering::Release);
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = rule;
    }

    /// Whether a byte of it went out.
    pub fn written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// Whether the send rule stopped it.
    pub fn too_late(&self) -> bool {
        self.too_late.load(Ordering::Acquire)
    }

    /// Bytes that were read since it began, those of TLS included.
    pub fn read(&self) -> usize {
        self.read.load(Ordering::Acquire)
    }

    /// Whether a write failed, so that the connection can only be read to its end.
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

    /// Writes by `write`, unless the send rule forbids it or a write failed before.
    fn write(&self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.check()?;
        if let Some(kind) = self.failed.get() {
            // The reader wakes whoever waits here: its end comes at once, since the connection is broken.
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

    /// The end of the connection, after a write failed: an error.
    fn end(&self) -> io::Result<()> {
        self.failed.get().map_or(Ok(()), |kind| Err((*kind).into()))
    }
}

/// The connection itself.
pub(in crate::proxy) struct Wire<T> {
    io: T,
    carried: Arc<WriteTracker>,
}

impl<T> Wire<T> {
    pub fn new(io: T, carried: Arc<WriteTracker>) -> Wire<T> {
        Wire { io, carried }
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
        self.carried.read.fetch_add(read, Ordering::AcqRel);
        if read == 0 && buffer.remaining() > 0 {
            self.carried.end()?;
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
        let Wire { io, carried } = &mut *self;
        carried.write(|| Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Wire { io, carried } = &mut *self;
        carried.write(|| Pin::new(io).poll_write_vectored(cx, bytes))
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
