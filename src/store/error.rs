//! Errors of a store. Each one states whether something may have been written.

use crate::record::CodecError;

/// Reasons why a store call has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written.
    #[error("the store refused or could not be reached, nothing was written: {0}")]
    NotApplied(String),
    /// The write may have been applied, or may still be applied later.
    #[error("the store did not confirm, the write may have happened: {0}")]
    MaybeApplied(String),
    /// A large record exists and was not read in time. Nothing was written. The record still blocks
    /// claims of its slot.
    #[error("a large record could not be read now: {0}")]
    Unread(String),
    /// A record exists and can't be decoded. Its operation is neither replayed nor executed again.
    #[error("a stored record cannot be read: {0}")]
    Corrupt(#[from] CodecError),
}

/// Reasons why a listing has no page.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ListError {
    /// The cursor is malformed. Retrying is useless: begin without a cursor.
    #[error("that is not the cursor of a listing")]
    Cursor,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
