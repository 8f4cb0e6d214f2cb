//! The part of a store that lists and replaces the contents of the outbox: to find the keys that
//! they are sealed under, and to seal them under another key.

use async_trait::async_trait;

use super::error::{ListError, StoreError};
use super::outbox::{EventContent, EventKey};

/// Contents from which a page gets no more.
const PAGE_MAX: usize = 256;
/// Bytes from which a page gets no more. The contents of one event have some 64 KiB.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// The contents of a waiting event or of a dead letter, as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredContents {
    /// The event.
    pub key: EventKey,
    /// The content of the event.
    pub content: EventContent,
    /// The report of a dead letter; `None` for a waiting event.
    pub report: Option<EventContent>,
}

/// A page of contents. It may be empty although more contents follow.
#[derive(Debug, Default)]
pub struct ContentsPage {
    /// The contents.
    pub contents: Vec<StoredContents>,
    /// Where to continue; `None` at the end.
    pub cursor: Option<String>,
    bytes: usize,
}

impl ContentsPage {
    /// Returns the page with another cursor.
    pub fn with_cursor(self, cursor: Option<String>) -> ContentsPage {
        ContentsPage { cursor, ..self }
    }

    /// Adds contents to the page.
    pub fn add(&mut self, contents: StoredContents) {
        let StoredContents { content, report, .. } = &contents;
        self.bytes += content.size() + report.as_ref().map_or(0, EventContent::size);
        self.contents.push(contents);
    }

    /// Returns whether the page must get no more contents.
    pub fn is_full(&self) -> bool {
        self.contents.len() >= PAGE_MAX || self.bytes >= PAGE_BYTES_MAX
    }
}

/// Lists and replaces contents while relays and operators change the outbox.
#[async_trait]
pub trait OutboxContents: Send + Sync + 'static {
    /// Lists the contents behind `cursor`. A partition's dead letters follow its waiting events.
    ///
    /// The pages have everything that is stored while they are read, and an event that is buried
    /// meanwhile. They can have contents twice. They can miss a dead letter that is requeued
    /// meanwhile and, in Redis, contents of a server that fails over meanwhile.
    ///
    /// # Errors
    /// The cursor is malformed, or the store failed.
    async fn contents(&self, cursor: Option<&str>) -> Result<ContentsPage, ListError>;

    /// Replaces `before` by `after`, the contents of the same event. Nothing else of the event
    /// changes. Returns `false` if the store does not have exactly `before`: the event was
    /// delivered, buried, requeued or discarded, or somebody else has replaced its contents.
    async fn replace_contents(
        &self,
        before: &StoredContents,
        after: &StoredContents,
    ) -> Result<bool, StoreError>;
}
