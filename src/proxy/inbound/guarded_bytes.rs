//! A client connection behind the byte guard: the parser reads only bytes that the guard has
//! checked.
//!
//! A refused request gets its answer after the requests before it. In its place the parser reads a
//! stand-in, and the server answers the stand-in with the refusal. No client can send the stand-in,
//! because the guard refuses its method.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::gate::Refusal;
use crate::proxy::bounded_read::read_some;
use crate::proxy::inbound::byte_guard::{FrameScanner, FrameVerdict, Scanner};
use crate::proxy::inbound::inflow::InflowAccount;

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The request that the parser reads in place of a refused one. Without a stored refusal, its
/// answer would be 405.
const STAND_IN: &[u8] = b"TRACE / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n";

/// The stand-in on HTTP/2: a ping that is too short ends the connection with a GOAWAY (RFC 9113,
/// section 6.7).
const STAND_IN_FRAME: &[u8] = &[0, 0, 0, 6, 0, 0, 0, 0, 0];

/// If the reader's buffer has less space than this, bytes are read into the guard's own buffer.
/// Each read costs a system call, and the library's search for the HTTP/2 preface reads only a few
/// bytes at a time.
const READ_MIN: usize = 1024;

/// Bytes of one read into the guard's own buffer.
const SCRATCH: usize = 4096;

/// The guard's results about a connection, and the server's message that the connection is a
/// tunnel.
#[derive(Debug, Default)]
pub(in crate::proxy) struct GuardVerdict {
    /// Whether the protocol was switched. If so, the guard passes all bytes on unchecked.
    pub tunnel: AtomicBool,
    refused: OnceLock<Refusal>,
    in_body: AtomicBool,
    /// Numbers of the HTTP/1.1 requests with a target that is forwarded as `*`.
    server_wide: Mutex<VecDeque<u64>>,
}

impl GuardVerdict {
    /// Returns whether the target of a request is forwarded as `*`. `number` is the number of the
    /// request on its connection. Call this once for each request, in order.
    pub fn is_server_wide(&self, number: u64) -> bool {
        let mut server_wide = self.server_wide.lock().unwrap_or_else(PoisonError::into_inner);
        let found = server_wide.front() == Some(&number);
        if found {
            server_wide.pop_front();
        }
        found
    }

    /// Returns the refusal of the connection's last request, if it was refused.
    pub fn refused(&self) -> Option<&Refusal> {
        self.refused.get()
    }

    /// Returns the refusal of a faulty body, after its head was passed on.
    pub fn refused_in_body(&self) -> Option<&Refusal> {
        self.refused.get().filter(|_| self.in_body.load(Ordering::Acquire))
    }
}

/// A stream that checks its bytes before they are read.
pub(in crate::proxy) struct GuardedBytes<T> {
    io: T,
    guard: ConnectionGuard,
    /// Bytes that could not be passed on: their head is not complete, they were refused, or the
    /// reader's buffer was full. Most requests arrive in one piece and are checked in the reader's
    /// buffer, so this is empty for them. It has at most the size of a head and one read.
    held: BytesMut,
    /// How many of the held bytes are safe.
    safe: usize,
    /// The account that counts the bytes in the memory budget.
    account: Option<InflowAccount>,
}

/// Checks the bytes of one connection, in either version of HTTP.
struct ConnectionGuard {
    stage: GuardStage,
    verdict: Arc<GuardVerdict>,
    scanner: Scanner,
    /// `Some` on an HTTP/2 connection.
    frames: Option<FrameScanner>,
    /// The length of the faulty frame after the last safe bytes, and the bytes to pass on in its
    /// place.
    replaced: Option<(usize, Vec<u8>)>,
    /// Whether the reader has to get `Pending` before the rest is checked.
    paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GuardStage {
    /// The version of HTTP is not known yet.
    Opening,
    Http1,
    Http2,
    Tunnel,
    Refused,
    /// The stand-in was handed out; the stream has ended.
    Ended,
}

/// The error that the parser reads in place of the rest of a refused body.
#[derive(Debug, thiserror::Error)]
#[error("the request was refused")]
struct BodyRefused;

impl<T> GuardedBytes<T> {
    /// Guards a new connection. `head_bytes_max` bounds a request's head, in bytes.
    pub fn new(io: T, verdict: Arc<GuardVerdict>, head_bytes_max: usize) -> GuardedBytes<T> {
        let scanner = Scanner::new(head_bytes_max);
        let guard = ConnectionGuard {
            stage: GuardStage::Opening,
            verdict,
            scanner,
            frames: None,
            replaced: None,
            paused: false,
        };
        GuardedBytes { io, guard, held: BytesMut::new(), safe: 0, account: None }
    }

    /// Counts the bytes that arrived and were not read yet in this account.
    pub fn counting(self, account: InflowAccount) -> GuardedBytes<T> {
        GuardedBytes { account: Some(account), ..self }
    }

    /// Counts the bytes that are held back now, and the body bytes that were passed on.
    fn count(&mut self) {
        let Some(account) = &mut self.account else { return };
        let open = self.guard.frames.as_ref().map_or(0, FrameScanner::open_bytes);
        account.set_heads(self.held.len() + open);
        account.add_bodies(self.guard.frames.as_mut().map_or(0, FrameScanner::take_unread));
    }

    /// Hands out the held bytes that are safe.
    fn hand_out(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.safe.min(buffer.remaining());
        buffer.put_slice(&self.held[..length]);
        self.held.advance(length);
        self.safe -= length;
        if self.held.is_empty() {
            // Most connections need the buffer for their first bytes only.
            self.held = BytesMut::new();
        }
    }
}

impl ConnectionGuard {
    /// Checks bytes, which begin with the first unchecked one. Returns how many of them may be
    /// passed on.
    fn check(&mut self, bytes: &[u8]) -> usize {
        if self.stage == GuardStage::Opening {
            if PREFACE.starts_with(bytes) && bytes.len() < PREFACE.len() {
                return 0;
            }
            let http2 = bytes.starts_with(PREFACE);
            self.stage = if http2 { GuardStage::Http2 } else { GuardStage::Http1 };
            self.frames = http2.then(|| FrameScanner::new(Instant::now()));
        }
        if let Some(frames) = &mut self.frames {
            let (safe, verdict) = frames.scan(bytes, Instant::now);
            match verdict {
                FrameVerdict::Incomplete => {}
                FrameVerdict::Pause => self.paused = true,
                FrameVerdict::Replaced(length, bytes) => self.replaced = Some((length, bytes)),
                FrameVerdict::Refused => {
                    tracing::debug!("refused a flood of frames or a corrupt header block");
                    self.stage = GuardStage::Refused;
                }
            }
            return safe;
        }
        let scan = self.scanner.scan(bytes);
        let server_wide = self.scanner.take_server_wide();
        if !server_wide.is_empty() {
            self.verdict
                .server_wide
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(server_wide);
        }
        if let Some(refusal) = scan.refused {
            tracing::debug!(reason = refusal.to_string(), "refused malformed bytes");
            self.stage = GuardStage::Refused;
            let _ = self.verdict.refused.set(refusal);
        }
        scan.safe
    }

    /// Counts bytes that were written to the client.
    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        if let (Some(frames), Poll::Ready(Ok(bytes))) = (&mut self.frames, written) {
            frames.wrote(*bytes);
        }
    }

    /// Checks all held bytes, and replaces faulty frames among them. Returns how many bytes may be
    /// passed on. None of the bytes may have been checked before, except for a faulty frame at
    /// their start that was not replaced yet.
    fn check_held(&mut self, held: &mut BytesMut) -> usize {
        let mut safe = 0;
        loop {
            if let Some((length, bytes)) = self.replaced.take() {
                let behind = held.split_off(safe).split_off(length);
                held.extend_from_slice(&bytes);
                safe = held.len();
                held.extend_from_slice(&behind);
            }
            if self.stage == GuardStage::Refused {
                return safe;
            }
            safe += self.check(&held[safe..]);
            if self.replaced.is_none() || self.paused {
                return safe;
            }
        }
    }

    /// Returns the stand-in for refused bytes.
    ///
    /// # Errors
    /// The refused bytes are in a body, so the body ends with an error.
    fn stand_in(&mut self) -> io::Result<&'static [u8]> {
        if self.frames.is_some() {
            self.stage = GuardStage::Ended;
            return Ok(STAND_IN_FRAME);
        }
        if self.scanner.in_body() {
            self.verdict.in_body.store(true, Ordering::Release);
            return Err(io::Error::new(io::ErrorKind::InvalidData, BodyRefused));
        }
        self.stage = GuardStage::Ended;
        Ok(STAND_IN)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GuardedBytes<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = this.poll_checked(cx, buffer);
        this.count();
        if read.is_pending()
            && let Some(account) = &mut this.account
        {
            account.reader_is_pending();
        }
        read
    }
}

impl<T: AsyncRead + Unpin> GuardedBytes<T> {
    /// Reads bytes that were checked.
    fn poll_checked(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.guard.verdict.tunnel.load(Ordering::Acquire) {
            self.guard.stage = GuardStage::Tunnel;
        }
        loop {
            if self.guard.stage == GuardStage::Tunnel {
                self.safe = self.held.len();
            }
            if self.safe > 0 {
                self.hand_out(buffer);
                return Poll::Ready(Ok(()));
            }
            let GuardedBytes { io, guard, held, safe, account } = self;
            match guard.stage {
                GuardStage::Opening | GuardStage::Http1 | GuardStage::Http2 => {}
                GuardStage::Tunnel => return Pin::new(io).poll_read(cx, buffer),
                GuardStage::Refused => {
                    *held = BytesMut::from(guard.stand_in()?);
                    *safe = held.len();
                    continue;
                }
                GuardStage::Ended => return Poll::Ready(Ok(())),
            }
            if std::mem::take(&mut guard.paused) {
                cx.waker().wake_by_ref();
                if !held.is_empty() {
                    *safe = guard.check_held(held);
                }
                return Poll::Pending;
            }
            if let Some(account) = account {
                ready!(account.poll_memory(cx))?;
            }
            if held.is_empty() && buffer.remaining() >= READ_MIN {
                let before = buffer.filled().len();
                ready!(read_some(io, cx, buffer, guard.stage == GuardStage::Http1))?;
                let fresh = &buffer.filled()[before..];
                if fresh.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let passed = guard.check(fresh);
                held.extend_from_slice(&fresh[passed..]);
                buffer.set_filled(before + passed);
                if guard.replaced.is_some() {
                    *safe = guard.check_held(held);
                }
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut scratch = [0; SCRATCH];
                let mut fresh = ReadBuf::new(&mut scratch);
                ready!(Pin::new(&mut *io).poll_read(cx, &mut fresh))?;
                if fresh.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                held.extend_from_slice(fresh.filled());
                *safe = guard.check_held(held);
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for GuardedBytes<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.guard.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.guard.wrote(&written);
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

#[cfg(test)]
mod tests {
    //! Requests that arrive in pieces, and bytes that are passed on unchecked.

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// The client's end, the guarded end, and the verdict of the guard.
    type GuardedPair = (DuplexStream, GuardedBytes<DuplexStream>, Arc<GuardVerdict>);

    fn guarded() -> GuardedPair {
        let (client, server) = duplex(1 << 16);
        let verdict = Arc::new(GuardVerdict::default());
        (client, GuardedBytes::new(server, verdict.clone(), 1024), verdict)
    }

    /// Reads all bytes, with a buffer of this size.
    async fn read_all(guarded: &mut GuardedBytes<DuplexStream>, size: usize) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; size]);
        while let Ok(length @ 1..) = guarded.read(&mut buffer).await {
            all.extend_from_slice(&buffer[..length]);
        }
        all
    }

    #[tokio::test]
    async fn requests_pass_however_small_the_buffer_of_the_reader_is() {
        let requests = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
            GET /b HTTP/1.1\r\nHost: a\r\n\r\n";
        for size in [1, 24, 4096] {
            let (mut client, mut guarded, verdict) = guarded();
            client.write_all(requests).await.unwrap();
            drop(client);
            assert_eq!(read_all(&mut guarded, size).await, requests);
            assert_eq!(verdict.refused(), None);
            assert_eq!(guarded.held.capacity(), 0, "nothing is kept between requests");
        }
    }

    #[tokio::test]
    async fn a_head_is_passed_on_only_when_it_is_complete() {
        let (mut client, mut guarded, _) = guarded();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut buffer = [0; 4096];
        for byte in &head[..head.len() - 1] {
            client.write_all(&[*byte]).await.unwrap();
            let read =
                tokio::time::timeout(std::time::Duration::ZERO, guarded.read(&mut buffer)).await;
            assert!(read.is_err(), "nothing to read yet");
        }
        client.write_all(b"\n").await.unwrap();
        let length = guarded.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], head);
    }

    #[tokio::test]
    async fn a_refused_request_is_replaced_behind_the_good_ones_and_nothing_follows() {
        let good = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
        for size in [1, 24, 4096] {
            let (mut client, mut guarded, verdict) = guarded();
            client.write_all(good).await.unwrap();
            client
                .write_all(b"GET /bad HTTP/1.1\nHost: a\n\nGET /after HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            assert_eq!(read_all(&mut guarded, size).await, [&good[..], STAND_IN].concat());
            assert!(verdict.refused().is_some() && verdict.refused_in_body().is_none());
        }
    }

    #[tokio::test]
    async fn a_body_that_is_refused_breaks_off() {
        let (mut client, mut guarded, verdict) = guarded();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(head).await.unwrap();
        client.write_all(b"+5\r\nhello\r\n0\r\n\r\n").await.unwrap();
        assert_eq!(read_all(&mut guarded, 4096).await, head);
        assert!(verdict.refused_in_body().is_some());
    }

    #[tokio::test]
    async fn http2_and_tunnels_are_passed_on() {
        for size in [1, 24, 4096] {
            let (mut client, mut guarded, verdict) = guarded();
            let bytes = [PREFACE, b"\0\0\x03\0\0\0\0\0\x01\n\r any bytes"].concat();
            client.write_all(&bytes).await.unwrap();
            drop(client);
            assert_eq!(read_all(&mut guarded, size).await, bytes);
            assert_eq!(verdict.refused(), None);
        }
        let (mut client, mut guarded, verdict) = guarded_after_upgrade().await;
        client.write_all(b"\x81\x02hi").await.unwrap();
        drop(client);
        verdict.tunnel.store(true, Ordering::Release);
        assert_eq!(
            read_all(&mut guarded, 4096).await,
            b"\x81\x02early\x81\x02hi",
            "the early bytes too"
        );
    }

    /// A client that requested an upgrade, and sent its first frame without waiting for the answer.
    async fn guarded_after_upgrade() -> GuardedPair {
        let (mut client, mut guarded, verdict) = guarded();
        let head =
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(&[&head[..], b"\x81\x02early"].concat()).await.unwrap();
        let mut buffer = [0; 4096];
        let length = guarded.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], head);
        (client, guarded, verdict)
    }

    #[tokio::test]
    async fn a_connection_that_only_begins_like_http2_is_http1() {
        let (mut client, mut guarded, verdict) = guarded();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(read_all(&mut guarded, 4096).await, STAND_IN);
        assert!(verdict.refused().is_some());
    }
}
