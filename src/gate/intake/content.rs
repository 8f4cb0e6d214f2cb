//! The content of a request: its body, decoded if it has a `Content-Encoding` (RFC 9110, section
//! 8.4).
//!
//! A retry that the client compresses again, with another timestamp or level, is still the same
//! request. The upstream gets the bytes as the client sent them.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::gate::budget::Hold;
use crate::refusal::Refusal;

mod decoder;

use decoder::{Coding, Decoder, Undecodable};

/// Maximum number of content codings of one body that are decoded. Clients compress once, rarely
/// twice.
const CODINGS_MAX: usize = 3;

/// Maximum ratio of the length of the content to the length of the body. Compression makes requests
/// ten times shorter, rarely a hundred times. A body with a larger ratio was made to cost time.
const RATIO_MAX: usize = 256;

/// Content up to this length, in bytes, may have any ratio.
const RATIO_FREE: usize = 64 * 1024;

/// A request body, decoded to identify the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    bytes: Bytes,
    is_decoded: bool,
}

impl From<Bytes> for Content {
    /// Creates the content of a body without a content coding.
    fn from(bytes: Bytes) -> Content {
        Content { bytes, is_decoded: true }
    }
}

impl Content {
    /// Returns the decoded content. If the body can't be decoded, returns the bytes as the client
    /// sent them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns whether the bytes are the decoded content. Otherwise no key can be read from them.
    pub fn is_decoded(&self) -> bool {
        self.is_decoded
    }

    /// Decodes a body in steps, and yields between them. Each coding may give at most `limit`
    /// bytes. `hold` takes the memory of the decoded bytes.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] if too little memory is left in the common budget.
    pub(in crate::gate) async fn read(
        headers: &HeaderMap,
        body: &Bytes,
        limit: usize,
        hold: &mut Hold,
    ) -> Result<Content, Refusal> {
        let mut decoding = Decoding::new(headers, body, limit);
        loop {
            if let Some(content) = decoding.step(hold)? {
                return Ok(content);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Decodes a body without yielding. Shadow mode needs this, because it decodes the copy of a
    /// body within the poll that ends the body.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`] if too little memory is left in the common budget.
    pub fn read_at_once(
        headers: &HeaderMap,
        body: &Bytes,
        limit: usize,
        hold: &mut Hold,
    ) -> Result<Content, Refusal> {
        let mut decoding = Decoding::new(headers, body, limit);
        loop {
            if let Some(content) = decoding.step(hold)? {
                return Ok(content);
            }
        }
    }
}

/// Returns whether every content coding that the fields name can be decoded.
pub(super) fn can_decode(headers: &HeaderMap) -> bool {
    codings(headers).is_some()
}

/// Returns the content codings of a body, in the order in which the client applied them; `None` if
/// one is unknown, or if there are too many.
fn codings(headers: &HeaderMap) -> Option<Vec<Coding>> {
    let names = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let names = names
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
    let mut codings = Vec::new();
    for name in names {
        if codings.len() == CODINGS_MAX {
            return None;
        }
        codings.push(Coding::parse(name)?);
    }
    Some(codings)
}

/// A body that is being decoded.
struct Decoding {
    body: Bytes,
    /// The codings that are not decoded yet. The last one in the list is decoded next.
    codings: Vec<Coding>,
    /// Whether the codings are known.
    is_known: bool,
    input: Bytes,
    current: Option<Current>,
    limit: usize,
}

/// The coding that is being decoded.
struct Current {
    decoder: Decoder,
    /// Bytes of the output that are counted in the common budget.
    counted: usize,
    /// The memory of the decoder itself.
    _workspace: Hold,
}

impl Decoding {
    fn new(headers: &HeaderMap, body: &Bytes, limit: usize) -> Decoding {
        let codings = if body.is_empty() { Some(Vec::new()) } else { codings(headers) };
        let is_known = codings.is_some();
        let codings = codings.unwrap_or_default();
        let limit = limit.min(body.len().saturating_mul(RATIO_MAX).max(RATIO_FREE));
        Decoding {
            body: body.clone(),
            codings,
            is_known,
            input: body.clone(),
            current: None,
            limit,
        }
    }

    /// Decodes some of the body. Returns `None` while there is more to decode.
    fn step(&mut self, hold: &mut Hold) -> Result<Option<Content>, Refusal> {
        let undecoded = || Ok(Some(Content { bytes: self.body.clone(), is_decoded: false }));
        if !self.is_known {
            return undecoded();
        }
        let mut current = match self.current.take() {
            Some(current) => current,
            None => {
                let Some(coding) = self.codings.pop() else {
                    return Ok(Some(Content::from(self.input.clone())));
                };
                let mut workspace = hold.beside();
                if !workspace.grow(Decoder::workspace_bytes(coding, &self.input, self.limit)) {
                    return Err(Refusal::Overloaded);
                }
                match Decoder::begin(coding, &self.input, self.limit) {
                    Ok(decoder) => Current { decoder, counted: 0, _workspace: workspace },
                    Err(Undecodable::Broken | Undecodable::TooLarge) => return undecoded(),
                }
            }
        };
        let ended = match current.decoder.step(&self.input) {
            Ok(ended) => ended,
            Err(Undecodable::Broken | Undecodable::TooLarge) => return undecoded(),
        };
        let grown = current.decoder.output_bytes() - current.counted;
        if !hold.grow(grown) {
            return Err(Refusal::Overloaded);
        }
        current.counted += grown;
        if ended {
            self.input = current.decoder.into_output().into();
            if self.codings.is_empty() {
                return Ok(Some(Content::from(self.input.clone())));
            }
        } else {
            self.current = Some(current);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
