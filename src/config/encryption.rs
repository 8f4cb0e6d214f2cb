//! `[encryption]`: the keys that seal results at rest.

use super::admin::SecretSource;
use super::read::Table;

const KEYS_EXPECTED: &str =
    "a list of keys such as [{ id = \"2026-11\", env = \"ONCEWARD_KEY_2026_11\" }]";
/// Longest id of a key, in bytes. Every sealed record contains it.
const ID_MAX: usize = 64;

/// A named key. The file names its source and never contains the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionKeySource {
    /// The id that records refer to.
    pub id: String,
    /// The source of the key.
    pub source: SecretSource,
}

/// Reads `[encryption]`. The first key seals results, and all keys open them.
pub(super) fn read(root: &Table<'_>) -> Option<Vec<EncryptionKeySource>> {
    let Some(whole) = root.get("encryption") else { return Some(Vec::new()) };
    let table = root.table("encryption", "a table with keys");
    let keys = table.get("keys").map(|value| (value.list(KEYS_EXPECTED), value));
    table.finish();
    let Some((items, value)) = keys else {
        whole.fault(format!("needs keys: {KEYS_EXPECTED}"));
        return None;
    };
    let items = items.or_else(|| {
        value.conceal();
        None
    })?;
    if items.is_empty() {
        value.fault("expected at least one key");
    }
    let mut found: Vec<EncryptionKeySource> = Vec::new();
    for item in &items {
        let Some(table) = item.table("a table with id and env or file") else {
            item.conceal();
            continue;
        };
        let word = |text: &str| {
            let sound = !text.is_empty()
                && text.len() <= ID_MAX
                && text.bytes().all(|byte| byte.is_ascii_graphic());
            sound.then(|| text.to_owned())
        };
        let id = table
            .get("id")
            .map(|value| value.parsed("a key's name of at most 64 visible characters", word));
        if id.is_none() {
            table
                .report
                .note_absence(&table.span_of("id"), "a key needs an id, which records refer to");
        }
        let source = SecretSource::read_from(&table, "a key");
        table.finish();
        let (Some(Some(id)), Some(source)) = (id, source) else { continue };
        if found.iter().any(|other| other.id == id) {
            item.fault(format!("a second key is named {id:?}: records refer to keys by id"));
        }
        found.push(EncryptionKeySource { id, source });
    }
    Some(found)
}
