//! Scans a chunked body (RFC 9112, section 7.1) to its end, and refuses bytes that two parsers
//! could interpret differently.

use crate::proxy::byte_class::{CLASSES, TOKEN, VALUE, expect, stray};
use crate::proxy::rules::{FIELDS_MAX, TRAILER_BYTES_MAX, TRAILER_NAME_KEPT, trailer_name};
use crate::refusal::Malformation;

/// The maximum of digits of a chunk's size. A parser with 32-bit integers must read the same
/// number.
const CHUNK_DIGITS_MAX: u8 = 8;

/// The maximum of bytes of all chunk extensions of one body. A recipient must limit them (RFC 9112,
/// section 7.1.1), and nobody uses them.
pub(super) const EXTENSION_BYTES_MAX: usize = 1024;

/// The scanner of one chunked body.
#[derive(Debug, Default)]
pub(super) struct ChunkScanner {
    pub(super) step: ChunkStep,
    /// The size of the chunk. While its data is scanned, the number of its bytes that are left.
    pub(super) left: u64,
    digits: u8,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailer_fields: usize,
    name: [u8; TRAILER_NAME_KEPT],
    name_length: usize,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) enum ChunkStep {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

impl ChunkScanner {
    /// Continues the scan. Returns how many bytes belong to the body and may be passed on, and
    /// whether the body ends with them.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> (usize, Result<bool, Malformation>) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let ChunkStep::Data = self.step {
                let rest = bytes.len() - at;
                let length = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                at += length;
                self.left -= length as u64;
                if self.left == 0 {
                    self.step = ChunkStep::DataCr;
                }
                continue;
            }
            match self.step(byte) {
                Ok(Some(step)) => self.step = step,
                Ok(None) => return (at + 1, Ok(true)),
                Err(why) => return (at, Err(why)),
            }
            at += 1;
        }
        (at, Ok(false))
    }

    /// Returns the step after a byte that isn't data, or `None` after the last byte of the body.
    fn step(&mut self, byte: u8) -> Result<Option<ChunkStep>, Malformation> {
        use ChunkStep::{
            Data, DataCr, DataLf, EndLf, Extension, Size, SizeLf, TrailerLf, TrailerName,
            TrailerStart, TrailerValue,
        };
        Ok(Some(match self.step {
            Size => self.size(byte)?,
            Extension if byte == b'\r' => SizeLf,
            Extension => {
                self.extension_bytes += 1;
                if CLASSES[usize::from(byte)] & VALUE == 0
                    || self.extension_bytes > EXTENSION_BYTES_MAX
                {
                    return Err(stray(byte, Malformation::ChunkExtension));
                }
                Extension
            }
            SizeLf => {
                expect(byte, b'\n', Malformation::LineEnding)?;
                if self.left == 0 { TrailerStart } else { Data }
            }
            // Not reached: `scan` skips the data of a chunk as a whole.
            Data => Data,
            DataCr => {
                expect(byte, b'\r', Malformation::ChunkEnd)?;
                DataLf
            }
            DataLf => {
                expect(byte, b'\n', Malformation::LineEnding)?;
                self.digits = 0;
                Size
            }
            TrailerStart | TrailerName | TrailerValue | TrailerLf => self.trailer(byte)?,
            EndLf => {
                expect(byte, b'\n', Malformation::LineEnding)?;
                return Ok(None);
            }
        }))
    }

    fn size(&mut self, byte: u8) -> Result<ChunkStep, Malformation> {
        match (char::from(byte).to_digit(16), byte) {
            (Some(digit), _) if self.digits < CHUNK_DIGITS_MAX => {
                self.left = self.left * 16 + u64::from(digit);
                self.digits += 1;
                Ok(ChunkStep::Size)
            }
            (None, b'\r') if self.digits > 0 => Ok(ChunkStep::SizeLf),
            (None, b';') if self.digits > 0 => Ok(ChunkStep::Extension),
            _ => Err(stray(byte, Malformation::ChunkSize)),
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<ChunkStep, Malformation> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(Malformation::Trailer);
        }
        let class = CLASSES[usize::from(byte)];
        match (self.step, byte) {
            (ChunkStep::TrailerStart, b'\r') => Ok(ChunkStep::EndLf),
            (ChunkStep::TrailerStart, b' ' | b'\t') => Err(Malformation::Folded),
            (ChunkStep::TrailerStart, _) if class & TOKEN != 0 => {
                self.trailer_fields += 1;
                (self.name[0], self.name_length) = (byte, 1);
                if self.trailer_fields > FIELDS_MAX {
                    Err(Malformation::Trailer)
                } else {
                    Ok(ChunkStep::TrailerName)
                }
            }
            (ChunkStep::TrailerName, b':') => {
                trailer_name(&self.name[..self.name_length])?;
                Ok(ChunkStep::TrailerValue)
            }
            (ChunkStep::TrailerName, _) if class & TOKEN != 0 => {
                if let Some(kept) = self.name.get_mut(self.name_length) {
                    *kept = byte;
                    self.name_length += 1;
                }
                Ok(ChunkStep::TrailerName)
            }
            (ChunkStep::TrailerValue, b'\r') => Ok(ChunkStep::TrailerLf),
            (ChunkStep::TrailerValue, _) if class & VALUE != 0 => Ok(ChunkStep::TrailerValue),
            (ChunkStep::TrailerLf, b'\n') => Ok(ChunkStep::TrailerStart),
            (ChunkStep::TrailerValue, _) => Err(stray(byte, Malformation::ControlByte)),
            _ => Err(stray(byte, Malformation::FieldName)),
        }
    }
}
