//! The byte guard: reads an HTTP/1.1 connection beside the parser behind it, and says how far the bytes may be passed on.
//!
//! Danger: bytes that two parsers read in two ways are two requests to one of them, and the second passes every check
//! unseen. So what RFC 9112 leaves to a recipient's leniency (bare LF, folded fields, a length beside a transfer coding)
//! is refused here, before any parser sees it. A head is judged whole: no part of a refused one is passed on.
//!
//! The scanner looks at each byte once and allocates nothing, except to take a target apart that is a whole URL. It keeps
//! positions only; bytes are kept by who calls it.

mod chunked;
mod frames;
mod hpack;

use http::Version;

use self::chunked::Chunked;
pub(in crate::proxy) use self::frames::{DATA_BYTES_MIN, MARK};
pub use self::frames::{FrameFault, Frames};
pub(in crate::proxy) use self::hpack::FIELD_BYTES;
use crate::proxy::inbound::listener::FIELDS_MAX;
use crate::proxy::inbound::rules::{
    self, Framing, METHOD, RequestTarget, TARGET, TOKEN, VALUE, VERSION, run,
};
use crate::refusal::{Malformation, Refusal};

/// How many bytes from the start may be in a value. Most of a head is values, so they are looked at in blocks, which the
/// compiler turns into one comparison each.
fn run_of_value(bytes: &[u8]) -> usize {
    const BLOCK: usize = 16;
    let plain = |block: &&[u8]| {
        block.iter().fold(true, |plain, byte| plain & (*byte >= b' ') & (*byte != 0x7f))
    };
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
    /// How many heads were passed on.
    heads: u64,
    /// Those of them whose target is to be forwarded as `*`, by their number on the connection.
    server_wide: Vec<u64>,
}

/// What a scanner found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// How many bytes may be passed on. Those behind them begin a head that is not complete: they are shown again, with
    /// more behind them.
    pub safe: usize,
    /// Why nothing behind them will ever be passed on.
    pub refused: Option<Refusal>,
}

/// The part of a request that the next byte belongs to.
#[derive(Debug)]
enum Part {
    Head(Head),
    /// A body with so many bytes left.
    Sized(u64),
    Chunked(Chunked),
    Refused {
        problem: Refusal,
        in_body: bool,
    },
}

impl Scanner {
    /// At the beginning of a connection. `head_bytes_max` bounds request line and fields together, in bytes.
    pub fn new(head_bytes_max: usize) -> Scanner {
        Scanner {
            part: Part::Head(Head::default()),
            head_bytes_max,
            heads: 0,
            server_wide: Vec::new(),
        }
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
                        if head.server_wide {
                            self.server_wide.push(self.heads);
                        }
                        self.heads += 1;
                        part
                    }
                    Err(problem) => Part::Refused { problem, in_body: false },
                },
                Part::Sized(left) => {
                    // What does not fit a usize is surely more than there is.
                    let length =
                        usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
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
                Part::Refused { problem, .. } => {
                    return Scan { safe, refused: Some(problem.clone()) };
                }
            };
            self.part = next;
        }
    }

    /// Takes the numbers of the heads passed on since the last call whose target is to be forwarded as `*`.
    pub fn take_server_wide(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.server_wide)
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
    name_end: usize,
    fields: usize,
    rules: rules::Head,
    /// The target is to be forwarded as `*`.
    server_wide: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum HeadStep {
    /// Before the request line, where one empty line is allowed (RFC 9112, section 2.2).
    #[default]
    Start,
    EmptyLf,
    Method,
    RequestTarget,
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
    fn scan(&mut self, bytes: &[u8], bytes_max: usize) -> Result<Option<Part>, Refusal> {
        let too_large = || Refusal::HeaderTooLarge { limit: bytes_max };
        let head = &bytes[..bytes.len().min(bytes_max)];
        loop {
            self.at += match self.step {
                HeadStep::Method => run(&head[self.at..], METHOD),
                HeadStep::RequestTarget => run(&head[self.at..], TARGET),
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
                    let lower_case = byte.is_ascii_lowercase();
                    let otherwise =
                        if lower_case { Malformation::Method } else { Malformation::RequestLine };
                    expect(byte, b' ', otherwise)?;
                    self.rules.method(&head[self.start..self.at])?;
                    self.next(HeadStep::RequestTarget);
                }
                (HeadStep::RequestTarget, byte) => {
                    expect(byte, b' ', Malformation::Target)?;
                    let target = &head[self.start..self.at];
                    rules::target_length(target, bytes_max)?;
                    self.rules.target(RequestTarget::Line(target))?;
                    self.server_wide = self.rules.is_options() && has_no_path(target);
                    self.next(HeadStep::Version);
                }
                (HeadStep::Version, byte) => {
                    expect(byte, b'\r', Malformation::RequestLine)?;
                    self.rules.version = match &head[self.start..self.at] {
                        b"HTTP/1.1" => Version::HTTP_11,
                        b"HTTP/1.0" => Version::HTTP_10,
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
                    rules::name_length(&head[self.start..self.at], bytes_max)?;
                    (self.step, self.name_end, self.at) = (HeadStep::Value, self.at, self.at + 1);
                }
                (HeadStep::Value, byte) => {
                    expect(byte, b'\r', Malformation::ControlByte)?;
                    // Spaces and tabs are all that it can be: other white space is no field value.
                    let value = head[self.name_end + 1..self.at].trim_ascii();
                    self.rules.field(&head[self.start..self.name_end], value)?;
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

    /// What follows the head: its body.
    fn body(&self) -> Result<Part, Malformation> {
        Ok(match self.rules.framing()? {
            Framing::Chunked => Part::Chunked(Chunked::default()),
            Framing::Length(length) => Part::Sized(length.unwrap_or(0)),
        })
    }
}

/// Whether a target is a URI with neither path nor query. OPTIONS with such a target is about the
/// server as a whole (RFC 9112, section 3.2.4). The parser behind makes the path `/` of it.
fn has_no_path(target: &[u8]) -> bool {
    let scheme = target.windows(3).position(|window| window == b"://");
    let authority = scheme.and_then(|at| target.get(at + 3..));
    authority.is_some_and(|rest| !rest.iter().any(|byte| matches!(byte, b'/' | b'?')))
}

/// An error unless the byte is the expected one.
fn expect(found: u8, expected: u8, otherwise: Malformation) -> Result<(), Malformation> {
    if found == expected { Ok(()) } else { Err(stray(found, otherwise)) }
}

#[cfg(test)]
mod tests;
