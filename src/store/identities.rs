//! The part of a store that keeps the agreement of its gateways: how identities of operations
//! are made.

use async_trait::async_trait;

use super::error::StoreError;

/// A text about all records of a store. All its gateways have agreed on the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The settings that identities of operations are made from.
    Identities,
    /// The requests that each route covers.
    Paths,
}

impl Note {
    /// All notes, in the order in which a copy writes them. Once a store has the note of
    /// identities, gateways compare the other notes with it.
    pub const ALL: [Note; 2] = [Note::Paths, Note::Identities];
}

/// Keeps notes, for as long as the store exists.
#[async_trait]
pub trait IdentityNotes: Send + Sync + 'static {
    /// Reads a note.
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError>;

    /// Writes a note if the current text is `expected` or already `next`. Returns `false` if it is
    /// another text.
    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError>;
}
