//! A body that several rules want to look into. It is read as JSON when the first of them does, and once.

use std::cell::OnceCell;

use bytes::Bytes;

use super::{Document, UnclearJson};

/// A body, and what it says once somebody asked.
pub struct Reading<'b> {
    body: &'b [u8],
    document: OnceCell<Result<Document<'b>, UnclearJson>>,
}

impl<'b> Reading<'b> {
    /// A body that nobody has looked into.
    pub fn new(body: &'b [u8]) -> Reading<'b> {
        Reading { body, document: OnceCell::new() }
    }

    /// The document that it is.
    ///
    /// # Errors
    /// It is none with one clear value.
    pub fn document(&self) -> Result<&Document<'b>, UnclearJson> {
        self.document
            .get_or_init(|| Document::parse(self.body))
            .as_ref()
            .map_err(|unclear| *unclear)
    }

    /// Its bytes.
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
