//! `format` of `[store]`: the newest record format that may be written.

use crate::config::read::Table;

/// The newest record format that may be written. All formats can be read, independently of this
/// setting. Each format permits everything that an earlier one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreFormat {
    /// The format that version 0.1.0 reads.
    One,
    /// A format with publications and trailers, which only later versions read.
    Two,
    /// A format with sagas, which only still later versions read.
    Three,
}

impl StoreFormat {
    /// Returns whether records may have publications, so that routes can publish events.
    pub fn has_publications(self) -> bool {
        self >= StoreFormat::Two
    }

    /// Returns whether records may have trailers.
    pub fn has_trailers(self) -> bool {
        self >= StoreFormat::Two
    }

    /// Returns whether records may be those of sagas.
    pub fn has_sagas(self) -> bool {
        self >= StoreFormat::Three
    }

    /// Reads `format`.
    pub(super) fn read(store: &Table<'_>) -> Option<StoreFormat> {
        let Some(value) = store.get("format") else { return Some(StoreFormat::One) };
        match value.number(1, 3)? {
            1 => Some(StoreFormat::One),
            2 => Some(StoreFormat::Two),
            _ => Some(StoreFormat::Three),
        }
    }
}
