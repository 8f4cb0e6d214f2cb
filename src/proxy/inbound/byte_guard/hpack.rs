//! Reads header blocks before the HTTP/2 library (HPACK, RFC 7541), and finds the faults that the
//! library hides from the server.
//!
//! Danger: the library cuts a fragment off a path, drops a scheme without an authority, and drops
//! pseudo-header fields in trailers. The gateway would then forward a request that the client
//! didn't send. The reader must follow the dynamic table exactly as the library does. A block that
//! it can't read ends the connection.

use std::collections::VecDeque;

use crate::proxy::rules::is_scheme;

/// Size of the dynamic table, in bytes. The gateway never announces another size.
const TABLE_BYTES_MAX: usize = 4096;

/// Bytes that an entry has in addition to its name and value (RFC 7541, section 4.1).
const ENTRY_BYTES: usize = 32;

/// Lengths of the names in the static table, from index 1 (RFC 7541, appendix A).
const STATIC_NAMES: [usize; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// The block breaks the rules of HPACK, or the library wouldn't read the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CorruptBlock;

/// The kinds of names that the checks distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameKind {
    Path,
    Scheme,
    /// Any other pseudo-header field.
    Pseudo,
    Field,
}

/// A field's name: its kind, and its length in bytes.
#[derive(Debug, Clone, Copy)]
struct FieldName {
    kind: NameKind,
    length: usize,
}

/// An entry of the dynamic table. Names and values are not kept.
#[derive(Debug)]
struct TableEntry {
    name: FieldName,
    bytes: usize,
    refused: bool,
}

/// The findings in a header block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BlockSummary {
    /// The path has a fragment, or the scheme is neither `http` nor `https`.
    pub target_refused: bool,
    /// The block has pseudo-header fields.
    pub pseudo: bool,
    /// Number of fields, pseudo-header fields included.
    pub fields: usize,
    /// Bytes of the names and values that are literals in the block.
    pub text_bytes: usize,
    /// The size of the block as a list of fields: each field's text and 32 bytes (RFC 9113, section
    /// 6.5.2). Huffman text that is not decoded, and values of the static table, count with the
    /// greatest length that they can have.
    pub list_bytes: usize,
}

/// The longest value in the static table (`gzip, deflate`), in bytes.
const STATIC_VALUE_MAX: usize = 13;

/// Memory that a field needs in addition to its name and value, in bytes: its entry in a map, and
/// its share of the map's growth.
pub(in crate::proxy) const FIELD_BYTES: usize = 160;

impl BlockSummary {
    /// Estimates the memory of the block's fields, in bytes. The estimate is too low for compressed
    /// text and for fields of the table.
    pub fn cost(&self) -> usize {
        self.text_bytes.saturating_add(self.fields.saturating_mul(FIELD_BYTES))
    }
}

/// Reads the header blocks of one connection.
#[derive(Debug)]
pub(super) struct BlockReader {
    /// The newest entry first.
    entries: VecDeque<TableEntry>,
    bytes: usize,
    bytes_max: usize,
    block: BlockSummary,
}

impl Default for BlockReader {
    fn default() -> BlockReader {
        BlockReader {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max: TABLE_BYTES_MAX,
            block: BlockSummary::default(),
        }
    }
}

/// An integer or a string, and the position after it. `None` if its end has not arrived yet.
type Parsed<T> = Result<Option<(T, usize)>, CorruptBlock>;

impl BlockReader {
    /// Continues in a header block, and returns how many bytes were whole fields. The other bytes
    /// begin an incomplete field. The caller has to pass them again when more bytes have arrived.
    pub fn read(&mut self, bytes: &[u8]) -> Result<usize, CorruptBlock> {
        let mut at = 0;
        while let Some(length) = self.representation(&bytes[at..])? {
            at += length;
        }
        Ok(at)
    }

    /// Returns the findings so far in the current block.
    pub fn block(&self) -> &BlockSummary {
        &self.block
    }

    /// Ends the block, and returns the findings in it.
    pub fn finish(&mut self) -> BlockSummary {
        std::mem::take(&mut self.block)
    }

    /// Reads one representation (RFC 7541, section 6), and returns its length in bytes.
    fn representation(&mut self, bytes: &[u8]) -> Result<Option<usize>, CorruptBlock> {
        let Some(first) = bytes.first() else { return Ok(None) };
        match first {
            0x80.. => {
                let Some((index, at)) = integer(bytes, 0, 7)? else { return Ok(None) };
                let (name, entry) = self.name(index)?;
                let entry = entry.and_then(|entry| self.entries.get(entry));
                let refused = entry.is_some_and(|entry| entry.refused);
                let bytes =
                    entry.map_or(name.length + STATIC_VALUE_MAX + ENTRY_BYTES, |entry| entry.bytes);
                self.add_field(name.kind, refused, bytes);
                Ok(Some(at))
            }
            0x40.. => self.literal(bytes, 6, true),
            0x20.. => {
                let Some((size, at)) = integer(bytes, 0, 5)? else { return Ok(None) };
                if size > TABLE_BYTES_MAX {
                    return Err(CorruptBlock);
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
    ) -> Result<Option<usize>, CorruptBlock> {
        let Some((index, at)) = integer(bytes, 0, prefix)? else { return Ok(None) };
        let (spelled, at) = match index {
            0 => {
                let Some((text, at)) = string(bytes, at)? else { return Ok(None) };
                (Some(text), at)
            }
            _ => (None, at),
        };
        let Some((value, at)) = string(bytes, at)? else { return Ok(None) };
        // The name is decoded only when the field is complete. An incomplete field is read again
        // with every frame, and decoding a long name each time would keep the thread busy.
        let name = match &spelled {
            Some(text) => name_of(&text.decoded()?)?,
            None => self.name(index)?.0,
        };
        self.block.text_bytes += spelled.map_or(0, |text| text.bytes.len()) + value.bytes.len();
        let checked = matches!(name.kind, NameKind::Path | NameKind::Scheme);
        let (mut refused, mut length) = (false, value.length_max());
        // Most values are neither checked nor kept, so they are not decoded.
        if checked || indexed {
            let value = value.decoded()?;
            length = value.len();
            refused = match name.kind {
                NameKind::Path => value.contains(&b'#'),
                NameKind::Scheme => !is_scheme(&value),
                NameKind::Pseudo | NameKind::Field => false,
            };
        }
        if indexed {
            self.insert(TableEntry { name, bytes: name.length + length + ENTRY_BYTES, refused });
        }
        self.add_field(name.kind, refused, name.length + length + ENTRY_BYTES);
        Ok(Some(at))
    }

    fn add_field(&mut self, kind: NameKind, refused: bool, list_bytes: usize) {
        self.block.list_bytes += list_bytes;
        self.block.fields += 1;
        self.block.pseudo |= kind != NameKind::Field;
        self.block.target_refused |= refused;
    }

    /// Returns the name at an index. Also returns its position in the dynamic table, unless the
    /// name is in the static table.
    fn name(&self, index: usize) -> Result<(FieldName, Option<usize>), CorruptBlock> {
        let position = index.checked_sub(1).ok_or(CorruptBlock)?;
        if let Some(length) = STATIC_NAMES.get(position) {
            let kind = match index {
                4 | 5 => NameKind::Path,
                6 | 7 => NameKind::Scheme,
                1..=14 => NameKind::Pseudo,
                _ => NameKind::Field,
            };
            return Ok((FieldName { kind, length: *length }, None));
        }
        let position = position - STATIC_NAMES.len();
        self.entries.get(position).map(|entry| (entry.name, Some(position))).ok_or(CorruptBlock)
    }

    /// Adds an entry. An entry that is larger than the table empties the table (RFC 7541, section
    /// 4.4).
    fn insert(&mut self, entry: TableEntry) {
        self.evict(entry.bytes);
        if entry.bytes <= self.bytes_max {
            self.bytes += entry.bytes;
            self.entries.push_front(entry);
        }
    }

    /// Drops the oldest entries until `wanted` bytes fit.
    fn evict(&mut self, wanted: usize) {
        while self.bytes + wanted > self.bytes_max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.bytes -= oldest.bytes;
        }
    }
}

fn name_of(text: &[u8]) -> Result<FieldName, CorruptBlock> {
    let kind = match text {
        b"" => return Err(CorruptBlock),
        b":path" => NameKind::Path,
        b":scheme" => NameKind::Scheme,
        [b':', ..] => NameKind::Pseudo,
        _ => NameKind::Field,
    };
    Ok(FieldName { kind, length: text.len() })
}

/// Reads an integer with `prefix` bits in its first byte (RFC 7541, section 5.1).
fn integer(bytes: &[u8], at: usize, prefix: u32) -> Parsed<usize> {
    /// The maximum of bytes after the first one. The library reads fewer.
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
    Err(CorruptBlock)
}

/// An encoded string of a block (RFC 7541, section 5.2).
struct EncodedText<'b> {
    bytes: &'b [u8],
    huffman: bool,
}

fn string(bytes: &[u8], at: usize) -> Parsed<EncodedText<'_>> {
    let Some((length, start)) = integer(bytes, at, 7)? else { return Ok(None) };
    let huffman = bytes.get(at).is_some_and(|first| first & 0x80 != 0);
    let end = start.checked_add(length).ok_or(CorruptBlock)?;
    Ok(bytes.get(start..end).map(|bytes| (EncodedText { bytes, huffman }, end)))
}

impl EncodedText<'_> {
    /// Returns the text's greatest length in bytes: the shortest codes have five bits.
    fn length_max(&self) -> usize {
        if self.huffman { self.bytes.len() * 8 / 5 } else { self.bytes.len() }
    }

    fn decoded(&self) -> Result<std::borrow::Cow<'_, [u8]>, CorruptBlock> {
        if self.huffman { huffman(self.bytes).map(Into::into) } else { Ok(self.bytes.into()) }
    }
}

/// Bits of each byte's code (RFC 7541, appendix B). The lengths define all codes. In the order of
/// length, and within one length in the order of the bytes, each code is the next number.
#[rustfmt::skip]
const CODE_BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Bits of the shortest and of the longest code.
const BITS_MIN: usize = 5;
const BITS_MAX: usize = 30;

/// `bytes` has all bytes in the order of their codes. For each length, `first` has the first code,
/// and `start` the position of that code's byte.
struct HuffmanCodes {
    bytes: [u8; 256],
    first: [u32; BITS_MAX + 2],
    start: [usize; BITS_MAX + 2],
}

const CODES: HuffmanCodes = {
    let mut codes =
        HuffmanCodes { bytes: [0; 256], first: [0; BITS_MAX + 2], start: [0; BITS_MAX + 2] };
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

/// Decodes a string in Huffman code. The padding must be shorter than a byte, and all ones.
fn huffman(bytes: &[u8]) -> Result<Vec<u8>, CorruptBlock> {
    static TABLE: HuffmanCodes = CODES;
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
                return Err(CorruptBlock);
            }
            let count = TABLE.start[bits + 1] - TABLE.start[bits];
            // A number below the first code of this length is neither a code nor the beginning of a
            // code.
            let offset =
                code.checked_sub(TABLE.first[bits]).map_or(usize::MAX, |offset| offset as usize);
            if offset < count {
                decoded.push(TABLE.bytes[TABLE.start[bits] + offset]);
                (code, bits) = (0, 0);
            }
        }
    }
    let padding = bits < 8 && code == (1 << bits) - 1;
    if padding { Ok(decoded) } else { Err(CorruptBlock) }
}

#[cfg(test)]
mod tests;
