//! Finds the frames in the bytes of an HTTP/2 connection.

/// Length of the connection preface, which precedes the frames of a client (RFC 9113, section 3.4).
pub(super) const PREFACE_BYTES: usize = 24;

/// Frame types and flags (RFC 9113, section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;

/// The head of a frame (RFC 9113, section 4.1).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FrameHead {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    /// The length of the payload, in bytes.
    pub length: usize,
}

/// Finds the frames in a stream of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameScan {
    preface_left: usize,
    head_bytes: [u8; 9],
    head_length: usize,
    head: FrameHead,
    payload_left: usize,
}

/// A report of a [`FrameScan`] about a frame.
pub(super) enum FrameProgress {
    /// The scanned bytes contain the last byte of the frame's head, or at least one byte of its
    /// payload.
    Touched(FrameHead),
    /// The scanned bytes contain the last byte of the frame.
    Ended(FrameHead),
}

impl FrameScan {
    /// Creates a scan of the bytes that a client writes.
    pub fn of_client() -> FrameScan {
        FrameScan { preface_left: PREFACE_BYTES, ..FrameScan::of_server() }
    }

    /// Creates a scan of the bytes that a server writes.
    pub fn of_server() -> FrameScan {
        FrameScan {
            preface_left: 0,
            head_bytes: [0; 9],
            head_length: 0,
            head: FrameHead::default(),
            payload_left: 0,
        }
    }

    /// Scans `bytes` and reports the frames in them, in order.
    pub fn advance(&mut self, mut bytes: &[u8], mut report: impl FnMut(FrameProgress)) {
        let skipped = self.preface_left.min(bytes.len());
        self.preface_left -= skipped;
        bytes = &bytes[skipped..];
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let taken = self.payload_left.min(bytes.len());
                self.payload_left -= taken;
                bytes = &bytes[taken..];
                report(FrameProgress::Touched(self.head));
            } else {
                self.head_bytes[self.head_length] = *first;
                self.head_length += 1;
                bytes = rest;
                if self.head_length < self.head_bytes.len() {
                    continue;
                }
                self.head_length = 0;
                let [a, b, c, kind, flags, stream @ ..] = self.head_bytes;
                self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
                self.head = FrameHead {
                    kind,
                    flags,
                    stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
                    length: self.payload_left,
                };
                report(FrameProgress::Touched(self.head));
            }
            if self.payload_left == 0 {
                report(FrameProgress::Ended(self.head));
            }
        }
    }
}
