//! A request's body as its sender meant it: decoded, where it came with a `Content-Encoding` (RFC 9110, section 8.4).
//!
//! A retry is compressed anew, with another time in its header or at another level, and is the same request. The upstream gets
//! the bytes as they came.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::gate::budget::Hold;
use crate::refusal::Refusal;

mod decoder;

use decoder::{Coding, Decoder, Undecodable};

/// Codings of one body, one over the other, that are decoded. Nobody compresses more than twice.
const CODINGS_MAX: usize = 3;

/// How many times as long as a body its content may be. Requests shrink to a tenth, and hardly ever to a hundredth: what
/// shrinks more was made to cost time.
const RATIO_MAX: usize = 256;

/// Content of which the ratio is not looked at, in bytes.
const RATIO_FREE: usize = 64 * 1024;

/// A body, read for what a request is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    bytes: Bytes,
    is_decoded: bool,
}

impl From<Bytes> for Content {
    /// A body without a content coding.
    fn from(bytes: Bytes) -> Content {
        Content { bytes, is_decoded: true }
    }
}

impl Content {
    /// The content; where it can't be decoded, the bytes as they came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns whether the bytes are the content, so that keys can be read from them.
    pub fn is_decoded(&self) -> bool {
        self.is_decoded
    }

    /// Decodes a body, to at most `limit` bytes after each coding. Other work goes on between the steps.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`], where the common buffers have no room. `hold` keeps the room of what is decoded.
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

    /// The same, at once: for requests that are only watched, whose copies are read where they end.
    ///
    /// # Errors
    /// [`Refusal::Overloaded`], where the common buffers have no room.
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
pub(in crate::gate) fn can_decode(headers: &HeaderMap) -> bool {
    codings(headers).is_some()
}

/// The content codings of a body in the order in which they were applied; `None` where one is unknown, or there are too many.
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
    /// What is still to be undone, the last first.
    codings: Vec<Coding>,
    /// Whether the codings are known.
    is_known: bool,
    input: Bytes,
    current: Option<Current>,
    limit: usize,
}

/// The coding that is being undone.
struct Current {
    decoder: Decoder,
    /// How much of the output has room.
    counted: usize,
    /// Room for the decoder itself.
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

    /// Does some of the work; `None`: there is more of it.
    fn step(&mut self, hold: &mut Hold) -> Result<Option<Content>, Refusal> {
        let as_it_came = || Ok(Some(Content { bytes: self.body.clone(), is_decoded: false }));
        if !self.is_known {
            return as_it_came();
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
                    Err(Undecodable::Broken | Undecodable::TooLarge) => return as_it_came(),
                }
            }
        };
        let ended = match current.decoder.step(&self.input) {
            Ok(ended) => ended,
            Err(Undecodable::Broken | Undecodable::TooLarge) => return as_it_came(),
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
