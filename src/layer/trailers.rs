//! Trailers for HTTP/1.1 clients: sent only to clients that accept them, and announced (RFC 9110,
//! sections 6.5 and 6.6.2). HTTP/2 clients always get them.

use http::header::TRAILER;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};

use crate::gate::AnswerBody;
use crate::http_message::takes_trailers;

/// Returns whether trailers have to be announced to a client. Other HTTP/1.1 clients get no
/// trailers.
pub(super) fn need_announcement(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11 && takes_trailers(headers)
}

/// Announces the trailers that an answer has.
pub(super) fn announce<B>(response: &mut Response<AnswerBody<B>>) {
    let Some(trailers) = response.body().trailers() else { return };
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    if let Ok(value) = HeaderValue::try_from(names.join(", ")) {
        response.headers_mut().insert(TRAILER, value);
    }
}
