//! An HTTP/2 client that writes frames by hand, so that a test controls each byte.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::PATIENCE;

/// Types of frames (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A received frame.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub payload: Vec<u8>,
}

/// An open connection.
pub struct Frames {
    stream: TcpStream,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literal fields without indexing (RFC 7541, section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            // An integer with a prefix of seven bits, continued in seven bits per byte (RFC 7541,
            // section 5.1).
            match text.len().checked_sub(127) {
                None => bytes.push(u8::try_from(text.len()).unwrap()),
                Some(mut rest) => {
                    bytes.push(127);
                    while rest >= 128 {
                        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                        rest /= 128;
                    }
                    bytes.push(u8::try_from(rest).unwrap());
                }
            }
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The header block of a request, with more fields after its usual ones.
pub fn request<'a>(
    method: &'a str,
    path: &'a str,
    more: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut fields =
        vec![(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)];
    fields.extend_from_slice(more);
    fields
}

impl Frames {
    /// Connects and sends settings: pairs of identifier and value.
    pub fn open(port: u16, settings: &[(u16, u32)]) -> Frames {
        Frames::over(TcpStream::connect(("127.0.0.1", port)).unwrap(), settings)
    }

    /// Does the same on an open connection.
    pub fn over(stream: TcpStream, settings: &[(u16, u32)]) -> Frames {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut connection = Frames { stream };
        let pairs: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        connection.write(
            &[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &pairs)].concat(),
        );
        connection
    }

    /// Writes the bytes; returns `false` if the connection failed.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub fn headers(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) -> bool {
        self.write(&frame(HEADERS, flags | END_HEADERS, stream, &block(fields)))
    }

    /// Reads the next frame; `None` if the connection ended.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Frame { kind: head[3], flags: head[4], payload })
    }

    /// Reads up to the next frame of one of these types; `None` if the connection ended first.
    pub fn until(&mut self, kinds: &[u8]) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if kinds.contains(&frame.kind) {
                return Some(frame);
            }
        }
    }

    /// Waits for the end of the connection. Returns the error code of its GOAWAY, or `None` without
    /// one.
    pub fn ending(&mut self) -> Option<u32> {
        let frame = self.until(&[GOAWAY])?;
        Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()))
    }
}
