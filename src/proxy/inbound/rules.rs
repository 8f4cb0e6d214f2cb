//! The rules for a request's head and its trailers, the same for both versions of HTTP.
//!
//! Danger: a request that one version refuses and the other passes reaches the upstream as what the
//! first one refused. So both versions ask the functions of this file. The byte guard asks them step
//! by step while it reads an HTTP/1.1 head. [`judge`] asks them about a request that the HTTP/2
//! library has parsed. All functions are pure.

use http::uri::Authority;
use http::{HeaderMap, Uri, Version};

use crate::proxy::inbound::listener::FIELDS_MAX;
use crate::refusal::{Malformation, Refusal};

/// Longest target, in bytes. The type that the parsers make of a target can't hold more.
const TARGET_BYTES_MAX: usize = (u16::MAX - 1) as usize;

/// Longest field name, in bytes. The longest registered one has 40.
const NAME_BYTES_MAX: usize = 256;

/// Digits of a content length: all numbers of so many fit into 63 bits, whichever sign a parser gives them.
const LENGTH_DIGITS_MAX: usize = 18;

/// Longest trailer section, in bytes.
pub(in crate::proxy) const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Classes of bytes (RFC 9110, section 5.6.2; RFC 3986, section 2). In a class, a bit is set.
pub(in crate::proxy) const TOKEN: u8 = 1;
pub(in crate::proxy) const METHOD: u8 = 2;
pub(in crate::proxy) const TARGET: u8 = 4;
pub(in crate::proxy) const VALUE: u8 = 8;
pub(in crate::proxy) const VERSION: u8 = 16;

pub(in crate::proxy) const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let mark = matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
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
pub(in crate::proxy) fn run(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|byte| CLASSES[usize::from(*byte)] & class == 0).unwrap_or(bytes.len())
}

/// Fields that frame a message: the gateway and the upstream must read them in the same way.
const FRAMING: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];

/// Fields that belong to one connection, which HTTP/2 forbids (RFC 9113, section 8.2.2).
const CONNECTION_SPECIFIC: [&[u8]; 5] =
    [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];

/// Fields that no trailer section may have, because they frame, route, or name who asks (RFC 9110,
/// section 6.5.1): some origins merge trailers into the head.
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

/// Bytes of a trailer's name that decide whether it is forbidden: those of the longest forbidden one, and one more.
pub(in crate::proxy) const TRAILER_NAME_KEPT: usize = 20;

/// Where a request goes, in the form of its version.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) enum RequestTarget<'t> {
    /// The target of a request line (RFC 9112, section 3.2).
    Line(&'t [u8]),
    /// The pseudo-header fields of HTTP/2 (RFC 9113, section 8.3.1). The parser drops a scheme that
    /// has no authority beside it; the guard of frames checks that one.
    Pseudo { scheme: Option<&'t [u8]>, path: &'t [u8] },
}

/// The framing of a request's body, as its fields declare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Framing {
    Chunked,
    /// So many bytes. An HTTP/2 request without a length ends with its stream.
    Length(Option<u64>),
}

/// The state of judging one head: what its method and its framing fields were.
#[derive(Debug)]
pub(in crate::proxy) struct Head {
    /// The version that the request came by.
    pub version: Version,
    options: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Default for Head {
    fn default() -> Head {
        Head::new(Version::HTTP_11)
    }
}

impl Head {
    pub fn new(version: Version) -> Head {
        Head { version, options: false, length: None, chunked: false }
    }

    /// Judges a method: upper case, and neither CONNECT nor TRACE.
    pub fn method(&mut self, method: &[u8]) -> Result<(), Refusal> {
        match method {
            b"" => Err(Malformation::RequestLine.into()),
            // Refused here and not behind the parser, which would begin a tunnel: what follows is not HTTP to it.
            b"CONNECT" | b"TRACE" => Err(Refusal::MethodNotAllowed),
            _ if run(method, METHOD) < method.len() => Err(Malformation::Method.into()),
            _ => {
                self.options = method == b"OPTIONS";
                Ok(())
            }
        }
    }

    /// Whether the method is OPTIONS.
    pub fn is_options(&self) -> bool {
        self.options
    }

    /// Judges a target: a path, the asterisk of OPTIONS, or in a request line a whole URI. A bare
    /// authority is for CONNECT only (RFC 9112, section 3.2).
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

    /// Judges a field. `value` is what the version takes for the value: in HTTP/1.1 without the
    /// optional white space around it, in HTTP/2 as it came.
    pub fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformation> {
        field(self.version, name, value)?;
        if reads_as(name, b"content-length") {
            let digits = (1..=LENGTH_DIGITS_MAX).contains(&value.len())
                && value.iter().all(u8::is_ascii_digit);
            // A number that begins with zero is octal to some.
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

    /// How the body is framed (RFC 9112, section 6.3).
    pub fn framing(&self) -> Result<Framing, Malformation> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Malformation::LengthAndCoding),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => Ok(Framing::Length(length)),
        }
    }
}

/// Judges a whole head: method, target and fields. `limit` is the configured size of a head in
/// bytes, which the refusal of one with too many fields names.
pub(in crate::proxy) fn judge<'h>(
    version: Version,
    method: &[u8],
    target: RequestTarget<'_>,
    fields: impl IntoIterator<Item = (&'h [u8], &'h [u8])>,
    limit: usize,
) -> Result<Framing, Refusal> {
    let mut head = Head::new(version);
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

/// Judges the length of a field's name, which must not be empty. `limit` is as in [`judge`].
pub(in crate::proxy) fn name_length(name: &[u8], limit: usize) -> Result<(), Refusal> {
    match name.len() {
        0 => Err(Malformation::FieldName.into()),
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(Refusal::HeaderTooLarge { limit }),
    }
}

/// Judges the length of a target. `limit` is as in [`judge`].
pub(in crate::proxy) fn target_length(target: &[u8], limit: usize) -> Result<(), Refusal> {
    if target.len() > TARGET_BYTES_MAX { Err(Refusal::HeaderTooLarge { limit }) } else { Ok(()) }
}

/// Judges what holds for every field, of a head and of a trailer section.
fn field(version: Version, name: &[u8], value: &[u8]) -> Result<(), Malformation> {
    // Servers that make variables of fields read `_` as `-`: another spelling of a framing field frames for them.
    let other_spelling = name.contains(&b'_') && FRAMING.iter().any(|known| reads_as(name, known));
    if other_spelling || run(name, TOKEN) < name.len() {
        return Err(Malformation::FieldName);
    }
    // HTTP/1.1 has no such values. Upstreams that get one by it read it without the white space.
    if value.trim_ascii().len() < value.len() {
        return Err(Malformation::FieldValue);
    }
    if version == Version::HTTP_2 {
        // The byte guard has looked at each byte of an HTTP/1.1 value.
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

/// Judges a trailer section that a parser has read, by either version.
pub(in crate::proxy) fn trailers(trailers: &HeaderMap) -> Result<(), Malformation> {
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

/// Judges the name of a trailer, or as much of it as [`TRAILER_NAME_KEPT`].
pub(in crate::proxy) fn trailer_name(name: &[u8]) -> Result<(), Malformation> {
    let forbidden = TRAILERS_FORBIDDEN.iter().any(|known| reads_as(name, known));
    if forbidden { Err(Malformation::Trailer) } else { Ok(()) }
}

/// Judges the host that a request names in its Host fields, and perhaps in its target (`named`):
/// always in HTTP/2, as a whole URI in HTTP/1.1. Two hosts are two readings.
pub(in crate::proxy) fn host<'h>(
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

/// Whether a scheme is one that the gateway forwards.
pub(in crate::proxy) fn is_scheme(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
}

/// Whether a target is a whole `http` or `https` URI with a host.
fn is_whole_uri(target: &[u8]) -> bool {
    let scheme = target.windows(3).position(|window| window == b"://").map(|at| &target[..at]);
    scheme.is_some_and(is_scheme)
        && Uri::try_from(target)
            .ok()
            .and_then(|uri| uri.into_parts().authority)
            .is_some_and(|authority| is_host(&authority))
}

/// Whether an authority is a host, or a host and a port, and nothing else (RFC 9110, section 7.2).
fn is_host(authority: &Authority) -> bool {
    let (text, host) = (authority.as_str(), authority.host());
    !host.is_empty()
        && !text.contains('@')
        && (text.len() == host.len() || authority.port_u16().is_some())
}

/// Whether a name is this one to some reader: servers that make variables of fields take `_` for `-`.
pub(in crate::proxy) fn reads_as(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && name.iter().zip(known).all(|(byte, known)| {
            byte.to_ascii_lowercase() == *known || (*byte == b'_' && *known == b'-')
        })
}

#[cfg(test)]
mod tests;
