//! `[tls]`: who the gateway is to its clients.

use super::read::Table;
use super::upstream::file_name;
use crate::tls::{ClientFiles, IdentityFiles};

const FILE_EXPECTED: &str = "a file's name";

/// Reads `cert` and `key` of a table: the certificate that the gateway shows to servers. `None` inside where there is none.
pub(super) fn read_client(table: &Table<'_>) -> Option<Option<ClientFiles>> {
    let file = |name| table.get(name).map(|value| value.parsed(FILE_EXPECTED, file_name));
    match (file("cert"), file("key")) {
        (None, None) => Some(None),
        (Some(cert), Some(key)) => Some(Some(ClientFiles { cert: cert?, key: key? })),
        (cert, _) => {
            let missing = if cert.is_some() { "key" } else { "cert" };
            table
                .report
                .note_absence(&table.place_of(missing), format!("a client certificate needs cert and key: set {missing}"));
            None
        }
    }
}

/// Reads `[tls]`; `None` inside where clients come without.
pub(super) fn read(root: &Table<'_>) -> Option<Option<IdentityFiles>> {
    if root.get("tls").is_none() {
        return Some(None);
    }
    let table = root.table("tls", "a table with cert and key");
    let file = |name| table.get(name).map(|value| value.parsed(FILE_EXPECTED, file_name));
    let needed = |name| {
        file(name).unwrap_or_else(|| {
            table.report.note_absence(&table.place_of(name), format!("TLS needs {name}: the name of a file in PEM"));
            None
        })
    };
    let (cert, key, client_ca) = (needed("cert"), needed("key"), file("client_ca"));
    table.finish();
    Some(Some(IdentityFiles { cert: cert?, key: key?, client_ca: client_ca.map_or(Some(None), |file| file.map(Some))? }))
}
