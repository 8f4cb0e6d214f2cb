//! The part of a store that keeps notes: texts that all its gateways have agreed on, such as the
//! settings that identities of operations are made from.

use async_trait::async_trait;

use super::error::StoreError;

/// The kinds of notes. A note is a text about all records of a store, and all gateways of the store
/// have agreed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The settings that identities of operations are made from.
    Identities,
    /// The requests that each route covers.
    Paths,
    /// The sinks that are paused or were resumed.
    Sinks,
    /// The keys that the contents of the outbox may be sealed under.
    OutboxKeys,
}

impl Note {
    /// All notes, in the order in which a copy writes them. The identities come last: if a store
    /// has the identities of a route, gateways expect that it has the paths of the route, too.
    pub const ALL: [Note; 4] = [Note::Sinks, Note::OutboxKeys, Note::Paths, Note::Identities];
}

/// Keeps notes, for as long as the store exists.
#[async_trait]
pub trait IdentityNotes: Send + Sync + 'static {
    /// Reads a note.
    async fn note(&self, note: Note) -> Result<Option<String>, StoreError>;

    /// Writes a note if the current text is `expected` or already `next`. Returns `false` if the
    /// store has another text.
    async fn set_note(
        &self,
        note: Note,
        expected: Option<&str>,
        next: &str,
    ) -> Result<bool, StoreError>;
}
