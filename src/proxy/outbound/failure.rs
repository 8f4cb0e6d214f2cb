//! What a failed exchange with an upstream means: that the connection broke, or that the answer could not be read.

use h2::Reason;
use http::{HeaderMap, Version};

use crate::forwarding::ForwardError;
use crate::proxy::outbound::wire::WriteTracker;
use crate::record::AnswerFault;

/// Fields of an answer, at most. Answers with 100 and more occur: many cookies, policies, and what every hop adds.
pub(in crate::proxy) const FIELDS_MAX: usize = 256;

/// Bytes of the head of an HTTP/1.1 answer, at most.
pub(in crate::proxy) const HEAD_MAX: usize = 408 << 10;

/// Bytes of the fields of an HTTP/2 answer, at most.
const FIELD_BYTES_MAX: usize = 64 << 10;

/// What HTTP/2 counts beside the text of each field (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// The header list of an HTTP/2 answer, as the library bounds it. The library has one error for lists beyond and malformed ones:
/// so it gets a larger bound than [`of_head`], which can name what is wrong.
pub(in crate::proxy) const HEADER_LIST_MAX: u32 =
    4 * (FIELD_BYTES_MAX + FIELD_OVERHEAD * FIELDS_MAX) as u32;

/// What is wrong with the head of an answer.
pub(in crate::proxy) fn of_head(version: Version, headers: &HeaderMap) -> Result<(), ForwardError> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let fault = if headers.len() > FIELDS_MAX {
        AnswerFault::TooManyFields
    } else if version == Version::HTTP_2 && bytes > FIELD_BYTES_MAX {
        AnswerFault::HeadTooLarge
    } else {
        return Ok(());
    };
    Err(ForwardError::Unreadable(fault, format!("{} fields of {bytes} bytes", headers.len())))
}

/// A request on an HTTP/1.1 connection that was written at least in part, and got no answer.
pub(in crate::proxy) fn of_http1(error: &hyper::Error, carried: &WriteTracker) -> ForwardError {
    let text = with_sources(error);
    if error.is_parse_too_large() {
        // The library has one error for both.
        let fault = if carried.read() < HEAD_MAX {
            AnswerFault::TooManyFields
        } else {
            AnswerFault::HeadTooLarge
        };
        ForwardError::Unreadable(fault, text)
    } else if error.is_parse() {
        ForwardError::Unreadable(AnswerFault::Malformed, text)
    } else {
        ForwardError::Broken(text)
    }
}

/// A request on an HTTP/2 connection that was written at least in part, and got no answer.
pub(in crate::proxy) fn of_http2(error: &h2::Error) -> ForwardError {
    let fault = match error.reason() {
        // This side refuses what it can't read.
        Some(Reason::ENHANCE_YOUR_CALM) => AnswerFault::HeadTooLarge,
        Some(Reason::PROTOCOL_ERROR | Reason::COMPRESSION_ERROR) => AnswerFault::Malformed,
        _ => return ForwardError::Broken(error.to_string()),
    };
    if error.is_library() {
        ForwardError::Unreadable(fault, error.to_string())
    } else {
        ForwardError::Broken(error.to_string())
    }
}

/// An error and what caused it, which the library's own texts leave out.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
