//! Classifies failed exchanges with an upstream: the connection broke, or the answer can't be read.

use h2::Reason;
use http::{HeaderMap, Version};

use crate::forwarding::ForwardError;
use crate::proxy::outbound::wire::WriteTracker;
use crate::record::AnswerFault;

/// The maximum of fields in an answer. Some answers have more than 100: many cookies and policies,
/// and the fields that every hop adds.
pub(in crate::proxy) const FIELDS_MAX: usize = 256;

/// The maximum size of the head of an HTTP/1.1 answer, in bytes.
pub(in crate::proxy) const HEAD_MAX: usize = 408 << 10;

/// The maximum size of the fields of an HTTP/2 answer, in bytes.
const FIELD_BYTES_MAX: usize = 64 << 10;

/// Bytes that HTTP/2 counts for each field in addition to its text (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// The library's limit for the header list of an HTTP/2 answer, in bytes. The library reports the
/// same error for lists that are too large and for malformed ones. So this limit is higher than the
/// limit of [`of_head`], which can name the fault.
pub(in crate::proxy) const HEADER_LIST_MAX: u32 =
    4 * (FIELD_BYTES_MAX + FIELD_OVERHEAD * FIELDS_MAX) as u32;

/// Returns an error if the head of an answer exceeds a limit.
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

/// Returns the error for a request that was at least partly written to an HTTP/1.1 connection and
/// got no answer.
pub(in crate::proxy) fn of_http1(error: &hyper::Error, tracker: &WriteTracker) -> ForwardError {
    let text = with_sources(error);
    if error.is_parse_too_large() {
        // The library has one error for both limits.
        let fault = if tracker.read() < HEAD_MAX {
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

/// Returns the error for a request that was at least partly written to an HTTP/2 connection and got
/// no answer.
pub(in crate::proxy) fn of_http2(error: &h2::Error) -> ForwardError {
    let fault = match error.reason() {
        // The library reports these reasons for answers that it can't read.
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

/// Returns the text of an error with its causes, which the library's own text leaves out.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
