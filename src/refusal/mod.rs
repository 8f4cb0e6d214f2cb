//! Everything that can keep a request from its own answer. The edge turns each into a problem document.

pub mod http;
mod vendor_errors;

use std::time::Duration;

use crate::engine::DuplicateRefusal;
use crate::gate::BodyKind;
use crate::gate::BoxError;
use crate::gate::Explanation;
use crate::key::{KeyError, Slot};
use crate::record::AnswerFault;

/// Why a request is not answered by the upstream or a stored reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key, or a part of a derived one, is missing.
    #[error("{what} is required and missing{}{}", if .body.is_some() { "; " } else { "" }, .body.map(|kind| kind.to_string()).unwrap_or_default())]
    KeyMissing {
        /// What is missing, in words.
        what: String,
        /// The kind of the body in which it was looked for, if that was read.
        body: Option<BodyKind>,
    },
    /// The key is malformed.
    #[error("the idempotency key {why}")]
    KeyInvalid {
        /// What is wrong with it.
        why: KeyFault,
    },
    /// What the scope is made of is missing.
    #[error("{what}, which says whose key this is, is missing")]
    ScopeMissing {
        /// What is missing, in words.
        what: String,
    },
    /// A plain field that the scope is made of, or a cookie that the scope or the caller is made of, came more than once.
    #[error("{what}, which says whose key this is, is given more than once")]
    ScopeRepeated {
        /// What is repeated, in words.
        what: String,
    },
    /// The token that the scope is in does not verify.
    #[error("the token, which says whose key this is, {}", if *.expired { "has expired" } else { "is not valid" })]
    ScopeInvalid {
        /// Whether it did until lately. More is not told: it would help only who makes tokens up.
        expired: bool,
    },
    /// The keys that tokens are verified with are not known yet.
    #[error(
        "the token, which says whose key this is, cannot be verified yet; nothing was sent to the upstream"
    )]
    ScopeUnavailable,
    /// The key was used for another request, or by another caller.
    #[error("this idempotency key was already used for another request, or by another caller")]
    KeyReused {
        /// The operation.
        slot: Slot,
        /// What is said of the first request, where that had the same caller and the route explains.
        explained: Option<Box<Explanation>>,
    },
    /// The first request is still running.
    #[error("the first request with this key is still being processed")]
    InFlight {
        /// The operation.
        slot: Slot,
        /// When to come back.
        retry_after: Duration,
    },
    /// Nobody knows whether the upstream acted.
    #[error("it is not known whether the upstream executed this request")]
    OutcomeUncertain {
        /// The operation; `None` for a request that no key protects and that may not be repeated.
        slot: Option<Slot>,
        /// The status to answer with where it comes from the attempt itself: the upstream's own, 502 or 504.
        /// `None` for a duplicate: 409.
        status: Option<u16>,
        /// When the same request may be sent again; `None` where it may not.
        retry_after: Option<Duration>,
    },
    /// It succeeded with a response that was not kept.
    #[error("the first request was answered with status {status}, and that response was not kept")]
    ResponseNotStored {
        /// The operation.
        slot: Slot,
        /// The original status.
        status: u16,
    },
    /// The result is gone.
    #[error("the result of this key was kept for as long as promised, and is gone")]
    ResultExpired {
        /// The operation.
        slot: Slot,
    },
    /// Given up before the first byte.
    #[error("the request was not sent to the upstream, because its claim had grown too old")]
    NotSent {
        /// The operation.
        slot: Slot,
    },
    /// No connection to the upstream.
    #[error("the upstream cannot be reached; nothing was sent to it")]
    UpstreamUnreachable {
        /// The operation, if a key protects it.
        slot: Option<Slot>,
    },
    /// An unprotected request that may be repeated failed after it was sent.
    #[error("the upstream broke off or did not answer in time")]
    UpstreamFailed {
        /// Whether it was a timeout.
        timed_out: bool,
    },
    /// The store can't be asked.
    #[error("the store of idempotency records is unavailable; nothing was sent to the upstream")]
    StoreUnavailable {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The record is there and can't be read: it is neither replayed nor run again.
    #[error("the stored record of this request cannot be read; nothing was sent to the upstream")]
    RecordUnreadable {
        /// The operation.
        slot: Slot,
    },
    /// A limit is reached.
    #[error("too many requests at once")]
    Overloaded,
    /// The scope has begun as many operations as it may.
    #[error(
        "as many new operations were begun as one account may begin; nothing was sent to the upstream"
    )]
    QuotaReached {
        /// How long to wait.
        retry_after: Duration,
    },
    /// The request body is too large to be protected.
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The key has to be read from the body, and the body's content coding can't be undone.
    #[error(
        "the idempotency key is read from the request body, and its Content-Encoding is unknown, broken, or too large when decoded"
    )]
    UnsupportedEncoding,
    /// The key is read from the body, and the body claims to be JSON and can't be read as JSON.
    #[error(
        "the idempotency key is read from the request body, and the body can't be read as JSON"
    )]
    BodyUnreadable,
    /// The request body did not arrive in time.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The request body broke off.
    #[error("the request body broke off")]
    BodyBroken,
    /// The path could be read in two ways.
    #[error(
        "the path can be read as the path of another, protected resource (path parameters, dot or empty segments, encoded separators, letter case)"
    )]
    PathAmbiguous,
    /// A method that a gateway doesn't forward.
    #[error("the method is not forwarded")]
    MethodNotAllowed,
    /// The `Host` field is missing, double, malformed, or another than the target's.
    #[error(
        "the request needs exactly one well-formed Host field, and no other host in its target"
    )]
    HostInvalid,
    /// The request's bytes are not HTTP, or HTTP that two readers could read in two ways.
    #[error("{why}")]
    Malformed {
        /// What is wrong with them.
        why: Malformation,
    },
    /// The request line and header fields are too many or too long.
    #[error("the header block is larger than {limit} bytes, or has too many or too long fields")]
    HeaderTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// What is wrong with a request's bytes (RFC 9112).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformation {
    /// A CR without LF, or an LF without CR (section 2.2).
    #[error("a line of the request does not end with CR LF")]
    LineEnding,
    /// NUL or another control byte.
    #[error("the request has a control byte where none may stand")]
    ControlByte,
    /// Not a method, a target and a version with one space between (section 3).
    #[error("the request line is not a method, a target and a version with one space between them")]
    RequestLine,
    /// Not upper case, as the methods that a server knows are (RFC 9110, section 9.1).
    #[error("the method is not in upper case")]
    Method,
    /// The target has none of its forms (section 3.2).
    #[error("the target is neither a path nor a URL")]
    Target,
    /// Not HTTP/1.1 or HTTP/1.0.
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// No token, or something between it and its colon (section 5.1).
    #[error("a field's name is not a word with a colon right behind it")]
    FieldName,
    /// White space that HTTP/2 takes for part of the value (RFC 9113, section 8.2.1).
    #[error("a field's value begins or ends with white space")]
    FieldValue,
    /// A field that HTTP/2 forbids (RFC 9113, section 8.2.2).
    #[error("the request has a field that belongs to one HTTP/1.1 connection")]
    ConnectionField,
    /// Not one decimal number (RFC 9110, section 7.6.2).
    #[error("the Max-Forwards is not one number")]
    MaxForwards,
    /// A field that is continued on the next line (section 5.2).
    #[error("a field is continued on another line")]
    Folded,
    /// Not one plain decimal number (section 6.3).
    #[error("the Content-Length is not one plain number, given once")]
    ContentLength,
    /// Another coding than `chunked`, or more than that, or on HTTP/1.0 (section 6.1).
    #[error("the Transfer-Encoding is not `chunked` alone")]
    TransferEncoding,
    /// Both ways of framing at once (section 6.3).
    #[error("the request has a Content-Length and a Transfer-Encoding")]
    LengthAndCoding,
    /// Not a plain hexadecimal number of at most 32 bits (section 7.1).
    #[error("a chunk's size is not a plain hexadecimal number")]
    ChunkSize,
    /// Too much of it (section 7.1.1).
    #[error("the chunk extensions are too long or not text")]
    ChunkExtension,
    /// A chunk does not end where its size says.
    #[error("a chunk is longer than its size")]
    ChunkEnd,
    /// A field that no trailer section may have, or too many (section 7.1.2).
    #[error("the trailer section has a field that may not stand there, or is too long")]
    Trailer,
}

impl From<Malformation> for Refusal {
    fn from(why: Malformation) -> Refusal {
        Refusal::Malformed { why }
    }
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// It doesn't parse.
    #[error(transparent)]
    Syntax(#[from] KeyError),
    /// Two fields carry one.
    #[error("is given more than once")]
    Twice,
    /// Field and body differ.
    #[error("in the header field differs from the one in the body")]
    Differs,
    /// The member of the body is not a string.
    #[error("in the body is not a string")]
    NotText,
    /// Two readers could read the body in two ways, for example because it has duplicate member names.
    #[error(
        "can't be taken from a body that two readers could read in two ways (duplicate member names, half a surrogate pair, or an exponent without bounds)"
    )]
    AmbiguousBody,
    /// The upstream wants it in a body that can't have it.
    #[error(
        "can't be put into the body, where the upstream looks for it: the body has to be a JSON object"
    )]
    NotCarried,
}

impl Refusal {
    /// The operation that this is about, if it is known.
    pub fn operation(&self) -> Option<Slot> {
        match self {
            Refusal::KeyReused { slot, .. }
            | Refusal::InFlight { slot, .. }
            | Refusal::ResponseNotStored { slot, .. }
            | Refusal::ResultExpired { slot }
            | Refusal::RecordUnreadable { slot }
            | Refusal::NotSent { slot } => Some(*slot),
            Refusal::OutcomeUncertain { slot, .. } | Refusal::UpstreamUnreachable { slot } => *slot,
            _ => None,
        }
    }

    /// The problem of a refused duplicate.
    pub(crate) fn of_refusal(refusal: DuplicateRefusal, slot: Slot) -> Refusal {
        match refusal {
            DuplicateRefusal::KeyReused => Refusal::KeyReused { slot, explained: None },
            DuplicateRefusal::InFlight { retry_after } => Refusal::InFlight { slot, retry_after },
            DuplicateRefusal::OutcomeUncertain { retry_after } => {
                Refusal::OutcomeUncertain { slot: Some(slot), status: None, retry_after }
            }
            DuplicateRefusal::ResponseNotStored { status } => {
                Refusal::ResponseNotStored { slot, status }
            }
            DuplicateRefusal::Unreadable => Refusal::RecordUnreadable { slot },
            DuplicateRefusal::ResultExpired => Refusal::ResultExpired { slot },
            DuplicateRefusal::NotSent => Refusal::NotSent { slot },
        }
    }
}

/// How forwarding failed. A service around which the gate is laid returns this; any other error counts as
/// [`ForwardError::Broken`], because nothing is known about it.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No byte of the request was written: refused, no route, TLS failure, or a pooled connection that was closed.
    #[error("the upstream cannot be reached: {0}")]
    NeverSent(String),
    /// The send rule failed before the first byte.
    #[error("the claim was too old to send on")]
    TooLate,
    /// The connection broke, or the answer was no HTTP, after a byte was written.
    #[error("the upstream broke off: {0}")]
    Broken(String),
    /// The upstream answered, and the answer can't be read: for what reason, and in the words of whoever read it.
    #[error("{fault}: {text}", fault = .0.describe(), text = .1)]
    Unreadable(AnswerFault, String),
    /// No answer in time, after a byte was written.
    #[error("the upstream did not answer in time")]
    TimedOut,
}

impl ForwardError {
    /// What an error of a service says.
    pub fn of(error: BoxError) -> ForwardError {
        match error.downcast::<ForwardError>() {
            Ok(known) => *known,
            Err(error) => ForwardError::Broken(error.to_string()),
        }
    }

    /// The answer to a request that no key protects. `idempotent`: by its method (RFC 9110, section 9.2.2).
    pub fn unprotected(self, idempotent: bool) -> Refusal {
        match self {
            ForwardError::NeverSent(_) | ForwardError::TooLate => {
                Refusal::UpstreamUnreachable { slot: None }
            }
            ForwardError::Broken(_) | ForwardError::Unreadable(..) | ForwardError::TimedOut
                if idempotent =>
            {
                Refusal::UpstreamFailed { timed_out: matches!(self, ForwardError::TimedOut) }
            }
            ForwardError::Broken(_) | ForwardError::Unreadable(..) => {
                Refusal::OutcomeUncertain { slot: None, status: Some(502), retry_after: None }
            }
            ForwardError::TimedOut => {
                Refusal::OutcomeUncertain { slot: None, status: Some(504), retry_after: None }
            }
        }
    }
}
