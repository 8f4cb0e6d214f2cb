//! `[hashing]`: secrets for the hashes of keys, scopes and callers.

use super::admin::SecretSource;
use super::read::Table;

const SECRETS_EXPECTED: &str = "a list of secrets such as [{ env = \"ONCEWARD_HASH_SECRET\" }]";

/// Reads `[hashing]`. New records use the first secret, and look-ups try all secrets. The file
/// never contains a secret itself.
pub(super) fn read(root: &Table<'_>) -> Option<Vec<SecretSource>> {
    let Some(whole) = root.get("hashing") else { return Some(Vec::new()) };
    let table = root.table("hashing", "a table with secrets");
    let secrets = table.get("secrets").map(|value| (value.list(SECRETS_EXPECTED), value));
    table.finish();
    let Some((items, value)) = secrets else {
        whole.fault(format!("needs secrets: {SECRETS_EXPECTED}"));
        return None;
    };
    let items = items.or_else(|| {
        value.conceal();
        None
    })?;
    if items.is_empty() {
        value.fault("expected at least one secret");
    }
    let mut found: Vec<SecretSource> = Vec::new();
    for item in &items {
        let Some(table) = item.table("a table with env or file") else {
            item.conceal();
            continue;
        };
        let source = SecretSource::read_from(&table, "hashing");
        table.finish();
        let Some(source) = source else { continue };
        if found.contains(&source) {
            item.fault("the same secret a second time");
        }
        found.push(source);
    }
    Some(found)
}
