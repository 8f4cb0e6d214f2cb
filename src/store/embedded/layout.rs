//! Name and layout of an embedded store's file, and its tables of notes and facts.

use redb::TableDefinition;

use crate::store::identities::Note;

/// Name of the file in the store's folder.
pub(super) const FILE: &str = "records.redb";

/// Layout of the file that this version writes.
pub(super) const LAYOUT_VERSION: u64 = 1;

/// Layout of a file that a copy is written into. No version of the gateway opens it.
pub(super) const UNFINISHED: u64 = 1 << 32;

/// Facts about the file itself, by name.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// In [`META`]: the layout of the file.
pub(super) const LAYOUT: &str = "layout";

/// In [`META`]: the store's time of the last commit, in ms.
pub(super) const TIME_MS: &str = "time_ms";

/// Texts about all records, by name.
pub(super) const NOTES: TableDefinition<&str, &str> = TableDefinition::new("notes");

/// Returns the name of a note in [`NOTES`].
pub(super) fn name_of(note: Note) -> &'static str {
    match note {
        Note::Identities => "identities",
        Note::Paths => "paths",
        Note::Sinks => "sinks",
        Note::OutboxKeys => "outbox_keys",
    }
}
