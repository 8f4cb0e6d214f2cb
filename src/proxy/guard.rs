//! The byte guard: reads an HTTP/1.1 connection beside the parser behind it, and says how far the bytes may be passed on.
//!
//! Danger: bytes that two parsers read in two ways are two requests to one of them, and the second passes every check
//! unseen. So what RFC 9112 leaves to a recipient's leniency (bare LF, folded fields, a length beside a transfer coding)
//! is refused here, before any parser sees it. A head is judged whole: no part of a refused one is passed on.
//!
//! The scanner looks at each byte once and allocates nothing, except to take a target apart that is a whole URL. It keeps
//! positions only; bytes are kept by who calls it.

mod block;
mod chunked;
mod frames;

use http::Uri;
use http::uri::Authority;

pub(super) use self::block::FIELD_BYTES;
use self::chunked::Chunked;
pub(super) use self::frames::DATA_BYTES_MIN;
pub use self::frames::{Frames, Passed};
use super::server::FIELDS_MAX;
use crate::gate::{Malformation, Problem};

/// A target's bytes: more is not held by the type that the parser makes of it.
const TARGET_BYTES_MAX: usize = (u16::MAX - 1) as usize;

/// A field name's bytes. The longest registered one has 40.
const NAME_BYTES_MAX: usize = 256;

/// A content length's digits: all numbers of so many fit into 63 bits, whichever sign a parser gives them.
const LENGTH_DIGITS_MAX: usize = 18;

/// Classes of bytes (RFC 9110, section 5.6.2; RFC 3986, section 2). In a class, a bit is set.
const TOKEN: u8 = 1;
const METHOD: u8 = 2;
const TARGET: u8 = 4;
const VALUE: u8 = 8;
const VERSION: u8 = 16;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let mark = matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        );
        if byte.is_ascii_alphanumeric() || mark {
            classes[at] |= TOKEN;
        }
        // Methods are compared by case, but not by everybody: a route on POST would not see a `post`.
        if byte.is_ascii_uppercase() || byte.is_ascii_digit() || mark {
            classes[at] |= METHOD;
        }
        // A fragment is nothing to a server, and a backslash is a slash to some.
        if byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\' | b'<' | b'>' | b'`') {
            classes[at] |= TARGET;
        }
        if matches!(byte, b'\t' | b' '..=b'~' | 0x80..) {
            classes[at] |= VALUE;
        }
        if byte.is_ascii_graphic() {
            classes[at] |= VERSION;
        }
        at += 1;
    }
    classes
};

/// How many bytes from the start are of a class.
fn run(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|byte| CLASSES[usize::from(*byte)] & class == 0).unwrap_or(bytes.len())
}

/// How many bytes from the start may be in a value. Most of a head is values, so they are looked at in blocks, which the
/// compiler turns into one comparison each.
fn run_of_value(bytes: &[u8]) -> usize {
    const BLOCK: usize = 16;
    let plain = |block: &&[u8]| block.iter().fold(true, |plain, byte| plain & (*byte >= b' ') & (*byte != 0x7f));
    let blocks = bytes.chunks_exact(BLOCK).take_while(plain).count();
    let rest = blocks * BLOCK;
    rest + run(&bytes[rest..], VALUE)
}

/// What a byte that may not stand where it does is called; `otherwise` where it is an ordinary one.
fn stray(byte: u8, otherwise: Malformation) -> Malformation {
    match byte {
        b'\r' | b'\n' => Malformation::LineEnding,
        b'\t' => otherwise,
        byte if byte.is_ascii_control() => Malformation::ControlByte,
        _ => otherwise,
    }
}

/// Follows the requests of one HTTP/1.1 connection.
#[derive(Debug)]
pub struct Scanner {
    part: Part,
    head_bytes_max: usize,
}

/// What a scanner found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// How many bytes may be passed on. Those behind them begin a head that is not complete: they are shown again, with
    /// more behind them.
    pub safe: usize,
    /// Why nothing behind them will ever be passed on.
    pub refused: Option<Problem>,
}

/// The part of a request that the next byte belongs to.
#[derive(Debug)]
enum Part {
    Head(Head),
    /// A body with so many bytes left.
    Sized(u64),
    Chunked(Chunked),
    Refused {
        problem: Problem,
        in_body: bool,
    },
}

impl Scanner {
    /// At the beginning of a connection. `head_bytes_max` bounds request line and fields together, in bytes.
    pub fn new(head_bytes_max: usize) -> Scanner {
        Scanner { part: Part::Head(Head::default()), head_bytes_max }
    }

    /// Looks at the bytes that follow those last found safe. What is found does not depend on how they were cut.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut safe = 0;
        loop {
            let rest = &bytes[safe..];
            let next = match &mut self.part {
                Part::Head(head) => match head.scan(rest, self.head_bytes_max) {
                    Ok(None) => return Scan { safe, refused: None },
                    Ok(Some(part)) => {
                        safe += head.at;
                        part
                    }
                    Err(problem) => Part::Refused { problem, in_body: false },
                },
                Part::Sized(left) => {
                    // What does not fit a usize is surely more than there is.
                    let length = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    safe += length;
                    *left -= length as u64;
                    if *left > 0 {
                        return Scan { safe, refused: None };
                    }
                    Part::Head(Head::default())
                }
                Part::Chunked(chunked) => {
                    let (length, found) = chunked.scan(rest);
                    safe += length;
                    match found {
                        Ok(false) => return Scan { safe, refused: None },
                        Ok(true) => Part::Head(Head::default()),
                        Err(why) => Part::Refused { problem: why.into(), in_body: true },
                    }
                }
                Part::Refused { problem, .. } => return Scan { safe, refused: Some(problem.clone()) },
            };
            self.part = next;
        }
    }

    /// Whether the next byte belongs to the body of a request whose head was passed on.
    pub fn in_body(&self) -> bool {
        matches!(self.part, Part::Sized(_) | Part::Chunked(_) | Part::Refused { in_body: true, .. })
    }
}

/// A request's head: where the scanner is, and what it has found about the framing. Positions count from its start.
#[derive(Debug, Default)]
struct Head {
    step: HeadStep,
    at: usize,
    /// Where the method, the target or the field began.
    start: usize,
    method_end: usize,
    name_end: usize,
    fields: usize,
    options: bool,
    http_10: bool,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum HeadStep {
    /// Before the request line, where one empty line is allowed (RFC 9112, section 2.2).
    #[default]
    Start,
    EmptyLf,
    Method,
    Target,
    Version,
    LineLf,
    FieldStart,
    Name,
    Value,
    ValueLf,
    EndLf,
}

impl Head {
    /// Reads on in `bytes`, which begin with the head; gives what follows it once it is complete.
    fn scan(&mut self, bytes: &[u8], bytes_max: usize) -> Result<Option<Part>, Problem> {
        let too_large = || Problem::HeaderTooLarge { limit: bytes_max };
        let head = &bytes[..bytes.len().min(bytes_max)];
        loop {
            self.at += match self.step {
                HeadStep::Method => run(&head[self.at..], METHOD),
                HeadStep::Target => run(&head[self.at..], TARGET),
                HeadStep::Version => run(&head[self.at..], VERSION),
                HeadStep::Name => run(&head[self.at..], TOKEN),
                HeadStep::Value => run_of_value(&head[self.at..]),
                _ => 0,
            };
            let Some(&byte) = head.get(self.at) else {
                return if head.len() == bytes_max { Err(too_large()) } else { Ok(None) };
            };
            match (self.step, byte) {
                (HeadStep::Start, b'\r') => (self.step, self.at) = (HeadStep::EmptyLf, self.at + 1),
                (HeadStep::Start | HeadStep::EmptyLf, byte) => {
                    if matches!(self.step, HeadStep::EmptyLf) {
                        expect(byte, b'\n', Malformation::LineEnding)?;
                        self.at += 1;
                    }
                    (self.step, self.start) = (HeadStep::Method, self.at);
                }
                (HeadStep::Method, byte) => {
                    expect(byte, b' ', Malformation::RequestLine)?;
                    self.method(&head[self.start..self.at])?;
                    self.method_end = self.at;
                    self.next(HeadStep::Target);
                }
                (HeadStep::Target, byte) => {
                    expect(byte, b' ', Malformation::Target)?;
                    if self.at - self.start > TARGET_BYTES_MAX {
                        return Err(too_large());
                    }
                    self.target(&head[self.start..self.at])?;
                    self.next(HeadStep::Version);
                }
                (HeadStep::Version, byte) => {
                    expect(byte, b'\r', Malformation::RequestLine)?;
                    self.http_10 = match &head[self.start..self.at] {
                        b"HTTP/1.1" => false,
                        b"HTTP/1.0" => true,
                        _ => return Err(Malformation::Version.into()),
                    };
                    self.next(HeadStep::LineLf);
                }
                (HeadStep::LineLf | HeadStep::ValueLf, byte) => {
                    expect(byte, b'\n', Malformation::LineEnding)?;
                    self.next(HeadStep::FieldStart);
                }
                (HeadStep::FieldStart, b'\r') => self.next(HeadStep::EndLf),
                (HeadStep::FieldStart, b' ' | b'\t') => return Err(Malformation::Folded.into()),
                (HeadStep::FieldStart, _) => {
                    self.fields += 1;
                    if self.fields > FIELDS_MAX {
                        return Err(too_large());
                    }
                    self.step = HeadStep::Name;
                }
                (HeadStep::Name, byte) => {
                    expect(byte, b':', Malformation::FieldName)?;
                    match self.at - self.start {
                        0 => return Err(Malformation::FieldName.into()),
                        1..=NAME_BYTES_MAX => {}
                        _ => return Err(too_large()),
                    }
                    (self.step, self.name_end, self.at) = (HeadStep::Value, self.at, self.at + 1);
                }
                (HeadStep::Value, byte) => {
                    expect(byte, b'\r', Malformation::ControlByte)?;
                    self.field(&head[self.start..self.name_end], &head[self.name_end + 1..self.at])?;
                    self.next(HeadStep::ValueLf);
                }
                (HeadStep::EndLf, byte) => {
                    expect(byte, b'\n', Malformation::LineEnding)?;
                    self.at += 1;
                    return Ok(Some(self.body()?));
                }
            }
        }
    }

    /// Goes on behind the byte that ended a step.
    fn next(&mut self, step: HeadStep) {
        self.at += 1;
        (self.step, self.start) = (step, self.at);
    }

    fn method(&mut self, method: &[u8]) -> Result<(), Problem> {
        match method {
            b"" => Err(Malformation::RequestLine.into()),
            // Refused here and not behind the parser, which would begin a tunnel: what follows is not HTTP to it.
            b"CONNECT" | b"TRACE" => Err(Problem::MethodNotAllowed),
            _ => {
                self.options = method == b"OPTIONS";
                Ok(())
            }
        }
    }

    /// A path, a whole URI, or the asterisk of OPTIONS (RFC 9112, section 3.2). A bare authority is for CONNECT only.
    fn target(&self, target: &[u8]) -> Result<(), Malformation> {
        let begins = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        let valid = match target.first() {
            Some(b'/') => true,
            Some(b'*') => self.options && target.len() == 1,
            Some(_) if begins(b"http://") || begins(b"https://") => {
                let authority = Uri::try_from(target).ok().and_then(|uri| uri.into_parts().authority);
                authority.is_some_and(|authority| is_host(&authority))
            }
            _ => false,
        };
        if valid { Ok(()) } else { Err(Malformation::Target) }
    }

    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformation> {
        if reads_as(name, b"content-length") {
            let value = plain(name, value)?;
            let digits = (1..=LENGTH_DIGITS_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            // A number that begins with zero is octal to some.
            if !digits || (value.len() > 1 && value[0] == b'0') || self.length.is_some() {
                return Err(Malformation::ContentLength);
            }
            self.length = Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
        } else if reads_as(name, b"transfer-encoding") {
            if !plain(name, value)?.eq_ignore_ascii_case(b"chunked") || self.chunked || self.http_10 {
                return Err(Malformation::TransferEncoding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// How the body is framed (RFC 9112, section 6.3).
    fn body(&self) -> Result<Part, Malformation> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Malformation::LengthAndCoding),
            (true, None) => Ok(Part::Chunked(Chunked::default())),
            (false, length) => Ok(Part::Sized(length.unwrap_or(0))),
        }
    }
}

/// Whether an authority is a host, or a host and a port, and nothing else (RFC 9110, section 7.2).
pub(super) fn is_host(authority: &Authority) -> bool {
    let (text, host) = (authority.as_str(), authority.host());
    !host.is_empty() && !text.contains('@') && (text.len() == host.len() || authority.port_u16().is_some())
}

/// An error unless the byte is the expected one.
fn expect(found: u8, expected: u8, otherwise: Malformation) -> Result<(), Malformation> {
    if found == expected { Ok(()) } else { Err(stray(found, otherwise)) }
}

/// Whether a name is this one to some reader: servers that make variables of fields take `_` for `-`.
fn reads_as(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && name.iter().zip(known).all(|(byte, known)| byte.to_ascii_lowercase() == *known || (*byte == b'_' && *known == b'-'))
}

/// The value of a field that frames, without the white space around it.
fn plain<'a>(name: &[u8], value: &'a [u8]) -> Result<&'a [u8], Malformation> {
    if name.contains(&b'_') {
        return Err(Malformation::FieldName);
    }
    // Spaces and tabs are all that it can be: other white space is no field value.
    Ok(value.trim_ascii())
}

#[cfg(test)]
mod tests;
