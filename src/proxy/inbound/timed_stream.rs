//! A client connection with timeouts: for silence, for header blocks, and for answers that the
//! client does not take.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::proxy::inbound::connection_state::ConnectionState;
use crate::proxy::inbound::limits::ServerLimits;
use crate::proxy::inbound::peers::ConnectionPermit;
use crate::proxy::inbound::tls_socket::TlsSocket;

/// How long a closing connection still reads from its client, and how many bytes.
const LINGER_MAX: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// A client connection that ends itself when its client is silent for too long, sends a header
/// block too slowly, or doesn't take its answers.
pub(in crate::proxy) struct TimedStream {
    stream: TlsSocket,
    /// The stream holds the permit, because a tunnel takes the stream over and still counts as a
    /// connection.
    _permit: ConnectionPermit,
    state: Arc<ConnectionState>,
    timer: Pin<Box<Sleep>>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// The time from which the connection waits for a first byte, or for the end of a header block.
    since: Instant,
    /// Whether a header block has begun.
    began: bool,
    /// How many requests had begun at the last check.
    requests_begun: u64,
    /// The time from which the client has not taken the bytes that were written to it.
    stalled: Option<Instant>,
    /// While closing: how many more bytes are read and dropped.
    lingering: Option<usize>,
}

impl TimedStream {
    pub fn new(
        stream: TlsSocket,
        permit: ConnectionPermit,
        state: Arc<ConnectionState>,
        limits: &ServerLimits,
    ) -> TimedStream {
        let since = Instant::now();
        TimedStream {
            stream,
            _permit: permit,
            state,
            // A new connection announces a request: the wait for its header block has begun.
            timer: Box::pin(tokio::time::sleep_until(since + limits.header_timeout)),
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            since,
            began: true,
            requests_begun: 0,
            stalled: None,
            lingering: None,
        }
    }

    /// Returns whether a timeout is over. A connection has one timer. The timer gets a new deadline
    /// only when it fires.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.state.verdict.tunnel.load(Ordering::Acquire) {
            return false;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let stalled = self.stalled.into_iter().chain(self.state.untaken_since());
            if stalled.min().is_some_and(|since| now >= since + self.idle_timeout) {
                return true;
            }
            let begun = self.state.begun.load(Ordering::Acquire);
            let begun_before = std::mem::replace(&mut self.requests_begun, begun);
            if self.state.requests.load(Ordering::Acquire) > 0 || begun != begun_before {
                // A request is or was active. It has timeouts of its own.
                self.since = now;
                self.began = false;
            }
            let in_header = self.began && !self.state.framed.load(Ordering::Acquire);
            let limit = if in_header { self.header_timeout } else { self.idle_timeout };
            if now >= self.since + limit {
                return true;
            }
            let next = (self.since + limit).min(now + self.header_timeout);
            self.timer.as_mut().reset(next);
        }
        false
    }

    /// Processes the result of a write. The next bytes that arrive after an answer begin a new
    /// request. Ends the connection if the client takes nothing for too long.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.began = false;
        if written.is_ready() {
            // On HTTP/2 the written bytes may be the answer to a ping. A ping must not extend the
            // wait.
            if !self.state.framed.load(Ordering::Acquire) {
                self.since = Instant::now();
            }
            self.stalled = None;
            return written;
        }
        if self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
        if self.poll_over(cx) {
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        } else {
            Poll::Pending
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending if self.poll_over(cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
            ready => {
                let idle = self.state.requests.load(Ordering::Acquire) == 0;
                if idle && !self.began && buffer.filled().len() > before {
                    self.since = Instant::now();
                    self.began = true;
                }
                ready
            }
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Reads for a while before it closes. A socket that closes with unread bytes resets the
    /// connection, and the client may get the reset before the last answer. An example is the 431
    /// to a header block that is still being sent.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.state.verdict.tunnel.load(Ordering::Acquire) {
            // The unread bytes belong to the other direction.
            return Pin::new(&mut this.stream).poll_shutdown(cx);
        }
        if this.lingering.is_none() {
            std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.timer.as_mut().reset(Instant::now() + LINGER_MAX);
        }
        let left = this.lingering.get_or_insert(LINGER_BYTES_MAX);
        let mut scratch = [0; 4096];
        while *left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *left = left.saturating_sub(buffer.filled().len())
                }
                Poll::Ready(_) => break,
                Poll::Pending if this.timer.as_mut().poll(cx).is_ready() => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}
