//! A connection to the upstream that knows whether a byte of the current request was written, and writes none that the
//! send rule forbids.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gate::SendRule;

/// What is known of the request that a connection carries. HTTP/1.1 carries one at a time.
#[derive(Debug, Default)]
pub(super) struct Carried {
    written: AtomicBool,
    too_late: AtomicBool,
    rule: Mutex<Option<Arc<SendRule>>>,
}

impl Carried {
    /// Begins a request: nothing of it is written yet.
    pub fn begin(&self, rule: Option<Arc<SendRule>>) {
        self.written.store(false, Ordering::Release);
        self.too_late.store(false, Ordering::Release);
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

    fn check(&self) -> io::Result<()> {
        let rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        if rule.as_ref().is_some_and(|rule| !rule.allows()) {
            self.too_late.store(true, Ordering::Release);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the claim is too old to send on"));
        }
        Ok(())
    }

    fn count(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(n)) if *n > 0) {
            self.written.store(true, Ordering::Release);
        }
    }
}

/// The connection itself.
pub(super) struct Wire<T> {
    io: T,
    carried: Arc<Carried>,
}

impl<T> Wire<T> {
    pub fn new(io: T, carried: Arc<Carried>) -> Wire<T> {
        Wire { io, carried }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.carried.check()?;
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.carried.count(&written);
        written
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.carried.check()?;
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.carried.count(&written);
        written
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
