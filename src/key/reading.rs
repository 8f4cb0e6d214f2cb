//! A body that is parsed as JSON at most once, when the first rule needs it.

use std::cell::OnceCell;

use bytes::Bytes;

use super::{Document, UnclearJson};

/// A body and, after the first use, its JSON document.
pub struct Reading<'b> {
    body: &'b [u8],
    document: OnceCell<Result<Document<'b>, UnclearJson>>,
}

impl<'b> Reading<'b> {
    /// Wraps a body without parsing it.
    pub fn new(body: &'b [u8]) -> Reading<'b> {
        Reading { body, document: OnceCell::new() }
    }

    /// Returns the document.
    ///
    /// # Errors
    /// The body has no unambiguous JSON value.
    pub fn document(&self) -> Result<&Document<'b>, UnclearJson> {
        self.document
            .get_or_init(|| Document::parse(self.body))
            .as_ref()
            .map_err(|unclear| *unclear)
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &'b [u8] {
        self.body
    }

    pub(super) fn into_document(self) -> Result<Document<'b>, UnclearJson> {
        self.document.into_inner().unwrap_or_else(|| Document::parse(self.body))
    }
}

impl<'b> From<&'b Bytes> for Reading<'b> {
    fn from(body: &'b Bytes) -> Reading<'b> {
        Reading::new(body)
    }
}
