//! `[tls]`: who the gateway is to its clients.

use super::read::Table;
use super::upstream::file_name;
use crate::tls::IdentityFiles;

const FILE_EXPECTED: &str = "a file's name";

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
