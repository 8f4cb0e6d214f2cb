//! The guard of HTTP/2: its frames leave no two readings, but some make work and carry nothing, and those are counted. So
//! are header fields and body bytes, which the library behind keeps until somebody takes them.
//!
//! Danger: a frame of nine bytes can cost an answer, an opened and a cancelled request, or a place in a table. The
//! library behind bounds what it keeps of them in memory, not how many it works through (CVE-2019-9512, CVE-2023-44487).

use std::time::Duration;

use tokio::time::Instant;

use super::block::Block;
use crate::proxy::server::FIELDS_MAX;

/// How many frames that carry nothing a client may send in a period. A decent one sends a few: pings, a changed setting,
/// and the end of requests that it gives up, of which it has at most as many as it may have open.
const IDLE_FRAMES_MAX: u32 = 1000;
const PERIOD: Duration = Duration::from_secs(10);

/// As how many frames that carry nothing a header block with too many fields counts: it is decoded and then refused.
const REFUSED_BLOCK: u32 = 50;

/// Bytes written to the client that pay for one WINDOW_UPDATE: the smallest frame of an answer's body takes ten, and asks
/// for two of them. Others carry nothing.
const WINDOW_UPDATE_BYTES: usize = 5;

/// How many written bytes are remembered for that, at most.
const WRITTEN_MAX: usize = 1 << 20;

/// Pseudo-fields that a request may have beside its fields (RFC 9113, section 8.3.1; RFC 8441).
const PSEUDO_FIELDS: usize = 5;

/// What header blocks may cost in memory before the library behind has to hand their requests on: it would read all that
/// is there first, and decode a hundred requests before the first can be refused.
const BLOCKS_BYTES_MAX: usize = 64 * 1024;

/// What a frame of a body costs in memory at least, in bytes, while it waits to be taken: a read's buffer.
pub(in crate::proxy) const DATA_BYTES_MIN: usize = 8 * 1024;

/// The connection preface (RFC 9113, section 3.4) and a frame's header (section 4.1), in bytes.
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// Follows the frames of one HTTP/2 connection.
#[derive(Debug)]
pub struct Frames {
    header: [u8; HEADER_BYTES],
    filled: usize,
    /// What is left of the frame, or of the preface.
    left: usize,
    idle: u32,
    since: Instant,
    flooded: bool,
    /// Bytes written to the client that no WINDOW_UPDATE has used up.
    written: usize,
    /// The header block that has begun and not ended.
    block: Option<Block>,
    /// Of the frame: which of its bytes belong to the block.
    fragment: Fragment,
    /// The frame ends its block.
    ends_block: bool,
    /// The highest stream that was opened; a header block on a lower one is a body's trailers.
    opened: u32,
    trailers: bool,
    /// What the blocks since the last pause cost.
    blocks_bytes: usize,
    /// What the bodies' frames cost that were seen since this was last asked.
    unread: usize,
}

/// Where a frame's payload belongs to a header block.
#[derive(Debug, Default, Clone, Copy)]
struct Fragment {
    /// The first byte says how much padding there is.
    padded: bool,
    /// Bytes before the block, without that one.
    before: usize,
    /// Bytes of the block. Padding follows.
    left: usize,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// All bytes may be passed on.
    All,
    /// So many bytes may be passed on, and the others after whoever reads has been told that there is nothing more for now.
    Pause(usize),
    /// So many bytes may be passed on, which end with a whole frame, and no others ever.
    Flood(usize),
}

impl Frames {
    /// At the beginning of a connection, preface included.
    pub fn new(now: Instant) -> Frames {
        Frames {
            header: [0; HEADER_BYTES],
            filled: 0,
            left: PREFACE_BYTES,
            idle: 0,
            since: now,
            flooded: false,
            written: 0,
            block: None,
            fragment: Fragment::default(),
            ends_block: false,
            opened: 0,
            trailers: false,
            blocks_bytes: 0,
            unread: 0,
        }
    }

    /// Notes bytes that were written to the client.
    pub fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes).min(WRITTEN_MAX);
    }

    /// What the header block costs in memory that has begun and not ended, in bytes.
    pub fn open_bytes(&self) -> usize {
        self.block.as_ref().map_or(0, Block::cost)
    }

    /// What the bodies' frames cost in memory, trailers included, that were seen since this was last asked.
    pub fn take_unread(&mut self) -> usize {
        std::mem::take(&mut self.unread)
    }

    /// Looks at the next bytes, which follow those that were passed on before.
    pub fn scan(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> Passed {
        let mut at = 0;
        loop {
            let skipped = self.left.min(bytes.len() - at);
            self.payload(&bytes[at..at + skipped]);
            at += skipped;
            self.left -= skipped;
            if self.left > 0 {
                return Passed::All;
            }
            if std::mem::take(&mut self.ends_block) {
                self.end_block(&now);
            }
            if self.flooded {
                return Passed::Flood(at);
            }
            if self.blocks_bytes > BLOCKS_BYTES_MAX {
                self.blocks_bytes = 0;
                return Passed::Pause(at);
            }
            let Some(&byte) = bytes.get(at) else { return Passed::All };
            self.header[self.filled] = byte;
            self.filled += 1;
            at += 1;
            if self.filled == HEADER_BYTES {
                self.filled = 0;
                self.frame(&now);
            }
        }
    }

    /// A frame's header is complete.
    fn frame(&mut self, now: impl Fn() -> Instant) {
        let [high, middle, low, kind, flags, stream @ ..] = self.header;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.fragment = Fragment::default();
        let carries = match kind {
            DATA => self.data(flags),
            HEADERS => self.begin_block(flags, u32::from_be_bytes(stream) & (u32::MAX >> 1)),
            CONTINUATION => {
                self.fragment.left = self.left;
                self.ends_block = flags & END_HEADERS != 0;
                false
            }
            WINDOW_UPDATE => match self.written.checked_sub(WINDOW_UPDATE_BYTES) {
                Some(left) => {
                    self.written = left;
                    true
                }
                None => false,
            },
            _ => false,
        };
        if !carries {
            self.idle(1, now);
        }
    }

    /// A frame of a body; whether it carries anything.
    fn data(&mut self, flags: u8) -> bool {
        let carries = self.left > 0 || flags & END_STREAM != 0;
        if carries {
            self.unread = self.unread.saturating_add(self.left.max(DATA_BYTES_MIN));
        }
        carries
    }

    fn begin_block(&mut self, flags: u8, stream: u32) -> bool {
        self.block = Some(Block::default());
        self.trailers = stream <= self.opened;
        self.opened = self.opened.max(stream);
        let padded = flags & PADDED != 0;
        let before = if flags & PRIORITY != 0 { 5 } else { 0 };
        self.fragment = Fragment { padded, before, left: self.left.saturating_sub(before + usize::from(padded)) };
        self.ends_block = flags & END_HEADERS != 0;
        true
    }

    /// Looks at a part of a frame's payload.
    fn payload(&mut self, mut bytes: &[u8]) {
        let Some(block) = &mut self.block else { return };
        let Fragment { padded, before, left } = &mut self.fragment;
        if *padded && let Some((&padding, rest)) = bytes.split_first() {
            (*padded, bytes) = (false, rest);
            *left = left.saturating_sub(usize::from(padding));
        }
        let skipped = bytes.len().min(*before);
        *before -= skipped;
        let length = (bytes.len() - skipped).min(*left);
        *left -= length;
        block.scan(&bytes[skipped..skipped + length]);
    }

    /// A header block is complete.
    fn end_block(&mut self, now: impl Fn() -> Instant) {
        let Some(block) = self.block.take() else { return };
        let too_many = block.fields() > FIELDS_MAX + PSEUDO_FIELDS;
        if self.trailers {
            // Nobody looks at them before the body was read: they can't be refused by an answer.
            self.flooded |= too_many;
            self.unread = self.unread.saturating_add(block.cost());
            return;
        }
        self.blocks_bytes = self.blocks_bytes.saturating_add(block.cost());
        if too_many {
            self.idle(REFUSED_BLOCK, now);
        }
    }

    /// Counts frames that carry nothing.
    fn idle(&mut self, frames: u32, now: impl Fn() -> Instant) {
        self.idle += frames;
        if self.idle > IDLE_FRAMES_MAX {
            let now = now();
            self.flooded = now < self.since + PERIOD;
            (self.idle, self.since) = (1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Which frames count, and when they are too many.

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn opened(now: Instant) -> Frames {
        let mut frames = Frames::new(now);
        assert_eq!(frames.scan(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || now), Passed::All);
        frames
    }

    #[test]
    fn too_many_idle_frames_end_with_a_whole_one_however_they_are_cut() {
        let now = Instant::now();
        for (kind, payload) in [
            (2, &b"12345"[..]),
            (3, b"1234"),
            (4, b""),
            (6, b"12345678"),
            (WINDOW_UPDATE, b"1234"),
            (9, b""),
            (DATA, b""),
            (200, b"x"),
        ] {
            let flood = frame(kind, 0, payload).repeat(IDLE_FRAMES_MAX as usize + 5);
            let end = frame(kind, 0, payload).len() * (IDLE_FRAMES_MAX as usize + 1);
            assert_eq!(opened(now).scan(&flood, || now), Passed::Flood(end), "type {kind}");
            let mut frames = opened(now);
            let passed = flood
                .iter()
                .position(|byte| frames.scan(&[*byte], || now) == Passed::Flood(0) || frames.flooded && frames.left == 0);
            assert_eq!(passed, Some(end - 1), "type {kind}, byte by byte");
        }
    }

    #[test]
    fn frames_that_carry_something_and_slow_ones_are_not_counted() {
        let now = Instant::now();
        let mut frames = opened(now);
        for (kind, flags, payload) in [(DATA, 0, &b"x"[..]), (DATA, END_STREAM, b""), (HEADERS, 0, b"\x82")] {
            assert_eq!(frames.scan(&frame(kind, flags, payload).repeat(5000), || now), Passed::All);
        }
        // A client that takes an answer in the smallest frames there are, and acknowledges each of them twice.
        for _ in 0..5000 {
            frames.wrote(10);
            assert_eq!(frames.scan(&frame(WINDOW_UPDATE, 0, b"1234").repeat(2), || now), Passed::All);
        }
        for period in 1..10 {
            let later = now + PERIOD * period;
            assert_eq!(frames.scan(&frame(6, 0, b"12345678").repeat(IDLE_FRAMES_MAX as usize), || later), Passed::All);
        }
    }

    /// Bytes that begin a stream, the n-th of a connection.
    fn opening(n: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[HEADERS, flags], &(2 * n + 1).to_be_bytes(), payload].concat()
    }

    #[test]
    fn blocks_of_many_fields_are_passed_on_one_by_one_and_end_the_connection_when_they_are_many() {
        let now = Instant::now();
        let mut frames = opened(now);
        // Each decodes to more than is passed on at once.
        let block = |n| opening(n, END_HEADERS | END_STREAM, &[0x82; 500]);
        let flood: Vec<u8> = (0..30).flat_map(block).collect();
        let (mut at, mut passed) = (0, Vec::new());
        loop {
            match frames.scan(&flood[at..], || now) {
                Passed::Pause(length) => passed.push(length),
                other => break assert_eq!(other, Passed::Flood(509)),
            }
            at += passed.last().unwrap();
        }
        assert_eq!(passed, [509; 20]);
    }

    #[test]
    fn fields_are_found_behind_padding_and_priority_and_in_continuations() {
        let now = Instant::now();
        let mut frames = opened(now);
        let first = opening(0, PADDED | PRIORITY, b"\x0312345\x82\x86\x84\0\0\0");
        let rest = frame(CONTINUATION, 0, b"\x82\x86");
        for byte in [first, rest].concat() {
            assert_eq!(frames.scan(&[byte], || now), Passed::All);
        }
        assert_eq!(frames.open_bytes(), Block::default().cost() + 5 * super::super::block::FIELD_BYTES);
        frames.scan(&frame(CONTINUATION, END_HEADERS, b""), || now);
        assert_eq!((frames.open_bytes(), frames.take_unread()), (0, 0));
    }

    #[test]
    fn bodies_and_trailers_wait_to_be_taken_and_trailers_of_many_fields_end_the_connection() {
        let now = Instant::now();
        let mut frames = opened(now);
        frames.scan(&opening(0, END_HEADERS, b"\x82"), || now);
        frames.scan(&[frame(DATA, 0, b"x"), frame(DATA, 0, b"")].concat(), || now);
        assert_eq!(frames.take_unread(), DATA_BYTES_MIN);
        assert_eq!(frames.scan(&opening(0, END_HEADERS | END_STREAM, &[0x82; 10]), || now), Passed::All);
        assert_eq!(frames.take_unread(), 10 * super::super::block::FIELD_BYTES);
        let trailers = opening(0, END_HEADERS | END_STREAM, &[0x82; 200]);
        assert_eq!(frames.scan(&trailers, || now), Passed::Flood(trailers.len()));
    }
}
