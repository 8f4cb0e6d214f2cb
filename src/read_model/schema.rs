//! The file: its layout, and how it is opened, emptied and set aside.
//!
//! Routes, states and kinds are stored as numbers. Searches sort by `began_ms`, newest first. An
//! operation never changes its `began_ms`, so that a page's cursor stays valid while states change.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};

use super::error::QueryError;
use super::{counts, freshness};

/// Version of the layout. Increase it with every change below: a file with another version is
/// emptied and built anew.
pub(super) const LAYOUT: i64 = 3;

/// Time that a connection waits for another process that writes.
const BUSY: Duration = Duration::from_secs(5);

/// Cache of the writer, in KiB: the upper levels of the indexes of a million operations.
const WRITER_CACHE_KIB: i64 = 32 << 10;
/// Cache of each reader, in KiB.
const READER_CACHE_KIB: i64 = 8 << 10;

/// Pages of the write-ahead log after which SQLite writes the log into the file. SQLite's default
/// is 1000, but under load each batch writes more pages. With the larger number, a page that
/// changes repeatedly is written once.
const CHECKPOINT_PAGES: i64 = 8000;

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY) WITHOUT ROWID;
CREATE TABLE positions (partition INTEGER PRIMARY KEY, ms INTEGER NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE routes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE field_names (name TEXT PRIMARY KEY) WITHOUT ROWID;

CREATE TABLE operations (
    id INTEGER PRIMARY KEY,
    slot BLOB NOT NULL UNIQUE,
    route INTEGER NOT NULL,
    -- The state at the last update, and the time at which it changes by itself.
    standing INTEGER NOT NULL,
    next_ms INTEGER,
    kind INTEGER NOT NULL,
    version INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    status INTEGER,
    scope TEXT,
    cause TEXT,
    opened_ms INTEGER NOT NULL,
    began_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    lease_ends_ms INTEGER,
    ends_ms INTEGER NOT NULL,
    -- When the store has nothing left of the operation, not even a tombstone.
    gone_ms INTEGER NOT NULL,
    request_bytes INTEGER,
    response_bytes INTEGER,
    upstream_ms INTEGER,
    trace TEXT
);
CREATE INDEX operations_by_time ON operations (began_ms);
CREATE INDEX operations_by_route ON operations (route, began_ms);
CREATE INDEX operations_by_route_state ON operations (route, standing, began_ms);
CREATE INDEX operations_by_state ON operations (standing, began_ms);
CREATE INDEX operations_by_status ON operations (status, began_ms, route) WHERE status IS NOT NULL;
CREATE INDEX operations_by_scope ON operations (scope, began_ms) WHERE scope IS NOT NULL;
CREATE INDEX operations_by_next ON operations (next_ms) WHERE next_ms IS NOT NULL;

CREATE TABLE fields (
    operation INTEGER NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    began_ms INTEGER NOT NULL,
    PRIMARY KEY (operation, name)
) WITHOUT ROWID;
CREATE INDEX fields_by_value ON fields (name, value, began_ms, operation);

-- The primary key identifies a change: after a failover, the log may have a change twice.
CREATE TABLE events (
    operation INTEGER NOT NULL,
    version INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    ms INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (operation, version, fence, kind)
) WITHOUT ROWID;

-- By slot, because an observation can come before the operation's own events.
CREATE TABLE duplicates (
    slot BLOB PRIMARY KEY,
    count INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX duplicates_by_time ON duplicates (last_ms);
CREATE TABLE observations (
    slot BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    ms INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    nth INTEGER NOT NULL,
    observation BLOB NOT NULL,
    PRIMARY KEY (slot, at_ms, ms, seq, nth)
) WITHOUT ROWID;

CREATE TABLE standings (
    standing INTEGER NOT NULL,
    route INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (standing, route)
) WITHOUT ROWID;
CREATE TABLE shadows (
    hour INTEGER NOT NULL,
    route INTEGER NOT NULL,
    scope TEXT NOT NULL,
    would TEXT NOT NULL,
    problem TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (hour, route, scope, would, problem)
) WITHOUT ROWID;
";

/// Opens the file for writing. Creates its tables if it has another layout.
pub(super) fn open(path: &Path) -> Result<Connection, QueryError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|source| QueryError::File { path: path.to_owned(), source })?;
    }
    // The file holds chosen fields and reasons. Only the gateway's user may read it, as for the
    // records. SQLite gives the files beside it the same mode.
    let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.map_err(|source| QueryError::File { path: path.to_owned(), source })?;
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    // Readers and the writer don't wait for each other.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power loss may lose the last batches. They are read from the log again, because the
    // position is in the same transaction.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    prepare(&mut connection)?;
    Ok(connection)
}

/// Opens the file for reading.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, QueryError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    Ok(connection)
}

/// Creates the tables, unless the file has this layout.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), QueryError> {
    connection.set_prepared_statement_cache_capacity(64);
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found != LAYOUT {
        if found != 0 {
            tracing::warn!(
                found,
                known = LAYOUT,
                "the read model has another layout: it is built anew from the event log"
            );
        }
        create_tables(&transaction)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Empties the file. The file keeps its name as a reader of the log: under a new name, trimming
/// would still wait for the old name.
pub(super) fn clear(transaction: &Transaction<'_>) -> Result<(), QueryError> {
    let reader = reader(transaction)?;
    create_tables(transaction)?;
    transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'reader'", [reader])?;
    Ok(())
}

/// Returns the name under which projectors of this file mark their position in the log.
pub(super) fn reader(connection: &Connection) -> Result<String, QueryError> {
    Ok(connection
        .query_row("SELECT value FROM meta WHERE name = 'reader'", [], |row| row.get(0))?)
}

fn create_tables(transaction: &Transaction<'_>) -> Result<(), QueryError> {
    let tables = transaction
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    for table in tables {
        transaction.execute_batch(&format!("DROP TABLE \"{}\"", table.replace('"', "\"\"")))?;
    }
    transaction.execute_batch(TABLES)?;
    transaction.execute_batch(&counts::table())?;
    transaction.execute(
        "INSERT INTO meta VALUES ('reader', 'read-model-' || lower(hex(randomblob(8))))",
        [],
    )?;
    transaction.execute("INSERT INTO meta VALUES (?1, random())", [freshness::GENERATION])?;
    transaction.pragma_update(None, "user_version", LAYOUT)?;
    Ok(())
}

/// Renames a damaged file, so that its damage can be examined. Replaces a file that was set aside
/// earlier.
pub(super) fn set_aside(path: &Path) -> Result<(), QueryError> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        std::path::PathBuf::from(name)
    };
    let aside = with(".damaged");
    tracing::error!(
        file = %path.display(), set_aside = %aside.display(),
        "the read model is damaged: it is set aside and built anew from the event log; payments \
         are not concerned"
    );
    let unless_absent = |done: std::io::Result<()>| match done {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(QueryError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    };
    unless_absent(std::fs::rename(path, &aside))?;
    // The other two files belong to the old file and would damage the new one. Usually they do not
    // exist.
    unless_absent(std::fs::remove_file(with("-wal")))?;
    unless_absent(std::fs::remove_file(with("-shm")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_gateways_user_may_read_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read-model.sqlite");
        let _open = open(&path).unwrap();
        let mut files: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 3, "the file, its log and what readers share: {files:?}");
        for file in files {
            assert_eq!(
                std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                file.display()
            );
        }
    }
}
