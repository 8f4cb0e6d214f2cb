//! A JSON document with an entity tag, and the answer to a conditional request for it.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::gate::AnswerBody;
use crate::hex::Hex;
use crate::key::PartHasher;

/// Bytes of the digest in a document's tag.
const TAG_BYTES: usize = 16;

/// A JSON document with its entity tag.
#[derive(Debug)]
pub(super) struct TaggedDocument {
    body: Bytes,
    tag: String,
}

impl TaggedDocument {
    /// Tags a document by its content. `purpose` separates the tags of different documents.
    pub fn new(purpose: &str, body: Bytes) -> TaggedDocument {
        let mut hasher = PartHasher::new(purpose);
        hasher.part(&body);
        let tag = format!("\"{}\"", Hex(&hasher.finish()[..TAG_BYTES]));
        TaggedDocument { body, tag }
    }

    /// Returns the answer to a request with this method and these fields.
    pub fn answer<B>(
        &self,
        method: &Method,
        asked: &HeaderMap,
        cache_control: HeaderValue,
    ) -> Response<AnswerBody<B>> {
        let known = self.is_known(asked);
        let (status, body) = match (known, method) {
            (true, _) => (StatusCode::NOT_MODIFIED, Bytes::new()),
            (false, &Method::HEAD) => (StatusCode::OK, Bytes::new()),
            (false, _) => (StatusCode::OK, self.body.clone()),
        };
        let mut response = Response::new(AnswerBody::whole(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, cache_control);
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            headers.insert(ETAG, tag);
        }
        if !known {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(CONTENT_LENGTH, self.body.len().into());
        }
        response
    }

    /// Returns whether the client has this document: `If-None-Match` has its tag.
    pub fn is_known(&self, asked: &HeaderMap) -> bool {
        let lines = asked.get_all(IF_NONE_MATCH).iter();
        lines.filter_map(|value| value.to_str().ok()).any(|tags| self.is_among(tags))
    }

    /// Returns whether a list of tags has this document's tag (RFC 9110, section 13.1.2: compared
    /// weakly).
    fn is_among(&self, tags: &str) -> bool {
        tags.split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.tag)
    }
}
