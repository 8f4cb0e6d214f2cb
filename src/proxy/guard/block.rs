//! Counts the fields of an HTTP/2 header block without decoding it (RFC 7541, section 6).
//!
//! Danger: a field that the peer has in its table takes one byte here and some hundred in memory. The library behind
//! bounds the bytes that a block decodes to, and not the number of its fields.

/// What a field costs in memory beside its name and value: its place in a map, and its share of the map's growth.
pub(in crate::proxy) const FIELD_BYTES: usize = 160;

/// A header block, as far as it was seen.
#[derive(Debug, Default)]
pub(super) struct Block {
    step: Step,
    fields: usize,
    /// Of names and values that the block spells out.
    bytes: usize,
}

#[derive(Debug, Default, Clone, Copy)]
enum Step {
    /// The next byte begins a field, or an update of the table's size.
    #[default]
    Start,
    /// In an integer that goes on behind its first byte.
    Integer {
        value: usize,
        shift: u32,
        then: Then,
    },
    /// The next byte begins a string's length. So many strings follow, this one included.
    Length {
        strings: u8,
    },
    Text {
        left: usize,
        strings: u8,
    },
    /// No header block: the library refuses it, and with it the connection.
    Unreadable,
}

/// What an integer is.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// An index in the tables, behind which so many strings follow.
    Index { strings: u8 },
    /// The length of the first of so many strings.
    Length { strings: u8 },
}

/// Bytes of an integer behind its first one: the library takes no more.
const INTEGER_SHIFT_MAX: u32 = 21;

impl Block {
    /// How many fields began, pseudo-fields included.
    pub fn fields(&self) -> usize {
        self.fields
    }

    /// What they cost in memory, in bytes: an estimate, as compressed text and fields of the table are longer.
    pub fn cost(&self) -> usize {
        self.bytes.saturating_add(self.fields.saturating_mul(FIELD_BYTES))
    }

    /// Looks at the next bytes.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let Step::Text { left, strings } = self.step {
                let length = left.min(bytes.len());
                self.bytes = self.bytes.saturating_add(length);
                bytes = &bytes[length..];
                self.step = match (left - length, strings) {
                    (0, 0..=1) => Step::Start,
                    (0, strings) => Step::Length { strings: strings - 1 },
                    (left, strings) => Step::Text { left, strings },
                };
                continue;
            }
            bytes = rest;
            self.step = self.next(byte);
        }
    }

    fn next(&mut self, byte: u8) -> Step {
        match self.step {
            Step::Start => self.begin(byte),
            Step::Integer { value, shift, then } => {
                let value = value.saturating_add(usize::from(byte & 0x7f) << shift);
                match (byte & 0x80 != 0, then) {
                    (true, _) if shift >= INTEGER_SHIFT_MAX => Step::Unreadable,
                    (true, then) => Step::Integer { value, shift: shift + 7, then },
                    (false, Then::Index { strings }) => after_index(strings),
                    (false, Then::Length { strings }) => text(value, strings),
                }
            }
            Step::Length { strings } => match usize::from(byte & 0x7f) {
                0x7f => Step::Integer { value: 0x7f, shift: 0, then: Then::Length { strings } },
                length => text(length, strings),
            },
            step @ (Step::Text { .. } | Step::Unreadable) => step,
        }
    }

    /// The first byte of a field: one of the tables', or a literal whose name may be there.
    fn begin(&mut self, byte: u8) -> Step {
        let (prefix, literal) = match byte {
            0x80.. => (0x7f, false),
            0x40..=0x7f => (0x3f, true),
            0x20..=0x3f => (0x1f, false),
            _ => (0x0f, true),
        };
        if !(0x20..=0x3f).contains(&byte) {
            self.fields += 1;
        }
        let index = byte & prefix;
        let strings = match (literal, index) {
            (false, _) => 0,
            (true, 0) => 2,
            (true, _) => 1,
        };
        if index == prefix { Step::Integer { value: 0, shift: 0, then: Then::Index { strings } } } else { after_index(strings) }
    }
}

fn after_index(strings: u8) -> Step {
    if strings == 0 { Step::Start } else { Step::Length { strings } }
}

/// A string of this length begins.
fn text(left: usize, strings: u8) -> Step {
    match (left, strings) {
        (0, 0..=1) => Step::Start,
        (0, strings) => Step::Length { strings: strings - 1 },
        (left, strings) => Step::Text { left, strings },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7541, appendix C, and longer ones: bytes, fields, bytes of text.
    const BLOCKS: &[(&[u8], usize, usize)] = &[
        (b"\x40\x0acustom-key\x0dcustom-header", 1, 23),
        (b"\x04\x0c/sample/path", 1, 12),
        (b"\x10\x08password\x06secret", 1, 14),
        (b"\x82", 1, 0),
        (b"\x82\x86\x84\x41\x0fwww.example.com", 4, 15),
        (b"\x82\x86\x84\xbe\x58\x08no-cache", 5, 8),
        (b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", 4, 12),
        (b"\x3f\xe1\x1f\x82", 1, 0),
        (b"\x20\x3f\xe1\x1f\xff\x80\x01", 1, 0),
        (b"\x7f\x05\x01a\x0f\x05\x01b", 2, 2),
        (b"\0\0\0\0\x01a\0", 2, 1),
        (b"\x80\x80\x80", 3, 0),
    ];

    #[test]
    fn fields_are_counted_however_their_bytes_are_cut() {
        let long = [&b"\x40\x01a\x7f\x81\x01"[..], &[b'x'; 256], b"\x82"].concat();
        for (bytes, fields, text) in BLOCKS.iter().copied().chain([(&long[..], 2, 257)]) {
            for piece in [1, 2, 3, bytes.len()] {
                let mut block = Block::default();
                bytes.chunks(piece).for_each(|bytes| block.scan(bytes));
                let shown = bytes.escape_ascii();
                assert_eq!((block.fields(), block.bytes), (fields, text), "{shown}");
                assert!(matches!(block.step, Step::Start), "{shown}: {:?}", block.step);
            }
        }
    }

    #[test]
    fn an_integer_without_an_end_is_not_followed() {
        let mut block = Block::default();
        block.scan(&[&b"\0\x7f"[..], &[0xff; 100]].concat());
        assert!(matches!(block.step, Step::Unreadable));
    }
}
