//! Values in the file: converts numbers for SQLite, and reads and writes values by name.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::error::QueryError;

/// Converts a time or count for SQLite. A number that is too large becomes the largest number that
/// SQLite has. As a time, that number is never reached.
pub(super) fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Converts a stored time or count.
pub(super) fn unstored(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Reads a value by its name.
pub(super) fn meta(connection: &Connection, name: &str) -> Result<Option<i64>, QueryError> {
    let mut select = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    Ok(select.query_row([name], |row| row.get(0)).optional()?)
}

/// Writes a value under a name.
pub(super) fn set_meta(
    transaction: &Transaction<'_>,
    name: &str,
    value: i64,
) -> Result<(), QueryError> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])?;
    Ok(())
}
