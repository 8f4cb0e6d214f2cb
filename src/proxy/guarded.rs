//! A client connection behind the byte guard: the parser reads only what the guard has judged.
//!
//! What is refused is answered in its turn, after the requests before it: in its place the parser reads a stand-in, a
//! request that no client can send, because the guard refuses its method. The server answers it with the refusal.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::Scanner;
use crate::gate::Problem;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the parser reads in place of a refused request. Should it ever be answered as itself, that is 405.
const STAND_IN: &[u8] = b"TRACE / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n";

/// Where the reader has less room than this, bytes are read into the guard's own buffer: a read costs a system call,
/// and whoever looks for HTTP/2's preface asks for no more bytes than that has.
const READ_MIN: usize = 1024;

/// Bytes that are read at once into the guard's own buffer.
const SCRATCH: usize = 4096;

/// What the guard and the server tell each other about a connection.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// The protocol was switched: the bytes are the two ends' own.
    pub tunnel: AtomicBool,
    refused: OnceLock<Problem>,
    in_body: AtomicBool,
}

impl Verdict {
    /// Why the connection's last request was refused, once it was.
    pub fn refused(&self) -> Option<&Problem> {
        self.refused.get()
    }

    /// The same, where the request's body was at fault: its head had been passed on.
    pub fn refused_in_body(&self) -> Option<&Problem> {
        self.refused.get().filter(|_| self.in_body.load(Ordering::Acquire))
    }
}

/// A stream whose bytes are judged before they are read.
pub(super) struct Guarded<T> {
    io: T,
    verdict: Arc<Verdict>,
    stage: Stage,
    scanner: Scanner,
    /// What could not be passed on: its head is not complete, it was refused, or the reader had no room. Empty for most
    /// requests, which come in one piece and are judged where they lie. No longer than a head and one read.
    held: BytesMut,
    /// How many of them were found safe.
    safe: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It may still become HTTP/2.
    Opening,
    Http1,
    /// HTTP/2, whose frames leave no two readings, or a tunnel.
    Unjudged,
    Refused,
    /// The stand-in was handed out.
    Over,
}

/// The end of a body that was refused, as the parser hears of it.
#[derive(Debug, thiserror::Error)]
#[error("the request was refused")]
struct Refused;

impl<T> Guarded<T> {
    /// Guards a new connection. `head_bytes_max` bounds a request's head, in bytes.
    pub fn new(io: T, verdict: Arc<Verdict>, head_bytes_max: usize) -> Guarded<T> {
        let scanner = Scanner::new(head_bytes_max);
        Guarded { io, verdict, stage: Stage::Opening, scanner, held: BytesMut::new(), safe: 0 }
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

/// How many of the bytes that begin with the first unjudged one may be passed on.
fn judge(stage: &mut Stage, scanner: &mut Scanner, verdict: &Verdict, bytes: &[u8]) -> usize {
    if *stage == Stage::Opening {
        if bytes.starts_with(PREFACE) {
            *stage = Stage::Unjudged;
            return bytes.len();
        }
        if PREFACE.starts_with(bytes) {
            return 0;
        }
        *stage = Stage::Http1;
    }
    let scan = scanner.scan(bytes);
    if let Some(problem) = scan.refused {
        tracing::debug!(reason = problem.to_string(), "malformed bytes were refused");
        *stage = Stage::Refused;
        let _ = verdict.refused.set(problem);
    }
    scan.safe
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.verdict.tunnel.load(Ordering::Acquire) {
            this.stage = Stage::Unjudged;
        }
        loop {
            if this.stage == Stage::Unjudged {
                this.safe = this.held.len();
            }
            if this.safe > 0 {
                this.hand_out(buffer);
                return Poll::Ready(Ok(()));
            }
            match this.stage {
                Stage::Unjudged => return Pin::new(&mut this.io).poll_read(cx, buffer),
                Stage::Refused if this.scanner.in_body() => {
                    this.verdict.in_body.store(true, Ordering::Release);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, Refused)));
                }
                Stage::Refused => {
                    this.stage = Stage::Over;
                    (this.held, this.safe) = (BytesMut::from(STAND_IN), STAND_IN.len());
                    continue;
                }
                Stage::Over => return Poll::Ready(Ok(())),
                Stage::Opening | Stage::Http1 => {}
            }
            let Guarded { io, verdict, stage, scanner, held, safe } = this;
            if held.is_empty() && buffer.remaining() >= READ_MIN {
                let before = buffer.filled().len();
                ready!(Pin::new(io).poll_read(cx, buffer))?;
                let fresh = &buffer.filled()[before..];
                if fresh.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let passed = judge(stage, scanner, verdict, fresh);
                held.extend_from_slice(&fresh[passed..]);
                buffer.set_filled(before + passed);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut scratch = [0; SCRATCH];
                let mut fresh = ReadBuf::new(&mut scratch);
                ready!(Pin::new(io).poll_read(cx, &mut fresh))?;
                if fresh.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                held.extend_from_slice(fresh.filled());
                *safe = judge(stage, scanner, verdict, held);
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
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

    fn guarded() -> (DuplexStream, Guarded<DuplexStream>, Arc<Verdict>) {
        let (client, server) = duplex(1 << 16);
        let verdict = Arc::new(Verdict::default());
        (client, Guarded::new(server, verdict.clone(), 1024), verdict)
    }

    /// Reads with this much room, until nothing more comes.
    async fn read_all(guarded: &mut Guarded<DuplexStream>, room: usize) -> Vec<u8> {
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
            let read = tokio::time::timeout(std::time::Duration::ZERO, guarded.read(&mut buffer)).await;
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
            client.write_all(b"GET /bad HTTP/1.1\nHost: a\n\nGET /after HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
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
            let bytes = [PREFACE, b"\0\x01\n\r any bytes"].concat();
            client.write_all(&bytes).await.unwrap();
            drop(client);
            assert_eq!(read_all(&mut guarded, room).await, bytes);
            assert_eq!(verdict.refused(), None);
        }
        let (mut client, mut guarded, verdict) = guarded_after_upgrade().await;
        client.write_all(b"\x81\x02hi").await.unwrap();
        drop(client);
        verdict.tunnel.store(true, Ordering::Release);
        assert_eq!(read_all(&mut guarded, 4096).await, b"\x81\x02early\x81\x02hi", "what came early too");
    }

    /// A client that asked for an upgrade, and sent its first frame without waiting for the answer.
    async fn guarded_after_upgrade() -> (DuplexStream, Guarded<DuplexStream>, Arc<Verdict>) {
        let (mut client, mut guarded, verdict) = guarded();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
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
