//! The byte guard: scans an HTTP/1.1 connection before its parser, and returns how many bytes may
//! be passed on.
//!
//! Danger: if two parsers interpret bytes differently, one of them may find a second request in the
//! bytes, and that request passes no check. RFC 9112 lets a recipient accept bare LF, folded
//! fields, or a length beside a transfer coding. All of these are refused here, before any parser
//! reads them. A head is passed on only after all of it was checked.
//!
//! The scanner looks at each byte once. It allocates memory only to parse a target that is a whole
//! URL. It keeps positions, and its caller keeps the bytes.

mod chunked;
mod frames;
mod head;
mod hpack;

use self::chunked::ChunkScanner;
pub(in crate::proxy) use self::frames::{DATA_BYTES_MIN, MARK};
pub use self::frames::{FrameScanner, FrameVerdict};
use self::head::HeadScanner;
pub(in crate::proxy) use self::hpack::FIELD_BYTES;
use crate::proxy::rules::BodyFraming;
use crate::refusal::Refusal;

/// Scans the requests of one HTTP/1.1 connection.
#[derive(Debug)]
pub struct Scanner {
    part: RequestPart,
    head_bytes_max: usize,
    /// Number of heads that were passed on.
    heads: u64,
    /// The numbers of the passed heads that have a target that is forwarded as `*`.
    server_wide: Vec<u64>,
}

/// The result of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// How many bytes may be passed on. The other bytes begin an incomplete head. The caller has to
    /// scan these again when more bytes have arrived.
    pub safe: usize,
    /// The reason why no byte after the safe ones may be passed on.
    pub refused: Option<Refusal>,
}

/// The part of a request that the next byte belongs to.
#[derive(Debug)]
enum RequestPart {
    Head(HeadScanner),
    /// A body with a length: the bytes of it that are left.
    Sized(u64),
    Chunked(ChunkScanner),
    Refused {
        refusal: Refusal,
        in_body: bool,
    },
}

impl Scanner {
    /// Begins a connection. `head_bytes_max` bounds request line and fields together, in bytes.
    pub fn new(head_bytes_max: usize) -> Scanner {
        Scanner {
            part: RequestPart::Head(HeadScanner::default()),
            head_bytes_max,
            heads: 0,
            server_wide: Vec::new(),
        }
    }

    /// Scans the bytes after the last safe ones. The result does not depend on the pieces in which
    /// the bytes arrive.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut safe = 0;
        loop {
            let rest = &bytes[safe..];
            let next = match &mut self.part {
                RequestPart::Head(head) => match head.scan(rest, self.head_bytes_max) {
                    Ok(None) => return Scan { safe, refused: None },
                    Ok(Some(framing)) => {
                        safe += head.length();
                        if head.is_server_wide() {
                            self.server_wide.push(self.heads);
                        }
                        self.heads += 1;
                        RequestPart::body(framing)
                    }
                    Err(refusal) => RequestPart::Refused { refusal, in_body: false },
                },
                RequestPart::Sized(left) => {
                    // A length that does not fit into a usize is greater than the number of these
                    // bytes.
                    let length =
                        usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    safe += length;
                    *left -= length as u64;
                    if *left > 0 {
                        return Scan { safe, refused: None };
                    }
                    RequestPart::Head(HeadScanner::default())
                }
                RequestPart::Chunked(chunked) => {
                    let (length, ended) = chunked.scan(rest);
                    safe += length;
                    match ended {
                        Ok(false) => return Scan { safe, refused: None },
                        Ok(true) => RequestPart::Head(HeadScanner::default()),
                        Err(why) => RequestPart::Refused { refusal: why.into(), in_body: true },
                    }
                }
                RequestPart::Refused { refusal, .. } => {
                    return Scan { safe, refused: Some(refusal.clone()) };
                }
            };
            self.part = next;
        }
    }

    /// Takes the numbers of the heads that were passed on since the last call and have a target
    /// that is forwarded as `*`.
    pub fn take_server_wide(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.server_wide)
    }

    /// Returns whether the next byte belongs to a body.
    pub fn in_body(&self) -> bool {
        match self.part {
            RequestPart::Head(_) => false,
            RequestPart::Sized(_) | RequestPart::Chunked(_) => true,
            RequestPart::Refused { in_body, .. } => in_body,
        }
    }
}

impl RequestPart {
    /// Returns the part of a request that follows its head.
    fn body(framing: BodyFraming) -> RequestPart {
        match framing {
            BodyFraming::Chunked => RequestPart::Chunked(ChunkScanner::default()),
            BodyFraming::Length(length) => RequestPart::Sized(length.unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests;
