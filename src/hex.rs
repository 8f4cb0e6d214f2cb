//! Hexadecimal digits in lower case: encoding bytes, and decoding them.

use std::fmt;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Returns the two digits of a byte. For callers that write into a buffer of their own.
pub const fn digits(byte: u8) -> [u8; 2] {
    [DIGITS[(byte >> 4) as usize], DIGITS[(byte & 15) as usize]]
}

/// Encodes bytes as text.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(2 * bytes.len());
    bytes.iter().for_each(|byte| text.extend_from_slice(&digits(*byte)));
    // Digits are always valid text.
    String::from_utf8(text).unwrap_or_default()
}

/// Decodes exactly `N` bytes. Returns `None` for any other length, for upper-case digits and for
/// anything that is not a digit: each value has one spelling.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// Decodes bytes of any number. Returns `None` as [`decode`] does.
pub fn decode_all(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

/// Returns the first 16 bytes of a hash as a UUID of version 4 in form (RFC 9562).
pub fn uuid(hash: &[u8; 32]) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let part = |from: usize, to: usize| encode(&bytes[from..to]);
    [part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16)].join("-")
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Formats bytes as hexadecimal digits without allocating.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHUNK_BYTES: usize = 32;
        let mut text = [0; 2 * CHUNK_BYTES];
        for chunk in self.0.chunks(CHUNK_BYTES) {
            let text = &mut text[..2 * chunk.len()];
            for (pair, byte) in text.chunks_exact_mut(2).zip(chunk) {
                pair.copy_from_slice(&digits(*byte));
            }
            f.write_str(std::str::from_utf8(text).unwrap_or_default())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let all: Vec<u8> = (0..=255).collect();
        let text = encode(&all);
        assert!(text.starts_with("000102") && text.ends_with("fdfeff"));
        assert_eq!(Hex(&all).to_string(), text);
        assert_eq!(decode::<256>(&text).unwrap().as_slice(), all);
        assert_eq!(decode_all(&text), Some(all));
    }

    #[test]
    fn each_value_has_one_spelling() {
        for wrong in ["0", "000", "0G", "0A", "+1", " 1", "é"] {
            assert_eq!((decode::<1>(wrong), decode_all(wrong)), (None, None), "{wrong}");
        }
        assert_eq!(decode::<1>("0a"), Some([10]));
        assert_eq!((decode::<0>(""), decode_all("")), (Some([]), Some(vec![])));
    }

    #[test]
    fn a_hash_as_a_uuid_has_its_version_and_variant() {
        assert_eq!(uuid(&[0xff; 32]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid(&[0; 32]), "00000000-0000-4000-8000-000000000000");
    }
}
