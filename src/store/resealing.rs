//! Seals the contents of the outbox under the first key, so that an old key can be removed.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::error::{ListError, StoreError};
use super::outbox_contents::{OutboxContents, StoredContents};
use super::sealed_outbox::{EVENT, REPORT};
use super::sealing::SealingKeys;

/// Replacements at the same time, so that a store can commit several together.
const REPLACED_AT_ONCE: usize = 16;

/// Seals waiting events and dead letters under the first of the keys. Cheap to clone.
#[derive(Clone)]
pub struct Resealer {
    contents: Arc<dyn OutboxContents>,
    keys: Arc<SealingKeys>,
}

/// The result for one page of the outbox.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Number of waiting events and dead letters that were sealed anew.
    pub resealed: usize,
    /// Number of waiting events and dead letters that no key opens. They stay as they are.
    pub unreadable: usize,
    /// Where to continue; `None` at the end.
    pub cursor: Option<String>,
}

/// The contents of an event under the first key.
enum NextContents {
    Unchanged,
    Replaced(StoredContents),
    Unreadable,
}

impl Resealer {
    /// Returns a resealer for the contents of a store.
    pub fn new(contents: Arc<dyn OutboxContents>, keys: Arc<SealingKeys>) -> Resealer {
        Resealer { contents, keys }
    }

    /// Seals one page of the outbox. What is sealed under the first key stays as it is, so a
    /// repeated call does nothing.
    ///
    /// # Errors
    /// The cursor is malformed, or the store failed. A part of the page may be sealed anew. The
    /// same call continues.
    pub async fn reseal(&self, cursor: Option<&str>) -> Result<Resealed, ListError> {
        let page = self.contents.contents(cursor).await?;
        let mut done = Resealed { cursor: page.cursor, ..Resealed::default() };
        let mut replacements = Vec::new();
        for before in page.contents {
            match self.next(&before)? {
                NextContents::Unchanged => {}
                NextContents::Replaced(after) => replacements.push((before, after)),
                NextContents::Unreadable => done.unreadable += 1,
            }
        }
        let replace =
            |(before, after)| async move { self.contents.replace_contents(&before, &after).await };
        let mut results = stream::iter(replacements).map(replace).buffered(REPLACED_AT_ONCE);
        while let Some(replaced) = results.next().await {
            done.resealed += usize::from(replaced?);
        }
        Ok(done)
    }

    fn next(&self, before: &StoredContents) -> Result<NextContents, StoreError> {
        let StoredContents { key, content, report } = before;
        let content = self.keys.reseal_event(key, EVENT, content)?;
        let report = match report {
            Some(report) => self.keys.reseal_event(key, REPORT, report)?.map(Some),
            None => Some(None),
        };
        let Some((content, report)) = content.zip(report) else {
            return Ok(NextContents::Unreadable);
        };
        let after = StoredContents { key: key.clone(), content, report };
        Ok(if after == *before { NextContents::Unchanged } else { NextContents::Replaced(after) })
    }
}
