//! Reads certificates: `[tls]` for clients, and `cert` and `key`, the client certificates for
//! upstreams and the store.

use super::read::Table;
use super::texts::file_name;
use crate::tls::{ClientFiles, IdentityFiles};

const FILE_EXPECTED: &str = "a file's name";

/// Reads `[tls]`. The inner value is `None` without TLS.
pub(super) fn read(root: &Table<'_>) -> Option<Option<IdentityFiles>> {
    if root.get("tls").is_none() {
        return Some(None);
    }
    let table = root.table("tls", "a table with cert and key");
    let file = |name| table.get(name).map(|value| value.parsed(FILE_EXPECTED, file_name));
    let needed = |name| {
        file(name).unwrap_or_else(|| {
            table.report.note_absence(
                &table.span_of(name),
                format!("TLS needs {name}: the name of a file in PEM"),
            );
            None
        })
    };
    let (cert, key, client_ca) = (needed("cert"), needed("key"), file("client_ca"));
    table.finish();
    Some(Some(IdentityFiles {
        cert: cert?,
        key: key?,
        client_ca: client_ca.map_or(Some(None), |file| file.map(Some))?,
    }))
}

/// Reads the client certificate (`cert`, `key`) for a server. The inner value is `None` if none is
/// set. `unused` is the warning to give if the server never requests a certificate.
pub(super) fn read_client(table: &Table<'_>, unused: Option<&str>) -> Option<Option<ClientFiles>> {
    let file = |name| table.get(name).map(|value| value.parsed(FILE_EXPECTED, file_name));
    let missing = |name: &'static str, other: &str| {
        let text =
            format!("{other} is not used without {name}: expected the name of a file in PEM");
        table.report.note_absence(&table.span_of(name), text);
        None
    };
    if let Some(unused) = unused
        && table.get("cert").is_some()
    {
        table.report.warn(&table.path_of("cert"), unused);
    }
    match (file("cert"), file("key")) {
        (None, None) => Some(None),
        (Some(_), None) => missing("key", "cert"),
        (None, Some(_)) => missing("cert", "key"),
        (Some(cert), Some(key)) => Some(Some(ClientFiles { cert: cert?, key: key? })),
    }
}
