//! Checks the frames that the HTTP/2 library writes to an upstream against the send rule.
//!
//! The library queues a request and may write it much later: when a stream slot becomes free, when
//! the peer opens a window, or when the socket accepts bytes again. After an attempt was given up,
//! or when its claim is too old, no frame of its request is written. The write of such a frame
//! fails, and the connection ends.
//!
//! Danger: the gate is locked while a stream is opened, and opening locks the library's streams. If
//! the library wrote while it holds that lock, two threads could deadlock. Since version 0.4.16, h2
//! does not do this.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gate::SendRule;
use crate::proxy::outbound::frame_scan::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHead, FrameProgress, FrameScan, HEADERS,
    PADDED, RST_STREAM,
};

/// A protected request that is not completely written.
#[derive(Debug)]
struct UnsentRequest {
    rule: Arc<SendRule>,
    /// Whether the header block has END_STREAM. Such a request has no body.
    bodiless: bool,
    /// Whether all of its bytes were given to the layer below.
    written: bool,
}

/// The frames that the gateway writes.
#[derive(Debug)]
struct RequestFrames {
    scan: FrameScan,
    /// Requests by stream.
    unsent: HashMap<u32, UnsentRequest>,
    /// The highest stream with a written header block.
    written: u32,
    /// The highest stream with a flushed header block.
    flushed: u32,
    /// Whether the layer below has bytes that the socket does not accept.
    blocked: bool,
}

/// How much of an answer has arrived.
#[derive(Debug, Default, Clone, Copy)]
struct AnswerProgress {
    /// The length of its body, in bytes. `None` if a part of it is padded and was not counted.
    body: Option<usize>,
    /// Whether the header block that is arriving ends the stream.
    ending: bool,
    /// Whether the end of the answer has arrived.
    ended: bool,
}

/// The frames that the upstream writes.
#[derive(Debug)]
struct AnswerFrames {
    scan: FrameScan,
    /// Answers by stream.
    answers: HashMap<u32, AnswerProgress>,
}

/// Records the requests on one HTTP/2 connection: how much of each was written, and how much of its
/// answer was read.
#[derive(Debug)]
pub(in crate::proxy) struct FrameGate {
    requests: Mutex<RequestFrames>,
    answers: Mutex<AnswerFrames>,
    /// Whether a byte arrived from the peer since the last call of [`FrameGate::take_received`].
    received: AtomicBool,
}

impl FrameGate {
    /// Creates a gate for a new connection.
    pub fn new() -> Arc<FrameGate> {
        let requests = RequestFrames {
            scan: FrameScan::of_client(),
            unsent: HashMap::new(),
            written: 0,
            flushed: 0,
            blocked: false,
        };
        let answers = AnswerFrames { scan: FrameScan::of_server(), answers: HashMap::new() };
        Arc::new(FrameGate {
            requests: Mutex::new(requests),
            answers: Mutex::new(answers),
            received: AtomicBool::new(false),
        })
    }

    fn requests(&self) -> MutexGuard<'_, RequestFrames> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> MutexGuard<'_, AnswerFrames> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream with `open`, which returns the stream's id and a result, and registers the
    /// send rule of the request. No byte is written in between: a frame of an unregistered stream
    /// would pass unchecked.
    pub fn open<T, E>(
        &self,
        rule: Option<&Arc<SendRule>>,
        open: impl FnOnce() -> Result<(u32, T), E>,
    ) -> Result<(u32, T), E> {
        let mut requests = self.requests();
        let (stream, opened) = open()?;
        self.answers()
            .answers
            .insert(stream, AnswerProgress { body: Some(0), ..AnswerProgress::default() });
        if let Some(rule) = rule {
            requests.unsent.insert(
                stream,
                UnsentRequest { rule: rule.clone(), bodiless: false, written: false },
            );
        }
        Ok((stream, opened))
    }

    /// Ends the registration of `stream`, after its answer was read or given up. Returns whether
    /// the connection has to end too, because a part of the request may be in a queue that a reset
    /// of the stream does not clear. A request that may no longer be sent stays registered until
    /// its reset is written. So no frame of it passes before the reset.
    pub fn finish(&self, stream: u32) -> bool {
        self.answers().answers.remove(&stream);
        let mut requests = self.requests();
        let Some(unsent) = requests.unsent.get(&stream) else { return false };
        if requests.flushed < stream || requests.blocked {
            return true;
        }
        if unsent.rule.allows() {
            requests.unsent.remove(&stream);
        }
        false
    }

    /// Ends the registration of `stream`, which the upstream has refused. The upstream ignores the
    /// frames of this stream that are still written.
    pub fn forget(&self, stream: u32) {
        self.answers().answers.remove(&stream);
        self.requests().unsent.remove(&stream);
    }

    /// Returns whether the answer on `stream` ended with a body of `body` bytes, even if the
    /// connection failed after that.
    pub fn has_ended(&self, stream: u32, body: usize) -> bool {
        self.answers()
            .answers
            .get(&stream)
            .is_some_and(|answer| answer.ended && answer.body == Some(body))
    }

    /// Returns whether a byte arrived from the peer since the last call.
    pub fn take_received(&self) -> bool {
        self.received.swap(false, Ordering::AcqRel)
    }
}

impl AnswerFrames {
    /// Records bytes that were read.
    fn read(&mut self, bytes: &[u8]) {
        let AnswerFrames { scan, answers } = self;
        scan.advance(bytes, |progress| {
            let FrameProgress::Ended(FrameHead { kind, flags, stream, length }) = progress else {
                return;
            };
            let Some(answer) = answers.get_mut(&stream) else { return };
            match kind {
                DATA => {
                    answer.body =
                        answer.body.filter(|_| flags & PADDED == 0).map(|body| body + length);
                    answer.ended |= flags & END_STREAM != 0;
                }
                HEADERS => answer.ending |= flags & END_STREAM != 0,
                _ => {}
            }
            answer.ended |=
                matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0 && answer.ending;
        });
    }
}

impl RequestFrames {
    /// Returns whether these bytes may be written: each of their frames must belong to a request
    /// that may still be sent.
    fn permits(&self, bytes: &[u8]) -> bool {
        let mut permitted = true;
        let mut scan = self.scan;
        scan.advance(bytes, |progress| {
            if let FrameProgress::Touched(FrameHead {
                kind: DATA | HEADERS | CONTINUATION,
                stream,
                ..
            }) = progress
                && let Some(unsent) = self.unsent.get(&stream)
            {
                permitted &= unsent.rule.allows() && unsent.rule.hand_over();
            }
        });
        permitted
    }

    /// Records bytes that were written.
    fn wrote(&mut self, bytes: &[u8]) {
        let RequestFrames { scan, unsent, written, .. } = self;
        scan.advance(bytes, |progress| {
            let FrameProgress::Ended(FrameHead { kind, flags, stream, .. }) = progress else {
                return;
            };
            if kind == RST_STREAM {
                unsent.remove(&stream);
            }
            if matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0 {
                *written = stream.max(*written);
            }
            let Some(unsent) = unsent.get_mut(&stream) else { return };
            match kind {
                HEADERS => unsent.bodiless |= flags & END_STREAM != 0,
                DATA => unsent.written |= flags & END_STREAM != 0,
                _ => {}
            }
            unsent.written |= unsent.bodiless && flags & END_HEADERS != 0 && kind != DATA;
        });
    }

    /// Records that all written bytes were flushed.
    fn flushed(&mut self) {
        self.blocked = false;
        self.flushed = self.written;
        if !self.unsent.is_empty() {
            self.unsent.retain(|_, unsent| !unsent.written);
        }
    }
}

/// A connection with a [`FrameGate`] that checks its writes. It is above TLS, because encrypted
/// frames can't be read.
pub(in crate::proxy) struct GatedWire<T> {
    io: T,
    gate: Arc<FrameGate>,
}

impl<T> GatedWire<T> {
    pub fn new(io: T, gate: Arc<FrameGate>) -> GatedWire<T> {
        GatedWire { io, gate }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GatedWire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.gate.received.store(true, Ordering::Release);
            self.gate.answers().read(&buffer.filled()[before..]);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for GatedWire<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut requests = this.gate.requests();
        if !requests.permits(bytes) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a frame of a request that may no longer be sent",
            )));
        }
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        match &written {
            Poll::Ready(Ok(n)) => requests.wrote(&bytes[..*n]),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => requests.blocked = true,
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        match &flushed {
            Poll::Ready(Ok(())) => this.gate.requests().flushed(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => this.gate.requests().blocked = true,
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::proxy::outbound::frame_scan::PREFACE_BYTES;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    fn rule() -> Arc<SendRule> {
        let rule =
            SendRule::new(Clock::system(), Clock::system().boot_ms(), Duration::from_secs(60));
        rule.withhold();
        Arc::new(rule)
    }

    fn open(gate: &FrameGate, stream: u32, rule: &Arc<SendRule>) {
        assert!(gate.open(Some(rule), || Ok::<_, ()>((stream, ()))).is_ok());
    }

    /// Writes bytes if they are permitted, and returns whether they were.
    fn write(gate: &FrameGate, bytes: &[u8]) -> bool {
        let mut requests = gate.requests();
        let permitted = requests.permits(bytes);
        if permitted {
            requests.wrote(bytes);
        }
        permitted
    }

    #[test]
    fn a_request_is_unsent_until_all_of_it_is_flushed_however_its_bytes_are_cut() {
        let head = frame(HEADERS, 0, 1, b"block");
        let rest = [
            frame(CONTINUATION, END_HEADERS, 1, b"more"),
            frame(DATA, 0, 1, b"{"),
            frame(DATA, END_STREAM, 1, b"}"),
        ]
        .concat();
        let all = [&[b'P'; PREFACE_BYTES][..], &frame(4, 0, 0, &[]), &head, &rest].concat();
        for cut in 0..all.len() {
            let (gate, rule) = (FrameGate::new(), rule());
            open(&gate, 1, &rule);
            assert!(write(&gate, &all[..cut]));
            gate.requests().flushed();
            let block_ends = all.len() - 20;
            assert_eq!(
                gate.finish(1),
                cut < block_ends,
                "{cut}: the connection ends if the head is not written"
            );
            open(&gate, 1, &rule);
            assert!(write(&gate, &all[cut..]));
            assert!(gate.requests().unsent.contains_key(&1));
            gate.requests().flushed();
            assert!(gate.requests().unsent.is_empty(), "{cut}");
        }
    }

    #[test]
    fn an_answer_has_ended_when_its_last_frame_is_complete_and_its_whole_body_was_read() {
        let head = |flags| frame(HEADERS, flags, 1, b"block");
        let data = |flags, payload: &[u8]| frame(DATA, flags, 1, payload);
        for (frames, body) in [
            (vec![head(END_HEADERS), data(0, b"ab"), data(END_STREAM, b"c")], Some(3)),
            (vec![head(END_HEADERS | END_STREAM)], Some(0)),
            (vec![head(END_STREAM), frame(CONTINUATION, END_HEADERS, 1, b"more")], Some(0)),
            (vec![head(END_HEADERS), data(0, b"ab"), head(END_HEADERS | END_STREAM)], Some(2)),
            (vec![head(END_HEADERS), data(PADDED | END_STREAM, b"\x01a\0")], None),
            (vec![head(END_HEADERS), data(0, b"ab"), frame(DATA, END_STREAM, 3, b"c")], None),
        ] {
            let (gate, all) = (FrameGate::new(), frames.concat());
            open(&gate, 1, &rule());
            gate.answers().read(&all[..all.len() - 1]);
            assert!((0..9).all(|taken| !gate.has_ended(1, taken)), "{frames:?}");
            gate.answers().read(&all[all.len() - 1..]);
            assert!(
                (0..9).all(|taken| gate.has_ended(1, taken) == (Some(taken) == body)),
                "{frames:?}"
            );
            gate.finish(1);
            assert!(gate.answers().answers.is_empty());
        }
    }

    #[test]
    fn no_frame_of_a_request_passes_after_it_was_given_up() {
        let head =
            |flags| [&[b'P'; PREFACE_BYTES][..], &frame(HEADERS, flags, 1, b"block")].concat();
        let (gate, queued) = (FrameGate::new(), rule());
        open(&gate, 1, &queued);
        assert!(queued.revoke(), "its head is not handed over while the library queues it");
        assert!(!write(&gate, &head(END_HEADERS | END_STREAM)));

        let (gate, sent) = (FrameGate::new(), rule());
        open(&gate, 1, &sent);
        assert!(write(&gate, &head(END_HEADERS)));
        assert!(!sent.revoke(), "it may have been sent");
        gate.requests().flushed();
        assert!(!gate.finish(1), "a reset is enough");
        assert!(!write(&gate, &frame(DATA, END_STREAM, 1, b"{}")));
        assert!(write(&gate, &frame(DATA, END_STREAM, 3, b"{}")), "other requests continue");
        assert!(write(&gate, &frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])));
        assert!(gate.requests().unsent.is_empty());
    }

    #[test]
    fn a_connection_ends_when_a_request_is_given_up_and_the_socket_does_not_accept_its_bytes() {
        let (gate, rule) = (FrameGate::new(), rule());
        open(&gate, 1, &rule);
        assert!(write(
            &gate,
            &[&[b'P'; PREFACE_BYTES][..], &frame(HEADERS, END_HEADERS, 1, b"block")].concat()
        ));
        gate.requests().flushed();
        assert!(write(&gate, &frame(DATA, END_STREAM, 1, b"{}")));
        gate.requests().blocked = true;
        rule.revoke();
        assert!(gate.finish(1));
    }
}
