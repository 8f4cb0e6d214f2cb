//! Checks the bytes that the HTTP/2 library writes to an upstream, frame by frame, against the send rule.
//!
//! The library queues a request and may write it much later: when a stream slot frees, when the peer opens a
//! window, when the socket takes bytes again. No frame of a request leaves after its attempt was given up or its
//! claim became too old: the write fails, and the connection ends.
//!
//! Danger: a stream is opened while the gate is locked, and the library locks its streams then. So it must never write while
//! it has them locked, or two threads wait for each other: it does not since h2 0.4.16.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gate::SendRule;

/// Length of the connection preface that precedes the frames of a client (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// Frame types and flags (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Head of a frame (RFC 9113, section 4.1).
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Bytes of its payload.
    length: usize,
}

/// Finds the frames in a stream of bytes.
#[derive(Debug, Clone, Copy)]
struct FrameScan {
    preface_left: usize,
    head_bytes: [u8; 9],
    head_length: usize,
    head: Head,
    payload_left: usize,
}

/// What a [`FrameScan`] reports of a frame.
enum Part {
    /// At least one byte of the frame's payload, or the last byte of its head, is among the bytes.
    Touched(Head),
    /// The frame's last byte is among the bytes.
    Ended(Head),
}

impl FrameScan {
    /// Scans what a client writes.
    fn of_client() -> FrameScan {
        FrameScan { preface_left: PREFACE_BYTES, ..FrameScan::of_server() }
    }

    /// Scans what a server writes.
    fn of_server() -> FrameScan {
        FrameScan {
            preface_left: 0,
            head_bytes: [0; 9],
            head_length: 0,
            head: Head::default(),
            payload_left: 0,
        }
    }

    /// Moves over `bytes` and reports the frames in them, in order.
    fn advance(&mut self, mut bytes: &[u8], mut report: impl FnMut(Part)) {
        let skipped = self.preface_left.min(bytes.len());
        self.preface_left -= skipped;
        bytes = &bytes[skipped..];
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let taken = self.payload_left.min(bytes.len());
                self.payload_left -= taken;
                bytes = &bytes[taken..];
                report(Part::Touched(self.head));
            } else {
                self.head_bytes[self.head_length] = *first;
                self.head_length += 1;
                bytes = rest;
                if self.head_length < self.head_bytes.len() {
                    continue;
                }
                self.head_length = 0;
                let [a, b, c, kind, flags, stream @ ..] = self.head_bytes;
                self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
                self.head = Head {
                    kind,
                    flags,
                    stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
                    length: self.payload_left,
                };
                report(Part::Touched(self.head));
            }
            if self.payload_left == 0 {
                report(Part::Ended(self.head));
            }
        }
    }
}

/// A protected request that is not wholly written.
#[derive(Debug)]
struct Unsent {
    rule: Arc<SendRule>,
    /// Its header block carries END_STREAM: there is no body.
    bodiless: bool,
    /// All of its bytes were handed to the layer below.
    written: bool,
}

#[derive(Debug)]
struct Outgoing {
    scan: FrameScan,
    unsent: HashMap<u32, Unsent>,
    /// The highest stream whose header block was written, and flushed.
    written: u32,
    flushed: u32,
    /// The layer below has bytes that the socket does not take.
    blocked: bool,
}

/// How much of an answer the upstream has written.
#[derive(Debug, Default, Clone, Copy)]
struct Arriving {
    /// Bytes of its body; `None` where a part of it is padded and was not counted.
    body: Option<usize>,
    /// The header block that is under way ends the stream.
    ending: bool,
    /// Its end has arrived.
    ended: bool,
}

#[derive(Debug)]
struct Incoming {
    scan: FrameScan,
    answers: HashMap<u32, Arriving>,
}

/// The requests on one HTTP/2 connection, how much of them was written, and how much of their answers was read.
#[derive(Debug)]
pub(in crate::proxy) struct FrameGate {
    outgoing: Mutex<Outgoing>,
    incoming: Mutex<Incoming>,
    /// A byte came from the peer since this was last asked.
    heard: AtomicBool,
}

impl FrameGate {
    /// A gate for a new connection.
    pub fn new() -> Arc<FrameGate> {
        let outgoing = Outgoing {
            scan: FrameScan::of_client(),
            unsent: HashMap::new(),
            written: 0,
            flushed: 0,
            blocked: false,
        };
        let incoming = Incoming { scan: FrameScan::of_server(), answers: HashMap::new() };
        Arc::new(FrameGate {
            outgoing: Mutex::new(outgoing),
            incoming: Mutex::new(incoming),
            heard: AtomicBool::new(false),
        })
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream with `open`, which returns its id beside its result, and registers the rule of the request.
    /// Nothing is written in between: a frame of a stream that is not registered would pass unchecked.
    pub fn open<T, E>(
        &self,
        rule: Option<&Arc<SendRule>>,
        open: impl FnOnce() -> Result<(u32, T), E>,
    ) -> Result<(u32, T), E> {
        let mut outgoing = self.outgoing();
        let (stream, opened) = open()?;
        self.incoming().answers.insert(stream, Arriving { body: Some(0), ..Arriving::default() });
        if let Some(rule) = rule {
            outgoing
                .unsent
                .insert(stream, Unsent { rule: rule.clone(), bodiless: false, written: false });
        }
        Ok((stream, opened))
    }

    /// Ends the registration of `stream`, whose answer nobody reads any more. Returns whether the connection has to
    /// end too: a part of the request is queued where a reset of the stream does not reach it. A request that may
    /// not be sent any more stays registered until its reset is written, so that no frame of it passes before.
    pub fn finish(&self, stream: u32) -> bool {
        self.incoming().answers.remove(&stream);
        let mut outgoing = self.outgoing();
        let Some(unsent) = outgoing.unsent.get(&stream) else { return false };
        if outgoing.flushed < stream || outgoing.blocked {
            return true;
        }
        if unsent.rule.allows() {
            outgoing.unsent.remove(&stream);
        }
        false
    }

    /// Ends the registration of `stream`, which the upstream has refused: what is still written of it has no effect there.
    pub fn forget(&self, stream: u32) {
        self.incoming().answers.remove(&stream);
        self.outgoing().unsent.remove(&stream);
    }

    /// Whether the answer on `stream` came to its end with a body of `body` bytes, whatever became of the connection then.
    pub fn has_ended(&self, stream: u32, body: usize) -> bool {
        self.incoming()
            .answers
            .get(&stream)
            .is_some_and(|answer| answer.ended && answer.body == Some(body))
    }

    /// Whether a byte came from the peer since the last call.
    pub fn take_heard(&self) -> bool {
        self.heard.swap(false, Ordering::AcqRel)
    }
}

impl Incoming {
    fn read(&mut self, bytes: &[u8]) {
        let Incoming { scan, answers } = self;
        scan.advance(bytes, |part| {
            let Part::Ended(Head { kind, flags, stream, length }) = part else { return };
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

impl Outgoing {
    /// Whether these bytes may be written: each frame that they touch belongs to a request that may still be sent.
    fn permits(&self, bytes: &[u8]) -> bool {
        let mut permitted = true;
        let mut scan = self.scan;
        scan.advance(bytes, |part| {
            if let Part::Touched(Head { kind: DATA | HEADERS | CONTINUATION, stream, .. }) = part
                && let Some(unsent) = self.unsent.get(&stream)
            {
                permitted &= unsent.rule.allows() && unsent.rule.hand_over();
            }
        });
        permitted
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let Outgoing { scan, unsent, written, .. } = self;
        scan.advance(bytes, |part| {
            let Part::Ended(Head { kind, flags, stream, .. }) = part else { return };
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

    fn flushed(&mut self) {
        self.blocked = false;
        self.flushed = self.written;
        if !self.unsent.is_empty() {
            self.unsent.retain(|_, unsent| !unsent.written);
        }
    }
}

/// A connection whose writes pass a [`FrameGate`]. It stands above TLS, where frames can be read.
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
            self.gate.heard.store(true, Ordering::Release);
            self.gate.incoming().read(&buffer.filled()[before..]);
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
        let mut outgoing = this.gate.outgoing();
        if !outgoing.permits(bytes) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a request that may not be sent any more",
            )));
        }
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        match &written {
            Poll::Ready(Ok(n)) => outgoing.wrote(&bytes[..*n]),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => outgoing.blocked = true,
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        match &flushed {
            Poll::Ready(Ok(())) => this.gate.outgoing().flushed(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => this.gate.outgoing().blocked = true,
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

    fn opened(gate: &FrameGate, stream: u32, rule: &Arc<SendRule>) {
        assert!(gate.open(Some(rule), || Ok::<_, ()>((stream, ()))).is_ok());
    }

    /// Writes bytes as far as they are permitted.
    fn write(gate: &FrameGate, bytes: &[u8]) -> bool {
        let mut outgoing = gate.outgoing();
        let permitted = outgoing.permits(bytes);
        if permitted {
            outgoing.wrote(bytes);
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
            opened(&gate, 1, &rule);
            assert!(write(&gate, &all[..cut]));
            gate.outgoing().flushed();
            let block_ends = all.len() - 20;
            assert_eq!(
                gate.finish(1),
                cut < block_ends,
                "{cut}: the connection ends where the head is not out"
            );
            opened(&gate, 1, &rule);
            assert!(write(&gate, &all[cut..]));
            assert!(gate.outgoing().unsent.contains_key(&1));
            gate.outgoing().flushed();
            assert!(gate.outgoing().unsent.is_empty(), "{cut}");
        }
    }

    #[test]
    fn an_answer_has_ended_when_its_last_frame_is_whole_and_all_of_its_body_was_taken() {
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
            opened(&gate, 1, &rule());
            gate.incoming().read(&all[..all.len() - 1]);
            assert!((0..9).all(|taken| !gate.has_ended(1, taken)), "{frames:?}");
            gate.incoming().read(&all[all.len() - 1..]);
            assert!(
                (0..9).all(|taken| gate.has_ended(1, taken) == (Some(taken) == body)),
                "{frames:?}"
            );
            gate.finish(1);
            assert!(gate.incoming().answers.is_empty());
        }
    }

    #[test]
    fn no_frame_of_a_request_passes_after_it_was_given_up() {
        let head =
            |flags| [&[b'P'; PREFACE_BYTES][..], &frame(HEADERS, flags, 1, b"block")].concat();
        let (gate, queued) = (FrameGate::new(), rule());
        opened(&gate, 1, &queued);
        assert!(queued.revoke(), "its head is not handed over while it is queued");
        assert!(!write(&gate, &head(END_HEADERS | END_STREAM)));

        let (gate, sent) = (FrameGate::new(), rule());
        opened(&gate, 1, &sent);
        assert!(write(&gate, &head(END_HEADERS)));
        assert!(!sent.revoke(), "it may have been sent");
        gate.outgoing().flushed();
        assert!(!gate.finish(1), "a reset is enough");
        assert!(!write(&gate, &frame(DATA, END_STREAM, 1, b"{}")));
        assert!(write(&gate, &frame(DATA, END_STREAM, 3, b"{}")), "others go on");
        assert!(write(&gate, &frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])));
        assert!(gate.outgoing().unsent.is_empty());
    }

    #[test]
    fn what_the_socket_does_not_take_ends_the_connection_where_its_request_is_given_up() {
        let (gate, rule) = (FrameGate::new(), rule());
        opened(&gate, 1, &rule);
        assert!(write(
            &gate,
            &[&[b'P'; PREFACE_BYTES][..], &frame(HEADERS, END_HEADERS, 1, b"block")].concat()
        ));
        gate.outgoing().flushed();
        assert!(write(&gate, &frame(DATA, END_STREAM, 1, b"{}")));
        gate.outgoing().blocked = true;
        rule.revoke();
        assert!(gate.finish(1));
    }
}
