//! The guard of HTTP/2: its frames leave no two readings, but some make work and carry nothing, and those are counted. So
//! are header fields and body bytes, which the library behind keeps until somebody takes them.
//! Header blocks are read as well, for what the library behind hides from the server. A block that
//! breaks the rules gets one more field, by which the server knows it and refuses its request.
//!
//! Danger: a frame of nine bytes can cost an answer, an opened and a cancelled request, or a place in a table. The
//! library behind bounds what it keeps of them in memory, not how many it works through (CVE-2019-9512, CVE-2023-44487).

use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::inbound::byte_guard::hpack::{Block, Corrupt, Reader};
use crate::proxy::inbound::listener::FIELDS_MAX;
use crate::proxy::inbound::rules::TRAILER_BYTES_MAX;

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
const PUSH_PROMISE: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// Bytes of a priority in a HEADERS frame (RFC 9113, section 6.2).
const PRIORITY_BYTES: usize = 5;

/// Largest payload of a frame, in bytes. The gateway never announces another one, and the library
/// behind ends a connection with a larger frame.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024;

/// Longest beginning of a field that is kept until its end comes in another frame, in bytes.
const TAIL_BYTES_MAX: usize = 256 * 1024;

/// Size of a trailer section as HTTP/2 counts it (RFC 9113, section 6.5.2), at most: as much as HTTP/1.1 allows, and below what
/// the library takes of any header list.
const TRAILER_LIST_MAX: usize = TRAILER_BYTES_MAX + 32 * FIELDS_MAX;

/// The field that marks a header block with a fault that the library hides. A client that sends it
/// has its own request refused.
pub(in crate::proxy) const MARK: &str = "onceward-malformed";

/// Follows the frames of one HTTP/2 connection.
#[derive(Debug)]
pub struct Frames {
    header: [u8; HEADER_BYTES],
    /// What is left of the frame, or of the preface.
    left: usize,
    idle: u32,
    since: Instant,
    flooded: bool,
    /// Bytes written to the client that no WINDOW_UPDATE has used up.
    written: usize,
    reader: Reader,
    /// The block that is under way is a trailer section.
    in_trailers: bool,
    /// The last stream that was opened: a header block of it, or of an older one, is a trailer section.
    last_stream: u32,
    /// The beginning of a field that goes on in the next frame of the block.
    tail: Vec<u8>,
    /// What the header blocks since the last pause cost, in bytes.
    blocks_bytes: usize,
    /// What the bodies' frames cost that were seen since this was last asked, in bytes.
    unread: usize,
    /// Bytes of a body's frame whose first one says how many of them are padding, while that byte has not come.
    padded: Option<usize>,
}

/// What was found in frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameFault {
    /// Nothing behind the safe bytes can be judged yet: they are shown again, with more behind them.
    Nothing,
    /// The bytes behind the safe ones are shown again after the reader has found that there is nothing more for now.
    Pause,
    /// Nothing behind the safe bytes may be passed on: too many idle frames, or a corrupt header block.
    Refused,
    /// So many bytes behind the safe ones are a frame with a fault. These bytes are passed on in its place.
    Replaced(usize, Vec<u8>),
}

impl Frames {
    /// At the beginning of a connection, preface included.
    pub fn new(now: Instant) -> Frames {
        Frames {
            header: [0; HEADER_BYTES],
            left: PREFACE_BYTES,
            idle: 0,
            since: now,
            flooded: false,
            written: 0,
            reader: Reader::default(),
            in_trailers: false,
            last_stream: 0,
            tail: Vec::new(),
            blocks_bytes: 0,
            unread: 0,
            padded: None,
        }
    }

    /// Notes bytes that were written to the client.
    pub fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes).min(WRITTEN_MAX);
    }

    /// Returns what the header block that has begun and not ended costs in memory, in bytes.
    pub fn open_bytes(&self) -> usize {
        self.reader.block().cost() + self.tail.len()
    }

    /// Returns what the bodies' frames cost in memory, trailers included, that were seen since the last call.
    pub fn take_unread(&mut self) -> usize {
        std::mem::take(&mut self.unread)
    }

    /// Looks at the bytes that follow those last found safe: how many of them may be passed on, and
    /// what stands behind them. Safe bytes end within a frame's data, or with a whole frame.
    pub fn scan(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> (usize, FrameFault) {
        let mut at = 0;
        loop {
            let skipped = self.left.min(bytes.len() - at);
            if skipped > 0
                && let Some(length) = self.padded.take()
            {
                self.count_data(length.saturating_sub(1 + usize::from(bytes[at])));
            }
            at += skipped;
            self.left -= skipped;
            if self.left > 0 {
                return (at, FrameFault::Nothing);
            }
            if self.flooded {
                return (at, FrameFault::Refused);
            }
            if self.blocks_bytes > BLOCKS_BYTES_MAX {
                self.blocks_bytes = 0;
                return (at, FrameFault::Pause);
            }
            let Some(header) = bytes[at..].first_chunk::<HEADER_BYTES>() else {
                return (at, FrameFault::Nothing);
            };
            self.header = *header;
            let [high, middle, low, kind, ..] = *header;
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            // The library would read its header block too, into a table that the reader here doesn't follow. No client may
            // send one (RFC 9113, section 8.4).
            if kind == PUSH_PROMISE {
                return (at, FrameFault::Refused);
            }
            if matches!(kind, HEADERS | CONTINUATION) && length <= PAYLOAD_BYTES_MAX {
                let Some(frame) = bytes[at..].get(..HEADER_BYTES + length) else {
                    return (at, FrameFault::Nothing);
                };
                match self.header_block(frame, &now) {
                    Ok(None) => {}
                    Ok(Some(replacement)) => {
                        self.frame(&now);
                        self.left = 0;
                        return (at, FrameFault::Replaced(frame.len(), replacement));
                    }
                    Err(Corrupt) => return (at, FrameFault::Refused),
                }
            }
            at += HEADER_BYTES;
            self.frame(&now);
        }
    }

    /// Reads a frame of a header block. One with which a faulty block ends is replaced by one that is marked.
    fn header_block(
        &mut self,
        frame: &[u8],
        now: impl Fn() -> Instant,
    ) -> Result<Option<Vec<u8>>, Corrupt> {
        let [_, _, _, kind, flags, stream @ ..] = self.header;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        let payload = &frame[HEADER_BYTES..];
        let (start, end) =
            if kind == HEADERS { fragment(flags, stream, payload)? } else { (0, payload.len()) };
        if kind == HEADERS {
            self.in_trailers = stream <= self.last_stream;
            self.last_stream = self.last_stream.max(stream);
        }
        let fragment = &payload[start..end];
        if self.tail.is_empty() {
            let read = self.reader.read(fragment)?;
            self.tail.extend_from_slice(&fragment[read..]);
        } else {
            self.tail.extend_from_slice(fragment);
            let read = self.reader.read(&self.tail)?;
            self.tail.drain(..read);
        }
        if flags & END_HEADERS == 0 {
            return if self.tail.len() > TAIL_BYTES_MAX { Err(Corrupt) } else { Ok(None) };
        }
        if !std::mem::take(&mut self.tail).is_empty() {
            return Err(Corrupt);
        }
        let block = self.reader.finish();
        // The library drops the fields of a list that is too long for it, the mark among them.
        if self.in_trailers && block.list_bytes > TRAILER_LIST_MAX {
            return Err(Corrupt);
        }
        self.end_block(&block, now);
        let faulty = if self.in_trailers { block.pseudo } else { block.target_refused };
        Ok(faulty.then(|| marked(frame, HEADER_BYTES + end)))
    }

    /// Counts the frame whose header was read.
    fn frame(&mut self, now: impl Fn() -> Instant) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let carries = match kind {
            DATA => self.data(flags),
            HEADERS => true,
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
        if flags & PADDED != 0 && self.left > 0 {
            // Padding is dropped by the library, so it must not be counted: nobody would count it out.
            self.padded = Some(self.left);
        } else if carries {
            self.count_data(self.left);
        }
        carries
    }

    fn count_data(&mut self, bytes: usize) {
        self.unread = self.unread.saturating_add(bytes.max(DATA_BYTES_MIN));
    }

    /// Counts a header block that has ended.
    fn end_block(&mut self, block: &Block, now: impl Fn() -> Instant) {
        let too_many = block.fields > FIELDS_MAX + PSEUDO_FIELDS;
        if self.in_trailers {
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

/// Where the fragment of a header block lies in the payload of a HEADERS frame (RFC 9113, section 6.2).
/// A stream that depends on itself is corrupt too: the library doesn't read its block, and would
/// know another table from then on.
fn fragment(flags: u8, stream: u32, payload: &[u8]) -> Result<(usize, usize), Corrupt> {
    let (padding, mut start) = match payload.first() {
        Some(padding) if flags & PADDED != 0 => (usize::from(*padding), 1),
        None if flags & PADDED != 0 => return Err(Corrupt),
        _ => (0, 0),
    };
    if flags & PRIORITY != 0 {
        let dependency = payload[start..].first_chunk::<4>().ok_or(Corrupt)?;
        if u32::from_be_bytes(*dependency) & (u32::MAX >> 1) == stream {
            return Err(Corrupt);
        }
        start += PRIORITY_BYTES;
    }
    let end = payload.len().checked_sub(padding).ok_or(Corrupt)?;
    if start <= end { Ok((start, end)) } else { Err(Corrupt) }
}

/// The frame with the marking field at the end of its fragment: a literal that is not indexed.
fn marked(frame: &[u8], end: usize) -> Vec<u8> {
    const VALUE: &[u8] = b"1";
    let field = [&[0, MARK.len() as u8][..], MARK.as_bytes(), &[VALUE.len() as u8], VALUE].concat();
    let mut marked = [&frame[..end], &field, &frame[end..]].concat();
    let length = (marked.len() - HEADER_BYTES) as u32;
    marked[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    marked
}

#[cfg(test)]
mod tests;
