//! Decodes content codings (RFC 9110, section 8.4.1), in small steps.
//!
//! Danger: a few bytes can decode to gigabytes. So a step does little work, and output is counted
//! before it is kept.
//!
//! Danger: some decoders read bytes after the end of the encoded data, and other decoders ignore
//! such bytes. So the input has to end together with the encoded data.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Maximum bytes that a step reads, except for the last block of zstd. A few bytes of input can
/// define a new code table, and building the table costs more than writing output.
const STEP_INPUT_BYTES: usize = 2 * 1024;

/// Maximum bytes that a step writes, except for the last block of zstd. This is about 0.1 ms of
/// work.
const STEP_OUTPUT_BYTES: usize = 32 * 1024;

/// Largest window of zstd, in bytes: the limit for encoders of this content coding (RFC 9659,
/// section 3).
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// Largest window of brotli, in bytes (RFC 7932, section 9.1).
const BROTLI_WINDOW_MAX: usize = 1 << 24;

/// Largest block of zstd, in bytes (RFC 8878, section 3.1.1.2.3).
const ZSTD_BLOCK_MAX: usize = 128 * 1024;

/// Memory of a deflate decoder besides its output, rounded up, in bytes: its state with the window.
const INFLATE_BYTES: usize = 64 * 1024;
/// Memory of a brotli decoder besides window and output, rounded up, in bytes: 3 groups of at most
/// 256 trees with 1,080 entries of 4 bytes (RFC 7932, section 10).
const BROTLI_TABLES_BYTES: usize = 3584 * 1024;
/// Memory of a zstd decoder besides window and output, rounded up, in bytes: its tables, and for
/// one block the literals and at most 98,047 sequences of 12 bytes (RFC 8878, section 3.1.1.3.2.1).
const ZSTD_TABLES_BYTES: usize = 2560 * 1024;

/// A content coding that the gate decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950. Some clients send only the inner format (RFC 1951) under this name. Both are
    /// decoded.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// Parses a coding's name, in any letter case.
    pub fn parse(name: &[u8]) -> Option<Coding> {
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        match () {
            () if is("gzip") || is("x-gzip") => Some(Coding::Gzip),
            () if is("deflate") => Some(Coding::Deflate),
            () if is("br") => Some(Coding::Brotli),
            () if is("zstd") => Some(Coding::Zstd),
            () => None,
        }
    }
}

/// Why a body can't be decoded. The gate then uses its bytes as the client sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Undecodable {
    /// The body does not have the format of its coding, is cut off, or continues after the end of
    /// the encoded data.
    #[error("the body does not have the format of its content coding")]
    Broken,
    /// The decoded body is larger than the limit.
    #[error("the body is too large when decoded")]
    TooLarge,
}

/// Decodes one coding of one body.
pub(super) struct Decoder {
    state: State,
    /// Number of input bytes that are decoded.
    at: usize,
    /// The output, at most `limit` bytes.
    out: Vec<u8>,
    limit: usize,
}

enum State {
    Inflate { stream: Decompress, trailer: Trailer },
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(Box<FrameDecoder>),
}

/// The trailer that follows a deflate stream.
#[derive(Clone, Copy, PartialEq)]
enum Trailer {
    /// No trailer, or one that the library checks.
    None,
    /// CRC-32 and length of the content, 4 bytes each (RFC 1952, section 2.3.1).
    Gzip,
}

impl Decoder {
    /// Starts to decode `input`, to at most `limit` bytes.
    pub fn begin(coding: Coding, input: &[u8], limit: usize) -> Result<Decoder, Undecodable> {
        let (state, at) = match coding {
            Coding::Gzip => {
                let stream = Decompress::new(false);
                (
                    State::Inflate { stream, trailer: Trailer::Gzip },
                    gzip_header(input).ok_or(Undecodable::Broken)?,
                )
            }
            Coding::Deflate => {
                let stream = Decompress::new(has_zlib_header(input));
                (State::Inflate { stream, trailer: Trailer::None }, 0)
            }
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                (State::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc()))), 0)
            }
            Coding::Zstd => {
                zstd_window(input)
                    .filter(|window| *window <= ZSTD_WINDOW_MAX)
                    .ok_or(Undecodable::Broken)?;
                let mut decoder = Box::new(FrameDecoder::new());
                decoder.set_max_window_size(ZSTD_WINDOW_MAX);
                let mut rest = input;
                decoder.init(&mut rest).map_err(|_| Undecodable::Broken)?;
                (State::Zstd(decoder), input.len() - rest.len())
            }
        };
        Ok(Decoder { state, at, out: Vec::new(), limit })
    }

    /// Returns the maximum memory that the decoder of an input takes besides its output, in bytes.
    pub fn workspace_bytes(coding: Coding, input: &[u8], limit: usize) -> usize {
        match coding {
            Coding::Gzip | Coding::Deflate => INFLATE_BYTES,
            // The ring buffer holds only decoded bytes, and decoding stops at the limit.
            Coding::Brotli => limit.min(BROTLI_WINDOW_MAX) + BROTLI_TABLES_BYTES,
            Coding::Zstd => {
                let window = zstd_window(input).unwrap_or(0).min(ZSTD_WINDOW_MAX);
                usize::try_from(window).unwrap_or(0) + ZSTD_BLOCK_MAX + ZSTD_TABLES_BYTES
            }
        }
    }

    /// Decodes some more of the input. Returns `true` at the end of the input.
    pub fn step(&mut self, input: &[u8]) -> Result<bool, Undecodable> {
        let rest = input.get(self.at..).unwrap_or_default();
        let piece = &rest[..rest.len().min(STEP_INPUT_BYTES)];
        let (used, ended) = match &mut self.state {
            State::Inflate { stream, .. } => inflate(stream, piece, &mut self.out, self.limit)?,
            State::Brotli(state) => unbrotli(state, piece, &mut self.out, self.limit)?,
            State::Zstd(decoder) => unzstd(decoder, rest, &mut self.out, self.limit)?,
        };
        self.at += used;
        if !ended {
            return Ok(false);
        }
        let behind = input.get(self.at..).unwrap_or_default();
        let sound = match &self.state {
            State::Inflate { trailer: Trailer::Gzip, .. } => is_gzip_trailer(behind, &self.out),
            State::Inflate { trailer: Trailer::None, .. } | State::Brotli(_) => behind.is_empty(),
            State::Zstd(decoder) => behind.is_empty() && is_zstd_content(decoder, input, &self.out),
        };
        if sound { Ok(true) } else { Err(Undecodable::Broken) }
    }

    /// Returns the memory that the output takes, in bytes.
    pub fn output_bytes(&self) -> usize {
        self.out.capacity()
    }

    /// Returns the output.
    pub fn into_output(self) -> Vec<u8> {
        self.out
    }
}

/// Appends bytes to the output.
///
/// # Errors
/// The output would exceed the limit.
fn keep(out: &mut Vec<u8>, bytes: &[u8], limit: usize) -> Result<(), Undecodable> {
    if bytes.len() > limit.saturating_sub(out.len()) {
        return Err(Undecodable::TooLarge);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

fn inflate(
    stream: &mut Decompress,
    piece: &[u8],
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(usize, bool), Undecodable> {
    let mut scratch = [0; STEP_OUTPUT_BYTES];
    let (read, written) = (stream.total_in(), stream.total_out());
    let status = stream
        .decompress(piece, &mut scratch, FlushDecompress::None)
        .map_err(|_| Undecodable::Broken)?;
    let used = usize::try_from(stream.total_in() - read).unwrap_or(usize::MAX);
    let made = usize::try_from(stream.total_out() - written).unwrap_or(usize::MAX);
    keep(out, scratch.get(..made).unwrap_or_default(), limit)?;
    let ended = status == Status::StreamEnd;
    // The input is cut off: the decoder read nothing and wrote nothing.
    if !ended && used == 0 && made == 0 {
        return Err(Undecodable::Broken);
    }
    Ok((used, ended))
}

fn unbrotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    piece: &[u8],
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(usize, bool), Undecodable> {
    let mut scratch = [0; STEP_OUTPUT_BYTES];
    let (mut left, mut used, mut room, mut made, mut total) =
        (piece.len(), 0, STEP_OUTPUT_BYTES, 0, 0);
    let result = BrotliDecompressStream(
        &mut left,
        &mut used,
        piece,
        &mut room,
        &mut made,
        &mut scratch,
        &mut total,
        state,
    );
    keep(out, scratch.get(..made).unwrap_or_default(), limit)?;
    match result {
        BrotliResult::ResultSuccess => Ok((used, true)),
        BrotliResult::NeedsMoreOutput => Ok((used, false)),
        BrotliResult::NeedsMoreInput if piece.is_empty() => Err(Undecodable::Broken),
        BrotliResult::NeedsMoreInput => Ok((used, false)),
        BrotliResult::ResultFailure => Err(Undecodable::Broken),
    }
}

fn unzstd(
    decoder: &mut FrameDecoder,
    input: &[u8],
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(usize, bool), Undecodable> {
    let mut rest = input;
    let before = out.len();
    while !decoder.is_finished()
        && input.len() - rest.len() < STEP_INPUT_BYTES
        && out.len() - before < STEP_OUTPUT_BYTES
    {
        decoder
            .decode_blocks(&mut rest, BlockDecodingStrategy::UptoBlocks(1))
            .map_err(|_| Undecodable::Broken)?;
        // Before the end of the frame the decoder gives no bytes that are still in its window.
        if decoder.can_collect() > limit.saturating_sub(out.len()) {
            return Err(Undecodable::TooLarge);
        }
        decoder.collect_to_writer(&mut *out).map_err(|_| Undecodable::Broken)?;
    }
    Ok((input.len() - rest.len(), decoder.is_finished()))
}

/// Returns the length of a gzip member's header (RFC 1952, section 2.3); `None` if the input has no
/// such header.
fn gzip_header(input: &[u8]) -> Option<usize> {
    const CRC: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    const RESERVED: u8 = 0b1110_0000;
    let [0x1f, 0x8b, 8, flags, ..] = *input else { return None };
    if flags & RESERVED != 0 {
        return None;
    }
    let mut at = 10;
    if flags & EXTRA != 0 {
        let length = input.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            at += memchr::memchr(0, input.get(at..)?)? + 1;
        }
    }
    if flags & CRC != 0 {
        let found = input.get(at..at + 2)?;
        let [low, high, ..] = crc32fast::hash(input.get(..at)?).to_le_bytes();
        (found == [low, high]).then_some(())?;
        at += 2;
    }
    (at <= input.len()).then_some(at)
}

/// Returns whether these bytes are the trailer of a gzip member with this content.
fn is_gzip_trailer(bytes: &[u8], content: &[u8]) -> bool {
    let length = (content.len() as u64).to_le_bytes();
    bytes.split_at_checked(4).is_some_and(|(crc, size)| {
        crc == crc32fast::hash(content).to_le_bytes() && size == &length[..4]
    })
}

/// Returns whether the input starts with a zlib header (RFC 1950, section 2.2) without a preset
/// dictionary.
fn has_zlib_header(input: &[u8]) -> bool {
    let [method, flags, ..] = *input else { return false };
    method & 0x0f == 8
        && u16::from_be_bytes([method, flags]).is_multiple_of(31)
        && flags & 0x20 == 0
}

/// Returns the window of a zstd frame, in bytes (RFC 8878, section 3.1.1.1); `None` if the input
/// does not start with a frame.
fn zstd_window(input: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, next, ..] = *input else { return None };
    if descriptor & 0x20 == 0 {
        let base = 1_u64 << (10 + (next >> 3));
        return Some(base + base / 8 * u64::from(next & 7));
    }
    // A frame with a single segment: the window is as large as the content. The size of the content
    // follows the id of the dictionary.
    Some(zstd_content_size(input)?.max(1024))
}

/// Returns the content's size in the header of a zstd frame; `None` if the header has no size.
fn zstd_content_size(input: &[u8]) -> Option<u64> {
    let descriptor = *input.get(4)?;
    let single = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = match descriptor >> 6 {
        0 => usize::from(single),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let at = 5 + usize::from(!single) + dictionary;
    let mut size = [0; 8];
    size.get_mut(..length)?.copy_from_slice(input.get(at..at + length)?);
    let size = u64::from_le_bytes(size);
    match length {
        0 => None,
        2 => Some(size + 256),
        _ => Some(size),
    }
}

/// Returns whether the content of a finished frame has the size and the checksum that the frame
/// states, if the frame states them.
fn is_zstd_content(decoder: &FrameDecoder, input: &[u8], content: &[u8]) -> bool {
    let fits = zstd_content_size(input).is_none_or(|size| size == content.len() as u64);
    let stated = decoder.get_checksum_from_data();
    fits && (stated.is_none() || stated == decoder.get_calculated_checksum())
}

#[cfg(test)]
mod tests;
