//! A reader of header blocks beside the HTTP/2 library (HPACK, RFC 7541): it finds what the library
//! hides from the server behind it.
//!
//! Danger: the library cuts a fragment off a path, drops a scheme that has no authority beside it,
//! and drops pseudo-header fields in trailers. So each of them would be forwarded as a request that
//! the client didn't send. The reader must follow the dynamic table exactly as the library does: a
//! block that it can't read ends the connection.

use std::collections::VecDeque;

use crate::proxy::inbound::rules::is_scheme;

/// Size of the dynamic table, in bytes. The gateway never announces another one.
const TABLE_BYTES_MAX: usize = 4096;

/// What an entry costs beside its name and value, in bytes (RFC 7541, section 4.1).
const ENTRY_BYTES: usize = 32;

/// Lengths of the names in the static table, from index 1 (RFC 7541, appendix A).
const STATIC_NAMES: [usize; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// The block breaks the rules of HPACK, or is one that the library wouldn't read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Corrupt;

/// The kinds of names that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Path,
    Scheme,
    /// Any other pseudo-header field.
    Pseudo,
    Field,
}

/// A name: its kind, and its length in bytes.
#[derive(Debug, Clone, Copy)]
struct Name {
    kind: Kind,
    length: usize,
}

/// An entry of the dynamic table. Names and values are not kept.
#[derive(Debug)]
struct Entry {
    name: Name,
    bytes: usize,
    refused: bool,
}

/// What was found in a header block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// The path has a fragment, or the scheme is neither `http` nor `https`.
    pub target_refused: bool,
    /// There are pseudo-header fields.
    pub pseudo: bool,
    /// How many fields there are, pseudo-header fields included.
    pub fields: usize,
    /// Bytes of the names and values that the block spells out.
    pub text_bytes: usize,
    /// Its size as a list of fields, 32 bytes beside each field's text (RFC 9113, section 6.5.2). Text in Huffman code that
    /// is not decoded, and values of the static table, are taken for as long as they can be.
    pub list_bytes: usize,
}

/// The longest value in the static table (`gzip, deflate`), in bytes.
const STATIC_VALUE_MAX: usize = 13;

/// What a field costs in memory beside its name and value, in bytes: its place in a map, and its share of the map's growth.
pub(in crate::proxy) const FIELD_BYTES: usize = 160;

impl Block {
    /// Returns what its fields cost in memory, in bytes: an estimate, since compressed text and fields of the table are longer.
    pub fn cost(&self) -> usize {
        self.text_bytes.saturating_add(self.fields.saturating_mul(FIELD_BYTES))
    }
}

/// Follows the header blocks of one connection.
#[derive(Debug)]
pub(super) struct Reader {
    /// The newest entry first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    block: Block,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max: TABLE_BYTES_MAX,
            block: Block::default(),
        }
    }
}

/// An integer or a string, and where the bytes go on behind it. `None`: its end has not come yet.
type Parsed<T> = Result<Option<(T, usize)>, Corrupt>;

impl Reader {
    /// Reads on in a header block, and returns how many bytes were whole fields. The others begin a
    /// field whose end has not come yet: they are shown again with more behind them.
    pub fn read(&mut self, bytes: &[u8]) -> Result<usize, Corrupt> {
        let mut at = 0;
        while let Some(length) = self.representation(&bytes[at..])? {
            at += length;
        }
        Ok(at)
    }

    /// Returns what was found so far in the block that has begun.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The block has ended: what was found in it.
    pub fn finish(&mut self) -> Block {
        std::mem::take(&mut self.block)
    }

    /// Reads one representation (RFC 7541, section 6), and returns its length in bytes.
    fn representation(&mut self, bytes: &[u8]) -> Result<Option<usize>, Corrupt> {
        let Some(first) = bytes.first() else { return Ok(None) };
        match first {
            0x80.. => {
                let Some((index, at)) = integer(bytes, 0, 7)? else { return Ok(None) };
                let (name, entry) = self.name(index)?;
                let entry = entry.and_then(|entry| self.entries.get(entry));
                let refused = entry.is_some_and(|entry| entry.refused);
                let bytes =
                    entry.map_or(name.length + STATIC_VALUE_MAX + ENTRY_BYTES, |entry| entry.bytes);
                self.found(name.kind, refused, bytes);
                Ok(Some(at))
            }
            0x40.. => self.literal(bytes, 6, true),
            0x20.. => {
                let Some((size, at)) = integer(bytes, 0, 5)? else { return Ok(None) };
                if size > TABLE_BYTES_MAX {
                    return Err(Corrupt);
                }
                self.bytes_max = size;
                self.evict(0);
                Ok(Some(at))
            }
            _ => self.literal(bytes, 4, false),
        }
    }

    fn literal(
        &mut self,
        bytes: &[u8],
        prefix: u32,
        indexed: bool,
    ) -> Result<Option<usize>, Corrupt> {
        let Some((index, at)) = integer(bytes, 0, prefix)? else { return Ok(None) };
        let (spelled, at) = match index {
            0 => {
                let Some((text, at)) = string(bytes, at)? else { return Ok(None) };
                (Some(text), at)
            }
            _ => (None, at),
        };
        let Some((value, at)) = string(bytes, at)? else { return Ok(None) };
        // Only now: an unfinished field is looked at again with every frame, and decoding its long name each time would keep
        // the connection's thread busy.
        let name = match &spelled {
            Some(text) => name_of(&text.decoded()?)?,
            None => self.name(index)?.0,
        };
        self.block.text_bytes += spelled.map_or(0, |text| text.bytes.len()) + value.bytes.len();
        let judged = matches!(name.kind, Kind::Path | Kind::Scheme);
        let (mut refused, mut length) = (false, value.length_max());
        // Most values are neither judged nor kept: they are passed over.
        if judged || indexed {
            let value = value.decoded()?;
            length = value.len();
            refused = match name.kind {
                Kind::Path => value.contains(&b'#'),
                Kind::Scheme => !is_scheme(&value),
                Kind::Pseudo | Kind::Field => false,
            };
        }
        if indexed {
            self.insert(Entry { name, bytes: name.length + length + ENTRY_BYTES, refused });
        }
        self.found(name.kind, refused, name.length + length + ENTRY_BYTES);
        Ok(Some(at))
    }

    fn found(&mut self, kind: Kind, refused: bool, list_bytes: usize) {
        self.block.list_bytes += list_bytes;
        self.block.fields += 1;
        self.block.pseudo |= kind != Kind::Field;
        self.block.target_refused |= refused;
    }

    /// The name at an index, and its place in the dynamic table if it is from there.
    fn name(&self, index: usize) -> Result<(Name, Option<usize>), Corrupt> {
        let place = index.checked_sub(1).ok_or(Corrupt)?;
        if let Some(length) = STATIC_NAMES.get(place) {
            let kind = match index {
                4 | 5 => Kind::Path,
                6 | 7 => Kind::Scheme,
                1..=14 => Kind::Pseudo,
                _ => Kind::Field,
            };
            return Ok((Name { kind, length: *length }, None));
        }
        let place = place - STATIC_NAMES.len();
        self.entries.get(place).map(|entry| (entry.name, Some(place))).ok_or(Corrupt)
    }

    /// Adds an entry. One that is larger than the table empties it (RFC 7541, section 4.4).
    fn insert(&mut self, entry: Entry) {
        self.evict(entry.bytes);
        if entry.bytes <= self.bytes_max {
            self.bytes += entry.bytes;
            self.entries.push_front(entry);
        }
    }

    /// Drops the oldest entries until there is room for so many bytes.
    fn evict(&mut self, wanted: usize) {
        while self.bytes + wanted > self.bytes_max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.bytes -= oldest.bytes;
        }
    }
}

fn name_of(text: &[u8]) -> Result<Name, Corrupt> {
    let kind = match text {
        b"" => return Err(Corrupt),
        b":path" => Kind::Path,
        b":scheme" => Kind::Scheme,
        [b':', ..] => Kind::Pseudo,
        _ => Kind::Field,
    };
    Ok(Name { kind, length: text.len() })
}

/// Reads an integer whose first byte has so many bits for it (RFC 7541, section 5.1).
fn integer(bytes: &[u8], at: usize, prefix: u32) -> Parsed<usize> {
    /// Bytes behind the first one. More than the library reads.
    const MORE_MAX: usize = 5;
    let mask = (1usize << prefix) - 1;
    let Some(first) = bytes.get(at) else { return Ok(None) };
    let mut number = usize::from(*first) & mask;
    if number < mask {
        return Ok(Some((number, at + 1)));
    }
    for more in 0..MORE_MAX {
        let Some(byte) = bytes.get(at + 1 + more) else { return Ok(None) };
        number += usize::from(byte & 0x7f) << (7 * more);
        if byte & 0x80 == 0 {
            return Ok(Some((number, at + 2 + more)));
        }
    }
    Err(Corrupt)
}

/// A string as it stands in a block (RFC 7541, section 5.2).
struct Text<'b> {
    bytes: &'b [u8],
    huffman: bool,
}

fn string(bytes: &[u8], at: usize) -> Parsed<Text<'_>> {
    let Some((length, start)) = integer(bytes, at, 7)? else { return Ok(None) };
    let huffman = bytes.get(at).is_some_and(|first| first & 0x80 != 0);
    let end = start.checked_add(length).ok_or(Corrupt)?;
    Ok(bytes.get(start..end).map(|bytes| (Text { bytes, huffman }, end)))
}

impl Text<'_> {
    /// Returns how many bytes the text has at most: the shortest codes have five bits.
    fn length_max(&self) -> usize {
        if self.huffman { self.bytes.len() * 8 / 5 } else { self.bytes.len() }
    }

    fn decoded(&self) -> Result<std::borrow::Cow<'_, [u8]>, Corrupt> {
        if self.huffman { huffman(self.bytes).map(Into::into) } else { Ok(self.bytes.into()) }
    }
}

/// Bits of each byte's code (RFC 7541, appendix B). The codes follow from their lengths: they count
/// upwards from the shortest on, those of one length in the order of their bytes.
#[rustfmt::skip]
const CODE_BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Bits of the shortest and of the longest code.
const BITS_MIN: usize = 5;
const BITS_MAX: usize = 30;

/// The bytes in the order of their codes; for each length the first code, and where its bytes begin.
struct Codes {
    bytes: [u8; 256],
    first: [u32; BITS_MAX + 2],
    start: [usize; BITS_MAX + 2],
}

const CODES: Codes = {
    let mut codes = Codes { bytes: [0; 256], first: [0; BITS_MAX + 2], start: [0; BITS_MAX + 2] };
    let (mut bits, mut code, mut place) = (BITS_MIN, 0u32, 0);
    while bits <= BITS_MAX {
        (codes.first[bits], codes.start[bits]) = (code, place);
        let mut byte = 0;
        while byte < 256 {
            if CODE_BITS[byte] as usize == bits {
                codes.bytes[place] = byte as u8;
                (code, place) = (code + 1, place + 1);
            }
            byte += 1;
        }
        (code, bits) = (code << 1, bits + 1);
    }
    codes.start[BITS_MAX + 1] = place;
    codes
};

/// Decodes a string in Huffman code. What is left at the end is less than a byte of ones.
fn huffman(bytes: &[u8]) -> Result<Vec<u8>, Corrupt> {
    static TABLE: Codes = CODES;
    let mut decoded = Vec::with_capacity(bytes.len() * 8 / BITS_MIN);
    let (mut code, mut bits) = (0u32, 0);
    for byte in bytes {
        for place in (0..8).rev() {
            code = code << 1 | u32::from(byte >> place & 1);
            bits += 1;
            if bits < BITS_MIN {
                continue;
            }
            if bits > BITS_MAX {
                return Err(Corrupt);
            }
            let count = TABLE.start[bits + 1] - TABLE.start[bits];
            // Codes of this length that are smaller than the first are the beginnings of none.
            let offset =
                code.checked_sub(TABLE.first[bits]).map_or(usize::MAX, |offset| offset as usize);
            if offset < count {
                decoded.push(TABLE.bytes[TABLE.start[bits] + offset]);
                (code, bits) = (0, 0);
            }
        }
    }
    let padding = bits < 8 && code == (1 << bits) - 1;
    if padding { Ok(decoded) } else { Err(Corrupt) }
}

#[cfg(test)]
mod tests;
