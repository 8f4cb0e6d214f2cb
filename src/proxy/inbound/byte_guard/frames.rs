//! The byte guard of HTTP/2: counts frames that cause work but have no content, and checks header
//! blocks.
//!
//! It also counts the header fields and body bytes that the library keeps until they are read. It
//! checks header blocks because the library hides some of their faults from the server. It adds one
//! more field, the mark, to a block that breaks the rules. The server refuses a request with the
//! mark.
//!
//! Danger: a frame of nine bytes can cause an answer, open or cancel a request, or add an entry to
//! a table. The library limits the memory for them, not the number of frames that it processes
//! (CVE-2019-9512, CVE-2023-44487).

use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::inbound::byte_guard::hpack::{BlockReader, BlockSummary, CorruptBlock};
use crate::proxy::rules::{FIELDS_MAX, TRAILER_BYTES_MAX};

/// Frames without content that a client may send in a [`PERIOD`]. An honest client sends few:
/// pings, a changed setting, and the cancellation of its open requests.
const IDLE_FRAMES_MAX: u32 = 1000;
const PERIOD: Duration = Duration::from_secs(10);

/// A header block with too many fields counts as this many frames without content, because the
/// block is decoded before it is refused.
const REFUSED_BLOCK: u32 = 50;

/// The client may send one uncounted WINDOW_UPDATE for each 5 bytes that were written to it. The
/// smallest frame of an answer's body has ten bytes, and two updates may acknowledge this frame.
/// Further updates count as frames without content.
const WINDOW_UPDATE_BYTES: usize = 5;

/// The maximum of written bytes that are kept for later updates.
const WRITTEN_MAX: usize = 1 << 20;

/// The maximum of pseudo-header fields in a request (RFC 9113, section 8.3.1, and RFC 8441).
const PSEUDO_FIELDS: usize = 5;

/// Memory that header blocks may cost before the reader gets `Pending`, in bytes. Without this
/// pause, the library reads all bytes that have arrived, and decodes a hundred requests before the
/// server can refuse the first one.
const BLOCKS_BYTES_MAX: usize = 64 * 1024;

/// The least memory that a body's unread frame counts for, in bytes: the frame keeps the buffer of
/// a whole socket read.
pub(in crate::proxy) const DATA_BYTES_MIN: usize = 8 * 1024;

/// The lengths of the connection preface (RFC 9113, section 3.4) and of a frame's header (section
/// 4.1), in bytes.
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

/// Bytes of the priority in a HEADERS frame (RFC 9113, section 6.2).
const PRIORITY_BYTES: usize = 5;

/// Largest payload of a frame, in bytes. The gateway never announces another limit, and the library
/// ends a connection with a larger frame.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024;

/// Longest beginning of a field that is kept until its end arrives in another frame, in bytes.
const TAIL_BYTES_MAX: usize = 256 * 1024;

/// Largest trailer section by the count of HTTP/2 (RFC 9113, section 6.5.2). It allows as much as
/// HTTP/1.1 does, and less than the library's limit for a header list.
const TRAILER_LIST_MAX: usize = TRAILER_BYTES_MAX + 32 * FIELDS_MAX;

/// The field that marks a header block with a fault that the library hides. A client that sends it
/// gets its own request refused.
pub(in crate::proxy) const MARK: &str = "onceward-malformed";

/// Scans the frames of one HTTP/2 connection.
#[derive(Debug)]
pub struct FrameScanner {
    header: [u8; HEADER_BYTES],
    /// Bytes left of the frame, or of the preface.
    left: usize,
    idle: u32,
    since: Instant,
    flooded: bool,
    /// Bytes written to the client that no WINDOW_UPDATE has used.
    written: usize,
    reader: BlockReader,
    /// Whether the current block is a trailer section.
    in_trailers: bool,
    /// The last stream that was opened. A further header block of this stream or of an older one is
    /// a trailer section.
    last_stream: u32,
    /// The beginning of a field that continues in the next frame of the block.
    tail: Vec<u8>,
    /// Memory of the header blocks since the last pause, in bytes.
    blocks_bytes: usize,
    /// Memory of the bodies' frames and trailers since the last call of `take_unread`, in bytes.
    unread: usize,
    /// The payload's length of a padded DATA frame, until the first byte of the payload arrives.
    /// That byte is the length of the padding.
    padded: Option<usize>,
}

/// The verdict on the bytes after the safe ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameVerdict {
    /// The frame is incomplete. The caller has to scan its bytes again when more bytes have
    /// arrived.
    Incomplete,
    /// The caller has to scan the bytes again, after the reader got `Pending`.
    Pause,
    /// No further byte may be passed on: too many frames without content, or a corrupt header
    /// block.
    Refused,
    /// The bytes begin with a faulty frame of this length. Pass these bytes on in its place.
    Replaced(usize, Vec<u8>),
}

impl FrameScanner {
    /// Begins a connection, before its preface.
    pub fn new(now: Instant) -> FrameScanner {
        FrameScanner {
            header: [0; HEADER_BYTES],
            left: PREFACE_BYTES,
            idle: 0,
            since: now,
            flooded: false,
            written: 0,
            reader: BlockReader::default(),
            in_trailers: false,
            last_stream: 0,
            tail: Vec::new(),
            blocks_bytes: 0,
            unread: 0,
            padded: None,
        }
    }

    /// Counts bytes that were written to the client.
    pub fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes).min(WRITTEN_MAX);
    }

    /// Returns the memory of the header block that has begun and not ended, in bytes.
    pub fn open_bytes(&self) -> usize {
        self.reader.block().cost() + self.tail.len()
    }

    /// Takes the memory of the bodies' frames and trailers since the last call, in bytes.
    pub fn take_unread(&mut self) -> usize {
        std::mem::take(&mut self.unread)
    }

    /// Scans the bytes after the last safe ones. Returns how many of them may be passed on, and the
    /// verdict on the others. Safe bytes end within a frame's data, or with a whole frame.
    pub fn scan(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> (usize, FrameVerdict) {
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
                return (at, FrameVerdict::Incomplete);
            }
            if self.flooded {
                return (at, FrameVerdict::Refused);
            }
            if self.blocks_bytes > BLOCKS_BYTES_MAX {
                self.blocks_bytes = 0;
                return (at, FrameVerdict::Pause);
            }
            let Some(header) = bytes[at..].first_chunk::<HEADER_BYTES>() else {
                return (at, FrameVerdict::Incomplete);
            };
            self.header = *header;
            let [high, middle, low, kind, ..] = *header;
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            // The library would also read the header block of this frame, and change its dynamic
            // table. The block reader would not follow that change. No client may send this frame
            // (RFC 9113, section 8.4).
            if kind == PUSH_PROMISE {
                return (at, FrameVerdict::Refused);
            }
            if matches!(kind, HEADERS | CONTINUATION) && length <= PAYLOAD_BYTES_MAX {
                let Some(frame) = bytes[at..].get(..HEADER_BYTES + length) else {
                    return (at, FrameVerdict::Incomplete);
                };
                match self.header_block(frame, &now) {
                    Ok(None) => {}
                    Ok(Some(replacement)) => {
                        self.begin_frame(&now);
                        self.left = 0;
                        return (at, FrameVerdict::Replaced(frame.len(), replacement));
                    }
                    Err(CorruptBlock) => return (at, FrameVerdict::Refused),
                }
            }
            at += HEADER_BYTES;
            self.begin_frame(&now);
        }
    }

    /// Reads a frame of a header block. If this frame ends a faulty block, returns a marked frame
    /// that takes its place.
    fn header_block(
        &mut self,
        frame: &[u8],
        now: impl Fn() -> Instant,
    ) -> Result<Option<Vec<u8>>, CorruptBlock> {
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
            return if self.tail.len() > TAIL_BYTES_MAX { Err(CorruptBlock) } else { Ok(None) };
        }
        if !std::mem::take(&mut self.tail).is_empty() {
            return Err(CorruptBlock);
        }
        let block = self.reader.finish();
        // If a field list is too long for the library, the library drops its fields, the mark
        // included.
        if self.in_trailers && block.list_bytes > TRAILER_LIST_MAX {
            return Err(CorruptBlock);
        }
        self.end_block(&block, now);
        let faulty = if self.in_trailers { block.pseudo } else { block.target_refused };
        Ok(faulty.then(|| marked(frame, HEADER_BYTES + end)))
    }

    /// Begins the frame with the header that was read last, and counts the frame if it has no
    /// content.
    fn begin_frame(&mut self, now: impl Fn() -> Instant) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let has_content = match kind {
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
        if !has_content {
            self.count_idle(1, now);
        }
    }

    /// Begins a DATA frame. Returns whether it has content.
    fn data(&mut self, flags: u8) -> bool {
        let has_content = self.left > 0 || flags & END_STREAM != 0;
        if flags & PADDED != 0 && self.left > 0 {
            // The library drops padding. So padding must not be counted: no reader would give its
            // memory back.
            self.padded = Some(self.left);
        } else if has_content {
            self.count_data(self.left);
        }
        has_content
    }

    fn count_data(&mut self, bytes: usize) {
        self.unread = self.unread.saturating_add(bytes.max(DATA_BYTES_MIN));
    }

    /// Counts a header block that has ended.
    fn end_block(&mut self, block: &BlockSummary, now: impl Fn() -> Instant) {
        let too_many = block.fields > FIELDS_MAX + PSEUDO_FIELDS;
        if self.in_trailers {
            // An answer can't refuse trailers, because they are checked only after the body.
            self.flooded |= too_many;
            self.unread = self.unread.saturating_add(block.cost());
            return;
        }
        self.blocks_bytes = self.blocks_bytes.saturating_add(block.cost());
        if too_many {
            self.count_idle(REFUSED_BLOCK, now);
        }
    }

    /// Counts frames without content.
    fn count_idle(&mut self, frames: u32, now: impl Fn() -> Instant) {
        self.idle += frames;
        if self.idle > IDLE_FRAMES_MAX {
            let now = now();
            self.flooded = now < self.since + PERIOD;
            (self.idle, self.since) = (1, now);
        }
    }
}

/// Returns start and end of the header block's fragment in the payload of a HEADERS frame (RFC
/// 9113, section 6.2). A stream that depends on itself is corrupt too. The library doesn't read the
/// block of such a stream, so its dynamic table would differ from then on.
fn fragment(flags: u8, stream: u32, payload: &[u8]) -> Result<(usize, usize), CorruptBlock> {
    let (padding, mut start) = match payload.first() {
        Some(padding) if flags & PADDED != 0 => (usize::from(*padding), 1),
        None if flags & PADDED != 0 => return Err(CorruptBlock),
        _ => (0, 0),
    };
    if flags & PRIORITY != 0 {
        let dependency = payload[start..].first_chunk::<4>().ok_or(CorruptBlock)?;
        if u32::from_be_bytes(*dependency) & (u32::MAX >> 1) == stream {
            return Err(CorruptBlock);
        }
        start += PRIORITY_BYTES;
    }
    let end = payload.len().checked_sub(padding).ok_or(CorruptBlock)?;
    if start <= end { Ok((start, end)) } else { Err(CorruptBlock) }
}

/// Returns the frame with the mark added at the end of its fragment. The mark is a literal that is
/// not indexed.
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
