//! Errors of the read model.

use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Reasons why the read model has no answer. Retrying is always safe.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The cursor is not of this search.
    #[error("the cursor is not from a search: begin the search again, without a cursor")]
    Cursor,
    /// The file is damaged. The projector sets it aside and builds it anew.
    #[error(
        "the read model is damaged; it is being built anew from the event log: ask again later"
    )]
    Damaged,
    /// The file is in use, for example by another process that rebuilds it.
    #[error("the read model is in use: ask again in a moment")]
    Busy,
    /// The file was emptied after the entries for it were read.
    #[error(
        "the read model was emptied meanwhile; it is being built anew from the event log: ask \
         again later"
    )]
    Emptied,
    /// The folder or file can't be used.
    #[error("{path} can't be used for the read model: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another error of SQLite.
    #[error("the read model can't be read or written: {0}")]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for QueryError {
    fn from(error: rusqlite::Error) -> QueryError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => QueryError::Damaged,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => QueryError::Busy,
            _ => QueryError::Sqlite(error),
        }
    }
}
