//! Scans a request's head (RFC 9112, sections 2 to 5), and refuses bytes that two parsers could
//! interpret differently.

use http::Version;

use crate::gate::{Malformation, Refusal};
use crate::proxy::byte_class::{METHOD, TARGET, TOKEN, VERSION, expect, run, run_of_value};
use crate::proxy::rules::{self, BodyFraming, FIELDS_MAX, HeadCheck, RequestTarget};

/// The scanner of one head: its position, and the framing found so far. Positions count from the
/// head's start.
#[derive(Debug, Default)]
pub(super) struct HeadScanner {
    step: HeadStep,
    at: usize,
    /// Start of the current method, target, version or field.
    start: usize,
    name_end: usize,
    fields: usize,
    check: HeadCheck,
    server_wide: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum HeadStep {
    /// Before the request line. One empty line is allowed here (RFC 9112, section 2.2).
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

impl HeadScanner {
    /// Continues the scan. `bytes` begin with the head. Returns the framing of the body when the
    /// head is complete.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        bytes_max: usize,
    ) -> Result<Option<BodyFraming>, Refusal> {
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
                let is_full = head.len() == bytes_max;
                return if is_full { Err(too_large(bytes_max)) } else { Ok(None) };
            };
            match self.step {
                HeadStep::Start
                | HeadStep::EmptyLf
                | HeadStep::Method
                | HeadStep::RequestTarget
                | HeadStep::Version
                | HeadStep::LineLf => self.request_line(head, byte, bytes_max)?,
                HeadStep::FieldStart | HeadStep::Name | HeadStep::Value | HeadStep::ValueLf => {
                    self.field(head, byte, bytes_max)?;
                }
                HeadStep::EndLf => {
                    expect(byte, b'\n', Malformation::LineEnding)?;
                    self.at += 1;
                    return Ok(Some(self.check.framing()?));
                }
            }
        }
    }

    /// Returns the length of a complete head.
    pub(super) fn length(&self) -> usize {
        self.at
    }

    /// Returns whether the target is forwarded as `*`.
    pub(super) fn is_server_wide(&self) -> bool {
        self.server_wide
    }

    /// Processes the byte that ends a step of the request line.
    fn request_line(&mut self, head: &[u8], byte: u8, bytes_max: usize) -> Result<(), Refusal> {
        match self.step {
            HeadStep::Start if byte == b'\r' => {
                (self.step, self.at) = (HeadStep::EmptyLf, self.at + 1);
            }
            HeadStep::EmptyLf => {
                expect(byte, b'\n', Malformation::LineEnding)?;
                self.next(HeadStep::Method);
            }
            HeadStep::Method => {
                let lower_case = byte.is_ascii_lowercase();
                let otherwise =
                    if lower_case { Malformation::Method } else { Malformation::RequestLine };
                expect(byte, b' ', otherwise)?;
                self.check.method(&head[self.start..self.at])?;
                self.next(HeadStep::RequestTarget);
            }
            HeadStep::RequestTarget => {
                expect(byte, b' ', Malformation::Target)?;
                let target = &head[self.start..self.at];
                rules::target_length(target, bytes_max)?;
                self.check.target(RequestTarget::Line(target))?;
                self.server_wide = self.check.is_options() && has_no_path(target);
                self.next(HeadStep::Version);
            }
            HeadStep::Version => {
                expect(byte, b'\r', Malformation::RequestLine)?;
                self.check.version = match &head[self.start..self.at] {
                    b"HTTP/1.1" => Version::HTTP_11,
                    b"HTTP/1.0" => Version::HTTP_10,
                    _ => return Err(Malformation::Version.into()),
                };
                self.next(HeadStep::LineLf);
            }
            HeadStep::LineLf => {
                expect(byte, b'\n', Malformation::LineEnding)?;
                self.next(HeadStep::FieldStart);
            }
            _ => (self.step, self.start) = (HeadStep::Method, self.at),
        }
        Ok(())
    }

    /// Processes the byte that ends a step of a field.
    fn field(&mut self, head: &[u8], byte: u8, bytes_max: usize) -> Result<(), Refusal> {
        match (self.step, byte) {
            (HeadStep::FieldStart, b'\r') => self.next(HeadStep::EndLf),
            (HeadStep::FieldStart, b' ' | b'\t') => return Err(Malformation::Folded.into()),
            (HeadStep::FieldStart, _) => {
                self.fields += 1;
                if self.fields > FIELDS_MAX {
                    return Err(too_large(bytes_max));
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
                // This trims only spaces and tabs: a field value can't contain other white space.
                let value = head[self.name_end + 1..self.at].trim_ascii();
                self.check.field(&head[self.start..self.name_end], value)?;
                self.next(HeadStep::ValueLf);
            }
            _ => {
                expect(byte, b'\n', Malformation::LineEnding)?;
                self.next(HeadStep::FieldStart);
            }
        }
        Ok(())
    }

    /// Continues after the byte that ended a step.
    fn next(&mut self, step: HeadStep) {
        self.at += 1;
        (self.step, self.start) = (step, self.at);
    }
}

/// Returns the refusal of a head that is too large.
fn too_large(bytes_max: usize) -> Refusal {
    Refusal::HeaderTooLarge { limit: bytes_max }
}

/// Returns whether a target is a URI with neither path nor query. OPTIONS with such a target is
/// about the server as a whole (RFC 9112, section 3.2.4). The parser changes such a target to the
/// path `/`.
fn has_no_path(target: &[u8]) -> bool {
    let scheme = target.windows(3).position(|window| window == b"://");
    let authority = scheme.and_then(|at| target.get(at + 3..));
    authority.is_some_and(|rest| !rest.iter().any(|byte| matches!(byte, b'/' | b'?')))
}
