//! The rules for a request's head and its trailers, the same for both versions of HTTP.
//!
//! Danger: if only one version of HTTP refused a request, a client could send it in the other one.
//! So both versions use the functions of this file. The byte guard calls them step by step while it
//! reads an HTTP/1.1 head. [`check_head`] calls them for a request that the HTTP/2 library has
//! parsed. All functions are pure.

use http::uri::Authority;
use http::{HeaderMap, Uri, Version};

use crate::proxy::byte_class::{METHOD, TARGET, TOKEN, VALUE, run};
use crate::refusal::{Malformation, Refusal};

/// The maximum of header fields of one request. Each field needs more memory than its bytes.
pub(super) const FIELDS_MAX: usize = 128;

/// Longest target, in bytes. The URI type of the parsers can't hold more.
const TARGET_BYTES_MAX: usize = (u16::MAX - 1) as usize;

/// Longest field name, in bytes. The longest registered name has 40.
const NAME_BYTES_MAX: usize = 256;

/// The maximum of digits of a content length. All numbers with 18 digits fit into 63 bits, so
/// parsers with signed and unsigned integers read the same number.
const LENGTH_DIGITS_MAX: usize = 18;

/// Longest trailer section, in bytes.
pub(super) const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Fields that frame a message. The gateway and the upstream must read them in the same way.
const FRAMING: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];

/// Fields that belong to one connection. HTTP/2 forbids them (RFC 9113, section 8.2.2).
const CONNECTION_SPECIFIC: [&[u8]; 5] =
    [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];

/// Fields that no trailer section may have, because they frame or route a request, or identify its
/// caller (RFC 9110, section 6.5.1). Some origins merge trailers into the head.
const TRAILERS_FORBIDDEN: [&[u8]; 29] = [
    b"authorization",
    b"cache-control",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"idempotency-key",
    b"keep-alive",
    b"max-forwards",
    b"proxy-authorization",
    b"proxy-connection",
    b"range",
    b"te",
    b"traceparent",
    b"tracestate",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"via",
    b"x-api-key",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
];

/// How many bytes of a trailer's name are enough to decide whether it is forbidden: the length of
/// the longest forbidden name, plus one.
pub(super) const TRAILER_NAME_KEPT: usize = 20;

/// A request's target, in the form of its version of HTTP.
#[derive(Debug, Clone, Copy)]
pub(super) enum RequestTarget<'t> {
    /// The target of a request line (RFC 9112, section 3.2).
    Line(&'t [u8]),
    /// The pseudo-header fields of HTTP/2 (RFC 9113, section 8.3.1). The parser drops a scheme
    /// without an authority, so the frame scanner checks such a scheme.
    Pseudo { scheme: Option<&'t [u8]>, path: &'t [u8] },
}

/// The framing of a request's body, as its fields declare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    Chunked,
    /// The length of the body, in bytes. `None`: an HTTP/2 request without a length, which ends
    /// with its stream.
    Length(Option<u64>),
}

/// Checks one head step by step, and keeps its method and its framing fields.
#[derive(Debug)]
pub(super) struct HeadCheck {
    /// The version of the request.
    pub version: Version,
    options: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Default for HeadCheck {
    fn default() -> HeadCheck {
        HeadCheck::new(Version::HTTP_11)
    }
}

impl HeadCheck {
    pub fn new(version: Version) -> HeadCheck {
        HeadCheck { version, options: false, length: None, chunked: false }
    }

    /// Checks a method. It must be in upper case, and neither CONNECT nor TRACE.
    pub fn method(&mut self, method: &[u8]) -> Result<(), Refusal> {
        match method {
            b"" => Err(Malformation::RequestLine.into()),
            // CONNECT must be refused before the parser reads it, because the parser then treats
            // the connection as a tunnel.
            b"CONNECT" | b"TRACE" => Err(Refusal::MethodNotAllowed),
            _ if run(method, METHOD) < method.len() => Err(Malformation::Method.into()),
            _ => {
                self.options = method == b"OPTIONS";
                Ok(())
            }
        }
    }

    /// Returns whether the method is OPTIONS.
    pub fn is_options(&self) -> bool {
        self.options
    }

    /// Checks a target. It may be a path, the asterisk of OPTIONS, or in a request line a whole
    /// URI. A bare authority is for CONNECT only (RFC 9112, section 3.2).
    pub fn target(&self, target: RequestTarget<'_>) -> Result<(), Malformation> {
        let (bytes, scheme) = match target {
            RequestTarget::Line(line) => (line, None),
            RequestTarget::Pseudo { scheme, path } => (path, scheme),
        };
        let plain = run(bytes, TARGET) == bytes.len() && scheme.is_none_or(is_scheme);
        let valid = match bytes.first() {
            Some(b'/') => true,
            Some(b'*') => self.options && bytes.len() == 1,
            Some(_) => matches!(target, RequestTarget::Line(_)) && is_whole_uri(bytes),
            None => false,
        };
        if plain && valid { Ok(()) } else { Err(Malformation::Target) }
    }

    /// Checks a field. In HTTP/1.1, `value` is the value without the optional white space around
    /// it. In HTTP/2, it is the value as received.
    pub fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformation> {
        field(self.version, name, value)?;
        if reads_as(name, b"content-length") {
            let digits = (1..=LENGTH_DIGITS_MAX).contains(&value.len())
                && value.iter().all(u8::is_ascii_digit);
            // Some servers interpret a number that begins with zero as octal.
            if !digits || (value.len() > 1 && value[0] == b'0') || self.length.is_some() {
                return Err(Malformation::ContentLength);
            }
            self.length =
                Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
        } else if reads_as(name, b"transfer-encoding") {
            let old = self.version == Version::HTTP_10;
            if !value.eq_ignore_ascii_case(b"chunked") || self.chunked || old {
                return Err(Malformation::TransferEncoding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// Returns the framing of the body (RFC 9112, section 6.3).
    pub fn framing(&self) -> Result<BodyFraming, Malformation> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Malformation::LengthAndCoding),
            (true, None) => Ok(BodyFraming::Chunked),
            (false, length) => Ok(BodyFraming::Length(length)),
        }
    }
}

/// Checks a whole head: method, target and fields. `limit` is the configured size of a head in
/// bytes. The refusal of too many fields shows this limit.
pub(super) fn check_head<'h>(
    version: Version,
    method: &[u8],
    target: RequestTarget<'_>,
    fields: impl IntoIterator<Item = (&'h [u8], &'h [u8])>,
    limit: usize,
) -> Result<BodyFraming, Refusal> {
    let mut head = HeadCheck::new(version);
    head.method(method)?;
    head.target(target)?;
    for (count, (name, value)) in fields.into_iter().enumerate() {
        if count == FIELDS_MAX {
            return Err(Refusal::HeaderTooLarge { limit });
        }
        name_length(name, limit)?;
        head.field(name, value)?;
    }
    Ok(head.framing()?)
}

/// Checks the length of a field's name, which must not be empty. `limit` is as in [`check_head`].
pub(super) fn name_length(name: &[u8], limit: usize) -> Result<(), Refusal> {
    match name.len() {
        0 => Err(Malformation::FieldName.into()),
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(Refusal::HeaderTooLarge { limit }),
    }
}

/// Checks the length of a target. `limit` is as in [`check_head`].
pub(super) fn target_length(target: &[u8], limit: usize) -> Result<(), Refusal> {
    if target.len() > TARGET_BYTES_MAX { Err(Refusal::HeaderTooLarge { limit }) } else { Ok(()) }
}

/// Checks the rules for all fields, of a head and of a trailer section.
fn field(version: Version, name: &[u8], value: &[u8]) -> Result<(), Malformation> {
    // CGI-like servers read `_` as `-`. For them, such a spelling of a framing field frames the
    // message.
    let other_spelling = name.contains(&b'_') && FRAMING.iter().any(|known| reads_as(name, known));
    if other_spelling || run(name, TOKEN) < name.len() {
        return Err(Malformation::FieldName);
    }
    // HTTP/1.1 can't express such a value: an upstream would read it without its outer white space.
    if value.trim_ascii().len() < value.len() {
        return Err(Malformation::FieldValue);
    }
    if version == Version::HTTP_2 {
        // The byte guard checks the bytes of an HTTP/1.1 value.
        if run(value, VALUE) < value.len() {
            return Err(Malformation::ControlByte);
        }
        let te = name.eq_ignore_ascii_case(b"te") && !value.eq_ignore_ascii_case(b"trailers");
        if te || CONNECTION_SPECIFIC.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Err(Malformation::ConnectionField);
        }
    }
    Ok(())
}

/// Checks a parsed trailer section, of either version.
pub(super) fn trailers(trailers: &HeaderMap) -> Result<(), Malformation> {
    let bytes: usize = trailers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len())
        .sum();
    if trailers.len() > FIELDS_MAX || bytes > TRAILER_BYTES_MAX {
        return Err(Malformation::Trailer);
    }
    for (name, value) in trailers {
        trailer_name(name.as_str().as_bytes())?;
        field(Version::HTTP_2, name.as_str().as_bytes(), value.as_bytes())?;
    }
    Ok(())
}

/// Checks the name of a trailer, or its first [`TRAILER_NAME_KEPT`] bytes.
pub(super) fn trailer_name(name: &[u8]) -> Result<(), Malformation> {
    let forbidden = TRAILERS_FORBIDDEN.iter().any(|known| reads_as(name, known));
    if forbidden { Err(Malformation::Trailer) } else { Ok(()) }
}

/// Checks the host in a request's Host fields, and the host in its target (`named`). The target of
/// HTTP/2 always has a host. In HTTP/1.1, only a whole URI has one. Two different hosts are
/// refused, because two servers could choose different ones.
pub(super) fn host<'h>(
    version: Version,
    hosts: impl IntoIterator<Item = &'h [u8]>,
    named: Option<&Authority>,
) -> Result<(), Refusal> {
    let mut hosts = hosts.into_iter();
    let valid = match (hosts.next(), named) {
        (Some(host), named) => {
            Authority::try_from(host).is_ok_and(|host| is_host(&host))
                && named.is_none_or(|named| host.eq_ignore_ascii_case(named.as_str().as_bytes()))
        }
        (None, Some(named)) => version != Version::HTTP_11 && is_host(named),
        (None, None) => version == Version::HTTP_10,
    };
    if valid && hosts.next().is_none() { Ok(()) } else { Err(Refusal::HostInvalid) }
}

/// Returns whether the gateway forwards a scheme.
pub(super) fn is_scheme(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
}

/// Returns whether a target is a whole `http` or `https` URI with a host.
fn is_whole_uri(target: &[u8]) -> bool {
    let scheme = target.windows(3).position(|window| window == b"://").map(|at| &target[..at]);
    scheme.is_some_and(is_scheme)
        && Uri::try_from(target)
            .ok()
            .and_then(|uri| uri.into_parts().authority)
            .is_some_and(|authority| is_host(&authority))
}

/// Returns whether an authority is a host, or a host and a port, and nothing else (RFC 9110,
/// section 7.2).
fn is_host(authority: &Authority) -> bool {
    let (text, host) = (authority.as_str(), authority.host());
    !host.is_empty()
        && !text.contains('@')
        && (text.len() == host.len() || authority.port_u16().is_some())
}

/// Returns whether a server may read `name` as `known`. CGI-like servers read `_` as `-`.
pub(super) fn reads_as(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && name.iter().zip(known).all(|(byte, known)| {
            byte.to_ascii_lowercase() == *known || (*byte == b'_' && *known == b'-')
        })
}

#[cfg(test)]
mod tests;
