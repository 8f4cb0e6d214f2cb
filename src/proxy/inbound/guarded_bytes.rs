//! A client connection behind the byte guard: the parser reads only what the guard has judged.
//!
//! What is refused is answered in its turn, after the requests before it: in its place the parser reads a stand-in, a
//! request that no client can send, because the guard refuses its method. The server answers it with the refusal.

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
use crate::proxy::inbound::byte_guard::{FrameFault, Frames, Scanner};
use crate::proxy::inbound::inflow::Account;
use crate::proxy::paced::read_some;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the parser reads in place of a refused request. Should it ever be answered as itself, that is 405.
const STAND_IN: &[u8] = b"TRACE / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n";

/// The same in HTTP/2: a ping that is too short ends the connection with a GOAWAY (RFC 9113, section 6.7).
const STAND_IN_FRAME: &[u8] = &[0, 0, 0, 6, 0, 0, 0, 0, 0];

/// Where the reader has less room than this, bytes are read into the guard's own buffer: a read costs a system call,
/// and whoever looks for HTTP/2's preface asks for no more bytes than that has.
const READ_MIN: usize = 1024;

/// Bytes that are read at once into the guard's own buffer.
const SCRATCH: usize = 4096;

/// What the guard and the server tell each other about a connection.
#[derive(Debug, Default)]
pub(in crate::proxy) struct GuardVerdict {
    /// The protocol was switched: the bytes are the two ends' own.
    pub tunnel: AtomicBool,
    refused: OnceLock<Refusal>,
    in_body: AtomicBool,
    /// The numbers of the requests on an HTTP/1.1 connection whose target is to be forwarded as `*`.
    server_wide: Mutex<VecDeque<u64>>,
}

impl GuardVerdict {
    /// Whether the target of the request with this number on the connection is to be forwarded as
    /// `*`. Requests are asked for in their order.
    pub fn is_server_wide(&self, number: u64) -> bool {
        let mut server_wide = self.server_wide.lock().unwrap_or_else(PoisonError::into_inner);
        let found = server_wide.front() == Some(&number);
        if found {
            server_wide.pop_front();
        }
        found
    }

    /// Why the connection's last request was refused, once it was.
    pub fn refused(&self) -> Option<&Refusal> {
        self.refused.get()
    }

    /// The same, where the request's body was at fault: its head had been passed on.
    pub fn refused_in_body(&self) -> Option<&Refusal> {
        self.refused.get().filter(|_| self.in_body.load(Ordering::Acquire))
    }
}

/// A stream whose bytes are judged before they are read.
pub(in crate::proxy) struct GuardedBytes<T> {
    io: T,
    judge: Judge,
    /// What could not be passed on: its head is not complete, it was refused, or the reader had no room. Empty for most
    /// requests, which come in one piece and are judged where they lie. No longer than a head and one read.
    held: BytesMut,
    /// How many of them were found safe.
    safe: usize,
    /// What is counted in the common buffers.
    account: Option<Account>,
}

/// Who looks at the bytes.
struct Judge {
    stage: Stage,
    verdict: Arc<GuardVerdict>,
    scanner: Scanner,
    /// Of an HTTP/2 connection.
    frames: Option<Frames>,
    /// The length of the frame behind the bytes last found safe, and the bytes to pass on in its place.
    replaced: Option<(usize, Vec<u8>)>,
    /// The reader is to find that there is nothing more for now, before the rest is looked at.
    paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It may still become HTTP/2.
    Opening,
    Http1,
    Http2,
    Tunnel,
    Refused,
    /// The stand-in was handed out.
    ClaimOver,
}

/// The end of a body that was refused, as the parser hears of it.
#[derive(Debug, thiserror::Error)]
#[error("the request was refused")]
struct Refused;

impl<T> GuardedBytes<T> {
    /// Guards a new connection. `head_bytes_max` bounds a request's head, in bytes.
    pub fn new(io: T, verdict: Arc<GuardVerdict>, head_bytes_max: usize) -> GuardedBytes<T> {
        let scanner = Scanner::new(head_bytes_max);
        let judge = Judge {
            stage: Stage::Opening,
            verdict,
            scanner,
            frames: None,
            replaced: None,
            paused: false,
        };
        GuardedBytes { io, judge, held: BytesMut::new(), safe: 0, account: None }
    }

    /// The same, with bytes counted that came in and were not taken yet.
    pub fn counting(self, account: Account) -> GuardedBytes<T> {
        GuardedBytes { account: Some(account), ..self }
    }

    /// Counts what is held back now, and what was passed on.
    fn count(&mut self) {
        let Some(account) = &mut self.account else { return };
        let open = self.judge.frames.as_ref().map_or(0, Frames::open_bytes);
        account.heads(self.held.len() + open);
        account.bodies(self.judge.frames.as_mut().map_or(0, Frames::take_unread));
    }

    /// Hands out what is safe of what is held.
    fn hand_out(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.safe.min(buffer.remaining());
        buffer.put_slice(&self.held[..length]);
        self.held.advance(length);
        self.safe -= length;
        if self.held.is_empty() {
            // Most connections need it for their first bytes only.
            self.held = BytesMut::new();
        }
    }
}

impl Judge {
    /// Judges bytes that begin with the first unjudged one: how many of them may be passed on.
    fn judge(&mut self, bytes: &[u8]) -> usize {
        if self.stage == Stage::Opening {
            if PREFACE.starts_with(bytes) && bytes.len() < PREFACE.len() {
                return 0;
            }
            let http2 = bytes.starts_with(PREFACE);
            self.stage = if http2 { Stage::Http2 } else { Stage::Http1 };
            self.frames = http2.then(|| Frames::new(Instant::now()));
        }
        if let Some(frames) = &mut self.frames {
            let (safe, found) = frames.scan(bytes, Instant::now);
            match found {
                FrameFault::Nothing => {}
                FrameFault::Pause => self.paused = true,
                FrameFault::Replaced(length, bytes) => self.replaced = Some((length, bytes)),
                FrameFault::Refused => {
                    tracing::debug!("a flood of frames, or a corrupt header block, was refused");
                    self.stage = Stage::Refused;
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
        if let Some(problem) = scan.refused {
            tracing::debug!(reason = problem.to_string(), "malformed bytes were refused");
            self.stage = Stage::Refused;
            let _ = self.verdict.refused.set(problem);
        }
        scan.safe
    }

    /// Notes what was written to the client.
    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        if let (Some(frames), Poll::Ready(Ok(bytes))) = (&mut self.frames, written) {
            frames.wrote(*bytes);
        }
    }

    /// Judges all held bytes, none of which were judged before or which begin with a frame that is to
    /// be replaced: how many of them may be passed on. Faulty frames are replaced where they lie.
    fn judge_held(&mut self, held: &mut BytesMut) -> usize {
        let mut safe = 0;
        loop {
            if let Some((length, bytes)) = self.replaced.take() {
                let behind = held.split_off(safe).split_off(length);
                held.extend_from_slice(&bytes);
                safe = held.len();
                held.extend_from_slice(&behind);
            }
            if self.stage == Stage::Refused {
                return safe;
            }
            safe += self.judge(&held[safe..]);
            if self.replaced.is_none() || self.paused {
                return safe;
            }
        }
    }

    /// What the reader gets in place of what was refused: a stand-in, or, in the middle of a body, its breaking off.
    fn stand_in(&mut self) -> io::Result<&'static [u8]> {
        if self.frames.is_some() {
            self.stage = Stage::ClaimOver;
            return Ok(STAND_IN_FRAME);
        }
        if self.scanner.in_body() {
            self.verdict.in_body.store(true, Ordering::Release);
            return Err(io::Error::new(io::ErrorKind::InvalidData, Refused));
        }
        self.stage = Stage::ClaimOver;
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
        let read = this.poll_judged(cx, buffer);
        this.count();
        if read.is_pending()
            && let Some(account) = &mut this.account
        {
            account.nothing_more();
        }
        read
    }
}

impl<T: AsyncRead + Unpin> GuardedBytes<T> {
    /// Reads what was judged.
    fn poll_judged(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.judge.verdict.tunnel.load(Ordering::Acquire) {
            self.judge.stage = Stage::Tunnel;
        }
        loop {
            if self.judge.stage == Stage::Tunnel {
                self.safe = self.held.len();
            }
            if self.safe > 0 {
                self.hand_out(buffer);
                return Poll::Ready(Ok(()));
            }
            let GuardedBytes { io, judge, held, safe, account } = self;
            match judge.stage {
                Stage::Opening | Stage::Http1 | Stage::Http2 => {}
                Stage::Tunnel => return Pin::new(io).poll_read(cx, buffer),
                Stage::Refused => {
                    *held = BytesMut::from(judge.stand_in()?);
                    *safe = held.len();
                    continue;
                }
                Stage::ClaimOver => return Poll::Ready(Ok(())),
            }
            if std::mem::take(&mut judge.paused) {
                cx.waker().wake_by_ref();
                if !held.is_empty() {
                    *safe = judge.judge_held(held);
                }
                return Poll::Pending;
            }
            if let Some(account) = account {
                ready!(account.poll_room(cx))?;
            }
            if held.is_empty() && buffer.remaining() >= READ_MIN {
                let before = buffer.filled().len();
                ready!(read_some(io, cx, buffer, judge.stage == Stage::Http1))?;
                let fresh = &buffer.filled()[before..];
                if fresh.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let passed = judge.judge(fresh);
                held.extend_from_slice(&fresh[passed..]);
                buffer.set_filled(before + passed);
                if judge.replaced.is_some() {
                    *safe = judge.judge_held(held);
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
                *safe = judge.judge_held(held);
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
        self.judge.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.judge.wrote(&written);
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
    //! Requests in pieces, and what is not judged.

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn guarded() -> (DuplexStream, GuardedBytes<DuplexStream>, Arc<GuardVerdict>) {
        let (client, server) = duplex(1 << 16);
        let verdict = Arc::new(GuardVerdict::default());
        (client, GuardedBytes::new(server, verdict.clone(), 1024), verdict)
    }

    /// Reads with this much room, until nothing more comes.
    async fn read_all(guarded: &mut GuardedBytes<DuplexStream>, room: usize) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; room]);
        while let Ok(length @ 1..) = guarded.read(&mut buffer).await {
            all.extend_from_slice(&buffer[..length]);
        }
        all
    }

    #[tokio::test]
    async fn requests_pass_whatever_room_the_reader_has() {
        let requests = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n";
        for room in [1, 24, 4096] {
            let (mut client, mut guarded, verdict) = guarded();
            client.write_all(requests).await.unwrap();
            drop(client);
            assert_eq!(read_all(&mut guarded, room).await, requests);
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
        for room in [1, 24, 4096] {
            let (mut client, mut guarded, verdict) = guarded();
            client.write_all(good).await.unwrap();
            client
                .write_all(b"GET /bad HTTP/1.1\nHost: a\n\nGET /after HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            assert_eq!(read_all(&mut guarded, room).await, [&good[..], STAND_IN].concat());
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
    async fn http2_and_tunnels_are_not_judged() {
        for room in [1, 24, 4096] {
            let (mut client, mut guarded, verdict) = guarded();
            let bytes = [PREFACE, b"\0\0\x03\0\0\0\0\0\x01\n\r any bytes"].concat();
            client.write_all(&bytes).await.unwrap();
            drop(client);
            assert_eq!(read_all(&mut guarded, room).await, bytes);
            assert_eq!(verdict.refused(), None);
        }
        let (mut client, mut guarded, verdict) = guarded_after_upgrade().await;
        client.write_all(b"\x81\x02hi").await.unwrap();
        drop(client);
        verdict.tunnel.store(true, Ordering::Release);
        assert_eq!(
            read_all(&mut guarded, 4096).await,
            b"\x81\x02early\x81\x02hi",
            "what came early too"
        );
    }

    /// A client that asked for an upgrade, and sent its first frame without waiting for the answer.
    async fn guarded_after_upgrade() -> (DuplexStream, GuardedBytes<DuplexStream>, Arc<GuardVerdict>)
    {
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
